"""How many tokens a record costs: python experiments/e001_first_students/tokens.py snips sgd (reads $NEEDLE_DATA)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from needle.data.encoding import TokenizerConfig, fit_tokenizer
from needle.text.codecs import CODECS, build_codec
from needle.text.formats import read_records
from needle.text.prompt import Renderer, render_record


def main() -> None:
    root = Path(os.environ.get("NEEDLE_DATA", "data"))
    names = sys.argv[1:] or ["snips", "hwu64", "mixed_calls", "sgd"]
    print(
        "| set | records | request | a tool | all tools | target, decisions | target, json | copied from the request"
        " |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name in names:
        records = list(read_records(root / name / "train.jsonl.gz"))
        tokenizer = fit_tokenizer(records, TokenizerConfig(), Path("outputs/cache"))
        renderer = Renderer(tokenizer)
        targets, copied, values = {}, 0, 0
        for codec_name in CODECS:
            codec = build_codec(codec_name, tokenizer)
            examples = [render_record(renderer, codec, record) for record in records]
            targets[codec_name] = sum(len(e.target) for e in examples) / len(examples)
            if codec_name == "decisions":
                for e in examples:
                    spelled = [t for t in e.target if t < tokenizer.first_tool_label and t != tokenizer.eos]
                    values += len(spelled)
                    copied += sum(t in e.query for t in spelled)
        requests = sum(len(e.query) for e in examples) / len(examples)
        tools = [len(tool.ids) for e in examples for tool in e.tools]
        print(
            f"| {name} | {len(records):,} | {requests:.1f} | {sum(tools) / len(tools):.1f} |"
            f" {sum(tools) / len(examples):.0f} | {targets['decisions']:.1f} | {targets['json']:.1f} |"
            f" {100 * copied / values:.1f}% |"
        )


if __name__ == "__main__":
    main()
