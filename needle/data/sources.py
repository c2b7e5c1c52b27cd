"""Where records come from: the synthetic catalogue or the user's files; and the subsets and copies made of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from needle.data.augment import AugmentConfig, expand
from needle.data.check import request_key
from needle.data.declared.requests import declared
from needle.data.encoding import LONG
from needle.data.invented.requests import invented
from needle.data.surface import resurface
from needle.data.synthetic import SyntheticConfig, generate
from needle.data.votes import as_targets, votes
from needle.text.declarations import normalise_tool
from needle.text.formats import FORMATS, Skipped, read_records
from needle.text.records import DataError, Record, Tool, ToolSchemaError, parse_line, read_lines

KINDS = ("synthetic", "jsonl", "set", "mixed", "bfcl")
SETS = (
    *("snips", "hwu64", "mixed_calls", "sgd", "clinc150", "seal_tools", "ha_intents", "ha_gemini", "skills"),
    *("thingpedia", "functions", "star", "coffee", "nlu_small"),
)
SPLITS = ("train", "validation", "test")
ON_ERROR = ("stop", "skip")


@dataclass
class DataConfig:
    """Where records come from; kind mixed trains on files and on synthetic records together.

    `limits` keeps at most so many training records of a source, and `family_limit` of one family of tools; of records
    whose calls have no arguments a share of `bare` is kept. Then `size` takes the first so many of a seeded order of
    all: 500 lie inside 1,000. On top come `invented` records about made-up tools, and `declared` requests for the tools
    of `declarations`, JSON lines with a `family`. A share of `surface` is changed as people type and speakers say it.
    """

    kind: str = "synthetic"
    name: str | None = None  # of a set: a folder in the one that the environment variable NEEDLE_DATA names
    format: str = "auto"
    path: str | None = None  # what `needle evaluate` reads
    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    size: int | None = None
    family_limit: int = 0  # 0 for none
    bare: float = 1.0
    invented: int = 0
    declarations: list[str] = field(default_factory=list)
    declared: int = 0
    surface: float = 0.0
    apart: bool = False  # leave out training records whose request stands in validation or test
    unlabelled: int = (
        0  # so many records beyond `size` give their requests alone; the answers are those of their `teacher` field
    )
    validation_size: int | None = None
    test_size: int | None = None
    seed: int = 0
    on_error: str = "stop"
    max_length: int = 2048
    longest_text: int = 0  # of a request or a tool in training, in tokens; 0 for no limit but max_length
    on_long: str = "drop"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("size", 1),
            ("invented", 0),
            ("declared", 0),
            ("family_limit", 0),
            ("unlabelled", 0),
            ("validation_size", 1),
            ("test_size", 1),
            ("max_length", 1),
            ("longest_text", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.{name} is {value}; it must be at least {least}")
        for name, choices in (("kind", KINDS), ("on_error", ON_ERROR), ("format", FORMATS), ("on_long", LONG)):
            if getattr(self, name) not in choices:
                raise ValueError(f"data.{name} is '{getattr(self, name)}'; expected one of {', '.join(choices)}")

    def files(self, split: str) -> list[str]:
        """The files of a split: those given, else those of the set. Raises `DataError` for a set that isn't there."""
        given: list[str] = getattr(self, split)
        if given or self.kind != "set":
            return given
        if not self.name:
            raise DataError(f"data=set needs data.name, a folder in NEEDLE_DATA, as one of {', '.join(SETS)}")
        folder = Path(os.environ.get("NEEDLE_DATA", "data")).expanduser() / self.name
        if not (folder / "train.jsonl.gz").is_file():
            raise DataError(
                f"there is no set in {folder}: expected train.jsonl.gz there (the environment variable NEEDLE_DATA"
                " names the folder of the sets; see docs/data.md)"
            )
        file = folder / f"{split}.jsonl.gz"
        return [str(file)] if file.is_file() else []


