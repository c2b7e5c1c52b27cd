"""Augmented copies of training records: other values, other distractors, tools under other names, now and then no
fitting tool.

Copies are records like any other, made once from a seed before training, so that a teacher can label them and a cached
signal belongs to exactly the copy it was made for. Values and tools come from the training records alone.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from needle.data.rename import Strength, rename
from needle.data.speech.joints import WRITTEN
from needle.text.records import Call, Record, Tool
from needle.text.validity import call_errors
from needle.text.words import WORD

SWAP = 0.6  # chance that a value is replaced
REDRAW = 0.5  # chance that the distractors are drawn anew: those that came with a record are the harder ones
MAX_TOOLS = 8
THIRD, TRIES = 0.3, 8  # chance that a joined request asks for three things; how many partners are looked at
ORDER = Strength(opaque=0, astray=0, other_words=0, recase=0, bare=0, synonym=0, shuffle=1)
AROUND, STRANGERS = (
    24,
    24,
)  # distractors that the records of one source and copy draw from; tools of other sources on top
ALIKE = 0.25  # a tool this similar to the right one (cosine of their weighted words) might fit as well


@dataclass
class AugmentConfig:
    """`copies` of each training record, with values and distractors exchanged.

    `rename` of the copies come with tools under other names and descriptions, and `shuffle` of the others with
    arguments declared in another order; the records of `strangers` of the copies are also offered up to
    `max_strangers` tools of other sources. These are shares of whole copies, whose records then share their tools.
    `join` is the share of records that are joined with one or two others of their source to a request for several
    calls, `none` that of copies whose fitting tools are taken away, so that no call is right.
    """

    copies: int = 0
    rename: float = 0.0
    shuffle: float = 0.0
    join: float = 0.0
    none: float = 0.1
    strangers: float = 0.0
    max_strangers: int = 20

    def __post_init__(self) -> None:
        if self.copies < 0:
            raise ValueError(f"data.augment.copies is {self.copies}; it must be at least 0")
        for name in ("rename", "shuffle", "join", "none", "strangers"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.augment.{name} is {getattr(self, name)}; it must be between 0 and 1")


def expand(records: Sequence[Record], config: AugmentConfig, seed: int) -> list[Record]:
    """The records, then changed versions of each, without what a teacher answered to the record; a copy's id and
    `meta.copy` say which copy it is."""
    pools = Pools(records)
    out = list(records)
    renamed = [copy for copy in range(1, config.copies + 1) if _turn(copy, config.rename)]
    others = [copy for copy in range(1, config.copies + 1) if copy not in renamed]
    shuffled = [copy for number, copy in enumerate(others, 1) if _turn(number, config.shuffle)]
    crowded = [copy for copy in range(1, config.copies + 1) if _turn(config.copies + 1 - copy, config.strangers)]
    for copy in range(1, config.copies + 1):
        strangers = random.Random(f"{seed}:{copy}").sample(pools.every, min(STRANGERS, len(pools.every)))
        around = pools.around(AROUND, f"{seed}:{copy}")
        for record in records:
            source = random.Random(f"{seed}:{copy}:{record.id}")
            changed = swap_values(record, pools.values, source)
            if source.random() < config.join:
                changed = join(changed, pools, source)
            changed = redraw_tools(changed, pools.beside(changed, around.get(record.source, ())), source, config.none)
            if copy in crowded:
                changed = add_strangers(changed, strangers, source.randint(1, config.max_strangers), pools, source)
            if copy in renamed:
                changed = rename(changed, copy, seed)
            elif copy in shuffled:
                changed = rename(changed, copy, seed, ORDER)
            out.append(replace(changed, id=f"{record.id}+{copy}", teacher=None, meta={**record.meta, "copy": copy}))
    return out


def _turn(number: int, share: float) -> bool:
    """Whether the `number`th of several, counted from 1, belongs to an evenly spread `share` of them, the first one
    included."""
    return math.ceil(round(number * share, 9)) > math.ceil(round((number - 1) * share, 9))


class Pools:
    """What copies are made of: values by tool and argument, and which tools stood beside which without being right."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.values: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._beside: dict[tuple[str, str], dict[Tool, None]] = defaultdict(dict)
        every: dict[Tool, str] = {}  # the source of each
        for record in records:
            called = dict.fromkeys(call.name for call in record.answers)
            every |= dict.fromkeys(record.tools, record.source)
            for name in called:
                others = self._beside[record.source, name]
                others |= dict.fromkeys(tool for tool in record.tools if tool.name not in called)
            for call in record.answers:
                for name, value in call.arguments.items():
                    if isinstance(value, str):
                        self.values[call.name, name].append(value)
        self.single: dict[str, list[Record]] = defaultdict(list)
        for record in records:
            if len(record.answers) == 1:
                self.single[record.source].append(record)
        self.every = [(source, tool) for tool, source in every.items()]
        documents = [_words(tool) for _, tool in self.every]
        seen = Counter(word for words in documents for word in words)
        self._weights = {word: math.log(len(documents) / count) for word, count in seen.items()}

    def beside(self, record: Record, among: Container[Tool] | None = None) -> list[Tool]:
        """Tools of the same source, of those `among`, that are known not to fit where the record's calls do."""
        pools = [self._beside[record.source, name] for name in sorted({call.name for call in record.answers})]
        first, *others = pools or [{}]
        return [tool for tool in first if all(tool in pool for pool in others) and (among is None or tool in among)]

    def around(self, count: int, seed: str) -> dict[str, frozenset[Tool]]:
        """For each source, up to `count` tools that stood beside others: few, so that many records share them."""
        found: dict[str, dict[Tool, None]] = defaultdict(dict)
        for (origin, _), others in self._beside.items():
            found[origin] |= dict.fromkeys(others)
        return {
            origin: frozenset(random.Random(f"{seed}:{origin}").sample(list(tools), min(count, len(tools))))
            for origin, tools in found.items()
        }

    def apart(self, one: Record, other: Record) -> bool:
        """Whether each record's tools are known not to fit where the other's calls do; the same tool twice is fine, two
        of one name aren't."""
        tools = {tool.name: tool for tool in one.tools}
        if any(tools.get(tool.name, tool) != tool for tool in other.tools):
            return False
        mine, theirs = ({call.name for call in record.answers} for record in (one, other))
        known = [{tool.name for tool in self.beside(record)} for record in (one, other)]
        return theirs - mine <= known[0] and mine - theirs <= known[1]

    def alike(self, one: Tool, other: Tool) -> float:
        """The cosine of two tools' words, each weighted by how rare it is."""
        mine, theirs = _words(one), _words(other)
        return self._weigh(mine & theirs) / max(math.sqrt(self._weigh(mine) * self._weigh(theirs)), 1e-9)

    def _weigh(self, words: frozenset[str]) -> float:
        return math.fsum(
            self._weights.get(word, 1.0) ** 2 for word in words
        )  # the same whatever the order of the words


