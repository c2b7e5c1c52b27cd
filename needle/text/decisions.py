"""The codec `decisions`: labels and values, written value by value as `needle.text.leaves` has them, and read back."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from needle.text.jsontext import DecodeError, dump, finite, in_schema_order
from needle.text.leaves import (
    ENTRY,
    ITEM,
    Leaf,
    Path,
    branch_of,
    by_name,
    form_of,
    item_schema,
    leaves,
    nullable,
    numbers,
    value_schema,
)
from needle.text.numbers import number_texts
from needle.text.numberwords import NUMBER_FORM, number
from needle.text.pieces import Said
from needle.text.prompt import KINDS, Codec, PromptError
from needle.text.readings import FORMS, read, read_any
from needle.text.records import Call, Missing, Tool
from needle.text.tokenizer import TextTokenizer

MAX_SAID = 12  # tokens of a request that may say one number, date or time
SYNTAX, NAME, KEY, VALUE = range(len(KINDS))


@dataclass(frozen=True)
class Context:
    """What an answer is read against: the moment, and the request."""

    now: datetime | None = None
    said: Said | None = None


NOTHING = Context()


class DecisionsCodec(Codec):
    """Labels and values alone. With `spoken`, numbers, dates and times are written as the request says them, and read
    by `needle.text.readings`."""

    name = "decisions"

    def __init__(self, tokenizer: TextTokenizer, spoken: bool) -> None:
        self.tokenizer, self.spoken = tokenizer, spoken

    def encode(
        self, calls: Sequence[Call], tools: Sequence[Tool], query: Any, missing: Missing | None = None
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
            ids += self._arguments(call, tools[current], query)
            open_tool += [current] * (len(ids) - len(open_tool))
        if missing is not None and missing.name in index_of:
            written = self.lacking(missing, tools[index_of[missing.name]])
            if written:
                open_tool.append(current)
                current = index_of[missing.name]
                ids += [self.tokenizer.first_tool_label + current, *written]
                open_tool += [current] * len(written)
        ids.append(self.tokenizer.eos)
        open_tool.append(current)
        return tuple(ids), tuple(open_tool)

    def kinds(self, ids: Sequence[int]) -> tuple[int, ...]:
        first, last, eos = self.tokenizer.first_tool_label, self.tokenizer.first_argument_label, self.tokenizer.eos
        return tuple(
            SYNTAX if token == eos else VALUE if token < first else NAME if token < last else KEY for token in ids
        )

    def _arguments(self, call: Call, tool: Tool, query: Any) -> list[int]:
        """The arguments of a call. What can't be written value by value, or would read back as something else (an empty
        object that may be left out), is spelled as a whole."""
        unknown = [name for name in call.arguments if name not in tool.parameters.get("properties", {})]
        if unknown and tool.parameters.get("additionalProperties") is False:
            raise PromptError(f"the answer gives '{unknown[0]}', which isn't an argument of '{tool.name}'")
        writer, ordered = _Writer(self, tool, query), in_schema_order(call.arguments, tool.parameters)
        try:
            ids = writer.members(call.arguments, tool.parameters, ())
            if writer.plain or dump(in_schema_order(self._read(ids, tool, self.at(query)), tool.parameters)) == dump(
                ordered
            ):
                return ids
        except (_UnwritableError, DecodeError):
            pass
        return self.spelled(ordered, query)

    def lacking(self, missing: Missing, tool: Tool) -> list[int]:
        """What says which arguments of a tool are missing; nothing in a codec that can't."""
        return []

    def at(self, query: Any) -> Context:
        """Against what an answer to `query` is read while it is written."""
        return NOTHING

    def opened(self, leaf: Leaf, query: Any) -> None:
        """Hears whose label comes before the next values."""

    def spelled(self, value: Any, query: Any) -> list[int]:
        """A value as JSON, behind the marker that says so."""
        return [self.tokenizer.argument, *self.text(dump(value), query)]

    def text(self, text: str, query: Any) -> list[int]:
        """The tokens of " text"; without the space where the request has them so, since copying is easier than
        spelling."""
        ids = self.tokenizer.encode(" " + text)
        if not _contains(query, ids) and not text.startswith(" "):
            bare = self.tokenizer.encode(text)
            if bare and _contains(query, bare):
                ids = bare
        return list(ids)

    def scalar(self, value: Any, schema: Mapping[str, Any], query: Any, listed: bool = False) -> list[int]:
        """One value that isn't made of others; spelled where its text would be read as something else."""
        form = form_of(schema)
        if value is None and nullable(schema):
            return [self.tokenizer.null]
        if form == "text" and isinstance(value, str) and not (self.spoken and schema.get("format") in FORMS):
            return self.text(value, query)
        if form == "number" and isinstance(value, int | float) and not isinstance(value, bool):
            if self.spoken:
                return self._as_said(value, schema, query)
            forms = [self.text(text, query) for text in ([dump(value)] if listed else number_texts(value))]
            return next((ids for ids in forms if _contains(query, ids)), forms[0])
        if form == "text" and isinstance(value, str):
            return self._as_said(value, schema, query)
        if form == "any" and isinstance(value, str) and same(read_or_none(value, schema), value):
            return self.text(value, query)
        if form == "literal":
            return self.text(dump(in_schema_order(value, schema)), query)
        return self.spelled(value, query)

    def _as_said(self, value: Any, schema: Mapping[str, Any], query: Any) -> list[int]:
        """The tokens of the value where the request has them, else of the shortest part that is read as it."""
        texts = [value] if isinstance(value, str) else number_texts(value)
        forms = [self.text(text, query) for text in texts if same(read_or_none(text, schema), value)]
        plain = next((ids for ids in forms if _contains(query, ids)), None)
        if plain is not None:
            return plain
        inside = [*self.tokenizer.joined(query), False]  # a word
        for size in range(1, MAX_SAID + 1):
            for start in range(len(query) - size + 1):
                if inside[start] or inside[start + size]:
                    continue
                part = query[start : start + size]
                said = self.tokenizer.decode(part).strip()
                form = isinstance(value, str) or re.fullmatch(NUMBER_FORM, said)
                if form and same(read_or_none(said, schema), value):
                    return list(part)
        return forms[0] if forms else self.spelled(value, query)

    # Reading

    def decode(
        self,
        ids: Sequence[int],
        tools: Sequence[Tool],
        now: datetime | None = None,
        left_out: list[str] | None = None,
        said: Said | None = None,
        missing: list[Missing] | None = None,
    ) -> list[Call]:
        at = Context(now, said)
        calls: list[Call] = []
        position = 0
        while position < len(ids):
            label = ids[position]
            if not self.tokenizer.is_tool_label(label) or label - self.tokenizer.first_tool_label >= len(tools):
                raise DecodeError(f"expected the label of a tool at token {position}")
            tool = tools[label - self.tokenizer.first_tool_label]
            end = position + 1
            while end < len(ids) and not self.tokenizer.is_tool_label(ids[end]):
                end += 1
            lacking = self.lacked(ids[position + 1 : end], tool)
            if lacking is None:
                calls.append(Call(tool.name, self._read(ids[position + 1 : end], tool, at, left_out)))
            elif missing is not None:
                missing.append(lacking)
            position = end
        return calls

    def lacked(self, ids: Sequence[int], tool: Tool) -> Missing | None:
        """What `lacking` wrote; None for the arguments of a call."""
        return None

    def _read(
        self, ids: Sequence[int], tool: Tool, at: Context = NOTHING, left_out: list[str] | None = None
    ) -> dict[str, Any]:
        """The arguments of one call."""
        if ids and ids[0] == self.tokenizer.argument:
            value = self._from_json(ids[1:])
            if not isinstance(value, dict):
                raise DecodeError("expected the arguments as an object")
            return value
        known, dropped = leaves(tool), set[Path]()
        arguments: dict[str, Any] = {}
        position = 0
        while position < len(ids):
            if not self.tokenizer.is_argument_label(ids[position]):
                raise DecodeError(f"expected the label of an argument of '{tool.name}'")
            end = position + 1
            while end < len(ids) and ids[end] < self.tokenizer.first_tool_label:
                end += 1
            index = ids[position] - self.tokenizer.first_argument_label
            if index >= len(known):
                raise DecodeError(f"'{tool.name}' has no argument number {index}")
            leaf = known[index]
            try:
                if leaf.path[:1] not in dropped:
                    self._put(arguments, leaf, ids[position + 1 : end], at)
            except (DecodeError, TypeError, KeyError, IndexError, AttributeError) as error:
                why = str(error) if isinstance(error, DecodeError) else "stands where it can't be"
                if left_out is None or leaf.path[0] in tool.parameters.get("required", leaf.path):
                    raise DecodeError(f"/{leaf.name.replace('.', '/')}: {why}") from error
                left_out.append(f"/{leaf.path[0]}: {why}")
                dropped.add(leaf.path[:1])
                arguments.pop(str(leaf.path[0]), None)
            position = end
        _complete(arguments, tool.parameters)
        return arguments

    def _put(self, arguments: dict[str, Any], leaf: Leaf, ids: Sequence[int], at: Context) -> None:
        """Puts a value where its leaf belongs: into the item or the entry that was begun last."""
        path: Path = ("", *leaf.path)
        here: Any = {"": arguments}
        for step, after in itertools.pairwise(path):
            if step == ITEM:
                here = here[-1]
            elif step == ENTRY:
                here = here[next(reversed(here))]
            else:
                here = here.setdefault(step, [] if after == ITEM else {})
        name, form, schema = path[-1], leaf.form, leaf.schema
        items = branch_of(schema, "items") if form == "any" and not ids else None
        if items is not None:  # of a union, another object of its list
            form, schema = "items", items
        if not self._marked(ids) and form == "items":
            item = {} if form_of(schema["items"]) == "object" else self._list(ids, schema["items"], at)
            here.setdefault(name, []).append(item)
        elif not self._marked(ids) and form == "entries":
            cut = next(
                (i for i, token in enumerate(ids) if self._marked([token]) or token == self.tokenizer.item), None
            )
            key = self.words(ids[:cut], at)
            here.setdefault(name, {})[key] = self._entry(() if cut is None else ids[cut:], schema, at)
        else:
            here[name] = self._value(ids, schema, at)

    def _marked(self, ids: Sequence[int]) -> bool:
        """Whether what follows is null, or spelled as JSON."""
        return bool(ids) and ids[0] in (self.tokenizer.null, self.tokenizer.argument)

    def _entry(self, ids: Sequence[int], schema: Mapping[str, Any], at: Context) -> Any:
        own = value_schema(schema)
        form = form_of(own)
        if ids and ids[0] == self.tokenizer.argument:
            return self._from_json(ids[1:])
        if form == "object":
            return {}
        values = self._list(ids, own if form == "list" else {"items": own}, at)
        if form == "list":
            return values
        if len(values) != 1:
            raise DecodeError("expected one value for each key")
        return values[0]

    def _list(self, ids: Sequence[int], schema: Mapping[str, Any], at: Context) -> list[Any]:
        items: list[list[int]] = []
        for token in ids:
            if token == self.tokenizer.item:
                items.append([])
            elif items:
                items[-1].append(token)
            else:
                raise DecodeError("a list's value before its first item")
        return [self._value(item, item_schema(schema, index), at) for index, item in enumerate(items)]

    def _value(self, ids: Sequence[int], schema: Mapping[str, Any], at: Context) -> Any:
        form = form_of(schema)
        if list(ids) == [self.tokenizer.null]:
            return None
        if ids and ids[0] == self.tokenizer.argument:
            return self._from_json(ids[1:])
        if form == "any" and ids and ids[0] == self.tokenizer.item:
            form, schema = "list", branch_of(schema, "list", "items") or {}
        if form == "list":
            return self._list(ids, schema, at)
        text = self.words(ids, at)
        try:
            if form == "text":
                return read(text, schema, at.now) if schema.get("format") in FORMS and "enum" not in schema else text
            if form == "number":
                return finite(number(text))
            if form == "any":
                return read_any(text, schema)
            return json.loads(text, parse_constant=finite, parse_float=finite)
        except (ValueError, RecursionError, OverflowError) as error:
            wanted = {"number": "a number", "text": f"a {schema.get('format')}", "any": "a value that fits"}
            raise DecodeError(f"not {wanted.get(form, 'JSON')}: {text[:80]!r}") from error

    def words(self, ids: Sequence[int], at: Context) -> str:
        """The text that tokens write."""
        return self.tokenizer.decode(ids).removeprefix(" ")

    def _from_json(self, ids: Sequence[int]) -> Any:
        text = self.tokenizer.decode(ids).removeprefix(" ")
        try:
            return json.loads(text, parse_constant=finite, parse_float=finite)
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"not JSON: {text[:80]!r}") from error


