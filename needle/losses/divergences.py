"""How far a student's distribution lies from its teacher's: six divergences, their values and derivatives.

Legend: n positions, M outcomes compared.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation")
LOG_FLOOR = -30.0  # reverse KL is infinite where the teacher says never; 1e-13 is never enough


class Kind(Protocol):
    """Which divergence; `needle.losses.loss.LossConfig` is one."""

    divergence: str
    jsd_beta: float
    skew: float


def value_and_slope(teacher: Tensor, student: Tensor, config: Kind) -> tuple[Tensor, Tensor]:
    """[n, 1] of D and its derivative [n, M] in each of the student's log-probabilities, taken as free variables."""
    if config.divergence == "forward_kl":
        return kl(teacher, student)[:, None], -teacher.exp()
    with torch.enable_grad():
        free = student.detach().requires_grad_()
        value = divergence(teacher, free, config)
        (slope,) = torch.autograd.grad(value.sum(), free)
    return value.detach()[:, None], slope


def divergence(teacher: Tensor, student: Tensor, config: Kind) -> Tensor:
    """D(teacher, student) of log-probabilities [..., M], in nats (total variation has no unit); the student's must be
    finite."""
    share = config.skew
    match config.divergence:
        case "forward_kl":
            return kl(teacher, student)
        case "reverse_kl":
            return kl(student, teacher.clamp_min(LOG_FLOOR))
        case "skew_forward_kl":
            return kl(teacher, _mixture(teacher, student, share))
        case "skew_reverse_kl":
            return kl(student, _mixture(student, teacher, share) if share else teacher.clamp_min(LOG_FLOOR))
        case "total_variation":
            return (teacher.exp() - student.exp()).abs().sum(-1) / 2
    weight = config.jsd_beta
    if weight == 0:
        return kl(teacher, student)
    if weight == 1:
        return kl(student, teacher.clamp_min(LOG_FLOOR))
    middle = _mixture(teacher, student, weight)
    return weight * kl(teacher, middle) + (1 - weight) * kl(student, middle)


def _mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """log(share * first + (1 - share) * second) of log-probabilities."""
    return second if share == 0 else torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., M], in nats; outcomes with p = 0 add nothing, whatever q says."""
    possible = p > -torch.inf
    p_safe = torch.where(possible, p, 0.0)
    terms = p_safe.exp() * (p_safe - torch.where(possible, q, 0.0))
    return torch.where(possible, terms, 0.0).sum(-1)
