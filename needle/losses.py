"""The one loss. Fine-tuning is `alpha=0, beta=1`; distillation adds a teacher's signal; there is no other code path.

Legend: N target positions, V vocabulary, K stored outcomes of a sparse signal.

    loss = (1 / n) * sum over positions of  alpha * T^2 * D(teacher_T, student_T) + beta * CE(student, target)

n is the number of target positions of the whole optimiser step (all micro-batches, all processes), T the temperature,
D a divergence (Hinton et al. 2015, arXiv:1503.02531, give forward KL and the factor T^2 that keeps the soft gradient's
size independent of T). Everything is computed in float32 whatever the autocast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
DIVERGENCES = ("forward_kl", "reverse_kl")
LOG_FLOOR = -30.0  # reverse KL is infinite where the teacher says never; 1e-13 is never enough
TOLERANCE = 2e-2  # of a distribution's mass: a signal stored in 16 bits passes, logits don't


@dataclass
class LossConfig:
    """`alpha` weighs the teacher, `beta` the gold answer. The article's distillation is T=4, alpha=.7, beta=.3."""

    temperature: float = 1.0
    alpha: float = 0.0
    beta: float = 1.0
    divergence: str = "forward_kl"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"loss.temperature is {self.temperature}; it must be positive")
        if self.alpha < 0 or self.beta < 0 or self.alpha + self.beta == 0:
            raise ValueError(f"loss.alpha is {self.alpha} and loss.beta {self.beta}; both must be at least 0 and one above")
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"loss.divergence is '{self.divergence}'; expected one of {', '.join(DIVERGENCES)}")


@dataclass(frozen=True)
class DenseSignal:
    """A teacher's normalised log-probabilities over the whole vocabulary, [N, V], at temperature 1."""

    log_probs: Tensor

    def __post_init__(self) -> None:
        _refuse_unnormalised(self.log_probs.float().exp().sum(-1), exact=True)


@dataclass(frozen=True)
class SparseSignal:
    """A teacher's K likeliest tokens, `ids` and `log_probs` [N, K]; what is missing to 1 is one exact tail outcome.

    `temperature` is the one at which the log-probabilities were taken. At that temperature the K+1 outcomes are exact.
    At another, the tail's mass is taken as spread evenly over the tokens it stands for (the entropy-maximising guess).
    """

    ids: Tensor
    log_probs: Tensor
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.ids.shape != self.log_probs.shape:
            raise ValueError(f"a sparse signal needs ids and log_probs of one shape, got {tuple(self.ids.shape)} and {tuple(self.log_probs.shape)}")
        _refuse_unnormalised(self.log_probs.float().exp().sum(-1), exact=False)


Signal = DenseSignal | SparseSignal


class Loss(NamedTuple):
    """`total` is what to differentiate; `soft` (T^2 D) and `hard` (CE) are its parts before alpha and beta, detached."""

    total: Tensor
    soft: Tensor
    hard: Tensor


def _refuse_unnormalised(mass: Tensor, exact: bool) -> None:
    if not mass.numel():
        return
    low, high = mass.min().item(), mass.max().item()
    if not high <= 1 + TOLERANCE or (exact and not low >= 1 - TOLERANCE):
        raise ValueError(
            f"a signal holds log-probabilities: a position's mass must be {'1' if exact else 'at most 1'}, found {low:.4g} to {high:.4g}; pass logits through log_softmax first"
        )


