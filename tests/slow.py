"""The loss as its definition says it: position by position, token by token, in Python's 64-bit floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from needle.losses.divergences import LOG_FLOOR
from needle.losses.loss import LossConfig

Row = Sequence[float]


def log_softmax(row: Row) -> list[float]:
    top = max(row)
    z = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - z for x in row]


def slow_divergence(p: Row, q: Row, config: LossConfig) -> float:
    """D(p, q) of probabilities, term by term from the formulas."""

    def kl(a: Row, b: Row) -> float:
        return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True) if x > 0)

    def mix(a: Row, b: Row, share: float) -> list[float]:
        return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]

    floored = [max(x, math.exp(LOG_FLOOR)) for x in p]
    beta = config.jsd_beta
    match config.divergence:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, floored)
        case "skew_forward_kl":
            return kl(p, mix(p, q, config.skew))
        case "skew_reverse_kl":
            return kl(q, mix(q, p, config.skew))
        case "total_variation":
            return sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
    if beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, floored)
    return beta * kl(p, mix(p, q, beta)) + (1 - beta) * kl(q, mix(p, q, beta))


def slow_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher: torch.Tensor | None,
    config: LossConfig,
    k: int | None = None,
    weights: Sequence[float] | None = None,
) -> float:
    """The whole loss; `k` merges all but the teacher's k likeliest tokens into one outcome."""
    total, count, T = 0.0, 0.0, config.temperature
    rows = teacher.double().tolist() if teacher is not None else [None] * len(targets)
    for number, (row, target, said) in enumerate(zip(logits.double().tolist(), targets.tolist(), rows, strict=True)):
        if target == -100:
            continue
        weight = 1.0 if weights is None else weights[number]
        count += weight
        log_q = log_softmax(row)
        eps = config.label_smoothing
        total += weight * config.beta * (-(1 - eps) * log_q[target] - eps * sum(log_q) / len(log_q))
        if said is None:
            continue
        p, q = ([math.exp(x) for x in log_softmax([x / T for x in scores])] for scores in (said, row))
        if k is not None and k < len(p):
            top = sorted(range(len(p)), key=lambda i: -p[i])[:k]
            p, q = ([full[i] for i in top] + [sum(x for i, x in enumerate(full) if i not in top)] for full in (p, q))
        scale = T if config.divergence == "total_variation" else T * T
        total += weight * config.alpha * scale * slow_divergence(p, q, config)
    return total / count if count else 0.0
