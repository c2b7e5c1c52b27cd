"""The loss against a slow loop in float64: every divergence, every kind of signal, values and gradients."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.losses.divergences import DIVERGENCES
from needle.losses.loss import LossConfig, Signal, TokenWeights, distillation_loss, draw
from tests.slow import slow_loss

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def case(N: int = 7, V: int = 11, seed: int = 0) -> Case:
    """Logits [N, V], targets with every third masked, and a teacher's log-probabilities."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, V, generator=random) * 2
    targets = torch.randint(0, V, (N,), generator=random)
    targets[2::3] = -100
    return logits.requires_grad_(), targets, (torch.randn(N, V, generator=random) * 2).log_softmax(-1)


def top_k(teacher: torch.Tensor, K: int, T: float = 1.0) -> Signal:
    tempered = (teacher / T).log_softmax(-1)
    top = tempered.topk(K)
    return Signal.top_k(top.indices, top.values, T, tail=tempered.scatter(1, top.indices, -torch.inf).logsumexp(-1))


def slope(
    logits: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor, config: LossConfig, k: int | None
) -> torch.Tensor:
    """The gradient of the slow loop by central differences."""
    out, step = torch.zeros(logits.shape, dtype=torch.float64), 1e-4
    for index in range(logits.numel()):
        values = []
        for sign in (1, -1):
            moved = logits.detach().double().clone()
            moved.view(-1)[index] += sign * step
            values.append(slow_loss(moved, targets, teacher, config, k))
        out.view(-1)[index] = (values[0] - values[1]) / (2 * step)
    return out


