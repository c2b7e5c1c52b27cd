"""Where a run's numbers go: always `metrics.jsonl`, and W&B when asked. Nothing leaves the machine unless the user says
so."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from needle.engine.decode import Answer
from needle.judging.metrics import Score
from needle.text.files import replacing
from needle.text.records import Record

MODES = ("auto", "offline", "online")
SAMPLES = 20
CHECKPOINT_FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass
class TrackerConfig:
    """`kind` none or wandb. `mode` auto is online when the user is logged in to W&B, else offline.

    Runs are grouped by `group`, in a sweep the experiment or sweep by itself, and within it by `arm`, the loss by
    itself. `artifacts` records each run's checkpoint with what it was made from: the data and the teacher.
    """

    kind: str = "none"
    project: str = "needle"
    entity: str | None = None
    mode: str = "auto"
    group: str | None = None
    arm: str | None = None
    tags: list[str] = field(default_factory=list)
    artifacts: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("none", "wandb"):
            raise ValueError(f"tracker.kind is '{self.kind}'; expected none or wandb")
        if self.mode not in MODES:
            raise ValueError(f"tracker.mode is '{self.mode}'; expected one of {', '.join(MODES)}")


class Tracker:
    """Appends rows to `metrics.jsonl` and mirrors them to W&B."""

    def __init__(self, config: TrackerConfig, folder: Path, run: Mapping[str, Any], after_step: int = 0) -> None:
        """`after_step` is the step that a resumed run goes on from: later rows of the file are dropped, they will come
        again."""
        self.config, self.folder = config, folder
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= after_step] if after_step else []
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the run's whole life
        self._wandb: Any = _wandb_run(config, folder, run) if config.kind == "wandb" else None

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(
                {
                    name if "/" in name else f"train/{name}": value
                    for name, value in values.items()
                    if value is not None
                },
                step=step,
            )

    def samples(self, step: int, records: Sequence[Record], answers: Sequence[Answer], scores: Sequence[Score]) -> None:
        """A W&B table of the first answers on validation."""
        if self._wandb is None:
            return
        import wandb

        table = wandb.Table(columns=["step", "request", "gold", "answer", "exact", "confidence"])
        for record, answer, score in list(zip(records, answers, scores, strict=True))[:SAMPLES]:
            calls = (
                answer.finish
                if answer.calls is None
                else json.dumps([call.to_json() for call in answer.calls], ensure_ascii=False)
            )
            gold = json.dumps([call.to_json() for call in record.answers], ensure_ascii=False)
            table.add_data(step, record.query, gold, calls, score.exact, round(answer.confidence, 4))
        self._wandb.log({"validation/samples": table}, step=step)

    def finish(self, summary: Mapping[str, Any], origins: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Closes the file. `origins` are what the checkpoint was made from, by kind (dataset, teacher): the artifact's
        lineage."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary))
            if self.config.artifacts:
                self._log_artifacts(summary, origins or {})
            self._wandb.finish()

    def _log_artifacts(self, summary: Mapping[str, Any], origins: Mapping[str, Mapping[str, Any]]) -> None:
        import wandb

        for kind, facts in origins.items():
            source = wandb.Artifact(f"{kind}-{facts['fingerprint']}"[:120], type=kind, metadata=dict(facts))
            with source.new_file("facts.json") as file:  # what identifies it; the data itself stays where it is
                json.dump(facts, file, indent=1)
            if not self._wandb.offline:  # offline, the model's metadata alone say where it comes from
                self._wandb.use_artifact(source)
        model = wandb.Artifact(
            f"student-{self.folder.name}"[:120],
            type="model",
            metadata={**summary, "origins": {kind: dict(facts) for kind, facts in origins.items()}},
        )
        for name in CHECKPOINT_FILES:
            model.add_file(str(self.folder / name))
        self._wandb.log_artifact(model)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a torn last line, as a kill leaves it, is left out."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def _wandb_run(config: TrackerConfig, folder: Path, run: Mapping[str, Any]) -> Any:
    import wandb  # slow to import, and only wanted here

    mode = config.mode
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE")
        mode = asked if asked in ("offline", "disabled", "online") else "online" if _logged_in() else "offline"
    started = wandb.init(
        project=config.project,
        entity=config.entity,
        name=folder.name,
        group=config.group,
        job_type=config.arm,
        tags=config.tags,
        dir=str(folder),
        config=dict(run),
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True, console="off"),
    )
    started.define_metric("validation/exact_call", summary="max")
    started.define_metric("train/loss", summary="min")
    return started


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.exists() and "api.wandb.ai" in netrc.read_text(errors="ignore")
