"""Lengths of time, times of day and dates as people say them. What means several things, or depends on a moment that
isn't known, is none."""

from __future__ import annotations

import contextlib
import re
from datetime import date, datetime, time, timedelta
from typing import Any

from needle.text.numberwords import JOINTS, ONCE, TH, leading, whole, words_of

_UNITS = {  # of time, in seconds
    "ms millisecond milliseconds": 0.001,
    "s sec secs second seconds": 1,
    "m min mins minute minutes": 60,
    "h hr hrs hour hours": 3600,
    "d day days": 86400,
    "w wk wks week weeks": 604800,
    "fortnight fortnights": 1209600,
}
LONGEST = 1e11  # seconds, some three thousand years
UNITS = {word: size for words, size in _UNITS.items() for word in words.split()}
WEEKDAY = "(?:mon|tues|wednes|thurs|fri|satur|sun)day"
MONTH = "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
MONTH += "|nov(?:ember)?|dec(?:ember)?)"
DAY = "(?:0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?"
SPAN = "(?:day|week|month|year)"
_ORDINALS = {word: value for word, value in TH.items() if 0 < value <= 31}


def seconds(text: str) -> float:
    """`90 minutes`, `an hour and a half`, `2h 30m`, `1:30:00`, `half an hour`, `PT20M`, in seconds. Raises
    `ValueError`."""
    text = text.strip().lower()
    one = r"(\d{1,12}(?:\.\d{1,9})?)"
    iso = re.fullmatch(rf"p(?:{one}w)?(?:{one}d)?(?:t(?:{one}h)?(?:{one}m)?(?:{one}s)?)?", text)
    if iso and any(iso.groups()):
        sizes = (604800, 86400, 3600, 60, 1)
        return whole(sum(float(value or 0) * size for value, size in zip(iso.groups(), sizes, strict=True)))
    colons = re.fullmatch(r"(\d+):(\d\d):(\d\d)", text)
    if colons:
        return sum(int(value) * size for value, size in zip(colons.groups(), (3600, 60, 1), strict=True))
    apart = re.sub(r"(?<=[a-z])(?=\d)|(?<=\d)-(?=[a-z])", " ", text.replace("half an", "half"))
    words, total, found = words_of(apart), 0.0, False
    while words and words[0] in ("around", "about", "exactly", "roughly"):
        words = words[1:]
    while words:
        if words[0] in ("and", ",", "for", "in"):
            words = words[1:]
            continue
        if words[0].startswith("-"):
            raise ValueError(f"{text!r} isn't a length of time")
        value, rest = leading(words)
        if words[0] in ("a", "an") and len(words) > 1 and words[1].rstrip(",.") in UNITS:
            value, rest = 1.0, words[1:]
        while rest and rest[0] in ("of", "a", "an"):
            rest = rest[1:]
        unit = UNITS.get(rest[0].rstrip(",.")) if rest else None
        if value is None or unit is None:
            raise ValueError(f"{text!r} isn't a length of time")
        if abs(value) > LONGEST:
            raise ValueError(f"{text[:60]!r} isn't a length of time")
        total, found, words = total + value * unit, True, rest[1:]
        for tail, share in ((["and", "a", "half"], 0.5), (["and", "a", "quarter"], 0.25)):
            if words[:3] == tail and (len(words) == 3 or words[3] not in UNITS):
                total, words = total + share * unit, words[3:]
    if not found or total > LONGEST:
        raise ValueError(f"{text[:60]!r} isn't a length of time")
    return whole(total)


def iso_duration(text: str) -> str:
    """A length of time as ISO 8601 has it: `PT1H30M`. Raises `ValueError`."""
    if re.fullmatch(r"P(?!$)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?", text.strip()):
        return text.strip()
    left = seconds(text)
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = "".join(f"{whole(value)}{unit}" for value, unit in ((hours, "H"), (minutes, "M"), (left, "S")) if value)
    first = f"{int(days)}D" if days else ""
    return f"P{first}T{parts}" if parts else f"P{first}" if first else "PT0S"


