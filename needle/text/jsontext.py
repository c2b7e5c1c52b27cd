"""Values as JSON text, and what codecs share about it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from needle.text.leaves import item_schema


class DecodeError(ValueError):
    """Target tokens that aren't an answer."""


def dump(value: Any) -> str:
    """Compact JSON; the one control character that JSON allows and grammars don't is escaped like the others."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("\x7f", "\\u007f")


def in_schema_order(value: Any, schema: Mapping[str, Any]) -> Any:
    """The same value with the members of every object in the order in which its schema declares them."""
    if isinstance(value, Mapping | list) and "enum" in schema:
        wanted = json.dumps(value, sort_keys=True)
        return next((one for one in schema["enum"] if json.dumps(one, sort_keys=True) == wanted), value)
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        known = [name for name in properties if name in value]
        rest = [name for name in value if name not in properties]
        return {name: in_schema_order(value[name], properties.get(name, {})) for name in known + rest}
    if isinstance(value, list):
        return [in_schema_order(item, item_schema(schema, index)) for index, item in enumerate(value)]
    return value


def finite(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if not math.isfinite(float(value)):
        raise ValueError(f"{value} is no JSON value")
    return float(value)
