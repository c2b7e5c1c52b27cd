"""The words of JSON Schema, and what Python's hints, OpenAPI, Arrow and older drafts write in their place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from needle.text.records import ToolSchemaError

_NAMES = {
    "string": "string str char text varchar password file binary bytes any_str enum",
    "integer": "integer int long short byte bigint int32 int64 uint",
    "number": "number float double decimal float32 float64 real numeric",
    "boolean": "boolean bool",
    "array": "array list tuple set arraylist sequence iterable",
    "object": "object dict dictionary hashmap map json struct mapping",
    "null": "null none nonetype",
    "any": "any type_unspecified unknown mixed",
}
TYPE_NAMES = {name: kind for kind, names in _NAMES.items() for name in names.split()}
FORMATS = {  # those that are asserted, and other names of them
    **{name: name for name in ("date", "time", "date-time", "duration", "email", "uuid", "uri", "ipv4", "ipv6", "ip")},
    **{"datetime": "date-time", "timestamp": "date-time", "url": "uri", "guid": "uuid", "ip-address": "ip"},
    **{"idn-email": "email", "iri": "uri", "ipvanyaddress": "ip"},
}
LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains")
WHOLE = {key for key in LOWER + UPPER if "imum" not in key}
PLAIN: dict[str, Any] = {  # keywords that are carried over as they are, and what their values must be
    "description": str, "default": object, "pattern": str, "uniqueItems": bool,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), (int, float)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), int),
}  # fmt: skip
OF_ONE = ("not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties")
OF_MANY = ("dependentSchemas", "patternProperties")
ORDER = {
    key: index
    for index, key in enumerate(
        (*PLAIN, "format", "enum", "properties", "required", "additionalProperties", "prefixItems", "items", "type")
    )
}
CHECKS = (*OF_ONE, *OF_MANY, "dependentRequired", "minContains", "maxContains")
MAPS = (
    "patternProperties",
    "unevaluatedProperties",
    "unevaluatedItems",
)  # of those, what also tells the values of a map
BESIDE = ("description", "default", "nullable", "title")  # of a union, about the whole
DEFINITIONS = ("$defs", "definitions", "schemas")
NEVER: Mapping[str, Any] = {"not": {}}  # what no value fits


def ordered(schema: dict[str, Any]) -> dict[str, Any]:
    """The same keywords in one order, whatever they were gathered in."""
    return {key: schema[key] for key in sorted(schema, key=lambda key: (ORDER.get(key, len(ORDER)), key))}


def present(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the keywords that are null, as Arrow and Parquet fill in what a row lacks."""
    if not any(value is None for value in node.values()):
        return node
    typed = any(node.get(key) is not None for key in ("type", "anyOf", "oneOf", "allOf", "$ref", "properties", "enum"))
    return {
        key: value
        for key, value in node.items()
        if value is not None or key == "default" or (key == "const" and not typed)
    }


def in_plain_words(node: Mapping[str, Any], pointer: str) -> Mapping[str, Any]:
    """What Python's hints, OpenAPI and older drafts write otherwise."""
    kind = node.get("type")
    if isinstance(kind, Mapping):  # a schema, where the name of a type belongs
        node = {**{key: value for key, value in node.items() if key != "type"}, **kind}
    if isinstance(kind, str) and (re.search(r"[\[,|<?]", kind) or kind.lower() in FORMATS):
        node = from_python(node)
    for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(bound), bool):  # OpenAPI 3.0: a flag beside the limit
            strict, node = node[bound], {key: value for key, value in node.items() if key != bound}
            if strict and limit in node:
                node = {**{key: value for key, value in node.items() if key != limit}, bound: node[limit]}
    if isinstance(node.get("pattern"), str) and node["pattern"].endswith("\\Z"):
        node = {**node, "pattern": node["pattern"][:-1] + "z"}  # Python's end of a text
    if node.get("x-nullable") is True:
        node = {**node, "nullable": True}
    if isinstance(node.get("dependencies"), Mapping):  # before 2019
        needs = {name: need for name, need in node["dependencies"].items() if isinstance(need, list)}
        other = {name: need for name, need in node["dependencies"].items() if isinstance(need, Mapping)}
        node = {**node, "dependentRequired": needs, "dependentSchemas": other}
    if isinstance(node.get("dependentRequired"), Mapping) and not all(
        isinstance(need, list) for need in node["dependentRequired"].values()
    ):
        raise ToolSchemaError(f"{pointer}/dependentRequired", "expected an array of names for each name")
    return node


def from_python(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Types as Python's hints, docstrings (xLAM's do) and TypeScript have them: `str, optional`, `Optional[int]`,
    `int | None`, `List[str]`, `string[]`, `array<string>`, `Literal["a", "b"]`; and formats in place of a type."""
    text = re.sub(r",\s*optional$", "", node["type"].strip(), flags=re.IGNORECASE)
    text = text.removesuffix("?")
    if text.lower() in FORMATS:
        return {"format": FORMATS[text.lower()], **node, "type": "string"}
    if text.endswith("[]"):
        return {"items": {"type": text[:-2]}, **node, "type": "array"}
    found = re.fullmatch(r"(?:typing\.)?(\w+)[\[<](.+)[\]>]", text)
    if not found:
        parts = [part.strip() for part in text.split("|")]
        return {**node, "type": parts if len(parts) > 1 else text}
    outer, inner = found[1].lower(), found[2]
    if outer == "optional":
        return from_python({**node, "type": inner, "nullable": True})
    if outer == "union":
        return {**node, "type": re.split(r",\s*(?![^\[]*\])", inner)}
    if outer == "literal":
        members = re.findall(r"""'([^']*)'|"([^"]*)"|([^\s,]+)""", inner)
        rest = {key: value for key, value in node.items() if key != "type"}
        return {**rest, "enum": [one or two or json.loads(three) for one, two, three in members]}
    if TYPE_NAMES.get(outer) == "array" and outer != "tuple" and "items" not in node:
        return {**node, "type": "array", "items": {"type": inner}}
    return {**node, "type": outer}


def inferred_type(node: Mapping[str, Any]) -> str:
    """The type of a schema that names none, from what else it says."""
    if "enum" in node or "const" in node:
        return "any"
    if any(key in node for key in ("properties", "additionalProperties", "patternProperties", "minProperties")):
        return "object"
    if any(key in node for key in ("items", "prefixItems", "minItems", "maxItems", "uniqueItems")):
        return "array"
    if any(key in node for key in ("minLength", "maxLength", "pattern")) or FORMATS.get(str(node.get("format"))):
        return "string"
    if any(key in node for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")):
        return "number"
    return {str: "string", bool: "boolean", int: "integer", float: "number"}.get(type(node.get("default")), "any")


def coerce(value: Any, kind: str) -> Any:
    """Gemini writes every enum member as a string; an enum of numbers gets its numbers back. Raises `ValueError` for
    what isn't of this type."""
    if isinstance(value, str) and kind == "boolean" and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, str) and kind in ("integer", "number"):
        value = int(value) if kind == "integer" or value.lstrip("-").isdigit() else float(value)
    kinds: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    fitting = (kinds | {"object": Mapping, "array": list}).get(kind, object)
    if isinstance(value, float) and kind == "integer" and value.is_integer():
        value = int(value)
    if not isinstance(value, fitting) or (isinstance(value, bool) and kind in ("integer", "number")):
        raise ValueError(f"{value!r} isn't {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no JSON value")
    return value
