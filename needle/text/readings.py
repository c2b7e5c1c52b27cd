"""What people say, read as values: numbers in words and with units, booleans, times, durations and dates.

`read(text, schema)` gives the value of a typed argument, or raises `ValueError` where the text isn't one. Nothing is
guessed: "180" under a maximum of 100 is 180, and what a relative date means is known only against a moment, `now`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Any

from needle.text.leaves import solid_type
from needle.text.numbers import DECIMAL_COMMA, PLAIN, THOUSANDS, read_number

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_ONES += " eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TH = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth"
_TH += " fifteenth sixteenth seventeenth eighteenth nineteenth"
ONES = {word: value for value, word in enumerate(_ONES.split())} | {"oh": 0, "nought": 0, "both": 2}
TENS = {word: 10 * value for value, word in enumerate(_TENS.split(), 2)} | {"fourty": 40}
SCALES = {
    "thousand": 1e3,
    "grand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
    "lakh": 1e5,
    "crore": 1e7,
    "cr": 1e7,
}
SHORT = {"k": 1e3, "mio": 1e6, "mn": 1e6, "bn": 1e9, "tn": 1e12}  # m is minutes and metres as well
TH = {word: value for value, word in enumerate(_TH.split())}
TH |= {word[:-1] + "ieth": value for word, value in TENS.items()} | {"hundredth": 100, "thousandth": 1000}
ONCE = {"once": 1, "twice": 2, "thrice": 3, "single": 1, "double": 2, "triple": 3, "pair": 2, "dozen": 12, "score": 20}
PARTS = {"half": 0.5, "halves": 0.5, "quarter": 0.25, "quarters": 0.25, "third": 1 / 3, "thirds": 1 / 3}
FRACTIONS = {"½": 0.5, "¼": 0.25, "¾": 0.75, "⅓": 1 / 3, "⅔": 2 / 3, "⅛": 0.125}
MINUS = ("minus", "negative", "below")
YES = {"true", "yes", "y", "yeah", "yep", "yup", "sure", "ok", "okay", "on", "enable", "enabled", "active", "with", "1"}
NO = {"false", "no", "n", "nope", "nah", "off", "disable", "disabled", "inactive", "without", "none", "never", "0"}
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
DIGITS = re.compile(rf"(?:{THOUSANDS}|{DECIMAL_COMMA}|{PLAIN})")
CURRENCY = "$€£¥₹"
NTHS = {word: value for word, value in TH.items() if 3 <= value <= 20 or value in (100, 1000)}  # of a fraction
COUNTED = {*ONES, *TENS, *SCALES, "hundred"}
JOINTS = {"and", "a", "an", "the", "of", "about", "around", "at", "by", "to", "for", "in", "exactly", "just", "only",
    "number", "least", "most", "almost", "nearly", "roughly", "over", "under", "approximately"}  # fmt: skip


FORMS = ("date", "time", "date-time", "duration")  # formats that people say in other words


def read(text: str, schema: Mapping[str, Any], now: datetime | None = None) -> Any:
    """The value that a text is for a schema of one scalar type. Raises `ValueError`."""
    kind, form = solid_type(schema), schema.get("format")
    if kind in ("integer", "number") or (kind is None and "enum" in schema and _numbers(schema["enum"])):
        return number(text)
    if kind == "boolean":
        return boolean(text)
    if kind == "null":
        if text.strip().lower() not in ("null", "none", "nothing", ""):
            raise ValueError(f"{text!r} isn't null")
        return None
    if form == "date":
        return read_date(text, now).isoformat()
    if form == "time":
        return clock(text)
    if form == "date-time":
        return read_moment(text, now)
    if form == "duration":
        return iso_duration(text)
    return text


def _numbers(values: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values if value is not None)


def number(text: str) -> int | float:
    """`two hundred`, `minus 18`, `2.5 million`, `3k`, `10,000`, `half`, `a dozen`, `3rd`, `$5`, `8%`, `20 minutes`: the
    number, whatever it counts. Raises `ValueError` for text with none or several."""
    plain = text.strip().removeprefix("+").removeprefix("#").strip()
    if DIGITS.fullmatch(plain):
        return _finite(read_number(plain), text)
    if re.fullmatch(r"\d{1,3}( \d{3})+", plain):  # 1 000 000
        return int(plain.replace(" ", ""))
    words = _words(plain)
    sign = 1
    if words and (words[0] in MINUS or words[0] == "-"):
        sign, words = -1, words[1:]
    elif len(words) > 1 and words[-2:] == ["below", "zero"]:
        sign, words = -1, words[:-2]
    found, rest = _fraction(words) or _leading(words)
    if found is None or rest[:1] in (["past"], ["to"], ["before"], ["after"]):
        raise ValueError(f"{text!r} isn't a number")
    if any(word.strip(".,") in COUNTED or re.search(r"\d", word) for word in rest):
        raise ValueError(f"{text!r} holds several numbers")
    return _finite(_whole(sign * found), text)


def _finite(value: int | float, text: str) -> int | float:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{text[:40]!r} isn't a number that JSON has")
    return value


def _fraction(words: list[str]) -> tuple[float, list[str]] | None:
    """`1/2`, `3 1/2`, `a third`, `two fifths`."""
    for place, word in enumerate(words[:2]):
        found = re.fullmatch(r"(\d+)/(\d+)", word)
        whole = words[0] if place else "0"
        if found and int(found[2]) and whole.isdigit():
            return int(whole) + int(found[1]) / int(found[2]), words[place + 1 :]
    if len(words) > 1 and words[0] in ("a", "an", "one") and words[1] in NTHS:
        return 1 / NTHS[words[1]], words[2:]
    if len(words) > 1 and words[1].removesuffix("s") in NTHS and words[1].endswith("s"):
        count = ONES.get(words[0], int(words[0]) if words[0].isdigit() else 0)
        return (count / NTHS[words[1].removesuffix("s")], words[2:]) if count else None
    return None


def _words(text: str) -> list[str]:
    """In lower case; signs, units that touch a number and hyphens apart."""
    text = (
        re.sub(r"(?<=\d)\s?MM?\b", " million", re.sub(r"(?<=\d)\s?B\b", " billion", text.strip()))
        .lower()
        .replace("\u2212", "-")
        .replace("’", "'")
    )
    text = re.sub(rf"^(-?)[{CURRENCY}]\s*|[{CURRENCY}]|(?<=\d)\s*(?:%|°[cf]?)", r"\1 ", text)
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    text = re.sub(r"(?<=\d)(?=[a-z½¼¾⅓⅔⅛])(?!e[+-]?\d)", " ", text)
    text = re.sub(r"(?<=[½¼¾⅓⅔⅛])(?=\w)", " ", text)
    return [word for word in (part.strip("\"'!?;:()") for part in text.split()) if word]


def _leading(words: list[str]) -> tuple[float | None, list[str]]:
    """The number that words begin with, and the words behind it."""
    position = 0
    while position < len(words) and words[position] in JOINTS:
        position += 1
    total: float = 0
    group: float | None = None  # what is counted of the next scale
    scaled = False
    while position < len(words):
        word = words[position] if DIGITS.fullmatch(words[position]) else words[position].rstrip(",.")
        after = words[position + 1 :]
        value = _digits(word)
        # Digits, and the words that a group below a thousand is made of.
        if value is not None and group is None:
            group = value
        elif word in ONES and (group is None or _goes_on(group, ONES[word])):
            group = (group or 0) + ONES[word]
        elif word in TENS and (group is None or (group % 100 == 0 and group > 0)):
            group = (group or 0) + TENS[word]
        elif group in (18, 19, 20) and 10 <= (TENS.get(word) or ONES.get(word, 0)) < 100:  # a year
            group = 100 * group + (TENS.get(word) or ONES[word])
        elif word in TH and (group is None or (_goes_on(group, TH[word]) and not words[position - 1][-1].isdigit())):
            return total + (group or 0) + TH[word], after  # an ordinal ends a number
        elif word in ("st", "nd", "rd", "th") and group is not None:
            return total + group, after
        elif word == "hundred" and (group is None or group < 100):
            group = (1 if group is None else group) * 100
        elif word in SCALES or (word in SHORT and group is not None):
            scale = SCALES.get(word) or SHORT[word]
            total = total * scale if group is None and scaled else total + (1 if group is None else group) * scale
            group, scaled = None, True  # the next group begins
        elif word in ONCE and group is None and not scaled:
            return ONCE[word], after  # "twice" counts by itself
        elif word in ("dozen", "score", "pair"):
            return total + (1 if group is None else group) * ONCE[word], after
        elif word in PARTS and (word != "third" or group is not None):
            return _part_of((1 if group is None else group) * PARTS[word], total, after)  # "half a million"
        elif word in FRACTIONS:
            return _part_of((group or 0) + FRACTIONS[word], total, after)
        elif word in ("point", "dot") and after:
            decimals = ""
            while after and (after[0] in ONES or after[0].isdigit()):
                decimals, after = decimals + (after[0] if after[0].isdigit() else str(ONES[after[0]])), after[1:]
            return _part_of((group or 0) + float(f"0.{decimals}"), total, after) if decimals else (None, words)
        elif word == "and" and group is not None and after[:1] == ["a"] and after[1:2] and after[1] in PARTS:
            return _part_of(group + PARTS[after[1]], total, after[2:])
        elif word == "and" and after and group and group % 100 == 0 and after[0].isdigit() and int(after[0]) < 100:
            return total + group + int(after[0]), after[1:]
        elif word != "and" or not after or not {*ONES, *TENS, *TH}.intersection(after[:1]) or (group or 0) % 100:
            break
        position += 1
    if group is None and not scaled:
        return None, words
    return total + (group or 0), words[position:]


def _goes_on(group: float, value: int) -> bool:
    """Whether a word of ones goes on with what was counted: "twenty" with "five", "hundred" with "twelve"."""
    return group > 0 and value > 0 and ((group % 10 == 0 and group % 100 >= 20 and value < 10) or group % 100 == 0)


def _part_of(value: float, total: float, after: list[str]) -> tuple[float, list[str]]:
    """Half, or two point five, of what is counted next: `half a million`, `2½ thousand`, `half a dozen`."""
    scale = [word for word in after[:3] if word not in ("a", "of")][:1]
    size = {**SCALES, "dozen": 12}.get(scale[0]) if scale else None
    return (total + value * size, after[after.index(scale[0]) + 1 :]) if size else (total + value, after)


def _digits(word: str) -> int | float | None:
    return read_number(word) if DIGITS.fullmatch(word) else None


def _whole(value: float) -> int | float:
    value = round(value, 12) if isinstance(value, float) else value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def boolean(text: str) -> bool:
    """`yes`, `on`, `enabled`, `no thanks`, … Raises `ValueError`."""
    words = re.findall(r"\w+", text.lower().replace("’", "'").replace("n't", " not"))
    if "not" in words or len(words) > 1 and words[0] == "no" and words[1] not in ("thanks", "thank", "please"):
        raise ValueError(f"{text!r} is neither yes nor no")
    said = {word in YES for word in words if word in YES or word in NO}
    if len(said) != 1:
        raise ValueError(f"{text!r} is neither yes nor no")
    return said.pop()


def seconds(text: str) -> float:
    """`90 minutes`, `an hour and a half`, `2h 30m`, `1:30:00`, `half an hour`, `PT20M`, in seconds. Raises
    `ValueError`."""
    text = text.strip().lower()
    one = r"(\d{1,12}(?:\.\d{1,9})?)"
    iso = re.fullmatch(rf"p(?:{one}w)?(?:{one}d)?(?:t(?:{one}h)?(?:{one}m)?(?:{one}s)?)?", text)
    if iso and any(iso.groups()):
        sizes = (604800, 86400, 3600, 60, 1)
        return _whole(sum(float(value or 0) * size for value, size in zip(iso.groups(), sizes, strict=True)))
    colons = re.fullmatch(r"(\d+):(\d\d):(\d\d)", text)
    if colons:
        return sum(int(value) * size for value, size in zip(colons.groups(), (3600, 60, 1), strict=True))
    apart = re.sub(r"(?<=[a-z])(?=\d)|(?<=\d)-(?=[a-z])", " ", text.replace("half an", "half"))
    words, total, found = _words(apart), 0.0, False
    while words and words[0] in ("around", "about", "exactly", "roughly"):
        words = words[1:]
    while words:
        if words[0] in ("and", ",", "for", "in"):
            words = words[1:]
            continue
        if words[0].startswith("-"):
            raise ValueError(f"{text!r} isn't a length of time")
        value, rest = _leading(words)
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
    return _whole(total)


def iso_duration(text: str) -> str:
    """A length of time as ISO 8601 has it: `PT1H30M`. Raises `ValueError`."""
    if re.fullmatch(r"P(?!$)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?", text.strip()):
        return text.strip()
    left = seconds(text)
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = "".join(f"{_whole(value)}{unit}" for value, unit in ((hours, "H"), (minutes, "M"), (left, "S")) if value)
    whole = f"{int(days)}D" if days else ""
    return f"P{whole}T{parts}" if parts else f"P{whole}" if whole else "PT0S"


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
    value, rest = _leading(_words(text))
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


def read_any(text: str, schema: Mapping[str, Any]) -> Any:
    """The value of a text for a union or an untyped argument: the text itself where a string is allowed."""
    branches = schema.get("anyOf", [schema])
    if any(solid_type(branch) == "string" or ("type" not in branch and "enum" not in branch) for branch in branches):
        return text
    numeric = ("integer", "number")
    for branch in sorted(branches, key=lambda branch: solid_type(branch) not in numeric):  # 1 is a number before a yes
        kind = solid_type(branch)
        if kind in ("integer", "number", "boolean", "null") or (kind is None and _numbers(branch.get("enum", ["x"]))):
            try:
                return read(text, branch)
            except ValueError:
                continue
        if "enum" in branch:
            for member in branch["enum"]:
                if text == (member if isinstance(member, str) else json.dumps(member)):
                    return member
    raise ValueError(f"{text!r} is none of the allowed kinds of value")
