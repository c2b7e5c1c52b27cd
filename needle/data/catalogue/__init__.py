"""The synthetic catalogue: tools people automate, their arguments and how people ask for them, one YAML file a domain.

tool_name:
  about: what the tool does
  args: {name: "kind! description"}        `!` required, `?` may be null; kinds are those of `values` and
                                           enum(value=said|said;…), flag(true=…;false=…), list(kind), list_enum(…)
  say: [imperative requests, "?questions", with {name} for each argument]
  vague: [requests that lack a required argument]
  with: {name: [endings that give an optional argument]}
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from needle.data.speech.values import Drawn, Values
from needle.text.declarations import normalise_tool
from needle.text.records import Tool

SPEC = re.compile(r"(\w+)(?:\((.*?)\))?([!?]?)(?: (.*))?$", re.DOTALL)
SCHEMAS: dict[str, dict[str, Any]] = {
    "hhmm": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
    "minutes": {"type": "integer", "minimum": 1},
    "count": {"type": "integer", "minimum": 1},
    "percent": {"type": "integer", "minimum": 0, "maximum": 100},
    "degrees": {"type": "number"},
    "amount": {"type": "number", "minimum": 0},
    "plain": {"type": "number"},
    "decimal": {"type": "number"},
}


@dataclass(frozen=True)
class Argument:
    """One argument of a catalogue tool; `members` for an object."""

    kind: str
    detail: str = ""
    required: bool = False
    nullable: bool = False
    about: str = ""
    members: dict[str, Argument] = field(default_factory=dict)

    def schema(self) -> dict[str, Any]:
        schema = {**self._shape(), **({"description": self.about} if self.about else {})}
        if self.nullable:
            schema["type"] = [schema["type"], "null"]
        return schema

    def _shape(self) -> dict[str, Any]:
        if self.members:
            return {
                "type": "object",
                "properties": {k: m.schema() for k, m in self.members.items()},
                "required": [k for k, m in self.members.items() if m.required],
            }
        if self.kind in ("list", "list_enum"):
            inner = Argument(self.detail) if self.kind == "list" else Argument("enum", self.detail)
            return {"type": "array", "items": inner._shape()}
        if self.kind == "flag":
            return {"type": "boolean"}
        if self.kind == "enum":
            values = list(self.choices())
            kind = (
                "integer"
                if all(isinstance(v, int) for v in values)
                else "number"
                if all(isinstance(v, int | float) for v in values)
                else "string"
            )
            return {"type": kind, "enum": values}
        if self.kind == "number":
            low, high = self.detail.split("-")
            return {"type": "integer", "minimum": int(low), "maximum": int(high)}
        return dict(SCHEMAS.get(self.kind, {"type": "string"}))

    def choices(self) -> dict[Any, list[str]]:
        """The members of an enum or flag and how each is said."""
        out: dict[Any, list[str]] = {}
        for part in self.detail.split(";"):
            name, _, said = part.partition("=")
            out[_literal(name)] = [text for text in said.split("|") if text]
        return out

    def draw(self, values: Values, source: random.Random) -> Drawn:
        if self.kind in ("enum", "flag"):
            value, said = source.choice([(value, said) for value, said in self.choices().items() if said])
            return source.choice(said), value
        if self.kind in ("list", "list_enum"):
            inner = Argument(self.detail) if self.kind == "list" else Argument("enum", self.detail)
            drawn = dict(inner.draw(values, source) for _ in range(source.choice((1, 2, 2, 3))))
            return _join(list(drawn), source), list(drawn.values())
        return values.draw(self.kind, self.detail, source)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _join(parts: list[str], source: random.Random) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])}{source.choice((' and ', ' and ', ', '))}{parts[-1]}"


@dataclass(frozen=True)
class Entry:
    """One tool of the catalogue with everything needed to ask for it."""

    domain: str
    tool: Tool
    arguments: dict[str, Argument]
    say: tuple[str, ...]
    vague: tuple[str, ...]
    endings: dict[str, tuple[str, ...]]


@lru_cache(maxsize=1)
def load_catalogue() -> tuple[Entry, ...]:
    """All entries, by domain and name."""
    entries = []
    for path in sorted(files(__package__).iterdir(), key=lambda p: p.name):
        if path.name.endswith(".yaml"):
            for name, row in yaml.safe_load(path.read_text(encoding="utf-8")).items():
                entries.append(_entry(path.name.removesuffix(".yaml"), name, row))
    return tuple(entries)


def _entry(domain: str, name: str, row: dict[str, Any]) -> Entry:
    arguments = {key: _argument(spec) for key, spec in row["args"].items()}
    parameters = Argument("object", members=arguments).schema()
    tool = normalise_tool({"name": name, "description": row["about"], "parameters": parameters})
    endings = {key: tuple(texts) for key, texts in row.get("with", {}).items()}
    return Entry(domain, tool, arguments, tuple(row["say"]), tuple(row.get("vague", ())), endings)


def _argument(spec: Any) -> Argument:
    if isinstance(spec, dict):
        return Argument(
            "object",
            required=spec.get("required", False),
            about=spec["about"],
            members={key: _argument(value) for key, value in spec["object"].items()},
        )
    kind, detail, mark, about = _parse(spec)
    return Argument(kind, detail, mark == "!", mark == "?", about)


def _parse(spec: str) -> tuple[str, str, str, str]:
    match = SPEC.match(spec)
    if not match:
        raise ValueError(f"catalogue: '{spec}' isn't an argument; expected 'kind! description'")
    kind, detail, mark, about = match.groups()
    return kind, detail or "", mark, about or ""