def clock(text: str) -> str:
    """`7 pm`, `half past seven`, `19:30`, `noon` as `HH:MM:SS`; ISO times as they are. Raises `ValueError`."""
    plain = text.strip()
    if re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?", plain):
        time.fromisoformat(plain)
        return plain
    return _clock(plain).isoformat()


def _clock(text: str) -> time:
    words = text.lower().replace("o'clock", "").replace("o’clock", "").replace("half-past", "half past")
    words = re.sub(r"(?<=\d)(?=[ap]\b|[ap]\.?m\b)", " ", words)
    words = re.sub(r"\b([ap])\.?\s?m\b\.?|(?<=\d )([ap])\b", r"\1\2m", words)
    words = " ".join(words.replace("in the morning", "am").split()).removeprefix("at ").rstrip(" .!?")
    words = re.sub("in the (afternoon|evening)|tonight$", "pm", words)
    if words.endswith(" at night"):
        words = words.removesuffix(" at night")
        words += " pm" if re.search(r"\b(6|7|8|9|10|11|six|seven|eight|nine|ten|eleven)\b", words) else " am"
    if words in ("noon", "midday", "midnight", "12 noon", "12 midnight", "twelve noon"):
        return time(0 if "midnight" in words else 12)
    words, half = re.sub(r"\s*\b([ap]m)\b", "", words), re.search(r"\b([ap])m\b", words)
    later, second = 0, 0
    digits = re.fullmatch(r"(\d{1,2})[:.h](\d\d)(?::(\d\d))?", words) or re.fullmatch(
        r"(\d{1,2})(\d\d)()(?: hours)?", words
    )
    past = re.fullmatch(r"(.+?)\s*(?:minutes?)?\s+(past|after|to|before|till|til)\s+(.+)", words)
    if digits:
        hour, minute, second = int(digits[1]), int(digits[2]), int(digits[3] or 0)
    elif past:
        shift = {"half": 30, "quarter": 15, "a quarter": 15}.get(past[1])
        later = _plain_number(past[1]) if shift is None else shift
        later = later if past[2] in ("past", "after") else -later
        hour = {"noon": 12, "midnight": 0}.get(past[3])  # type: ignore[assignment]
        hour, minute = (_plain_number(past[3]) if hour is None else hour), 0
    else:
        hour, minute = _hour_minute(words)
    if half and not 1 <= hour <= 12:
        raise ValueError(f"{text!r} isn't a time of day")
    if half:
        hour = hour % 12 + 12 * (half[1] == "p")
    if not 0 <= hour <= 23 or not 0 <= minute <= 59 or abs(later) > 59:
        raise ValueError(f"{text!r} isn't a time of day")
    return (datetime(2000, 1, 2, hour, minute, second) + timedelta(minutes=later)).time()


def _plain_number(text: str) -> int:
    """A whole number without anything that it counts. Raises `ValueError`."""
    value, rest = leading(words_of(text))
    if set(text.split()) & {*ONCE, *JOINTS}:
        rest = ["of"]
    if value is None or rest or value != int(value) or not 0 <= value < 100 or re.search("[-+,/]", text):
        raise ValueError(f"{text!r} isn't a part of a time")
    return int(value)


def _hour_minute(words: str) -> tuple[int, int]:
    """`seven`, `seven thirty`, `nineteen oh five`, `7`."""
    parts = words.split()
    for cut in range(1, len(parts) + 1):
        try:
            hour = _plain_number(" ".join(parts[:cut]))
            left = [part for part in parts[cut:] if part != "oh"]
            minute = _plain_number(" ".join(left)) if left else 0
        except ValueError:
            continue
        if hour <= 24 and minute < 60 and not (left and parts[0].isdigit()):
            return hour % 24, minute
    raise ValueError(f"{words!r} isn't a time of day")


