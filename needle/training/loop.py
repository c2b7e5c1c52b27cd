"""The one training loop, for every arm: an Accelerate loop over a fixed order of batches.

A run is a function of its config: initialisation, order and dropout follow from the seed and the step, so that a run
killed anywhere and resumed ends in the very weights of the run that wasn't. The loss of a step is a sum over its target
tokens divided by their number (or summed weight), over all micro-batches and processes.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from needle.data.encoding import Encoded, add_distractors, batch_order, data_fingerprint, rename_examples, share
from needle.engine.decode import Engine
from needle.judging.evaluate import judge
from needle.judging.metrics import summarise
from needle.losses.loss import LossConfig, Signal
from needle.losses.matching import Matching
from needle.losses.objective import VALUES, Objective
from needle.students.base import Student, Trace, count_parameters
from needle.students.batch import Batch, move, target_weights
from needle.students.build import StudentConfig, build_student
from needle.students.checkpoint import Checkpoint, save_checkpoint
from needle.students.pretrained import start_from
from needle.teachers.signals import OnlineSignals, Signals
from needle.text.codecs import build_codec
from needle.text.files import write_json
from needle.text.prompt import IGNORE, Example
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer
from needle.training.optim import Average, OptimConfig, build_optimizers, learning_rate
from needle.training.runidentity import RUN, SUMMARY, RunError, check_processes, finished_run, identity_of
from needle.training.runstate import HardwareConfig, State, build_accelerator, keep_memory
from needle.training.tracking import Tracker, TrackerConfig

STATE, LAST = "state", "last"
RESUME = ("auto", "never")
GROUPS = ("length", "source", "family")


@dataclass
class TrainConfig:
    """`batch_size` counts the records of one optimiser step over all processes; `micro_batch` those of one pass.

    `rename` is the share of passes whose tools stand under other names and descriptions, drawn anew for each: of a few
    tools, the few variants that `data.augment.rename` makes are soon known by heart. `group` says which records share a
    micro-batch: those of similar length, or also of one source and augmented copy, or of one family, whose tools a
    pointer student then encodes once for all of them.
    """

    steps: int = 1000
    batch_size: int = 64
    micro_batch: int = 64
    seed: int = 0
    eval_every: int = 250
    eval_records: int = 200
    patience: int = 0  # evaluations without a better exact call before stopping; 0 never stops early
    rename: float = 0.0
    batch_distractors: int = 0  # most tools that a record borrows from its batch, on top of its own
    save_every: int = 250
    log_every: int = 10
    resume: str = "auto"
    group: str = "length"
    piece: int = 0  # records of one group that stay together in a batch; 0 is micro_batch
    start: str | None = None  # a checkpoint whose weights to begin with, in place of random ones

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch", "eval_every", "eval_records", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"train.{name} is {getattr(self, name)}; it must be at least 1 (to leave {name.split('_')[0]} out,"
                    " give a number above train.steps)"
                )
        if not 0 <= self.rename <= 1:
            raise ValueError(f"train.rename is {self.rename}; it must be between 0 and 1")
        if self.resume not in RESUME:
            raise ValueError(f"train.resume is '{self.resume}'; expected one of {', '.join(RESUME)}")
        if self.group not in GROUPS:
            raise ValueError(f"train.group is '{self.group}'; expected one of {', '.join(GROUPS)}")


@dataclass
class Job:
    """Everything one run needs, built by `needle.config`."""

    student: StudentConfig
    tokenizer: TextTokenizer
    codec: str
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    hardware: HardwareConfig
    tracker: TrackerConfig
    data: Encoded
    validation: Sequence[Record]
    max_length: int
    output: Path
    signals: Signals | None = None
    placebo: bool = False  # give every position the signal of another one of its micro-batch
    config: Mapping[str, Any] = field(
        default_factory=dict
    )  # the whole run's config, as it is stored and compared on resuming
    data_info: Mapping[str, Any] = field(default_factory=dict)


def main_process_first(hardware: HardwareConfig) -> AbstractContextManager[None]:
    """The other processes of a run wait at the door until the main one has left the block: for caches that all then
    read."""
    return PartialState(cpu=hardware.device == "cpu").main_process_first()  # type: ignore[no-any-return]


def leave_processes() -> None:
    """Ends the talk between the processes of a run; a process that just exits may abort in one of its threads."""
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()


Report = Callable[[Mapping[str, Any]], None]


@dataclass
class Progress:
    """What a resumed run needs to know besides weights and optimiser."""

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    tokens: int = 0
    records: int = 0
    stopped: bool = False
    groups: dict[str, Any] = field(default_factory=dict)  # the best validation by source, and on tools not trained on


def train(job: Job, report: Report | None = None) -> dict[str, Any]:
    """Trains one student into `job.output` and returns its summary; a finished run is returned as it stands.

    Raises:
        RunError: the folder holds another run, or no optimiser step would be made.
    """
    if job.train.steps < 1:
        raise RunError(
            f"train.steps={job.train.steps}: a run without an optimiser step would promote random weights; give at"
            " least 1"
        )
    if job.loss.wants_teacher and job.signals is None:
        raise RunError(
            f"loss.alpha={job.loss.alpha} needs a teacher: set teacher=local teacher.checkpoint=DIR, or loss=finetune"
        )
    for name in ("batch_distractors", "rename"):
        if getattr(job.train, name) and job.loss.wants_teacher and not isinstance(job.signals, OnlineSignals):
            raise RunError(
                f"train.{name} changes the tools of a record, and stored signals don't know the new ones; set"
                f" teacher.online=true, or leave train.{name} out"
            )
    identity = identity_of(job.config, _content(job))
    finished = finished_run(job.output, identity, job.train.resume)
    if finished is not None:
        return finished
    return _Loop(job, identity, report or (lambda values: None)).run()


def _content(job: Job) -> dict[str, Any]:
    """What the files and the teacher that a run's settings name held."""
    return {
        "training_data": data_fingerprint(job.data.records),
        "validation_data": data_fingerprint(job.validation),
        "tokenizer": job.tokenizer.fingerprint,
        "teacher": job.signals.identity if job.signals else None,
    }


