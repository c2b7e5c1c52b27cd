"""What holds under two schemas at once, and what of it can only be checked on the finished answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from needle.text.keywords import BESIDE, LOWER, NEVER, TYPE_NAMES, UPPER


def join(schema: Any, other: Any) -> Any:
    """What holds under both. Of words about the whole (`description`, …) the other's remain."""
    # A side that allows everything has no say; one that allows nothing has the last.
    if other is True or (not isinstance(schema, Mapping) and schema is not True):
        return schema
    if schema is True or schema == {} or not isinstance(other, Mapping):
        return other
    schema, other = (_const_as_enum(side) for side in (schema, other))
    checks = [*own_checks(schema), *own_checks(other)]  # and what both say and no one schema can hold
    schema, other = _without_checks(schema), _without_checks(other)
    out = {**schema, **other}
    for key in schema.keys() & other.keys():
        one, two = schema[key], other[key]
        if one == two or key in BESIDE:
            continue
        if key in JOINS:
            out[key] = JOINS[key](one, two)
            if out[key] == []:  # no type, no member that both allow
                return dict(NEVER)
        elif key in ("anyOf", "oneOf", "not", "contains", "pattern", "multipleOf", "patternProperties"):
            checks.append({key: one})
    out = with_checks(out, checks)
    # A closed part of a conjunction closes the whole, not the members of the other part.
    if "properties" in schema and "properties" in other:
        sides = [side["additionalProperties"] for side in (schema, other) if "additionalProperties" in side]
        if sides:
            out["additionalProperties"] = next((side for side in sides if side is not True), True)
    return out


def own_checks(node: Mapping[str, Any]) -> list[Any]:
    if "if" not in node:
        return []
    if node["if"] is True and isinstance(node.get("then"), Mapping):
        return list(node["then"].get("allOf", [node["then"]]))
    return [{key: node[key] for key in ("if", "then", "else") if key in node}]


def _without_checks(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in ("if", "then", "else")}


def _both(one: Any, two: Any) -> Any:
    """A schema for what both say, opened later."""
    return two if one is True else one if two is True else {"allOf": [one, two]}


def _join_properties(one: Any, two: Any) -> Any:
    if not isinstance(one, Mapping) or not isinstance(two, Mapping):
        return two
    return {
        **one,
        **{name: _both(one[name], sub) if name in one and one[name] != sub else sub for name, sub in two.items()},
    }


def _join_types(one: Any, two: Any) -> Any:
    """The types that both allow; an integer is a number."""
    first, second = (value if isinstance(value, list) else [value] for value in (one, two))
    names = [[TYPE_NAMES.get(str(name).lower(), str(name)) for name in side] for side in (first, second)]
    kept = [name for name in names[0] if name in names[1] or "any" in names[1]]
    kept += [name for name in names[1] if "any" in names[0] and name not in kept]
    if "integer" not in kept and "integer" in names[0] + names[1] and "number" in names[0] + names[1]:
        kept.append("integer")
    return kept[0] if len(kept) == 1 else kept


def _const_as_enum(node: Mapping[str, Any]) -> Mapping[str, Any]:
    if "const" not in node:
        return node
    rest = {key: value for key, value in node.items() if key != "const"}
    if isinstance(node.get("enum"), list) and node["const"] not in node["enum"]:
        return dict(NEVER)
    return {**rest, "enum": [node["const"]]}


def _join_members(one: Any, two: Any) -> Any:
    if not isinstance(one, list) or not isinstance(two, list):
        return two
    wanted = [json.dumps(member, sort_keys=True) for member in two]
    return [member for member in one if json.dumps(member, sort_keys=True) in wanted]


def _narrower(pick: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda one, two: pick(one, two) if isinstance(one, int | float) and isinstance(two, int | float) else two


def _join_required(one: Any, two: Any) -> Any:
    if not isinstance(one, list) or not isinstance(two, list):
        return two
    return [*one, *(name for name in two if name not in one)]


JOINS: dict[str, Callable[[Any, Any], Any]] = {
    "properties": _join_properties,
    "required": _join_required,
    "type": _join_types,
    "enum": _join_members,
    "items": _both,
    "nullable": lambda one, two: bool(one and two),
    **dict.fromkeys(LOWER, _narrower(max)),
    **dict.fromkeys(UPPER, _narrower(min)),
}


def with_checks(schema: dict[str, Any], checks: Sequence[Any]) -> dict[str, Any]:
    """The schema with what is checked on the finished answer."""
    found = [*own_checks(schema), *checks]
    unique = {json.dumps(check, sort_keys=True): check for check in found if check not in ({}, True)}
    return {**schema, "if": True, "then": {"allOf": list(unique.values())}} if unique else schema
