"""A hosted model's answers to records, to be judged by the one evaluator: within a budget, and never paid for twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from needle.collect.asks import label_ask
from needle.collect.books import Books
from needle.collect.money import DOLLAR, Price
from needle.collect.pace import Pace
from needle.collect.run import facts
from needle.collect.send import RunStopped, Sender
from needle.collect.services.hosted import STOP, HostedTeacher, Reply
from needle.collect.settings import CollectConfig
from needle.engine.decode import Answer
from needle.text.records import Record


async def hosted_answers(
    records: Sequence[Record],
    make: Callable[[], HostedTeacher],
    price: Price,
    folder: Path,
    config: CollectConfig,
    say: Callable[[str], None],
) -> tuple[list[Answer], str | None, dict[str, Any]]:
    """An answer to each record, why the model was asked no further, or None, and what the books say. `folder` keeps the
    answers: the same records again cost nothing. One that wasn't asked for has finish `refused`."""
    assert config.budget_usd is not None
    stopped = None
    async with Books(folder, round(config.budget_usd * DOLLAR)) as books:
        teacher = make()
        asks = [label_ask(record.query, record.tools, teacher.model) for record in records]
        try:
            await Sender(teacher, books, Pace.of(config), price, config.attempts).all(
                {ask.key: ask for ask in asks}.values()
            )
        except RunStopped as reason:
            stopped = str(reason)
            say(f"stopped: {stopped}")
        finally:
            await teacher.close()
        found = []
        for ask in asks:
            raw = books.raw(ask)
            unasked = Answer(None, 0.0, "refused", error=stopped or "it never answered")
            found.append(unasked if raw is None else _answer(teacher.read(ask, raw)))
        return found, stopped, facts(books.ledger)


def _answer(reply: Reply) -> Answer:
    """`confidence` is what the service says of all its tokens together, where it does."""
    if reply.finish != STOP:
        return Answer(None, 0.0, "invalid", error=f"finished with '{reply.finish}'")
    return Answer(reply.calls, 1.0 if reply.logprob is None else math.exp(reply.logprob), STOP)