CONFIGS = st.builds(
    LossConfig,
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    alpha=st.floats(0.05, 1),
    beta=st.sampled_from([0.0, 0.3, 1.0]),
    divergence=st.sampled_from(DIVERGENCES),
    jsd_beta=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    skew=st.sampled_from([0.1, 0.5]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    chunk=st.integers(1, 9),
)


@settings(max_examples=150, deadline=None)
@given(CONFIGS, st.integers(1, 12), st.integers(2, 20), st.integers(1, 20), st.integers(0, 1000))
def test_every_divergence_equals_the_slow_loop(config: LossConfig, N: int, V: int, K: int, seed: int) -> None:
    """Dense and top-k signals over random shapes, masks, chunk sizes, K and T."""
    logits, targets, teacher = case(N, V, seed)
    dense = distillation_loss(logits, targets, Signal.dense(teacher), config).total
    assert dense.item() == pytest.approx(slow_loss(logits.detach(), targets, teacher, config), rel=1e-4, abs=2e-5)
    sparse = distillation_loss(logits, targets, top_k(teacher, min(K, V), config.temperature), config).total
    assert sparse.item() == pytest.approx(
        slow_loss(logits.detach(), targets, teacher, config, min(K, V)), rel=1e-4, abs=2e-5
    )


@settings(max_examples=25, deadline=None)
@given(CONFIGS, st.integers(2, 8), st.integers(1, 8), st.integers(0, 1000))
def test_every_gradient_equals_that_of_the_slow_loop(config: LossConfig, V: int, K: int, seed: int) -> None:
    logits, targets, teacher = case(4, V, seed)
    for signal, k in ((Signal.dense(teacher), None), (top_k(teacher, min(K, V), config.temperature), min(K, V))):
        (gradient,) = torch.autograd.grad(distillation_loss(logits, targets, signal, config).total, logits)
        torch.testing.assert_close(gradient.double(), slope(logits, targets, teacher, config, k), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", ["jsd 0 is forward KL", "jsd 1 is reverse KL", "skew 0 forward", "skew 0 reverse"])
def test_the_ends_of_a_family_are_its_named_members(kind: str) -> None:
    logits, targets, teacher = case()
    family, member = {
        "jsd 0 is forward KL": (LossConfig(2.0, 1, 0, "jsd", jsd_beta=0.0), "forward_kl"),
        "jsd 1 is reverse KL": (LossConfig(2.0, 1, 0, "jsd", jsd_beta=1.0), "reverse_kl"),
        "skew 0 forward": (LossConfig(2.0, 1, 0, "skew_forward_kl", skew=0.0), "forward_kl"),
        "skew 0 reverse": (LossConfig(2.0, 1, 0, "skew_reverse_kl", skew=0.0), "reverse_kl"),
    }[kind]
    values = [
        distillation_loss(logits, targets, Signal.dense(teacher), config).total.item()
        for config in (family, replace(family, divergence=member))
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6])
def test_jsd_is_finite_close_to_its_ends_and_scales_to_them(beta: float) -> None:
    """D / beta tends to forward KL at 0 and D / (1 - beta) to reverse KL at 1, far-away teachers included."""
    logits, targets, _ = case()
    sharp = torch.full_like(logits, -40.0).scatter(1, torch.arange(7)[:, None], 40.0).log_softmax(-1).detach()
    config = LossConfig(1.0, 1, 0, "jsd", jsd_beta=beta)
    loss = distillation_loss(logits, targets, Signal.dense(sharp), config).total
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    soft = (logits.detach() * 0.3).log_softmax(-1)
    if beta in (1e-3, 1 - 1e-3):
        end = replace(config, divergence="forward_kl" if beta < 0.5 else "reverse_kl")
        near, far = (distillation_loss(logits, targets, Signal.dense(soft), c).total.item() for c in (config, end))
        assert near / min(beta, 1 - beta) == pytest.approx(far, rel=0.02)


def test_label_smoothing_skips_tokens_that_the_student_cannot_write() -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0, -torch.inf]], requires_grad=True)
    loss = distillation_loss(logits, torch.tensor([0]), None, LossConfig(label_smoothing=0.3)).total
    expected = torch.nn.functional.cross_entropy(logits[:, :3], torch.tensor([0]), label_smoothing=0.3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_weights_scale_positions_and_their_count() -> None:
    logits, targets, teacher = case()
    weights = [0.0, 1.0, 1.0, 3.0, 0.5, 1.0, 2.0]
    config = LossConfig(2.0, 0.7, 0.3)
    loss = distillation_loss(logits, targets, Signal.dense(teacher), config, weights=torch.tensor(weights)).total
    assert loss.item() == pytest.approx(slow_loss(logits.detach(), targets, teacher, config, weights=weights), rel=1e-5)


# Signals


def test_a_sampled_signal_is_an_unbiased_estimate_of_the_full_gradient() -> None:
    """The mean over many draws closes in on the exact gradient and value; each single draw is far from it."""
    logits, targets, teacher = case(N=3, V=12, seed=3)
    config = LossConfig(2.0, 1.0, 0.0)
    full = distillation_loss(logits, targets, Signal.dense(teacher), config)
    (exact,) = torch.autograd.grad(full.total, logits)
    random = torch.Generator().manual_seed(0)
    gradients, values = [], []
    for _ in range(800):
        loss = distillation_loss(logits, targets, draw(teacher, 6, 2.0, random), config)
        gradients.append(torch.autograd.grad(loss.total, logits)[0])
        values.append(loss.total.item())
    stacked = torch.stack(gradients)
    error = (stacked.mean(0) - exact).norm() / exact.norm()
    single = (stacked - exact).flatten(1).norm(dim=1).mean() / exact.norm()
    assert error < 0.1 < single
    assert sum(values) / len(values) == pytest.approx(full.total.item(), abs=0.1)
    assert loss.entropy.item() == pytest.approx(full.entropy.item(), abs=1e-5)


def test_a_sampled_signal_is_refused_where_it_would_be_biased() -> None:
    logits, targets, teacher = case()
    for config in (LossConfig(2.0, 1, 0, "reverse_kl"), LossConfig(1.0, 1, 0)):
        with pytest.raises(ValueError, match="unbiased for forward KL at its own temperature 2.0"):
            distillation_loss(logits, targets, draw(teacher, 4, 2.0), config)


def test_the_tail_is_one_exact_outcome() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    teacher = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    loss = distillation_loss(
        logits, torch.tensor([0]), Signal.top_k(torch.tensor([[0, 1]]), teacher[:, :2]), LossConfig(1.0, 1.0, 0.0)
    ).total
    q = logits.softmax(-1)[0]
    expected = sum(
        p * math.log(p / r) for p, r in ((0.5, q[0].item()), (0.3, q[1].item()), (0.2, (q[2] + q[3]).item()))
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_positions_without_a_signal_count_for_the_gold_answer_alone() -> None:
    logits, targets, teacher = case()
    known = torch.tensor([True, False, True, True, False, True, True])
    config = LossConfig(2.0, 0.7, 0.3)
    loss = distillation_loss(
        logits, targets, Signal.dense(teacher.masked_fill(~known[:, None], -torch.inf), known=known), config
    )
    (gradient,) = torch.autograd.grad(loss.total, logits)
    (hard,) = torch.autograd.grad(distillation_loss(logits, targets, None, LossConfig(beta=0.3)).total, logits)
    torch.testing.assert_close(gradient[1], hard[1])
    whole = distillation_loss(logits, targets, Signal.dense(teacher), config)
    apart = distillation_loss(
        logits[~known], targets[~known], Signal.dense(teacher[~known]), config, (targets != -100).sum()
    )
    assert loss.soft.item() == pytest.approx(whole.soft.item() - apart.soft.item(), abs=1e-5)


def test_mass_on_tokens_that_the_student_cannot_write_is_left_out_and_reported() -> None:
    logits = torch.tensor([[1.0, 0.5, 0.0, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    loss = distillation_loss(logits, torch.tensor([0]), Signal.dense(teacher), LossConfig(1.0, 1.0, 0.0))
    alone = distillation_loss(
        logits[:, :3],
        torch.tensor([0]),
        Signal.dense(torch.tensor([[0.5, 0.25, 0.25]]).log()),
        LossConfig(1.0, 1.0, 0.0),
    )
    assert loss.total.item() == pytest.approx(alone.total.item(), rel=1e-5)
    assert loss.lost.item() == pytest.approx(0.2, abs=1e-6)
    nothing = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).log()
    assert (
        distillation_loss(logits, torch.tensor([0]), Signal.dense(nothing), LossConfig(1.0, 1.0, 0.0)).total.item() == 0
    )


def test_a_shuffled_signal_is_the_same_distributions_at_other_places() -> None:
    logits, targets, teacher = case()
    rows = torch.tensor([3, 0, 1, 2, 6, 4, 5])
    config = LossConfig(2.0, 1.0, 0.0)
    placebo = distillation_loss(logits, targets, Signal.dense(teacher).at(rows), config)
    assert placebo.total.item() == pytest.approx(slow_loss(logits.detach(), targets, teacher[rows], config), rel=1e-5)


def test_spans_compare_two_models_on_whole_pieces_of_text() -> None:
    """Positions 0 and 1 are one span of the teacher's text, 3 another; the rest says nothing."""
    logits, targets, _ = case()
    span = torch.tensor([0, 0, -1, 1, -1, -1, -1])
    config = LossConfig(1.0, 0.5, 0.5)
    loss = distillation_loss(logits, targets, Signal.spans(span, torch.tensor([0.6, 0.2]).log()), config)
    log_q = logits.detach().double().log_softmax(-1)
    soft = 0.0
    for p, positions in ((0.6, (0, 1)), (0.2, (3,))):
        q = math.exp(sum(float(log_q[i, targets[i]]) for i in positions))
        soft += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    count = int((targets != -100).sum())
    assert loss.soft.item() == pytest.approx(soft / count, rel=1e-4)
    hard = -sum(float(log_q[i, t]) for i, t in enumerate(targets.tolist()) if t != -100) / count
    assert loss.total.item() == pytest.approx(0.5 * soft / count + 0.5 * hard, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss.total, logits)
    assert gradient[0].abs().max() > 0
    assert gradient[2].abs().max() == 0


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("T", [1.0, 3.0])
def test_impossible_tokens_of_the_student_cost_nothing_where_the_teacher_agrees(K: int, T: float) -> None:
    logits = torch.tensor([[1.0, 0.0, -torch.inf, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[0.7, 0.3, 0.0, 0.0]]).log()
    for divergence in DIVERGENCES:
        for signal in (Signal.dense(teacher), Signal.top_k(torch.tensor([[0, 1, 2]])[:, :K], teacher[:, :K])):
            loss = distillation_loss(logits, torch.tensor([0]), signal, LossConfig(T, 0.5, 0.5, divergence)).total
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient.isfinite().all()


# Memory


PEAK = """
import sys, torch
from needle.losses.loss import LossConfig, Signal, distillation_loss
torch.manual_seed(0)
N = V = 8192
logits = torch.randn(N, V).requires_grad_()
targets = torch.randint(0, V, (N,))
ids = torch.randint(0, V // 64, (N, 64)) + torch.arange(64) * (V // 64)
said = (torch.randn(N, 64) - 6).log_softmax(-1) - 0.1
if sys.argv[1] == "ours":
    distillation_loss(logits, targets, Signal.top_k(ids, said, 2.0), LossConfig(2.0, 0.7, 0.3)).total.backward()
elif sys.argv[1] == "plain":
    total = torch.zeros(())
    for part, gold in zip(logits.split(128), targets.split(128)):
        total = total + torch.nn.functional.cross_entropy(part, gold, reduction="sum")
    (total / N).backward()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_peak_memory_stays_below_that_of_plain_cross_entropy() -> None:
    """At 8,192 positions and 8,192 tokens, in processes of their own; `none` holds logits, targets and signal alone."""
    peaks = {
        kind: int(
            subprocess.run(
                [sys.executable, "-c", PEAK, kind], capture_output=True, text=True, check=True, timeout=120
            ).stdout
        )
        for kind in ("none", "ours", "plain")
    }
    assert peaks["ours"] - peaks["none"] < 1.2 * (peaks["plain"] - peaks["none"])


# Settings


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": 0}, "temperature"),
        ({"alpha": -1}, "alpha"),
        ({"alpha": 0, "beta": 0}, "one must be above"),
        ({"divergence": "cosine"}, "forward_kl, reverse_kl"),
        ({"jsd_beta": 1.2}, "loss.jsd_beta is 1.2; it must be between 0 and 1"),
        ({"skew": 1.0}, "loss.skew"),
        ({"label_smoothing": -0.1}, "loss.label_smoothing"),
        ({"chunk": 0}, "loss.chunk"),
        ({"weights": TokenWeights(name=-1)}, "loss.weights"),
    ],
)
def test_bad_settings_name_the_setting(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**kwargs)  # type: ignore[arg-type]


def test_a_missing_teacher_and_other_vocabularies_are_errors() -> None:
    logits, targets, teacher = case()
    with pytest.raises(ValueError, match="teacher=local"):
        distillation_loss(logits, targets, None, LossConfig(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="share one tokenizer"):
        distillation_loss(logits, targets, Signal.dense(torch.zeros(7, 4).log_softmax(-1)), LossConfig(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="same targets"):
        distillation_loss(logits, targets, Signal.dense(teacher[:3]), LossConfig(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="one shape"):
        Signal.top_k(torch.zeros(7, 3, dtype=torch.long), teacher[:, :2])
    with pytest.raises(ValueError, match="spans are compared by forward KL at temperature 1"):
        distillation_loss(
            logits, targets, Signal.spans(torch.zeros(7, dtype=torch.long), torch.zeros(1)), LossConfig(2.0, 1.0, 0.0)
        )
    with pytest.raises(ValueError, match="at most 0"):
        Signal.spans(torch.zeros(7, dtype=torch.long), torch.ones(1))
