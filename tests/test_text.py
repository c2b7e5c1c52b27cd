"""Tokenizer, renderer, codecs and grammar: what is written is read back, and the grammar allows exactly that."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from needle.data.encoding import encode_records
from needle.text.codecs import build_codec
from needle.text.declarations import normalise_tool
from needle.text.formats import read_records
from needle.text.grammar import Grammar
from needle.text.jsontext import DecodeError, dump, in_schema_order
from needle.text.leaves import leaves
from needle.text.prompt import KINDS, PromptError, Renderer, prompt_ids, render_record
from needle.text.records import Call, DataError, Record, Tool, ToolSchemaError
from needle.text.tokenizer import MARKERS, TextTokenizer
from needle.text.validity import call_errors
from tests.random_schemas import NESTED

CODECS = ("decisions", "decisions-2", "json")  # as checkpoints store them
EVERY_TYPE = normalise_tool(
    {
        "name": "everything",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "count": {"type": "integer", "minimum": 0},
                "share": {"type": "number"},
                "flag": {"type": "boolean"},
                "color": {"type": "string", "enum": ["red", "light blue", 'quo"te']},
                "level": {"type": "integer", "enum": [1, 2, 30]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "grid": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
                "when": {"type": ["string", "null"]},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                "path": {"type": "string", "pattern": "^a/b+$"},
                "short": {"type": "string", "maxLength": 4},
                "place": {
                    "type": "object",
                    "properties": {"street": {"type": "string"}, "no": {"type": "integer"}},
                    "required": ["street"],
                },
                "loose": {"type": "object", "properties": {"a": {"type": "string"}}},
                "free": {"type": "object"},
                "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "maybe": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            },
        },
    }
)
ANSWERS = [
    [],
    [Call("everything", {})],
    [Call("everything", {"text": "", "tags": [], "free": {}, "share": 1e-07})],
    [Call("everything", {"text": " leading", "count": 3, "share": -1.5e3, "flag": True, "color": 'quo"te',
        "level": 30})],
    [Call("everything", {"tags": ["a", "b, c", ""], "grid": [[1, 2], []], "when": None, "zip": "12345",
        "path": "a/bb"})],
    [Call("everything", {"place": {"street": "1 Main St", "no": 4}, "loose": {"a": "x"}, "free": {"k": [1,
        {"z": None}]}, "short": "abcd"})],
    [Call("everything", {"either": "5"}), Call("everything", {"either": 5, "maybe": None}), Call("everything",
        {"text": "ünï\n<eos> 😀 \"q\" \\ <tool_0>"})],
]  # fmt: skip


@pytest.mark.parametrize("codec_name", CODECS)
@pytest.mark.parametrize("answers", ANSWERS)
def test_calls_round_trip_and_the_grammar_allows_them(
    tokenizer: TextTokenizer, codec_name: str, answers: list[Call]
) -> None:
    codec = build_codec(codec_name, tokenizer)
    target, open_tool = codec.encode(answers, [EVERY_TYPE], ())
    assert len(target) == len(open_tool)
    assert [call.key for call in codec.decode(target[:-1], [EVERY_TYPE])] == [call.key for call in answers]
    assert Grammar(tokenizer, codec_name).matcher([EVERY_TYPE]).accepts(target) == len(target)


@pytest.mark.parametrize("codec_name", CODECS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"color": "green"},
        {"place": {"no": 3}},
        {"flag": "yes"},
        {"grid": [["x"]]},
        {"text": 3},
    ],
)
def test_the_grammar_forbids_what_the_schema_forbids(
    tokenizer: TextTokenizer, codec_name: str, arguments: dict[str, object]
) -> None:
    codec = build_codec(codec_name, tokenizer)
    target, _ = codec.encode([Call("everything", arguments)], [EVERY_TYPE], ())
    assert Grammar(tokenizer, codec_name).matcher([EVERY_TYPE]).accepts(target) < len(target)


@pytest.mark.parametrize("codec_name", CODECS)
@pytest.mark.parametrize(
    "arguments",
    [{"count": -1}, {"count": 2.5}, {"zip": "1234"}, {"short": "abcde"}, {"path": "a/c"}],
)
def test_what_was_said_is_never_cut_or_stretched_until_it_fits(
    tokenizer: TextTokenizer, codec_name: str, arguments: dict[str, object]
) -> None:
    codec, call = build_codec(codec_name, tokenizer), Call("everything", arguments)
    target, _ = codec.encode([call], [EVERY_TYPE], ())
    assert Grammar(tokenizer, codec_name).matcher([EVERY_TYPE]).accepts(target) == len(target)
    assert codec.decode(target[:-1], [EVERY_TYPE]) == [call]
    assert call_errors(call, (EVERY_TYPE,)) != []


@pytest.mark.parametrize("codec_name", CODECS)
def test_real_and_synthetic_answers_pass_the_grammar(
    tokenizer: TextTokenizer, records: list[Record], codec_name: str
) -> None:
    codec, grammar, renderer = build_codec(codec_name, tokenizer), Grammar(tokenizer, codec_name), Renderer(tokenizer)
    for record in records[:150]:
        example = render_record(renderer, codec, record)
        assert [c.key for c in codec.decode(example.target[:-1], record.tools)] == [c.key for c in record.answers]
        assert grammar.matcher(record.tools).accepts(example.target) == len(example.target), record


@pytest.mark.parametrize("name", ["snips", "hwu64", "mixed_calls", "sgd", "ha_gemini"])
def test_real_answers_round_trip(tokenizer: TextTokenizer, real_data: Path, name: str) -> None:
    codec, renderer, grammar = build_codec("decisions", tokenizer), Renderer(tokenizer), Grammar(tokenizer, "decisions")
    for number, record in enumerate(read_records(real_data / name / "validation.jsonl.gz")):
        example = render_record(renderer, codec, record)
        assert [c.key for c in codec.decode(example.target[:-1], record.tools)] == [c.key for c in record.answers]
        if number < 40:
            assert grammar.matcher(record.tools).accepts(example.target) == len(example.target)


@pytest.mark.parametrize(
    ("query", "schema", "value"),
    [
        ("send 10,000 to Anna", {"type": "integer"}, 10_000),
        ("send $1,800.50 to Anna", {"type": "number"}, 1800.5),
        ("send 2,500,000 to Anna", {"type": "number", "minimum": 0}, 2_500_000),
        ("send 10,000 to Anna", {"type": ["integer", "null"]}, 10_000),
    ],
)
def test_a_number_is_copied_as_the_request_has_it(
    tokenizer: TextTokenizer, query: str, schema: dict[str, object], value: float
) -> None:
    tool = normalise_tool(
        {"name": "send", "parameters": {"type": "object", "properties": {"amount": schema}, "required": ["amount"]}}
    )
    codec = build_codec("decisions", tokenizer)
    target, _ = codec.encode([Call("send", {"amount": value})], [tool], tokenizer.encode(" " + query))
    assert "," in tokenizer.decode(target)
    assert codec.decode(target[:-1], [tool]) == [Call("send", {"amount": value})]
    assert Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) == len(target)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("007", "integer", 7),
        (".5", "number", 0.5),
        ("-12,345.6", "number", -12345.6),
        ("1e-07", "number", 1e-07),
        ("2E6", "number", 2e6),
        ("1,80", "number", 1.8),
        ("0", "integer", 0),
    ],
)
def test_numbers_are_read_as_people_write_them(tokenizer: TextTokenizer, text: str, kind: str, value: float) -> None:
    tool = normalise_tool({"name": "send", "parameters": {"type": "object", "properties": {"amount": {"type": kind}}}})
    target = [tokenizer.first_tool_label, tokenizer.first_argument_label, *tokenizer.encode(" " + text), tokenizer.eos]
    assert Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) == len(target)
    assert build_codec("decisions", tokenizer).decode(target[:-1], [tool]) == [Call("send", {"amount": value})]


@pytest.mark.parametrize("text", ["1 80", "--5", "1,8000", "1,80,000", "fast", "2 or 3"])
def test_what_is_no_number_is_no_number(tokenizer: TextTokenizer, text: str) -> None:
    tool = normalise_tool(
        {"name": "send", "parameters": {"type": "object", "properties": {"amount": {"type": "number"}}}}
    )
    target = [tokenizer.first_tool_label, tokenizer.first_argument_label, *tokenizer.encode(" " + text)]
    with pytest.raises(DecodeError, match="/amount: not a number"):
        build_codec("decisions", tokenizer).decode(target, [tool])


@pytest.mark.parametrize("codec_name", ["decisions", "decisions-2"])
@pytest.mark.parametrize(
    ("text", "may"),
    [
        *((text, True) for text in ("180", "2.5", "3k", "2.5 million", "minus 18", "Twenty five", "$5", "1/2", "8%")),
        *((text, False) for text in ("Paris", "four stars", "next week", "")),
    ],
)
def test_a_number_is_made_of_digits_and_words_of_numbers(
    tokenizer: TextTokenizer, codec_name: str, text: str, may: bool
) -> None:
    schema = {"type": "object", "properties": {"amount": {"type": "integer", "maximum": 100}}}
    tool = normalise_tool({"name": "send", "parameters": schema})
    label = tokenizer.first_argument_label
    target = [tokenizer.first_tool_label, label, *tokenizer.encode(" " + text if text else ""), tokenizer.eos]
    assert (Grammar(tokenizer, codec_name).matcher([tool]).accepts(target) == len(target)) is may


INNER = {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "required", "value"),
    [
        (INNER, True, {"city": "Bonn"}),
        (INNER, True, {}),
        (INNER, False, {"street": "1 Main St"}),
        ({**INNER, "nullable": True}, True, None),
        ({**INNER, "nullable": True, "required": ["city"]}, True, {"city": "Bonn"}),
        ({**INNER, "nullable": True, "required": ["city"]}, False, {"city": "Bonn"}),
    ],
)
def test_closed_objects_are_written_member_by_member(
    tokenizer: TextTokenizer, schema: dict[str, object], required: bool, value: object
) -> None:
    tool = normalise_tool(
        {"name": "ship", "parameters": {"type": "object", "properties": {"to": schema}, "required": ["to"] * required}}
    )
    assert [leaf.name for leaf in leaves(tool)] == ["to.city", "to.street"]
    codec, calls = build_codec("decisions", tokenizer), [Call("ship", {"to": value})]
    target, _ = codec.encode(calls, [tool], ())
    assert codec.decode(target[:-1], [tool]) == calls
    assert Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) == len(target)


@pytest.mark.parametrize(
    ("schema", "required", "value"),
    [(INNER, False, {}), ({**INNER, "nullable": True}, False, None), ({**INNER, "nullable": True}, True, {})],
)
def test_an_object_without_members_that_would_read_back_as_another_is_spelled(
    tokenizer: TextTokenizer, schema: dict[str, object], required: bool, value: object
) -> None:
    tool = normalise_tool(
        {"name": "ship", "parameters": {"type": "object", "properties": {"to": schema}, "required": ["to"] * required}}
    )
    codec, calls = build_codec("decisions", tokenizer), [Call("ship", {"to": value})]
    target, _ = codec.encode(calls, [tool], ())
    assert target[1] == tokenizer.argument
    assert codec.decode(target[:-1], [tool]) == calls
    assert Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) == len(target)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "minLength": 3}, ["Bob", "a b", "Roberta"], ["Al"]),
        ({"type": "string", "minLength": 2, "maxLength": 2}, ["US"], ["U", "USA"]),
        ({"type": "string", "maxLength": 2}, ["", "US"], ["USA"]),
        ({"type": "string", "pattern": "foo|bar"}, ["foox", "xbar"], ["fo"]),
        ({"type": "string", "pattern": "^[\\d-]+$"}, ["12-3"], ["١"]),
        ({"type": "string", "pattern": "^[A-Za-z ]{3,50}$"}, ["Bob", "a b"], ["Jo"]),
        ({"type": "string", "pattern": "^.{3,100}$"}, ["art", " art"], ["AI"]),
        ({"type": "string", "pattern": "^$|^[a-z]+$"}, ["", "abc"], ["Abc"]),
        ({"type": "string", "pattern": "^a(b|c)[|]\\|$|x$"}, ["ab||", "ac||", "yx"], ["ab|", "xy"]),
        ({"type": "string", "enum": ["a", " b"]}, ["a", " b"], ["b"]),
        ({"type": "string", "enum": [" b", *(f"song {number}" for number in range(100))]}, [" b", "song 7"], ["b"]),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, [[]], [[1]]),
        ({"enum": [None]}, [None], []),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, [5, -70000], []),
        (
            {
                "type": "object",
                "properties": {f"a{number}": {"type": "number", "maximum": 1.7e308} for number in range(20)},
            },
            [{"a3": 5}],
            [],
        ),
        ({"type": "integer", "minimum": 0, "maximum": 100}, [5, 100], [101, -1]),
        ({"type": "integer", "minimum": 0, "maximum": 5000}, [5000], [10000]),
        (
            {"type": "string", "enum": ["a" * 3, *(f"song {number}" for number in range(3000)), "x.y", "\x7f/"]},
            ["song 2999", "x.y", "\x7f/", "aaa"],
            ["song", "xzy"],
        ),
        (
            {
                "type": ["array", "null"],
                "items": {"type": "string", "enum": [f"song {number}" for number in range(3000)]},
            },
            [["song 7", "song 2999"], None],
            [["song"]],
        ),
    ],
)
def test_grammar_and_check_together_hold_an_answer_to_its_schema(
    tokenizer: TextTokenizer, schema: dict[str, object], good: list[object], bad: list[object]
) -> None:
    tool = normalise_tool({"name": "say", "parameters": {"type": "object", "properties": {"it": schema}}})
    codec = build_codec("decisions", tokenizer)
    for value in [*good, *bad]:
        call = Call("say", {"it": value})
        target, _ = codec.encode([call], [tool], ())
        allowed = Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) == len(target)
        assert (allowed and not call_errors(call, (tool,))) is (value in good), value


@pytest.mark.parametrize("codec_name", CODECS)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(declared=NESTED, data=st.data())
def test_every_answer_that_is_valid_reads_back_byte_for_byte(
    codec_name: str, declared: dict[str, Any], data: st.DataObject
) -> None:
    try:
        tool = normalise_tool({"name": "t", "parameters": declared})
    except ToolSchemaError:
        return
    assert normalise_tool(tool.to_json()).declared == tool.declared
    schema = json.loads(json.dumps(tool.parameters))
    call = Call("t", data.draw(from_schema(schema)))
    if call_errors(call, (tool,)):  # a date, of which the generator knows less than the validator
        return
    tokenizer = _plain()
    codec = build_codec(codec_name, tokenizer)
    query = tokenizer.encode(data.draw(st.sampled_from([" set it to 5 and two hundred", " red Paris 30"])))
    target, _ = codec.encode([call], [tool], query)
    (again,) = codec.decode(target[:-1], [tool])
    ordered = [dump(in_schema_order(one.arguments, schema)) for one in (again, call)]
    assert ordered[0] == ordered[1]
    assert _grammar(codec_name).matcher([tool]).accepts(target) == len(target)


@lru_cache
def _grammar(codec_name: str) -> Grammar:
    return Grammar(_plain(), codec_name)


COMPOUND = [
    (
        {"items": [{"name": "pizza", "count": 2}, {"name": "cola", "count": 3}]},
        "items items.count 2 items.name pizza items items.count 3 items.name cola",
    ),
    ({"labels": {"team": "blue", "tier": "web"}}, "labels team blue labels tier web"),
    ({"grid": [[1, 2], [3]]}, "grid 1 2 grid 3"),
    ({"point": [12, 7]}, "point 12 7"),
    ({"fields": {"name": "Dana"}}, "fields name Dana"),
    ({"to": ["a", "b"]}, "to a b"),
    ({"contact": {"name": "Dana"}}, "contact.name Dana"),
]


@pytest.mark.parametrize(("arguments", "written"), COMPOUND)
def test_compound_values_are_written_member_by_member(
    tokenizer: TextTokenizer, arguments: dict[str, Any], written: str
) -> None:
    item = {"type": "object", "properties": {"name": {"type": "string"}, "count": {"type": "integer"}}}
    properties: dict[str, Any] = {
        "items": {"type": "array", "items": item},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "grid": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        "point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]},
        "fields": {"type": "object"},
        "to": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "contact": {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": True},
    }
    tool = normalise_tool({"name": "t", "parameters": {"type": "object", "properties": properties}})
    names = [leaf.name for leaf in leaves(tool)]
    codec = build_codec("decisions-2", tokenizer)
    target, _ = codec.encode([Call("t", arguments)], [tool], ())
    first = tokenizer.first_argument_label
    words = [names[token - first] if token >= first else tokenizer.decode([token]) for token in target[1:-1]]
    assert "".join("".join(words).split()) == "".join(written.split())
    assert codec.decode(target[:-1], [tool]) == [Call("t", arguments)]


def test_members_of_an_optional_object_are_not_required() -> None:
    inner = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    for required in (True, False):
        declared = {"type": "object", "properties": {"to": inner}, "required": ["to"] * required}
        (leaf,) = leaves(normalise_tool({"name": "t", "parameters": declared}))
        assert leaf.required is required


@pytest.mark.parametrize(
    ("query", "schema", "value", "said"),
    [
        ("set it to two hundred please", {"type": "integer"}, 200, "two hundred"),
        ("make it minus 18 degrees", {"type": "number"}, -18, "minus 18"),
        ("half of it", {"type": "number"}, 0.5, "half"),
        ("at half past seven", {"type": "string", "format": "time"}, "07:30:00", "half past seven"),
        ("on March 5th 2026", {"type": "string", "format": "date"}, "2026-03-05", "March 5th 2026"),
        ("for 90 minutes", {"type": "string", "format": "duration"}, "PT1H30M", "90 minutes"),
    ],
)
def test_students_of_the_second_version_write_what_was_said(
    tokenizer: TextTokenizer, query: str, schema: dict[str, Any], value: Any, said: str
) -> None:
    tool = normalise_tool({"name": "t", "parameters": {"type": "object", "properties": {"it": schema}}})
    codec = build_codec("decisions-2", tokenizer)
    target, _ = codec.encode([Call("t", {"it": value})], [tool], tokenizer.encode(" " + query))
    assert tokenizer.decode(target[2:-1]).strip() == said
    assert codec.decode(target[:-1], [tool]) == [Call("t", {"it": value})]
    assert Grammar(tokenizer, "decisions-2").matcher([tool]).accepts(target) == len(target)


def test_a_relative_date_needs_the_moment_in_which_it_is_said(tokenizer: TextTokenizer) -> None:
    schema = {"type": "object", "properties": {"day": {"type": "string", "format": "date"}}}
    tool, codec = normalise_tool({"name": "t", "parameters": schema}), build_codec("decisions-2", tokenizer)
    ids = [tokenizer.first_tool_label, tokenizer.first_argument_label, *tokenizer.encode(" tomorrow")]
    with pytest.raises(DecodeError, match="/day: not a date: 'tomorrow'"):
        codec.decode(ids, [tool])
    assert codec.decode(ids, [tool], datetime(2026, 3, 4, 12)) == [Call("t", {"day": "2026-03-05"})]
    left_out: list[str] = []
    assert codec.decode(ids, [tool], None, left_out) == [Call("t", {})]
    assert len(left_out) == 1


@settings(max_examples=80, deadline=None)
@given(st.text())
def test_any_unicode_text_round_trips_and_never_becomes_a_reserved_symbol(text: str) -> None:
    tokenizer = _plain()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(MARKERS) <= token < tokenizer.first_tool_label for token in ids)


_PLAIN: list[TextTokenizer] = []


def _plain() -> TextTokenizer:
    if not _PLAIN:
        _PLAIN.append(TextTokenizer.train(["the weather in Paris", "set an alarm for 7 am"] * 5, 600))
    return _PLAIN[0]


@pytest.mark.parametrize("text", ["<eos>", "<tool_0> x", "a <arg_3>", "<answer><pad>"])
def test_special_token_text_in_a_request_stays_text(tokenizer: TextTokenizer, text: str) -> None:
    assert all(len(MARKERS) <= token < tokenizer.first_tool_label for token in tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_evaluation_and_serving_render_the_same_bytes(tokenizer: TextTokenizer, records: list[Record]) -> None:
    codec = build_codec("decisions", tokenizer)
    for record in records[:40]:
        trained = render_record(Renderer(tokenizer), codec, record)
        served = Renderer(tokenizer).prompt("", record.query, [normalise_tool(tool.to_json()) for tool in record.tools])
        wrapped = Renderer(tokenizer).prompt(
            "",
            record.query,
            [
                normalise_tool({"type": "function", "function": json.loads(json.dumps(tool.to_json()))})
                for tool in record.tools
            ],
        )
        assert prompt_ids(trained, tokenizer) == prompt_ids(served, tokenizer) == prompt_ids(wrapped, tokenizer)


def test_a_value_takes_the_tokens_that_the_request_has(tokenizer: TextTokenizer) -> None:
    codec, tool = (
        build_codec("decisions", tokenizer),
        normalise_tool({"name": "pay", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}),
    )
    query = tokenizer.encode(" pay $50 now")
    target, _ = codec.encode([Call("pay", {"n": 50})], [tool], query)
    assert set(target[2:-1]) <= set(query)
    assert codec.decode(target[:-1], [tool]) == [Call("pay", {"n": 50})]


def test_objects_with_required_members_are_written_member_by_member() -> None:
    names = [leaf.name for leaf in leaves(EVERY_TYPE)]
    assert [name for name in names if name.startswith(("place", "loose"))] == ["loose.a", "place.no", "place.street"]


def test_a_tool_declared_in_another_order_reads_and_is_answered_the_same(tokenizer: TextTokenizer) -> None:
    properties = EVERY_TYPE.parameters["properties"]
    turned = Tool(
        EVERY_TYPE.name,
        EVERY_TYPE.description,
        {**EVERY_TYPE.parameters, "properties": dict(reversed(properties.items()))},
    )
    renderer, codec = Renderer(tokenizer), build_codec("decisions", tokenizer)
    assert renderer.tool(turned) == renderer.tool(EVERY_TYPE)
    for answers in ANSWERS:
        assert codec.encode(answers, [turned], ()) == codec.encode(answers, [EVERY_TYPE], ())


def test_broken_targets_are_decode_errors(tokenizer: TextTokenizer) -> None:
    tool, argument = tokenizer.first_tool_label, tokenizer.first_argument_label
    decisions, text = build_codec("decisions", tokenizer), build_codec("json", tokenizer)
    for ids in (
        [argument],
        [tool + 5],
        [tool, argument + 60],
        [tool, argument + 1, *tokenizer.encode(" abc")],
        [tool, argument + 6, *tokenizer.encode(" x")],
    ):
        with pytest.raises(DecodeError):
            decisions.decode(ids, [EVERY_TYPE])
    for broken in ("", "[{", '{"name": 1}', '[{"arguments": {}}]', '[{"name": "x", "arguments": 3}]', "[" * 5000):
        with pytest.raises(DecodeError):
            text.decode(tokenizer.encode(broken), [EVERY_TYPE])


def test_commas_part_the_items_of_a_list(tokenizer: TextTokenizer) -> None:
    tool = normalise_tool(
        {
            "name": "say",
            "parameters": {"type": "object", "properties": {"it": {"type": "array", "items": {"type": "integer"}}}},
        }
    )
    codec, query = build_codec("decisions", tokenizer), tokenizer.encode(" the mean of [1,250,300]")
    target, _ = codec.encode([Call("say", {"it": [1250, 300]})], [tool], query)
    assert "," not in tokenizer.decode(target)
    fused = [
        tokenizer.first_tool_label,
        tokenizer.first_argument_label,
        tokenizer.item,
        *tokenizer.encode("1,250,300"),
        tokenizer.eos,
    ]
    assert Grammar(tokenizer, "decisions").matcher([tool]).accepts(fused) < len(fused)


def test_an_object_of_many_values_is_one_of_them(tokenizer: TextTokenizer) -> None:
    inner = {"type": "object", "properties": {f"a{number}": {"type": "string"} for number in range(70)}}
    tool = normalise_tool(
        {
            "name": "search",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string"}, "filter": inner},
                "required": ["query"],
            },
        }
    )
    assert [leaf.name for leaf in leaves(tool)] == ["filter", "query"]
    codec, calls = build_codec("decisions", tokenizer), [Call("search", {"filter": {"a7": "x"}, "query": "orders"})]
    target, _ = codec.encode(calls, [tool], ())
    assert codec.decode(target[:-1], [tool]) == calls
    assert Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) == len(target)


@pytest.mark.parametrize("value", ["5", None, [5], {"a": 1}, True])
def test_what_is_no_number_for_a_number_is_written_as_it_is(tokenizer: TextTokenizer, value: object) -> None:
    tool = normalise_tool({"name": "say", "parameters": {"type": "object", "properties": {"it": {"type": "integer"}}}})
    target, _ = build_codec("decisions", tokenizer).encode([Call("say", {"it": value})], [tool], ())
    assert json.dumps(value, separators=(",", ":")) in tokenizer.decode(target)


@pytest.mark.parametrize("text", ["1e999", '{"a":[1e999]}', '{"a":NaN}'])
def test_endless_numbers_are_no_values(tokenizer: TextTokenizer, text: str) -> None:
    tool = normalise_tool({"name": "say", "parameters": {"type": "object", "properties": {"it": {}}}})
    label = tokenizer.first_argument_label
    ids = [tokenizer.first_tool_label, label, tokenizer.argument, *tokenizer.encode(" " + text)]
    with pytest.raises(DecodeError):
        build_codec("decisions", tokenizer).decode(ids, [tool])


def test_too_many_tools_or_arguments_are_clear_errors(tokenizer: TextTokenizer) -> None:
    renderer = Renderer(tokenizer)
    many = [normalise_tool({"name": f"t{i}"}) for i in range(129)]
    with pytest.raises(PromptError, match="129 tools at once; at most 128"):
        renderer.prompt("", "x", many)
    wide = normalise_tool(
        {
            "name": "wide",
            "parameters": {"type": "object", "properties": {f"a{i}": {"type": "string"} for i in range(65)}},
        }
    )
    with pytest.raises(PromptError, match="'wide' has 65 arguments; at most 64"):
        renderer.prompt("", "x", [wide])


def test_long_records_are_dropped_and_counted_or_an_error(tokenizer: TextTokenizer, records: list[Record]) -> None:
    renderer, codec = Renderer(tokenizer), build_codec("decisions", tokenizer)
    encoded = encode_records(records, renderer, codec, 200)
    assert len(encoded.examples) + len(encoded.dropped) == len(records)
    assert encoded.dropped
    assert all(example.length <= 200 for example in encoded.examples)
    with pytest.raises(DataError, match="data.on_long=drop"):
        encode_records(records, renderer, codec, 200, "error")


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least"):
        TextTokenizer.train(["x"], 300)


def test_every_target_token_knows_what_it_is_part_of(tokenizer: TextTokenizer) -> None:
    """Each occurrence of a tool's name, an argument's key and a value, in both codecs; quotes inside values confuse
    nobody."""
    tool = Tool(
        "pay_bill",
        "",
        {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "sums": {"type": "array", "items": {"type": "integer"}},
                "now": {"type": "boolean"},
            },
        },
    )
    calls = [Call("pay_bill", {"name": 'a "name": {x', "sums": [12, 7]}), Call("pay_bill", {"now": True})]
    for codec_name in CODECS:
        codec = build_codec(codec_name, tokenizer)
        ids, _ = codec.encode(calls, [normalise_tool(tool.to_json())], ())
        by_kind: dict[str, list[str]] = {name: [] for name in KINDS}
        for token, kind in zip(ids, codec.kinds(ids), strict=True):
            by_kind[KINDS[kind]].append(tokenizer.raw(token).replace("Ġ", " "))
        if codec_name == "json":
            assert "".join(by_kind["name"]) == "pay_billpay_bill"
            assert "".join(by_kind["key"]) == "namesumsnow"
            assert all(part in "".join(by_kind["value"]) for part in ('a \\"name\\": {x', "12", "7", "true"))
        else:
            assert by_kind["name"] == ["<tool_0>", "<tool_0>"]
            assert by_kind["key"] == ["<arg_0>", "<arg_2>", "<arg_1>"]
            assert "".join(by_kind["value"]) == ' a "name": {x<item> 12<item> 7 true'
            assert by_kind["syntax"] == ["<eos>"]
