"""What a change must leave as it is: the released student's answers, trained weights, collected files. Takes about a
quarter of an hour.

    python -m tests.parity record before.json              # in a checkout of the old code
    python -m tests.parity record after.json               # in one of the new code, on the same machine
    python -m tests.parity compare before.json after.json  # a table; exit code 1 if anything differs

Everything goes through the commands, so that any two versions can be compared; NEEDLE_DATA names the folder of the real
sets. `--only answers`, `served`, `weights` or `collected` records a part.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTS = ("answers", "served", "weights", "collected")
SETS = ("snips", "hwu64", "sgd")
SYNTHETIC = ["data.synthetic.train=2000", "data.synthetic.validation=100", "data.synthetic.test=0"]
SHORT = [
    *("train.steps=30", "train.batch_size=16", "train.micro_batch=8", "train.eval_every=30", "train.eval_records=50"),
    *("hardware.threads=1", "tokenizer.size=2048", "train.save_every=100"),
]
CHANGED = [
    *("data.augment.copies=2", "data.augment.rename=0.5", "data.augment.join=0.3", "data.augment.strangers=0.5"),
    *("data.augment.shuffle=0.5", "train.rename=0.5", "data.invented=1500", "train.group=source"),
]
FAMILIES = {
    **{
        family: [f"student={family}", *SYNTHETIC]
        for family in ("seed_tiny", "llama_tiny", "san_tiny", "san_mlp_tiny", "pointer_tiny")
    },
    "pointer_tiny, lexical, of JSON": ["student=pointer_tiny", "student.lexical=true", "codec=json", *SYNTHETIC],
    "pointer_pretrained_26m": ["student=pointer_pretrained_26m", "hardware=cpu_bf16", *SYNTHETIC],
    "pointer_tiny on SNIPS, changed and made up": ["student=pointer_tiny", "data=snips", *CHANGED],
    "pointer_tiny on SGD, changed and made up": ["student=pointer_tiny", "data=sgd", "data.size=3000", *CHANGED],
}
GATEWAY = ("collect.records=300", "collect.budget_usd=5", "collect.yes=true", "collect.concurrency=4")
WHO = {  # of `needle collect`: the words of today, and of versions before services had a group of their own
    "conf/service": ("service=gemini", "service.base_url"),
    "conf/teacher/gemini.yaml": ("teacher=gemini", "teacher.base_url"),
}


def needle(*words: str) -> None:
    """Runs a command of the checkout that this is run in."""
    subprocess.run(
        [sys.executable, "-m", "needle.cli", *words], check=True, env=_environment(), stdout=subprocess.DEVNULL
    )


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.getcwd(),
        "OMP_NUM_THREADS": "1",
        "GEMINI_API_KEY": "none",
        "WANDB_MODE": "offline",
    }


def digest(*parts: bytes | str) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:16]


def answers(data: Path, folder: Path) -> dict[str, str]:
    """The released student's answers, confidences and finishes, asked in batches."""
    out = {}
    for name in SETS:
        path = folder / f"{name}.jsonl"
        file = data / name / "validation.jsonl.gz"
        needle("evaluate", "data=jsonl", f"data.path={file}", f"predictions={path}", "precision=bfloat16")
        out[f"answers: {name}, {len(path.read_text().splitlines())} records"] = digest(path.read_bytes())
    return out


def served(data: Path, folder: Path) -> dict[str, str]:
    """The same, asked one by one over HTTP."""
    out = {}
    with _listening("serve", "serve.port={port}", "precision=mixed") as url:
        for name in SETS:
            lines = []
            with gzip.open(data / name / "validation.jsonl.gz", "rt") as rows:
                for row in map(json.loads, rows):
                    body = json.dumps({"prompt": row["query"], "available_functions": row["tools"]}).encode()
                    asked = urllib.request.Request(f"{url}/tool-call", body, {"Content-Type": "application/json"})
                    with urllib.request.urlopen(asked) as answer:
                        said = json.loads(answer.read())
                    known = ("function_name", "parameters", "confidence", "finish")
                    calls = [{"name": call["name"], "arguments": call["arguments"]} for call in said["calls"]]
                    lines.append(json.dumps([{key: said[key] for key in known}, calls]))
            out[f"served: {name}, {len(lines)} records"] = digest("\n".join(lines))
    return out


def weights(data: Path, folder: Path) -> dict[str, str]:
    """Thirty steps of each family, and of a student that learns from another's distributions."""
    out = {}
    teacher = folder / "pointer_tiny"
    distilled = [
        *("student=pointer_tiny", *SYNTHETIC, "loss=distill", "teacher=local"),
        *(f"teacher.checkpoint={teacher}", f"tokenizer.path={teacher}"),
    ]
    for family, words in {**FAMILIES, "pointer_tiny, distilled": distilled}.items():
        run = folder / family.replace(",", "").replace(" ", "_")
        needle("train", *words, *SHORT, f"output={run}", f"cache={folder / 'cache'}")
        out[f"weights: {family}"] = digest((run / "model.safetensors").read_bytes())
    return out


def collected(data: Path, folder: Path) -> dict[str, str]:
    """A collection from the loopback server: what was kept and dropped, and what the manifest says of it."""
    group, address = next(words for place, words in WHO.items() if Path(place).exists())
    with subprocess.Popen(
        [sys.executable, "-m", "tests.gemini_server"], stdout=subprocess.PIPE, text=True, env=_environment()
    ) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        needle("collect", group, f"{address}={url}", *GATEWAY, f"output={folder / 'collected'}")
        server.kill()
    out = {}
    for path in sorted((folder / "collected").glob("*.jsonl.gz")):
        text = gzip.decompress(path.read_bytes())
        out[f"collected: {path.name}, {len(text.splitlines())} lines"] = digest(text)
    manifest = json.loads((folder / "collected" / "manifest.json").read_text())
    said = ("records", "splits", "funnel", "diversity", "dollars", "dollars_by_purpose", "requests")
    out["collected: manifest"] = digest(json.dumps({name: manifest[name] for name in said}, sort_keys=True))
    return out


@contextmanager
def _listening(*words: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "needle.cli", *(word.format(port=port) for word in words)]
    with subprocess.Popen(command, env=_environment()) as process:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Prints the table; 1 if anything differs."""
    bad = 0
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, "–"), after.get(name, "–")
        bad += old != new
        print(f"{'equal    ' if old == new else 'DIFFERENT'}  {old:16}  {new:16}  {name}")
    return int(bad > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    given = parser.parse_args()
    if given.what == "compare":
        sys.exit(compare(*(json.loads(file.read_text()) for file in given.files)))
    (file,) = given.files
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    record = {"answers": answers, "served": served, "weights": weights, "collected": collected}
    for part in given.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            known |= record[part](given.data.resolve(), Path(folder))
        file.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
