"""What a look over data finds before anything is trained on it: sizes, duplicates, and requests that stand in training
and test."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from needle.text.records import Record, canonical_json

Count = Callable[[str], int]
"""How many tokens a text has."""


@dataclass(frozen=True)
class Sizes:
    """One split in figures. Lengths are tokens of a request, (mean, longest)."""

    records: int
    without_call: int
    several_calls: int
    tools: int
    offered: float
    request: tuple[float, int]
    longest_tool: int
    repeated: int


def sizes(records: Sequence[Record], count: Count) -> Sizes:
    """`repeated` are records that another before them has in other letters: the same request, tools and calls."""
    tools = {tool.declared: tool for record in records for tool in record.tools}
    lengths = [count(record.query) for record in records] or [0]
    return Sizes(
        records=len(records),
        without_call=sum(not record.answers for record in records),
        several_calls=sum(len(record.answers) > 1 for record in records),
        tools=len({tool.name for tool in tools.values()}),
        offered=mean([len(record.tools) for record in records] or [0]),
        request=(mean(lengths), max(lengths)),
        longest_tool=max((count(declared) for declared in tools), default=0),
        repeated=len(records) - len({_content(record) for record in records}),
    )


def problems(splits: Mapping[str, Sequence[Record]], files: Mapping[str, Iterable[str]]) -> list[str]:
    """Sentences about what is probably a mistake: files in two splits, ids that come twice, requests that training and
    the other splits share."""
    found: list[str] = []
    place: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            where = Path(path).expanduser().resolve()
            if where in place:
                again = "twice" if place[where] == split else f"for {place[where]} and {split}"
                found.append(f"{path} is given {again}")
            place.setdefault(where, split)
    for split, records in splits.items():
        if not records and list(files.get(split, ())):
            found.append(f"there are no {split} records in {', '.join(files[split])}")
        ids = Counter(record.id for record in records)
        twice = {name: count for name, count in ids.items() if count > 1}
        if twice:
            name = max(twice, key=twice.__getitem__)
            found.append(
                f"{sum(twice.values()):,} {split} records share an id with another; '{name}' has {twice[name]:,}"
            )
    train = defaultdict(list)
    for record in splits.get("train", ()):
        train[request_key(record.query)].append(record.query)
    for split, records in splits.items():
        shared = [record for record in records if request_key(record.query) in train] if split != "train" else []
        if shared:
            found.append(
                f"{len(shared):,} of {len(records):,} {split} requests stand in training as well, such as"
                f" {shared[0].query[:60]!r}"
            )
    return found


def request_key(query: str) -> str:
    """The same for requests that differ in case, punctuation and spaces alone."""
    return " ".join(re.findall(r"\w+", query.casefold()))


def _content(record: Record) -> tuple[str, str, str]:
    tools = sorted(tool.key for tool in record.tools)
    return request_key(record.query), "\n".join(tools), canonical_json([call.to_json() for call in record.answers])


def as_people_read_it(record: Record) -> str:
    """A record in a few lines: the request, the calls, and what is offered."""
    calls = [f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})" for call in record.answers]
    offered = []
    for tool in record.tools:
        required = tool.parameters.get("required", ())
        names = [name + "*" * (name in required) for name in tool.parameters.get("properties", {})]
        offered.append(f"{tool.name}({', '.join(names)})")
    history = [f"  before: {turn['request']!r}" for turn in record.meta.get("history", ()) if isinstance(turn, Mapping)]
    return "\n".join(
        [
            f"{record.id}  {record.query!r}",
            *history,
            *(f"  calls  {call}" for call in calls or ["nothing"]),
            f"  offers {'; '.join(offered) or 'no tool'}",
        ]
    )