def _words(tool: Tool) -> frozenset[str]:
    return frozenset(word.lower() for word in WORD.findall(f"{tool.name} {tool.description}"))


def swap_values(record: Record, pools: Mapping[tuple[str, str], Sequence[str]], source: random.Random) -> Record:
    """Replaces string values that stand once, as whole words, in the request by others of the same tool and
    argument."""
    query, said = record.query, [dict(call.arguments) for call in record.answers]
    for number, call in enumerate(record.answers):
        for name, value in call.arguments.items():
            if not isinstance(value, str) or not value or source.random() >= SWAP:
                continue
            pool = pools[call.name, name]
            place = list(re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", query))
            others = [
                str(text)
                for place_of, arguments in enumerate(said)
                for key, text in arguments.items()
                if (place_of, key) != (number, name)
            ]
            if len(place) != 1 or not pool or _overlaps(value, others):
                continue
            other = source.choice(pool)
            if not _overlaps(other, others):
                query = query[: place[0].start()] + other + query[place[0].end() :]
                said[number][name] = other
    changed = replace(
        record,
        query=query,
        answers=tuple(Call(call.name, arguments) for call, arguments in zip(record.answers, said, strict=True)),
    )
    return record if any(call_errors(call, record.tools) for call in changed.answers) else changed


def _overlaps(value: str, others: Sequence[str]) -> bool:
    """Whether another value is in this one or this one in it, so that a request that says one would say the other."""
    low = value.lower()
    return any(text and (text in low or low in text) for text in (other.lower() for other in others))


def join(record: Record, pools: Pools, source: random.Random) -> Record:
    """The record and one or two others of its source as one request, with all their calls in order; itself where none
    goes with it."""
    if len(record.answers) != 1:
        return record
    for _ in range(1 + (source.random() < THIRD)):
        for other in source.sample(pools.single[record.source], min(TRIES, len(pools.single[record.source]))):
            if (
                other.query != record.query
                and pools.apart(record, other)
                and not {call.key for call in record.answers} & {call.key for call in other.answers}
            ):
                wanted = {call.name for call in (*record.answers, *other.answers)}
                known = {tool.name for tool in pools.beside(record)} & {tool.name for tool in pools.beside(other)}
                tools = {tool.name: tool for tool in (*record.tools, *other.tools) if tool.name in wanted | known}
                query = source.choice(WRITTEN).format(_unended(record), other.query)
                record = replace(
                    record, query=query, answers=(*record.answers, *other.answers), tools=tuple(tools.values())
                )
                break
    return record


def _unended(record: Record) -> str:
    """The request without its last full stop or question mark, unless a value ends in it ("5 p.m.")."""
    bare = record.query.rstrip(".!? ")
    values = [value for call in record.answers for value in call.arguments.values() if isinstance(value, str)]
    return record.query.rstrip() if any(value in record.query and value not in bare for value in values) else bare


def redraw_tools(record: Record, pool: Sequence[Tool], source: random.Random, none: float = 0.1) -> Record:
    """Other distractors from the pool, in another order; with a small chance the fitting tools go and no call is right.

    A record without answers keeps its tools: a new one might fit.
    """
    if not record.answers:
        return record
    wanted = {call.name for call in record.answers}
    fitting = [tool for tool in record.tools if tool.name in wanted]
    others = [tool for tool in record.tools if tool.name not in wanted]
    if source.random() < REDRAW:
        room = source.randint(0, max(MAX_TOOLS - len(fitting), 0))
        drawn = {
            tool.name: tool for tool in source.sample(list(pool), min(2 * room, len(pool))) if tool.name not in wanted
        }
        others = list(drawn.values())[:room]
    if others and source.random() < none:
        source.shuffle(others)
        return replace(record, tools=tuple(others), answers=())
    mixed = fitting + others
    source.shuffle(mixed)
    return replace(record, tools=tuple(mixed))


def add_strangers(
    record: Record, strangers: Sequence[tuple[str, Tool]], most: int, pools: Pools, source: random.Random
) -> Record:
    """Up to `most` tools of other sources among the record's own, none of them like a tool that it calls."""
    called = [tool for tool in record.tools if any(tool.name == call.name for call in record.answers)]
    if not called:
        return record
    names = {tool.name for tool in record.tools}
    added: dict[str, Tool] = {}
    for origin, tool in source.sample(list(strangers), len(strangers)):
        if (
            len(added) < most
            and origin != record.source
            and tool.name not in names
            and all(pools.alike(tool, right) < ALIKE for right in called)
        ):
            added[tool.name] = tool
    mixed = [*record.tools, *added.values()]
    source.shuffle(mixed)
    return replace(record, tools=tuple(mixed))
