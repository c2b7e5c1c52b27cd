"""The optimisers, their schedule, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "constant", "wsd")


@dataclass
class OptimConfig:
    """`warmup` is counted in optimiser steps; `final` is the last rate as a share of `lr`.

    `name` muon gives the matrices inside the network to Muon (Jordan et al. 2024), whose update has AdamW's size, so
    that one `lr` serves both; embeddings, norms and biases stay with AdamW. `schedule` wsd holds the rate after the
    warm-up and falls in a line over the last `decay` of the steps (Hu et al. 2024, arXiv:2404.06395). `ema` is the
    decay of an average of the weights, which is then what is judged and saved; 0 is none. `pretrained` is the share of
    the rate that weights which a student took over from another network learn with.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    momentum: float = 0.95  # Muon's
    clip: float = 1.0
    warmup: int = 100
    schedule: str = "cosine"
    final: float = 0.05
    decay: float = 0.2
    ema: float = 0.0
    pretrained: float = 1.0

    def __post_init__(self) -> None:
        for name, value, choices in (("name", self.name, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES)):
            if value not in choices:
                raise ValueError(f"optim.{name} is '{value}'; expected one of {', '.join(choices)}")
        for name in ("ema", "final", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be between 0 and 1")


def build_optimizers(
    model: nn.Module, config: OptimConfig, pretrained: Callable[[str], bool] = lambda name: False
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon in front of it if chosen. Matrices decay; vectors (norms, biases) and embeddings don't.

    A group's `share` is what part of the rate it learns with: `config.pretrained` for parameters whose name
    `pretrained` knows.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for share, mine in ((1.0, lambda name: not pretrained(name)), (config.pretrained, pretrained)):
        parameters = [
            parameter for name, parameter in model.named_parameters() if parameter.requires_grad and mine(name)
        ]
        inner = [parameter for parameter in parameters if parameter.dim() >= 2 and id(parameter) not in embeddings]
        outer = [parameter for parameter in parameters if parameter.dim() < 2 or id(parameter) in embeddings]
        matrices += [{"params": inner, "weight_decay": config.weight_decay, "share": share}] if inner else []
        rest += [{"params": outer, "weight_decay": 0.0, "share": share}] if outer else []
    adamw = torch.optim.AdamW(
        matrices + rest if config.name == "adamw" else rest,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    if config.name == "adamw":
        return [adamw]
    muon = torch.optim.Muon(
        matrices,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of optimiser step `step` (from 0) of `steps`: linear warm-up, then the chosen decay to `final`."""
    warmup = min(config.warmup, max(steps // 5, 1))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    match config.schedule:
        case "cosine":
            return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * progress)) / 2)
        case "linear":
            return config.lr * (1 - (1 - config.final) * progress)
        case "wsd":
            falling = max(step - steps * (1 - config.decay), 0) / max(steps * config.decay, 1)
            return config.lr * (1 - (1 - config.final) * min(falling, 1.0))
    return config.lr


class Average:
    """An exponential moving average of a module's floating-point parameters, with Adam's correction for its start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
        self.values = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after one optimiser step."""
        self.steps += 1
        torch._foreach_lerp_(self.values, [parameter.float() for parameter in self.parameters], 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average in the weights' place for the length of a block."""
        kept = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values, strict=True):
                parameter.copy_(value / (1 - self.decay**self.steps))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, kept, strict=True):
                    parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        return {str(index): value for index, value in enumerate(self.values)}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        self.steps = steps
        for index, value in enumerate(self.values):
            value.copy_(state[str(index)])
