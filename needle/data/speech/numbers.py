"""Numbers as people say and write them."""

from __future__ import annotations

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(value: int) -> str:
    """0 to 100 as people say it."""
    if value == 100:
        return "a hundred"
    return ONES[value] if value < 20 else TENS[value // 10 - 2] + (f" {ONES[value % 10]}" if value % 10 else "")


def spellings(value: float) -> tuple[str, ...]:
    """How people write a number, the plain way first: 25, "twenty five"; 2500000, "2,500,000", "2.5 million"; 1200.5,
    "1,200.5"; -5, "minus 5"."""
    plain = [str(value)]
    if value < 0:
        plain.append(f"minus {-value}")
    if value >= 1000:
        plain.append(f"{value:,}")
    if isinstance(value, int) and value >= 1000:
        for unit, word in ((1_000_000, " million"), (1000, "k")):
            if value >= unit and value * 10 % unit == 0:
                plain.append(f"{value / unit:g}{word}")
                break
    if isinstance(value, int) and 0 <= value <= 100:
        plain.append(in_words(value))
    return tuple(plain)


def plain(value: float) -> float:
    """Whole numbers as integers."""
    return int(value) if value == int(value) else value