@dataclass
class Splits:
    train: list[Record]
    validation: list[Record]
    test: list[Record]
    skipped: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def load_splits(config: DataConfig) -> Splits:
    """Raises `DataError` for missing or bad files; bad lines are skipped and listed under `on_error=skip`."""
    if config.kind == "bfcl":
        raise DataError(
            "data=bfcl is a leaderboard's evaluation set, never training data: needle evaluate data=bfcl category=all"
        )
    # The records: generated, read from files, or both.
    note = Skipped()
    if config.kind == "synthetic":
        train, validation, test = (list(part) for part in _synthetic(config.synthetic))
        skipped: list[str] = []
    else:
        paths = {split: config.files(split) for split in SPLITS}
        if not paths["train"]:
            raise DataError("data=jsonl needs data.train, a list of files to train on (and data.validation, data.test)")
        train, validation, test = (read_files(paths[split], config, note) for split in SPLITS)
        skipped = note.messages
        if config.kind == "mixed":
            train += _synthetic(config.synthetic)[0]
    # At most so many of a source.
    for name, most in config.limits.items():
        own = [record for record in train if record.source == name]
        if most < 0:
            raise DataError(
                f"data.limits.{name} is {most}; expected how many training records of this source to keep, 0 or more"
            )
        kept = {id(record) for record in subset(own, most, config.seed)}  # names may come twice
        if not own:
            raise DataError(
                f"data.limits.{name}: no training record is of this source; there are"
                f" {', '.join(sorted({record.source for record in train}))}"
            )
        train = [record for record in train if record.source != name or id(record) in kept]
    # At most so many of a family, and fewer without arguments.
    if config.family_limit:
        train = _by_family(train, config.family_limit, config.seed)
    if config.bare < 1:
        train = [record for record in train if not _bare(record) or _chance(record, config.seed) < config.bare]
    # The first so many of a seeded order, and further ones for their requests alone.
    every = subset(train, None if config.size is None else len(train), config.seed)
    train = every[: config.size]
    if config.size and len(train) < config.size:
        raise DataError(f"data.size={config.size}, but only {len(train)} training records exist")
    if config.unlabelled:
        further = _unlabelled(every[len(train) :], config.unlabelled)
        if len(further) < config.unlabelled:
            skipped = [
                *skipped,
                (
                    f"data.unlabelled={config.unlabelled}, but only {len(further)} records beyond data.size hold a"
                    " teacher's answer"
                ),
            ]
        train += further
    # Changed copies, and requests about made-up tools.
    made_up = invented(
        config.invented, config.seed, list({tool.name: tool for record in train for tool in record.tools}.values())
    )
    asked = declared(config.declared, config.seed, read_declarations(config.declarations)) if config.declared else []
    if config.augment.copies:
        train = _expanded(train, config)
    train += made_up + asked
    if config.surface:
        train = [
            resurface(record, random.Random(f"{config.seed}:surface:{record.id}:{record.meta.get('copy', 0)}"))
            if _chance(record, config.seed + 1) < config.surface
            else record
            for record in train
        ]
    if config.apart:
        judged = {request_key(record.query) for record in (*validation, *test)}
        unseen = [record for record in train if request_key(record.query) not in judged]
        note.reasons["the request stands in validation or test (data.apart)"] += len(train) - len(unseen)
        train = unseen
    validation, test = subset(validation, config.validation_size, 0), subset(test, config.test_size, 0)
    return Splits(train, validation, test, skipped, note.reasons)


def _chance(record: Record, seed: int) -> float:
    """0 to 1, a function of the record's id and the seed."""
    text = f"{seed}:{record.id}:{record.meta.get('copy', 0)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _bare(record: Record) -> bool:
    return bool(record.answers) and not any(call.arguments for call in record.answers)


def _by_family(records: list[Record], most: int, seed: int) -> list[Record]:
    """At most so many records of each family of each source, in their own order; a source without families keeps
    all."""
    kept: set[int] = set()
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.source, str(record.meta.get("family", ""))), []).append(record)
    for (_, family), own in groups.items():
        kept |= {id(record) for record in (subset(own, most, seed) if family else own)}
    return [record for record in records if id(record) in kept]


def _expanded(records: list[Record], config: DataConfig) -> list[Record]:
    """With changed copies. A family that a set names shares values and tools within itself alone, as a source does:
    another family may have the same tool by another name."""
    kin = [
        replace(record, source=f"{record.source}/{record.meta['family']}") if record.meta.get("family") else record
        for record in records
    ]
    return [replace(record, source=record.source.split("/")[0]) for record in expand(kin, config.augment, config.seed)]


def read_declarations(paths: Sequence[str]) -> list[tuple[str, Tool]]:
    """Tools with the name of their family; those that can't be read are left out."""
    found = []
    for path in paths:
        for number, line in read_lines(Path(path).expanduser()):
            row = parse_line(line)
            if not isinstance(row, Mapping):
                raise DataError(f"{path}, line {number}: expected a declaration as an object")
            with contextlib.suppress(ToolSchemaError):
                tool = normalise_tool({key: row[key] for key in ("name", "description", "parameters") if key in row})
                found.append((f"{row.get('source', '')}/{row.get('family', '')}", tool))
    return found


def _unlabelled(records: list[Record], wanted: int) -> list[Record]:
    """The first `wanted` requests that the teacher could answer, with its likeliest answers."""
    answered = [record for record in records if votes(record)][:wanted]
    if not answered:
        raise DataError(
            "data.unlabelled needs records beyond data.size whose `teacher` field holds answers: needle label writes"
            " them (see docs/data.md)"
        )
    return as_targets(answered, "argmax")[0]


@lru_cache(maxsize=2)
def _synthetic(config: SyntheticConfig) -> tuple[tuple[Record, ...], tuple[Record, ...], tuple[Record, ...]]:
    """Generated once in a process, however many arms of a sweep ask."""
    return generate(config)


def read_files(paths: Sequence[str], config: DataConfig, skipped: Skipped | None = None) -> list[Record]:
    """All records of the files, in order; several sets may be joined. Bad lines stop the run, or are noted under
    `on_error=skip`; what is left out of good ones is noted either way."""
    note = skipped if config.on_error == "skip" else None
    reasons = skipped.reasons if skipped else None
    return [record for path in paths for record in read_records(Path(path).expanduser(), config.format, note, reasons)]


def subset(records: list[Record], size: int | None, seed: int) -> list[Record]:
    """The first `size` in the order of a seeded hash of their ids; all in their own order when `size` is None."""
    if size is None:
        return records
    return sorted(records, key=lambda record: hashlib.sha256(f"{seed}:{record.id}".encode()).digest())[:size]
