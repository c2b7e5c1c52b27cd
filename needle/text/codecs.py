"""Two ways to write calls as target tokens: `json`, the compact text, and `decisions`, what the text can't do without.

json        [{"name":"set_alarm","arguments":{"time":"7 am"}}]
decisions   <tool_0> <arg_0> 7 am          (the program renders the JSON)

In `decisions` a label points at a tool of the record or at an argument of the tool named last. A string is written raw;
a number as the request has it (`10,000`; in lists, whose commas part the items, as JSON), else as JSON; other values as
JSON; a list of scalars as `<item>` before each; null as `<null>`. One space before a value isn't part of it. Of an
object that is opened (`needle.text.prompt.opens`) only the members are written: one that is required and has none is
`{}`, or null if it may be.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from needle.text.numbers import is_number, number_texts, read_number
from needle.text.prompt import KINDS, Codec, Leaf, PromptError, leaves, opens
from needle.text.records import Call, Tool
from needle.text.tokenizer import TextTokenizer

CODECS = ("decisions", "json")
SYNTAX, NAME, KEY, VALUE = range(len(KINDS))


class DecodeError(ValueError):
    """Target tokens that aren't an answer."""


def build_codec(name: str, tokenizer: TextTokenizer) -> Codec:
    if name == "decisions":
        return DecisionsCodec(tokenizer)
    if name == "json":
        return JsonCodec(tokenizer)
    raise ValueError(f"codec '{name}' is unknown; expected one of {', '.join(CODECS)}")


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def in_schema_order(value: Any, schema: Mapping[str, Any]) -> Any:
    """The same value with the members of every object in the order in which its schema declares them."""
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        known = [name for name in properties if name in value]
        rest = [name for name in value if name not in properties]
        return {name: in_schema_order(value[name], properties.get(name, {})) for name in known + rest}
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [in_schema_order(item, schema["items"]) for item in value]
    return value


def value_form(schema: Mapping[str, Any]) -> str:
    """How `decisions` writes a value: 'raw' text, 'json' text, or 'list' of one of these behind `<item>`s."""
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if (
        kind == "array"
        and isinstance(schema.get("items"), Mapping)
        and value_form(schema["items"]) != "list"
        and not nullable(schema["items"])
    ):
        return "list"
    values = [value for value in schema.get("enum", []) if value is not None]
    if (kind == "string" or (kind is None and values)) and all(isinstance(value, str) for value in values):
        return "raw"
    return "json"


