"""The light install: what requirements/serve.txt lists is enough for everything that reads, without torch or Hydra."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MISSING = ("torch", "hydra", "accelerate", "wandb", "faker", "matplotlib", "transformers")


def needed(names: list[str]) -> dict[str, str]:
    """Distributions and everything that they require, by name; extras aren't followed."""
    found: dict[str, str] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            own = distribution(name)
        except PackageNotFoundError:  # for another platform or Python
            continue
        found[key] = own.metadata["Name"]
        todo += [re.split(r"[^\w.-]", line)[0] for line in own.requires or [] if "extra ==" not in line]
    return found


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a venv that holds nothing but what requirements/serve.txt asks for, and the package itself."""
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder / "venv", symlinks=True)
    packages = next((folder / "venv").glob("lib/python*/site-packages"))
    lines = (ROOT / "requirements" / "serve.txt").read_text(encoding="utf-8").splitlines()
    asked = [re.split(r"[^\w.-]", line)[0] for line in lines if line and not line.startswith("#")]
    for name in needed(asked).values():
        own = distribution(name)
        tops = {Path(str(file)).parts[0] for file in own.files or [] if not str(file).startswith("..")}
        for top in tops - {"__pycache__"}:
            (packages / top).symlink_to(Path(str(own.locate_file(top))).resolve())
    for top, place in (("needle", "needle"), ("needle_conf", "conf"), ("needle_models", "models")):
        (packages / top).symlink_to(ROOT / place)
    return folder / "venv" / "bin" / "python"


def run(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(python.parent)}
    return subprocess.run([str(python), *words], capture_output=True, text=True, timeout=120, env=environment)


def test_everything_that_reads_works_without_torch(light: Path) -> None:
    program = f"""
import importlib, pathlib, sys
for name in {MISSING!r}:
    try:
        importlib.import_module(name)
        sys.exit(f"{{name}} is installed")
    except ModuleNotFoundError:
        pass
import needle
import needle.cli.plain, needle.cli.say
for path in sorted(pathlib.Path(needle.__file__).parent.joinpath("text").glob("*.py")):
    importlib.import_module(f"needle.text.{{path.stem}}")
from needle.text.declarations import normalise_tool
from needle.text.declare import declared
def wake(minutes: int) -> None:
    "Wake me."
print(normalise_tool(declared(wake, "")).parameters["properties"]["minutes"]["type"])
"""
    result = run(light, "-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "integer"


def test_an_export_answers_without_torch(light: Path, exported: Path) -> None:
    program = f"""
from needle import Needle
tool = {{"name": "set_alarm", "description": "Set an alarm"}}
needle = Needle({str(exported)!r})
print(needle.engine.backend.name, needle.call("wake me", [tool], 5).finish in ("stop", "length"))
"""
    result = run(light, "-c", program)
    assert result.stdout.split() == ["onnxruntime", "True"], result.stderr


def test_the_released_student_answers_without_torch(light: Path) -> None:
    program = """
from needle import Needle
tool = {"name": "set_timer", "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}}}
print(Needle().call("set a timer for 20 minutes", [tool]).calls[0].arguments)
"""
    result = run(light, "-c", program)
    assert result.stdout.strip() == "{'minutes': 20}", result.stderr


def test_what_still_needs_torch_says_so_in_a_line(light: Path) -> None:
    result = run(light, "-m", "needle.cli", "serve", "backend=torch")
    assert result.returncode == 2
    assert "this needs the package torch: pip install torch" in result.stderr
    assert "Traceback" not in result.stderr
    assert run(light, "-m", "needle.cli", "help").returncode == 0


def test_a_plain_install_needs_all_that_the_light_one_does() -> None:
    light = (ROOT / "requirements" / "serve.txt").read_text(encoding="utf-8").splitlines()
    plain = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    wanted = plain.split("install_requires =")[1].split("[options.package_data]")[0].split()
    assert {line for line in light if line and not line.startswith("#")} <= set(wanted)
    assert sys.version_info >= (3, 11)
