"""Random declarations, from odd to absurd: each is read or refused with its place, and what is read can be answered.

    python -m tests.random_schemas 20000    # a table: read, refused, answered; the slowest in milliseconds

Half are made of JSON Schema's keywords in any place, half are well formed and nested. Each one that is read is
rendered, compiled into a grammar and answered by an untrained student, and a value that it allows is written and read
back.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from needle.data.speech.schema import value_for
from needle.engine.decode import Engine, Request
from needle.students.build import build_student
from needle.students.checkpoint import Checkpoint
from needle.students.pointer.encoder import PointerConfig
from needle.text.codecs import build_codec
from needle.text.declarations import normalise_tool, read_tools
from needle.text.jsontext import dump, in_schema_order
from needle.text.prompt import PromptError
from needle.text.records import Call, ToolSchemaError
from needle.text.tokenizer import TextTokenizer
from needle.text.validity import call_errors

SAID = ("Oslo", "2026-03-05", "18:30", "a@example.org", "12345", "")
NAMES = st.sampled_from(["a", "name", "items", "count", "$ref", "type", "[]", "x.y", "x/y", "", "é"])
TEXTS = st.sampled_from(["string", "object", "#", "#/$defs/a", "^a+$", "("])
WORDS = st.one_of(st.none(), st.booleans(), st.integers(-3, 50), TEXTS)
KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "required", "items", "anyOf", "oneOf", "allOf", "not", "if", "then", "else", "enum"),
        *("const", "$ref", "$defs", "minimum", "maxLength", "pattern", "additionalProperties", "patternProperties"),
        *("prefixItems", "contains", "dependentRequired", "nullable", "format", "propertyNames", "uniqueItems"),
        *("multipleOf", "default", "description"),
    ]
)
ANYTHING = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(NAMES, inner, max_size=3),
        st.dictionaries(KEYWORDS, inner, max_size=4),
    ),
    max_leaves=12,
)
ABSURD = st.dictionaries(KEYWORDS, ANYTHING, max_size=5)
SCALARS: list[dict[str, Any]] = [
    *({"type": kind} for kind in ("string", "integer", "number", "boolean", "null")),
    *({"type": [kind, "null"]} for kind in ("string", "integer")),
    *({"type": ["string", "integer"]}, {"type": ["boolean", "number"]}, {}, {"const": 5}),
    *({"enum": ["red", "light blue", ""]}, {"enum": [1, 2, 30]}, {"enum": ["a", 1, None]}),
    *({"type": "integer", "minimum": 3}, {"type": "number", "multipleOf": 0.5}, {"type": "string", "minLength": 3}),
    {"type": "string", "format": "date"},
]


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda properties, required, extra, kind: {
            "type": kind,
            "properties": properties,
            "required": [name for name in properties if name in required],
            **({} if extra is None else {"additionalProperties": extra}),
        },
        st.dictionaries(NAMES, inner, max_size=3),
        st.lists(NAMES, max_size=2),
        st.one_of(st.none(), st.booleans(), inner),
        st.sampled_from(["object", ["object", "null"]]),
    )


def _compound(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    rest = st.sampled_from([{}, {"items": False}, {"items": {"type": "string"}}])
    lists = st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(lambda items: {"type": ["array", "null"], "items": items, "minItems": 1}, inner),
        st.builds(lambda first, rest: {"prefixItems": first, **rest}, st.lists(inner, min_size=1, max_size=2), rest),
        st.just({"type": "array"}),
    )
    branches = st.lists(inner, min_size=1, max_size=3)
    unions = st.builds(lambda kind, branches: {kind: branches}, st.sampled_from(["anyOf", "oneOf"]), branches)
    return st.one_of(_objects(inner), lists, unions)


SCHEMAS = st.recursive(st.sampled_from(SCALARS), _compound, max_leaves=6)
NESTED = st.dictionaries(NAMES, SCHEMAS, min_size=1, max_size=3).map(
    lambda properties: {"type": "object", "properties": properties, "required": list(properties)[:1]}
)


@dataclass
class Found:
    """What became of random declarations. `slowest` in milliseconds of a core: reading, and answering with all that it
    takes."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "answered": 0.0})
    worst: dict[str, str] = field(default_factory=dict)

    def timed(self, what: str, start: float, about: str) -> None:
        took = 1000 * (time.process_time() - start)
        if took > self.slowest[what]:
            self.slowest[what], self.worst[what] = took, about


def try_declarations(count: int, seed: int = 0) -> Found:
    """Reads and answers so many random declarations. Whatever isn't an answer or a typed error is raised."""
    tokenizer = TextTokenizer.train(["the weather in Paris", "set an alarm for 7 am"] * 5, 700)
    config = PointerConfig(width=32, encoder_layers=1, decoder_layers=1, heads=2, hidden=64, dropout=0.0)
    student = build_student(config, tokenizer.size).eval()
    engine = Engine(Checkpoint(student, config, tokenizer, "decisions-2", 2048))
    codec = build_codec("decisions-2", tokenizer)
    found = Found()
    engine.answer("set it to 5", (normalise_tool({"name": "t"}),))  # the first answer of a process takes a second more

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(ABSURD, NESTED))
    def attempt(parameters: dict[str, Any]) -> None:
        about = json.dumps(parameters)
        found.counts["declared"] += 1
        start = time.process_time()
        read = read_tools([{"name": "good"}, {"name": "t", "parameters": parameters}])
        found.timed("read", start, about)
        if read.skipped:
            assert read.skipped[0].reason.startswith("/1/parameters")
            found.counts["refused, with the place"] += 1
            return
        tool = read.tools[1]
        found.counts["read"] += 1
        assert normalise_tool(tool.to_json()).declared == tool.declared
        gc.disable()  # what the generator keeps would be gone through in the midst of an answer
        start = time.process_time()
        try:
            answer = engine.answer_one(Request("set it to 5", (tool,)), max_tokens=12)
        except (ToolSchemaError, PromptError):
            found.counts["read, and too large to be answered"] += 1
            return
        finally:
            gc.enable()
        found.timed("answered", start, about)
        found.counts["answered"] += 1
        assert answer.calls is None or not any(call_errors(call, (tool,)) for call in answer.calls)
        schema = json.loads(json.dumps(tool.parameters))
        for draw in range(3):
            value = value_for(schema, random.Random(draw), lambda schema, path, source: source.choice(SAID))
            call = Call("t", value)
            if call_errors(call, (tool,)):
                continue
            target, _ = codec.encode([call], [tool], ())
            (again,) = codec.decode(target[:-1], [tool])
            assert dump(in_schema_order(again.arguments, schema)) == dump(in_schema_order(value, schema))
            assert engine.grammar is not None
            assert engine.grammar.matcher([tool]).accepts(target) == len(target)
            found.counts["a value written and read back"] += 1
            break

    attempt()
    return found


def main() -> None:
    found = try_declarations(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    print("| random declarations | |\n| --- | ---: |")
    for name, number in found.counts.items():
        print(f"| {name} | {number:,} |")
    for name, took in found.slowest.items():
        print(f"| slowest {name}, ms | {took:.0f} |")
    for name, about in found.worst.items():
        print(f"\nslowest {name}: {about[:500]}", file=sys.stderr)


if __name__ == "__main__":
    main()
