"""What to ask for: a seeded plan of requests, each with its tools, its calls, its values, and who says it in which way.

New models ignore the sampling temperature, so that variety has to come from here. An item depends on the seed and its
number alone; the first 500 of a plan are the first 500 of any longer one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from needle.collect.catalogue import Declared
from needle.data.speech.schema import members_for, text_for
from needle.data.speech.values import Values
from needle.engine.bm25 import Bm25Retriever
from needle.text.records import Call, Tool

SINGLE, SEVERAL, TWICE, NONE, NEAR_MISS, MISSING = "single", "several", "twice", "none", "near_miss", "missing"
KINDS = {SINGLE: 0.45, SEVERAL: 0.15, TWICE: 0.1, NONE: 0.08, NEAR_MISS: 0.12, MISSING: 0.1}
CALLED = (SINGLE, SEVERAL, TWICE)  # the kinds that end in a call
SPLITS = {"train": 0.84, "validation": 0.08, "test": 0.08}
UNSEEN = 0.5  # share of test items about unseen tools, where there are any
NEIGHBOURS = 6  # hard distractors to choose from

PERSONAS = (
    "a nurse between two patients", "a retired teacher", "a teenager on the sofa", "a busy parent with a crying child",
    "a software engineer", "a lorry driver on the road",
    "a student the night before an exam", "a shop owner", "a lawyer who chooses words with care",
    "a tourist in an unknown city", "a farmer at dawn", "an office manager",
    "a gamer in a hurry", "a grandmother new to all this", "a chef in a loud kitchen", "a sales person between calls",
    "a researcher", "a builder with dirty hands",
    "a musician", "someone who learned English late in life", "a police officer off duty", "a night-shift worker",
    "a football coach", "a librarian",
)  # fmt: skip
STYLES = (
    "a plain command", "a polite question", "a wish ('I'd like ...')", "a statement of need ('I need ...')",
    "chatty, with a reason for it", "as short as it can be, like keywords",
    "a question that implies the request", "starting in the middle of a thought", "correcting oneself halfway",
    "formal", "slangy", "with a greeting first",
)  # fmt: skip
LENGTHS = {
    "at most 8 words where the details allow it": 0.35,
    "8 to 16 words": 0.4,
    "16 to 30 words": 0.2,
    "two or three sentences": 0.05,
}
NOISES = {
    "none": 0.7,
    "one or two typing mistakes outside of the details": 0.12,
    "all lower case without punctuation, as speech recognition writes it": 0.12,
    "filler words (um, well, you know)": 0.06,
}


@dataclass(frozen=True)
class Item:
    """One planned request. `calls` is what it asks for, or almost asks for; `left_out` the required argument it doesn't
    give."""

    number: int
    split: str
    kind: str
    tools: tuple[Tool, ...]
    calls: tuple[Call, ...]
    subjects: tuple[Tool, ...]
    left_out: str | None
    unseen: bool
    persona: str
    style: str
    length: str
    language: str
    noise: str

    @property
    def wanted(self) -> tuple[Call, ...]:
        """The calls that would be right."""
        return self.calls if self.kind in CALLED else ()

    def to_json(self) -> dict[str, Any]:
        """What a record's `meta` says of its plan."""
        row = {name: getattr(self, name) for name in ("kind", "persona", "style", "length", "language", "noise")}
        return row | ({"unseen_tool": True} if self.unseen else {})


