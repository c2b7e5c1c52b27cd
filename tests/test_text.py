"""Tokenizer, renderer, codecs and grammar: what is written is read back, and the grammar allows exactly that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.data.encoding import encode_records
from needle.students.batch import prompt_ids
from needle.text.codecs import CODECS, DecodeError, build_codec
from needle.text.formats import read_records
from needle.text.grammar import Grammar
from needle.text.prompt import KINDS, PromptError, Renderer, leaves, render_record
from needle.text.records import Call, DataError, Record, Tool
from needle.text.tokenizer import MARKERS, TextTokenizer
from needle.text.toolschema import ToolSchemaError, normalise_tool

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
        {"count": -1},
        {"color": "green"},
        {"level": 4},
        {"zip": "1234"},
        {"short": "abcde"},
        {"place": {"no": 3}},
        {"flag": "yes"},
        {"grid": [["x"]]},
    ],
)
def test_the_grammar_forbids_what_the_schema_forbids(
    tokenizer: TextTokenizer, codec_name: str, arguments: dict[str, object]
) -> None:
    codec = build_codec(codec_name, tokenizer)
    target, _ = codec.encode([Call("everything", arguments)], [EVERY_TYPE], ())
    assert Grammar(tokenizer, codec_name).matcher([EVERY_TYPE]).accepts(target) < len(target)


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


@pytest.mark.parametrize("text", ["45EUR", "1 800", "--5", "5.", "1e", "1,8000", "1,80,000"])
def test_what_is_no_number_is_no_number(tokenizer: TextTokenizer, text: str) -> None:
    tool = normalise_tool(
        {"name": "send", "parameters": {"type": "object", "properties": {"amount": {"type": "number"}}}}
    )
    target = [tokenizer.first_tool_label, tokenizer.first_argument_label, *tokenizer.encode(" " + text), tokenizer.eos]
    assert Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) < len(target)


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
def test_an_object_without_members_that_reads_back_as_another_is_refused(
    tokenizer: TextTokenizer, schema: dict[str, object], required: bool, value: object
) -> None:
    tool = normalise_tool(
        {"name": "ship", "parameters": {"type": "object", "properties": {"to": schema}, "required": ["to"] * required}}
    )
    with pytest.raises(PromptError, match="'to' as"):
        build_codec("decisions", tokenizer).encode([Call("ship", {"to": value})], [tool], ())


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
def test_texts_are_held_to_what_the_schema_says(
    tokenizer: TextTokenizer, schema: dict[str, object], good: list[object], bad: list[object]
) -> None:
    tool = normalise_tool({"name": "say", "parameters": {"type": "object", "properties": {"it": schema}}})
    codec = build_codec("decisions", tokenizer)
    for value in [*good, *bad]:
        target, _ = codec.encode([Call("say", {"it": value})], [tool], ())
        assert (Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) == len(target)) is (value in good), (
            value
        )


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


def test_a_value_of_another_type_cannot_be_written(tokenizer: TextTokenizer) -> None:
    with pytest.raises(PromptError, match="expected a string"):
        build_codec("decisions", tokenizer).encode([Call("everything", {"text": 3})], [EVERY_TYPE], ())


def test_unsupported_grammars_name_the_tool(tokenizer: TextTokenizer) -> None:
    bad = normalise_tool(
        {
            "name": "bad",
            "parameters": {"type": "object", "properties": {"x": {"type": "string", "pattern": r"^\ba\b$"}}},
        }
    )
    with pytest.raises(ToolSchemaError, match="'bad'"):
        Grammar(tokenizer, "decisions").matcher([EVERY_TYPE, bad])


@pytest.mark.parametrize(("text", "maximum"), [("120,000", 100), ("6,000", 5000)])
def test_a_number_with_commas_stays_within_its_bounds(tokenizer: TextTokenizer, text: str, maximum: int) -> None:
    tool = normalise_tool(
        {
            "name": "say",
            "parameters": {
                "type": "object",
                "properties": {"it": {"type": "integer", "minimum": 0, "maximum": maximum}},
            },
        }
    )
    target = [tokenizer.first_tool_label, tokenizer.first_argument_label, *tokenizer.encode(" " + text), tokenizer.eos]
    assert Grammar(tokenizer, "decisions").matcher([tool]).accepts(target) < len(target)


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
    ids = [tokenizer.first_tool_label, tokenizer.first_argument_label, *tokenizer.encode(" " + text)]
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
