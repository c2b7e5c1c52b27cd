"""Who teaches, and where its signals come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from needle.losses.loss import LossConfig
from needle.teachers.local import ByteSpans, LocalTeacher, SampledAnswers, TokenSignals
from needle.teachers.replay import ValueSignals
from needle.teachers.signals import OnlineSignals, SignalCache, Signals
from needle.text.tokenizer import TextTokenizer

KINDS = ("none", "local", "replay", "stored")
RUNGS = {"local": ("top_k", "sampled", "value", "span"), "replay": ("value", "sequence", "argmax")}


@dataclass
class TeacherConfig:
    """Who teaches, and how what it says reaches the student.

    kind local: `checkpoint`, a folder or a list of them (an ensemble), asked once and cached, or `online` for every
    batch. kind replay: what the records' `teacher` fields hold. kind stored: the folder `signals` of a cache, without
    its teacher.
    `rung` top_k (the `k` likeliest tokens and an exact tail) or sampled (`k` drawn tokens) for a teacher that shares
    the tokenizer; span (pieces of text) or value (shares of `samples` answers) for any; value, sequence or argmax of a
    replay. `placebo` gives every position the signal of another one: a control that must not help.
    """

    kind: str = "none"
    checkpoint: Any = None
    k: int = 64
    rung: str | None = None
    online: bool = False
    samples: int = 8
    seed: int = 0
    signals: str | None = None
    placebo: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"teacher.kind is '{self.kind}'; expected one of {', '.join(KINDS)}")
        rungs = RUNGS.get(self.kind, ())
        if self.rung is not None and rungs and self.rung not in rungs:
            raise ValueError(
                f"teacher.rung is '{self.rung}'; with teacher={self.kind} expected one of {', '.join(rungs)}"
            )
        for name in ("k", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"teacher.{name} is {getattr(self, name)}; it must be at least 1")


def build_signals(
    teacher: TeacherConfig, loss: LossConfig, tokenizer: TextTokenizer, codec: str, root: Path
) -> Signals | None:
    """Where the signals of the teacher come from, caches below `root`; None for fine-tuning, whoever the teacher is."""
    if not loss.wants_teacher:
        return None
    T = loss.temperature
    if teacher.kind == "none":
        raise ValueError(
            f"loss.alpha={loss.alpha} needs a teacher: set teacher=local teacher.checkpoint=DIR, or loss=finetune"
        )
    if teacher.kind == "stored":
        if not teacher.signals:
            raise ValueError("teacher=stored needs teacher.signals, a folder of stored signals")
        return SignalCache.open(Path(teacher.signals), tokenizer.fingerprint, codec, T)
    if teacher.kind == "replay":
        if teacher.rung in ("sequence", "argmax"):
            raise ValueError(
                f"teacher.rung={teacher.rung} makes targets of the teacher's answers, which fine-tuning learns: set"
                " loss=finetune, or teacher.rung=value"
            )
        return SignalCache.beside(root, ValueSignals(tokenizer, codec, teacher.k))
    paths = teacher.checkpoint if isinstance(teacher.checkpoint, list) else [teacher.checkpoint]
    local = LocalTeacher([Path(path) for path in paths if path])
    rung = teacher.rung or "top_k"
    if rung == "value":
        return SignalCache.beside(
            root, SampledAnswers(local, tokenizer, codec, teacher.k, teacher.samples, teacher.seed)
        )
    if rung == "span":
        return SignalCache.beside(root, ByteSpans(local, tokenizer, codec))
    local.check(tokenizer.fingerprint, codec, "the student")
    if teacher.online:
        return OnlineSignals(local)
    return SignalCache.beside(root, TokenSignals(local, rung, teacher.k, T, teacher.seed))
