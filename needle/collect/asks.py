"""What the teacher is told: to think up values, to write requests, to answer them by calls. And reading what it says.

Whoever labels a request never sees what the plan wanted: the calls are found a second time, from the words alone.
A change of any text below is a new version (`PROMPT`), whose requests have new keys.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from needle.collect.plan import MISSING, NEAR_MISS, NONE, Item
from needle.collect.services.hosted import STOP, Ask, Reply
from needle.text.records import Call, Tool
from needle.text.validity import call_errors

PROMPT = 1
BATCH = 10  # requests that one answer writes
POOL = 30  # values for each argument
ROOM = {"values": 4096, "write": 4096, "label": 1024}  # most tokens of an answer, thoughts included

VALUES = (
    "You prepare test data for software that turns spoken or typed requests into function calls. For each argument"
    " below, list {count} values that real users would mention. Make them concrete, short and as different from each"
    " other as possible: common and rare, long and short, with names from many cultures. Each must be allowed by the"
    " argument's schema and make sense when it is said aloud inside a request."
)
WRITE = (
    "You write the requests that people type or say to an assistant. For each task below, write one request, in the"
    " words of the person described, and nothing else. Every value under 'details' must appear in the request, said as"
    " a person would say it: names, titles and other text exactly as given, numbers as digits or words, dates and times"
    " in any natural form; yes/no and named options may be implied. Don't mention tools, functions, parameters or their"
    " names, and don't add details that aren't given. Where 'never_mention' is given, the request must lack that detail"
    " altogether. Where 'wants' has several entries, the person wants all of them in one message. Follow 'style',"
    " 'length', 'language' and 'mistakes'. No two requests may begin alike."
)
LABEL = (
    "You act for a user by calling functions. Call every function that the request needs, once for each thing that is"
    " asked for, with arguments taken from the request: text as the user wrote it, numbers as numbers. Leave out"
    " optional arguments that the request says nothing about. If no function does what is asked for, or the request"
    " doesn't give a required argument, call nothing and say so in one short sentence."
)
OUTSIDE = "something that none of these tools can do, and that isn't about the same things; or small talk"
ALMOST = "something close to what this tool does, that none of the tools under 'can_do' could do"


def value_asks(tools: Sequence[Tool], model: str, **more: Any) -> list[tuple[Ask, Tool, dict[str, Mapping[str, Any]]]]:
    """One request for each tool with open arguments; these by their paths."""
    out = []
    for tool in tools:
        open_ = _open_arguments(tool.parameters, ())
        if open_:
            schema = {
                "type": "object",
                "properties": {
                    path: {"type": "array", "items": {**sub, "description": str(sub.get("description", ""))}}
                    for path, sub in open_.items()
                },
                "required": list(open_),
            }
            arguments = {path: dict(sub) for path, sub in open_.items()}
            text = json.dumps(
                {"tool": tool.name, "does": tool.description, "arguments": arguments}, ensure_ascii=False, indent=1
            )
            out.append(
                (
                    Ask(
                        "values",
                        model,
                        VALUES.format(count=POOL),
                        text,
                        schema=schema,
                        max_tokens=ROOM["values"],
                        prompt=PROMPT,
                        **more,
                    ),
                    tool,
                    open_,
                )
            )
    return out


def _open_arguments(schema: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """The arguments whose values are words of the user's: strings that aren't chosen from a list."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, sub in schema.get("properties", {}).items():
        place = (*path, name)
        kinds = sub.get("type") if isinstance(sub.get("type"), list) else [sub.get("type")]
        if "object" in kinds:
            found |= _open_arguments(sub, place)
        elif "array" in kinds and isinstance(sub.get("items"), Mapping):
            inner = sub["items"]
            if inner.get("type") == "string" and "enum" not in inner:
                found[".".join(place)] = {**inner, "description": sub.get("description", "")}
        elif "string" in kinds and "enum" not in sub:
            found[".".join(place)] = {key: value for key, value in sub.items() if key != "default"} | {"type": "string"}
    return found


