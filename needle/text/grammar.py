"""What a constrained answer may be: llguidance grammars for the declared tools, in either codec.

A grammar allows what the codec could have written: declared tools, their arguments, members of their enums, values of
the right shape. Whether what was said is within bounds, fits a pattern or is a whole number, the engine checks on the
finished answer: under a grammar a student would cut or stretch it until it fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
from cachetools import LRUCache
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from needle.text.jsontext import dump
from needle.text.leaves import (
    ENTRY,
    ITEM,
    Path,
    branch_of,
    by_name,
    choices,
    form_of,
    item_schema,
    leaves,
    nullable,
    numbers,
    solid_type,
    value_schema,
)
from needle.text.numbers import PLAIN
from needle.text.numberwords import NUMBER_FORM
from needle.text.pieces import Said
from needle.text.pointing import number_places
from needle.text.readings import FORMS
from needle.text.records import Tool, ToolSchemaError
from needle.text.tokenizer import MEMBER_LABELS, TextTokenizer, argument_label, tool_label

SPACE = '" "?'
READY = 128  # sets of tools whose matcher is kept, to be copied for each answer
MANY = 50  # enum members beyond which they are one terminal: a parser's row holds 2,000 items
ANY = r"(.|\n)*"
SPECIAL = re.compile(r"[\\.^$|?*+()\[\]{}/]")
SHAPE = ("type", "enum", "properties", "required", "additionalProperties", "prefixItems", "items", "anyOf")
SCALARS = ("text", "number", "literal")
TEXT = f"/ ?({ANY})/"


class GrammarError(RuntimeError):
    """A grammar that can't go on in mid-answer, being too large; the answer can't be finished."""


class Grammar:
    """Compiles tools to matchers for one tokenizer and codec; what was compiled is kept, and copied for each answer."""

    def __init__(self, tokenizer: TextTokenizer, codec: str) -> None:
        self.codec = codec
        self.tokenizer = tokenizer
        self._ll = LLTokenizer(tokenizer.json, eos_token=tokenizer.eos)
        self._limits = LLParserLimits()
        self._ready: LRUCache[tuple[Tool, ...], LLMatcher] = LRUCache(READY)
        self._lock = Lock()

    def matcher(self, tools: Sequence[Tool], said: Said | None = None) -> Matcher:
        """A matcher at the start of an answer to `said`, if it points at that; raises `ToolSchemaError` for a schema
        that no grammar can express."""
        with self._lock:
            matcher = self._ready.get(tuple(tools))
        if matcher is None:
            text = LLMatcher.grammar_from_lark(grammar_text(self.codec, tools, self.tokenizer))
            matcher = LLMatcher(self._ll, text, log_level=0, limits=self._limits)
            if matcher.is_error():
                raise ToolSchemaError(*_culprit(self, tools, matcher.get_error()))
            with self._lock:
                self._ready[tuple(tools)] = matcher
        if said is not None:
            return PlaceMatcher(matcher.deep_copy(), self.tokenizer, tools, said)
        return Matcher(matcher.deep_copy(), self.tokenizer.size)


class Matcher:
    """Walks one answer. `allowed()` is the mask of next tokens, [V] of bool."""

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((size + 31) // 32, dtype=np.int32)
        self._size = size

    def allowed(self) -> NDArray[np.bool_]:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return np.unpackbits(self._bits.view(np.uint8), count=self._size, bitorder="little").view(np.bool_)

    def consume(self, token: int) -> None:
        """Raises `GrammarError` for a grammar that gives up."""
        accepted = self._matcher.consume_token(token)
        self._check()
        assert accepted, f"token {token} was chosen though the grammar forbids it"

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar failed in mid-answer: {self._matcher.get_error().splitlines()[0][:200]}")

    def accepts(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` the grammar allows from here; nothing is consumed."""
        return int(self._matcher.validate_tokens(list(tokens)))


