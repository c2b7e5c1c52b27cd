"""Calls as other people's files and models write them: under other names, encoded twice, or left in the text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from needle.text.records import Call, FieldError, Tool
from needle.text.validity import call_errors

ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs")
NAMES = ("name", "tool_name", "function_name", "tool", "function")
WRAPPERS = ("function", "functionCall", "function_call", "tool_call", "toolUse")
BESIDE = {*NAMES, "id", "type", "index", "call_id", "status", "thoughtSignature", "thought_signature", "toolUseId"}
MARKED = re.compile(
    r"<(tool_call|function_call|functioncall|tool_use)>\s*(?P<body>.*?)\s*(?:</\1>|<\|endoftext\|>|$)"
    r"|\[TOOL_CALLS\]\s*(?P<mistral>.*)"
    r"|<\|python_tag\|>\s*(?P<llama>.*?)\s*(?:<\|eo[mt]_id\|>|$)"
    r"|<function=(?P<name>[\w.-]+)>\s*(?P<arguments>.*?)\s*(?:</function>|$)"
    r"|```(?:json|tool_code|tool_call|python)?\s*\n(?P<fenced>.*?)```",
    re.DOTALL,
)
THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|$)", re.DOTALL)
FOREIGN = re.compile(  # marks of calls that aren't read
    r"<function_calls>|<invoke name=|<｜tool▁call|<\|tool_call_begin\|>|<\|channel\|>commentary to=|^Action Input:",
    re.MULTILINE,
)
PREFIX = re.compile(r"^(?:default_api|functions?|tools?|multi_tool_use|api)[.:/]")


def read_call(value: Any, where: str) -> Call:
    """A call as an object; raises `FieldError` with the path below `where`. What might hold arguments under a name that
    isn't known is an error, never a call without arguments."""
    if not isinstance(value, Mapping):
        raise FieldError(where, f"expected an object with name and arguments, got {type(value).__name__}")
    for wrapper in WRAPPERS:
        if isinstance(value.get(wrapper), Mapping):
            return read_call(value[wrapper], f"{where}.{wrapper}")
    name = next((value[key] for key in NAMES if isinstance(value.get(key), str)), None)
    if not name:
        raise FieldError(f"{where}.name", f"expected the name of a tool, got {json.dumps(value.get('name'))}")
    key = next((key for key in ARGUMENTS if value.get(key) is not None), None)
    if key is None:
        odd = [own for own in value if own not in BESIDE and own not in ARGUMENTS and value[own] not in (None, {}, [])]
        if odd:
            raise FieldError(f"{where}.{odd[0]}", f"expected the arguments under 'arguments', found '{odd[0]}'")
        return Call(name, {})
    return Call(name, read_arguments(value[key], f"{where}.{key}"))


def read_arguments(value: Any, where: str) -> Mapping[str, Any]:
    """Arguments as an object, or as JSON text of one, also encoded twice. Raises `FieldError`."""
    for _ in range(3):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError as error:
            raise FieldError(where, f"expected JSON inside the string, but {error}") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise FieldError(where, f"expected an object, got {type(value).__name__}")
    return value


def calls_in_text(text: str) -> list[Call] | None:
    """The calls that a text spells, in any of the ways that models have; None for a text that spells none.

    Raises:
        FieldError: there is something like a call that can't be read.
    """
    text = THOUGHT.sub("", text)
    marked = list(MARKED.finditer(text))
    calls: list[Call] = []
    for found in marked:
        if found["name"]:
            calls.append(Call(found["name"], read_arguments(found["arguments"], "text")))
            continue
        body = found["body"] or found["mistral"] or found["llama"] or found["fenced"] or ""
        own = _spelled(body) or _python_values(body)
        if own is None and found["fenced"] is None:
            raise FieldError("text", f"expected a call inside the marks, got {body[:60]!r}")
        calls += own or []
    if calls or any(found["fenced"] is None for found in marked):
        return calls
    if FOREIGN.search(text):
        raise FieldError("text", f"a call that can be read, got {FOREIGN.search(text)[0]!r}")  # type: ignore[index]
    return _spelled(text)


def _spelled(text: str) -> list[Call] | None:
    """Calls as JSON, one or a list, also in the midst of words, or as Python."""
    text = text.strip()
    found = [calls for value in _values(text) if (calls := _from_value(value)) is not None]
    if found:
        return [call for calls in found for call in calls]
    mistral = re.findall(
        r"([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*?\})(?=\s*(?:\[TOOL_CALLS\]|[\w.-]+\s*(?:\[ARGS\])?\s*\{|$))", text
    )
    if mistral and "[ARGS]" in text:
        return [Call(name, read_arguments(body, "text")) for name, body in mistral]
    return _from_python(text)


