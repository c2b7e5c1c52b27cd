"""The span student: reading without case, pointing at places and members, and the pair of a request and its tool."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from needle.data.encoding import TokenizerConfig, fit_tokenizer
from needle.engine.decode import Engine
from needle.students.build import build_student
from needle.students.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from needle.students.span.batch import OVERHEAD, STEP, SpanBatch, coarse, groups_of
from needle.students.span.reader import SpanConfig
from needle.students.span.student import SpanStudent
from needle.text.codecs import build_codec
from needle.text.declarations import normalise_tool
from needle.text.grammar import Grammar
from needle.text.leaves import leaves
from needle.text.pieces import CASES, Pieces, Said
from needle.text.pointing import number_places
from needle.text.prompt import Example, Renderer, render_record
from needle.text.records import Call, Missing, Record, Tool
from needle.text.tokenizer import PLACE_LABELS, TextTokenizer
from tests.conftest import hear

CONFIG = SpanConfig(
    width=32,
    encoder_layers=2,
    encoder_heads=4,
    encoder_hidden=64,
    positions=64,
    heads=4,
    hidden=48,
    pieces=900,
    joint=1,
    names=True,
    literal=True,
)


@pytest.fixture(scope="module")
def writer(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return fit_tokenizer(
        records,
        TokenizerConfig(size=2100),
        tmp_path_factory.mktemp("cache"),
        pieces=lambda texts: Pieces.train(texts, 900),
    )


@pytest.fixture(scope="module")
def spans(records: list[Record], writer: TextTokenizer) -> list[Example]:
    renderer, codec = Renderer(writer), build_codec("spans", writer)
    return [render_record(renderer, codec, record) for record in records[:200]]


@pytest.fixture
def student(writer: TextTokenizer) -> SpanStudent:
    torch.manual_seed(0)
    built = build_student(CONFIG, writer.size).eval()
    assert isinstance(built, SpanStudent)
    hear(built)
    return built


def batch_of(student: SpanStudent, examples: Sequence[Example], writer: TextTokenizer) -> SpanBatch:
    batch = student.collate(examples, writer)
    assert isinstance(batch, SpanBatch)
    return batch


# Reading


@pytest.mark.parametrize("said", ["PLAY JAZZ", "play jazz", "Play Jazz", "ｐｌａｙ ｊａｚｚ", "pläy  jazz"])
def test_case_width_and_accents_change_how_a_text_is_told_not_what_is_read(writer: TextTokenizer, said: str) -> None:
    assert writer.pieces is not None
    read = writer.pieces.read(said)
    assert read.ids == writer.pieces.read("play jazz").ids
    assert len(read.cases) == len(read.ids) == len(read.offsets)


def test_cases_are_told_apart(writer: TextTokenizer) -> None:
    assert writer.pieces is not None
    told = {said: CASES[writer.pieces.read(said).cases[0]] for said in ("play", "Play", "PLAY", "pLay", "7", "A")}
    assert told == {"play": "lower", "Play": "title", "PLAY": "upper", "pLay": "mixed", "7": "lower", "A": "title"}


def test_a_part_of_a_request_comes_back_to_the_byte(writer: TextTokenizer) -> None:
    assert writer.pieces is not None
    text = "Open  “https://Ex.org/a?b=1&c=2;d”\nthen “Ｆｕｌｌ”  😀 ok"
    said = Said(text, writer.pieces.read(text).offsets)
    assert said.part(0, len(said.offsets) - 1) == text
    (place,) = said.places("https://Ex.org/a?b=1&c=2;d")
    assert said.part(*place) == "https://Ex.org/a?b=1&c=2;d"
    assert said.places("Ｆｕｌｌ")
    assert not said.places("nothing of it")


# Writing and reading back


ORDER = normalise_tool(
    {
        "name": "place_order",
        "parameters": {
            "type": "object",
            "properties": {
                "what": {"type": "string"},
                "count": {"type": "integer"},
                "size": {"type": "string", "enum": ["Small", "EXTRA_LARGE"]},
                "extras": {"type": "array", "items": {"type": "string", "enum": ["milk", "sugar"]}},
                "note": {"type": "string"},
                "gift": {"type": "boolean"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "items": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "price": {"type": "number"}},
                    },
                },
            },
        },
    }
)


@pytest.mark.parametrize(
    "arguments",
    [
        {"what": "Flat White", "count": 2, "size": "EXTRA_LARGE"},
        {"extras": ["sugar", "milk"], "gift": False},
        {"note": 'a; b & "c"\nsecond line'},
        {"labels": {"color": "red", "shape": "round"}},
        {"items": [{"name": "tea", "price": 2.5}, {"name": "cake"}]},
        {"what": "what nobody said", "count": 17},
    ],
)
def test_answers_read_back_and_pass_the_grammar(writer: TextTokenizer, arguments: dict[str, object]) -> None:
    query = 'two Flat White, color red and shape round: tea 2.5, cake. note a; b & "c"\nsecond line'
    codec, renderer = build_codec("spans", writer), Renderer(writer)
    example = render_record(renderer, codec, Record("x", query, (ORDER,), (Call("place_order", arguments),)))
    assert example.said is not None
    (again,) = codec.decode(example.target[:-1], [ORDER], said=example.said)
    assert again.arguments == arguments
    matcher = Grammar(writer, "spans").matcher([ORDER], example.said)
    for token in example.target:
        assert matcher.allowed()[token], token
        matcher.consume(token)


def test_a_value_that_is_said_takes_two_places_whatever_its_length(writer: TextTokenizer) -> None:
    codec, renderer = build_codec("spans", writer), Renderer(writer)
    note = "remember the milk & the bread; then call https://a.org/?x=1"
    record = Record("x", f"note: {note}", (ORDER,), (Call("place_order", {"note": note}),))
    target = render_record(renderer, codec, record).target
    places = [token for token in target if writer.first_place <= token < writer.first_tool_label]
    assert len(target) == 5
    assert len(places) == 2


def test_a_number_can_be_nothing_but_a_number_and_an_end_stands_behind_its_beginning(writer: TextTokenizer) -> None:
    renderer = Renderer(writer)
    example = renderer.prompt("x", "two or 30 coffees", [ORDER])
    assert example.said is not None
    matcher = Grammar(writer, "spans").matcher([ORDER], example.said)
    number = [leaf.name for leaf in leaves(ORDER)].index("count")
    for token in (writer.first_tool_label, writer.first_argument_label + number):
        matcher.consume(token)

    def said(mask: object) -> list[str]:
        places = [i for i in range(len(example.said.offsets)) if mask[writer.first_place + i]]  # type: ignore[index,union-attr]
        return [example.said.part(i, i) for i in places]  # type: ignore[union-attr]

    assert said(matcher.allowed())[0].startswith("t")
    assert "30" in said(matcher.allowed())
    third = next(i for i in range(len(example.said.offsets)) if example.said.part(i, i) == "30")
    matcher.consume(writer.first_place + third)
    assert said(matcher.allowed()) == ["30"]


def test_every_number_of_a_request_is_found_whole(writer: TextTokenizer) -> None:
    assert writer.pieces is not None
    text = "two hundred and five for 3.5k, $1,200.50 or minus 18 degrees, half a dozen at 0.46666889893832975"
    said = Said(text, writer.pieces.read(text).offsets)
    found = {said.part(*place) for place in number_places(said)}
    assert {"two hundred and five", "3.5k", "$1,200.50", "minus 18", "half a dozen", "0.46666889893832975"} <= found
    assert not {"for", "degrees", "or", "two hundred and"} & found


def test_behind_the_last_place_nothing_is_pointed_at(writer: TextTokenizer) -> None:
    example = Renderer(writer).prompt("x", "so " * PLACE_LABELS + "5", [ORDER])
    matcher = Grammar(writer, "spans").matcher([ORDER], example.said)
    number = [leaf.name for leaf in leaves(ORDER)].index("count")
    for token in (writer.first_tool_label, writer.first_argument_label + number):
        matcher.consume(token)
    assert not matcher.allowed()[writer.first_place : writer.first_tool_label].any()


def test_a_member_that_is_the_same_number_is_that_member(writer: TextTokenizer) -> None:
    tool = normalise_tool({"name": "t", "parameters": {"type": "object", "properties": {"x": {"enum": [1.0, 2.5]}}}})
    codec = build_codec("spans", writer)
    target, _ = codec.encode([Call("t", {"x": 1})], [tool], Said("", ()))
    assert target[2] == writer.first_member
    assert codec.decode(target[:-1], [tool])[0].key == Call("t", {"x": 1}).key


def test_what_nobody_said_is_written_read_and_allowed(writer: TextTokenizer) -> None:
    tool = normalise_tool(
        {
            "name": "alarm",
            "parameters": {
                "type": "object",
                "properties": {"time": {"type": "string"}, "label": {"type": "string"}},
                "required": ["time"],
            },
        }
    )
    record = Record("x", "set an alarm", (tool,), (), meta={"missing": {"name": "alarm", "arguments": ["time"]}})
    codec, example = build_codec("spans", writer), render_record(Renderer(writer), build_codec("spans", writer), record)
    missing: list[Missing] = []
    assert codec.decode(example.target[:-1], [tool], said=example.said, missing=missing) == []
    assert missing == [Missing("alarm", ("time",))]
    matcher = Grammar(writer, "spans").matcher([tool], example.said)
    for token in example.target:
        assert matcher.allowed()[token]
        matcher.consume(token)


def test_the_codec_needs_pieces_and_pieces_need_the_codec(tokenizer: TextTokenizer, writer: TextTokenizer) -> None:
    from needle.text.codecs import current_codec

    with pytest.raises(ValueError, match="word pieces"):
        build_codec("spans", tokenizer)
    assert current_codec("decisions", writer) == "spans"
    with pytest.raises(ValueError, match="codec=spans"):
        current_codec("json", writer)


# The student


def test_decoding_step_by_step_equals_the_forward_pass(
    student: SpanStudent, spans: list[Example], writer: TextTokenizer
) -> None:
    some = [*spans[:6], *[example for example in spans if sum(map(writer.is_tool_label, example.target)) > 1][:4]]
    batch = batch_of(student, some, writer)
    with torch.no_grad():
        whole, state = student(batch), student.start(batch)
        stepwise = torch.cat(
            [student.step(state, batch.inputs[:, t : t + 1], batch.open_tool[:, t : t + 1])
             for t in range(batch.targets.shape[1])], dim=1
        )  # fmt: skip
    real = batch.targets != -100
    assert torch.equal(whole[real].isinf(), stepwise[real].isinf())
    finite = whole[real].isfinite()
    torch.testing.assert_close(whole[real][finite], stepwise[real][finite], atol=2e-4, rtol=1e-3)
    assert whole[real].gather(1, batch.targets[real][:, None]).isfinite().all()


def test_records_read_alike_alone_in_a_batch_and_from_the_cache(
    student: SpanStudent, spans: list[Example], writer: TextTokenizer
) -> None:
    with torch.no_grad():
        together, cache = student(batch_of(student, spans[:5], writer)), student.new_cache()
        for row, example in enumerate(spans[:5]):
            alone = student(batch_of(student, [example], writer))[0]
            finite = alone.isfinite()
            torch.testing.assert_close(together[row, : len(alone)][finite], alone[finite], atol=2e-4, rtol=1e-3)
        batch = batch_of(student, [replace(e, target=(), open_tool=()) for e in spans[:5]], writer)
        start, none = torch.full((5, 1), writer.answer), torch.full((5, 1), -1)
        plain, cold, warm = (student.step(student.start(batch, kept), start, none) for kept in (None, cache, cache))
    finite = plain.isfinite()
    torch.testing.assert_close(plain[finite], cold[finite], atol=2e-4, rtol=1e-3)
    assert torch.equal(cold, warm)
    assert len(cache) == len(batch.tools.rendered)


def test_training_shapes_and_quiet_tools_change_no_score(
    student: SpanStudent, spans: list[Example], writer: TextTokenizer
) -> None:
    """Padding to common shapes, and tools without gradient, are for speed alone."""
    batch = batch_of(student, spans[:8], writer)
    student.config = replace(CONFIG, case_dropout=0.0, tool_gradient=0.5)
    with torch.no_grad():
        plain = student.eval()(batch)
    student.train()
    busy = student(batch)
    finite = plain.isfinite()
    torch.testing.assert_close(plain[finite], busy[finite], atol=2e-4, rtol=1e-3)
    wanted = (batch.targets.flatten() != -100).nonzero()[:, 0]
    torch.testing.assert_close(student(batch, wanted=wanted), busy.flatten(0, 1)[wanted], atol=2e-4, rtol=1e-3)


def test_every_parameter_gets_a_finite_gradient(
    student: SpanStudent, spans: list[Example], writer: TextTokenizer
) -> None:
    student.train()
    batch = batch_of(student, spans[:60], writer)
    torch.nn.functional.cross_entropy(student(batch).flatten(0, 1), batch.targets.flatten()).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_order_of_keys_and_tools_only_renames_labels(student: SpanStudent, writer: TextTokenizer) -> None:
    def tool(name: str, turned: bool) -> Tool:
        properties = {
            "where": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        }
        rows = list(properties.items())
        return Tool(name, "Ask", {"type": "object", "properties": dict(rows[::-1] if turned else rows)})

    renderer = Renderer(writer)
    plain = renderer.prompt("x", "weather in Oslo", [tool("weather", False), tool("climate", False)])
    turned = renderer.prompt("x", "weather in Oslo", [tool("climate", True), tool("weather", True)])
    first = writer.first_tool_label
    with torch.no_grad():
        a, b = (student(batch_of(student, [one], writer))[0, 0] for one in (plain, turned))
    torch.testing.assert_close(a[first : first + 2], b[first : first + 2].flip(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a[: writer.first_member], b[: writer.first_member], atol=1e-4, rtol=1e-4)


def test_groups_cost_least(writer: TextTokenizer) -> None:
    sizes = sorted(random.Random(1).choices(range(5, 200), k=60))
    groups = groups_of(sizes)
    assert [place for group in groups for place in group] == list(range(60))

    def cost(cut: Sequence[range]) -> int:
        return sum(OVERHEAD + len(group) * coarse(sizes[group[-1]], STEP) for group in cut)

    assert cost(groups) <= min(
        cost([range(60)]), cost([range(at, at + 1) for at in range(60)]), cost([range(30), range(30, 60)])
    )
    assert groups_of([]) == []


def test_a_checkpoint_keeps_its_pieces_and_answers_alike(
    student: SpanStudent, records: list[Record], writer: TextTokenizer, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, Checkpoint(student, CONFIG, writer, "spans", 512))
    assert json.loads((tmp_path / "config.json").read_text())["codec"] == "spans"
    again = load_checkpoint(tmp_path)
    assert again.tokenizer.pieces is not None
    ours, theirs = (Engine(one) for one in (Checkpoint(student, CONFIG, writer, "spans", 512), again))
    for record in records[:6]:
        mine, its = ours.answer(record.query, record.tools), theirs.answer(record.query, record.tools)
        assert mine == its
        assert mine.finish in ("stop", "length", "invalid")


def test_sources_are_where_a_value_was_pointed_at(writer: TextTokenizer) -> None:
    from needle.engine.spans import pointed_spans

    query = "send Flat White to bob"
    example = render_record(
        Renderer(writer),
        build_codec("spans", writer),
        Record("x", query, (ORDER,), (Call("place_order", {"what": "Flat White"}),)),
    )
    assert example.said is not None
    (found,) = pointed_spans(example.target[:-1], example.said, [ORDER], writer)
    assert {name: [query[a:b] for a, b in places] for name, places in found.items()} == {"what": ["Flat White"]}
