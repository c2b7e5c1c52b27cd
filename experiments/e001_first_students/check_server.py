"""Does a running server answer as the evaluator did? Compares answers over HTTP with a predictions file.

needle serve checkpoint=outputs/snips &
python experiments/e001_first_students/check_server.py outputs/snips/test.jsonl $NEEDLE_DATA/snips/test.jsonl.gz
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path

from needle.text.formats import read_records

URL = "http://127.0.0.1:8000/tool-call"


def main() -> None:
    predictions, records = Path(sys.argv[1]), list(read_records(Path(sys.argv[2])))
    stored = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    same, seconds = 0, []
    for record, row in zip(records, stored, strict=True):
        assert record.id == row["id"]
        body = json.dumps(
            {"prompt": record.query, "available_functions": [tool.to_json() for tool in record.tools]}
        ).encode()
        start = time.perf_counter()
        with urllib.request.urlopen(
            urllib.request.Request(URL, body, {"Content-Type": "application/json"})
        ) as response:
            answer = json.load(response)
        seconds.append(time.perf_counter() - start)
        if answer["calls"] == (row["predicted"] or []):
            same += 1
        else:
            print("differs:", record.query, answer["calls"], row["predicted"])
    seconds.sort()
    print(
        f"{same} of {len(records)} answers are the same; a request took {1000 * seconds[len(seconds) // 2]:.1f} ms"
        f" (median), {1000 * seconds[int(len(seconds) * 0.95)]:.1f} ms (95th percentile)"
    )


if __name__ == "__main__":
    main()
