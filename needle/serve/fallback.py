"""When a server asks somebody else: the settings of a fallback, apart from the code that needs the extra packages."""

from __future__ import annotations

from dataclasses import dataclass

from needle.engine.confidence import Calibration

KINDS = ("gemini", "openai")
EVERY = 1.01  # above any confidence: where no threshold keeps the error that small


@dataclass
class FallbackConfig:
    """`fallback` gemini, openai (any server that speaks its chat completions at `fallback_url`), or none: nothing
    leaves the machine. The key is the environment's, as for `needle collect`, or that of `fallback_key_file`.

    An answer is asked for again elsewhere if its confidence is below `min_confidence`, or below what the student's
    calibration says keeps wrong answers under the share `max_error`. `budget_usd` is all that may ever be spent, as the
    ledger in the folder `ledger` knows, `price` (input, output) in dollars per million tokens for models that the price
    list doesn't know, `fallback_timeout` the seconds that a client waits. Answers from elsewhere are kept in the file
    `keep`, for `needle collect collect.traffic=FILE`.
    """

    fallback: str = "none"
    fallback_model: str | None = None
    fallback_url: str | None = None
    fallback_key_file: str | None = None
    min_confidence: float | None = None
    max_error: float | None = None
    budget_usd: float | None = None
    price: list[float] | None = None
    ledger: str = "outputs/fallback"
    fallback_timeout: float = 10.0
    keep: str | None = None

    def __post_init__(self) -> None:
        if self.fallback not in ("none", *KINDS):
            raise ValueError(f"serve.fallback is '{self.fallback}'; expected one of none, {', '.join(KINDS)}")
        if self.fallback == "none":
            return
        if self.fallback == "openai" and not (self.fallback_model and self.fallback_url):
            raise ValueError(
                "serve.fallback=openai needs serve.fallback_model=NAME and serve.fallback_url, which ends in the API's"
                " version: serve.fallback_url=http://127.0.0.1:8080/v1"
            )
        if (self.min_confidence is None) == (self.max_error is None):
            raise ValueError(
                "serve.fallback needs one of serve.min_confidence=0.8 and serve.max_error=0.05: when to ask elsewhere"
            )
        if self.budget_usd is None or self.budget_usd < 0:
            raise ValueError("serve.budget_usd is missing: all that may be spent, in dollars")
        if self.fallback_timeout <= 0:
            raise ValueError(f"serve.fallback_timeout is {self.fallback_timeout}; it must be above 0 seconds")


def least_confidence(config: FallbackConfig, calibration: Calibration | None) -> float:
    """The confidence below which somebody else is asked.

    Raises:
        ValueError: `max_error` without a calibration, or one that is smaller than what the calibration knows.
    """
    if config.min_confidence is not None:
        return config.min_confidence
    assert config.max_error is not None
    known = (
        {} if calibration is None else {float(risk): level for risk, level in calibration.facts["threshold"].items()}
    )
    fitting = [risk for risk in known if risk <= config.max_error]
    if not fitting:
        what = f"the calibration knows {', '.join(map(str, sorted(known)))}" if known else "there is no calibration"
        raise ValueError(
            f"serve.max_error is {config.max_error}, but {what}: make one with needle calibrate, or set"
            " serve.min_confidence"
        )
    level = known[max(fitting)]
    return EVERY if level is None else level
