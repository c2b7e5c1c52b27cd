"""Requests for declared tools, and other surfaces of records."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from needle.data.declared.requests import Asker, Families, declared, held_out_family
from needle.data.declared.values import Values, phrases
from needle.data.sources import DataConfig, load_splits, read_declarations
from needle.data.surface import changed, resurface
from needle.text.declarations import normalise_tool
from needle.text.records import Call, Record, Tool
from needle.text.validity import call_errors


def tool(name: str, required: tuple[str, ...] = (), **properties: dict[str, object]) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return normalise_tool({"name": name, "description": f"{name} for people.", "parameters": schema})


TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
TOOLS = [
    (family, one)
    for family in "abcdefgh"
    for one in (
        tool(f"get_{family}_weather", ("city",), city=TEXT, days=WHOLE, unit={"type": "string", "enum": ["C", "F"]}),
        tool(f"send_{family}_note", ("to", "text"), to=TEXT, text=TEXT, urgent={"type": "boolean"}),
        tool(
            f"order_{family}",
            ("items",),
            items={
                "type": "array",
                "items": {"type": "object", "properties": {"name": TEXT, "price": {"type": "number"}}},
            },
            labels={"type": "object", "additionalProperties": TEXT},
        ),
        tool(f"list_{family}_things"),
    )
]


def test_the_same_seed_asks_the_same_and_every_call_is_valid() -> None:
    one, two, other = declared(300, 1, TOOLS), declared(300, 1, TOOLS), declared(300, 2, TOOLS)
    assert [record.to_json() for record in one] == [record.to_json() for record in two]
    assert one[:100] == declared(100, 1, TOOLS)
    assert one != other
    for record in one:
        assert record.query.strip()
        assert record.tools
        assert not [error for call in record.answers for error in call_errors(call, record.tools)]


def test_there_are_single_calls_several_and_none() -> None:
    counts = Counter(min(len(record.answers), 2) for record in declared(1000, 3, TOOLS))
    assert counts[1] > 400
    assert counts[2] > 150
    assert counts[0] > 150


def test_half_of_families_and_phrases_are_kept_apart() -> None:
    names = [
        {one.name for record in declared(400, 1, TOOLS, held_out=side) for one in record.tools}
        for side in (False, True)
    ]
    assert names[0]
    assert names[1]
    assert not names[0] & names[1]
    for kind, lines in phrases(False).items():
        if isinstance(lines, list) and kind not in ("frames", "wants", "named"):  # those repeat the plain form
            assert not set(lines) & set(phrases(True)[kind]), kind
    assert {held_out_family(family) for family, _ in TOOLS} == {False, True}


def test_what_a_call_takes_is_said_but_for_flags_members_and_numbers() -> None:
    for record in declared(500, 5, TOOLS):
        for call in record.answers:
            for value in call.arguments.values():
                if isinstance(value, str) and value not in ("C", "F"):
                    assert value in record.query, (record.query, call)


def test_an_unsaid_value_names_tool_and_argument() -> None:
    lacking = [record for record in declared(1500, 7, TOOLS) if record.missing]
    assert len(lacking) > 30
    for record in lacking:
        assert record.missing is not None
        assert not record.answers
        wanted = next(one for one in record.tools if one.name == record.missing.name)
        assert set(record.missing.arguments) <= set(wanted.parameters["required"])


def test_a_union_is_asked_for_as_each_of_its_kinds() -> None:
    values = Values(random.Random(2), held_out=False)
    union = {"anyOf": [{"type": "integer"}, {"type": "string"}], "description": "How many."}
    drawn = [values.of("amount", union) for _ in range(60)]
    assert {type(one.value) for one in drawn if one} == {int, str}


def test_a_flag_is_said_both_ways() -> None:
    values = Values(random.Random(0), held_out=False)
    on, off = ({values.flag("include_archived", side) for _ in range(200)} for side in (True, False))
    assert len(on) > 4
    assert len(off) > 4
    assert not on & off
    assert all("archived" in said for said in on | off)


def test_odd_texts_come_back_to_their_last_character() -> None:
    asker = Asker(random.Random(1), Families.of(TOOLS, False), False)
    run = tool("run", ("command",), command=TEXT)
    for _ in range(100):
        wish = asker.wish(run)
        assert wish is not None
        assert str(wish.said["command"].value) in asker.sentence(wish)


RECORD = Record(
    "r",
    'Play "Blue Moon" in the Living Room, please at 7.30 for J.R. Smith!',
    (tool("play", (), title=TEXT, room=TEXT, time=TEXT, who=TEXT, mode={"type": "string", "enum": ["Loud", "Quiet"]}),),
    (Call("play", {"title": "Blue Moon", "room": "Living Room", "time": "7.30", "who": "J.R. Smith", "mode": "Loud"}),),
)


@pytest.mark.parametrize("kind", ["lower", "upper", "title", "bare", "spaces", "quotes", "wide", "polite", "slip"])
def test_values_follow_the_surface_and_members_stay_as_declared(kind: str) -> None:
    found = changed(RECORD, kind, random.Random(3))
    assert found is not None
    assert found.query != RECORD.query
    arguments = dict(found.answers[0].arguments)
    assert arguments.pop("mode") == "Loud"
    assert all(str(value) in found.query for value in arguments.values())


def test_a_number_keeps_its_point_and_a_name_loses_its_dots() -> None:
    found = changed(RECORD, "bare", random.Random(0))
    assert found is not None
    assert found.query == "Play Blue Moon in the Living Room please at 7.30 for J.R Smith"
    assert found.answers[0].arguments["who"] == "J.R Smith"


def test_a_surface_is_a_function_of_its_source() -> None:
    a, b = ([resurface(RECORD, random.Random(n)).query for n in range(40)] for _ in range(2))
    assert a == b
    assert len(set(a)) > 5


def test_real_declarations_are_asked_for(real_data: Path) -> None:
    tools = read_declarations([str(real_data / "schemas" / "tools.jsonl.gz")])
    assert len(tools) > 3500
    records = declared(400, 0, tools)
    assert len({one.name for record in records for one in record.tools}) > 150


def test_a_family_is_limited_and_records_without_arguments_weigh_less(tmp_path: Path) -> None:
    import json

    rows = [
        {"id": f"{family}{number}", "query": f"do {number}", "tools": [tool("act").to_json()], "source": "s",
         "answers": [{"name": "act", "arguments": {}}], "meta": {"family": family}}
        for family in "xyz" for number in range(30)
    ]  # fmt: skip
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(kind="jsonl", train=[str(file)], family_limit=10)
    assert Counter(record.meta["family"] for record in load_splits(config).train) == {"x": 10, "y": 10, "z": 10}
    some = load_splits(DataConfig(kind="jsonl", train=[str(file)], bare=0.5)).train
    assert 20 < len(some) < 70