class PlaceMatcher(Matcher):
    """Also lets a value end only behind its beginning, within the request, and a number be nothing but one."""

    def __init__(self, matcher: LLMatcher, tokenizer: TextTokenizer, tools: Sequence[Tool], said: Said) -> None:
        super().__init__(matcher, tokenizer.size)
        self._tokenizer, self._tools, self._said = tokenizer, tools, said
        self._tool: Tool | None = None
        self._number = False  # whether the open argument is one
        self._first = -1  # the piece that the value begins with, while it lacks its end

    def allowed(self) -> NDArray[np.bool_]:
        mask = super().allowed()
        first, end = self._tokenizer.first_place, self._tokenizer.first_tool_label
        if not mask[first:end].any():
            return mask
        places = np.zeros(end - first, dtype=np.bool_)
        if self._number:
            found = [place for place in number_places(self._said) if place[1] < len(places)]
            places[[b if self._first >= 0 else a for a, b in found if self._first in (-1, a)]] = True
        else:
            places[max(self._first, 0) : len(self._said.offsets)] = True
        mask = mask.copy()
        mask[first:end] &= places
        return mask

    def consume(self, token: int) -> None:
        super().consume(token)
        names = self._tokenizer
        if names.first_place <= token < names.first_tool_label:
            self._first = token - names.first_place if self._first < 0 else -1
        elif names.is_tool_label(token):
            self._tool = self._tools[token - names.first_tool_label]
        elif names.is_argument_label(token) and self._tool is not None:
            self._number = leaves(self._tool)[token - names.first_argument_label].form == "number"


def _culprit(grammar: Grammar, tools: Sequence[Tool], message: str) -> tuple[str, str]:
    """Finds the tool that doesn't compile by itself, so that the error can name it."""
    for index, tool in enumerate(tools):
        text = grammar_text(grammar.codec, [tool], grammar.tokenizer)
        if LLMatcher(grammar._ll, LLMatcher.grammar_from_lark(text), log_level=0).is_error():
            return (
                f"/{index}/parameters",
                f"the schema of '{tool.name}' can't be held by a grammar: {message.splitlines()[0][:200]}",
            )
    return "", f"these tools together are too large for a grammar: {message.splitlines()[0][:200]}"


def grammar_text(codec: str, tools: Sequence[Tool], tokenizer: TextTokenizer | None = None) -> str:
    """The grammar of the declared tools in llguidance's Lark dialect; the codec `spans` needs its `tokenizer`."""
    rules = _Rules()
    if codec == "json":
        _json_rules(rules, tools)
    elif codec == "spans" and tokenizer is not None:
        place = f"<[{tokenizer.first_place}-{tokenizer.first_tool_label - 1}]>"
        rules.place, rules.member = f"{place} {place}", tokenizer.first_member
        _decision_rules(rules, tools, spoken=True)
    else:
        _decision_rules(rules, tools, spoken=codec == "decisions-2")
    return rules.text()