def read_date(text: str, now: datetime | None = None) -> date:
    """A day: `2026-03-05`, `March 5th 2026`, and against `now` also `tomorrow`, `next friday`, `the 5th`. Raises
    `ValueError`."""
    plain = " ".join(text.split()).strip(" .,!?").lower()
    if re.fullmatch(r"\d{4}-\d\d-\d\d", plain):
        return date.fromisoformat(plain)
    plain = re.sub(r"\b(on|the|of|this coming|coming)\b ?", "", plain).strip()
    plain = " ".join(str(_ORDINALS.get(word, word)) for word in plain.replace("twenty-", "twenty ").split())
    plain = re.sub(r"\b20 (?=\d\b)", "2", re.sub(r"\btwenty (?=\d\b)", "2", plain))
    if re.fullmatch(r"\d{1,2}(st|nd|rd|th)", plain):
        return _next_day(int(plain[:-2]), now, text)
    named = re.fullmatch(rf"(?:{WEEKDAY},? )?(?:{DAY} {MONTH}|{MONTH} {DAY})(?:,? \d{{4}})?", plain)
    relative = re.fullmatch(
        rf"today|tomorrow|yesterday|day after tomorrow|day before yesterday|(?:(?:next|this|last) )?{WEEKDAY}"
        rf"|(?:next|last) {SPAN}|in \w+ {SPAN}s?|\d+ {SPAN}s? ago",
        plain,
    )
    if not named and not relative:
        raise ValueError(f"{text[:60]!r} isn't a date")
    found = _parsed(plain, now).date()
    weekday = re.search(WEEKDAY, plain)
    if weekday and not f"{found:%A}".lower().startswith(weekday[0][:3]):
        raise ValueError(f"{text!r} isn't a date: {found} is a {found:%A}")
    return found


def _next_day(day: int, now: datetime | None, text: str) -> date:
    """The next day of this number."""
    if now is None:
        raise ValueError(f"{text!r} isn't a date without the moment in which it is said")
    here = now.date()
    for _ in range(366):
        if here.day == day:
            return here
        here += timedelta(days=1)
    raise ValueError(f"{text!r} isn't a date")


def read_moment(text: str, now: datetime | None = None) -> str:
    """A day and a time of day, as ISO 8601 has them: `tomorrow at 5 pm`, `March 5th 2027, 18:30`. Raises
    `ValueError`."""
    plain = text.strip()
    if re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:", plain):
        datetime.fromisoformat(plain)
        return plain
    words = plain.replace(",", " ").split()
    for cut in range(len(words) - 1, 0, -1):
        for days, hours in ((words[:cut], words[cut:]), (words[cut:], words[:cut])):
            with contextlib.suppress(ValueError):
                moment = datetime.combine(read_date(" ".join(days).removesuffix(" at"), now), _clock(" ".join(hours)))
                return moment.isoformat()
    raise ValueError(
        f"{text[:60]!r} isn't a day and a time" + ("" if now else ", without the moment in which it is said")
    )


def _parsed(text: str, now: datetime | None) -> datetime:
    """By dateparser; what depends on the day on which it is said is no date without `now`."""
    import dateparser

    def parse(base: datetime) -> datetime | None:
        settings: Any = {"RELATIVE_BASE": base, "PREFER_DATES_FROM": "future", "RETURN_AS_TIMEZONE_AWARE": False}
        found: datetime | None = dateparser.parse(text, languages=["en"], settings=settings)
        return found

    bases = [now] if now else [datetime(2021, 2, 3, 4, 5), datetime(2024, 9, 12, 18, 30)]
    found = {parse(base) for base in bases}
    if len(found) != 1 or None in found:
        raise ValueError(f"{text!r} isn't a date" + ("" if now else " without the moment in which it is said"))
    return next(moment for moment in found if moment is not None)
