"""The typed tree of settings, and plain functions that build from it what the library needs.

Every component owns its dataclass; this module alone joins them. Nothing below it sees Hydra or OmegaConf.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from needle.checkpoint import Checkpoint, CheckpointError, load_checkpoint, student_config
from needle.codecs import build_codec
from needle.compare import CompareConfig
from needle.data.encoding import TokenizerConfig, data_fingerprint, encode_records, fit_tokenizer
from needle.data.sources import DataConfig, Splits, load_splits, read_files, subset
from needle.engine.decode import MAX_TOKENS, Engine
from needle.formats import Skipped
from needle.losses import LossConfig
from needle.optim import OptimConfig
from needle.prompt import Renderer
from needle.records import DataError, Record
from needle.serve.app import ServeConfig
from needle.signals import SignalCache
from needle.teachers.local import LocalTeacher
from needle.tracking import TrackerConfig
from needle.train import HardwareConfig, Job, TrainConfig, main_process_first


@dataclass
class TeacherConfig:
    """`kind` none or local; `checkpoint` a folder or a list of folders; `k` outcomes stored for each target position."""

    kind: str = "none"
    checkpoint: Any = None
    k: int = 64


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
    train: TrainConfig = field(default_factory=TrainConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    codec: str = "decisions"
    output: str | None = None  # train: the run's folder; compare: the report's folder; evaluate: a JSON file
    cache: str = "outputs/cache"
    checkpoint: str | None = None  # evaluate, serve
    decoding: str = "constrained"
    predictions: str | None = None  # evaluate: a file for every answer beside its gold
    split: str = "test"  # evaluate: which split of a named data set
    max_tokens: int = MAX_TOKENS


def settings(config: DictConfig) -> Settings:
    """The dataclasses of a composed config; raises ValueError for values that no component accepts."""
    merged = OmegaConf.merge(OmegaConf.structured(Settings), config)
    result = OmegaConf.to_object(merged)
    assert isinstance(result, Settings)
    return result


def build_splits(config: Settings) -> Splits:
    return load_splits(config.data)


def build_signals(config: Settings) -> SignalCache | None:
    """The cache of the configured teacher's signals; None for fine-tuning, whatever teacher is configured."""
    if config.loss.alpha == 0:
        return None
    if config.teacher.kind not in ("none", "local"):
        raise ValueError(f"teacher.kind is '{config.teacher.kind}'; expected none or local")
    if config.teacher.kind == "none":
        raise ValueError(f"loss.alpha={config.loss.alpha} needs a teacher: set teacher=local teacher.checkpoint=DIR, or loss=finetune")
    paths = config.teacher.checkpoint if isinstance(config.teacher.checkpoint, list) else [config.teacher.checkpoint]
    teacher = LocalTeacher([Path(path) for path in paths if path])
    return SignalCache(Path(config.cache), teacher, config.teacher.k, config.loss.temperature)


def build_job(config: Settings, progress: Callable[[str], None] = lambda text: None) -> Job:
    """Reads data, fits the tokenizer, encodes, builds the teacher's signals: everything before the first step.

    `progress` hears one line for each stage.
    """
    splits = build_splits(config)
    progress(f"data: {len(splits.train):,} training, {len(splits.validation):,} validation records" + (f", {len(splits.skipped)} lines skipped" if splits.skipped else ""))
    for message in splits.skipped[:10]:
        progress(f"skipped: {message}")
    with main_process_first(config.hardware):
        tokenizer = fit_tokenizer(splits.train, config.tokenizer, Path(config.cache))
    renderer, codec = Renderer(tokenizer), build_codec(config.codec, tokenizer)
    student = student_config(config.student)
    max_length = min(config.data.max_length, getattr(student, "max_length", config.data.max_length))
    data = encode_records(splits.train, renderer, codec, max_length, config.data.on_long)
    for message in data.dropped[:5]:
        progress(f"dropped: {message}")
    if data.dropped:
        progress(f"dropped {len(data.dropped)} training records in all (data.on_long=error stops instead)")
    if not data.examples:
        raise DataError("no training records are left; check data.train, data.size and data.max_length")
    signals = build_signals(config)
    if signals is not None:
        signals.teacher.check(tokenizer.fingerprint, config.codec, "the student")
        with main_process_first(config.hardware):
            missing = signals.missing(data.examples)
            if missing:
                size = sum(len(example.target) for example in missing) * signals.bytes_per_token
                progress(f"teacher: signals of {len(missing):,} records to compute, {size / 1e6:.1f} MB in {signals.folder}")
                device = torch.device("cuda" if config.hardware.device == "auto" and torch.cuda.is_available() else "cpu")
                signals.build(data.examples, device, lambda done, all: progress(f"teacher: {done:,} of {all:,} records") if done == all or done % 1024 == 0 else None)
    tools = sorted({tool.name for record in data.records for tool in record.tools})
    info = {"fingerprint": data_fingerprint(data.records), "records": len(data.records), "sources": sorted({r.source for r in data.records}), "tools": tools}
    whole = asdict(config)
    return Job(
        student=student,
        tokenizer=tokenizer,
        codec=config.codec,
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
        config={key: whole[key] for key in ("data", "student", "teacher", "loss", "optim", "hardware", "train", "tokenizer", "codec", "output", "tracker")},
        data_info=info,
    )


def run_folder(config: Settings) -> Path:
    """`output`, or a name made of the choices and a hash of all settings, so that the same command finds its run again."""
    if config.output:
        return Path(config.output)
    rows = {key: value for key, value in asdict(config).items() if key in ("data", "student", "teacher", "loss", "optim", "hardware", "train", "tokenizer", "codec")}
    rows["train"] = {key: value for key, value in rows["train"].items() if key not in ("resume", "log_every", "save_every")}
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:8]
    kind = "finetune" if config.loss.alpha == 0 else "distill"
    size = f"-n{config.data.size}" if config.data.size else ""
    return Path("outputs") / f"{config.data.kind}-{config.student.get('family', 'student')}-{kind}{size}-seed{config.train.seed}-{digest}"


def build_checkpoint(config: Settings) -> Checkpoint:
    if not config.checkpoint:
        raise CheckpointError("give checkpoint=DIR, a folder that `needle train` wrote (after `make demo`: checkpoint=outputs/demo/best)")
    return load_checkpoint(Path(config.checkpoint))


def build_engine(config: Settings) -> Engine:
    return Engine(build_checkpoint(config), config.decoding)


def records_to_evaluate(config: Settings) -> tuple[list[Record], list[str]]:
    """The file data.path, or a split of the named data; and the lines skipped."""
    if config.data.path:
        note = Skipped()
        records = subset(read_files([config.data.path], config.data, note), config.data.test_size, 0)
        return records, note.messages
    parts: Mapping[str, str] = {"train": "train", "validation": "validation", "test": "test"}
    if config.split not in parts:
        raise ValueError(f"split is '{config.split}'; expected one of {', '.join(parts)}")
    if config.data.kind == "jsonl":
        note = Skipped()
        paths = getattr(config.data, config.split)
        if not paths:
            raise DataError(f"data has no {config.split} files; give data.path=FILE")
        records = read_files(paths, config.data, note)
        return subset(records, config.data.test_size, 0), note.messages
    return subset(getattr(build_splits(config), config.split), config.data.test_size, 0), []
