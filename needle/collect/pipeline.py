"""From tools to records: values, requests, calls, verdicts, in waves that a run repeats until it has enough.

Everything is a function of the settings and of the stored answers. A run that was stopped anywhere asks for what is
missing and nothing else; a better verifier judges the same answers anew, for nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from needle.collect import verify as rules
from needle.collect.asks import BATCH, ROOM, label_ask, read_requests, read_values, value_asks, write_ask
from needle.collect.books import Books
from needle.collect.catalogue import Declared, unseen_families
from needle.collect.dedupe import Print, Seen, fingerprint
from needle.collect.money import Price
from needle.collect.plan import SPLITS, Planner
from needle.collect.send import RunStopped, Sends
from needle.collect.services.hosted import Ask, Reply
from needle.collect.settings import CollectConfig
from needle.collect.verify import Case, Verdict
from needle.collect.workers import Workers
from needle.text.formats import record_from_json
from needle.text.records import Record

WAVE = 2000  # items that are written, then labelled, then judged together
VERDICTS = 1  # version of the verifier: another one judges stored answers anew
PIECE = 200  # rows that a worker takes at once
MAX_PLANNED = 4  # planned items for each record that is wanted, after which a run gives up
LIKELY = {
    "values": 0.5,
    "write": 0.25,
    "label": 0.08,
}  # tokens of an answer as a share of its room, before anything is known
FIRST_YIELD, DOUBT = 0.6, 0.3  # share of items kept, and of requests labelled again, before anything is known


@dataclass(frozen=True)
class Judged:
    """One item's way through a wave: where it came from, its split, and what became of it."""

    case: Case
    split: str
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        row = {"split": self.split, "reason": self.verdict.reason, "detail": self.verdict.detail}
        record = self.verdict.record or Record(
            self.case.id,
            self.case.query,
            self.case.tools,
            (),
            "collected",
            meta=self.case.item.to_json() if self.case.item else {},
        )
        return row | {"record": record.to_json()}


@dataclass(frozen=True)
class Estimate:
    """What a run will take, as far as anybody can know before it: dollars `likely`, and at `worst` if every answer
    fills its room."""

    requests: int
    input_tokens: int
    output_tokens: int
    likely: float
    worst: float
    minutes: float


