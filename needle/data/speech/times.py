"""Dates and times of day as people write them."""

from __future__ import annotations

from datetime import date


def spoken(day: date) -> tuple[str, ...]:
    """A date as people write it."""
    th = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10 if day.day not in (11, 12, 13) else 0, "th")
    return (
        f"{day:%B} {day.day}, {day.year}",
        f"{day:%B} {day.day}{th}, {day.year}",
        f"{day.day} {day:%B} {day.year}",
        f"the {day.day}{th} of {day:%B} {day.year}",
        f"{day:%b} {day.day} {day.year}",
        f"{day:%Y-%m-%d}",
    )


def clock(hour: int, minute: int) -> tuple[str, ...]:
    """A time of day as people write it."""
    twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
    short = f"{twelve} {half}" if minute == 0 else f"{twelve}:{minute:02d} {half}"
    return (f"{hour:02d}:{minute:02d}", short, short.replace(" ", ""), short.upper())
