"""What requests cost. All sums are whole numbers of nanodollars, so that a budget has no rounding to hide in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from needle.collect.services.hosted import Ask, Usage

DOLLAR = 1_000_000_000
OVERHEAD = 256  # tokens that the service may add around a request
BATCH = 0.5  # what a request costs in a batch


@dataclass(frozen=True)
class Price:
    """Nanodollars a token."""

    input: float
    output: float

    def of(self, usage: Usage, batch: bool = False) -> int:
        """What was used, rounded up; cached tokens at the full price."""
        return math.ceil((usage.input * self.input + usage.output * self.output) * (BATCH if batch else 1))

    def worst(self, ask: Ask, batch: bool = False) -> int:
        """The most that a request can cost: a token for each of its bytes, and all the output that it allows."""
        return self.of(Usage(ask.size + OVERHEAD, ask.max_tokens), batch)


def find_price(provider: str, model: str, given: Sequence[float] | None) -> Price:
    """`given` is (input, output) in dollars per million tokens; else the price list of `genai-prices` decides.

    Raises:
        ValueError: a model that the price list doesn't know, and no price given.
    """
    if given is not None:
        if len(given) != 2 or min(given) < 0:
            raise ValueError(
                f"collect.price is {list(given)}; expected two prices in dollars per million tokens, for input and"
                " output: collect.price=[0.30,2.50]"
            )
        return Price(given[0] * 1000, given[1] * 1000)
    try:
        million = [
            calc_price(usage, model, provider_id=provider).total_price
            for usage in (PricedUsage(input_tokens=1000), PricedUsage(output_tokens=1000))
        ]
    except LookupError as error:
        raise ValueError(
            f"the price of {model} isn't known, and a budget needs it: give collect.price=[INPUT,OUTPUT] in dollars per"
            " million tokens ([0,0] for a server of your own)"
        ) from error
    return Price(float(million[0]) * 1e6, float(million[1]) * 1e6)
