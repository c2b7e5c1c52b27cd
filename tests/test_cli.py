"""The commands as people type them: every named choice composes, every experiment and sweep runs, typos are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from needle.cli.app import compose, misspelt
from needle.cli.compare import sweep_grid
from needle.config import settings
from needle.data.synthetic import SyntheticConfig, generate
from needle.records import write_jsonl

CONF = Path(__file__).parents[1] / "conf"
CHOICES = [f"{path.parent.name}={path.stem}" for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in ("experiment", "sweep")]
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
SWEEPS = [path.stem for path in sorted((CONF / "sweep").glob("*.yaml"))]
SHORT = [
    "data.synthetic.train=60", "data.synthetic.validation=6", "data.synthetic.test=12", "data.synthetic.unseen=4", "tokenizer.size=900", "train.steps=2", "train.batch_size=8",
    "train.micro_batch=8", "train.eval_every=2", "hardware.threads=1", "max_tokens=12",
]  # fmt: skip


def needle(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    return subprocess.run([sys.executable, "-m", "needle.cli", *words], capture_output=True, text=True, timeout=280, cwd=folder, env=environment)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_named_choice_composes_into_typed_settings(choice: str) -> None:
    settings(compose([choice]))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    assert settings(compose([f"experiment={name}"])).output


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_composes_and_gives_a_grid(name: str) -> None:
    grid = sweep_grid([f"sweep={name}"])
    assert len(grid) >= 2
    for choice in grid:
        settings(compose([f"sweep={name}", "output=x", *choice]))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.alhpa=1", "there is no setting 'loss.alhpa'; did you mean 'loss.alpha'?"),
        ("trian.steps=1", "there is no setting 'trian.steps'; did you mean 'train'?"),
        ("student.widht=3", "did you mean 'student.width'?"),
        ("data.synthetic.tain=3", "did you mean 'data.synthetic.train'?"),
        ("student=lama_tiny", "there is no student=lama_tiny; did you mean student=llama_tiny? choices: llama_26m,"),
        ("loss.alpha=much", "Error merging override loss.alpha=much: Value 'much' of type 'str' could not be converted to Float"),
        ("a b", "expected group=choice or key=value"),
    ],
)
def test_a_typo_names_the_nearest_right_key(word: str, message: str) -> None:
    assert message in (misspelt([word]) or "")


@pytest.mark.parametrize(
    "words",
    [["loss=distill,finetune", "train.seed=0,1"], ["+loss.new=1"], ["hydra.verbose=true"], ["compare.teacher=['train.steps=3']"], ["student=llama_tiny", "student.kv_heads=1"]],
)
def test_good_settings_pass(words: list[str]) -> None:
    assert misspelt(words) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "loss.alhpa=1"], "did you mean 'loss.alpha'?"),
        (["train", "loss=distill", *SHORT], "needs a teacher: set teacher=local teacher.checkpoint=DIR"),
        (["train", "loss.temperature=0"], "loss.temperature is 0.0; it must be positive"),
        (["train", "data=jsonl"], "data=jsonl needs data.train"),
        (["train", "data=jsonl", "data.train=[missing.jsonl]"], "missing.jsonl: no such file"),
        (["train", *SHORT, "student.heads=3"], "can't be split into student.heads=3"),
        (["train", *SHORT, "train.steps=0"], "train.steps=0"),
        (["train", *SHORT, "data.max_length=30", "data.on_long=error"], "more than data.max_length=30"),
        (["evaluate"], "give checkpoint=DIR"),
        (["evaluate", "checkpoint=nowhere"], "nowhere isn't a checkpoint: it has no config.json"),
        (["serve", "checkpoint=nowhere"], "nowhere isn't a checkpoint"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(tmp_path: Path, words: list[str], message: str) -> None:
    result = needle(*words, folder=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_help_and_config_are_printed(tmp_path: Path) -> None:
    assert "needle compare" in needle("help", folder=tmp_path).stdout
    assert needle("fly", folder=tmp_path).returncode == 2
    assert "pointer_tiny" in needle("train", "--help", folder=tmp_path).stdout
    assert "temperature: 4.0" in needle("train", "loss=distill", "--cfg", "job", folder=tmp_path).stdout


def test_train_then_evaluate_a_file(tmp_path: Path) -> None:
    trained = needle("train", *SHORT, "output=run", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    write_jsonl(tmp_path / "mine.jsonl", generate(SyntheticConfig(train=0, validation=0, test=10, unseen=5))[2])
    words = ("checkpoint=run", "data=jsonl", "data.path=mine.jsonl", "output=metrics.json", "predictions=answers.jsonl", "max_tokens=12")
    for decoding in ("constrained", "free"):
        judged = needle("evaluate", *words, f"decoding={decoding}", folder=tmp_path)
        assert judged.returncode == 0, judged.stderr
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["records"] == 15
        assert metrics["decoding"] == decoding
        for name in ("exact_call", "tool_name", "argument_f1", "false_call_rate", "missed_call_rate", "schema_valid"):
            assert set(metrics[name]) == {"value", "low", "high"}
        assert {"calls", "seen", "source"} <= set(metrics["groups"])
        rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        assert len(rows) == 15
        assert {"gold", "predicted", "exact", "confidence"} <= set(rows[0])


def test_a_plain_multirun_trains_every_arm(tmp_path: Path) -> None:
    assert needle("train", *SHORT, "output=teacher", folder=tmp_path).returncode == 0
    words = ["sweep=distill_vs_finetune", "teacher.checkpoint=teacher", "data.size=20", "train.seed=0,1"]
    result = needle("train", "-m", *SHORT, *words, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "outputs").glob("synthetic-pointer-*-n20-seed?-*/train.json"))) == 4


@pytest.mark.parametrize("name", ["demo"])
def test_compare_runs_the_experiment_and_does_not_run_finished_arms_again(tmp_path: Path, name: str) -> None:
    words = [f"experiment={name}", *SHORT, "data.synthetic.train=2050", "train.eval_every=2", "compare.teacher=['train.steps=3']", "output=cmp"]
    first = needle("compare", *words, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "cmp" / "report.json").read_text())
    assert sorted((arm["name"], arm["data_size"], len(arm["seeds"])) for arm in report["arms"]) == [
        ("distill", 500, 3),
        ("distill", 2000, 3),
        ("finetune", 500, 3),
        ("finetune", 2000, 3),
    ]
    assert len(report["paired"]) == 2
    assert report["test_records"] == 16
    again = needle("compare", *words, folder=tmp_path)
    assert again.stderr.count("was finished already") == 13
    judged = needle("evaluate", "checkpoint=cmp/best", "max_tokens=12", *[w for w in SHORT if w.startswith("data.")], folder=tmp_path)
    assert judged.returncode == 0, judged.stderr


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "demo"])
def test_every_real_experiment_trains_a_few_steps(tmp_path: Path, real_data: Path, name: str) -> None:
    os.environ["NEEDLE_DATA"] = str(real_data)
    result = needle("train", f"experiment={name}", "data.size=100", *(w for w in SHORT if not w.startswith("data.")), "train.eval_records=10", "output=run", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "train.json").read_text())["steps"] == 2
