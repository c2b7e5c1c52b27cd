"""One reader for tool declarations, used in training and in serving alike.

Whatever dialect a declaration comes in, the rest of the library sees one: a `Tool` whose parameters are JSON Schema as
`toolschema` writes it. One bad tool doesn't cost the others: `read_tools` leaves it out and says why.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from cachetools import LRUCache

from needle.text.keywords import TYPE_NAMES
from needle.text.records import FieldError, Tool, ToolSchemaError, encodable
from needle.text.toolschema import normalise_parameters
from needle.text.validity import CACHED_CHARACTERS, check_tool

PARAMETERS = (  # where declarations keep the schema of their arguments
    "parameters", "inputSchema", "input_schema", "parametersJsonSchema", "parameters_json_schema", "args_schema",
    "tool_call_schema", "schema", "input",
)  # fmt: skip
PLAIN_PARAMETERS = ("parameter_definitions", "parameterDefinitions", "inputs", "args", "arguments", "fields")  # by name
LISTS = ("functionDeclarations", "function_declarations", "tools", "functions")  # of tools, inside an entry
OTHER = {  # what holds arguments elsewhere than a tool does
    "requestBody": "an operation's body isn't read here (needle collect reads OpenAPI documents)",
    "uriTemplate": "a resource isn't a tool",
}
REQUIRED = ("required", "is_required", "isRequired")  # of one argument among several
WRAPPERS = ("function", "toolSpec", "tool_spec", "tool")
ABOUT = {  # what a declaration says beside its arguments
    "name", "description", "type", "title", "strict", "returns", "response", "responses", "annotations", "outputSchema",
    "output_schema", "output_type", "responseJsonSchema", "response_json_schema", "_meta", "meta", "metadata", "icons",
    "execution", "cache_control", "behavior", "input_examples", "examples", "tags", "extras", "server", "defs", "$defs",
    "definitions", "required", "source", "errors", "security", "headers",
}  # fmt: skip


@dataclass(frozen=True)
class SkippedTool:
    """A tool that was left out of a request: its place among the declarations, its name if it has one, and why."""

    index: int
    name: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "name": self.name, "reason": self.reason}


@dataclass(frozen=True)
class ReadTools:
    """The tools of a list of declarations, where each stands in it, and those that were left out."""

    tools: tuple[Tool, ...]
    places: tuple[int, ...]
    skipped: tuple[SkippedTool, ...]


def read_tools(
    declarations: Any,
    pointer: str = "",
    strict: bool = False,
    declare: Callable[[Any, str], Any] = lambda tool, _: tool,
) -> ReadTools:
    """Reads a list of declarations, each as `declare` makes it of what was given. What can't be read is left out, and
    the second of a name; a tool that is declared twice in the same words is one.

    Raises:
        ToolSchemaError: what was given isn't a list, or `strict` and a tool would be left out, or all would.
    """
    tools: dict[str, tuple[int, Tool]] = {}
    skipped: list[SkippedTool] = []
    first: ToolSchemaError | None = None
    for index, (where, declaration) in enumerate(entries(declarations, pointer)):
        try:
            tool = normalise_tool(declare(declaration, where), where)
            if tools.setdefault(tool.name, (index, tool))[1] != tool:
                raise ToolSchemaError(f"{where}/name", f"the name '{tool.name}' is declared twice")
        except ToolSchemaError as error:
            if strict:
                raise
            first = first or error
            skipped.append(SkippedTool(index, _name(declaration), f"{error.pointer}: {error.message}"))
    if first and not tools:
        raise first
    return ReadTools(tuple(tool for _, tool in tools.values()), tuple(at for at, _ in tools.values()), tuple(skipped))


def normalise_tools(declarations: Any, pointer: str = "") -> tuple[Tool, ...]:
    """All of a list of declarations; raises `ToolSchemaError`, also for two tools of one name."""
    return read_tools(declarations, pointer, strict=True).tools


def normalise_tool(declaration: Any, pointer: str = "") -> Tool:
    """Reads one declaration. The same declaration gives the same tool. Raises `ToolSchemaError`."""
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


def entries(declarations: Any, pointer: str) -> Iterator[tuple[str, Any]]:
    """Each declaration and its place; lists inside a list are opened (Gemini's `functionDeclarations`, an MCP
    server's `tools`)."""
    if isinstance(declarations, Mapping):  # {"tools": [...]}, or services by name as Home Assistant has them
        inner = next((key for key in LISTS if isinstance(declarations.get(key), list)), None)
        if inner is not None:
            yield from entries(declarations[inner], f"{pointer}/{inner}")
            return
        for key in ("result", "toolConfig", "tools"):  # JSON-RPC's, Bedrock's, and tools by name
            if isinstance(declarations.get(key), Mapping):
                yield from entries(declarations[key], f"{pointer}/{key}")
                return
        if isinstance(declarations.get("name"), str) or any(key in declarations for key in WRAPPERS):
            yield pointer, declarations  # one tool
            return
        if declarations and all(isinstance(own, Mapping) for own in declarations.values()):
            for name, own in declarations.items():
                called = own.get("name") if isinstance(own.get("name"), str) and "fields" not in own else name
                yield f"{pointer}/{name}", {**own, "name": called}
            return
    if not isinstance(declarations, list | tuple):
        raise ToolSchemaError(pointer, f"expected an array of tools, got {type(declarations).__name__}")
    for index, declaration in enumerate(declarations):
        services = declaration.get("services") if isinstance(declaration, Mapping) else None
        if isinstance(services, Mapping) and isinstance(declaration.get("domain"), str):  # Home Assistant's list
            for name, own in services.items():
                yield f"{pointer}/{index}/services/{name}", {**own, "name": f"{declaration['domain']}.{name}"}
            continue
        inner = None
        if isinstance(declaration, Mapping) and "parameters" not in declaration:
            inner = next((key for key in LISTS if isinstance(declaration.get(key), list)), None)
        if inner is None:
            yield f"{pointer}/{index}", declaration
        else:
            yield from entries(declaration[inner], f"{pointer}/{index}/{inner}")


def _name(declaration: Any) -> str:
    if not isinstance(declaration, Mapping):
        return str(getattr(declaration, "__name__", ""))
    inner = next((declaration[key] for key in WRAPPERS if isinstance(declaration.get(key), Mapping)), declaration)
    name = inner.get("name") or inner.get("type") or ""
    return name[:200] if isinstance(name, str) else ""


def _read(declaration: Mapping[str, Any], pointer: str) -> Tool:
    for wrapper in WRAPPERS:
        if isinstance(declaration.get(wrapper), Mapping):
            inner = declaration[wrapper]
            named = inner if "name" in inner else {"name": declaration.get("name"), **inner}
            return _read(named, f"{pointer}/{wrapper}")
    for key, what in OTHER.items():
        if declaration.get(key):
            raise ToolSchemaError(f"{pointer}/{key}", f"{what}; arguments are read from 'parameters' alone")
    if declaration.get("type") == "custom":
        raise ToolSchemaError(f"{pointer}/type", "a custom tool takes free text, not arguments")
    name = declaration.get("name")
    if not isinstance(name, str) or not name.strip():
        kind = declaration.get("type")
        about = (
            f"; an entry of type '{kind}' declares no function" if isinstance(kind, str) and kind != "function" else ""
        )
        raise ToolSchemaError(f"{pointer}/name", f"expected the tool's name, a string that isn't empty{about}")
    description = declaration.get("description") or ""
    if not isinstance(description, str):
        raise ToolSchemaError(f"{pointer}/description", "expected a string")
    where, parameters = _parameters(declaration, pointer)
    tool = Tool(name, description, normalise_parameters(parameters, where))
    if "\\ud" in tool.declared:  # half a character, which JSON can spell, or both halves of one
        try:
            encodable(json.dumps(tool.to_json(), ensure_ascii=False), "")
        except FieldError as error:
            raise ToolSchemaError(pointer, "expected Unicode text, found an unpaired surrogate") from error
    check_tool(tool, where)
    return tool


def _parameters(declaration: Mapping[str, Any], pointer: str) -> tuple[str, Mapping[str, Any]]:
    """Where a declaration keeps its arguments, and their schema; without arguments an empty one."""
    # A JSON Schema, also as text or as a list of arguments.
    given = sorted(PARAMETERS, key=lambda key: not _says_something(declaration.get(key)))
    for key in given:
        found = declaration.get(key)
        if not found and found is not False:
            continue
        where = f"{pointer}/{key}"
        if isinstance(found, str):
            found = _from_text(found, where)
        if isinstance(found, list):
            return where, _by_name(_listed(found, where), where)
        for inner in ("json", "jsonSchema"):  # Bedrock's, and the AI SDK's
            if (
                isinstance(found, Mapping)
                and isinstance(found.get(inner), str | Mapping)
                and not {"type", "properties"} & set(found)
            ):
                where, found = f"{where}/{inner}", found[inner]
                found = _from_text(found, where) if isinstance(found, str) else found
        if not isinstance(found, Mapping):
            raise ToolSchemaError(where, "expected a JSON Schema object")
        return where, _as_object_schema(found, declaration, where)
    # Arguments by name.
    for key in PLAIN_PARAMETERS:
        found = declaration.get(key)
        if not found:
            continue
        where = f"{pointer}/{key}"
        if isinstance(found, str):
            found = _from_text(found, where)
        if isinstance(found, list):
            found = _listed(found, where)
        if not isinstance(found, Mapping):
            raise ToolSchemaError(where, "expected the arguments by name")
        if isinstance(found.get("properties"), Mapping):
            return where, found
        return where, _by_name(found, where)
    # RapidAPI's, as ToolBench has it.
    lists = [declaration.get(key) for key in ("required_parameters", "optional_parameters")]
    if any(isinstance(own, list) and own for own in lists):
        needed, free = (_listed(own or [], pointer) for own in lists)
        return pointer, _by_name({**{name: {**own, "required": True} for name, own in needed.items()}, **free}, pointer)
    if isinstance(declaration.get("properties"), Mapping):  # the schema's words beside the name
        return pointer, {
            key: declaration[key] for key in ("type", "properties", "required", "$defs") if key in declaration
        }
    # Nothing is taken for no arguments that might hold some.
    for key, value in declaration.items():
        rows = value if isinstance(value, list) else [value]
        if key not in (*ABOUT, *PARAMETERS) and value and any(isinstance(row, Mapping) for row in rows):
            raise ToolSchemaError(
                f"{pointer}/{key}",
                f"the field '{key}' isn't known and might hold arguments; those are read from 'parameters'",
            )
    kind = declaration.get("type")
    if (
        isinstance(kind, str)
        and kind not in ("function", "tool", "object", "custom")
        and "description" not in declaration
    ):
        raise ToolSchemaError(f"{pointer}/type", f"an entry of type '{kind}' declares no function")
    return f"{pointer}/parameters", {"type": "object", "properties": {}}


def _says_something(schema: Any) -> bool:
    """Whether a schema, or a list of arguments, declares any."""
    if isinstance(schema, Mapping):
        return any(value for key, value in schema.items() if key not in ("type", "description", "title", "$schema"))
    return bool(schema)


def _from_text(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ToolSchemaError(where, f"expected a JSON Schema object, got text that isn't JSON: {error}") from error


def _as_object_schema(parameters: Mapping[str, Any], declaration: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """`{"city": {"type": "string"}}`, as some sets write it, becomes an object schema with those properties."""
    keywords = ("type", "properties", "$ref", "anyOf", "oneOf", "allOf", "$defs", "patternProperties", "required")
    if any(
        key in parameters and not (key in ("type", "required", "properties") and _is_schema(parameters[key]))
        for key in keywords
    ):
        if "definitions" not in parameters and isinstance(declaration.get("$defs"), Mapping):
            return {"$defs": declaration["$defs"], **parameters}
        return parameters
    if not all(isinstance(value, Mapping | str) for value in parameters.values()):
        return parameters
    if set(parameters) <= {"description", "title", "$schema", "$id", "$comment", "additionalProperties"}:
        return parameters
    found = {
        key: value if isinstance(value, Mapping) or value.lower() in TYPE_NAMES else {"description": value}
        for key, value in parameters.items()
    }
    return _by_name(found, where)


def _is_schema(value: Any) -> bool:
    return isinstance(value, Mapping) and any(key in value for key in ("type", "description", "enum", "anyOf"))


def _listed(rows: Sequence[Any], where: str) -> dict[str, Any]:
    """Arguments as a list of objects with a name each, by name."""
    found: dict[str, Any] = {}
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or not isinstance(row.get("name"), str) or not row["name"]:
            raise ToolSchemaError(f"{where}/{index}", "expected an argument as an object with a name")
        inner = row["schema"] if isinstance(row.get("schema"), Mapping) else {}
        found[row["name"]] = {
            **{key: value for key, value in row.items() if key not in ("name", "schema", "in")},
            **inner,
        }
    return found


def _by_name(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An object schema of arguments by name, each with `required` (Cohere) or a selector (Home Assistant) of its
    own."""
    properties: dict[str, Any] = {}
    required = []
    for name, own in list(found.items()):
        if isinstance(own, Mapping) and isinstance(own.get("fields"), Mapping) and "selector" not in own:
            inner = _by_name(own["fields"], f"{where}/{name}/fields")  # a section of a form
            properties |= inner["properties"]
            required += inner["required"]
            continue
        if isinstance(own, Mapping):
            flags = {
                key: own[key]
                for key in ("required", "is_required", "isRequired")
                if isinstance(own.get(key), bool | str)
            }
            if (
                any(flag is True or str(flag).lower() == "true" for flag in flags.values())
                or own.get("optional") is False
            ):
                required.append(name)
            own = {key: value for key, value in own.items() if key not in (*flags, "optional")}
            if "type" not in own and isinstance(own.get("dataType"), str):
                own["type"] = own["dataType"]
            if isinstance(own.get("schema_data"), Mapping):
                own = {**own["schema_data"], **{key: own[key] for key in ("description",) if own.get(key)}}
            if isinstance(own.get("selector"), Mapping):
                own = {
                    **_selected(own["selector"]),
                    **{key: own[key] for key in ("description", "default") if key in own},
                }
        elif not (isinstance(own, str) and own.lower() in TYPE_NAMES):
            raise ToolSchemaError(f"{where}/{name}", f"expected a schema as an object, got {type(own).__name__}")
        properties[name] = own
    return {"type": "object", "properties": properties, "required": required}


def _selected(selector: Mapping[str, Any]) -> dict[str, Any]:
    """What a selector of Home Assistant's lets choose."""
    kind = next(iter(selector), "")
    limits = selector.get(kind)
    limits = limits if isinstance(limits, Mapping) else {}
    schema: dict[str, Any]
    if kind == "number":
        bounds = {"min": "minimum", "max": "maximum"}
        schema = {"type": "number"}
        schema |= {bounds[key]: limits[key] for key in bounds if key in limits}
    elif kind == "select":
        options = limits.get("options") or []
        values = [option.get("value") if isinstance(option, Mapping) else option for option in options]
        schema = {"type": "string"}
        schema |= {"enum": values} if values and not limits.get("custom_value") else {}
    elif kind in ("duration", "location", "target", "constant"):
        schema = {}
    elif kind in ("color_temp", "color_rgb", "boolean", "object", "date", "time", "datetime"):
        kinds: dict[str, dict[str, Any]] = {
            "color_temp": {"type": "number"},
            "color_rgb": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3},
            "boolean": {"type": "boolean"},
            "object": {},
            "date": {"type": "string", "format": "date"},
            "time": {"type": "string", "format": "time"},
            "datetime": {"type": "string", "format": "date-time"},
        }
        schema = kinds[kind]
    else:
        schema = {"type": "string"}
    return {"type": "array", "items": schema} if limits.get("multiple") else schema
