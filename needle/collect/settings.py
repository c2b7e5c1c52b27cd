"""The settings of `needle collect`; apart from the code that needs the extra packages."""

from __future__ import annotations

from dataclasses import dataclass, field

MODES = ("online", "batch")
ENGINES = ("local", "ray")


@dataclass
class CollectConfig:
    """What to collect, and what it may cost.

    `tools` is a file of declarations, the built-in catalogue when empty; `requests` a file of real requests to label in
    place of written ones; `traffic` a file of requests with the calls that somebody made for them, to verify. `records`
    is how many are wanted, `budget_usd` what may be spent, `price` (input, output) in dollars per million tokens for
    models that the price list doesn't know. `samples` is how often a doubtful request is labelled, `agreement` the
    share that must agree; `phrasings` how many records may share their words, values aside. `concurrency` bounds
    requests in flight. A tool that can't be read is left out; with `strict` it stops the run.
    """

    tools: str | None = None
    requests: str | None = None
    traffic: str | None = None
    records: int = 1000
    budget_usd: float | None = None
    price: list[float] | None = None
    seed: int = 0
    languages: list[str] = field(default_factory=lambda: ["en"])
    max_tools: int = 10
    samples: int = 3
    agreement: float = 0.6
    phrasings: int = 3
    mode: str = "online"
    concurrency: int = 64
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    attempts: int = 6
    give_up: float = 600.0
    batch_size: int = 2000
    poll: float = 30.0
    logprobs: int = 0
    engine: str = "local"
    processes: int = 1
    strict: bool = False
    dry_run: bool = False
    yes: bool = False

    def __post_init__(self) -> None:
        for name in (
            "records",
            "samples",
            "max_tools",
            "concurrency",
            "attempts",
            "batch_size",
            "processes",
            "phrasings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"collect.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.agreement <= 1:
            raise ValueError(f"collect.agreement is {self.agreement}; it must be above 0 and at most 1")
        if self.budget_usd is not None and self.budget_usd <= 0:
            raise ValueError(f"collect.budget_usd is {self.budget_usd}; it must be above 0 (leave it out for no limit)")
        if not self.languages:
            raise ValueError("collect.languages is empty; name at least one, as collect.languages=[en]")
        for name, choices in (("mode", MODES), ("engine", ENGINES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"collect.{name} is '{getattr(self, name)}'; expected one of {', '.join(choices)}")
        if self.requests and self.traffic:
            raise ValueError("collect.requests labels requests, collect.traffic takes labelled ones; give one of them")
