"""The operations of an OpenAPI document, 3.1, 3.0 or Swagger 2, as tool declarations.

References go where the schemas of tools go: to `needle.text.toolschema`, which opens recursive ones a few levels deep.
What a server answers but isn't sent (`readOnly`) is no argument. Headers and cookies are the program's business.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import yaml

from needle.text.records import ToolSchemaError
from needle.text.references import followed
from needle.text.toolschema import normalise_schema

METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace", "query")
OF_PARAMETER = {"name", "in", "required", "description", "schema", "content", "style", "explode", "example", "examples"}
MAX_DEPTH = 60


@dataclass(frozen=True)
class Operation:
    """One tool, or what is wrong with it. `where` is the operation's JSON pointer; `notes` say what was renamed."""

    where: str
    declaration: Mapping[str, Any] | ToolSchemaError
    family: str | None
    notes: tuple[str, ...] = ()


def operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    """All operations, each under a name of its own."""
    document = _writable(document, document)
    taken: set[str] = set()
    for path, item in (document.get("paths") or {}).items():
        place = f"/paths/{str(path).replace('~', '~0').replace('/', '~1')}"
        try:
            item = _resolve(document, item, place) if isinstance(item, Mapping) else {}
        except ToolSchemaError as error:
            yield Operation(place, error, None)
            continue
        for method in METHODS:
            own = item.get(method)
            if not isinstance(own, Mapping):
                continue
            where = f"{place}/{method}"
            tags = own.get("tags")
            family = (
                str(tags[0]).lower()
                if isinstance(tags, list) and tags
                else str(path).strip("/").split("/")[0].lower() or None
            )
            wanted = str(own.get("operationId") or f"{method}_{'_'.join(re.findall('[A-Za-z0-9]+', str(path)))}")
            name, number = wanted, 2
            while name in taken:
                name, number = f"{wanted}_{number}", number + 1
            taken.add(name)
            notes = [f"the name '{wanted}' is taken already; this operation is called '{name}'"] * (name != wanted)
            try:
                parameters = _arguments(document, item, own, where, notes)
            except ToolSchemaError as error:
                yield Operation(where, error, family)
                continue
            except (TypeError, AttributeError, KeyError) as error:
                yield Operation(where, ToolSchemaError(where, f"not an operation of OpenAPI: {error}"), family)
                continue
            about = (own.get("summary"), own.get("description"))
            text = " ".join(" ".join(str(part) for part in about if part).split())
            yield Operation(where, {"name": name, "description": text, "parameters": parameters}, family, tuple(notes))


def _arguments(
    document: Mapping[str, Any], item: Mapping[str, Any], own: Mapping[str, Any], where: str, notes: list[str]
) -> dict[str, Any]:
    """The parameters of a path and its operation, and the members of the body, as one object."""
    properties: dict[str, Any] = {}
    required: list[str] = []
    rows: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in [*(item.get("parameters") or []), *(own.get("parameters") or [])]:
        row = _resolve(document, row, f"{where}/parameters") if isinstance(row, Mapping) else {}
        rows[str(row.get("name")), str(row.get("in"))] = row  # the operation's own wins over the path's
    body: Mapping[str, Any] = _resolve(document, own.get("requestBody") or {}, f"{where}/requestBody")
    sent, needed = _content(body), bool(body.get("required"))
    for (name, place), row in rows.items():
        schema = _schema(row)
        if place == "body":
            sent, needed = schema, bool(row.get("required"))
            continue
        if place in ("header", "cookie") and row.get("required"):
            notes.append(f"the {place} '{name}' is required and left to the program")
        if place not in ("path", "query", "formData"):
            continue
        if name in properties:
            called = f"{place}_{name}"
            while called in {*properties, *(other for other, _ in rows)}:
                called += "_"
            notes.append(f"two parameters are called '{name}'; that of the {place} is called '{called}'")
            name = called
        properties[name] = normalise_schema(schema, document, f"{where}/parameters/{name}")
        if row.get("description"):
            properties[name] = {**properties[name], "description": row["description"]}
        required += [name] if row.get("required") or place == "path" else []
    if sent is not None:
        opened = normalise_schema(sent, document, f"{where}/requestBody")
        members = opened.get("properties") if opened.get("type") in ("object", ["object", "null"]) else None
        if not members:
            members, opened = {"body": opened}, {"required": ["body"] * needed}
        for name, schema in members.items():
            called = name
            if name in properties:
                called = f"body_{name}"
                notes.append(f"'{name}' is a parameter and a member of the body; the latter is called '{called}'")
            properties[called] = schema
            required += [called] if name in opened["required"] else []
    return {"type": "object", "properties": properties, "required": list(dict.fromkeys(required))}


