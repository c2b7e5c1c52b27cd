"""Records to examples, the tokenizer that fits them, and the order in which training sees them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from needle.data.choices import change_members
from needle.data.rename import rename
from needle.data.votes import votes_key
from needle.text.pieces import Pieces
from needle.text.prompt import Codec, Example, PromptError, Renderer, render_record
from needle.text.records import DataError, Record, Tool
from needle.text.tokenizer import SPLIT, TOOL_LABELS, TextTokenizer

POOL = 16  # batches are cut from this many batches' worth of records sorted by length, pieces of a group likewise
MIX = 0.15  # how far costs may seem to differ from what they are, so that pieces of different groups meet in a batch
LONG = ("drop", "error")
WORDS, MIN_WORD = (
    40_000,
    6,
)  # how often an encoder's words are shown to a tokenizer: the first 2,000 times, the last 6


@dataclass
class TokenizerConfig:
    """`path` takes the tokenizer of a checkpoint (arms that share a teacher need its tokenizer); else one is
    trained."""

    size: int = 8192
    path: str | None = None


def fit_tokenizer(
    records: Sequence[Record],
    config: TokenizerConfig,
    cache: Path,
    words: Sequence[str] = (),
    pieces: Callable[[Sequence[str]], Pieces] | None = None,
) -> TextTokenizer:
    """Trains byte-level BPE on requests, tools and values, or reads what the same texts gave before.

    `words`, most frequent first, are added as often as Zipf's law says: the words of a pretrained encoder. `pieces`
    makes the word pieces of a student that reads in these, from the same texts; it writes with tokens of values alone.
    """
    if config.path:
        path = Path(config.path)
        if not (path / "tokenizer.json" if path.is_dir() else path).is_file():
            raise DataError(f"tokenizer.path={config.path} holds no tokenizer.json")
        return TextTokenizer.load(path)
    texts = list(_texts(records))
    read = pieces(texts) if pieces else None
    if read:
        texts = [json.dumps(call.arguments, ensure_ascii=False) for record in records for call in record.answers]
    for rank, word in enumerate(words):
        texts += [" " + word] * max(MIN_WORD, WORDS // (rank + 20))
    digest = hashlib.sha256(f"{config.size}{SPLIT}{read.json if read else ''}".encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    folder = cache / f"tokenizer-{digest.hexdigest()[:16]}"
    if (folder / "tokenizer.json").is_file():
        return TextTokenizer.load(folder)
    tokenizer = TextTokenizer.train(texts, config.size, read)
    tokenizer.save(folder)
    return tokenizer


def _texts(records: Iterable[Record]) -> Iterable[str]:
    """Every request, and each distinct tool as often as one request, so that a tool repeated everywhere doesn't
    rule."""
    seen: set[Tool] = set()
    for record in records:
        yield " " + record.query
        for call in record.answers:
            yield json.dumps(call.arguments, ensure_ascii=False)
        for tool in record.tools:
            if tool not in seen:
                seen.add(tool)
                yield json.dumps(tool.to_json(), ensure_ascii=False)


@dataclass
class Encoded:
    """Examples that fit, and what was left out and why."""

    examples: list[Example]
    records: list[Record]
    dropped: list[str] = field(default_factory=list)


def encode_records(
    records: Sequence[Record],
    renderer: Renderer,
    codec: Codec,
    max_length: int,
    on_long: str = "drop",
    weights: Sequence[float] | None = None,
    longest_text: int = 0,
) -> Encoded:
    """Nothing is cut: a record over `max_length` tokens, or with a request or a tool of more than `longest_text` if
    that isn't 0, is dropped and listed, or an error. `weights` are the records'.

    Raises:
        DataError: under `on_long="error"`, the first record that is too long or can't be written.
    """
    if on_long not in LONG:
        raise ValueError(f"data.on_long is '{on_long}'; expected one of {', '.join(LONG)}")
    out = Encoded([], [])
    for index, record in enumerate(records):
        try:
            example = render_record(renderer, codec, record)
            if example.length > max_length:
                raise PromptError(f"{example.length} tokens, more than data.max_length={max_length}")
            text = max([len(example.query), *(len(tool.ids) for tool in example.tools)])
            if longest_text and text > longest_text:
                raise PromptError(f"a text of {text} tokens, more than data.longest_text={longest_text}")
        except PromptError as error:
            if on_long == "error":
                raise DataError(
                    f"record {record.id}: {error} (data.on_long=drop leaves such records out and counts them)"
                ) from error
            out.dropped.append(f"{record.id}: {error}")
            continue
        out.examples.append(
            replace(example, votes=votes_key(record), weight=1.0 if weights is None else weights[index])
        )
        out.records.append(record)
    return out


class BatchOrder:
    """Which examples each optimiser step sees: a function of the seed and the step alone, so that a resumed run goes on
    in order.

    A batch holds examples of similar length; where `groups` are given, it is made of pieces of `piece` examples of one
    group each. Pieces of one batch cost about the same (`cost` of some examples), so that processes that share it
    finish together.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        groups: Sequence[int] | None = None,
        piece: int | None = None,
        cost: Callable[[Sequence[int]], float] = len,
    ) -> None:
        if not lengths:
            raise DataError("no records to train on")
        self.lengths = np.asarray(lengths)
        self.batch_size = min(batch_size, len(lengths))
        self.piece = self.batch_size if groups is None else min(piece or self.batch_size, self.batch_size)
        self.groups = np.zeros_like(self.lengths) if groups is None else np.asarray(groups)
        self.cost = cost
        self.seed = seed
        self.per_epoch = -(-len(lengths) // self.batch_size)
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    def __getitem__(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        return [int(index) for index in self._batches[position]]

    def _shuffle(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.lengths))
        pieces, rest = [], order[:0]
        for group in np.unique(self.groups):
            members = order[self.groups[order] == group]
            for start in range(0, len(members), POOL * self.piece):
                pool = members[start : start + POOL * self.piece]
                pool = pool[np.argsort(self.lengths[pool], kind="stable")]
                whole = len(pool) // self.piece * self.piece
                pieces += np.split(pool[:whole], whole // self.piece) if whole else []
                rest = np.concatenate([rest, pool[whole:]])  # the ends of the groups share pieces
        pieces += [rest[start : start + self.piece] for start in range(0, len(rest), self.piece)]
        ends = len(pieces) - (
            len(pieces[-1]) < self.piece
        )  # a short piece stays last, so that all others fill their batches
        if self.piece < self.batch_size:
            rank = np.argsort(
                [self.cost(piece.tolist()) for piece in pieces[:ends]] * random.uniform(1 - MIX, 1 + MIX, ends)
            )
            pieces[:ends] = [pieces[i] for i in rank]
        every = np.concatenate(pieces)
        batches = [every[start : start + self.batch_size] for start in range(0, len(every), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]


def batch_order(
    data: Encoded,
    padded_length: Callable[[Example], int],
    batch_size: int,
    piece: int,
    seed: int,
    group: str,
) -> BatchOrder:
    """Batches of similar `padded_length`; by `source` they are made of pieces of records of one source and augmented
    copy, by `family` also of one family of tools."""
    lengths = [padded_length(example) for example in data.examples]
    if group == "length":
        return BatchOrder(lengths, batch_size, seed)
    kinds = [
        (record.source, int(record.meta.get("copy", 0)), family_of(record) if group == "family" else "")
        for record in data.records
    ]
    numbers = {kind: index for index, kind in enumerate(sorted(set(kinds)))}
    groups = [numbers[kind] for kind in kinds]
    cost = (
        (lambda own: max(lengths[i] for i in own))
        if group == "family"
        else (lambda own: _tokens([data.examples[i] for i in own]))
    )
    return BatchOrder(lengths, batch_size, seed, groups, piece, cost)


def family_of(record: Record) -> str:
    """What a record's tools belong to, as far as its set says so."""
    meta = record.meta
    return str(meta.get("family") or f"{meta.get('service', '')} {meta.get('schema_variant', '')}".strip())


def _tokens(examples: Sequence[Example]) -> int:
    """How many tokens a pointer student encodes of a micro-batch: requests, and each distinct tool once."""
    return sum(len(example.query) for example in examples) + sum(
        {tool.key: len(tool.ids) for example in examples for tool in example.tools}.values()
    )


def share(indices: Sequence[int], rank: int, processes: int, micro_batch: int) -> list[list[int]]:
    """The micro-batches of one process. All processes get equally many, so that they stay in step; some may be
    empty."""
    mine = np.array_split(np.asarray(indices, dtype=np.int64), processes)[
        rank
    ]  # neighbours stay together: they are of one group
    largest = -(-len(indices) // processes)
    pieces = max(-(-largest // micro_batch), 1)
    return [[int(i) for i in piece] for piece in np.array_split(mine, pieces)]


def add_distractors(examples: Sequence[Example], most: int, seed: Sequence[int]) -> list[Example]:
    """Offers each example up to `most` tools of its batch neighbours, which a pointer student has encoded anyway.

    They stand after the example's own tools, so that its labels stay right. An example without a call gets none: a new
    tool might fit it.
    """
    pool = list({tool.name: tool for example in examples for tool in example.tools}.values())
    out = []
    for row, example in enumerate(examples):
        own = {tool.name for tool in example.tools}
        others = [tool for tool in pool if tool.name not in own] if len(example.target) > 1 else []
        random = np.random.default_rng([*seed, row])
        count = min(int(random.integers(0, most + 1)), len(others), TOOL_LABELS - len(own))
        drawn = [others[int(i)] for i in random.permutation(len(others))[:count]]
        out.append(replace(example, tools=(*example.tools, *drawn)))
    return out


def rename_examples(
    examples: Sequence[Example],
    records: Sequence[Record],
    tokenizer: TextTokenizer,
    codec: Codec,
    max_length: int,
    seed: int,
) -> list[Example]:
    """The examples with all tools under other names, some with other enum members, those of `seed`; one whose tools
    can't be renamed stays as it is."""
    renderer, out = Renderer(tokenizer), []
    for example, record in zip(examples, records, strict=True):
        try:
            renamed = render_record(renderer, codec, rename(change_members(record, seed), 0, seed))
        except PromptError:
            renamed = example
        fits = renamed.length <= max_length
        out.append(replace(renamed, votes=example.votes, weight=example.weight) if fits else example)
    return out


def data_fingerprint(records: Iterable[Record]) -> str:
    """A hash of what the records say, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record.to_json(), sort_keys=True).encode())
    return digest.hexdigest()[:16]
