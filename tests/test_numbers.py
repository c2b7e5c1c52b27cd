"""Numbers with commas: which a schema allows, and what they are read as."""

from __future__ import annotations

import re
from typing import Any

import pytest

from needle.text.numbers import number_texts, read_number, with_commas


@pytest.mark.parametrize("most", [999, 1000, 1001, 1999, 4070, 9999, 10_000, 25_300])
def test_of_numbers_with_commas_just_those_up_to_the_maximum_are_allowed(most: int) -> None:
    form = with_commas({"type": "integer", "minimum": 0, "maximum": most})
    for value in range(950, most + 1200):
        assert bool(form and re.fullmatch(form, f"{value:,}")) is (1000 <= value <= most), value


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, ["1,000", "-1,000", "12,345,678"], ["999", "1,00", "01,000", "1,000.5"]),
        ({"type": "number", "minimum": 0}, ["1,000.50", "1,000"], ["-1,000"]),
        ({"type": ["number", "null"], "minimum": 1000}, ["1,000"], []),
        ({"type": "number", "minimum": 1001}, [], ["1,000", "2,000"]),
        ({"type": "number", "exclusiveMaximum": 2000}, ["1,999", "-3,000.5"], ["2,000", "1,999.5"]),
        ({"type": "number", "maximum": -5}, ["-1,000"], ["1,000"]),
        ({"type": "integer", "multipleOf": 5}, [], ["1,000"]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["-1,000", "1,000"], []),
        ({"type": "number", "maximum": 1.7976931348623157e308}, ["1,000.5"], []),
    ],
)
def test_bounds_hold_for_numbers_with_commas(schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    form = with_commas(schema)
    assert [text for text in good if not (form and re.fullmatch(form, text))] == []
    assert [text for text in bad if form and re.fullmatch(form, text)] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10,000", 10_000),
        ("3,5", 3.5),
        ("-12,99", -12.99),
        ("1,800.50", 1800.5),
        (".5", 0.5),
        ("007", 7),
        ("2e6", 2e6),
        ("1E-3", 0.001),
        ("1,234,567", 1_234_567),
    ],
)
def test_numbers_are_read(text: str, value: float) -> None:
    assert read_number(text) == value


@pytest.mark.parametrize("value", [0, 5, -7, 999, 1000, 25_000, 3.5, 12.25, 1234.5, 1e-7, 1e20, -2_000_000])
@pytest.mark.parametrize("schema", [{"type": "number"}, {"type": "number", "minimum": 0, "maximum": 5000}])
def test_every_way_to_write_a_number_is_read_as_it(value: float, schema: dict[str, Any]) -> None:
    assert {read_number(text) for text in number_texts(value, schema)} == {value}
