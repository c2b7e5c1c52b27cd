"""Whether a value stands in a request: whole words, numbers in digits or words, times, dates, lists.

SAID     the request says it, in one form or another IMPLIED  it is chosen from a list, or made of words that stand
apart in the request; whether it is meant is for votes to say ABSENT   nothing in the request is this value
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from enum import IntEnum
from functools import lru_cache
from typing import Any

from dateparser.search import search_dates
from text_to_num import alpha2digit

from needle.text.numberwords import number
from needle.text.times import seconds

WORD = re.compile(r"\w+(?:[.'’]\w+)*", re.UNICODE)
NUMBER = re.compile(
    r"(?<![\w.])[-−]?\d{1,3}(?:[,\u202f"
    r" ]\d{3})+(?:\.\d+)?(?![\d])|(?<![\w.])[-−]?\d+(?:\.\d+)?|(?<=[a-z$€£#])\d+(?:\.\d+)?"
)
CLOCK = re.compile(r"(\d{1,2})(?:[:.h](\d{2}))?\s*(a\.?m|p\.?m|o'?clock)?", re.IGNORECASE)
ISO_DATE, ISO_TIME = (
    re.compile(r"(\d{4})-(\d{2})-(\d{2})(?:[T ]\d{2}:\d{2}.*)?"),
    re.compile(r"(?:\d{4}-\d{2}-\d{2}[T ])?(\d{1,2}):(\d{2})(?::\d{2})?(?:Z|[+-]\d{2}:?\d{2})?"),
)
ISO_DURATION = re.compile(r"P(?=\d|T\d)(\d+W)?(\d+D)?(T(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?")
MAX_WORDS = 6  # of a number or a length of time
UNITS = (
    60,
    3600,
    24,
    7,
    12,
    365,
    100,
    1000,
    1024,
    1_000_000,
    0.5,
)  # minutes in an hour, metres in a kilometre, a percentage as a share
SMALL = {
    "a": 1,
    "an": 1,
    "single": 1,
    "once": 1,
    "another": 1,
    "both": 2,
    "pair": 2,
    "couple": 2,
    "twice": 2,
    "double": 2,
    "triple": 3,
    "dozen": 12,
    "half": 0.5,
    "quarter": 0.25,
}
SPOKEN = {"noon": (12, 0), "midday": (12, 0), "midnight": (0, 0)}
LANGUAGES = ("en", "fr", "es", "pt", "de", "it", "nl")  # whose number words are known


class Grounded(IntEnum):
    ABSENT = 0
    IMPLIED = 1
    SAID = 2


def grounded(value: Any, schema: Mapping[str, Any], text: str, language: str = "en") -> Grounded:
    """How well a value is supported by a request, given the schema of the argument that it is for."""
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        return min(
            (grounded(inner, properties.get(name, {}), text, language) for name, inner in value.items()),
            default=Grounded.IMPLIED,
        )
    if isinstance(value, list):
        inner = schema.get("items")
        return min(
            (grounded(one, inner if isinstance(inner, Mapping) else {}, text, language) for one in value),
            default=Grounded.IMPLIED,
        )
    if value is None or isinstance(value, bool):
        return Grounded.IMPLIED
    said = _number_said(value, text, language) if isinstance(value, int | float) else _text_said(value, text, language)
    return max(said, Grounded.IMPLIED) if "enum" in schema else said


def same(one: Any, other: Any, language: str = "en") -> bool:
    """Whether two values mean the same: 5 PM and 17:00, "The Kitchen" and kitchen, 3 and 3.0."""
    # Objects and lists are the same if what they hold is, in lists in any order.
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key], language) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(any(same(a, b, language) for b in other) for a in one)
    # True isn't 1, and null is nothing else.
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return one is other
    # Texts: the same words, or each says the other.
    if isinstance(one, str) and isinstance(other, str):
        mine, theirs = plain(one), plain(other)
        return (
            _bare(mine) == _bare(theirs)
            or grounded(one, {}, other, language) == Grounded.SAID
            and grounded(other, {}, one, language) == Grounded.SAID
        )
    # A number and a text that says it.
    if isinstance(one, str) or isinstance(other, str):
        number, text = (other, one) if isinstance(one, str) else (one, other)
        return _number_said(number, str(text), language) == Grounded.SAID
    return bool(one == other)


def plain(text: str) -> str:
    """Lower case, no accents, straight quotes, single spaces."""
    folded = unicodedata.normalize("NFKD", text.replace("’", "'").replace("−", "-")).casefold()
    return " ".join("".join(letter for letter in folded if not unicodedata.combining(letter)).split())


def _words(text: str) -> list[str]:
    return [_stem(word) for word in WORD.findall(plain(text).replace("_", " ").replace("-", " "))]


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _bare(text: str) -> list[str]:
    return [word for word in _words(text) if word not in ("the", "a", "an", "my")]


def _text_said(value: str, text: str, language: str) -> Grounded:
    # Word for word, articles aside.
    wanted, present = _bare(value), _words(text)
    if not wanted:
        return Grounded.SAID if value.strip() and value.strip() in text else Grounded.ABSENT
    thin = [word for word in present if word not in ("the", "a", "an", "my")]
    if any(thin[start : start + len(wanted)] == wanted for start in range(len(thin) - len(wanted) + 1)):
        return Grounded.SAID
    if len(value) >= 5 and plain(value) in plain(text) and not value.isalnum():
        return Grounded.SAID  # an address, a path, a code: it has no words
    # Long numbers, whatever stands between their digits.
    digits = re.sub(r"\W", "", value)
    if len(digits) >= 5 and digits.isdigit() and digits in re.sub(r"\W", "", text):
        return Grounded.SAID
    # Dates and times that a schema wants written otherwise than people say them.
    if found := ISO_DATE.fullmatch(value):
        year, month, day = (int(part) for part in found.groups())
        return (
            Grounded.SAID
            if any((day, month) == (when.day, when.month) for when in _dates(text, language))
            else Grounded.ABSENT
        )
    if ISO_DURATION.fullmatch(value):
        return Grounded.SAID if seconds(value) in _readings(text, seconds) else Grounded.ABSENT
    if found := ISO_TIME.fullmatch(value):
        return Grounded.SAID if (int(found[1]), int(found[2])) in set(_times(text, language)) else Grounded.ABSENT
    times = set(_times(value, language)) if re.search(r"\d|noon|midnight", value) else set()
    if times and times & set(_times(text, language)):
        return Grounded.SAID
    # A number as a text; else its words, wherever they stand.
    if re.fullmatch(r"[-−]?\d+(?:\.\d+)?", value.strip()):
        return _number_said(float(value.replace("−", "-")), text, language)
    return Grounded.IMPLIED if set(wanted) <= set(present) else Grounded.ABSENT


def _number_said(value: float, text: str, language: str) -> Grounded:
    numbers = list(_numbers(text, language))
    if any(abs(value - number) < 1e-9 for number in numbers):
        return Grounded.SAID
    if any(
        abs(value - number * unit) < 1e-6 or abs(value * unit - number) < 1e-6 for number in numbers for unit in UNITS
    ):
        return Grounded.IMPLIED
    if value in (SMALL[word] for word in _words(text) if word in SMALL):
        return Grounded.IMPLIED
    return Grounded.ABSENT


def _numbers(text: str, language: str) -> Iterator[float]:
    """Everything that can be read as a number: digits with separators, and words."""
    for variant in {text, _digits(text, language)}:
        for found in NUMBER.findall(variant.lower()):
            yield float(re.sub(r"[,\u202f ]", "", found).replace("−", "-"))
        for hour, minute in _times(variant, language):
            yield from (hour, minute) if minute else (hour,)
    if language == "en":
        yield from _readings(text, number)


@lru_cache(maxsize=4096)
def _readings(text: str, read: Callable[[str], float]) -> tuple[float, ...]:
    """What any few words of a text are read as."""
    words = text.split()
    found = set()
    for size in range(1, MAX_WORDS + 1):
        for start in range(len(words) - size + 1):
            with contextlib.suppress(ValueError):
                found.add(float(read(" ".join(words[start : start + size]).rstrip(".,;:!?"))))
    return tuple(sorted(found))


@lru_cache(maxsize=4096)
def _digits(text: str, language: str) -> str:
    """Number words as digits: "twenty five" as 25."""
    try:
        return str(alpha2digit(text, language if language in LANGUAGES else "en", 0))
    except ValueError:
        return text


def _times(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Every reading of every time of day: "5:30" is half past five in the morning and in the evening."""
    lower = plain(_digits(text, language))
    for word, time in SPOKEN.items():
        if word in lower:
            yield time
    for minutes, towards, hour in re.findall(r"(half|quarter|\d{1,2}) (past|after|to|before) (\d{1,2})", lower):
        number = {"half": 30, "quarter": 15}.get(minutes) or int(minutes)
        total = int(hour) * 60 + (number if towards in ("past", "after") else -number)
        yield from ((total // 60 % 24, total % 60), ((total // 60 + 12) % 24, total % 60))
    for found in CLOCK.finditer(lower):
        hour, minute, half = int(found[1]), int(found[2] or 0), (found[3] or "").replace(".", "")
        if hour > 24 or minute > 59:
            continue
        if half == "am":
            yield hour % 12, minute
        elif half == "pm":
            yield hour % 12 + 12, minute
        else:
            yield hour % 24, minute
            if hour <= 12:
                yield hour % 12 + (12 if hour < 12 else 0), minute


@lru_cache(maxsize=1024)
def _dates(text: str, language: str) -> frozenset[date]:
    """Dates in the text and in a few words around each number: a long text's other numbers lead the search astray."""
    words = text.split()
    near = [
        " ".join(words[max(place - before, 0) : place + after])
        for place, word in enumerate(words)
        if re.search(r"\d", word)
        for before, after in ((2, 1), (0, 3), (1, 2))
    ]
    return frozenset(
        when.date() for part in (text, *near) for _, when in search_dates(part, languages=[language]) or []
    )
