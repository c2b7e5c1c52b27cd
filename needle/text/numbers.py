"""Numbers as people write them in a request: `10,000`, `3,5`, `2E6`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

DECIMAL_COMMA = "-?[0-9]+,[0-9]{1,2}"
THOUSANDS = "[1-9][0-9]{0,2}(,[0-9]{3})+"
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
ENDLESS = 2.0**53  # a bound beyond it bounds nothing that somebody says, and grammars can't hold it


def is_number(schema: Mapping[str, Any]) -> bool:
    """Whether a value is a number that may be written as people do."""
    return _kind(schema) in ("integer", "number") and "enum" not in schema


def read_number(text: str) -> int | float:
    """Reads JSON's numbers, `10,000`, `3,5`, `.5`, `007` and `2E6`. Raises `ValueError`."""
    plain = text.replace(",", "." if re.fullmatch(DECIMAL_COMMA, text) else "")
    return float(plain) if re.search("[.eE]", plain) else int(plain)


def number_texts(value: float, schema: Mapping[str, Any]) -> list[str]:
    """How a request may have this number, JSON's way first; all are read back as this value, and a grammar of this
    schema allows them."""
    texts = [json.dumps(value)]
    if abs(value) >= 1000 and re.fullmatch(with_commas(schema), f"{value:,}"):
        texts.append(f"{value:,}")
    if re.fullmatch(decimal_comma(schema), other := texts[0].replace(".", ",")):
        texts.append(other)
    return texts


def with_commas(schema: Mapping[str, Any]) -> str:
    """A regular expression for the numbers of 1,000 and more, with commas between thousands, that a schema allows; for
    nothing if it allows none of them or too few."""
    low, high = (
        max(_bound(schema, "minimum"), _bound(schema, "exclusiveMinimum") + 0.5),
        min(_bound(schema, "maximum"), _bound(schema, "exclusiveMaximum") - 0.5),
    )
    if schema.get("multipleOf", 1) != 1 or low > 1000:
        return ""
    fraction = r"(\.[0-9]+)?" if _kind(schema) == "number" else ""
    options = [THOUSANDS + fraction] if high == math.inf else _up_to(math.floor(high))
    if low == -math.inf and high >= -1000:
        options.append(f"-{THOUSANDS}{fraction}")
    return "|".join(options)


def decimal_comma(schema: Mapping[str, Any]) -> str:
    """A regular expression for fractions behind a comma; for nothing where there are bounds or only whole numbers."""
    return DECIMAL_COMMA if _kind(schema) == "number" and not BOUNDS & set(schema) else ""


def _kind(schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    return kind[0] if isinstance(kind, list) else kind


def _bound(schema: Mapping[str, Any], name: str) -> float:
    least = name.lower().endswith("minimum")
    value = schema.get(name, -math.inf if least else math.inf)
    return value if abs(value) < ENDLESS else -math.inf if least else math.inf


def _up_to(most: int) -> list[str]:
    """Regular expressions for the whole numbers from 1,000 to `most`."""
    if most < 1000:
        return []
    digits = str(most)
    options = [["[1-9]", *["[0-9]"] * (size - 1)] for size in range(4, len(digits))]
    for place, digit in enumerate(digits):  # the same digits up to here, then a smaller one
        least = int(place == 0)
        if int(digit) > least:
            options.append([*digits[:place], f"[{least}-{int(digit) - 1}]", *["[0-9]"] * (len(digits) - place - 1)])
    options.append(list(digits))
    return [
        "".join("," * (place > 0 and (len(option) - place) % 3 == 0) + part for place, part in enumerate(option))
        for option in options
    ]
