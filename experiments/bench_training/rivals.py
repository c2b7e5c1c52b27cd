"""Rival trainers on the same weights, token ids and batches: each step's seconds.

Batches are fixed by the caller: step i sees `examples[i * batch : (i + 1) * batch]`, so that everybody gets the same
grouping by length. A loss counts target tokens only and is divided by their number in the batch.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer

IGNORE = -100
Example = tuple[list[int], list[int]]  # prompt ids, target ids
Row = dict[str, list[int]]
Collator = Callable[[Sequence[Row]], dict[str, Tensor]]


@dataclass(frozen=True)
class Setup:
    """`precision` no or bf16 (autocast); `warmup` steps are left out of the timing."""

    steps: int
    batch: int
    precision: str
    warmup: int
    temperature: float = 1.0
    lr: float = 1e-3


class Clock(TrainerCallback):
    """When each optimiser step ended; a step's time runs from the end of the one before, batch making included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self, warmup: int) -> list[float]:
        return [b - a for a, b in pairwise(self.ends[warmup - 1 :])]


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


@dataclass(frozen=True)
class PadRight:
    """Right padding to the batch's longest row, in one of three ways that all give the same loss.

    `masked` is what the libraries' own collators do. `causal` leaves the mask all ones: no real token precedes padding,
    so causal attention alone is exact, and the attention kernel needs no mask. `sliced` moreover asks for the scores at
    the T + 1 positions around each target only, so that prompts aren't projected to the vocabulary.
    """

    pad: int
    how: str = "masked"

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        ids = padded([row["input_ids"] for row in rows], self.pad)
        labels = padded([row["labels"] for row in rows], IGNORE)
        mask = (
            padded([[1] * len(row["input_ids"]) for row in rows], 0) if self.how == "masked" else torch.ones_like(ids)
        )
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if self.how == "sliced":
            first = (labels != IGNORE).int().argmax(1, keepdim=True)
            width = int((labels != IGNORE).sum(1).max())
            keep = (first - 1 + torch.arange(width + 1)).clamp_max(ids.shape[1] - 1)
            kept = labels.gather(1, keep)
            kept[(first - 1 + torch.arange(width + 1)) >= ids.shape[1]] = IGNORE
            batch |= {"logits_to_keep": keep, "labels": kept}
        return batch


def rows(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_list([{"input_ids": [*p, *t], "labels": [*[IGNORE] * len(p), *t]} for p, t in examples])


def common(setup: Setup, folder: str) -> dict[str, Any]:
    """What every rival gets: AdamW fused, constant rate, clipping at 1, no checkpointing, nothing but training."""
    return {
        "output_dir": folder, "max_steps": setup.steps, "per_device_train_batch_size": setup.batch,
        "gradient_accumulation_steps": 1,
        "optim": "adamw_torch_fused", "learning_rate": setup.lr, "lr_scheduler_type": "constant", "max_grad_norm": 1.0,
        "weight_decay": 0.05, "adam_beta1": 0.9, "adam_beta2": 0.98, "adam_epsilon": 1e-8,
        "use_cpu": True, "bf16": setup.precision == "bf16", "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential", "dataloader_num_workers": 0, "remove_unused_columns": False,
        "report_to": [], "save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "seed": 0,
    }  # fmt: skip


class FixedGOLD(GOLDTrainer):
    """GOLD shuffles whatever it is told; batches must be the caller's."""

    def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class OffPolicyDistillation(DistillationTrainer):
    """The stable trainer only knows completions that it sampled; here they come with the data, as `prompt` = [prompt
    ids, target ids].

    With one process it goes round the autocast of the prepared models, so `bf16=True` computes in float32 unless
    `autocast`.
    """

    autocast = False

    def _generate(
        self, prompts: list[list[list[int]]]
    ) -> tuple[list[list[int]], list[list[int]], None, None, list[Any]]:
        return [p for p, _ in prompts], [t for _, t in prompts], None, None, []

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with self.accelerator.autocast() if self.autocast else nullcontext():
            return super()._compute_loss(*args, **kwargs)


@dataclass(frozen=True)
class Scene:
    """Everything a rival starts from."""

    student: LlamaForCausalLM
    teacher: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    examples: Sequence[Example]
    setup: Setup
    folder: str

    def collator(self, how: str) -> Collator:
        return PadRight(self.tokenizer.pad_token_id, how)


def transformers_trainer(scene: Scene, how: str) -> Trainer:
    data = list(rows(scene.examples))  # plain dicts, faster to read than Arrow
    return Trainer(scene.student, TrainingArguments(**common(scene.setup, scene.folder)), scene.collator(how), data)  # type: ignore[arg-type]


def sft(scene: Scene, how: str) -> Trainer:
    """`compact` turns on what the library leaves off on CPUs: scores of the target positions only, as on GPUs."""
    args = SFTConfig(**common(scene.setup, scene.folder), max_length=None)
    return SFTTrainer(scene.student, args, scene.collator(how), rows(scene.examples), processing_class=scene.tokenizer)


def gkd(scene: Scene, how: str) -> Trainer:
    args = GKDConfig(
        **common(scene.setup, scene.folder), max_length=None, lmbda=0.0, beta=0.0, temperature=scene.setup.temperature
    )
    return GKDTrainer(
        scene.student, scene.teacher, args, scene.collator(how), rows(scene.examples), processing_class=scene.tokenizer
    )


def gold(scene: Scene, how: str) -> Trainer:
    args = GOLDConfig(
        **common(scene.setup, scene.folder), max_length=None, lmbda=0.0, beta=0.0, temperature=scene.setup.temperature
    )
    return FixedGOLD(
        scene.student, scene.teacher, args, scene.collator(how), rows(scene.examples), processing_class=scene.tokenizer
    )


def distillation(scene: Scene, how: str) -> Trainer:
    args = DistillationConfig(
        **common(scene.setup, scene.folder), beta=0.0, temperature=scene.setup.temperature, shuffle_dataset=False
    )
    data = Dataset.from_list([{"prompt": [p, t]} for p, t in scene.examples])
    trainer = OffPolicyDistillation(scene.student, scene.teacher, args, data, processing_class=scene.tokenizer)
    trainer.autocast = how == "autocast"
    return trainer


RIVALS: dict[str, tuple[Callable[[Scene, str], Trainer], tuple[str, ...]]] = {
    "trainer": (transformers_trainer, ("masked", "sliced")),
    "sft": (sft, ("masked", "compact")),
    "gkd": (gkd, ("masked",)),
    "gold": (gold, ("masked", "sliced")),
    "distillation": (distillation, ("autocast",)),
}


def measure(rival: str, scene: Scene) -> list[float]:
    """Seconds of each step after the warm-up; `rival` is `name/how`."""
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    name, how = rival.split("/")
    trainer = RIVALS[name][0](scene, how)
    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    with patch("trl.trainer.utils._use_triton", lambda device: True) if how == "compact" else nullcontext():
        trainer.train()
    return clock.seconds(scene.setup.warmup)