def _schema(parameter: Mapping[str, Any]) -> Any:
    """The schema of a parameter: its own, that of its content, or in Swagger 2 the words beside its name."""
    if "schema" in parameter:
        return parameter["schema"]
    found = _content(parameter)
    if found is not None:
        return found
    return {key: value for key, value in parameter.items() if key not in OF_PARAMETER}


def _content(node: Mapping[str, Any]) -> Any:
    """The schema of a content, JSON's before a form's before any other; None without one."""
    content = node.get("content")
    if not isinstance(content, Mapping) or not content:
        return None
    kinds = sorted(content, key=lambda kind: ("json" not in kind, "form" not in kind))
    part: Mapping[str, Any] = next((content[kind] for kind in kinds if isinstance(content[kind], Mapping)), {})
    return part.get("schema", {})


def _resolve(document: Mapping[str, Any], node: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Follows references inside the document, for what isn't a schema. Raises `ToolSchemaError` for one that leads
    elsewhere or nowhere."""
    for _ in range(32):
        ref = node.get("$ref")
        if not isinstance(ref, str):
            break
        try:
            found = followed(document, unquote(ref[1:])) if ref.startswith("#/") else None
        except LookupError:
            found = None
        if not isinstance(found, Mapping):
            raise ToolSchemaError(f"{where}/$ref", f"'{ref}' points at nothing in the document")
        node = found
    return node


def _only_read(document: Mapping[str, Any], sub: Any) -> bool:
    if not isinstance(sub, Mapping):
        return False
    try:
        return True in (sub.get("readOnly"), _resolve(document, sub, "").get("readOnly"))
    except ToolSchemaError:
        return False


def _writable(node: Any, document: Mapping[str, Any], depth: int = 0) -> Any:
    """The document without the members that are only read."""
    if depth > MAX_DEPTH:
        return node
    if isinstance(node, list):
        return [_writable(one, document, depth + 1) for one in node]
    if not isinstance(node, Mapping):
        return node
    out = _as_typed({key: _writable(value, document, depth + 1) for key, value in node.items()})
    if isinstance(node.get("properties"), Mapping):
        read = {name for name, sub in node["properties"].items() if _only_read(document, sub)}
        out["properties"] = {name: sub for name, sub in out["properties"].items() if name not in read}
    if isinstance(out.get("allOf"), list):  # one part requires what another declares
        read = _declared_read(document, node)
        for part in out["allOf"]:
            if isinstance(part, dict) and isinstance(part.get("required"), list):
                part["required"] = [name for name in part["required"] if name not in read]
    if isinstance(node.get("required"), list):
        declared = _declared_read(document, node)
        out["required"] = [name for name in node["required"] if name not in declared]
    return out


def _as_typed(node: dict[str, Any]) -> dict[str, Any]:
    """Members and defaults as their type has them: YAML writes `1.10` of a string without quotes, and `1.50` of a
    number."""
    if node.get("type") == "string" and isinstance(node.get("enum"), list):
        node["enum"] = [one if one is None or isinstance(one, str) else json.dumps(one) for one in node["enum"]]
    default = node.get("default")
    if node.get("type") in ("number", "integer") and isinstance(default, str):
        with contextlib.suppress(ValueError):
            node["default"] = int(default) if node["type"] == "integer" else float(default)
    return node


def _declared_read(document: Mapping[str, Any], node: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The members of a schema, and of those that it is joined with, that are only read."""
    if depth > 8:
        return set()
    properties = node.get("properties")
    found = {
        name
        for name, sub in (properties.items() if isinstance(properties, Mapping) else ())
        if _only_read(document, sub)
    }
    for part in node["allOf"] if isinstance(node.get("allOf"), list) else ():
        try:
            found |= (
                _declared_read(document, _resolve(document, part, ""), depth + 1)
                if isinstance(part, Mapping)
                else set()
            )
        except ToolSchemaError:
            continue
    return found


class PlainLoader(yaml.SafeLoader):
    """YAML 1.2: `on`, `no`, 12:30, 010, 1.10 and dates stay the text that they look like."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


def _as_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    """A number that is written the way it would be written again; other text stays text."""
    text = str(node.value)
    value = float(text) if re.search("[.eE]", text) else int(text)
    return value if str(value) == text or re.search("[eE]", text) else text


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("!number", r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", "-+0123456789"),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
):
    PlainLoader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
PlainLoader.add_constructor("!number", _as_number)


def read_yaml(text: str) -> Any:
    """Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=PlainLoader)  # noqa: S506 - a SafeLoader
