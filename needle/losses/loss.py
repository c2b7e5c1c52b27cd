"""The one loss. Fine-tuning is `alpha=0, beta=1`; distillation adds a teacher's signal; there is no other code path.

Legend: N target positions, V vocabulary, K outcomes that a sparse signal lists, M outcomes compared (V, or K and the
tail).

    loss = (1 / n) * sum over positions of  w * (alpha * T^2 * D(teacher_T, student_T) + beta * CE(student, target))

n is the summed weight w of the target positions of the whole optimiser step (all micro-batches, all processes), w is 1
unless a record or a kind of token weighs more, T the temperature, D a divergence (Hinton et al. 2015, arXiv:1503.02531,
give forward KL and the factor T^2 that keeps the soft gradient's size independent of T). Everything is computed in
float32 whatever the autocast, and gradients are made along with the values, a few positions at a time, so that no
second tensor of the vocabulary's size outlives its chunk but the gradient itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from needle.losses.divergences import DIVERGENCES, kl, value_and_slope
from needle.text.prompt import IGNORE

LOG_NEVER = -1e4  # stands for the student's -inf where -inf minus -inf would be no number
TOLERANCE = 2e-2  # of a distribution's mass: a signal stored in 16 bits passes, logits don't
MIN_MASS = 1e-6  # a teacher with less than this on tokens that the student can write says nothing


@dataclass
class TokenWeights:
    """How much a target token weighs: of a tool's `name`, of an argument's `key`, of a `value`; every occurrence
    alike."""

    name: float = 1.0
    key: float = 1.0
    value: float = 1.0


@dataclass
class LossConfig:
    """`alpha` weighs the teacher, `beta` the gold answer. The article's distillation is T=4, alpha=.7, beta=.3.

    `divergence` jsd is the generalised Jensen-Shannon divergence of `jsd_beta`; at 0 it is forward KL and at 1 reverse
    KL (Agarwal et al. 2024, arXiv:2306.13649). `skew` is the share of the first distribution in the mixture that the
    skewed divergences compare with (Ko et al. 2024, arXiv:2402.03898). `chunk` positions are computed at a time.
    """

    temperature: float = 1.0
    alpha: float = 0.0
    beta: float = 1.0
    divergence: str = "forward_kl"
    jsd_beta: float = 0.5
    skew: float = 0.1
    label_smoothing: float = 0.0
    weights: TokenWeights = field(default_factory=TokenWeights)
    hidden: float = 0.0  # weight of matching the teacher's hidden states, and of its attention (needle.losses.matching)
    attention: float = 0.0
    layer_map: list[list[int]] | None = (
        None  # pairs of student layer and teacher layer, from 0; spread evenly when None
    )
    chunk: int = 128

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"loss.temperature is {self.temperature}; it must be positive")
        if (
            min(self.alpha, self.beta, self.hidden, self.attention) < 0
            or self.alpha + self.beta + self.hidden + self.attention == 0
        ):
            raise ValueError(
                f"loss.alpha is {self.alpha}, loss.beta {self.beta}, loss.hidden {self.hidden}, loss.attention"
                f" {self.attention}; none may be negative, one must be above 0"
            )
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"loss.divergence is '{self.divergence}'; expected one of {', '.join(DIVERGENCES)}")
        for name in ("jsd_beta", "skew", "label_smoothing"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name != "jsd_beta" and value == 1):
                raise ValueError(f"loss.{name} is {value}; it must be between 0 and 1")
        if self.chunk < 1:
            raise ValueError(f"loss.chunk is {self.chunk}; it must be at least 1 position")
        if min(vars(self.weights).values()) < 0:
            raise ValueError("loss.weights must not be negative")

    @property
    def wants_teacher(self) -> bool:
        return self.alpha > 0 or self.hidden > 0 or self.attention > 0


@dataclass(frozen=True)
class Signal:
    """What a teacher says about N target positions. Made by `dense`, `top_k`, `sampled` or `spans`.

    `temperature` is the one at which the log-probabilities were taken; `known` [N] is false where the teacher says
    nothing.
    """

    log_probs: Tensor  # [N, V]; [N, K] beside `ids`; [S] beside `span`
    ids: Tensor | None = None
    temperature: float = 1.0
    known: Tensor | None = None
    entropy: Tensor | None = None  # [N] of a sampled signal's whole distribution, in nats
    span: Tensor | None = None  # [N] which of the S spans a position belongs to, -1 for none
    tail: Tensor | None = None  # [N] log-probability of all that isn't listed; without it, what is missing to 1

    @classmethod
    def dense(cls, log_probs: Tensor, temperature: float = 1.0, known: Tensor | None = None) -> Signal:
        """Normalised log-probabilities over the whole vocabulary, [N, V]."""
        _refuse_unnormalised(_chosen(log_probs, known), least=1.0)
        return cls(log_probs, None, temperature, known)

    @classmethod
    def top_k(
        cls,
        ids: Tensor,
        log_probs: Tensor,
        temperature: float = 1.0,
        known: Tensor | None = None,
        tail: Tensor | None = None,
    ) -> Signal:
        """A teacher's K likeliest tokens, distinct, both [N, K]; the rest is one tail outcome of log-probability `tail`
        [N].

        Without `tail` it is what is missing to 1, which float32 knows to a millionth. At `temperature` the K+1 outcomes
        are exact. At another, the tail's mass is taken as spread evenly over the tokens that it stands for (the
        entropy-maximising guess).
        """
        _same_shape(ids, log_probs)
        _refuse_unnormalised(_chosen(log_probs, known), least=0.0)
        return cls(log_probs, ids, temperature, known, tail=tail)

    @classmethod
    def sampled(
        cls, ids: Tensor, log_weights: Tensor, entropy: Tensor, temperature: float = 1.0, known: Tensor | None = None
    ) -> Signal:
        """Tokens drawn from the teacher at `temperature`, with weights that make them an unbiased estimate of it.

        `ids` and `log_weights` are [N, K], distinct; `entropy` [N] is that of the whole distribution. Made for forward
        KL, whose gradient is linear in the teacher (Anshumann et al. 2025, arXiv:2503.16870). See `draw`.
        """
        _same_shape(ids, log_weights)
        _refuse_unnormalised(_chosen(log_weights, known), least=1.0)
        return cls(log_weights, ids, temperature, known, entropy)

    @classmethod
    def spans(cls, span: Tensor, log_probs: Tensor) -> Signal:
        """`log_probs` [S] of whole spans of text; `span` [N] says which span a position belongs to, -1 for none.

        For a teacher with another tokenizer: a span runs between bytes at which both tokenizers end, and the two models
        are compared on it as on one event that happens or doesn't (Minixhofer et al. 2025, arXiv:2503.20083).
        """
        if log_probs.numel() and float(log_probs.max()) > 1e-4:
            raise ValueError(f"a span's log-probability is at most 0, found {float(log_probs.max()):.4g}")
        return cls(log_probs, span=span)

    def to(self, device: torch.device) -> Signal:
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return replace(self, **moved)  # type: ignore[arg-type]

    def at(self, rows: Tensor) -> Signal:
        """The signal of these positions, [n], in their order: a choice of them, or for a placebo a shuffle."""
        if self.span is not None:
            return replace(self, span=self.span[rows])
        moved = {name: value[rows] if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return replace(self, **moved)  # type: ignore[arg-type]


class Loss(NamedTuple):
    """`total` is what to differentiate. The rest is detached and before alpha and beta, divided by the same n:

    `soft` T^2 D, `hard` CE, `entropy` the teacher's own at T (CE with the teacher is KL plus this), and `lost` the
    teacher's mass on tokens that the student can't write, which was left out.
    """

    total: Tensor
    soft: Tensor
    hard: Tensor
    entropy: Tensor
    lost: Tensor


def draw(log_probs: Tensor, k: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Signal:
    """A sampled signal of `k` draws from [N, V] normalised log-probabilities at `temperature`; equal draws are counted
    once."""
    tempered = (log_probs.float() / temperature).log_softmax(-1)
    drawn = torch.multinomial(tempered.exp(), k, replacement=True, generator=generator)
    counts = torch.zeros_like(tempered).scatter_add_(1, drawn, torch.full_like(drawn, 1 / k, dtype=torch.float32))
    top = counts.topk(min(k, counts.shape[1]), dim=-1)
    entropy = -torch.special.xlogy(tempered.exp(), tempered.exp()).sum(-1)
    return Signal.sampled(top.indices, top.values.log(), entropy, temperature)


def _same_shape(ids: Tensor, log_probs: Tensor) -> None:
    if ids.shape != log_probs.shape:
        raise ValueError(
            f"a sparse signal needs ids and log_probs of one shape, got {tuple(ids.shape)} and {tuple(log_probs.shape)}"
        )


def _chosen(log_probs: Tensor, known: Tensor | None) -> Tensor:
    return log_probs if known is None else log_probs[known]


def _refuse_unnormalised(log_probs: Tensor, least: float) -> None:
    if not log_probs.numel():
        return
    mass = log_probs.float().exp().sum(-1)
    low, high = mass.min().item(), mass.max().item()
    if not (high <= 1 + TOLERANCE and low >= least - TOLERANCE):
        raise ValueError(
            f"a signal holds log-probabilities: a position's mass must be {'1' if least else 'at most 1'}, found"
            f" {low:.4g} to {high:.4g}; pass logits through log_softmax first"
        )


def distillation_loss(
    logits: Tensor,
    targets: Tensor,
    signal: Signal | None,
    config: LossConfig,
    normalizer: Tensor | float | None = None,
    weights: Tensor | None = None,
) -> Loss:
    """The loss of one (micro-)batch.

    Args:
        logits: [N, V], scores or log-probabilities of the student. Impossible tokens may be -inf.
        targets: [N], the gold token of each position; positions with -100 count nowhere.
        signal: what the teacher says about the same N positions; None only with `alpha=0`.
        normalizer: what the sum is divided by; by default the summed weights of this batch's target positions.
            Pass the whole step's to accumulate gradients, so that ragged micro-batches add up exactly.
        weights: [N] of the positions; 1 by default.

    Raises:
        ValueError: `alpha` is positive and there is no signal, or the signal has other positions or another vocabulary
            than the logits, or can't be used at this temperature or with this divergence.
    """
    if logits.shape[0] != targets.shape[0]:
        raise ValueError(f"logits have {logits.shape[0]} positions, targets {targets.shape[0]}")
    keep = targets != IGNORE
    weights = keep.float() if weights is None else weights.float() * keep
    count = (weights.sum() if normalizer is None else torch.as_tensor(normalizer, device=logits.device)).float()
    weights = weights / torch.where(count > 0, count, 1.0)
    if config.alpha > 0:
        if signal is None:
            raise ValueError(
                f"loss.alpha is {config.alpha}, so a teacher is needed: set teacher=local, or loss=finetune"
            )
        _check(signal, logits, config)
        if signal.span is not None:
            return _span_loss(logits, targets, signal, config, weights)
    parts: tuple[Tensor, ...] = _Chunked.apply(logits, targets, weights, signal if config.alpha > 0 else None, config)  # type: ignore[no-untyped-call]
    return Loss(*parts)


def _check(signal: Signal, logits: Tensor, config: LossConfig) -> None:
    positions = signal.log_probs.shape[0] if signal.span is None else signal.span.shape[0]
    if positions != logits.shape[0]:
        raise ValueError(
            f"the signal has {positions} positions, the student {logits.shape[0]}: they must be the same targets"
        )
    if signal.ids is None and signal.span is None and signal.log_probs.shape[1] != logits.shape[1]:
        raise ValueError(
            f"the teacher's vocabulary has {signal.log_probs.shape[1]} entries, the student's {logits.shape[1]}; both"
            " must share one tokenizer"
        )
    if signal.entropy is not None and (config.divergence != "forward_kl" or signal.temperature != config.temperature):
        raise ValueError(
            f"a sampled signal is unbiased for forward KL at its own temperature {signal.temperature}; loss.divergence"
            f" is '{config.divergence}', loss.temperature {config.temperature}"
        )
    if signal.span is not None and (config.divergence != "forward_kl" or config.temperature != 1.0):
        raise ValueError(
            f"spans are compared by forward KL at temperature 1; loss.divergence is '{config.divergence}',"
            f" loss.temperature {config.temperature}"
        )


class _Chunked(torch.autograd.Function):
    """Values and gradient together, `config.chunk` target positions at a time."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, signal: Signal | None, config: LossConfig
    ) -> tuple[Tensor, ...]:
        gradient = torch.empty_like(logits, dtype=torch.float32) if logits.requires_grad else None
        pieces: Sequence[Tensor | slice] = [
            slice(start, start + config.chunk) for start in range(0, len(targets), config.chunk)
        ]
        if (targets == IGNORE).any():
            pieces = torch.split((targets != IGNORE).nonzero()[:, 0], config.chunk)
            if gradient is not None:
                gradient[targets == IGNORE] = 0
        values = torch.zeros(4, len(targets), device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            for rows in pieces:
                values[:, rows], slope = _positions(
                    logits[rows].float(), targets[rows], rows, weights[rows, None], signal, config, gradient is not None
                )
                if gradient is not None:
                    gradient[rows] = slope
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        soft, hard, entropy, lost = (values * weights).sum(1)
        total = config.alpha * soft + config.beta * hard
        ctx.mark_non_differentiable(soft, hard, entropy, lost)
        return total, soft, hard, entropy, lost

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *unused: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        if upstream != 1:
            gradient = gradient * upstream
        return gradient.to(ctx.dtype), None, None, None, None


def _positions(
    z: Tensor,
    targets: Tensor,
    rows: Tensor | slice,
    weights: Tensor,
    signal: Signal | None,
    config: LossConfig,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """[4, n] soft, hard, entropy, lost of `n` positions with scores `z` [n, V], and the gradient [n, V] of their
    weighted sum."""
    log_q = z.log_softmax(-1)
    hard = -log_q.gather(1, targets[:, None])
    smooth, possible = config.label_smoothing, None
    if smooth:
        possible = log_q > -torch.inf
        size = possible.sum(-1, keepdim=True)
        hard = (1 - smooth) * hard - smooth * log_q.masked_fill(~possible, 0.0).sum(-1, keepdim=True) / size
    soft, slope, entropy, lost = (torch.zeros_like(hard) for _ in range(4))
    if signal is not None:
        T = config.temperature
        scale = T if config.divergence == "total_variation" else T * T  # its gradient shrinks with T, not with T^2
        soft, slope, entropy, lost = _soft(log_q if T == 1 else (z / T).log_softmax(-1), rows, signal, config)
        soft, slope = scale * soft, slope * (weights * config.alpha * scale / T)
    values = torch.cat([soft, hard, entropy, lost], dim=1).T
    if differentiate and config.beta:
        gradient = log_q.exp_()
        if possible is not None:
            gradient -= smooth / size * possible
        gradient.scatter_add_(1, targets[:, None], torch.full_like(hard, smooth - 1))
        gradient *= weights * config.beta
        slope = gradient + slope if signal is not None else gradient
    return values, slope


def _soft(
    student: Tensor, rows: Tensor | slice, signal: Signal, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divergence [n, 1] from the student's log-probabilities [n, V] at T, its gradient [n, V] in z / T, the teacher's
    entropy, and its mass lost."""
    stored = signal.log_probs[rows].float()
    power = signal.temperature / config.temperature
    if signal.ids is None:
        teacher = (stored * power).log_softmax(-1) if power != 1 else stored
        outcomes, within = student, None
    else:
        ids = signal.ids[rows].long()
        others = student.scatter(1, ids, -torch.inf)
        size = (others > -torch.inf).sum(-1, keepdim=True)  # how many possible tokens the tail stands for
        left = torch.where(size > 0, others.logsumexp(-1, keepdim=True), LOG_NEVER)
        within = others.sub_(left).exp_()  # the student's own distribution over the tail
        outcomes = torch.cat([student.gather(1, ids), left], dim=1)
        if signal.entropy is not None:
            tail = torch.full_like(left, -torch.inf)
        else:
            tail = _log_rest(stored) if signal.tail is None else signal.tail[rows, None].float()
        teacher = _at_temperature(stored, torch.where(size > 0, tail, -torch.inf), size, power)
    teacher = teacher.masked_fill(outcomes == -torch.inf, -torch.inf)
    log_mass = teacher.logsumexp(-1, keepdim=True)
    known = log_mass > math.log(MIN_MASS)
    if signal.known is not None:
        known = known & signal.known[rows, None]
    teacher = torch.where(known, teacher - torch.where(known, log_mass, 0.0), -torch.inf)
    value, slope = value_and_slope(teacher, outcomes.clamp_min(LOG_NEVER), config)
    value, slope = value * known, slope * known
    entropy = kl(teacher, torch.zeros_like(teacher)).neg()[:, None]
    if signal.entropy is not None:
        drawn, entropy = entropy, signal.entropy[rows, None] * known
        value = value + drawn - entropy  # the sample's cross-entropy less the whole distribution's entropy
    total = slope.sum(-1, keepdim=True)
    gradient = slope - outcomes.exp() * total
    if within is not None:
        gradient = (within * gradient[:, -1:]).scatter_(1, ids, gradient[:, :-1])
    return value, gradient, entropy, torch.where(known, 1 - log_mass.exp(), 0.0).clamp_min(0)


def _at_temperature(stored: Tensor, tail: Tensor, size: Tensor, power: float) -> Tensor:
    """The K listed outcomes and the tail, [n, K+1], raised to `power` (its temperature over ours); not normalised
    yet."""
    if power != 1:
        log_size = size.clamp_min(1).log()
        # The even spread: `size` tokens of mass tail / size each, flattened or sharpened, then gathered again.
        stored, tail = power * stored, power * (tail - log_size) + log_size
    return torch.cat([stored, tail], dim=1)


def _log_rest(log_probs: Tensor) -> Tensor:
    """log(1 - sum of probabilities), [n, 1]; -inf where nothing is left beyond float32's rounding."""
    rest = 1 - log_probs.exp().sum(-1, keepdim=True)
    enough = rest > 1e-6
    return torch.where(enough, torch.where(enough, rest, 1.0).log(), -torch.inf)


def _span_loss(logits: Tensor, targets: Tensor, signal: Signal, config: LossConfig, weights: Tensor) -> Loss:
    """Each span is one event, and the divergence that of two coins; a span weighs as much as its positions in the
    mean."""
    assert signal.span is not None
    hard = Loss(*_Chunked.apply(logits, targets, weights, None, config))  # type: ignore[no-untyped-call]
    inside = ((signal.span >= 0) & (targets != IGNORE)).nonzero()[:, 0]
    span = signal.span[inside]
    log_q = -F.cross_entropy(logits[inside].float(), targets[inside], reduction="none")
    empty = torch.zeros_like(signal.log_probs, dtype=torch.float32)
    size = empty.index_add(0, span, torch.ones_like(log_q))
    weight = empty.index_add(0, span, weights[inside]) / size.clamp_min(1)
    teacher, student = (_coin(log_p) for log_p in (signal.log_probs.float(), empty.index_add(0, span, log_q)))
    soft = (weight * kl(teacher, student)).sum()
    entropy = -(weight * kl(teacher, torch.zeros_like(teacher))).sum()
    return Loss(config.alpha * soft + hard.total, soft.detach(), hard.hard, entropy, torch.zeros_like(entropy))


def _coin(log_p: Tensor) -> Tensor:
    """[S, 2] log-probabilities of happening and not; neither is closer to certain than 1e-6."""
    bounded = log_p.clamp(math.log(1e-6), math.log1p(-1e-6))
    return torch.stack([bounded, torch.log(-torch.expm1(bounded))], dim=-1)
