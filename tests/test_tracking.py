"""What W&B gets, read back from the file that an offline run leaves; the dashboard and the sweep file that go with
it."""

from __future__ import annotations

import itertools
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from needle.cli.app import compose
from needle.config import settings
from needle.judging.dashboard import SECTIONS, build_workspace
from needle.losses.loss import LossConfig
from needle.teachers.local import LocalTeacher, TokenSignals
from needle.teachers.signals import SignalCache
from needle.text.prompt import Example
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer
from needle.training.loop import TrainConfig, train
from needle.training.tracking import TrackerConfig, read_metrics
from tests.test_train import job, trained

ROOT = Path(__file__).parents[1]


def stored(folder: Path) -> list[Any]:
    """The records of an offline run: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 30
    while True:  # W&B's own process writes the file, and may be behind
        rows = [WandbRecord.FromString(row) for row in _rows(path.read_bytes())]
        if any(row.WhichOneof("record_type") == "exit" for row in rows):
            return rows
        assert time.monotonic() < deadline, [row.WhichOneof("record_type") for row in rows]
        time.sleep(0.1)


def _rows(data: bytes) -> Iterator[bytes]:
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def test_an_offline_run_holds_curves_samples_entropy_throughput_and_its_checkpoints_lineage(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    teacher = LocalTeacher([trained(tmp_path / "t", tokenizer, examples, records)])
    cache = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", 8, 2.0))
    cache.build(records[:16], examples[:16], torch.device("cpu"))
    tracker = TrackerConfig(kind="wandb", mode="offline", group="my-sweep", arm="distill", tags=["t"])
    steps = TrainConfig(steps=6, batch_size=8, micro_batch=8, eval_every=3, log_every=1)
    folder = tmp_path / "run"
    train(
        job(
            folder,
            tokenizer,
            examples[:16],
            records[:16],
            loss=LossConfig(2.0, 0.7, 0.3),
            signals=cache,
            train=steps,
            validation=records[:5],
            tracker=tracker,
        )
    )
    rows = stored(folder)
    run = next(row.run for row in rows if row.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type, list(run.tags), run.display_name) == ("my-sweep", "distill", ["t"], "run")
    history: dict[str, list[Any]] = {}
    for row in rows:
        if row.WhichOneof("record_type") == "history":
            for item in row.history.item:
                history.setdefault("/".join(item.nested_key) or item.key, []).append(json.loads(item.value_json))
    local = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    assert history["train/loss"] == pytest.approx([row["loss"] for row in local])
    assert history["train/teacher_entropy"] == pytest.approx([row["teacher_entropy"] for row in local])
    assert min(history["train/teacher_entropy"]) > 0
    assert len(history["train/records_per_second"]) == 6
    assert len(history["validation/exact_call"]) == 2
    tables = [value for key, values in history.items() if key.startswith("validation/samples") for value in values]
    assert tables
    table = json.loads(
        next(path for path in (folder / "wandb").rglob("*.table.json") if "media" in path.parts).read_text()
    )
    assert table["columns"] == ["step", "request", "gold", "answer", "exact", "confidence"]
    assert [line[1] for line in table["data"]] == [record.query for record in records[:5]]
    artifacts = [
        row.artifact if row.WhichOneof("record_type") == "artifact" else row.request.log_artifact.artifact
        for row in rows
        if "artifact" in str(row)[:400]
    ]
    model = next(artifact for artifact in artifacts if artifact.type == "model")
    assert {entry.path for entry in model.manifest.contents} == {"config.json", "model.safetensors", "tokenizer.json"}
    origins = json.loads(model.metadata)["origins"]
    assert origins["teacher"]["fingerprint"] == teacher.fingerprint
    assert origins["dataset"]["fingerprint"]
    metrics = {row.metric.name for row in rows if row.WhichOneof("record_type") == "metric"}
    assert "validation/exact_call" in metrics
    # Every chart of the dashboard draws something that is logged.
    for charts in SECTIONS.values():
        for names in charts.values():
            assert set(names) <= set(history), names


def test_the_dashboard_is_a_workspace_with_every_chart_grouped_by_sweep_and_arm() -> None:
    workspace = build_workspace("needle", "me")
    view = json.loads(workspace._to_model().model_dump_json())
    panels = [
        panel["config"].get("chart_title")
        for section in view["spec"]["section"]["panel_bank_config"]["sections"]
        for panel in section["panels"]
    ]
    assert {title for charts in SECTIONS.values() for title in charts} <= set(panels)
    assert "group" in json.dumps(view["spec"]["section"]["run_sets"]).lower()


def test_every_cell_of_the_wandb_sweep_file_composes() -> None:
    sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())
    words = [word for word in sweep["command"][2:] if not word.startswith("${")]
    cells = list(
        itertools.product(
            *([f"{key}={value}" for value in axis["values"]] for key, axis in sweep["parameters"].items())
        )
    )
    assert len(cells) == 12
    for cell in cells:
        typed = settings(compose([*words, *cell]))
        assert typed.tracker.kind == "wandb"
        assert (typed.loss.alpha > 0) == ("loss=distill" in cell)
