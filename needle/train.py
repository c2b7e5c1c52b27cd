"""The one training loop, for every arm: an Accelerate loop over a fixed order of batches.

A run is a function of its config: initialisation, order and dropout follow from the seed and the step, so that a run
killed anywhere and resumed ends in the very weights of the run that wasn't. The loss of a step is a sum over its target
tokens divided by their number, over all micro-batches and processes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import load_file, save_file
from torch import Tensor

from needle.checkpoint import CONFIG, Checkpoint, save_checkpoint, write_json
from needle.data.encoding import BatchOrder, Encoded, add_distractors, data_fingerprint, share
from needle.engine.decode import Engine
from needle.evaluate import judge
from needle.losses import LossConfig, distillation_loss
from needle.metrics import summarise
from needle.optim import OptimConfig, build_optimizer, learning_rate
from needle.prompt import Example
from needle.records import Record
from needle.signals import SignalCache
from needle.students.base import Student, count_parameters
from needle.students.batch import collate, move
from needle.students.build import StudentConfig, build_student
from needle.tokenizer import TextTokenizer
from needle.tracking import Tracker, TrackerConfig

STATE = "state"
SUMMARY = "train.json"
RUN = "run.json"
RESUME = ("auto", "never")


@dataclass
class TrainConfig:
    """`batch_size` counts the records of one optimiser step over all processes; `micro_batch` those of one pass."""

    steps: int = 1000
    batch_size: int = 64
    micro_batch: int = 64
    seed: int = 0
    eval_every: int = 250
    eval_records: int = 200
    patience: int = 0  # evaluations without a better exact call before stopping; 0 never stops early
    batch_distractors: int = 0  # most tools that a record borrows from its batch, on top of its own
    save_every: int = 250
    log_every: int = 10
    resume: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch", "eval_every", "eval_records", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1 (to leave {name.split('_')[0]} out, give a number above train.steps)")
        if self.resume not in RESUME:
            raise ValueError(f"train.resume is '{self.resume}'; expected one of {', '.join(RESUME)}")


@dataclass
class HardwareConfig:
    """`precision` no or bf16 (autocast); `device` auto (a GPU if there is one) or cpu; `threads` of torch, all cores when 0."""

    device: str = "auto"
    precision: str = "no"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise ValueError(f"hardware.device is '{self.device}'; expected auto (a GPU if there is one) or cpu")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"hardware.precision is '{self.precision}'; expected no or bf16")


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
    signals: SignalCache | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # the whole run's config, as it is stored and compared on resuming
    data_info: Mapping[str, Any] = field(default_factory=dict)


def main_process_first(hardware: HardwareConfig) -> AbstractContextManager[None]:
    """The other processes of a run wait at the door until the main one has left the block: for caches that all then read."""
    return PartialState(cpu=hardware.device == "cpu").main_process_first()  # type: ignore[no-any-return]


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


class RunError(ValueError):
    """A run that can't start or go on in its output folder; the message says what to change."""


def train(job: Job, report: Report | None = None) -> dict[str, Any]:
    """Trains one student into `job.output` and returns its summary; a finished run is returned as it stands.

    Raises:
        RunError: the folder holds another run, or no optimiser step would be made.
    """
    if job.train.steps < 1:
        raise RunError(f"train.steps={job.train.steps}: a run without an optimiser step would promote random weights; give at least 1")
    if job.train.batch_distractors and job.loss.alpha:
        raise RunError("train.batch_distractors changes what a record offers, and the teacher's stored signals don't know the new tools; leave one of them out")
    finished = _check_output(job)
    if finished is not None:
        return finished
    return _Loop(job, report or (lambda values: None)).run()


def _check_output(job: Job) -> dict[str, Any] | None:
    """Refuses a folder of another run; returns the summary of this very run when it is done."""
    path = job.output / RUN
    if not path.exists():
        return None
    if job.train.resume == "never":
        raise RunError(f"{job.output} holds a run already; choose another output=, or go on with it by train.resume=auto")
    different = _differences(json.loads(path.read_text(encoding="utf-8")), _identity(job))
    if different:
        raise RunError(f"{job.output} holds another run ({'; '.join(different[:4])}); choose another output=, or give the same settings and data to resume it")
    summary = job.output / SUMMARY
    if not summary.exists():
        return None
    return {**json.loads(summary.read_text(encoding="utf-8")), "resumed": "finished"}


