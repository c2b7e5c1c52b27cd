"""JSON Schema as people write it, in any dialect, as the one shape that the rest of the library reads.

References are opened, types are in lower case, `nullable` is a type union, objects are closed unless they say
otherwise. Of a union of objects one object remains, with the members of all. What only says what is valid, not what can
be asked for (`not`, `if`, `contains`, the branches of that union, …), is kept as a check of the finished answer:
`{"if": true, "then": {"allOf": [...]}}`. Words that JSON Schema doesn't know are annotations and fall away.
Normalising twice changes nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from urllib.parse import unquote

from needle.text.joining import join, with_checks
from needle.text.keywords import (
    BESIDE,
    CHECKS,
    DEFINITIONS,
    FORMATS,
    MAPS,
    NEVER,
    OF_MANY,
    OF_ONE,
    PLAIN,
    TYPE_NAMES,
    WHOLE,
    coerce,
    in_plain_words,
    inferred_type,
    ordered,
    present,
)
from needle.text.records import ToolSchemaError
from needle.text.references import MAX_DEPTH, definitions, followed

MAX_NODES = 5000
MAX_TEXT = 200_000  # characters of a tool's parameters as JSON, references opened
# How often a reference may be opened inside itself, and how many inside one another; the next, where that is too much.
OPENED = ((3, MAX_DEPTH), (1, MAX_DEPTH), (1, 4), (1, 2), (1, 1))

Place = tuple[str, tuple[str, ...], tuple[Mapping[str, Any], ...]]  # a pointer, references open, schemas around


class _TooMuch(ToolSchemaError):
    """More than the limits allow; less may come of it where fewer references are opened."""


def normalise_parameters(parameters: Any, pointer: str) -> dict[str, Any]:
    """The arguments of a tool: a closed object. Raises `ToolSchemaError`.

    A recursive schema is opened three levels deep, fewer where that would be large; behind them any value will do.
    """
    return _within_limits(parameters, pointer, lambda walk: walk.run())


def normalise_schema(schema: Any, root: Mapping[str, Any], pointer: str) -> dict[str, Any]:
    """A schema whose references point into a document around it. Raises `ToolSchemaError`."""
    return _within_limits(root, pointer, lambda walk: walk.schema(schema, (pointer, (), ())))


def _mentioned(check: Any) -> Iterator[tuple[str, Any]]:
    """The members that the branches of a check declare; not those of its conditions."""
    if not isinstance(check, Mapping):
        return
    for name, sub in (check.get("properties") or {}).items():
        if sub is not False:
            yield name, sub
    for key in ("then", "else"):
        yield from _mentioned(check.get(key))
    for key in ("allOf", "anyOf", "oneOf"):
        for sub in check.get(key) or ():
            yield from _mentioned(sub)
    for sub in (check.get("dependentSchemas") or {}).values():
        yield from _mentioned(sub)


def _within_limits(root: Any, pointer: str, run: Callable[[_Normaliser], dict[str, Any]]) -> dict[str, Any]:
    for repeats, deep in OPENED:
        walk = _Normaliser(root, pointer, repeats, deep)
        try:
            return run(walk)
        except _TooMuch:
            if not walk.referred or (repeats, deep) == OPENED[-1]:
                raise
    raise AssertionError("unreachable")


class _Normaliser:
    """Walks one parameters schema; `root` is where `$ref` looks."""

    def __init__(self, root: Any, pointer: str, repeats: int, deep: int) -> None:
        self.root, self.pointer, self.repeats, self.deep = root, pointer, repeats, deep
        self.nodes = 0
        self.referred = False
        self.named: dict[str, Any] | None = None  # what is defined anywhere, by name

    def run(self) -> dict[str, Any]:
        schema = self.schema(self.root, (self.pointer, (), ()))
        if "anyOf" in schema:  # an object or something else, null say
            schema = next((branch for branch in schema["anyOf"] if branch.get("type") == "object"), schema)
        if schema.get("type") == ["object", "null"]:
            schema["type"] = "object"
        if schema == NEVER:
            raise ToolSchemaError(self.pointer, "no arguments can satisfy this schema")
        if not schema or set(schema) <= {"description", "default"}:
            schema = {**schema, "type": "object"}
        if "enum" in schema:
            raise ToolSchemaError(f"{self.pointer}/enum", "the arguments of a tool are an object with members")
        if schema.get("type") != "object":
            raise ToolSchemaError(
                f"{self.pointer}/type", f"the parameters of a tool are an object, got {schema.get('type', 'a union')}"
            )
        schema.setdefault("properties", {})
        schema.setdefault("required", [])
        open_ = isinstance(schema.get("additionalProperties"), Mapping)
        if isinstance(self.root, Mapping) and self.root.get("additionalProperties") is True:
            open_ = True  # arguments of any name, said so
        if schema["properties"] or not open_:
            schema["additionalProperties"] = False
        length = len(json.dumps(schema))
        if length > MAX_TEXT:
            raise _TooMuch(
                self.pointer, f"{length:,} characters of JSON, references opened; at most {MAX_TEXT:,} are supported"
            )
        return ordered(schema)

    def schema(self, node: Any, place: Place) -> dict[str, Any]:
        return ordered(self._schema(node, place))

    def _schema(self, node: Any, place: Place) -> dict[str, Any]:
        pointer = place[0]
        if isinstance(node, bool):
            return {} if node else dict(NEVER)
        if isinstance(node, str) and node.lower() in TYPE_NAMES:
            node = {"type": node}
        if not isinstance(node, Mapping):
            raise ToolSchemaError(pointer, f"expected a schema as an object, got {json.dumps(node, default=str)[:40]}")
        self.count(place)
        if any(key in node for key in DEFINITIONS):
            place = (pointer, place[1], (*place[2], node))
        node = present(node)
        # References, conjunctions and unions first, then what is asked for.
        if "$ref" in node:
            return self.schema(*self.opened(node, place))
        if "allOf" in node:
            return self.schema(self.conjunction(node, place), place)
        node = in_plain_words(node, pointer)
        checks = self.checks(node, place)
        if checks is None:
            return dict(NEVER)
        node = {key: value for key, value in node.items() if key not in CHECKS or key in MAPS}
        unions = [key for key in ("anyOf", "oneOf") if key in node]
        if unions and ("const" in node or "enum" in node):  # the members are asked for, the union is checked
            checks += [self.raw({key: node[key]}, place) for key in unions]
            node = {key: value for key, value in node.items() if key not in unions}
        for keyword in unions if "enum" not in node and "const" not in node else ():
            if "object" in (node.get("type"), *(node["type"] if isinstance(node.get("type"), list) else ())):
                node = self.with_mentioned({"properties": {}, **node}, checks)
            return with_checks(self.union(node, keyword, place), checks)
        out = self.plain(node, pointer)
        if "const" in node or "enum" in node:
            return with_checks(self.enumeration(node, out, place), checks)
        types, nullable = self.types(node, pointer)
        if len(types) > 1:  # a union of schemas with one type each
            rest = {key: node[key] for key in BESIDE if key in node}
            own = {key: value for key, value in node.items() if key not in BESIDE}
            branches: list[Any] = [{**own, "type": kind} for kind in types]
            kinds = {**rest, "anyOf": [*branches, *([{"type": "null"}] if nullable else [])]}
            return with_checks(self.union(kinds, "anyOf", place), checks)
        kind = types[0]
        if kind == "object" and not self.objects(self.with_mentioned(node, checks), out, place):
            return dict(NEVER)
        if kind == "array":
            self.arrays(node, out, place)
        if kind != "any":
            out["type"] = [kind, "null"] if nullable else kind
        return with_checks(out, checks)

    def count(self, place: Place) -> None:
        """Bounds, so that a short text can't keep a server busy."""
        pointer, refs, _ = place
        if pointer.count("/") - self.pointer.count("/") > 2 * MAX_DEPTH or len(refs) > MAX_DEPTH:
            raise _TooMuch(pointer[:80] + "…", f"schemas nested deeper than {MAX_DEPTH} levels aren't supported")
        self.nodes += 1  # references to references can multiply a short text into millions of schemas
        if self.nodes > MAX_NODES:
            raise _TooMuch(
                pointer[:80], f"more than {MAX_NODES:,} schemas in one tool, references opened, aren't supported"
            )

    # References

    def opened(self, node: Mapping[str, Any], place: Place) -> tuple[Any, Place]:
        """What a reference points at, joined with what stands beside it; any value, where it was opened often
        enough."""
        pointer, refs, around = place
        ref = node["$ref"]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        if not isinstance(ref, str) or (":" in ref.partition("#")[0] and "#/" not in ref):
            raise ToolSchemaError(
                f"{pointer}/$ref", f"only references inside the schema ('#/$defs/Name') are supported, got {ref!r}"
            )
        self.referred = True
        if refs.count(ref) >= self.repeats or len(refs) >= self.deep:
            return {key: beside[key] for key in BESIDE if key in beside}, (pointer, refs, around)
        return join(self.target(ref, place), beside), (pointer, (*refs, ref), around)

    def target(self, ref: str, place: Place) -> Any:
        """What a reference points at: from the whole schema, else from one around it, else what has its name."""
        path = unquote(ref.rpartition("#")[2])
        for start in (self.root, *reversed(place[2])):
            try:
                return followed(start, path)
            except LookupError:
                continue
        if self.named is None:
            self.named = dict(definitions(self.root))
        name = path.rpartition("/")[2] or ref
        if name not in self.named:
            near = get_close_matches(name, self.named, 1)
            raise ToolSchemaError(
                f"{place[0]}/$ref",
                f"'{ref}' points at nothing in the schema" + (f"; did you mean '{near[0]}'?" if near else ""),
            )
        return self.named[name]

    def conjunction(self, node: Mapping[str, Any], place: Place) -> dict[str, Any]:
        """One schema for a node with `allOf`: what its parts and itself say together."""
        parts = node["allOf"]
        if not isinstance(parts, list):
            raise ToolSchemaError(f"{place[0]}/allOf", "expected an array of schemas")
        joined: Any = {}
        for index, part in enumerate(parts):
            refs: tuple[str, ...] = ()
            while isinstance(part, Mapping) and part.get("$ref") is not None and len(refs) < MAX_DEPTH:
                part, (_, refs, _) = self.opened(
                    present(part), (f"{place[0]}/allOf/{index}", (*place[1], *refs), place[2])
                )
                refs = refs[len(place[1]) :]
            self.count(place)
            if isinstance(part, Mapping) and part.get("allOf") is not None:
                part = self.conjunction(present(part), place)
            joined = join(joined, part)
        joined = join(joined, {key: value for key, value in node.items() if key != "allOf"})
        return dict(joined) if isinstance(joined, Mapping) else dict(NEVER)

    # What is checked at the end

    def checks(self, node: Mapping[str, Any], place: Place) -> list[Any] | None:
        """The keywords that only say what is valid, as schemas without references; None if nothing is."""
        before: list[Any] = []  # those of a schema that was read already
        if node.get("if") is True and "else" not in node and isinstance(node.get("then"), Mapping):
            before = [self.raw(part, place) for part in node["then"].get("allOf", [node["then"]])]
            node = {key: value for key, value in node.items() if key not in ("if", "then")}
        found: dict[str, Any] = {}
        for key in OF_ONE:
            if key in node:
                found[key] = self.raw(node[key], place)
        for key in OF_MANY:
            if isinstance(node.get(key), Mapping):
                found[key] = {name: self.raw(sub, place) for name, sub in node[key].items()}
        for key in ("dependentRequired", "minContains", "maxContains"):
            if key in node:
                found[key] = node[key]
        if found.get("not") in ({}, True):
            return None
        if found.get("not") is False:
            del found["not"]
        # Trivial ones, and what closing the object says already.
        if found.get("propertyNames") in ({}, True, {"type": "string"}):
            del found["propertyNames"]
        for key in ("unevaluatedProperties", "unevaluatedItems"):
            if isinstance(found.get(key), bool):
                del found[key]
        if "if" not in found:
            found = {key: value for key, value in found.items() if key not in ("then", "else")}
        if "patternProperties" in found and node.get("additionalProperties") is False and "properties" not in node:
            found["propertyNames"] = {"anyOf": [{"pattern": pattern} for pattern in found["patternProperties"]]}
        together = [key for key in ("contains", "minContains", "maxContains", "if", "then", "else") if key in found]
        groups = [[key] for key in found if key not in together]
        groups += [[key for key in together if ("ontains" in key) == own] for own in (True, False)]
        return [*before, *(ordered({key: found[key] for key in group}) for group in groups if group)]

    def raw(self, node: Any, place: Place) -> Any:
        """The same schema, in JSON Schema's own words and without references."""
        if not isinstance(node, Mapping):
            return node if isinstance(node, bool) else {}
        self.count(place)
        if any(key in node for key in DEFINITIONS):
            place = (place[0], place[1], (*place[2], node))
        node = present(node)
        if "$ref" in node:
            return self.raw(*self.opened(node, place))
        node = in_plain_words(node, place[0])
        out: dict[str, Any] = {key: node[key] for key in PLAIN if key in node and key not in ("description", "default")}
        for key in ("enum", "const", "required", "dependentRequired", "minContains", "maxContains"):
            if key in node and not (key == "required" and not isinstance(node[key], list)):
                out[key] = node[key]
        for key in (*OF_ONE, "items", "additionalProperties"):
            if key in node:
                out[key] = self.raw(node[key], place)
        for key in (*OF_MANY, "properties"):
            if isinstance(node.get(key), Mapping):
                out[key] = {name: self.raw(sub, place) for name, sub in node[key].items()}
        for key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            if isinstance(node.get(key), list):
                out[key] = [self.raw(sub, place) for sub in node[key]]
        if "type" in node:
            types, nullable = self.types(node, place[0])
            kinds = [kind for kind in types if kind != "any"] + ["null"] * nullable
            out |= {"type": kinds if len(kinds) > 1 else kinds[0]} if kinds else {}
        return ordered(out)

    # What is asked for

    def plain(self, node: Mapping[str, Any], pointer: str) -> dict[str, Any]:
        out = {}
        for key, kind in PLAIN.items():
            if key not in node:
                continue
            value = node[key]
            if (
                isinstance(value, str)
                and kind is not str
                and re.fullmatch(r"[-+]?(\d+(\.\d+)?|\.\d+)", value)
                and key != "default"
            ):
                value = float(value) if "." in value else int(value)  # Gemini writes int64 as strings
            if key in WHOLE and isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (object, bool)):
                raise ToolSchemaError(
                    f"{pointer}/{key}", f"expected {getattr(kind, '__name__', 'a number')}, got {value!r}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ToolSchemaError(f"{pointer}/{key}", f"expected a number that JSON has, got {value}")
            if key == "multipleOf" and value <= 0:
                raise ToolSchemaError(f"{pointer}/{key}", f"expected a number above 0, got {value}")
            out[key] = value
        form = FORMATS.get(str(node.get("format")).lower())
        if form:
            out["format"] = form
        return out

    def types(self, node: Mapping[str, Any], pointer: str) -> tuple[list[str], bool]:
        raw = node.get("type")
        if raw is None:
            raw = inferred_type(node)
        names = raw if isinstance(raw, list) else [raw]
        if not names:
            raise ToolSchemaError(f"{pointer}/type", "expected at least one type")
        types: list[str] = []
        for name in names:
            known = TYPE_NAMES.get(name.lower().split("[")[0]) if isinstance(name, str) else None
            if known is None:
                near = get_close_matches(str(name).lower(), TYPE_NAMES, 1)
                raise ToolSchemaError(
                    f"{pointer}/type",
                    f"unknown type {name!r}; expected one of string, integer, number, boolean, array, object, null"
                    + (f" (did you mean '{TYPE_NAMES[near[0]]}'?)" if near else ""),
                )
            if known not in types:
                types.append(known)
        nullable = bool(node.get("nullable")) or ("null" in types and len(types) > 1)
        if len(types) > 1 and "null" in types:
            types.remove("null")
        return types, nullable

    def enumeration(self, node: Mapping[str, Any], out: dict[str, Any], place: Place) -> dict[str, Any]:
        # The members; a list of members on an array is about its items.
        values = node["enum"] if "enum" in node else [node["const"]]
        if isinstance(values, Mapping):  # names by value, or values by name
            values = list(values)
        if not isinstance(values, list) or not values:
            raise ToolSchemaError(f"{place[0]}/enum", "expected an array of at least one allowed value")
        types, nullable = self.types(node, place[0])
        if types == ["array"] and not any(isinstance(value, list) for value in values):  # what the items may be
            items = node["items"] if isinstance(node.get("items"), Mapping) else {}
            rest = {key: value for key, value in node.items() if key not in ("enum", "const")}
            return self.schema({**rest, "items": {**items, "enum": values}}, place)
        # Members are of the declared type, or the type is dropped.
        if len(types) == 1:
            try:
                values = [None if value is None else coerce(value, types[0]) for value in values]
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

    def objects(self, node: Mapping[str, Any], out: dict[str, Any], place: Place) -> bool:
        """False if no object fits: a required member allows nothing."""
        pointer, refs, around = place
        properties = node.get("properties") or {}
        if not isinstance(properties, Mapping):
            raise ToolSchemaError(f"{pointer}/properties", "expected an object of schemas by argument name")
        properties = {str(name): sub for name, sub in properties.items() if sub is not None}
        required = node.get("required")
        if required is None or isinstance(required, bool):  # draft 3's way, on the property itself
            required = []
        if isinstance(required, list):
            required = [str(name) if isinstance(name, int) else name for name in required]  # YAML's keys
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise ToolSchemaError(f"{pointer}/required", "expected an array of argument names")
        required = [
            *required,
            *(name for name, sub in properties.items() if isinstance(sub, Mapping) and sub.get("required") is True),
        ]
        result = {}
        for name, sub in {**properties, **{name: True for name in required if name not in properties}}.items():
            found = self.schema(sub, (f"{pointer}/properties/{escaped(name)}", refs, around))
            if found != NEVER:
                result[name] = found
            elif name in required:
                return False
        out["properties"] = result
        out["required"] = [name for name in result if name in required]
        patterns = node.get("patternProperties")
        extra = node.get("additionalProperties", node.get("unevaluatedProperties", not result))
        if isinstance(patterns, Mapping) and patterns:
            kinds = [*patterns.values(), *([extra] if isinstance(extra, Mapping) else [])]
            extra = {"anyOf": kinds} if len(kinds) > 1 else kinds[0]
        if not isinstance(extra, bool):
            extra = self.schema(extra, (f"{pointer}/additionalProperties", refs, around))
            extra = extra != NEVER and (extra or True)
        out["additionalProperties"] = extra
        return True

    def with_mentioned(self, node: Mapping[str, Any], checks: Sequence[Any]) -> Mapping[str, Any]:
        """The node with the members that only its conditions declare, as optional ones."""
        found: dict[str, Any] = {}
        for check in checks:
            for name, sub in _mentioned(check):
                found.setdefault(name, []).append(sub)
        known = node.get("properties")
        known = known if isinstance(known, Mapping) else {}
        new = {name: own[0] if len(own) == 1 else {"anyOf": own} for name, own in found.items() if name not in known}
        return {**node, "properties": {**known, **new}} if new and (known or "properties" in node) else node

    def arrays(self, node: Mapping[str, Any], out: dict[str, Any], place: Place) -> None:
        pointer, refs, around = place
        items, prefix = node.get("items"), node.get("prefixItems")
        if isinstance(items, list):  # as before 2020
            prefix, items = items, node.get("additionalItems", True)
        if prefix:
            if not isinstance(prefix, list):
                raise ToolSchemaError(f"{pointer}/prefixItems", "expected an array of schemas")
            out["prefixItems"] = [
                self.schema(item, (f"{pointer}/prefixItems/{i}", refs, around)) for i, item in enumerate(prefix)
            ]
        if items is None and node.get("unevaluatedItems") is False:
            items = False
        if items is not None and items is not True:
            found = self.schema(items, (f"{pointer}/items", refs, around))
            if found == NEVER:
                out["items"] = False
            elif found:
                out["items"] = found

    # Unions

    def union(self, node: Mapping[str, Any], keyword: str, place: Place) -> dict[str, Any]:
        pointer, refs, around = place
        branches = node[keyword]
        if not isinstance(branches, list) or not branches:
            raise ToolSchemaError(f"{pointer}/{keyword}", "expected an array of at least one schema")
        # What stands beside the union holds in each branch; what is about the whole stays with it.
        rest = {key: value for key, value in node.items() if key in BESIDE}
        beside = {key: value for key, value in node.items() if key not in rest and key not in (*DEFINITIONS, keyword)}
        found: list[dict[str, Any]] = []
        nullable = bool(node.get("nullable"))
        for index, branch in enumerate(branches):
            here: Place = (f"{pointer}/{keyword}/{index}", refs, around)
            while (
                beside and isinstance(branch, Mapping) and branch.get("$ref") is not None and len(here[1]) < MAX_DEPTH
            ):
                branch, here = self.opened(present(branch), here)
            if isinstance(branch, Mapping) and branch.get("type") in ("null", "NULL"):
                nullable = True
                continue
            schema = self.schema(join(beside, branch), here)
            inner = (
                schema["anyOf"] if set(schema) <= {"anyOf", "description", "default"} and "anyOf" in schema else None
            )
            for solid in inner or [schema]:
                if solid == {"type": "null"}:
                    nullable = True
                elif solid != NEVER and solid not in found:
                    found.append(solid)
        if not found:
            return {**self.plain(rest, pointer), "type": "null"} if nullable else dict(NEVER)
        out = self.joined_union(found, rest, nullable, keyword, place)
        kinds = [json.dumps(branch.get("type")) for branch in found]
        if keyword == "oneOf" and len(set(kinds)) < len(kinds) and not self.apart(found):
            bare = [{key: value for key, value in branch.items() if key not in BESIDE} for branch in found]
            out = with_checks(out, [self.raw({"oneOf": [*bare, *([{"type": "null"}] if nullable else [])]}, place)])
        return out

    def apart(self, branches: Sequence[Mapping[str, Any]]) -> bool:
        """Whether no value can be of two branches: objects and lists are checked anyway, constants may differ."""
        if any(branch.get("type") in ("object", "array", ["object", "null"], ["array", "null"]) for branch in branches):
            return True
        members = [json.dumps(value) for branch in branches for value in branch.get("enum", ())]
        return all("enum" in branch for branch in branches) and len(set(members)) == len(members)

    def joined_union(
        self, found: list[dict[str, Any]], rest: Mapping[str, Any], nullable: bool, keyword: str, place: Place
    ) -> dict[str, Any]:
        """Of the branches of one kind, constants, objects or lists, one remains."""
        about = self.plain(rest, place[0])
        kinds = {json.dumps(branch.get("type")) for branch in found}
        if len(found) > 1 and len(kinds) == 1 and all("enum" in branch for branch in found):
            shared = {"type": found[0]["type"]} if "type" in found[0] else {}
            values = [value for branch in found for value in branch["enum"]]
            return self.enumeration({**shared, "enum": values, "nullable": nullable}, about, place)
        for kind, unite in (("object", self.united_objects), ("array", self.united_lists)):
            alike = [branch for branch in found if branch.get("type") in (kind, [kind, "null"])]
            if len(alike) > 1:
                nullable = nullable or any(isinstance(branch["type"], list) for branch in alike)
                at = found.index(alike[0])
                found = [branch for branch in found if branch not in alike]
                found.insert(at, ordered(unite(alike, keyword, place)))
        if len(found) == 1:
            out = {**found[0], **about}
            if nullable and isinstance(out.get("type"), str) and out["type"] != "null":
                out["type"] = [out["type"], "null"]
                if "enum" in out and None not in out["enum"]:
                    out["enum"] = [*out["enum"], None]
            elif nullable and "enum" in out and "type" not in out:
                out["enum"] = [*(value for value in out["enum"] if value is not None), None]
            return out
        return {**about, "anyOf": [*found, *([{"type": "null"}] if nullable else [])]}

    def united_objects(self, branches: Sequence[Mapping[str, Any]], keyword: str, place: Place) -> dict[str, Any]:
        """One object with the members of all, and a check that it is one of them."""
        members: dict[str, list[Any]] = {}
        for branch in branches:
            for name, sub in branch["properties"].items():
                if sub not in members.setdefault(name, []):
                    members[name].append(sub)
        properties = {
            name: self.schema({"anyOf": own} if len(own) > 1 else own[0], place) for name, own in members.items()
        }
        required = [name for name in properties if all(name in branch["required"] for branch in branches)]
        extra = next((branch["additionalProperties"] for branch in branches if branch["additionalProperties"]), False)
        out = {"type": "object", "properties": properties, "required": required, "additionalProperties": extra}
        words = [branch["description"] for branch in branches if branch.get("description")]
        if words:
            out["description"] = " / ".join(dict.fromkeys(words))
        same = all(branch["properties"] == properties for branch in branches)
        bare = {"type", "properties", "required", "additionalProperties", "description", "default"}
        if same and all(set(branch) <= bare for branch in branches):
            check: list[Any] = [{"required": branch["required"]} for branch in branches]
        else:
            check = [{**branch, "type": "object"} for branch in branches]
        return with_checks(out, [self.raw({keyword: check}, place)])

    def united_lists(self, branches: Sequence[Mapping[str, Any]], keyword: str, place: Place) -> dict[str, Any]:
        """One list whose items are those of any, and a check that it is one of them."""
        items = [branch.get("items", {}) for branch in branches if branch.get("items") is not False]
        items += [item for branch in branches for item in branch.get("prefixItems", ())]
        out: dict[str, Any] = {"type": "array"}
        united = self.schema({"anyOf": items}, place) if items else {}
        if united:
            out["items"] = united
        return with_checks(out, [self.raw({keyword: [{**branch, "type": "array"} for branch in branches]}, place)])


def escaped(name: str) -> str:
    """A name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