class _Loop:
    """One process's share of a run."""

    def __init__(self, job: Job, identity: Mapping[str, Any], report: Report) -> None:
        self.job, self.report = job, report
        if job.hardware.threads:
            torch.set_num_threads(job.hardware.threads)
        keep_memory()
        self.accelerator = build_accelerator(job.hardware)
        self.main = self.accelerator.is_main_process
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        check_processes(gather_object([identity]))  # waits too until every process has looked into the folder
        if self.main:
            job.output.mkdir(parents=True, exist_ok=True)
            write_json(job.output / RUN, identity)
        self.examples = job.data.examples
        self.codec = build_codec(job.codec, job.tokenizer)
        weights = job.loss.weights
        self.kind_weights = (
            ()
            if (weights.name, weights.key, weights.value) == (1, 1, 1)
            else (1.0, weights.name, weights.key, weights.value)
        )
        self.sizes = [sum(target_weights(example, self.kind_weights)) for example in self.examples]
        torch.manual_seed(job.train.seed)
        student = build_student(job.student, job.tokenizer.size)
        start_from(student, job.student, job.tokenizer, job.train.start)
        student.checkpointing = job.hardware.checkpointing
        self.parameters = count_parameters(student)
        self.order = batch_order(
            job.data,
            student.padded_length,
            job.train.batch_size,
            job.train.piece or job.train.micro_batch,
            job.train.seed,
            job.train.group,
        )
        objective = Objective(student, job.loss, self._matching(student))
        self.progress = Progress()
        self.state = State(job.output / STATE, self.accelerator)
        self.model = objective
        optimizers = build_optimizers(
            objective, job.optim, lambda name: name.removeprefix("student.").startswith(student.pretrained)
        )
        self.average = Average(student, job.optim.ema) if job.optim.ema else None
        prepared = self.accelerator.prepare(objective, *optimizers)
        self.model, self.optimizers = prepared[0], list(prepared[1:])
        self.student: Student = self.accelerator.unwrap_model(self.model).student
        found = self.state.load(self.model, self.optimizers, self.average)
        for note in self.state.notes if self.main else ():
            self.report({"note": note})
        if found is not None:
            self.progress = Progress(**found)
        if job.hardware.compile:
            self._compile()

    def _matching(self, student: Student) -> Matching | None:
        if not (self.job.loss.hidden or self.job.loss.attention):
            return None
        if not isinstance(self.job.signals, OnlineSignals):
            raise RunError(
                "loss.hidden and loss.attention look into the teacher as it reads each batch: set teacher=local"
                " teacher.online=true"
            )
        return Matching(self.job.loss, student, self.job.signals.teacher.white_box().student)

    def _compile(self) -> None:
        """Tries one pass forward and back; what torch.compile can't do isn't worth losing a run for."""
        self.student.compile(dynamic=True)
        try:
            self._pass(self.order[self.progress.step][: self.job.train.micro_batch], 1.0, 0)
            torch._dynamo.config.suppress_errors = True  # what fails at a later batch's shape runs as it is
        except Exception as error:
            self.student._compiled_call_impl = None
            self.report(
                {
                    "note": (
                        f"hardware.compile: torch.compile failed ({type(error).__name__}:"
                        f" {str(error).splitlines()[0][:200]}); going on without it"
                    )
                }
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def run(self) -> dict[str, Any]:
        job, at = self.job, self.progress
        tracker = Tracker(job.tracker, job.output, job.config, at.step) if self.main else None
        started = time.perf_counter() - at.seconds
        while at.step < job.train.steps and not at.stopped:
            values = self.step()
            at.seconds = time.perf_counter() - started
            if at.step % job.train.log_every == 0 or at.step == 1:
                values |= {
                    "tokens_per_second": at.tokens / at.seconds,
                    "records_per_second": at.records / at.seconds,
                    "seconds": at.seconds,
                }
                self._log(tracker, values)
            last = at.step == job.train.steps
            if (at.step % job.train.eval_every == 0 or last) and job.validation:
                self._log(tracker, self.check(tracker))
            at.seconds = time.perf_counter() - started
            if at.step % job.train.save_every == 0 and not last:
                self.state.save(self.model, self.optimizers, self.average, vars(at))
        return self._finish(tracker)

    def step(self) -> dict[str, Any]:
        """One optimiser step: the global batch, this process's micro-batches, one normaliser for all of them."""
        job, at = self.job, self.progress
        indices = self.order[at.step]
        normalizer = sum(self.sizes[index] for index in indices)
        micro_batches = share(indices, self.rank, self.processes, job.train.micro_batch)
        torch.manual_seed((job.train.seed * 1_000_003 + at.step) * 64 + self.rank)  # dropout
        self.model.train()
        sums = torch.zeros(len(VALUES))
        for number, micro in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                sums += self._pass(micro, normalizer, indices[0])
        if self.processes > 1:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device)).cpu()
        if not sums.isfinite().all():
            names = ", ".join(self.examples[index].id for index in indices[:5])
            raise RunError(
                f"the loss of step {at.step + 1} is {float(sums[0])} (records {names}, …); lower"
                f" optim.lr={job.optim.lr}, or look at these records"
            )
        rate = learning_rate(job.optim, at.step, job.train.steps)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), job.optim.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            optimizer.step()
            optimizer.zero_grad()
        if self.average:
            self.average.update()
        tokens = sum(len(self.examples[index].target) for index in indices)
        at.step, at.tokens, at.records = at.step + 1, at.tokens + tokens, at.records + len(indices)
        loss = job.loss
        wanted = {"loss": True, "hard": True, "hidden": loss.hidden > 0, "attention": loss.attention > 0}
        values = {
            name: value for name, value in zip(VALUES, sums.tolist(), strict=True) if wanted.get(name, loss.alpha > 0)
        }
        return {**values, "lr": rate, "gradient_norm": float(norm)}

    def _pass(self, micro: Sequence[int], normalizer: float, stand_in: int) -> Tensor:
        """Forward and backward of one micro-batch. An empty one runs a record without targets, to stay in step."""
        job, at = self.job, self.progress
        examples = [self.examples[index] for index in micro] or [self.examples[stand_in]]
        if micro and job.train.rename:
            examples = self._renamed(examples, micro)
        if job.train.batch_distractors:
            examples = add_distractors(examples, job.train.batch_distractors, (job.train.seed, at.step, *micro[:1]))
        batch = self.student.collate(examples, job.tokenizer, self.kind_weights)
        batch = move(batch, self.accelerator.device)
        if not micro:
            batch.targets = torch.full_like(batch.targets, IGNORE)
            batch.weights = torch.zeros_like(batch.weights)
        signal, insides = self._teach(examples, batch)
        values: Tensor = self.model(batch, signal, normalizer, insides)
        self.accelerator.backward(values[0] * self.processes)  # DDP averages over processes; the sum is wanted
        return values.detach().float().cpu()

    def _renamed(self, examples: list[Example], micro: Sequence[int]) -> list[Example]:
        job = self.job
        source = random.Random(f"{job.train.seed}:{self.progress.step}:{micro[0]}")
        if source.random() >= job.train.rename:
            return examples
        return rename_examples(
            examples,
            [job.data.records[index] for index in micro],
            job.tokenizer,
            self.codec,
            job.max_length,
            source.getrandbits(32),
        )

    def _teach(self, examples: Sequence[Example], batch: Batch) -> tuple[Signal | None, Trace | None]:
        """What the teacher says about a batch, and what it thought on its way there."""
        job, insides = self.job, None
        if not job.loss.wants_teacher or job.signals is None:
            return None, None
        if job.loss.hidden or job.loss.attention:
            insides = Trace(attend=job.loss.attention > 0)
        with self.accelerator.autocast():  # a teacher that reads along does so in the student's precision
            signal = job.signals.read(examples, batch, insides)
        if job.placebo:
            if signal.span is not None:
                raise RunError(
                    "teacher.placebo shuffles distributions, and pieces of text (teacher.rung=span) belong to their"
                    " text; leave one of them out"
                )
            places = (batch.targets.flatten() != IGNORE).nonzero()[:, 0].cpu()
            rows = torch.arange(batch.targets.numel())
            generator = torch.Generator().manual_seed(job.train.seed * 1_000_003 + self.progress.step)
            rows[places] = places[torch.randperm(len(places), generator=generator)]
            signal = signal.at(rows.to(batch.targets.device))
        return signal, insides

    def check(self, tracker: Tracker | None) -> dict[str, Any]:
        """Exact call on validation; keeps the checkpoint when it is the best so far."""
        job, at = self.job, self.progress
        values: dict[str, Any] = {}
        exact = torch.zeros(1)
        with self._judged() as checkpoint:
            if self.main:
                answers, scores = judge(Engine(checkpoint), job.validation)
                summary = summarise(scores)
                values = {
                    f"validation/{name}": summary[name]["value"]
                    for name in ("exact_call", "tool_name", "argument_f1", "false_call_rate", "missed_call_rate")
                }
                exact[0] = values["validation/exact_call"]
                if tracker:
                    tracker.samples(at.step, job.validation, answers, scores)
            if self.processes > 1:
                exact = self.accelerator.reduce(exact.to(self.accelerator.device)).cpu()
            if float(exact) > at.best:
                at.best, at.best_step, at.waited = float(exact), at.step, 0
                if self.main:
                    at.groups = _by_group(summary)
                    save_checkpoint(job.output, checkpoint)
            else:
                at.waited += 1
                at.stopped = 0 < job.train.patience <= at.waited
        return values

    @contextmanager
    def _judged(self) -> Iterator[Checkpoint]:
        """The student as it is judged and saved: whole, in evaluation mode, its weights averaged if asked for."""
        job = self.job
        with self.average.applied() if self.average else nullcontext():
            student = self.student
            if self.state.sharded:
                whole = self.state.whole(self.model)
                student = build_student(job.student, job.tokenizer.size)
                if self.main:
                    student.load_state_dict(
                        {
                            name.removeprefix("student."): value
                            for name, value in whole.items()
                            if name.startswith("student.")
                        }
                    )
            student.eval()
            yield Checkpoint(student, job.student, job.tokenizer, job.codec, job.max_length, job.data_info, job.output)

    def _log(self, tracker: Tracker | None, values: dict[str, Any]) -> None:
        if tracker and values:
            tracker.log(self.progress.step, values)
            self.report({"step": self.progress.step, "steps": self.job.train.steps, **values})

    def _finish(self, tracker: Tracker | None) -> dict[str, Any]:
        job, at = self.job, self.progress
        summary = {
            "steps": at.step,
            "best_step": at.best_step or at.step,
            "validation_exact_call": at.best if at.best >= 0 else None,
            "validation": at.groups,
            "stopped_early": at.stopped,
            "seconds": round(at.seconds, 2),
            "records": at.records,
            "tokens": at.tokens,
            "records_per_second": round(at.records / max(at.seconds, 1e-9), 2),
            "parameters": self.parameters,
            "training_records": len(job.data.examples),
            "dropped": len(job.data.dropped),
            "processes": self.processes,
            "device": str(self.accelerator.device),
        }
        if (
            at.best_step != at.step
        ):  # a few validation records tell little between two checkpoints, so the end is kept beside the best
            with self._judged() as checkpoint:
                if self.main:
                    save_checkpoint(job.output / LAST if at.best_step else job.output, checkpoint)
        if tracker:
            origins: dict[str, Mapping[str, Any]] = {
                "dataset": {"fingerprint": data_fingerprint(job.data.records), **job.data_info}
            }
            if job.signals is not None:
                origins["teacher"] = {**job.signals.identity, "fingerprint": str(job.signals.identity["teacher"])}
            tracker.finish(summary, origins)
            write_json(job.output / SUMMARY, summary)
            shutil.rmtree(job.output / STATE, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return summary


def _by_group(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of a judgement, the share of exact calls and of false ones by source, and on tools that weren't trained on."""
    return {
        f"{group}: {member}": {
            "records": row["records"],
            "exact_call": row["exact_call"]["value"],
            "false_call_rate": row["false_call_rate"]["value"],
        }
        for group in ("source", "seen")
        for member, row in summary["groups"].get(group, {}).items()
    }
