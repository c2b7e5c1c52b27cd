"""`needle label`: writes a checkpoint's own answers into records, as a teacher's. `needle label checkpoint=DIR
data=snips split=train output=labelled.jsonl.gz`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from needle.cli.app import launch
from needle.cli.say import AnsweringProgress, console
from needle.config import Settings, build_engine, records_to_evaluate
from needle.engine.decode import Request
from needle.text.records import write_jsonl


def run(config: Settings, words: Sequence[str]) -> None:
    """Every record with its gold answers as they were and `teacher.answers`; one that couldn't be answered is left out
    and counted."""
    if not config.output:
        raise ValueError("give output=FILE, where the labelled records go (.jsonl or .jsonl.gz)")
    engine = build_engine(config)
    records, skipped = records_to_evaluate(config)
    for message in skipped:
        console.print(f"skipped: {message}", markup=False)
    answers = engine.answer_all(
        [Request(record.query, record.tools, record.id) for record in records],
        config.max_tokens,
        report=AnsweringProgress(),
    )
    labelled = [
        replace(
            record,
            teacher={
                "answers": [{"calls": [call.to_json() for call in answer.calls], "count": 1}],
                "confidence": [round(answer.confidence, 6)],
            },
        )
        for record, answer in zip(records, answers, strict=True)
        if answer.calls is not None
    ]
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(Path(config.output), labelled)
    console.print(
        f"[bold]{config.output}[/]: {len(labelled):,} records, {len(records) - len(labelled)} without an answer"
        " left out"
    )


def main() -> None:
    launch("label", run)