class _Rules:
    """Collects named rules; equal bodies share one name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, str] = {}
        self.place = ""  # two places of the request, if values may be that
        self.member = 0  # the label of an enum's first member

    def add(self, body: str, terminal: bool = False) -> str:
        name = self.names.get(body)
        if name is None:
            name = f"{'T' if terminal else 'r'}{len(self.names)}"
            self.names[body] = name
            self.lines.append(f"{name}: {body}")
        return name

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def _json_rules(rules: _Rules, tools: Sequence[Tool]) -> None:
    calls = []
    for tool in tools:
        head = dump({"name": tool.name, "arguments": {}}).removesuffix("{}}")
        calls.append(f'{_literal(head)} {rules.add(_embedded(tool.parameters))} "}}"')
    if not calls:
        rules.lines.append('start: "[]"')
        return
    call = rules.add(" | ".join(calls))
    rules.lines.append(f'start: "[]" | "[" {call} ("," {call})* "]"')


def _decision_rules(rules: _Rules, tools: Sequence[Tool], spoken: bool) -> None:
    if not tools:
        rules.lines.append('start: ""')
        return
    calls = []
    for index, tool in enumerate(tools):
        body = _Decisions(rules, tool, spoken).arguments()
        lacking = [f"<{argument_label(number)[1:-1]}>" for number, leaf in enumerate(leaves(tool)) if leaf.required]
        if rules.place and lacking:
            body = f"({body} | (({' | '.join(lacking)}) <query>)+)"
        calls.append(rules.add(f"<{tool_label(index)[1:-1]}> {body}".strip()))
    rules.lines.append(f"start: ({' | '.join(calls)})*")


class _Decisions:
    """The rules of one tool's arguments, form by form as `needle.text.leaves` has them."""

    def __init__(self, rules: _Rules, tool: Tool, spoken: bool) -> None:
        self.rules, self.tool, self.spoken = rules, tool, spoken
        self.leaves, self.numbers = leaves(tool), numbers(tool)
        self.choices: Sequence[Any] = ()  # of the argument that is open

    def arguments(self) -> str:
        schema = self.tool.parameters
        if () in self.numbers:
            return self.at(schema, (), False)
        body = self.members(schema, ())
        # Only what is made of several values may need to be spelled as a whole.
        plain = all(len(leaf.path) == 1 and leaf.form in (*SCALARS, "list") for leaf in self.leaves)
        return body if plain else f"(({body}) | {self.spelled({'type': 'object'})})"

    def members(self, schema: Mapping[str, Any], path: Path) -> str:
        required = schema.get("required", ())
        return " ".join(self.at(sub, (*path, name), name in required) for name, sub in by_name(schema))

    def at(self, schema: Mapping[str, Any], path: Path, required: bool) -> str:
        number = self.numbers.get(path)
        if number is not None:
            self.choices = choices(self.leaves[number].schema)
        if number is None:  # an object
            body = f"({self.members(schema, path)})"
            return body if required and not nullable(schema) else body + "?"
        form = self.leaves[number].form
        label = f"<{argument_label(number)[1:-1]}>"
        if form in SCALARS:
            return f"({label} {self.value(schema)})" + "?" * (not required)
        options = [f"{label} {self.spelled(schema if form == 'json' else {})}"]
        if nullable(schema):
            options.append(f"{label} <null>")
        if form == "list":
            options = [f"{label} {self.list(schema)}", *options[1:]]
        elif form == "items":
            options.append(f"({label} {self.item(schema['items'], path)})+")
        elif form == "entries":
            options.append(f"({label} {self.said(TEXT)} {self.entry(schema, path)})+")
        elif form == "any":
            options.append(f"{label} {self.value(schema)}")
            listed = branch_of(schema, "list") or ({} if "anyOf" not in schema else None)
            if listed is not None:
                options.append(f"{label} ({self.list(listed)})")
            items, members = branch_of(schema, "items"), branch_of(schema, "object")
            if items is not None:
                options.append(f"({label} {self.item(items['items'], path)})+")
            if members is not None:
                options.append(f"({self.members(members, path)})")
        return f"({' | '.join(options)})" + "?" * (not required)

    def item(self, schema: Mapping[str, Any], path: Path) -> str:
        return f"({self.members(schema, (*path, ITEM))})" if form_of(schema) == "object" else self.list(schema)

    def entry(self, schema: Mapping[str, Any], path: Path) -> str:
        own = value_schema(schema)
        form = form_of(own)
        spelled = self.spelled({})
        if form == "object":
            return f"({spelled} | ({self.members(own, (*path, ENTRY))}))"
        if form == "list":
            return f"({spelled} | {self.list(own)})"
        return spelled if form in ("items", "entries") else f"({spelled} | <item> {self.scalar(own)})"

    def list(self, schema: Mapping[str, Any]) -> str:
        places = [item_schema(schema, index) for index in range(len(schema.get("prefixItems", ())))]
        rest = schema.get("items", {})
        tail = "" if rest is False else f"(<item> {self.scalar(rest)})*"
        for own in reversed(places):
            tail = f"(<item> {self.scalar(own)} {tail})?"
        return tail or '""'

    def scalar(self, schema: Mapping[str, Any]) -> str:
        """A value in a list or a map; what is made of several is spelled there."""
        if form_of(schema) in SCALARS:
            return self.value(schema, listed=True)
        own = [self.value(schema, listed=True)] if form_of(schema) == "any" else []
        null = ["<null>"] if nullable(schema) else []
        return f"({' | '.join([self.spelled({}), *own, *null])})"

    def spelled(self, schema: Mapping[str, Any]) -> str:
        return f"<arg> {SPACE} {self.rules.add(_embedded(schema))}"

    def value(self, schema: Mapping[str, Any], listed: bool = False) -> str:
        if schema.get("enum") == [None]:
            return "<null>"
        body = self.solid(schema, listed)
        if self.spoken and schema.get("format") in FORMS and "enum" not in schema:
            body = f"({body} | {self.spelled({})})"
        return f"({body} | <null>)" if form_of(schema) != "any" and nullable(schema) else body

    def said(self, terminal: str) -> str:
        """A text: a part of the request, or spelled."""
        text = self.rules.add(terminal, terminal=True)
        return f"({self.rules.add(self.rules.place)} | {text})" if self.rules.place else text

    def solid(self, schema: Mapping[str, Any], listed: bool) -> str:
        form = form_of(schema)
        own = schema.get("enum", ())
        values = [value for value in own if value is not None]
        if self.rules.place and values and own == self.choices and len(own) <= MEMBER_LABELS:
            label = self.rules.member
            found = [f"<[{label + index}]>" for index, value in enumerate(own) if value is not None]
            return found[0] if len(found) == 1 else f"({' | '.join(found)})"
        if form == "number":
            said = PLAIN if listed and not self.spoken else NUMBER_FORM
            return self.said("/ ?(" + said.replace("/", r"\/") + ")/")
        if form == "literal" and solid_type(schema) == "boolean" and not values:
            values = [False, True]
        if form == "literal" and solid_type(schema) == "null":
            values = [None]
        if form == "literal":
            members = [dump(value) for value in values] or ["{}"]
        elif values and form == "text":
            members = values
        else:
            return self.said(TEXT)
        if len(members) > MANY:
            return self.rules.add(f"/{'|'.join(_before(one, ' ?') + _exactly(one) for one in members)}/", terminal=True)
        return f"({' | '.join(_before(one, SPACE) + ' ' + _literal(one) for one in members)})"


