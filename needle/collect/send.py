"""Sends requests, one by one or in batches, until each has an answer in the books or never will have one."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from needle.collect.books import Books
from needle.collect.money import Price
from needle.collect.pace import Draining, Pace, TeacherDown
from needle.collect.services import hosted
from needle.collect.services.hosted import Ask, Fault, HostedTeacher, Job, Reply

ROUNDS = 2  # batches that a request may go in before it is sent by itself


class RunStopped(Exception):
    """No more requests will be sent: the budget is spent, the teacher refuses everybody, or somebody pressed Ctrl-C."""


class Sends(Protocol):
    """Whoever gets answers into the books."""

    async def all(self, asks: Iterable[Ask]) -> None: ...


class Sender:
    """Sends requests one by one, many at once. Nothing is cancelled: whatever is under way when a run stops is waited
    for."""

    def __init__(self, teacher: HostedTeacher, books: Books, pace: Pace, price: Price, attempts: int = 6) -> None:
        self.teacher, self.books, self.pace, self.price, self.attempts = teacher, books, pace, price, attempts
        self.stopped: str | None = None
        self.seen: Counter[str] = Counter()  # of this process: sent, answered, and every fault and finish by name

    def stop(self, reason: str) -> None:
        """Lets what is under way come to its end and sends nothing new."""
        self.stopped = self.stopped or reason
        self.pace.stop.set()
        self.books.moved.set()

    async def all(self, asks: Iterable[Ask]) -> None:
        """Raises `RunStopped` after the last answer is in the books."""
        queue = iter(asks)
        await asyncio.gather(*(self._worker(queue) for _ in range(self.pace.most)))
        if self.stopped:
            raise RunStopped(self.stopped)

    async def _worker(self, queue: Iterator[Ask]) -> None:
        for ask in queue:
            if self.stopped:
                return
            if await self.books.state(ask) in ("planned", "reserved"):
                await self._one(ask)

    async def _one(self, ask: Ask) -> None:
        attempt = 0
        while not self.stopped:
            if not await self._reserve(ask):
                return
            try:
                async with self.pace.slot(ask.size // 4 + ask.max_tokens):
                    await self.books.sent([ask])
                    self.seen["sent"] += 1
                    raw = await self.teacher.ask(ask)
            except (Draining, TeacherDown) as end:
                await self.books.release(ask)
                if isinstance(end, TeacherDown):
                    self.stop(str(end))
                return
            except Fault as fault:
                attempt += fault.kind != hosted.RATE  # being told to wait is no failure
                dead = fault.kind == hosted.REFUSED or attempt >= self.attempts
                self.pace.failed(fault)
                self.seen[fault.kind] += 1
                await self.books.failed(ask, fault, dead)
                if fault.kind in hosted.FATAL:
                    self.stop(f"the teacher answers {fault}")
                if dead:
                    return
                try:
                    await self.pace.sleep(self.pace.backoff(attempt, fault))
                except Draining:
                    return
                continue
            self.pace.answered()
            await self.keep(ask, raw)
            return

    async def keep(self, ask: Ask, raw: str, batch: bool = False) -> None:
        """Puts an answer into the books, with its price; one that doesn't say what it used costs what was reserved."""
        answer = self.teacher.read(ask, raw)
        cost = self.price.worst(ask, batch) if answer.usage is None else self.price.of(answer.usage, batch)
        self.seen["answered"] += 1
        odd = list(_oddities(answer))
        self.seen.update(odd)
        await self.books.settle(ask, raw, cost)
        for name in odd:
            await self.books.count(name)

    async def _reserve(self, ask: Ask) -> bool:
        """Waits for money that comes back from other requests; without any, the run ends."""
        most, budget = self.price.worst(ask), self.books.budget
        while not await self.books.reserve(ask, most):
            charged, reserved = await self.books.money()
            if self.stopped:
                return False
            # Money that was reserved a moment ago may have come back by now.
            if not reserved and budget is not None and charged + most > budget:
                self.stop(
                    f"the budget is spent: {charged / 1e9:.4f} dollars, and the next request could cost more than what"
                    " is left"
                )
                return False
            self.books.moved.clear()
            try:
                await asyncio.wait_for(self.books.moved.wait(), 1.0)  # another process may free some as well
            except TimeoutError:
                continue
        return True


