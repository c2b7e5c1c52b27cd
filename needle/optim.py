"""The optimiser and its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

SCHEDULES = ("cosine", "linear", "constant")


@dataclass
class OptimConfig:
    """AdamW. `warmup` and the decay are counted in optimiser steps; `final` is the last rate as a share of `lr`."""

    lr: float = 1e-3
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    clip: float = 1.0
    warmup: int = 100
    schedule: str = "cosine"
    final: float = 0.05


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Matrices decay; vectors (norms, biases) and embeddings don't."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decay = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2 and id(p) not in embeddings]
    rest = [p for p in model.parameters() if p.requires_grad and not (p.dim() >= 2 and id(p) not in embeddings)]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of optimiser step `step` (from 0) of `steps`: linear warm-up, then the chosen decay to `final`."""
    if config.schedule not in SCHEDULES:
        raise ValueError(f"optim.schedule is '{config.schedule}'; expected one of {', '.join(SCHEDULES)}")
    warmup = min(config.warmup, max(steps // 5, 1))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    if config.schedule == "cosine":
        return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * progress)) / 2)
    return config.lr * (1 - (1 - config.final) * progress) if config.schedule == "linear" else config.lr