def _identity(job: Job) -> dict[str, Any]:
    """What makes a run this run: its settings, and what the files and the teacher that they name held."""
    content = {
        "training_data": data_fingerprint(job.data.records),
        "validation_data": data_fingerprint(job.validation),
        "tokenizer": job.tokenizer.fingerprint,
        "teacher": job.signals.identity if job.signals else None,
    }
    identity: dict[str, Any] = json.loads(json.dumps({**_comparable(job.config), "content": content}))
    return identity


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what may change between a run and its resumption."""
    kept = {key: value for key, value in config.items() if key not in ("output", "tracker", "cache")}
    kept["train"] = {key: value for key, value in config.get("train", {}).items() if key not in ("resume", "log_every", "save_every")}
    return kept


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))]
    return [] if old == new else [f"{where} was {old!r}, now {new!r}"]


def _length(example: Example, layout: str) -> int:
    """What padding depends on: the whole row of a decoder-only student; of a pointer student the target, then the request."""
    return example.length if layout == "flat" else len(example.target) * 4096 + len(example.query)


class _Loop:
    """One process's share of a run."""

    def __init__(self, job: Job, report: Report) -> None:
        self.job, self.report = job, report
        if job.hardware.threads:
            torch.set_num_threads(job.hardware.threads)
        self.accelerator = Accelerator(
            mixed_precision=job.hardware.precision, cpu=job.hardware.device == "cpu", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]
        )
        self.main = self.accelerator.is_main_process
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.accelerator.wait_for_everyone()  # every process has looked into the folder
        if self.main:
            job.output.mkdir(parents=True, exist_ok=True)
            write_json(job.output / RUN, _identity(job))
        self.examples = job.data.examples
        torch.manual_seed(job.train.seed)
        student = build_student(job.student, job.tokenizer.size)
        self.order = BatchOrder([_length(example, student.layout) for example in self.examples], job.train.batch_size, job.train.seed)
        self.parameters = count_parameters(student)
        optimizer = build_optimizer(student, job.optim)
        self.progress = Progress()
        self._restore(student, optimizer)
        self.model, self.optimizer = self.accelerator.prepare(student, optimizer)
        self.student: Student = self.accelerator.unwrap_model(self.model)

    def run(self) -> dict[str, Any]:
        job, at = self.job, self.progress
        tracker = Tracker(job.tracker, job.output, job.config, at.step) if self.main else None
        started = time.perf_counter() - at.seconds
        while at.step < job.train.steps and not at.stopped:
            values = self.step()
            at.seconds = time.perf_counter() - started
            if at.step % job.train.log_every == 0 or at.step == 1:
                values |= {"tokens_per_second": at.tokens / at.seconds, "records_per_second": at.records / at.seconds, "seconds": at.seconds}
                self._log(tracker, values)
            last = at.step == job.train.steps
            if (at.step % job.train.eval_every == 0 or last) and job.validation:
                self._log(tracker, self.check())
            if at.step % job.train.save_every == 0 and not last:
                self._save_state()
            at.seconds = time.perf_counter() - started
        return self._finish(tracker)

    def step(self) -> dict[str, Any]:
        """One optimiser step: the global batch, this process's micro-batches, one normaliser for all of them."""
        job, at = self.job, self.progress
        indices = self.order[at.step]
        normalizer = sum(len(self.examples[index].target) for index in indices)
        micro_batches = share(indices, self.rank, self.processes, job.train.micro_batch)
        torch.manual_seed((job.train.seed * 1_000_003 + at.step) * 64 + self.rank)  # dropout
        self.model.train()
        sums = torch.zeros(3)
        for number, micro in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                sums += self._pass(micro, normalizer, indices[0])
        if self.processes > 1:
            sums = self.accelerator.reduce(sums.to(self.accelerator.device)).cpu()
        rate = learning_rate(job.optim, at.step, job.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), job.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        at.step, at.tokens, at.records = at.step + 1, at.tokens + normalizer, at.records + len(indices)
        total, soft, hard = sums.tolist()
        return {"loss": total, "soft": soft, "hard": hard, "lr": rate, "gradient_norm": float(norm)}

    def _pass(self, micro: Sequence[int], normalizer: int, stand_in: int) -> Tensor:
        """Forward and backward of one micro-batch. An empty one runs a record without targets, to stay in step."""
        examples = [self.examples[index] for index in micro] or [self.examples[stand_in]]
        if self.job.train.batch_distractors:
            examples = add_distractors(examples, self.job.train.batch_distractors, (self.job.train.seed, self.progress.step, *micro[:1]))
        batch = move(collate(examples, self.job.tokenizer, self.student.layout), self.accelerator.device)
        targets = batch.targets if micro else torch.full_like(batch.targets, -100)
        signal = self._signal(examples, targets.shape[1])
        logits = self.model(batch)
        loss = distillation_loss(logits.flatten(0, 1), targets.flatten(), signal, self.job.loss, normalizer)
        self.accelerator.backward(loss.total * self.processes)  # DDP averages over processes; the sum is wanted
        return torch.stack([loss.total.detach(), loss.soft, loss.hard]).float().cpu()

    def _signal(self, examples: Sequence[Example], width: int) -> Any:
        if self.job.loss.alpha == 0:
            return None
        if self.job.signals is None:
            raise RunError(f"loss.alpha={self.job.loss.alpha} needs a teacher: set teacher=local teacher.checkpoint=DIR, or loss=finetune")
        signal = self.job.signals.read(examples, width)
        device = self.accelerator.device
        return signal if device.type == "cpu" else type(signal)(signal.ids.to(device), signal.log_probs.to(device), signal.temperature)

    def check(self) -> dict[str, Any]:
        """Exact call on validation; keeps the checkpoint when it is the best so far."""
        job, at = self.job, self.progress
        values: dict[str, Any] = {}
        exact = torch.zeros(1)
        if self.main:
            self.student.eval()
            _, scores = judge(Engine(self._checkpoint()), job.validation)
            summary = summarise(scores)
            values = {f"validation/{name}": summary[name]["value"] for name in ("exact_call", "tool_name", "argument_f1", "false_call_rate", "missed_call_rate")}
            exact[0] = values["validation/exact_call"]
        if self.processes > 1:
            exact = self.accelerator.reduce(exact.to(self.accelerator.device)).cpu()
        if float(exact) > at.best:
            at.best, at.best_step, at.waited = float(exact), at.step, 0
            if self.main:
                save_checkpoint(job.output, self._checkpoint())
        else:
            at.waited += 1
            at.stopped = 0 < job.train.patience <= at.waited
        return values

    def _checkpoint(self) -> Checkpoint:
        job = self.job
        return Checkpoint(self.student, job.student, job.tokenizer, job.codec, job.max_length, job.data_info, job.output)

    def _log(self, tracker: Tracker | None, values: dict[str, Any]) -> None:
        if tracker and values:
            tracker.log(self.progress.step, values)
            self.report({"step": self.progress.step, "steps": self.job.train.steps, **values})

    def _save_state(self) -> None:
        """Weights, optimiser and progress beside each other under one new name, then the old state goes."""
        self.accelerator.wait_for_everyone()
        if not self.main:
            return
        root = self.job.output / STATE
        folder, temporary = root / f"step-{self.progress.step:08d}", root / "writing"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.student.state_dict().items()}, temporary / "model.safetensors")
        moments = {f"{index}.{name}": value for index, state in self.optimizer.state_dict()["state"].items() for name, value in state.items()}
        save_file({name: value.detach().cpu().contiguous() for name, value in moments.items()}, temporary / "optimizer.safetensors")
        write_json(temporary / "progress.json", vars(self.progress))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        for old in root.glob("step-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    def _restore(self, student: Student, optimizer: torch.optim.Optimizer) -> None:
        states = sorted((self.job.output / STATE).glob("step-*"))
        if not states:
            return
        student.load_state_dict(load_file(states[-1] / "model.safetensors"))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(states[-1] / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        self.progress = Progress(**json.loads((states[-1] / "progress.json").read_text(encoding="utf-8")))

    def _finish(self, tracker: Tracker | None) -> dict[str, Any]:
        job, at = self.job, self.progress
        summary = {
            "steps": at.step,
            "best_step": at.best_step or at.step,
            "validation_exact_call": at.best if at.best >= 0 else None,
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
        if tracker:
            if at.best < 0 or not (job.output / CONFIG).exists():
                self.student.eval()
                save_checkpoint(job.output, self._checkpoint())
            tracker.finish(summary)
            write_json(job.output / SUMMARY, summary)
            shutil.rmtree(job.output / STATE, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return summary