def _python_values(text: str) -> list[Call] | None:
    """Calls as Python's dictionaries, with single quotes, also with JSON inside."""
    calls: list[Call] = []
    for line in [text] if "\n" not in text.strip() else [text, *text.splitlines()]:
        line = re.sub(r"\'(\{.*\})\'", lambda found: json.dumps(found[1]), line.strip())  # Glaive's
        for read in (json.loads, ast.literal_eval):
            try:
                own = _from_value(read(line))
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
            if own:
                calls += own
                break
        if calls and line == text.strip():
            break
    return calls or None


def _values(text: str) -> Iterator[Any]:
    """The JSON objects and arrays in a text."""
    place = 0
    while (found := re.compile(r"[\[{]").search(text, place)) is not None:
        try:
            value, end = json.JSONDecoder().raw_decode(text[found.start() :])
        except (ValueError, RecursionError):
            place = found.end()
            continue
        yield value
        place = found.start() + end


def _from_value(value: Any) -> list[Call] | None:
    if isinstance(value, Mapping) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, Mapping) and _is_call(row) for row in rows):
        return None
    return [read_call(row, f"text[{index}]") for index, row in enumerate(rows)]


def _is_call(row: Mapping[str, Any]) -> bool:
    if any(isinstance(row.get(wrapper), Mapping) for wrapper in WRAPPERS):
        return True
    return any(isinstance(row.get(key), str) for key in NAMES) and any(key in row for key in ARGUMENTS)


def _from_python(text: str) -> list[Call] | None:
    """`f(x=1)`, `[f(x=1), g()]`, or one on each line."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes: list[ast.expr] = []
    for statement in body:
        if not isinstance(statement, ast.Expr | ast.Assign):
            return None
        nodes += statement.value.elts if isinstance(statement.value, ast.List | ast.Tuple) else [statement.value]
    calls = []
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and len(node.args) == 1:
            node = node.args[0]
        if not isinstance(node, ast.Call) or node.args or any(word.arg is None for word in node.keywords):
            return None
        name = ast.unparse(node.func)
        if not re.fullmatch(r"[\w.]+", name):
            return None
        try:
            calls.append(Call(name, {str(word.arg): _literal(word.value) for word in node.keywords}))
        except (ValueError, TypeError, SyntaxError, RecursionError):
            return None
    return calls or None


def _literal(node: ast.expr) -> Any:
    """A value in Python's or in JSON's words. Raises `ValueError`."""
    if isinstance(node, ast.Name) and node.id in ("null", "true", "false"):
        return {"null": None, "true": True, "false": False}[node.id]
    return ast.literal_eval(node)


def fitted(call: Call, tools: Sequence[Tool]) -> Call:
    """The same call in the words of its tool: a prefix that a service puts before names goes, null goes where nothing
    may be null and nothing is required, and a whole number written 5.0 is 5."""
    names = {tool.name: tool for tool in tools}
    bare = PREFIX.sub("", call.name)
    tool = names.get(call.name) or names.get(bare)
    if tool is None:
        last = re.split(r"[.:/]", call.name)[-1]
        tool = names.get(last) if sum(name == last for name in names) == 1 else None
    if tool is None:
        return call
    changed = Call(tool.name, call.arguments)
    if not call_errors(changed, (tool,)) and not _has_whole_float(call.arguments):
        return changed
    return Call(tool.name, _fit(call.arguments, tool.parameters))


def _has_whole_float(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_whole_float(own) for own in value.values())
    if isinstance(value, list):
        return any(_has_whole_float(own) for own in value)
    return isinstance(value, float) and value.is_integer()


def _fit(value: Any, schema: Mapping[str, Any]) -> Any:
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if isinstance(value, Mapping):
        for branch in schema.get("anyOf", ()):
            if branch.get("type") == "object":
                schema = branch
        out = {}
        for name, own in value.items():
            sub = schema.get("properties", {}).get(name)
            if own is None and name not in schema.get("required", ()) and not _may_be_null(sub):
                continue
            out[name] = own if sub is None else _fit(own, sub)
        return out
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [_fit(own, schema["items"]) for own in value]
    if isinstance(value, float) and value.is_integer() and "integer" in kinds and "number" not in kinds:
        return int(value)
    return value


def _may_be_null(schema: Mapping[str, Any] | None) -> bool:
    if schema is None:  # an argument that isn't declared says nothing when it is null
        return False
    kind = schema.get("type")
    if "anyOf" in schema:
        return any(_may_be_null(branch) for branch in schema["anyOf"])
    if "enum" in schema:
        return None in schema["enum"]
    return kind is None or kind == "null" or (isinstance(kind, list) and "null" in kind)