def _oddities(answer: Reply) -> Iterator[str]:
    if answer.finish != hosted.STOP:
        yield f"finish_{answer.finish}"
    if answer.usage is None:
        yield "usage_missing"


class Batcher:
    """Sends requests in batches, which cost half and take hours; what no batch answers goes one by one.

    A batch has a name made of its requests. It stands in the books before the batch is created, so that after a crash
    the same batch is looked for by its name and not paid for twice.
    """

    def __init__(self, sender: Sender, size: int = 2000, poll: float = 30.0, patience: float = 86_400.0) -> None:
        self.sender, self.size, self.poll, self.patience = sender, size, poll, patience
        self.books, self.price = sender.books, sender.price
        batches = sender.teacher.batches
        if batches is None:
            raise ValueError("this teacher has no batch service; set collect.mode=online")
        self.batches = batches

    async def all(self, asks: Iterable[Ask]) -> None:
        """Raises `RunStopped`."""
        wanted = {ask.key: ask for ask in asks}
        for label, keys in (await self.books.in_jobs()).items():
            found = [wanted[key] for key in keys if key in wanted]
            if found:
                await self._await(label, found, await self._find(label))
        for number in range(ROUNDS):
            open_ = [ask for ask in wanted.values() if await self.books.state(ask) == "planned"]
            pieces = [open_[start : start + self.size] for start in range(0, len(open_), self.size)]
            await asyncio.gather(*(self._batch(piece, number) for piece in pieces))
            if self.sender.stopped:
                raise RunStopped(self.sender.stopped)
        await self.sender.all(wanted.values())

    async def _batch(self, asks: Sequence[Ask], number: int) -> None:
        paid = [ask for ask in asks if await self.books.reserve(ask, self.price.worst(ask, batch=True))]
        if not paid:
            return
        label = (
            "needle-"
            + hashlib.sha256(" ".join([str(number), *sorted(ask.key for ask in paid)]).encode()).hexdigest()[:24]
        )
        await self.books.sent(paid, label)
        job: Job | None = None
        for attempt in range(self.sender.attempts):
            try:
                job = await self.batches.create(label, paid)
                break
            except Fault as fault:
                self.sender.seen[fault.kind] += 1
                await self.books.count(fault.kind)
                if fault.kind in hosted.FATAL:
                    self.sender.stop(f"the teacher answers {fault}")
                if fault.charged and (job := await self._find(label)):
                    break
                if not fault.retried or self.sender.stopped:
                    break
                await asyncio.sleep(self.sender.pace.backoff(attempt, fault))
        await self._await(label, paid, job)

    async def _find(self, label: str) -> Job | None:
        """The job of this name, looked for twice: a list can lag behind."""
        for wait in (0.0, self.poll):
            await asyncio.sleep(wait)
            try:
                if job := await self.batches.find(label):
                    return job
            except Fault as fault:
                self.sender.seen[fault.kind] += 1
        return None

    async def _await(self, label: str, asks: Sequence[Ask], job: Job | None) -> None:
        """Waits for a job and takes what it answered; the rest is planned again. A job that never was costs nothing."""
        waited = 0.0
        while job is not None and not job.finished and waited < self.patience:
            if self.sender.stopped:
                return  # the job goes on without us and is found by its name next time
            await asyncio.sleep(self.poll)
            waited += self.poll
            try:
                job = await self.batches.look(job)
            except Fault as fault:
                self.sender.seen[fault.kind] += 1
        answers = await self._results(job) if job is not None else {}
        for ask in asks:
            raw = answers.get(ask.key)
            if raw is not None:
                await self.sender.keep(ask, raw, batch=True)
            else:
                # A batch that says it is done and is silent about a request may have charged for it.
                lost = job is not None and job.state == "done" and ask.key not in answers
                await self.books.failed(
                    ask,
                    Fault(hosted.LOST if lost else "batch_unanswered" if job else "batch_not_created", label),
                    dead=False,
                )

    async def _results(self, job: Job) -> dict[str, str | None]:
        for attempt in range(self.sender.attempts):
            try:
                return dict(await self.batches.results(job))
            except Fault as fault:
                self.sender.seen[fault.kind] += 1
                await asyncio.sleep(self.sender.pace.backoff(attempt, fault))
        raise RunStopped(f"the results of batch {job.name} can't be fetched; the same command tries again")