class Collection:
    """A run in its folder. `prepare` asks for values; `waves` yields what becomes of the items, wave by wave."""

    def __init__(
        self,
        config: CollectConfig,
        sources: Sequence[Declared],
        model: str,
        price: Price,
        requests: Sequence[Case] = (),
        thinking: str | None = None,
    ) -> None:
        self.config, self.sources, self.model, self.price = config, sources, model, price
        self.read: Callable[[Ask, str], Reply] = _unread  # the teacher's own, once there is one
        self.requests = list(requests)
        self.unseen = unseen_families(sources, config.seed)
        self.planner = Planner(sources, self.unseen, config.seed, config.languages, config.max_tools)
        self.asked: Mapping[str, Any] = {"thinking": thinking}
        self.planned = self.kept = self.logprobs = 0

    def with_pools(self, pools: Mapping[tuple[str, str], Sequence[Any]]) -> None:
        self.planner = Planner(
            self.sources, self.unseen, self.config.seed, self.config.languages, self.config.max_tools, pools
        )

    async def prepare(self, sender: Sends, books: Books) -> None:
        """Values for the plan. What the teacher can't think of comes from the library's own lists.

        Log-probabilities are tried with one request first: many models refuse them, and nothing depends on them.
        """
        if self.config.logprobs:
            probe = label_ask(
                "What time is it?", [self.sources[0].tool], self.model, logprobs=self.config.logprobs, **self.asked
            )
            await sender.all([probe])
            self.logprobs = self.config.logprobs if books.raw(probe) is not None else 0
        if self.requests:
            return
        asks = value_asks([source.tool for source in self.sources], self.model, **self.asked)
        await sender.all([ask for ask, _, _ in asks])
        pools: dict[tuple[str, str], Sequence[Any]] = {}
        for ask, tool, open_ in asks:
            raw = books.raw(ask)
            if raw is not None:
                pools |= read_values(self.read(ask, raw), tool, open_)
        self.with_pools(pools)

    async def waves(self, sender: Sends, books: Books, workers: Workers, report: Callable[[str], None]) -> None:
        """Runs waves until enough records are kept, and leaves each in a file of its own."""
        number, enough, head = 0, len(self.requests) or self.config.records, ""
        folder = books.folder / "waves"
        folder.mkdir(exist_ok=True)
        with Seen(books.folder / "seen.sqlite", self.config.phrasings) as seen:
            while self._wanted(enough):
                size = self._size(enough)
                path = folder / f"{number:05d}.jsonl.gz"
                head = self._head(self.planned, size, head)
                judged = _read_wave(path, head)
                if judged is not None:
                    mark_duplicates(
                        judged, seen, workers
                    )  # which there are none of any more: this is for the waves to come
                else:
                    report(f"wave {number + 1}: {size:,} items")
                    try:
                        judged = [
                            one.to_json()
                            for one in await self._wave(self.planned, size, sender, books, workers, report)
                        ]
                    except RunStopped:  # what has been answered is judged now, and the wave once more when it is whole
                        judged = [
                            one.to_json()
                            for one in await self._wave(self.planned, size, Nobody(), books, workers, lambda text: None)
                        ]
                        mark_duplicates(judged, seen, workers)
                        write_wave(path, "unfinished", judged)
                        self._tidy(folder, number + 1)
                        raise
                    mark_duplicates(judged, seen, workers)
                    write_wave(path, head, judged)
                self.planned += size
                self.kept += sum(row["reason"] == "" for row in judged)
                number += 1
        self._tidy(folder, number)

    def _tidy(self, folder: Path, count: int) -> None:
        """Takes away the waves of a longer run before this one."""
        for late in sorted(folder.glob("*.jsonl.gz"))[count:]:
            late.unlink()

    def _wanted(self, enough: int) -> bool:
        return self.planned < enough if self.requests else self.kept < enough and self.planned < MAX_PLANNED * enough

    def _size(self, enough: int) -> int:
        """Items of the next wave: as many as the records that are missing will take, in whole pieces."""
        if self.requests:
            return min(WAVE, enough - self.planned)
        rate = max(self.kept / self.planned, 0.1) if self.planned else FIRST_YIELD
        needed = math.ceil((enough - self.kept) / rate / BATCH) * BATCH
        return min(WAVE, needed, math.ceil((MAX_PLANNED * enough - self.planned) / BATCH) * BATCH)

    def _head(self, start: int, size: int, before: str) -> str:
        """What a wave's verdicts depend on, beside the stored answers: the settings, and the waves before it."""
        config = {
            name: getattr(self.config, name)
            for name in ("requests", "seed", "languages", "max_tools", "samples", "agreement", "phrasings")
        }
        tools = [source.tool.to_json() for source in self.sources]
        what = {
            **config,
            "tools": tools,
            "model": self.model,
            "start": start,
            "size": size,
            "before": before,
            "logprobs": self.logprobs,
            "version": VERDICTS,
            "asked": self.asked,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()

    async def _wave(
        self, start: int, size: int, sender: Sends, books: Books, workers: Workers, report: Callable[[str], None]
    ) -> list[Judged]:
        if self.requests:
            rows = [(case, _split(case.query)) for case in self.requests[start : start + size]]
        else:
            rows = await self._write(start, size, sender, books)
        refused = {case.id: verdict for case, _ in rows if (verdict := rules.check_request(case))}
        open_ = [case for case, _ in rows if case.id not in refused]
        await sender.all(self._label(case, 0) for case in open_)
        verdicts = self._judge(open_, 1, books, workers)
        doubtful = [case for case in open_ if verdicts[case.id].doubt]
        report(f"  {len(rows) - len(refused):,} requests labelled, {len(doubtful):,} of them in doubt")
        if doubtful and self.config.samples > 1:
            await sender.all(self._label(case, sample) for case in doubtful for sample in range(1, self.config.samples))
            verdicts |= self._judge(doubtful, self.config.samples, books, workers)
        return [Judged(case, split, refused.get(case.id) or verdicts[case.id]) for case, split in rows]

    async def _write(self, start: int, size: int, sender: Sends, books: Books) -> list[tuple[Case, str]]:
        """Written requests. What came out wrong is written once more, with those of its ten that did too."""
        items = [self.planner.item(number) for number in range(start, start + size)]
        tens = [items[first : first + BATCH] for first in range(0, size, BATCH)]
        found: dict[int, Case] = {}
        for sample in range(2):
            pieces = [
                [item for item in ten if item.number not in found or rules.check_request(found[item.number])]
                for ten in tens
            ]
            pieces = [piece for piece in pieces if piece]
            asks = [write_ask(piece, self.model, sample, **self.asked) for piece in pieces]
            await sender.all(asks)
            for ask, piece in zip(asks, pieces, strict=True):
                raw = books.raw(ask)
                texts = read_requests(self.read(ask, raw), len(piece)) if raw is not None else [None] * len(piece)
                for item, text in zip(piece, texts, strict=True):
                    if text or item.number not in found:
                        found[item.number] = Case(
                            f"collected-{item.number}", text or "", item.tools, item.language, item
                        )
        return [(found[item.number], item.split) for item in items]

    def _label(self, case: Case, sample: int) -> Ask:
        return label_ask(
            case.query, case.tools, self.model, sample, self.config.seed, logprobs=self.logprobs, **self.asked
        )

    def _judge(self, cases: Sequence[Case], samples: int, books: Books, workers: Workers) -> dict[str, Verdict]:
        """Verdicts by id. Reading is done here, judging wherever the workers are."""
        size = max(len(cases) // (4 * workers.processes), 25)
        pieces = [cases[first : first + size] for first in range(0, len(cases), size)]
        work = ([(case, self._answers(case, samples, books)) for case in piece] for piece in pieces)
        verdicts = [verdict for part in workers.map(_Judge(self.config.agreement), work) for verdict in part]
        return {case.id: verdict for case, verdict in zip(cases, verdicts, strict=True)}

    def _answers(self, case: Case, samples: int, books: Books) -> list[Reply]:
        found = []
        for sample in range(samples):
            ask = self._label(case, sample)
            raw = books.raw(ask)
            if raw is not None:
                found.append(self.read(ask, raw))
        return found

    def estimate(self) -> Estimate:
        """From the plan's own first requests, before anything is sent."""
        count = len(self.requests) or math.ceil(self.config.records / FIRST_YIELD)
        parts: list[tuple[str, int, Ask]] = []
        if self.requests:
            examples = [self._label(case, 0) for case in self.requests[:50]]
        else:
            items = [self.planner.item(number) for number in range(50)]
            writes = [
                write_ask(items[first : first + BATCH], self.model, **self.asked) for first in range(0, 50, BATCH)
            ]
            values = value_asks([source.tool for source in self.sources], self.model, **self.asked)
            parts += [("values", len(values), ask) for ask, _, _ in values[:1]]
            parts += [("write", math.ceil(1.2 * count / BATCH), _typical(writes))]
            examples = [label_ask("x" * 80, item.tools, self.model, **self.asked) for item in items]
        parts += [("label", round(count * (1 + DOUBT * (self.config.samples - 1))), _typical(examples))]
        batch = self.config.mode == "batch"
        input_, output = (
            sum(number * tokens(ask) for _, number, ask in parts)
            for tokens in (lambda ask: ask.size / 4, lambda ask: LIKELY[ask.purpose] * ROOM[ask.purpose])
        )
        likely = (input_ * self.price.input + output * self.price.output) * (0.5 if batch else 1) / 1e9
        worst = sum(number * self.price.worst(ask, batch) for _, number, ask in parts) / 1e9
        requests = sum(number for _, number, _ in parts)
        minute = min(
            self.config.concurrency * 40.0, self.config.requests_per_minute or math.inf
        )  # an answer takes about one and a half seconds
        return Estimate(
            requests, round(input_), round(output), likely, worst, 24 * 60.0 if batch else requests / minute
        )


def _unread(ask: Ask, raw: str) -> Reply:
    raise AssertionError("answers are read by the teacher that gave them")


class Nobody:
    """Sends nothing: what is stored has to do."""

    async def all(self, asks: Iterable[Ask]) -> None:
        pass


@dataclass(frozen=True)
class _Judge:
    agreement: float

    def __call__(self, work: Sequence[tuple[Case, Sequence[Reply]]]) -> list[Verdict]:
        return [rules.verify(case, answers, self.agreement) for case, answers in work]


def mark_duplicates(rows: Sequence[dict[str, Any]], seen: Seen, workers: Workers) -> None:
    """Gives those of the good rows a reason that are like an earlier one."""
    good = [row for row in rows if not row["reason"]]
    pieces = [good[first : first + PIECE] for first in range(0, len(good), PIECE)]
    prints = [print_ for part in workers.map(_prints, pieces) for print_ in part]
    for row, print_ in zip(good, prints, strict=True):
        row["reason"] = seen.reason(print_, row["split"]) or ""


def _prints(rows: Sequence[Mapping[str, Any]]) -> list[Print]:
    return [fingerprint(record_from_json(row["record"])) for row in rows]


def judge_traffic(records: Iterable[Record], language: str) -> Iterator[Judged]:
    """Somebody's calls under the same rules as the teacher's: nobody is asked, so that nothing can be in doubt for
    long."""
    for record in records:
        case = Case(record.id, record.query, record.tools, language)
        verdict = rules.check_request(case) or rules.verify(case, [Reply("stop", record.answers)])
        if verdict.record:
            verdict = replace(
                verdict,
                record=replace(
                    verdict.record, source=record.source or "traffic", teacher=record.teacher, meta=record.meta
                ),
            )
        yield Judged(case, _split(record.query), verdict)


def _split(query: str) -> str:
    """By the request's words, so that equal requests land in one split."""
    place = int(hashlib.sha256(query.casefold().encode("utf-8", "surrogatepass")).hexdigest()[:8], 16) / 2**32
    for name, share in SPLITS.items():
        if place < share:
            return name
        place -= share
    return "train"


def _typical(asks: Sequence[Ask]) -> Ask:
    return sorted(asks, key=lambda ask: ask.size)[len(asks) // 2]


def write_wave(path: Path, head: str, rows: Sequence[Mapping[str, Any]]) -> None:
    temporary = path.with_suffix(".writing")
    with gzip.open(temporary, "wt", encoding="utf-8") as out:
        out.write(json.dumps({"head": head}) + "\n")
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    temporary.replace(path)


def _read_wave(path: Path, head: str) -> list[dict[str, Any]] | None:
    """The verdicts of a finished wave; None when it has to be judged."""
    if not path.exists():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        if json.loads(next(lines)) != {"head": head}:
            return None
        return [json.loads(line) for line in lines]


def wave_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """All items of a run with their verdicts, in the plan's order."""
    for path in sorted((folder / "waves").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                yield json.loads(line)
