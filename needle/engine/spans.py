"""Where in a request the values of an answer were copied from, and what else belongs to them there."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from needle.text.leaves import leaves
from needle.text.numberwords import number
from needle.text.pieces import Said
from needle.text.records import Call, Spans, Tool
from needle.text.tokenizer import TextTokenizer

BEFORE = re.compile(r"(?:\b(?:minus|negative)\s+|(?<![\w.])[-\u2212])$", re.IGNORECASE)
AFTER = re.compile(r"\s?(?:k|M|mn|bn)\b|\s+(?:hundred|thousand|million|billion|dozen)\b")


def copied_spans(
    tokens: Sequence[int], sources: Sequence[int], query: str, tools: Sequence[Tool], tokenizer: TextTokenizer
) -> list[Spans]:
    """For each call of an answer in the codec `decisions`, the places of its arguments' values, as `Call.sources`.

    `sources` are the positions among the request's tokens that each of `tokens` was copied from, -1 for none. A value,
    or an item of a list, has a place if all of it stands there together; one that was spelled out, made of several
    places or chosen from a declaration has none. Empty where no token was copied.
    """
    if max(sources, default=-1) < 0:
        return []
    offsets = tokenizer.offsets(" " + query)
    calls: list[dict[str, list[tuple[int, int]]]] = []
    arguments: Sequence[str] = ()
    places: list[tuple[int, int]] = []
    run: list[int] = []
    for token, source in [*zip(tokens, sources, strict=True), (tokenizer.eos, -1)]:
        if token < tokenizer.first_tool_label and token not in (tokenizer.item, tokenizer.eos):
            run.append(source)
            continue
        if run and min(run) >= 0 and all(after == before + 1 for before, after in itertools.pairwise(run)):
            start, end = offsets[run[0]][0] - 1, offsets[run[-1]][1] - 1  # without the space in front of a request
            places.append((start + (query[start : start + 1] == " " or start < 0), end))
        run = []
        if tokenizer.is_tool_label(token):
            arguments = [leaf.name for leaf in leaves(tools[token - tokenizer.first_tool_label])]
            calls.append({})
        elif tokenizer.is_argument_label(token):
            places = calls[-1].setdefault(arguments[token - tokenizer.first_argument_label], [])
    return [{name: tuple(found) for name, found in call.items() if found} for call in calls]


def pointed_spans(tokens: Sequence[int], said: Said, tools: Sequence[Tool], tokenizer: TextTokenizer) -> list[Spans]:
    """For each call of an answer in the codec `spans`, the places of its arguments' values, as `Call.sources`. One that
    lacks a value is none."""
    calls: list[dict[str, list[tuple[int, int]]]] = []
    arguments: Sequence[str] = ()
    places: list[tuple[int, int]] = []
    first, lacking = -1, set[int]()
    for token in tokens:
        place = token - tokenizer.first_place
        if tokenizer.is_tool_label(token):
            arguments = [leaf.name for leaf in leaves(tools[token - tokenizer.first_tool_label])]
            calls.append({})
        elif tokenizer.is_argument_label(token):
            places = calls[-1].setdefault(arguments[token - tokenizer.first_argument_label], [])
        elif token == tokenizer.query:
            lacking.add(len(calls) - 1)
        elif place >= 0 and first < 0:
            first = place
        elif place >= 0:
            places.append((said.offsets[first][0], said.offsets[place][1]))
            first = -1
    return [
        {name: tuple(found) for name, found in call.items() if found}
        for number, call in enumerate(calls)
        if number not in lacking
    ]


def with_scales(call: Call, sources: Spans, query: str, tool: Tool) -> Call:
    """The call, its copied numbers with what belongs to them in the request: "2.5" of "2.5 million", "18" of "minus
    18"."""
    arguments: dict[str, Any] = {}
    for leaf in leaves(tool):
        places = sources.get(leaf.name, ())
        if leaf.form != "number" or len(places) != 1 or not all(isinstance(step, str) for step in leaf.path):
            continue
        (start, end), *_ = places
        before, after = BEFORE.search(query[:start]), AFTER.match(query[end:])
        if not before and not after:
            continue
        said = (before[0] if before else "") + query[start:end] + (after[0] if after else "")
        try:
            value = number(said)
        except ValueError:
            continue
        arguments = arguments or json.loads(json.dumps(call.arguments))
        inside: Any = arguments
        for step in leaf.path[:-1]:
            inside = inside[step]
        inside[leaf.path[-1]] = value
    return replace(call, arguments=arguments) if arguments else call
