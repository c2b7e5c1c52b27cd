"""The processes of a run, and the state from which a killed one goes on."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from needle.students.base import multiplies_bf16
from needle.text.files import write_json
from needle.training.optim import Average
from needle.training.runidentity import RunError

PATIENCE = timedelta(hours=2)  # how long processes wait for the main one, which alone validates


@dataclass
class HardwareConfig:
    """`precision` no, bf16 (autocast), or auto: bf16 where the device multiplies it by itself; `device` auto (a GPU if
    there is one) or cpu; `threads` of torch, all cores when 0.

    `processes` of one run on this machine (0: one for each GPU), joined by `strategy` ddp (each holds the whole
    student) or fsdp (each holds a share). `compile` runs the student through torch.compile, and goes on without if that
    fails. `checkpointing` forgets activations and computes them again, to fit larger micro-batches into a GPU's memory.
    """

    device: str = "auto"
    precision: str = "no"
    threads: int = 0
    processes: int = 1
    strategy: str = "ddp"
    compile: bool = False
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise ValueError(f"hardware.device is '{self.device}'; expected auto (a GPU if there is one) or cpu")
        if self.precision not in ("no", "bf16", "auto"):
            raise ValueError(f"hardware.precision is '{self.precision}'; expected no, bf16 or auto")
        if self.strategy not in ("ddp", "fsdp"):
            raise ValueError(f"hardware.strategy is '{self.strategy}'; expected ddp or fsdp")
        if self.processes < 0:
            raise ValueError(f"hardware.processes is {self.processes}; it must be at least 1, or 0 for one on each GPU")


def keep_memory() -> None:
    """Asks glibc to keep freed memory instead of giving it back: on a CPU, fetching it page by page costs up to half of
    a step. Elsewhere (other systems, other C libraries) this does nothing.

    Also lets oneDNN keep more kernels: it makes one for every shape, in more time than the kernel runs.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: smaller blocks come from the heap
            libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD: and the heap doesn't shrink


def build_accelerator(hardware: HardwareConfig) -> Accelerator:
    """Raises ValueError for shards without GPUs, which Accelerate would take for plain DDP."""
    plugin = None
    if hardware.strategy == "fsdp":
        if hardware.device == "cpu" or not torch.cuda.is_available():
            raise ValueError(
                "hardware.strategy=fsdp shares a student out over GPUs, and there are none; on a CPU use hardware=cpu_2"
            )
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True)
    AcceleratorState._reset_state()  # an earlier run of this process, an arm of a sweep, may have had another precision
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True), InitProcessGroupKwargs(timeout=PATIENCE)]
    precision = hardware.precision
    on_gpu = hardware.device != "cpu" and torch.cuda.is_available()
    if precision == "auto":
        precision = "bf16" if (torch.cuda.is_bf16_supported() if on_gpu else multiplies_bf16()) else "no"
    return Accelerator(
        mixed_precision=precision, cpu=hardware.device == "cpu", kwargs_handlers=handlers, fsdp_plugin=plugin
    )


class State:
    """Weights, optimisers and progress of a run, in a folder that is renamed into place. The state before the newest
    is kept: a disk that filled up, or a power cut, may leave one that can't be read.

    `notes` says which states couldn't be read.
    """

    def __init__(self, root: Path, accelerator: Accelerator) -> None:
        self.root, self.accelerator = root, accelerator
        self.notes: list[str] = []

    @property
    def sharded(self) -> bool:
        return bool(self.accelerator.distributed_type.value == "FSDP")

    def whole(self, model: nn.Module) -> dict[str, Tensor]:
        """All weights on the main process, gathered from wherever they lie; every process must call it."""
        if self.sharded:
            gathered: Any = get_model_state_dict(
                model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
            )
            return dict(gathered)
        return dict(self.accelerator.unwrap_model(model).state_dict())

    def save(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        average: Average | None,
        progress: Mapping[str, Any],
    ) -> None:
        """Everything under one new name, then the states before the one before go."""
        self.accelerator.wait_for_everyone()
        weights, moments = self.whole(model), self._moments(model, optimizers)
        if not self.accelerator.is_main_process:
            return
        folder, temporary = self.root / f"step-{progress['step']:08d}", self.root / "writing"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _save(weights, temporary / "model.safetensors")
        _save(moments, temporary / "optimizer.safetensors")
        if average:
            _save(average.state(), temporary / "average.safetensors")
        write_json(temporary / "progress.json", dict(progress))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        for old in sorted(self.root.glob("step-*"))[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def load(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], average: Average | None
    ) -> dict[str, Any] | None:
        """Puts the newest state that can be read into the parts of a run and returns its progress; None when there is
        none.

        Raises:
            RunError: there are states, and none of them can be read.
        """
        found = self._read(bool(average))
        if found is None:
            return None
        progress, (weights, moments, *averaged) = found
        if self.sharded:
            set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
        else:
            self.accelerator.unwrap_model(model).load_state_dict(weights)
        for number, optimizer in enumerate(optimizers):
            mine = {
                key.removeprefix(f"{number}."): value for key, value in moments.items() if key.startswith(f"{number}.")
            }
            self._load_moments(model, optimizer, mine)
        if average:
            average.load(averaged[0], progress["step"])
        return progress

    def _read(self, averaged: bool) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """The progress of the newest state that is whole, and its weights, moments and average."""
        folders = sorted(self.root.glob("step-*"), reverse=True)
        for folder in folders:
            file = folder / "progress.json"
            try:
                progress = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(progress, dict) or "step" not in progress:
                    raise ValueError("expected an object with the step")
                tensors: list[dict[str, Any]] = []
                for name in ("model", "optimizer", *(["average"] if averaged else [])):
                    file = folder / f"{name}.safetensors"
                    tensors.append(load_file(file))
            except (OSError, ValueError, SafetensorError) as error:
                self.notes.append(
                    f"{file} can't be read ({str(error).splitlines()[0]}); going on from the state before it"
                )
                continue
            return progress, tensors
        if folders:
            raise RunError(
                f"{self.notes[-1].partition(';')[0]}, and there is no state before it; delete {self.root} to begin anew"
            )
        return None

    def _moments(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
        """Every optimiser's tensors by number, parameter and name."""
        out: dict[str, Tensor] = {}
        for number, optimizer in enumerate(optimizers):
            rows: Any
            if self.sharded:
                rows = get_optimizer_state_dict(
                    model, _plain(optimizer), options=StateDictOptions(full_state_dict=True, cpu_offload=True)
                ).get("state", {})
            else:
                rows = optimizer.state_dict()["state"]
            out |= {
                f"{number}.{parameter}|{name}": value for parameter, row in rows.items() for name, value in row.items()
            }
        return out

    def _load_moments(self, model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
        rows: dict[Any, Any] = {}
        for key, value in moments.items():
            parameter, name = key.split("|")
            rows.setdefault(parameter if self.sharded else int(parameter), {})[name] = value
        if self.sharded:
            options = StateDictOptions(full_state_dict=True)
            groups: Any = get_optimizer_state_dict(model, _plain(optimizer))["param_groups"]
            set_optimizer_state_dict(model, _plain(optimizer), {"state": rows, "param_groups": groups}, options=options)
        else:
            optimizer.load_state_dict({"state": rows, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Without Accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