def _before(member: str, space: str) -> str:
    """What stands before a member: a space, which it may lack unless the member has one itself."""
    return space.removesuffix("?") if member.startswith(" ") else space


def _exactly(text: str) -> str:
    """A regular expression, between slashes, for this text alone."""
    return SPECIAL.sub(r"\\\g<0>", text).replace("\n", r"\n").replace("\r", r"\r").replace("\x7f", r"\x7f")


def _embedded(schema: Mapping[str, Any]) -> str:
    """A JSON Schema as a rule: compact, exactly as the codec writes it."""
    return "%json " + json.dumps(
        {"x-guidance": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}, **_closed(schema)}
    )


def _closed(schema: Any) -> Any:
    """What has a say in how an answer is built. Bounds, lengths and patterns have none: under a grammar they would cut
    or stretch what was said until it fits, so they are checked on the finished answer, as whole numbers are."""
    if not isinstance(schema, Mapping):
        return schema
    return {key: _closed_member(key, value) for key, value in schema.items() if key in SHAPE}


def _closed_member(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: _closed(sub) for name, sub in value.items()}
    if key in ("anyOf", "prefixItems"):
        return [_closed(sub) for sub in value]
    if key == "type":
        kinds = ["number" if kind == "integer" else kind for kind in (value if isinstance(value, list) else [value])]
        return kinds if len(kinds) > 1 else kinds[0]
    return _closed(value) if key in ("items", "additionalProperties") else value


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
