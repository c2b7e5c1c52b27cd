"""What makes a run this run, and whether a folder or another process holds the same one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SUMMARY = "train.json"
RUN = "run.json"


class RunError(ValueError):
    """A run that can't start or go on in its output folder; the message says what to change."""


def identity_of(config: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings and what the files and the teacher that they name held, without what may change between a run
    and its resumption."""
    kept = {key: value for key, value in config.items() if key not in ("output", "tracker", "cache")}
    kept["train"] = {
        key: value for key, value in config.get("train", {}).items() if key not in ("resume", "log_every", "save_every")
    }
    identity: dict[str, Any] = json.loads(json.dumps({**kept, "content": content}))
    return identity


def finished_run(output: Path, identity: Mapping[str, Any], resume: str) -> dict[str, Any] | None:
    """The summary of this very run if `output` holds it and it is done.

    Raises:
        RunError: the folder holds another run, or one at all under `resume="never"`.
    """
    path = output / RUN
    if not path.exists():
        return None
    if resume == "never":
        raise RunError(f"{output} holds a run already; choose another output=, or go on with it by train.resume=auto")
    different = _differences(
        _read(path, "delete it if the folder holds this very run, whose state is kept and gone on from"), identity
    )
    if different:
        raise RunError(
            f"{output} holds another run ({'; '.join(different[:4])}); choose another output=, or give the same"
            " settings and data to resume it"
        )
    summary = output / SUMMARY
    if not summary.exists():
        return None
    return {**_read(summary, "delete it, and the same command makes the last steps again"), "resumed": "finished"}


def _read(path: Path, advice: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, got {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read ({error}): {advice}; or choose another output=") from error
    return found


def check_processes(identities: Sequence[Mapping[str, Any]]) -> None:
    """Raises `RunError` unless all processes train the same: gradients for different data or tokenizers can't be
    averaged."""
    for rank, identity in enumerate(identities):
        different = _differences(identities[0], identity)
        if different:
            raise RunError(
                f"process {rank} of {len(identities)} has another run than process 0 ({'; '.join(different[:4])}); do"
                " the files change while they are read?"
            )


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if old == new else [f"{where} was {old!r}, now {new!r}"]