class Planner:
    """Draws items. `pools` are values by tool and argument, as `values` asks have brought them."""

    def __init__(
        self,
        sources: Sequence[Declared],
        unseen: frozenset[str],
        seed: int,
        languages: Sequence[str],
        max_tools: int,
        pools: Mapping[tuple[str, str], Sequence[Any]] | None = None,
    ) -> None:
        self.seed, self.languages, self.max_tools, self.pools = seed, tuple(languages), max_tools, pools or {}
        self.seen = [source.tool for source in sources if source.family not in unseen]
        self.hidden = [source.tool for source in sources if source.family in unseen]
        self.every = [source.tool for source in sources]
        self.families = {source.tool.name: source.family for source in sources}
        self.fallback = Values(held_out=False)

    @cached_property
    def neighbours(self) -> Mapping[str, list[Tool]]:
        """The tools that are easiest to mistake for each."""
        words, found = Bm25Retriever(), {}
        for tool in self.every:
            order = words.rank(f"{tool.name} {tool.description}", self.every)
            found[tool.name] = [self.every[index] for index in order if self.every[index].name != tool.name][
                :NEIGHBOURS
            ]
        return found

    def item(self, number: int) -> Item:
        source = random.Random(f"{self.seed}:{number}")
        split = _weighted(SPLITS, source)
        unseen = split == "test" and bool(self.hidden) and source.random() < UNSEEN
        pool = self.hidden if unseen else self.seen
        shown = self.every if unseen else self.seen
        kind, subjects, left_out = self._subjects(pool, source)
        calls = tuple(self._call(tool, source, left_out) for tool in subjects) if kind != NONE else ()
        if len({call.key for call in calls}) < len(calls):  # the same thing twice is one wish
            kind, calls, subjects = SINGLE, calls[:1], subjects[:1]
        return Item(
            number, split, kind, self._tools(kind, subjects, shown, source), calls, subjects, left_out, unseen,
            source.choice(PERSONAS), source.choice(STYLES), _weighted(LENGTHS, source), source.choice(self.languages),
                _weighted(NOISES, source),
        )  # fmt: skip

    def _subjects(self, pool: Sequence[Tool], source: random.Random) -> tuple[str, tuple[Tool, ...], str | None]:
        """The kind of request, the tools that it is about, and the argument that it leaves out."""
        kind, tool = _weighted(KINDS, source), source.choice(pool)
        required = tool.parameters.get("required", [])
        if kind == SEVERAL and len(pool) > 1:
            return kind, tuple(source.sample(pool, min(len(pool), source.choice((2, 2, 2, 3))))), None
        if kind == TWICE and tool.parameters.get("properties"):
            return kind, (tool, tool), None
        if kind == MISSING and required:
            return kind, (tool,), source.choice(required)
        if kind == NEAR_MISS and len(pool) > 1 or kind == NONE:
            return kind, (tool,), None
        return SINGLE, (tool,), None

    def _tools(
        self, kind: str, subjects: Sequence[Tool], shown: Sequence[Tool], source: random.Random
    ) -> tuple[Tool, ...]:
        """The subjects among distractors, half of them neighbours; of a near miss the neighbours alone, of an outside
        request any."""
        keep = {tool.name: tool for tool in subjects} if kind not in (NEAR_MISS, NONE) else {}
        taken = {tool.name for tool in subjects} if kind == NEAR_MISS else set()
        room = source.randint(max(len(keep), 1), max(self.max_tools, len(keep), 1))
        names = {tool.name for tool in shown}
        near = [
            tool
            for subject in subjects
            for tool in self.neighbours[subject.name]
            if tool.name in names and kind != NONE
        ]
        drawn = source.sample(near, min(len(near), (room + 1) // 2)) + source.sample(
            list(shown), min(room + 1, len(shown))
        )
        for tool in drawn:
            if len(keep) < room and tool.name not in taken:
                keep.setdefault(tool.name, tool)
        offered = list(keep.values())
        source.shuffle(offered)
        return tuple(offered)

    def _call(self, tool: Tool, source: random.Random, left_out: str | None) -> Call:
        def text(schema: Mapping[str, Any], path: tuple[str, ...], source: random.Random) -> str:
            return self._text(tool.name, schema, path, source)

        return Call(tool.name, members_for(tool.parameters, source, text, left_out=left_out))

    def _text(self, tool: str, schema: Mapping[str, Any], path: tuple[str, ...], source: random.Random) -> str:
        """A value that the teacher has thought of, else words that the argument's name suggests."""
        pool = self.pools.get((tool, ".".join(path)))
        return source.choice(list(pool)) if pool else text_for(schema, path[-1], self.fallback, source)


def _weighted(shares: Mapping[str, float], source: random.Random) -> str:
    return source.choices(list(shares), list(shares.values()))[0]
