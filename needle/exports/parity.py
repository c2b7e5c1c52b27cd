"""Whether an export answers as its checkpoint does in torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from needle.engine.decode import Engine, Request
from needle.engine.open import open_export
from needle.students.checkpoint import Checkpoint
from needle.text.records import Record

LISTED = 20  # requests that are answered otherwise


def parity(checkpoint: Checkpoint, folder: Path, precision: str, records: Sequence[Record]) -> dict[str, Any]:
    """The share of records with the same answer, the largest difference of their confidences, and of the others what
    either answers and how sure it is."""
    requests = [Request(record.query, record.tools, record.id) for record in records]
    ours = Engine(checkpoint).answer_all(requests)
    theirs = Engine(open_export(checkpoint.model, folder, precision)).answer_all(requests)
    pairs = list(zip(records, ours, theirs, strict=True))
    other = [(record, a, b) for record, a, b in pairs if (a.calls, a.finish) != (b.calls, b.finish)]
    same = [abs(a.confidence - b.confidence) for _, a, b in pairs if (a.calls, a.finish) == (b.calls, b.finish)]
    return {
        "records": len(records),
        "same": len(same) / max(len(records), 1),
        "confidence_difference": max(same, default=0.0),
        "others": [
            {
                "id": record.id,
                "query": record.query,
                "torch": [call.to_json() for call in a.calls or ()],
                precision: [call.to_json() for call in b.calls or ()],
                "confidence": [a.confidence, b.confidence],
            }
            for record, a, b in other[:LISTED]
        ],
    }
