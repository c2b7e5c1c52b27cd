"""The one evaluator: every student, and the teacher too, is judged here."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from needle.engine.decode import MAX_TOKENS, Answer, Engine, Report, Request
from needle.judging.metrics import Score, score, summarise
from needle.text.records import Call, Record, read_lines


def judge(
    engine: Engine,
    records: Sequence[Record],
    max_tokens: int = MAX_TOKENS,
    batch_size: int = 64,
    report: Report | None = None,
) -> tuple[list[Answer], list[Score]]:
    """Answers every record and scores each answer, in order. A request that can't be read counts as a wrong answer."""
    requests = [Request(record.query, record.tools, record.id) for record in records]
    answers = engine.answer_all(requests, max_tokens, batch_size, report=report)
    seen = engine.model.seen_tools or None
    return answers, [score(record, answer.calls, seen) for record, answer in zip(records, answers, strict=True)]


def evaluate(
    engine: Engine,
    records: Sequence[Record],
    predictions: Path | None = None,
    max_tokens: int = MAX_TOKENS,
    batch_size: int = 64,
    report: Report | None = None,
) -> dict[str, Any]:
    """The summary of `metrics.summarise`, with finish counts and seconds; `predictions` gets every answer beside its
    gold."""
    if not records:
        raise ValueError("there are no records to evaluate; check data.path and data.test_size")
    start = time.perf_counter()
    answers, scores = judge(engine, records, max_tokens, batch_size, report)
    seconds = time.perf_counter() - start
    if predictions:
        write_predictions(predictions, records, answers, scores)
    return summary_of(answers, scores, seconds)


def summary_of(answers: Sequence[Answer], scores: Sequence[Score], seconds: float) -> dict[str, Any]:
    """As `evaluate` gives it."""
    finishes = [answer.finish for answer in answers]
    summary = summarise(scores)
    summary["finish"] = {name: finishes.count(name) for name in ("stop", "length", "invalid", "refused")}
    summary["seconds"] = round(seconds, 3)
    summary["tools_left_out"] = sum(len(answer.skipped) for answer in answers)
    summary["tools_shortened"] = sum(len(answer.shortened) for answer in answers)
    return summary


def write_predictions(
    path: Path, records: Sequence[Record], answers: Sequence[Answer], scores: Sequence[Score]
) -> None:
    """One JSON line a record: the request, the gold calls, the answer, whether it is exact, and how sure it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        for record, answer, judged in zip(records, answers, scores, strict=True):
            row = {
                "id": record.id,
                "query": record.query,
                "tools": [tool.name for tool in record.tools],
                "gold": [call.to_json() for call in record.answers],
                "predicted": None if answer.calls is None else [call.to_json() for call in answer.calls],
                "exact": judged.exact,
                "confidence": round(answer.confidence, 6),
                "finish": answer.finish,
                **({"error": answer.error} if answer.error else {}),
                **({"skipped": [tool.to_json() for tool in answer.skipped]} if answer.skipped else {}),
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_predictions(path: Path) -> list[Answer]:
    """The answers that `write_predictions` wrote, without where values were copied from."""
    answers = []
    for _, line in read_lines(path):
        row = json.loads(line)
        calls = row["predicted"]
        said = None if calls is None else tuple(Call(call["name"], call["arguments"]) for call in calls)
        answers.append(Answer(said, row["confidence"], row["finish"], error=row.get("error", "")))
    return answers
