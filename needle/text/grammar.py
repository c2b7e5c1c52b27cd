"""What a constrained answer may be: llguidance grammars for the declared tools, in either codec.

A grammar allows exactly the answers that the codec could have written for calls which the tools accept, so that a
student under it always answers with declared tools and schema-valid arguments. What llguidance can't express
(a pattern together with a length, say) is checked again on the finished answer by the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cachetools import LRUCache
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from needle.text.codecs import dump, nullable, value_form
from needle.text.numbers import BOUNDS, ENDLESS, decimal_comma, is_number, with_commas
from needle.text.prompt import by_name, leaves, opens
from needle.text.records import Tool
from needle.text.tokenizer import TextTokenizer, argument_label, tool_label
from needle.text.toolschema import ToolSchemaError

SPACE = '" "?'
READY = 128  # sets of tools whose matcher is kept, to be copied for each answer
MANY = 50  # enum members beyond which they are one terminal: a parser's row holds 2,000 items
ANY = r"(.|\n)*"
SPECIAL = re.compile(r"[\\.^$|?*+()\[\]{}/]")
UNCHECKED = {
    "description",
    "default",
    "uniqueItems",
    "minProperties",
    "maxProperties",
}  # the last three are checked on the finished answer


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

    def matcher(self, tools: Sequence[Tool]) -> Matcher:
        """A matcher at the start of an answer; raises `ToolSchemaError` for a schema that no grammar can express."""
        matcher = self._ready.get(tuple(tools))
        if matcher is None:
            text = LLMatcher.grammar_from_lark(grammar_text(self.codec, tools))
            matcher = LLMatcher(self._ll, text, log_level=0, limits=self._limits)
            if matcher.is_error():
                raise ToolSchemaError(*_culprit(self, tools, matcher.get_error()))
            self._ready[tuple(tools)] = matcher
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


def _culprit(grammar: Grammar, tools: Sequence[Tool], message: str) -> tuple[str, str]:
    """Finds the tool that doesn't compile by itself, so that the error can name it."""
    for index, tool in enumerate(tools):
        text = grammar_text(grammar.codec, [tool])
        if LLMatcher(grammar._ll, LLMatcher.grammar_from_lark(text), log_level=0).is_error():
            return (
                f"/{index}/parameters",
                f"the schema of '{tool.name}' can't be held by a grammar: {message.splitlines()[0][:200]}",
            )
    return "", f"these tools together are too large for a grammar: {message.splitlines()[0][:200]}"


def grammar_text(codec: str, tools: Sequence[Tool]) -> str:
    """The grammar of the declared tools in llguidance's Lark dialect."""
    rules = _Rules()
    if codec == "json":
        _json_rules(rules, tools)
    else:
        _decision_rules(rules, tools)
    return rules.text()


