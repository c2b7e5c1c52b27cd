"""Where a run's numbers go: always `metrics.jsonl`, and W&B when asked. Nothing leaves the machine unless the user says so."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODES = ("auto", "offline", "online")


@dataclass
class TrackerConfig:
    """`kind` none or wandb. `mode` auto is online when the user is logged in to W&B, else offline."""

    kind: str = "none"
    project: str = "needle"
    mode: str = "auto"
    group: str | None = None
    tags: list[str] = field(default_factory=list)


class Tracker:
    """Appends rows to `metrics.jsonl` and mirrors them to W&B."""

    def __init__(self, config: TrackerConfig, folder: Path, run: Mapping[str, Any], after_step: int = 0) -> None:
        """`after_step` is the step that a resumed run goes on from: later rows of the file are dropped, they will come again."""
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= after_step] if after_step else []
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open for the run's whole life
        self._wandb = _wandb_run(config, folder, run) if config.kind == "wandb" else None
        if config.kind not in ("none", "wandb"):
            raise ValueError(f"tracker.kind is '{config.kind}'; expected none or wandb")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.summary.update(dict(summary))
            self._wandb.finish()


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

    if config.mode not in MODES:
        raise ValueError(f"tracker.mode is '{config.mode}'; expected one of {', '.join(MODES)}")
    mode = config.mode
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE")
        mode = asked if asked in ("offline", "disabled", "online") else "online" if _logged_in() else "offline"
    return wandb.init(
        project=config.project,
        group=config.group,
        tags=config.tags,
        dir=str(folder),
        config=dict(run),
        mode=mode,  # type: ignore[arg-type]
        settings=wandb.Settings(silent=True, console="off"),
    )


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.exists() and "api.wandb.ai" in netrc.read_text(errors="ignore")
