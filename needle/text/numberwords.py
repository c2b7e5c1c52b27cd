"""Numbers as people say them: in words, with units, signs and shares, ordinals and fractions."""

from __future__ import annotations

import math
import re

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
DIGITS = re.compile(rf"(?:{THOUSANDS}|{DECIMAL_COMMA}|{PLAIN})")
CURRENCY = "$€£¥₹"
NTHS = {word: value for word, value in TH.items() if 3 <= value <= 20 or value in (100, 1000)}  # of a fraction
COUNTED = {*ONES, *TENS, *SCALES, "hundred"}
JOINTS = {"and", "a", "an", "the", "of", "about", "around", "at", "by", "to", "for", "in", "exactly", "just", "only",
    "number", "least", "most", "almost", "nearly", "roughly", "over", "under", "approximately"}  # fmt: skip

# What may be a number, for a grammar: digits with what touches them, and words of numbers; whether it is one is read.
_DIGITS = rf"[-+#]?[{CURRENCY}]?(?:{THOUSANDS}|{DECIMAL_COMMA}|{PLAIN})(?:/[0-9]+)?[A-Za-z%°½¼¾]{{0,6}}"
_SAID = "|".join(sorted({*COUNTED, *TH, *ONCE, *PARTS, *NTHS, *MINUS, "and", "a", "an", "point", "dot", "of"}))
NUMBER_FORM = rf"(?:{_DIGITS}|(?i:{_SAID}|fifths|tenths|[½¼¾]))(?:[ -](?:{_DIGITS}|(?i:{_SAID}|fifths|tenths)))*"


def number(text: str) -> int | float:
    """`two hundred`, `minus 18`, `2.5 million`, `3k`, `10,000`, `half`, `a dozen`, `3rd`, `$5`, `8%`, `20 minutes`: the
    number, whatever it counts. Raises `ValueError` for text with none or several."""
    plain = text.strip().removeprefix("+").removeprefix("#").strip()
    if DIGITS.fullmatch(plain):
        return _finite(read_number(plain), text)
    if re.fullmatch(r"\d{1,3}( \d{3})+", plain):  # 1 000 000
        return int(plain.replace(" ", ""))
    words = words_of(plain)
    sign = 1
    if words and (words[0] in MINUS or words[0] == "-"):
        sign, words = -1, words[1:]
    elif len(words) > 1 and words[-2:] == ["below", "zero"]:
        sign, words = -1, words[:-2]
    found, rest = _fraction(words) or leading(words)
    if found is None or rest[:1] in (["past"], ["to"], ["before"], ["after"]):
        raise ValueError(f"{text!r} isn't a number")
    if any(word.strip(".,") in COUNTED or re.search(r"\d", word) for word in rest):
        raise ValueError(f"{text!r} holds several numbers")
    return _finite(whole(sign * found), text)


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


def words_of(text: str) -> list[str]:
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


def leading(words: list[str]) -> tuple[float | None, list[str]]:
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


def whole(value: float) -> int | float:
    value = round(value, 12) if isinstance(value, float) else value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