class _UnwritableError(ValueError):
    """A value that has no labels to be written with."""


class _Writer:
    """Writes the arguments of one call. `plain` as long as nothing was written that could read back otherwise."""

    def __init__(self, codec: DecisionsCodec, tool: Tool, query: Any) -> None:
        self.codec, self.query = codec, query
        self.leaves, self.numbers = leaves(tool), numbers(tool)
        self.plain = True

    def members(self, value: Mapping[str, Any], schema: Mapping[str, Any], path: Path) -> list[int]:
        ids: list[int] = []
        properties = schema.get("properties", {})
        extra = {name: own for name, own in value.items() if name not in properties}
        if extra:
            self.plain = False
            if properties or path not in self.numbers:
                raise _UnwritableError(next(iter(extra)))
            ids += self._entries(extra, schema, path)
        for name, sub in by_name(schema):
            if name in value:
                ids += self._at(value[name], sub, (*path, name))
        return ids

    def label(self, number: int) -> int:
        self.codec.opened(self.leaves[number], self.query)
        return self.codec.tokenizer.first_argument_label + number

    def _at(self, value: Any, schema: Mapping[str, Any], path: Path) -> list[int]:
        number = self.numbers.get(path)
        if number is None:  # an object: its members have the labels
            self.plain = False
            if value is not None and not isinstance(value, Mapping):
                raise _UnwritableError(path[-1])
            return self.members(value or {}, schema, path)
        label = self.label(number)
        form = self.leaves[number].form
        if value is None and nullable(schema):
            return [label, self.codec.tokenizer.null]
        if form in ("text", "number", "literal"):
            return [label, *self.codec.scalar(value, schema, self.query)]
        self.plain = False
        if form == "any":
            form, schema = self._branch(value, schema)
        if form == "json" or not value or not isinstance(value, list | Mapping):
            return [label, *self._one(value, schema, form)]
        if form == "list" and isinstance(value, list):
            return [label, *self._list(value, schema)]
        if form == "items" and isinstance(value, list):
            return [token for item in value for token in self._item(item, schema["items"], path, label)]
        if form == "entries" and isinstance(value, Mapping):
            return self._entries(value, schema, path)
        if form == "object" and isinstance(value, Mapping):
            return self.members(value, schema, path)
        return [label, *self.codec.spelled(in_schema_order(value, schema), self.query)]

    def _branch(self, value: Any, schema: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """How a value of a union, or of no type, is written, and what schema it is of."""
        forms = ("object",) if isinstance(value, Mapping) else ("list", "items") if isinstance(value, list) else ()
        branch = branch_of(schema, *forms)
        if branch is not None:
            return form_of(branch), branch
        if isinstance(value, list) and "anyOf" not in schema:
            return "list", {}
        return "any", schema

    def _one(self, value: Any, schema: Mapping[str, Any], form: str) -> list[int]:
        if form == "list" and value == []:
            return [] if "anyOf" not in schema and schema.get("type") else self.codec.spelled([], self.query)
        if form in ("json", "items", "entries", "list") or isinstance(value, list | Mapping):
            return self.codec.spelled(in_schema_order(value, schema), self.query)
        return self.codec.scalar(value, schema, self.query)

    def _list(self, value: list[Any], schema: Mapping[str, Any]) -> list[int]:
        ids: list[int] = []
        for index, item in enumerate(value):
            own = item_schema(schema, index)
            ids += [self.codec.tokenizer.item, *self.codec.scalar(item, own, self.query, listed=True)]
        return ids

    def _item(self, value: Any, schema: Mapping[str, Any], path: Path, label: int) -> list[int]:
        if isinstance(value, list):
            return [label, *self._list(value, schema)]
        if not isinstance(value, Mapping):
            raise _UnwritableError(path[-1])
        return [label, *self.members(value, schema, (*path, ITEM))]

    def _entries(self, value: Mapping[str, Any], schema: Mapping[str, Any], path: Path) -> list[int]:
        own, ids = value_schema(schema), []
        for key, item in value.items():
            ids += [self.label(self.numbers[path]), *self.codec.text(key, self.query)]
            form = form_of(own)
            if form == "object" and isinstance(item, Mapping):
                ids += self.members(item, own, (*path, ENTRY))
            elif form == "list" and isinstance(item, list) and item:
                ids += self._list(item, own)
            elif form in ("list", "items", "entries", "object") or isinstance(item, list | Mapping):
                ids += self.codec.spelled(in_schema_order(item, own), self.query)
            else:
                ids += [self.codec.tokenizer.item, *self.codec.scalar(item, own, self.query, listed=True)]
        return ids


def _contains(query: Sequence[int], ids: Sequence[int]) -> bool:
    if not ids:
        return False
    first, size = ids[0], len(ids)
    return any(query[i] == first and tuple(query[i : i + size]) == tuple(ids) for i in range(len(query) - size + 1))


def same(one: Any, two: Any) -> bool:
    """Equal, and of the same type: 5 isn't 5.0, nor 1 true."""
    return type(one) is type(two) and bool(one == two)


def read_or_none(text: str, schema: Mapping[str, Any]) -> Any:
    try:
        return read_any(text, schema) if form_of(schema) == "any" else read(text, schema)
    except (ValueError, OverflowError):
        return None


def _complete(value: Any, schema: Mapping[str, Any]) -> None:
    """Adds the required objects of which no member was named."""
    if isinstance(value, dict):
        for name, sub in schema.get("properties", {}).items():
            if name not in value and name in schema.get("required", ()) and form_of(sub) == "object":
                value[name] = None if nullable(sub) else {}
            if name in value:
                _complete(value[name], sub)
        for name in value.keys() - schema.get("properties", {}).keys():
            _complete(value[name], value_schema(schema))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _complete(item, item_schema(schema, index))
