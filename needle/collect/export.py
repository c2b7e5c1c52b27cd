"""What a run leaves: JSON lines and parquet, what was dropped and why, a manifest, a card, and a page to look through
it all."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from datasketch import HyperLogLogPlusPlus
from jinja2 import Environment, PackageLoader, select_autoescape

from needle import __version__
from needle.collect.plan import SPLITS
from needle.collect.verify import REASONS
from needle.text.records import open_text

SHOWN = 1000  # records on the page, and a fifth as many of each reason
VERSIONED = ("google-genai", "genai-prices", "datasketch", "dateparser", "text2num", "jsonschema-rs")


def export(rows: Iterable[Mapping[str, Any]], folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes everything that the items of a run, with their verdicts, amount to; the manifest.

    Every file is written beside its old version and then takes its place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stages, figures, page = Counter[str](), Figures(), Page()
    with ExitStack() as stack:
        out = {split: stack.enter_context(open_text(folder / f"writing-{split}.jsonl.gz", "wt")) for split in SPLITS}
        table = stack.enter_context(_Table(folder / "writing-records.parquet"))
        dropped = stack.enter_context(open_text(folder / "writing-dropped.jsonl.gz", "wt"))
        for row in rows:
            stages[row["reason"] or "kept"] += 1
            page.add(row)
            if row["reason"]:
                dropped.write(json.dumps(row, ensure_ascii=False) + "\n")
                continue
            out[row["split"]].write(json.dumps(row["record"], ensure_ascii=False, separators=(",", ":")) + "\n")
            table.add(row["split"], row["record"])
            figures.add(row["split"], row["record"])
    names = [*(f"{split}.jsonl.gz" for split in SPLITS), "dropped.jsonl.gz", "records.parquet"]
    for name in names:
        (folder / f"writing-{name}").replace(folder / name)
    kept = sum(figures.splits.values())
    manifest = {
        **facts,
        "records": kept,
        "model_versions": sorted(figures.models),
        "splits": dict(figures.splits),
        "funnel": {
            "items": sum(stages.values()),
            **{reason: stages[reason] for reason in REASONS if stages[reason]},
            "kept": stages["kept"],
        },
        "reasons": {reason: REASONS[reason] for reason in REASONS if stages[reason]},
        "diversity": figures.to_json(),
        "dollars_per_record": round(facts["dollars"] / kept, 6) if kept and "dollars" in facts else None,
        "versions": {
            "needle": __version__,
            "python": platform.python_version(),
            **{name: found for name in VERSIONED if (found := _version(name))},
        },
        "files": {
            name: {
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                "bytes": (folder / name).stat().st_size,
            }
            for name in names
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("needle.collect"),
        autoescape=select_autoescape(("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    (folder / "README.md").write_text(
        environment.get_template("dataset_card.md.j2").render(m=manifest), encoding="utf-8"
    )
    data = json.dumps({"rows": page.rows, "manifest": manifest}, ensure_ascii=False).replace("</", "<\\/")
    (folder / "records.html").write_text(
        environment.get_template("records.html.j2").render(m=manifest, data=data, shown=len(page.rows)),
        encoding="utf-8",
    )
    return manifest


class Page:
    """The items that the page shows: of every outcome the first ones, so that each can be looked at."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.shown: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        if self.shown[row["reason"]] >= (SHOWN if not row["reason"] else SHOWN // 5):
            return
        self.shown[row["reason"]] += 1
        record, shown = row["record"], {name: row[name] for name in ("split", "reason", "detail")}
        shown |= {name: record[name] for name in ("id", "query", "answers")} | {
            "tools": [tool["name"] for tool in record["tools"]]
        }
        self.rows.append(
            {**shown, "votes": (record.get("teacher") or {}).get("answers"), "meta": record.get("meta", {})}
        )


class Figures:
    """How varied a set is, counted record by record."""

    def __init__(self) -> None:
        self.splits: Counter[str] = Counter()
        self.models: Counter[str] = Counter()
        self.tools: Counter[str] = Counter()
        self.styles: Counter[tuple[str, str]] = Counter()
        self.kinds: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.calls: Counter[int] = Counter()
        self.words = [0, 0, 0]
        self.distinct = [HyperLogLogPlusPlus(p=14) for _ in range(3)]  # counts within a percent, in a few kilobytes

    def add(self, split: str, record: Mapping[str, Any]) -> None:
        meta = record.get("meta", {})
        self.splits[split] += 1
        self.models.update([name] if (name := (record.get("teacher") or {}).get("model")) else [])
        self.calls[len(record["answers"])] += 1
        self.tools.update(call["name"] for call in record["answers"])
        if "persona" in meta:
            self.styles[meta["persona"], meta["style"]] += 1
            self.kinds[meta["kind"]] += 1
            self.languages[meta["language"]] += 1
        words = record["query"].casefold().split()
        for n in range(3):
            for start in range(len(words) - n):
                self.words[n] += 1
                self.distinct[n].update(" ".join(words[start : start + n + 1]).encode())

    def to_json(self) -> dict[str, Any]:
        """distinct-n (Li et al. 2016), the entropy of called tools (1 is even), and how many personas met how many
        styles."""
        total = sum(self.tools.values())
        entropy = -sum(count / total * math.log(count / total) for count in self.tools.values()) if total else 0.0
        return {
            **{
                f"distinct_{n + 1}": round(min(self.distinct[n].count() / self.words[n], 1.0), 3)
                if self.words[n]
                else None
                for n in range(3)
            },
            "tools_called": len(self.tools),
            "tool_entropy": round(entropy / math.log(len(self.tools)), 4) if len(self.tools) > 1 else None,
            "persona_style_pairs": len(self.styles),
            "kinds": dict(self.kinds.most_common()),
            "languages": dict(self.languages.most_common()),
            "calls": {str(number): count for number, count in sorted(self.calls.items())},
            "rarest_tools": dict(sorted(self.tools.items(), key=lambda item: item[1])[:5]),
        }


class _Table:
    """Records as parquet, tools and answers as JSON text, as public sets have them."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []  # type: tuple[Path, list[dict[str, str]]]
        self.writer: Any = None

    def __enter__(self) -> _Table:
        return self

    def add(self, split: str, record: Mapping[str, Any]) -> None:
        nested = {
            name: json.dumps(record.get(name), ensure_ascii=False) for name in ("tools", "answers", "teacher", "meta")
        }
        self.rows.append(
            {"id": record["id"], "split": split, "query": record["query"], **nested, "source": record["source"]}
        )
        if len(self.rows) >= 5000:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema(
            [(name, pa.string()) for name in ("id", "split", "query", "tools", "answers", "teacher", "meta", "source")]
        )
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, schema, compression="zstd")
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema))
        self.rows.clear()

    def __exit__(self, *reason: object) -> None:
        self._flush()
        self.writer.close()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
