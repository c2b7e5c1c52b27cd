"""The typed tree of settings, and plain functions that build from it what the library needs.

Every component owns its dataclass; this module joins those of training, judging and collecting. Nothing below it sees
Hydra or OmegaConf.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from needle.collect.services.build import ServiceConfig
from needle.collect.settings import CollectConfig
from needle.data.check import problems
from needle.data.encoding import Encoded, TokenizerConfig, data_fingerprint, encode_records, fit_tokenizer
from needle.data.invented.requests import SOURCE as INVENTED
from needle.data.sources import SPLITS, DataConfig, Splits, load_splits, read_files, subset
from needle.data.votes import as_targets
from needle.engine.decode import MAX_TOKENS, Engine
from needle.engine.open import open_engine
from needle.judging.cascade import CascadeConfig
from needle.judging.compare import CompareConfig
from needle.losses.loss import LossConfig
from needle.release.recipe import RecipeConfig
from needle.students.checkpoint import load_checkpoint, student_config
from needle.students.pretrained import fit_config, read_in, words
from needle.students.span.reader import SpanConfig
from needle.teachers.build import TeacherConfig, build_signals
from needle.teachers.signals import SignalCache
from needle.text.codecs import build_codec, current_codec
from needle.text.formats import Skipped
from needle.text.prompt import Renderer
from needle.text.records import DataError, Record
from needle.training.loop import Job, TrainConfig, main_process_first
from needle.training.optim import OptimConfig
from needle.training.runstate import HardwareConfig
from needle.training.tracking import TrackerConfig


@dataclass
class Settings:
    """Everything that a command can be told."""

    data: DataConfig = field(default_factory=DataConfig)
    student: Any = field(default_factory=dict)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    service: ServiceConfig = field(default_factory=ServiceConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    codec: str = "decisions"  # or json; decisions-1 as students before 0.2 have it
    output: str | None = None  # the folder of a run, a report or a collection; evaluate, label: a file
    cache: str = "outputs/cache"
    checkpoint: str | None = None  # evaluate, label: a folder; the released student when there is none
    decoding: str = "constrained"
    backend: str = "auto"  # evaluate, label: onnx (the export beside the weights), torch, or onnx if there is an export
    precision: str = "auto"  # evaluate, label: float32, bfloat16, mixed, int8, or what is fastest on this processor
    max_tools: int = 0  # evaluate, label: of more tools than these, the student is shown those that fit best; 0 is all
    predictions: str | None = None  # evaluate: a file for every answer beside its gold
    category: str = "all"  # evaluate data=bfcl: all, live, non_live, or one category
    split: str = "test"  # evaluate, label: which split of a named data set
    max_tokens: int = MAX_TOKENS


def settings(config: DictConfig) -> Settings:
    """The dataclasses of a composed config; raises ValueError for values that no component accepts."""
    merged = OmegaConf.merge(OmegaConf.structured(Settings), config)
    result = OmegaConf.to_object(merged)
    assert isinstance(result, Settings)
    return result


def build_splits(config: Settings) -> Splits:
    return load_splits(config.data)


def build_targets(config: Settings, records: list[Record]) -> tuple[list[Record], list[float] | None]:
    """The records to train on and their weights: the given ones, or a replayed teacher's answers in place of the gold
    ones."""
    if config.teacher.kind == "replay" and config.data.augment.copies:
        raise ValueError(
            f"data.augment.copies={config.data.augment.copies} can't be combined with teacher=replay: nobody recorded"
            " what the teacher says to the changed copies"
        )
    if config.teacher.kind != "replay" or config.teacher.rung not in ("sequence", "argmax"):
        return records, None
    replayed, weights = as_targets(records, config.teacher.rung)
    if not replayed:
        raise DataError(
            'teacher=replay, but no training record has recorded answers: "teacher": {"answers": [{"calls": [...],'
            ' "count": 1}]} (see docs/data.md)'
        )
    return replayed, weights


def fill_cache(config: Settings, cache: SignalCache, data: Encoded, progress: Callable[[str], None]) -> None:
    """Checks what is stored, says how much is to come, and makes it."""
    for message in cache.verify():
        progress(f"teacher: {message}")
    missing = cache.missing(data.examples)
    if not missing:
        return
    size = sum(len(data.examples[index].target) for index in missing) * cache.bytes_per_token
    progress(f"teacher: signals of {len(missing):,} records to make, {size / 1e6:.1f} MB in {cache.folder}")
    device = torch.device("cuda" if config.hardware.device == "auto" and torch.cuda.is_available() else "cpu")
    started, said = time.perf_counter(), 0.0

    def tell(done: int, every: int) -> None:
        nonlocal said
        now = time.perf_counter() - started
        if now - said > 5 or done == every:
            said = now
            progress(
                f"teacher: {done:,} of {every:,} records, {done / max(now, 1e-9):.0f} records/s,"
                f" {now / done * (every - done):.0f} s left"
            )

    cache.build(data.records, data.examples, device, tell)


def build_job(config: Settings, progress: Callable[[str], None] = lambda text: None) -> Job:
    """Reads data, fits the tokenizer, encodes, builds the teacher's signals: everything before the first step.

    `progress` hears one line for each stage.
    """
    if config.train.batch_distractors and (
        config.train.rename or (config.data.augment.copies and config.data.augment.rename)
    ):
        raise ValueError(
            "train.batch_distractors offers the tools of a batch as wrong ones; with data.augment.rename or"
            " train.rename the right one may be among them by another name; leave one of the two out"
        )
    splits = build_splits(config)
    progress(
        f"data: {len(splits.train):,} training, {len(splits.validation):,} validation records"
        + (f", {len(splits.skipped)} lines skipped" if splits.skipped else "")
    )
    for message in splits.skipped[:10]:
        progress(f"skipped: {message}")
    for reason, count in splits.reasons.most_common():
        progress(f"left out {count:,} times: {reason}")
    files = {split: config.data.files(split) for split in SPLITS}
    for problem in problems({split: getattr(splits, split) for split in SPLITS}, files):
        progress(f"look: {problem}")
    train, weights = build_targets(config, splits.train)
    student = fit_config(student_config(config.student))
    with main_process_first(config.hardware):
        pieces = partial(read_in, student) if isinstance(student, SpanConfig) else None
        tokenizer = fit_tokenizer(splits.train, config.tokenizer, Path(config.cache), words(student), pieces)
    codec_name = current_codec(config.codec, tokenizer)
    renderer, codec = Renderer(tokenizer), build_codec(codec_name, tokenizer)
    max_length = min(config.data.max_length, getattr(student, "max_length", config.data.max_length))
    data = encode_records(train, renderer, codec, max_length, config.data.on_long, weights, config.data.longest_text)
    for message in data.dropped[:5]:
        progress(f"dropped: {message}")
    if data.dropped:
        progress(f"dropped {len(data.dropped)} training records in all (data.on_long=error stops instead)")
    if not data.examples:
        raise DataError("no training records are left; check data.train, data.size and data.max_length")
    signals = build_signals(config.teacher, config.loss, tokenizer, codec_name, Path(config.cache))
    if isinstance(signals, SignalCache):
        with main_process_first(config.hardware):
            fill_cache(config, signals, data, progress)
    known = set(load_checkpoint(Path(config.train.start)).data.get("tools", [])) if config.train.start else set()
    tools = sorted(known | {tool.name for record in data.records if record.source != INVENTED for tool in record.tools})
    info = {
        "fingerprint": data_fingerprint(data.records),
        "records": len(data.records),
        "sources": sorted({r.source for r in data.records}),
        "tools": tools,
    }
    whole = asdict(config)
    return Job(
        student=student,
        tokenizer=tokenizer,
        codec=codec_name,
        loss=config.loss,
        optim=config.optim,
        train=config.train,
        hardware=config.hardware,
        tracker=config.tracker,
        data=data,
        validation=subset(splits.validation, config.train.eval_records, 0),
        max_length=max_length,
        output=run_folder(config),
        signals=signals,
        placebo=config.teacher.placebo,
        config={
            key: whole[key]
            for key in (
                "data",
                "student",
                "teacher",
                "loss",
                "optim",
                "hardware",
                "train",
                "tokenizer",
                "codec",
                "output",
                "tracker",
            )
        },
        data_info=info,
    )


def run_folder(config: Settings) -> Path:
    """`output`, or a name made of the choices and a hash of all settings, so that the same command finds its run
    again."""
    if config.output:
        return Path(config.output)
    rows = {
        key: value
        for key, value in asdict(config).items()
        if key in ("data", "student", "teacher", "loss", "optim", "hardware", "train", "tokenizer", "codec")
    }
    rows["train"] = {
        key: value for key, value in rows["train"].items() if key not in ("resume", "log_every", "save_every")
    }
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:8]
    kind = "finetune" if config.loss.alpha == 0 else "distill"
    size = f"-n{config.data.size}" if config.data.size else ""
    return (
        Path("outputs")
        / f"{config.data.kind}-{student_config(config.student).family}-{kind}{size}-seed{config.train.seed}-{digest}"
    )


def build_engine(config: Settings) -> Engine:
    """The engine that the settings describe, for requests that come in batches."""
    return open_engine(
        config.checkpoint or None, config.decoding, config.precision, config.max_tools, backend=config.backend
    )


def records_to_evaluate(config: Settings) -> tuple[list[Record], list[str]]:
    """The file data.path, or a split of the named data; and the lines skipped."""
    if config.data.path:
        note = Skipped()
        records = subset(read_files([config.data.path], config.data, note), config.data.test_size, 0)
        return records, note.messages
    if config.split not in SPLITS:
        raise ValueError(f"split is '{config.split}'; expected one of {', '.join(SPLITS)}")
    if config.data.kind != "synthetic":
        note = Skipped()
        paths = config.data.files(config.split)
        if not paths:
            raise DataError(f"data has no {config.split} files; give data.path=FILE")
        records = read_files(paths, config.data, note)
        size = config.data.validation_size if config.split == "validation" else None
        return subset(subset(records, size, 0), config.data.test_size, 0), note.messages
    return subset(getattr(build_splits(config), config.split), config.data.test_size, 0), []
