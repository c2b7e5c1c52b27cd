"""Augmented copies of training records: other values in the same places, other distractors, now and then no fitting tool.

Copies are records like any other, made once from a seed before training, so that a teacher can label them and a cached
signal belongs to exactly the copy it was made for. Values and tools come from the training records alone.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from needle.records import Call, Record, Tool
from needle.toolschema import call_errors

SWAP = 0.6  # chance that a value is replaced
NO_TOOL = 0.1  # chance that the fitting tools are taken away
REDRAW = 0.5  # chance that the distractors are drawn anew
MOST_TOOLS = 8


def expand(records: Sequence[Record], copies: int, seed: int) -> list[Record]:
    """The records, then `copies` changed versions of each; a copy's id says what it comes from."""
    pools: dict[tuple[str, str], list[str]] = defaultdict(list)
    distinct: dict[str, dict[str, Tool]] = defaultdict(dict)
    for record in records:
        for tool in record.tools:
            distinct[record.source].setdefault(json.dumps(tool.to_json()), tool)
        for call in record.answers:
            for name, value in call.arguments.items():
                if isinstance(value, str):
                    pools[call.name, name].append(value)
    tools = {name: list(found.values()) for name, found in distinct.items()}
    out = list(records)
    for copy in range(1, copies + 1):
        for record in records:
            source = random.Random(f"{seed}:{copy}:{record.id}")
            changed = redraw_tools(swap_values(record, pools, source), tools[record.source], source)
            out.append(replace(changed, id=f"{record.id}+{copy}"))
    return out


def swap_values(record: Record, pools: dict[tuple[str, str], list[str]], source: random.Random) -> Record:
    """Replaces string values that stand once, as whole words, in the request by others of the same tool and argument."""
    query, answers = record.query, []
    for call in record.answers:
        arguments = dict(call.arguments)
        for name, value in call.arguments.items():
            if not isinstance(value, str) or not value or source.random() >= SWAP:
                continue
            pool = pools[call.name, name]
            place = list(re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", query))
            if len(place) != 1 or not pool or _inside_others(value, record, call):
                continue
            other = source.choice(pool)
            query = query[: place[0].start()] + other + query[place[0].end() :]
            arguments[name] = other
        answers.append(Call(call.name, arguments))
    changed = replace(record, query=query, answers=tuple(answers))
    return record if any(call_errors(call, record.tools) for call in answers) else changed


def _inside_others(value: str, record: Record, own: Call) -> bool:
    """Whether another value overlaps this one, so that replacing it would break that one."""
    texts = [str(other) for call in record.answers for other in call.arguments.values()]
    return sum(value in text for text in texts) > 1 or any(text and text != value and text in value for text in texts)


def redraw_tools(record: Record, pool: Sequence[Tool], source: random.Random) -> Record:
    """Other distractors from the pool, in another order; with a small chance the fitting tools go and no call is right.

    A record without answers keeps its tools: a new one might fit.
    """
    if not record.answers:
        return record
    wanted = {call.name for call in record.answers}
    fitting = [tool for tool in record.tools if tool.name in wanted]
    others = [tool for tool in record.tools if tool.name not in wanted]
    if source.random() < REDRAW:
        room = source.randint(0, max(MOST_TOOLS - len(fitting), 0))
        drawn = {tool.name: tool for tool in source.sample(list(pool), min(2 * room, len(pool))) if tool.name not in wanted}
        others = list(drawn.values())[:room]
    if others and source.random() < NO_TOOL:
        source.shuffle(others)
        return replace(record, tools=tuple(others), answers=())
    mixed = fitting + others
    source.shuffle(mixed)
    return replace(record, tools=tuple(mixed))