class _Rules:
    """Collects named rules; equal bodies share one name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, str] = {}

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


def _decision_rules(rules: _Rules, tools: Sequence[Tool]) -> None:
    if not tools:
        rules.lines.append('start: ""')
        return
    calls = []
    for index, tool in enumerate(tools):
        position = {leaf.path: number for number, leaf in enumerate(leaves(tool))}
        body = _object(rules, tool.parameters, (), position)
        calls.append(rules.add(f"<{tool_label(index)[1:-1]}> {body}".strip()))
    rules.lines.append(f"start: ({' | '.join(calls)})*")


def _object(
    rules: _Rules, schema: Mapping[str, Any], path: tuple[str, ...], position: Mapping[tuple[str, ...], int]
) -> str:
    parts = []
    for name, sub in by_name(schema):
        here = (*path, name)
        if opens(sub):
            part = f"({_object(rules, sub, here, position)})"
        else:
            part = f"(<{argument_label(position[here])[1:-1]}> {_value(rules, sub)})"
        needed = name in schema.get("required", ()) and not (opens(sub) and nullable(sub))
        parts.append(part if needed else part + "?")
    return " ".join(parts)


def _value(rules: _Rules, schema: Mapping[str, Any], listed: bool = False) -> str:
    if schema.get("enum") == [None]:
        return "<null>"
    body = _solid_value(rules, schema, listed)
    return f"({body} | <null>)" if nullable(schema) else body


def _solid_value(rules: _Rules, schema: Mapping[str, Any], listed: bool) -> str:
    form = value_form(schema)
    if form == "list":
        item = f"(<item> {_value(rules, schema['items'], listed=True)})"
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if high == 0:
            return '""'
        return f"{item}{{{low},{'' if high is None else high}}}"
    if is_number(schema):
        return _number(rules, schema, listed)
    if form == "json":
        solid = {**schema, "type": schema["type"][0]} if isinstance(schema.get("type"), list) else dict(schema)
        if None in solid.get("enum", []) and nullable(schema):
            solid["enum"] = [value for value in solid["enum"] if value is not None]
        return f"{SPACE} {rules.add(_embedded(solid))}"
    if "enum" in schema:
        members = [value for value in schema["enum"] if value is not None]
        if len(members) > MANY:
            return rules.add(
                f"/{'|'.join(_before(member, ' ?') + _exactly(member) for member in members)}/", terminal=True
            )
        return f"({' | '.join(_before(member, SPACE) + ' ' + _literal(member) for member in members)})"
    return rules.add(_string_terminal(schema), terminal=True)


def _before(member: str, space: str) -> str:
    """What stands before a member: a space, which it may lack unless the member has one itself."""
    return space.removesuffix("?") if member.startswith(" ") else space


def _number(rules: _Rules, schema: Mapping[str, Any], listed: bool) -> str:
    """As `needle.text.numbers` has it; in a list, whose commas part the items, without commas."""
    kind = schema["type"][0] if isinstance(schema["type"], list) else schema["type"]
    commas = [] if listed else [form for form in (with_commas(schema), decimal_comma(schema)) if form]
    if BOUNDS & set(schema):
        plain = rules.add(_embedded({**schema, "type": kind}))
        return f"{SPACE} ({' | '.join([plain, *(rules.add(f'/{form}/', terminal=True) for form in commas)])})"
    plain = "-?[0-9]+" if kind == "integer" else r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|-?\.[0-9]+"
    return rules.add(f"/ ?({'|'.join([plain, *commas])})/", terminal=True)


def _string_terminal(schema: Mapping[str, Any]) -> str:
    """One space before the value isn't part of it: neither a length nor a pattern is about it."""
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if "pattern" in schema:
        body = _escaped("|".join(_anchored(part) for part in _alternatives(_ascii(schema["pattern"]))))
        return f"/ ({body})/ | (/{body}/ & /([^ ]{ANY})?/)"
    if not low and high is None:
        return f"/ ?({ANY})/"
    most = "" if high is None else high
    if high == 0:
        return "/ ?/"
    first = f"[^ ](.|\\n){{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
    return f"/ (.|\\n){{{low},{most}}}|{first if low else f'({first})?'}/"


def _anchored(pattern: str) -> str:
    """What a whole text is if the pattern is found in it; `^` and `$` are understood at its ends."""
    open_start, open_end = not pattern.startswith("^"), not pattern.endswith("$") or pattern.endswith("\\$")
    core = pattern[0 if open_start else 1 : None if open_end else -1]
    return open_start * ANY + f"({core})" + open_end * ANY


def _alternatives(pattern: str) -> list[str]:
    """The parts of a pattern between its outermost `|`."""
    parts, start, depth, inside = [], 0, 0, False
    for found in re.finditer(r"\\.|[][()|]", pattern, re.DOTALL):
        char = found[0]
        if inside or char in "[]":
            inside = char != "]" if inside else char == "["
        elif char == "|" and not depth:
            parts.append(pattern[start : found.start()])
            start = found.end()
        else:
            depth += (char == "(") - (char == ")")
    return [*parts, pattern[start:]]


def _ascii(pattern: str) -> str:
    """`\\d` and `\\w` as the validator reads them, which knows no other digits and letters than ASCII's."""
    out, inside, position = "", False, 0
    while position < len(pattern):
        char = pattern[position]
        pair = pattern[position : position + 2]
        if pair in ("\\d", "\\w"):
            members = "0-9" if pair == "\\d" else "A-Za-z0-9_"
            out += members if inside else f"[{members}]"
        elif char == "\\":
            out += pair
        else:
            inside = (inside or char == "[") and char != "]"
            out += char
        position += 2 if char == "\\" else 1
    return out


def _exactly(text: str) -> str:
    """A regular expression, between slashes, for this text alone."""
    return SPECIAL.sub(r"\\\g<0>", text).replace("\n", r"\n").replace("\r", r"\r").replace("\x7f", r"\x7f")


def _escaped(body: str) -> str:
    """A regular expression between slashes."""
    return re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\/", body)


def _embedded(schema: Mapping[str, Any]) -> str:
    """A JSON Schema as a rule: compact, exactly as the codec writes it."""
    return "%json " + json.dumps(
        {"x-guidance": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}, **_closed(schema)}
    )


def _closed(schema: Any) -> Any:
    """Drops the words that have no say in what is valid, so that equal shapes share one rule."""
    if isinstance(schema, Mapping):
        return {
            key: _closed_member(key, value)
            for key, value in schema.items()
            if key not in UNCHECKED and not (key in BOUNDS and abs(value) >= ENDLESS)
        }
    return schema


def _closed_member(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: _closed(sub) for name, sub in value.items()}
    if key in ("anyOf", "prefixItems"):
        return [_closed(sub) for sub in value]
    return _closed(value) if key in ("items", "additionalProperties") else value


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
