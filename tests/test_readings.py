"""What people say, read as values; and what isn't one, refused."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needle.data.speech.numbers import spellings
from needle.text.numbers import number_texts, read_number
from needle.text.numberwords import number
from needle.text.readings import boolean, read, read_any
from needle.text.times import clock, iso_duration, seconds

NOW = datetime(2026, 11, 26, 10)  # a Thursday

NUMBERS: dict[str, float] = {
    "two hundred": 200, "minus 18": -18, "2.5 million": 2_500_000, "3k": 3000, "10,000": 10_000, "half": 0.5,
    "a dozen": 12, "3rd": 3, "$5": 5, "8%": 8, "20 minutes": 20, "twenty five": 25, "twenty-five": 25, "1.2M": 12e5,
    "one hundred and five": 105, "a hundred": 100, "three and a half": 3.5, "half a million": 500_000, "-7": -7,
    "seventy degrees": 70, "18 degrees below zero": -18, "first": 1, "twenty first": 21, "2e6": 2_000_000,
    "two point five": 2.5, "$1,800.50": 1800.5, "five bucks": 5, "5km": 5, "20m": 20, "three quarters": 0.75, "zero": 0,
    "2 million 300 thousand": 2_300_000, "one and a half million": 1_500_000, "1½": 1.5, "double": 2, "3,5": 3.5,
    "eleven hundred": 1100, "nineteen eighty four": 1984, "two thousand twenty six": 2026, "three dozen": 36,
    "half a dozen": 6, "quarter of a million": 250_000, "1/2": 0.5, "3 1/2": 3.5, "two fifths": 0.4, "a tenth": 0.1,
    "ten thousand million": 1e10, "5 hundred and 20": 520, "one hundred and first": 101, "+5": 5, "#7": 7,
    "30 second": 30, "1 000 000": 1_000_000, "at least 5": 5, "three dot five": 3.5, "two grand": 2000, "5 feet": 5,
    "five hundred thousand": 500_000, "ten percent": 10, "100 k": 100_000, "about 40": 40, "twice": 2, "007": 7,
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_numbers_are_read_in_digits_and_words(text: str, value: float) -> None:
    assert number(text) == value
    assert text in ("20m", "1.2M", "3k") or number(text.upper()) == value  # in capitals, m is a million


@pytest.mark.parametrize(
    "text",
    [
        "red",
        "",
        "2 or 3",
        "one or two",
        "five or maybe six",
        "half past",
        "1e400",
        "4 out of 5",
        "a couple",
        "between 5 and 10",
        "5 to 7",
        "point",
    ],
)
def test_no_number_and_several_numbers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        number(text)


@given(st.one_of(st.integers(-(10**12), 10**12), st.integers(0, 100), st.floats(-1e6, 1e6).map(lambda v: round(v, 2))))
def test_every_way_that_data_spells_a_number_is_read_as_it(value: float) -> None:
    assert {number(text) for text in spellings(value)} == {value}
    assert {read_number(text) for text in number_texts(value)} == {value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("10,000", 10_000), ("3,5", 3.5), ("-12,99", -12.99), ("1,800.50", 1800.5), (".5", 0.5), ("007", 7)),
        *(("2e6", 2e6), ("1E-3", 0.001), ("1,234,567", 1_234_567)),
    ],
)
def test_digits_are_read_with_the_commas_that_people_write(text: str, value: float) -> None:
    assert read_number(text) == value


@pytest.mark.parametrize("text", ["1,80,000", "--5", "5.", "1e", "", "five"])
def test_what_is_no_number_in_digits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isn't a number"):
        read_number(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("7 pm", "19:00:00"), ("half past seven", "07:30:00"), ("19:30", "19:30"), ("noon", "12:00:00")),
        *(("seven", "07:00:00"), ("seven thirty", "07:30:00"), ("quarter to nine", "08:45:00"), ("7:15am", "07:15:00")),
        *(("7.30 p.m.", "19:30:00"), ("ten past six in the evening", "18:10:00"), ("midnight", "00:00:00")),
        *(("nineteen oh five", "19:05:00"), ("five o'clock", "05:00:00"), ("12 am", "00:00:00"), ("at 8", "08:00:00")),
        *(("18:30:15+02:00", "18:30:15+02:00"), ("20 minutes past 4 pm", "16:20:00"), ("12 at night", "00:00:00")),
        *(("0730", "07:30:00"), ("730pm", "19:30:00"), ("half-past seven", "07:30:00"), ("5 P.M", "17:00:00")),
        *(("quarter to midnight", "23:45:00"), ("five til nine", "08:55:00"), ("3 at night", "03:00:00")),
    ],
)
def test_times_of_day(text: str, value: str) -> None:
    assert clock(text) == value


@pytest.mark.parametrize(
    "text", ["25", "13 pm", "red", "7:75", "", "in 20 minutes", "7 days", "8-9", "8 or 9", "minus 5"]
)
def test_what_is_no_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=""):
        clock(text)


@pytest.mark.parametrize(
    ("text", "value", "iso"),
    [
        *(("90 minutes", 5400, "PT1H30M"), ("an hour and a half", 5400, "PT1H30M"), ("2h 30m", 9000, "PT2H30M")),
        *(("1:30:00", 5400, "PT1H30M"), ("half an hour", 1800, "PT30M"), ("PT20M", 1200, "PT20M")),
        *(("two hours and ten minutes", 7800, "PT2H10M"), ("a minute", 60, "PT1M"), ("2 days", 172_800, "P2D")),
        *(("1h30m", 5400, "PT1H30M"), ("20-minute", 1200, "PT20M"), ("a fortnight", 1_209_600, "P14D")),
        *(("three quarters of an hour", 2700, "PT45M"), ("P1Y", None, "P1Y"), ("0 seconds", 0, "PT0S")),
    ],
)
def test_lengths_of_time(text: str, value: float | None, iso: str) -> None:
    assert value is None or seconds(text) == value
    assert iso_duration(text) == iso


@pytest.mark.parametrize("text", ["hour", "soon", "20", "", "5 apples", "-5 minutes", "1e20 hours", "9" * 400 + " s"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isn't a length of time"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [*((word, True) for word in ("yes", "on", "Enabled", "sure")), *((word, False) for word in ("no", "off", "0"))],
)
def test_yes_and_no(text: str, value: bool) -> None:
    assert boolean(text) is value


@pytest.mark.parametrize("text", ["maybe", "", "on and off", "not enabled", "don't enable", "not sure", "no problem"])
def test_neither_yes_nor_no_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither yes nor no"):
        boolean(text)


@pytest.mark.parametrize(
    ("text", "form", "value", "alone"),
    [
        ("2026-03-05", "date", "2026-03-05", True),
        ("March 5th 2027", "date", "2027-03-05", True),
        ("5 March 2027", "date", "2027-03-05", True),
        ("tomorrow", "date", "2026-11-27", False),
        ("the day after tomorrow", "date", "2026-11-28", False),
        ("on saturday", "date", "2026-11-28", False),
        ("the 5th", "date", "2026-12-05", False),
        ("march fifth", "date", "2027-03-05", False),
        ("the twenty-first of june", "date", "2027-06-21", False),
        ("next friday at half past seven", "date-time", "2026-11-27T07:30:00", False),
        ("March 5th 2027, 18:30", "date-time", "2027-03-05T18:30:00", True),
        ("in two weeks", "date", "2026-12-10", False),
        ("tomorrow at 5pm", "date-time", "2026-11-27T17:00:00", False),
        ("2026-03-05T18:30:00Z", "date-time", "2026-03-05T18:30:00Z", True),
    ],
)
def test_dates_are_read_against_a_moment_where_they_depend_on_one(
    text: str, form: str, value: str, alone: bool
) -> None:
    schema = {"type": "string", "format": form}
    assert read(text, schema, NOW) == value
    if alone:
        assert read(text, schema) == value
    else:
        with pytest.raises(ValueError, match="without the moment"):
            read(text, schema)


@pytest.mark.parametrize(
    "text",
    ["red shoes", "12", "", "x" * 500, "a", "32 March", "friday the 13th", "05/03/2026", "12.30", "a week from today"],
)
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isn't a date"):
        read(text, {"type": "string", "format": "date"}, NOW)


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("red shoes", {}, "red shoes"),
        ("7", {}, "7"),
        ("Lima", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, "Lima"),
        ("7", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, "7"),
        ("seven", {"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, 7),
        ("off", {"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, False),
        ("b", {"anyOf": [{"type": "integer"}, {"enum": ["a", "b"]}]}, "b"),
    ],
)
def test_a_union_with_a_string_takes_the_words_as_they_are(text: str, schema: dict[str, Any], value: Any) -> None:
    found = read_any(text, schema)
    assert (found, type(found)) == (value, type(value))