def nullable(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    return (isinstance(kind, list) and "null" in kind) or (kind is None and None in schema.get("enum", []))


class JsonCodec(Codec):
    """Compact JSON in schema order, tokenised piece by piece: strings apart from the punctuation around them."""

    name = "json"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(
        self, calls: Sequence[Call], tools: Sequence[Tool], query: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        schemas = {tool.name: tool.parameters for tool in tools}
        rows = [
            {"name": call.name, "arguments": in_schema_order(call.arguments, schemas.get(call.name, {}))}
            for call in calls
        ]
        ids: list[int] = []
        for piece in _json_pieces(dump(rows)):
            ids.extend(self.tokenizer.encode(piece))
        ids.append(self.tokenizer.eos)
        return tuple(ids), (-1,) * len(ids)

    def kinds(self, ids: Sequence[int]) -> tuple[int, ...]:
        pieces = [self.tokenizer.raw(token) if token != self.tokenizer.eos else "" for token in ids]
        marks = _json_marks("".join(pieces))
        out, start = [], 0
        for piece in pieces:
            out.append(max(marks[start : start + len(piece)], default=SYNTAX))
            start += len(piece)
        return tuple(out)

    def decode(self, ids: Sequence[int], tools: Sequence[Tool]) -> list[Call]:
        text = self.tokenizer.decode(ids)
        try:
            rows = json.loads(text)
            return [Call(str(row["name"]), dict(row["arguments"])) for row in rows]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DecodeError(f"not a list of calls: {text[:80]!r}") from error


def _json_pieces(text: str) -> list[str]:
    """Cuts JSON text so that the inside of each string is a piece of its own."""
    pieces: list[str] = []
    start = 0
    inside = escaped = False
    for index, char in enumerate(text):
        if inside and escaped:
            escaped = False
        elif inside and char == "\\":
            escaped = True
        elif char == '"':
            cut = index if inside else index + 1
            pieces.append(text[start:cut])
            start = cut
            inside = not inside
    pieces.append(text[start:])
    return [piece for piece in pieces if piece]


def _json_marks(text: str) -> list[int]:
    """For each character of a JSON list of calls, an index of `KINDS`."""
    marks = [SYNTAX] * len(text)
    depth = 0  # of braces: 1 is a call, 2 its arguments
    naming = False  # the next string is a tool's name
    for found in re.finditer(r'"((?:[^"\\]|\\.)*)"(:)?|[{}]|[^{}\[\],:"]+', text):
        symbol = found[0]
        depth += (symbol == "{") - (symbol == "}")
        if symbol in "{}":
            continue
        inside = found.span(1) if symbol[0] == '"' else found.span(0)
        is_key = bool(found[2])
        kind = (KEY if depth > 1 else SYNTAX) if is_key else NAME if naming else VALUE
        naming = is_key and depth == 1 and found[1] == "name"
        marks[slice(*inside)] = [kind] * (inside[1] - inside[0])
    return marks


class DecisionsCodec(Codec):
    """Labels and values alone."""

    name = "decisions"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(
        self, calls: Sequence[Call], tools: Sequence[Tool], query: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        index_of = {tool.name: index for index, tool in enumerate(tools)}
        ids: list[int] = []
        open_tool: list[int] = []
        current = -1
        for call in calls:
            if call.name not in index_of:
                raise PromptError(f"the answer calls '{call.name}', which isn't among the tools")
            open_tool.append(current)  # a call's own label is chosen while the call before it is still open
            current = index_of[call.name]
            ids.append(self.tokenizer.first_tool_label + current)
            self._encode_arguments(call, tools[current], query, ids)
            open_tool += [current] * (len(ids) - len(open_tool))
        ids.append(self.tokenizer.eos)
        open_tool.append(current)
        return tuple(ids), tuple(open_tool)

    def kinds(self, ids: Sequence[int]) -> tuple[int, ...]:
        first, last, eos = self.tokenizer.first_tool_label, self.tokenizer.first_argument_label, self.tokenizer.eos
        return tuple(
            SYNTAX if token == eos else VALUE if token < first else NAME if token < last else KEY for token in ids
        )

    def _encode_arguments(self, call: Call, tool: Tool, query: Sequence[int], ids: list[int]) -> None:
        left = dict(call.arguments)
        for position, leaf in enumerate(leaves(tool)):
            found, value = _get(call.arguments, leaf.path)
            left.pop(leaf.path[0], None)
            if found:
                ids.append(self.tokenizer.first_argument_label + position)
                ids.extend(self._encode_value(value, leaf.schema, query))
        if left:
            raise PromptError(f"the answer gives '{next(iter(left))}', which isn't an argument of '{tool.name}'")
        _check_empty(call.arguments, tool.parameters)

    def _encode_value(
        self, value: Any, schema: Mapping[str, Any], query: Sequence[int], listed: bool = False
    ) -> list[int]:
        form = value_form(schema)
        if value is None and nullable(schema):
            return [self.tokenizer.null]
        if form == "list":
            ids: list[int] = []
            for item in value:
                ids += [self.tokenizer.item, *self._encode_value(item, schema["items"], query, listed=True)]
            return ids
        if form == "raw":
            if not isinstance(value, str):
                raise PromptError(f"expected a string for a string argument, got {dump(value)[:40]}")
            return self._text(value, query)
        if is_number(schema) and not listed and isinstance(value, int | float) and not isinstance(value, bool):
            forms = [self._text(text, query) for text in number_texts(value, schema)]
            return next((ids for ids in forms if _contains(query, ids)), forms[0])
        return self._text(dump(in_schema_order(value, schema)), query)

    def _text(self, text: str, query: Sequence[int]) -> list[int]:
        """The tokens of " text"; without the space where the request has them so, since copying is easier than
        spelling."""
        ids = self.tokenizer.encode(" " + text)
        if not _contains(query, ids) and not text.startswith(" "):
            bare = self.tokenizer.encode(text)
            if bare and _contains(query, bare):
                ids = bare
        return list(ids)

    def decode(self, ids: Sequence[int], tools: Sequence[Tool]) -> list[Call]:
        calls: list[Call] = []
        position = 0
        while position < len(ids):
            label = ids[position]
            if not self.tokenizer.is_tool_label(label) or label - self.tokenizer.first_tool_label >= len(tools):
                raise DecodeError(f"expected the label of a tool at token {position}")
            tool = tools[label - self.tokenizer.first_tool_label]
            arguments: dict[str, Any] = {}
            position += 1
            while position < len(ids) and self.tokenizer.is_argument_label(ids[position]):
                end = position + 1
                while end < len(ids) and ids[end] < self.tokenizer.first_tool_label:
                    end += 1
                found = leaves(tool)
                index = ids[position] - self.tokenizer.first_argument_label
                if index >= len(found):
                    raise DecodeError(f"'{tool.name}' has no argument number {index}")
                _set(arguments, found[index], self._decode_value(ids[position + 1 : end], found[index].schema))
                position = end
            _complete(arguments, tool.parameters)
            calls.append(Call(tool.name, arguments))
        return calls

    def _decode_value(self, ids: Sequence[int], schema: Mapping[str, Any]) -> Any:
        if list(ids) == [self.tokenizer.null]:
            return None
        if value_form(schema) == "list":
            items: list[list[int]] = []
            for token in ids:
                if token == self.tokenizer.item:
                    items.append([])
                elif items:
                    items[-1].append(token)
                else:
                    raise DecodeError("a list's value before its first item")
            return [self._decode_value(item, schema["items"]) for item in items]
        text = self.tokenizer.decode(ids).removeprefix(" ")
        if value_form(schema) == "raw":
            return text
        try:
            return (
                _finite(read_number(text))
                if is_number(schema)
                else json.loads(text, parse_constant=_finite, parse_float=_finite)
            )
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"not {'a number' if is_number(schema) else 'JSON'}: {text[:80]!r}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} is no JSON value")
    return float(value)


def _contains(query: Sequence[int], ids: Sequence[int]) -> bool:
    if not ids:
        return False
    first, size = ids[0], len(ids)
    return any(query[i] == first and tuple(query[i : i + size]) == tuple(ids) for i in range(len(query) - size + 1))


def _get(arguments: Mapping[str, Any], path: tuple[str, ...]) -> tuple[bool, Any]:
    value: Any = arguments
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return False, None
        value = value[name]
    return True, value


def _opened(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """The members that are opened objects: name, schema, whether one without members is there all the same."""
    return [
        (name, sub, name in schema.get("required", ()))
        for name, sub in schema.get("properties", {}).items()
        if opens(sub)
    ]


def _complete(arguments: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Adds the required objects of which no member was named."""
    for name, sub, required in _opened(schema):
        if name not in arguments and required:
            arguments[name] = None if nullable(sub) else {}
        if isinstance(arguments.get(name), dict):
            _complete(arguments[name], sub)


def _check_empty(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Refuses what reads back as something else: null or `{}` for an object that may be left out, `{}` for one that may
    be null."""
    for name, sub, required in _opened(schema):
        if name not in arguments:
            continue
        value = arguments[name]
        if value is None or value == {}:
            written = required and (value is None) == nullable(sub)
            if not written:
                raise PromptError(
                    f"the answer gives '{name}' as {dump(value)}, which can't be told from"
                    f" {'null' if required else 'leaving it out'}"
                )
        elif isinstance(value, Mapping):
            _check_empty(value, sub)


def _set(arguments: dict[str, Any], leaf: Leaf, value: Any) -> None:
    for name in leaf.path[:-1]:
        arguments = arguments.setdefault(name, {})
    arguments[leaf.path[-1]] = value
