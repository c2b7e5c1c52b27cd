"""One normaliser for tool declarations, used in training and in serving alike, and the validator of calls.

Whatever dialect a declaration comes in, the rest of the library sees one: a `Tool` whose parameters are plain
JSON Schema, closed objects, `$ref` resolved, types in lower case, `nullable` written as a type union.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from threading import Lock
from typing import Any, TypeVar

import jsonschema_rs
from cachetools import LRUCache, cached

from needle.text.records import Call, FieldError, Tool, encodable

MAX_DEPTH = 24
MAX_NODES = 5000
MAX_REMAINDERS = 10_000  # of the steps of a tool's numbers
MAX_TEXT = 200_000  # characters of a tool's parameters as JSON, references opened
CACHED_CHARACTERS = 20_000_000  # of the tools of which something is kept
V = TypeVar("V")
TYPE_NAMES = {
    "string": "string",
    "str": "string",
    "char": "string",
    "integer": "integer",
    "int": "integer",
    "long": "integer",
    "short": "integer",
    "byte": "integer",
    "bigint": "integer",
    "int32": "integer",
    "int64": "integer",
    "uint": "integer",
    "number": "number",
    "float": "number",
    "double": "number",
    "decimal": "number",
    "float32": "number",
    "float64": "number",
    "boolean": "boolean",
    "bool": "boolean",
    "array": "array",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "arraylist": "array",
    "sequence": "array",
    "iterable": "array",
    "object": "object",
    "dict": "object",
    "dictionary": "object",
    "hashmap": "object",
    "map": "object",
    "null": "null",
    "none": "null",
    "any": "any",
}
MINIMA, MAXIMA = (
    ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"),
    ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"),
)
CHECKED = {
    "description": str, "default": object, "pattern": str, "uniqueItems": bool,
    "minimum": (int, float), "maximum": (int, float), "exclusiveMinimum": (int, float),
    "exclusiveMaximum": (int, float), "multipleOf": (int, float),
    "minLength": int, "maxLength": int, "minItems": int, "maxItems": int, "minProperties": int, "maxProperties": int,
}  # fmt: skip
IGNORED = {
    "title", "examples", "example", "format", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated",
    "readOnly",
    "writeOnly", "optional", "strict", "propertyOrdering", "contentEncoding", "contentMediaType", "discriminator",
}  # fmt: skip
STRUCTURE = {
    "type", "properties", "required", "additionalProperties", "enum", "const", "items", "prefixItems", "anyOf", "oneOf",
    "allOf", "nullable", "$ref",
}  # fmt: skip


class ToolSchemaError(ValueError):
    """A tool declaration that can't be supported. `pointer` is the JSON pointer of the fault in the declaration."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer or '/'}: {message}")
        self.pointer = pointer or "/"
        self.message = message


def per_tool(function: Callable[[Tool], V]) -> Callable[[Tool], V]:
    """Keeps what a function made of the tools used last, of `CACHED_CHARACTERS` altogether. Safe among threads."""
    cache: LRUCache[Any, tuple[V, int]] = LRUCache(CACHED_CHARACTERS, getsizeof=lambda pair: pair[1])

    @cached(cache, lock=Lock())
    def sized(tool: Tool) -> tuple[V, int]:
        return function(tool), len(tool.declared)

    return functools.wraps(function)(lambda tool: sized(tool)[0])


def normalise_tools(declarations: Any, pointer: str = "") -> tuple[Tool, ...]:
    """Normalises a list of declarations; raises `ToolSchemaError`, also for two tools of one name."""
    if not isinstance(declarations, list):
        raise ToolSchemaError(pointer, f"expected an array of tools, got {type(declarations).__name__}")
    tools: list[Tool] = []
    for index, declaration in enumerate(declarations):
        if isinstance(declaration, Mapping) and isinstance(declaration.get("functionDeclarations"), list):
            tools += normalise_tools(declaration["functionDeclarations"], f"{pointer}/{index}/functionDeclarations")
        else:
            tools.append(normalise_tool(declaration, f"{pointer}/{index}"))
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in seen:
            raise ToolSchemaError(f"{pointer}/{index}/name", f"the name '{tool.name}' is declared twice")
        seen.add(tool.name)
    return tuple(tools)