def distillation_loss(logits: Tensor, targets: Tensor, signal: Signal | None, config: LossConfig, normalizer: Tensor | float | None = None) -> Loss:
    """The loss of one (micro-)batch.

    Args:
        logits: [N, V], scores or log-probabilities of the student. Impossible tokens may be -inf.
        targets: [N], the gold token of each position; positions with -100 count nowhere.
        signal: what the teacher says about the same N positions; None only with `alpha=0`.
        normalizer: the number of target positions that the sum is divided by; by default those of this batch.
            Pass the whole step's count to accumulate gradients, so that ragged micro-batches add up exactly.

    Raises:
        ValueError: `alpha` is positive and there is no signal, or the signal has other positions than the logits.
    """
    if logits.shape[0] != targets.shape[0]:
        raise ValueError(f"logits have {logits.shape[0]} positions, targets {targets.shape[0]}")
    keep = targets != IGNORE
    count = keep.sum() if normalizer is None else torch.as_tensor(normalizer, device=logits.device)
    count = count.clamp_min(1).float()
    scores = logits.float()
    hard = F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="sum") / count
    if config.alpha == 0:
        return Loss(config.beta * hard, torch.zeros_like(hard), hard.detach())
    if signal is None:
        raise ValueError(f"loss.alpha is {config.alpha}, so a teacher is needed: set teacher=local, or loss=finetune")
    per_position = _divergence(scores, signal, config, keep)
    soft = config.temperature**2 * per_position.sum() / count
    return Loss(config.alpha * soft + config.beta * hard, soft.detach(), hard.detach())


def _divergence(scores: Tensor, signal: Signal, config: LossConfig, keep: Tensor) -> Tensor:
    """[kept positions] of D(teacher_T, student_T)."""
    log_probs = signal.log_probs
    if log_probs.shape[0] != scores.shape[0]:
        raise ValueError(f"the signal has {log_probs.shape[0]} positions, the student {scores.shape[0]}: they must be the same targets")
    if isinstance(signal, DenseSignal) and log_probs.shape[1] != scores.shape[1]:
        raise ValueError(f"the teacher's vocabulary has {log_probs.shape[1]} entries, the student's {scores.shape[1]}; both must share one tokenizer")
    student = F.log_softmax(scores[keep] / config.temperature, dim=-1)
    if isinstance(signal, DenseSignal):
        teacher = F.log_softmax(log_probs[keep].float() / config.temperature, dim=-1)
    else:
        teacher, student = _with_tail(signal, student, keep, config.temperature)
    if config.divergence == "reverse_kl":
        return kl(student, teacher.clamp_min(LOG_FLOOR))
    return kl(teacher, student)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities [..., V], in nats; outcomes with p = 0 add nothing, whatever q says."""
    possible = p > -torch.inf
    p_safe = torch.where(possible, p, 0.0)
    terms = p_safe.exp() * (p_safe - torch.where(possible, q, 0.0))
    return torch.where(possible, terms, 0.0).sum(-1)


def _with_tail(signal: SparseSignal, student: Tensor, keep: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both as K+1 outcomes, [n, K+1] log-probabilities at `temperature`; `student` is [n, V] at `temperature`."""
    ids = signal.ids[keep].long()
    stored = signal.log_probs[keep].float()
    others = student.scatter(1, ids, -torch.inf)
    size = (others > -torch.inf).sum(-1, keepdim=True)  # how many possible tokens the tail stands for
    log_size = size.clamp_min(1).log()
    tail = _log_rest(stored)
    if temperature != signal.temperature:
        power = signal.temperature / temperature
        stored = power * stored
        # The even spread: `size` tokens of mass tail / size each, flattened or sharpened, then gathered again.
        tail = power * (tail - log_size) + log_size
    tail = torch.where(size > 0, tail, -torch.inf)
    teacher = torch.cat([stored, tail], dim=-1)
    if temperature != signal.temperature:
        teacher = F.log_softmax(teacher, dim=-1)
    left = torch.where(size > 0, torch.where(size > 0, others, 0.0).logsumexp(-1, keepdim=True), -torch.inf)
    return teacher, torch.cat([student.gather(1, ids), left], dim=-1)


def _log_rest(log_probs: Tensor) -> Tensor:
    """log(1 - sum of probabilities), [n, 1]; -inf where nothing is left beyond float32's rounding."""
    rest = 1 - log_probs.exp().sum(-1, keepdim=True)
    enough = rest > 1e-6
    return torch.where(enough, torch.where(enough, rest, 1.0).log(), -torch.inf)