def read_values(answer: Reply, tool: Tool, open_: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], list[Any]]:
    """Allowed values by tool and path; empty where the answer is of no use."""
    found = _json(answer)
    out: dict[tuple[str, str], list[Any]] = {}
    for path, schema in open_.items():
        values = found.get(path) if isinstance(found, Mapping) else None
        probe = Tool("probe", "", {"type": "object", "properties": {"value": schema}})
        fine = (
            [
                value.strip()
                for value in values
                if isinstance(value, str) and value.strip() and not _errors(probe, value.strip())
            ]
            if isinstance(values, list)
            else []
        )
        if fine:
            out[tool.name, path] = list(dict.fromkeys(fine))
    return out


def _errors(probe: Tool, value: str) -> list[str]:
    return call_errors(Call("probe", {"value": value}), (probe,))


def write_ask(items: Sequence[Item], model: str, sample: int = 0, **more: Any) -> Ask:
    """Asks for one request for each item, by number."""
    schema = {
        "type": "object",
        "properties": {
            "requests": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"task": {"type": "integer"}, "text": {"type": "string"}},
                    "required": ["task", "text"],
                },
            }
        },
        "required": ["requests"],
    }
    text = "\n".join(json.dumps(_task(index, item), ensure_ascii=False) for index, item in enumerate(items))
    return Ask(
        "write", model, WRITE, text, schema=schema, max_tokens=ROOM["write"], prompt=PROMPT, sample=sample, **more
    )


def _task(index: int, item: Item) -> dict[str, Any]:
    task: dict[str, Any] = {"task": index}
    if item.kind == NONE:
        task |= {"wants": OUTSIDE, "tools": [tool.description or tool.name for tool in item.tools]}
    elif item.kind == NEAR_MISS:
        task |= {
            "wants": ALMOST,
            "tool": item.subjects[0].description or item.subjects[0].name,
            "can_do": [tool.description or tool.name for tool in item.tools],
        }
    else:
        task["wants"] = [
            {
                "what": tool.description or tool.name,
                "tool": tool.name,
                "details": call.arguments,
                "about": _about(tool, call.arguments),
            }
            for tool, call in zip(item.subjects, item.calls, strict=True)
        ]
    if item.kind == MISSING:
        task["never_mention"] = _named(item.subjects[0], str(item.left_out))
    return task | {
        "person": item.persona,
        "style": item.style,
        "length": item.length,
        "language": item.language,
        "mistakes": item.noise,
    }


def _about(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, str]:
    properties = tool.parameters.get("properties", {})
    return {
        name: str(properties[name].get("description"))
        for name in arguments
        if properties.get(name, {}).get("description")
    }


def _named(tool: Tool, argument: str) -> str:
    about = tool.parameters.get("properties", {}).get(argument, {}).get("description")
    return f"{argument} ({about})" if about else argument


def read_requests(answer: Reply, count: int) -> list[str | None]:
    """The written requests in order; None where one is missing."""
    found = _json(answer)
    rows = found.get("requests") if isinstance(found, Mapping) else found
    texts: list[str | None] = [None] * count
    for row in rows if isinstance(rows, list) else []:
        number = row.get("task") if isinstance(row, Mapping) else None
        if isinstance(number, int) and 0 <= number < count and isinstance(row.get("text"), str) and row["text"].strip():
            texts[number] = row["text"].strip()
    return texts


def label_ask(query: str, tools: Sequence[Tool], model: str, sample: int = 0, seed: int = 0, **more: Any) -> Ask:
    """Asks for calls. A sample after the first sees the tools in another order."""
    order = list(tools)
    if sample:
        random.Random(f"{seed}:{sample}:{query}").shuffle(order)
    return Ask(
        "label", model, LABEL, query, tools=tuple(order), max_tokens=ROOM["label"], prompt=PROMPT, sample=sample, **more
    )


def _json(answer: Reply) -> Any:
    if answer.finish != STOP:
        return None
    text = answer.text.strip()
    if text.startswith("```"):  # a fence around it, as some models write
        text = text.strip("`").removeprefix("json")
    try:
        return json.loads(text)
    except ValueError:
        return None