def normalise_tool(declaration: Any, pointer: str = "") -> Tool:
    """Reads a bare function, the OpenAI wrapper, MCP's `inputSchema`, Gemini's upper-case types, or Python's type
    names. The same declaration gives the same tool."""
    if isinstance(declaration, Tool):
        declaration = declaration.to_json()
    if not isinstance(declaration, Mapping):
        raise ToolSchemaError(pointer, f"expected a tool as an object, got {type(declaration).__name__}")
    try:
        text = json.dumps(declaration)
    except (TypeError, ValueError, RecursionError):  # no JSON; whatever is wrong is said below
        return _read(declaration, pointer)
    with _lock:
        found = _known.get(text)
    if found is None:
        found = _read(declaration, pointer)
        with _lock, contextlib.suppress(ValueError):  # larger than the whole cache
            _known[text] = found
    return found


_known: LRUCache[str, Tool] = LRUCache(CACHED_CHARACTERS, getsizeof=lambda tool: 2 * len(tool.declared))
_lock = Lock()


def _read(declaration: Mapping[str, Any], pointer: str) -> Tool:
    if isinstance(declaration.get("function"), Mapping):
        return _read(declaration["function"], f"{pointer}/function")
    name = declaration.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ToolSchemaError(f"{pointer}/name", "expected the tool's name, a string that isn't empty")
    description = declaration.get("description") or ""
    if not isinstance(description, str):
        raise ToolSchemaError(f"{pointer}/description", "expected a string")
    key = next(
        (k for k in ("parameters", "inputSchema", "input_schema", "parameters_json_schema") if declaration.get(k)),
        "parameters",
    )
    parameters = declaration.get(key) or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise ToolSchemaError(f"{pointer}/{key}", "expected a JSON Schema object")
    tool = Tool(name, description, _Normaliser(_as_object_schema(parameters), f"{pointer}/{key}").run())
    if "\\ud" in tool.declared:  # half a character, which JSON can spell, or both halves of one
        try:
            encodable(json.dumps(tool.to_json(), ensure_ascii=False), "")
        except FieldError as error:
            raise ToolSchemaError(pointer, "expected Unicode text, found an unpaired surrogate") from error
    _check(tool, f"{pointer}/{key}")
    return tool


