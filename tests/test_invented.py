"""Made-up tools: valid records that say what their calls hold, and come on top of all others."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date

from needle.data.augment import AugmentConfig
from needle.data.invented.requests import invented
from needle.data.rename import FORM
from needle.data.sources import DataConfig, load_splits
from needle.data.speech.numbers import spellings
from needle.data.speech.times import clock, spoken
from needle.data.synthetic import SyntheticConfig
from needle.text.records import Record
from needle.text.validity import call_errors


def test_made_up_requests_are_valid_and_say_every_value() -> None:
    made = invented(600, 5)
    assert made[:40] == invented(40, 5)
    assert made[:40] != invented(40, 6)
    written = [json.dumps(tool.to_json()) for record in made for tool in record.tools]
    assert len(set(written)) == len(written)
    for kind in ("integer", "number", "boolean", "array", "object", "enum", "null", "default", "maximum"):
        assert sum(f'"{kind}"' in text for text in written) > 20, kind
    for record in made:
        words = record.query.lower().replace(",", "")
        for call in record.answers:
            assert call_errors(call, record.tools) == [], record
            schemas = next(tool for tool in record.tools if tool.name == call.name).parameters["properties"]
            for name, value in call.arguments.items():
                text = json.dumps(schemas[name])
                if "enum" in text or isinstance(value, bool | dict) or FORM.search(text):
                    continue
                for item in value if isinstance(value, list) else [value]:
                    said = (item,) if isinstance(item, str) else spellings(item)
                    assert any(form.lower().replace(",", "") in words for form in said), (name, item, record.query)


def test_numbers_and_dates_are_written_as_people_do() -> None:
    assert spellings(2_500_000) == ("2500000", "2,500,000", "2.5 million")
    assert spellings(25) == ("25", "twenty five")
    assert spellings(-5) == ("-5", "minus 5")
    assert spellings(10_000) == ("10000", "10,000", "10k")
    assert spellings(10_050) == ("10050", "10,050")
    assert spellings(1200.5) == ("1200.5", "1,200.5")
    assert "July 22nd, 2024" in spoken(date(2024, 7, 22))
    assert clock(19, 0) == ("19:00", "7 pm", "7pm", "7 PM")
    assert clock(0, 5)[1] == "12:05 am"


def test_made_up_requests_ask_for_given_tools_too(records: list[Record]) -> None:
    given = list({tool.name: tool for record in records for tool in record.tools}.values())
    made = invented(600, 5, given)
    assert made[:40] == invented(40, 5, given)
    asked = Counter(call.name for record in made for call in record.answers)
    assert 100 < sum(asked[tool.name] for tool in given) < asked.total() / 2
    for record in made:
        assert len({tool.name for tool in record.tools}) == len(record.tools)
        for call in record.answers:
            assert call_errors(call, record.tools) == [], record


def test_made_up_requests_hold_several_calls_and_none() -> None:
    counts = Counter(len(record.answers) for record in invented(1000, 0))
    assert 50 < counts[0] < 130
    assert 180 < counts[2] + counts[3] < 320
    assert all(record.tools for record in invented(200, 0))


def test_made_up_records_come_on_top_of_all_others() -> None:
    config = DataConfig(
        synthetic=SyntheticConfig(train=60, validation=1, test=1, unseen=0),
        size=30,
        augment=AugmentConfig(copies=1),
        invented=20,
    )
    found = load_splits(config).train
    assert Counter(record.source for record in found) == {"synthetic": 60, "invented": 20}
    assert {record.id for record in found[60:]} == {record.id for record in invented(20, 0)}
