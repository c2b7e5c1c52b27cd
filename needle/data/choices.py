"""Other members for the enums of tools: a student that has always seen the same `genre`s knows them by heart and never
reads.

Where a call takes such a member, the request must name it, so that the request can name the new one. As in `rename`,
the new members are a function of the tool and the seed: records that share a tool share them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from needle.data.rename import synonyms
from needle.text.records import Call, Record, Tool
from needle.text.validity import call_errors

SHARE = 0.3  # of enums


def change_members(record: Record, seed: int, share: float = SHARE) -> Record:
    """The record with other members for a `share` of its tools' enums; tools that are called keep theirs where the
    request can't follow."""
    fresh = {tool.name: _fresh(tool, seed, share) for tool in record.tools}
    query, answers = record.query, record.answers
    named = _name_anew(record, fresh)
    if named is None:
        fresh |= {call.name: {} for call in record.answers}
    else:
        query, answers = named
    tools = tuple(_with_members(tool, fresh[tool.name]) for tool in record.tools)
    return (
        record
        if any(call_errors(call, tools) for call in answers)
        else replace(record, query=query, tools=tools, answers=answers)
    )


def _name_anew(
    record: Record, fresh: Mapping[str, Mapping[str, Mapping[str, str]]]
) -> tuple[str, tuple[Call, ...]] | None:
    """The request and its calls with the new members; None where the request doesn't name a member that changes exactly
    once."""
    query, answers = record.query, []
    every = [str(value).lower() for call in record.answers for value in call.arguments.values()]
    for call in record.answers:
        arguments = dict(call.arguments)
        for name, members in fresh[call.name].items():
            if name not in arguments:
                continue
            old = arguments[name]
            if not isinstance(old, str):
                return None
            places = list(re.finditer(rf"(?<!\w){re.escape(old)}(?!\w)", query, re.IGNORECASE))
            if len(places) != 1 or sum(old.lower() in value for value in every) > 1:
                return None
            arguments[name] = members[old]
            said = members[old] if places[0][0] == old else members[old].lower()
            query = query[: places[0].start()] + said + query[places[0].end() :]
        answers.append(Call(call.name, arguments))
    return query, tuple(answers)


def _with_members(tool: Tool, fresh: Mapping[str, Mapping[str, str]]) -> Tool:
    if not fresh:
        return tool
    properties = tool.parameters["properties"]
    changed = {
        name: {**schema, "enum": [fresh[name].get(member, member) for member in schema["enum"]]}
        if name in fresh
        else schema
        for name, schema in properties.items()
    }
    return Tool(tool.name, tool.description, {**tool.parameters, "properties": changed})


@lru_cache(maxsize=8192)
def _fresh(tool: Tool, seed: int, share: float) -> Mapping[str, Mapping[str, str]]:
    """For each argument whose members change, the new ones by the old."""
    source = random.Random(f"{seed}:{tool.declared}")
    found: dict[str, Mapping[str, str]] = {}
    for name, schema in tool.parameters.get("properties", {}).items():
        members = schema.get("enum", ())
        plain = len(members) > 1 and all(isinstance(member, str) for member in members) and "default" not in schema
        if (
            plain
            and source.random() < share
            and not _told(members, f"{tool.description} {schema.get('description', '')}")
        ):
            new = {member: _member(member, source) for member in members}
            if len({word.lower() for word in new.values()}) == len(members):
                found[name] = new
    return found


def _told(members: Sequence[str], about: str) -> bool:
    """Whether a description speaks of two members, which it would then have wrong."""
    return sum(bool(re.search(rf"(?<!\w){re.escape(member)}(?!\w)", about, re.IGNORECASE)) for member in members) > 1


def _member(old: str, source: random.Random) -> str:
    """One or two words that tools use, written as the old member is."""
    words = [source.choice(_vocabulary()) for _ in range(source.choice((1, 1, 2)))]
    text = ("_" if "_" in old else " ").join(words)
    return text.upper() if old.isupper() else text.title() if old[:1].isupper() else text


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    return tuple(
        sorted({word.replace("-", " ").lower() for key, others in synonyms().items() for word in (key, *others[1:])})
    )