def _as_object_schema(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"city": {"type": "string"}}`, as some sets write it, becomes an object schema with those properties."""
    if any(
        key in parameters and not (key == "type" and isinstance(parameters[key], Mapping))
        for key in ("type", "properties", "$ref", "anyOf", "oneOf", "allOf", "$defs")
    ):
        return parameters
    properties = {key: value for key, value in parameters.items() if isinstance(value, Mapping)}
    if len(properties) != len(parameters):
        return parameters
    return {"type": "object", "properties": properties, "required": []}


class _Normaliser:
    """Walks one parameters schema; `root` is where `$ref` looks."""

    def __init__(self, root: Mapping[str, Any], pointer: str) -> None:
        self.root = root
        self.pointer = pointer
        self.nodes = 0
        self.remainders = 1  # the least common multiple of the steps so far

    def run(self) -> dict[str, Any]:
        schema = self.schema(self.root, self.pointer, ())
        if schema.get("type") != "object":
            raise ToolSchemaError(
                f"{self.pointer}/type", f"the parameters of a tool are an object, got {schema.get('type', 'a union')}"
            )
        schema.setdefault("properties", {})
        schema["additionalProperties"] = False
        return schema

    def schema(self, node: Any, pointer: str, refs: tuple[str, ...]) -> dict[str, Any]:
        if node is True:
            return {}
        if not isinstance(node, Mapping):
            raise ToolSchemaError(pointer, f"expected a schema as an object, got {json.dumps(node, default=str)[:40]}")
        # Bounds, so that a short text can't keep a server busy.
        if pointer.count("/") - self.pointer.count("/") > 2 * MAX_DEPTH or len(refs) > MAX_DEPTH:
            raise ToolSchemaError(pointer[:80] + "…", f"schemas nested deeper than {MAX_DEPTH} levels aren't supported")
        self.nodes += 1  # references to references can multiply a short text into millions of schemas
        if self.nodes > MAX_NODES:
            raise ToolSchemaError(
                pointer[:80], f"more than {MAX_NODES:,} schemas in one tool, references opened, aren't supported"
            )
        if "$ref" in node:
            return self.schema(*self.opened(node, pointer, refs))
        # Dialects: what isn't known is refused, what Python and OpenAPI 3.0 write otherwise is rewritten.
        unknown = sorted(
            key
            for key in node
            if key not in CHECKED and key not in IGNORED and key not in STRUCTURE and not key.startswith("x-")
        )
        if unknown:
            raise ToolSchemaError(f"{pointer}/{unknown[0]}", f"the keyword '{unknown[0]}' isn't supported")
        if isinstance(node.get("type"), str) and re.search(r"[\[,]", node["type"]):
            node = _from_python(node)
        for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if isinstance(node.get(bound), bool):  # OpenAPI 3.0: a flag beside the limit
                strict, node = node[bound], {key: value for key, value in node.items() if key != bound}
                if strict and limit in node:
                    node = {**{key: value for key, value in node.items() if key != limit}, bound: node[limit]}
        # Unions, then lists of allowed values, then types.
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in node:
                return self.union(node, keyword, pointer, refs)
        out = self.checked(node, pointer)
        if "const" in node or "enum" in node:
            return self.enumeration(node, out, pointer, refs)
        types, nullable = self.types(node, pointer)
        # Several types are a union of schemas with one type each.
        if len(types) > 1:
            branches = [{**node, "type": kind, "nullable": False} for kind in types]
            rest = {key: node[key] for key in ("description", "default", "nullable") if key in node}
            return self.union(
                {**rest, "anyOf": [*branches, *([{"type": "null"}] if nullable else [])]}, "anyOf", pointer, refs
            )
        kind = types[0]
        if kind == "object":
            self.objects(node, out, pointer, refs)
        elif kind == "array":
            self.arrays(node, out, pointer, refs)
        if kind != "any":
            out["type"] = [kind, "null"] if nullable else kind
        return out

    def opened(self, node: Mapping[str, Any], pointer: str, refs: tuple[str, ...]) -> tuple[Any, str, tuple[str, ...]]:
        """What a reference points at, joined with what stands beside it; its pointer and the references on the way."""
        ref = node["$ref"]
        if not isinstance(ref, str) or not ref.startswith("#/"):
            raise ToolSchemaError(
                f"{pointer}/$ref", f"only references inside the schema ('#/$defs/Name') are supported, got {ref!r}"
            )
        if ref in refs:
            raise ToolSchemaError(f"{pointer}/$ref", f"'{ref}' refers to itself; recursive schemas aren't supported")
        target: Any = self.root
        for part in ref[2:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise ToolSchemaError(f"{pointer}/$ref", f"'{ref}' points at nothing in the schema")
            target = target[part]
        return _merged(target, {key: value for key, value in node.items() if key != "$ref"}), pointer, (*refs, ref)

    def checked(self, node: Mapping[str, Any], pointer: str) -> dict[str, Any]:
        out = {}
        for key, kind in CHECKED.items():
            if key not in node or (node[key] is None and key != "default"):
                continue
            value = node[key]
            if (
                key in ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
                and isinstance(value, str)
                and value.isdigit()
            ):
                value = int(value)  # Gemini writes int64 as strings
            if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (object, bool)):  # type: ignore[arg-type]
                raise ToolSchemaError(
                    f"{pointer}/{key}", f"expected {getattr(kind, '__name__', 'a number')}, got {value!r}"
                )
            out[key] = value
        if "multipleOf" in out:
            self.multiple(out["multipleOf"], f"{pointer}/multipleOf")
        return out

    def multiple(self, step: float, pointer: str) -> None:
        """Refuses steps for which a grammar would need a state for each remainder: gigabytes, and minutes to build.
        Several steps of a tool may stand in one union, where their remainders multiply; powers of ten are cheap."""
        exact = Decimal(str(step))
        if not exact.is_finite() or exact <= 0:
            raise ToolSchemaError(pointer, f"expected a number above 0, got {step}")
        digits = "".join(map(str, exact.as_tuple().digits)).rstrip("0")
        if digits == "1":
            return
        self.remainders = math.lcm(self.remainders, int(step) if step == int(step) else int(digits))
        if self.remainders > MAX_REMAINDERS:
            raise ToolSchemaError(
                pointer,
                f"multiples of {step} are too many cases for a grammar; powers of ten are supported, and other steps "
                f"whose least common multiple in a tool is at most {MAX_REMAINDERS:,}",
            )

    def types(self, node: Mapping[str, Any], pointer: str) -> tuple[list[str], bool]:
        raw = node.get("type")
        if raw is None:
            raw = "object" if "properties" in node else "array" if "items" in node else "any"
        names = raw if isinstance(raw, list) else [raw]
        if not names:
            raise ToolSchemaError(f"{pointer}/type", "expected at least one type")
        types: list[str] = []
        for name in names:
            known = TYPE_NAMES.get(name.lower().split("[")[0]) if isinstance(name, str) else None
            if known is None:
                raise ToolSchemaError(
                    f"{pointer}/type",
                    f"unknown type {name!r}; expected one of string, integer, number, boolean, array, object, null",
                )
            if known not in types:
                types.append(known)
        nullable = bool(node.get("nullable")) or ("null" in types and len(types) > 1)
        if len(types) > 1 and "null" in types:
            types.remove("null")
        return types, nullable

    def enumeration(
        self, node: Mapping[str, Any], out: dict[str, Any], pointer: str, refs: tuple[str, ...]
    ) -> dict[str, Any]:
        # The members; a list of members on an array is about its items.
        values = node["enum"] if "enum" in node else [node["const"]]
        if not isinstance(values, list) or not values:
            raise ToolSchemaError(f"{pointer}/enum", "expected an array of at least one allowed value")
        types, nullable = self.types(node, pointer)
        if types == ["array"] and not any(isinstance(value, list) for value in values):  # what the items may be
            items = node["items"] if isinstance(node.get("items"), Mapping) else {}
            return self.schema(
                {
                    **{key: value for key, value in node.items() if key not in ("enum", "const")},
                    "items": {**items, "enum": values},
                },
                pointer,
                refs,
            )
        # Members are of the declared type, or the type is dropped.
        if len(types) == 1:
            try:
                values = [None if value is None else _coerce(value, types[0]) for value in values]
            except ValueError:
                types = ["any"]  # what is listed wins over a type that it hasn't
        if nullable and None not in values:
            values = [*values, None]
        # Each member once, in the order of the declaration.
        unique = {json.dumps(value, sort_keys=True): value for value in values}
        out["enum"] = list(unique.values())
        if len(types) == 1 and types[0] != "any":
            out["type"] = [types[0], "null"] if None in values and types[0] != "null" else types[0]
        return out

    def objects(self, node: Mapping[str, Any], out: dict[str, Any], pointer: str, refs: tuple[str, ...]) -> None:
        properties = node.get("properties") or {}
        if not isinstance(properties, Mapping):
            raise ToolSchemaError(f"{pointer}/properties", "expected an object of schemas by argument name")
        result = {str(name): self.schema(sub, f"{pointer}/properties/{name}", refs) for name, sub in properties.items()}
        required = node.get("required")
        if required is None:
            required = []
        if isinstance(required, bool):  # draft 3's way on a property: nothing to say about this object's own properties
            required = []
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise ToolSchemaError(f"{pointer}/required", "expected an array of argument names")
        missing = [name for name in required if name not in result]
        if missing and result:
            raise ToolSchemaError(f"{pointer}/required", f"'{missing[0]}' is required but isn't among the properties")
        out["properties"] = result
        out["required"] = [name for name in result if name in required]
        extra = node.get("additionalProperties", not result)
        out["additionalProperties"] = (
            extra if isinstance(extra, bool) else self.schema(extra, f"{pointer}/additionalProperties", refs)
        )

    def arrays(self, node: Mapping[str, Any], out: dict[str, Any], pointer: str, refs: tuple[str, ...]) -> None:
        prefix = node.get("prefixItems") or (node["items"] if isinstance(node.get("items"), list) else None)
        if prefix is not None:
            if not isinstance(prefix, list):
                raise ToolSchemaError(f"{pointer}/prefixItems", "expected an array of schemas")
            out["prefixItems"] = [
                self.schema(item, f"{pointer}/prefixItems/{i}", refs) for i, item in enumerate(prefix)
            ]
            out["items"] = False
            out["minItems"] = out["maxItems"] = len(prefix)
        elif node.get("items"):
            out["items"] = self.schema(node["items"], f"{pointer}/items", refs)

    def union(self, node: Mapping[str, Any], keyword: str, pointer: str, refs: tuple[str, ...]) -> dict[str, Any]:
        branches = node[keyword]
        if not isinstance(branches, list) or not branches:
            raise ToolSchemaError(f"{pointer}/{keyword}", "expected an array of at least one schema")
        # What stands beside the union holds in each branch; null is a property of the whole.
        rest = {key: value for key, value in node.items() if key in ("description", "default", "nullable", "title")}
        beside = {
            key: value for key, value in node.items() if key not in rest and key not in IGNORED and key != keyword
        }
        solid = []
        for index, branch in enumerate(branches):
            place, own = f"{pointer}/{keyword}/{index}", refs
            while (
                beside and isinstance(branch, Mapping) and "$ref" in branch
            ):  # what stands beside the union is joined with what the reference points at
                branch, place, own = self.opened(branch, place, own)
            if not (isinstance(branch, Mapping) and branch.get("type") in ("null", "NULL")):
                solid.append((_merged(beside, branch), place, own))
        nullable = len(solid) < len(branches) or bool(node.get("nullable"))
        if keyword == "allOf" and len(branches) > 1:
            raise ToolSchemaError(
                f"{pointer}/allOf", "a conjunction of several schemas isn't supported; merge them into one"
            )
        # One branch is no union.
        if len(solid) == 1:
            branch, place, own = solid[0]
            inner = {**branch, **rest} if isinstance(branch, Mapping) else branch
            if nullable and isinstance(inner, Mapping):
                inner = {**inner, "nullable": True}
            return self.schema(inner, place, own)
        # Branches that are constants, each with a schema of its own, are an enum.
        out = self.checked(rest, pointer)
        out["anyOf"] = [self.schema(branch, place, own) for branch, place, own in solid]
        kinds = {json.dumps(branch.get("type")) for branch in out["anyOf"]}
        if len(kinds) == 1 and all(
            "enum" in branch for branch in out["anyOf"]
        ):  # constants, each with a schema of its own
            shared = {"type": out["anyOf"][0]["type"]} if "type" in out["anyOf"][0] else {}
            members = [value for branch in out["anyOf"] for value in branch["enum"]]
            return self.enumeration(
                {**shared, "enum": members, "nullable": nullable},
                {key: value for key, value in out.items() if key != "anyOf"},
                pointer,
                refs,
            )
        if nullable:
            out["anyOf"].append({"type": "null"})
        return out


def _from_python(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Types as Python's hints and docstrings have them (xLAM's do): `str, optional`, `Optional[int]`, `Union[int,
    float]`, `List[str]`."""
    text = re.sub(r",\s*optional$", "", node["type"].strip(), flags=re.IGNORECASE)
    found = re.fullmatch(r"(?:typing\.)?(\w+)\[(.+)\]", text)
    if not found:
        return {**node, "type": text}
    outer, inner = found[1].lower(), found[2]
    if outer == "optional":
        return _from_python({**node, "type": inner, "nullable": True})
    if outer == "union":
        return {**node, "type": re.split(r",\s*(?![^\[]*\])", inner)}
    if TYPE_NAMES.get(outer) == "array" and outer != "tuple" and "items" not in node:
        return {**node, "type": "array", "items": {"type": inner}}
    return {**node, "type": outer}


def _coerce(value: Any, kind: str) -> Any:
    """Gemini writes every enum member as a string; an enum of numbers gets its numbers back. Raises `ValueError` for
    what isn't of this type."""
    if isinstance(value, str) and kind == "boolean" and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and kind in ("integer", "number"):
        value = int(value) if kind == "integer" or value.lstrip("-").isdigit() else float(value)
    fitting = {"string": str, "integer": int, "number": (int, float), "boolean": bool}.get(kind, object)
    if not isinstance(value, fitting) or (isinstance(value, bool) and kind in ("integer", "number")):  # type: ignore[arg-type]
        raise ValueError(f"{value!r} isn't {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no JSON value")
    return value


def _merged(schema: Any, other: Any) -> Any:
    """What holds under both: properties and requirements are joined, of bounds and members the narrower remain, else
    `other` wins."""
    # A side that allows everything has no say.
    if other is True or not isinstance(schema, Mapping):
        return schema
    if schema == {} or not isinstance(other, Mapping):
        return other
    out = {**schema, **other}
    # Keywords that both have: joined, the narrower of the two, or the other's.
    for key in schema.keys() & other.keys():
        one, two = schema[key], other[key]
        if key == "properties" and isinstance(one, Mapping) and isinstance(two, Mapping):
            out[key] = {**one, **two}
        elif key == "required" and isinstance(one, list) and isinstance(two, list):
            out[key] = [*one, *(name for name in two if name not in one)]
        elif key == "enum" and isinstance(one, list) and isinstance(two, list):
            out[key] = [member for member in one if member in two] or two
        elif key in MINIMA + MAXIMA and isinstance(one, int | float) and isinstance(two, int | float):
            out[key] = max(one, two) if key in MINIMA else min(one, two)
    return out


def _check(tool: Tool, pointer: str) -> None:
    length = len(json.dumps(tool.parameters))
    if length > MAX_TEXT:
        raise ToolSchemaError(
            pointer, f"{length:,} characters of JSON, references opened; at most {MAX_TEXT:,} are supported"
        )
    try:
        _validator(tool)
    except ValueError as error:
        path = "".join(f"/{part}" for part in getattr(error, "instance_path", []) or [])
        raise ToolSchemaError(pointer + path, f"not a valid JSON Schema: {str(error).splitlines()[0]}") from error


@per_tool
def _validator(tool: Tool) -> Any:
    # RegexOptions: linear time, so that a pattern such as (a+)+b can't hang a server.
    return jsonschema_rs.validator_for(
        dict(tool.parameters), pattern_options=jsonschema_rs.RegexOptions(), offline=True
    )


def call_errors(call: Call, tools: tuple[Tool, ...]) -> list[str]:
    """Everything that is wrong with a call under the declared tools; empty when it is valid."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        return [f"no tool is called '{call.name}'"]
    errors = _validator(tool).iter_errors(dict(call.arguments))
    return [f"/{'/'.join(str(part) for part in error.instance_path)}: {error.message}" for error in errors]
