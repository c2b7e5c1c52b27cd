"""The loss against a slow loop in float64, and the traps that others fell into."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from needle.losses import DenseSignal, LossConfig, SparseSignal, distillation_loss


def slow_loss(logits: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor, config: LossConfig) -> float:
    """Position by position, token by token, in Python floats."""
    total, count = 0.0, 0
    for row, target, said in zip(logits.double().tolist(), targets.tolist(), teacher.double().tolist(), strict=True):
        if target == -100:
            continue
        count += 1
        T = config.temperature
        student, student_T = _log_softmax(row), _log_softmax([x / T for x in row])
        teacher_T = _log_softmax([x / T for x in said])
        soft = sum(math.exp(p) * (p - q) for p, q in zip(teacher_T, student_T, strict=True) if p > -math.inf)
        total += config.alpha * T * T * soft - config.beta * student[target]
    return total / max(count, 1)


def _log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    z = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - z for x in row]


def case(N: int = 7, V: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, V, generator=random) * 2
    targets = torch.randint(0, V, (N,), generator=random)
    targets[::3] = -100
    return logits.requires_grad_(), targets, (torch.randn(N, V, generator=random) * 2).log_softmax(-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(2, 20), st.sampled_from([1.0, 2.0, 4.0]), st.floats(0, 1), st.integers(0, 1000))
def test_it_equals_the_slow_loop(N: int, V: int, T: float, alpha: float, seed: int) -> None:
    logits, targets, teacher = case(N, V, seed)
    config = LossConfig(T, alpha, 1 - alpha if alpha < 1 else 0.5)
    fast = distillation_loss(logits, targets, DenseSignal(teacher), config).total
    assert fast.item() == pytest.approx(slow_loss(logits.detach(), targets, teacher, config), abs=1e-4)


def test_ragged_micro_batches_give_loss_and_gradient_of_the_large_batch() -> None:
    logits, targets, teacher = case(N=13)
    config = LossConfig(2.0, 0.7, 0.3)
    whole = distillation_loss(logits, targets, DenseSignal(teacher), config).total
    (gradient,) = torch.autograd.grad(whole, logits)
    count = int((targets != -100).sum())
    parts, pieces = torch.zeros(()), []
    for piece in torch.arange(13).split([1, 5, 0, 7]):
        part = logits.detach()[piece].requires_grad_()
        loss = distillation_loss(part, targets[piece], DenseSignal(teacher[piece]), config, count).total
        loss.backward()
        parts = parts + loss.detach()
        pieces.append(part.grad if part.grad is not None else torch.zeros_like(part))
    torch.testing.assert_close(parts, whole.detach())
    torch.testing.assert_close(torch.cat(pieces), gradient)


def test_temperature_squared_keeps_the_soft_gradients_size() -> None:
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(200, 50, generator=random) * 0.3).requires_grad_()
    teacher = (torch.randn(200, 50, generator=random) * 0.3).log_softmax(-1)
    norms = []
    for T in (2.0, 4.0, 8.0):
        (gradient,) = torch.autograd.grad(distillation_loss(logits, torch.zeros(200, dtype=torch.long), DenseSignal(teacher), LossConfig(T, 1.0, 0.0)).total, logits)
        norms.append(gradient.norm().item())
    assert max(norms) / min(norms) < 1.1


def test_padding_rows_count_nowhere_and_get_no_gradient() -> None:
    logits, targets, teacher = case()
    config = LossConfig(4.0, 0.7, 0.3)
    loss = distillation_loss(logits, targets, DenseSignal(teacher), config).total
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[targets == -100].abs().max() == 0
    keep = targets != -100
    alone = distillation_loss(logits[keep], targets[keep], DenseSignal(teacher[keep]), config).total
    torch.testing.assert_close(loss, alone)


def test_a_fully_masked_batch_gives_a_finite_zero_with_a_gradient() -> None:
    logits, targets, teacher = case()
    loss = distillation_loss(logits, torch.full_like(targets, -100), DenseSignal(teacher), LossConfig(4.0, 0.7, 0.3)).total
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_alpha_zero_is_cross_entropy_to_the_bit() -> None:
    logits, targets, _ = case()
    ours = distillation_loss(logits, targets, None, LossConfig(4.0, 0.0, 1.0)).total
    theirs = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / (targets != -100).sum()
    assert ours.item() == theirs.item()


def test_a_one_hot_teacher_equals_cross_entropy() -> None:
    logits, targets, _ = case()
    one_hot = torch.full_like(logits, -torch.inf).scatter(1, targets.clamp_min(0)[:, None], 0.0).detach()
    soft = distillation_loss(logits, targets, DenseSignal(one_hot), LossConfig(1.0, 1.0, 0.0)).total
    hard = distillation_loss(logits, targets, None, LossConfig()).total
    torch.testing.assert_close(soft, hard)
    sparse = distillation_loss(logits, targets, SparseSignal(targets.clamp_min(0)[:, None], torch.zeros(len(targets), 1)), LossConfig(1.0, 1.0, 0.0)).total
    torch.testing.assert_close(sparse, hard)


def test_a_teacher_equal_to_the_student_has_no_divergence() -> None:
    logits, targets, _ = case()
    for T in (1.0, 4.0):
        loss = distillation_loss(logits, targets, DenseSignal(logits.detach().log_softmax(-1)), LossConfig(T, 1.0, 0.0))
        assert abs(loss.soft.item()) < 1e-5


@pytest.mark.parametrize("T", [1.0, 4.0])
def test_sparse_signals_approach_the_full_divergence_as_k_grows(T: float) -> None:
    logits, targets, teacher = case(N=9, V=40)
    config = LossConfig(T, 1.0, 0.0)
    full = distillation_loss(logits, targets, DenseSignal(teacher), config).total.item()
    errors = []
    for K in (5, 20, 40):
        top = (teacher / T).log_softmax(-1).topk(K)
        errors.append(full - distillation_loss(logits, targets, SparseSignal(top.indices, top.values, T), config).total.item())
    assert errors[0] > errors[1] > -1e-5  # merging outcomes can only lower a divergence
    assert errors[2] == pytest.approx(0, abs=1e-4)
    top = teacher.topk(40)
    at_one = distillation_loss(logits, targets, SparseSignal(top.indices, top.values), config).total.item()
    assert at_one == pytest.approx(full, abs=1e-4)


def test_the_tail_is_one_exact_outcome() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    teacher = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    loss = distillation_loss(logits, torch.tensor([0]), SparseSignal(torch.tensor([[0, 1]]), teacher[:, :2]), LossConfig(1.0, 1.0, 0.0)).total
    q = logits.softmax(-1)[0]
    expected = sum(p * math.log(p / r) for p, r in ((0.5, q[0].item()), (0.3, q[1].item()), (0.2, (q[2] + q[3]).item())))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_impossible_tokens_of_the_student_cost_nothing_where_the_teacher_agrees() -> None:
    logits = torch.tensor([[1.0, 0.0, -torch.inf, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[0.7, 0.3, 0.0, 0.0]]).log()
    for divergence in ("forward_kl", "reverse_kl"):
        for signal in (DenseSignal(teacher), SparseSignal(torch.tensor([[0, 1, 2]]), teacher[:, :3])):
            loss = distillation_loss(logits, torch.tensor([0]), signal, LossConfig(2.0, 0.5, 0.5, divergence)).total
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("signal", [lambda: DenseSignal(torch.randn(3, 5) + 4), lambda: SparseSignal(torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2))])
def test_logits_are_refused_as_a_signal(signal: object) -> None:
    with pytest.raises(ValueError, match="log_softmax"):
        signal()  # type: ignore[operator]


def test_the_loss_is_float32_under_bfloat16() -> None:
    logits, targets, teacher = case(N=30, V=500)
    exact = distillation_loss(logits.detach(), targets, DenseSignal(teacher), LossConfig(2.0, 0.7, 0.3)).total
    with torch.autocast("cpu", torch.bfloat16):
        auto = distillation_loss(logits.detach(), targets, DenseSignal(teacher), LossConfig(2.0, 0.7, 0.3)).total
    assert auto.dtype == torch.float32
    assert auto.item() == exact.item()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"temperature": 0}, "temperature"), ({"alpha": -1}, "alpha"), ({"alpha": 0, "beta": 0}, "one above"), ({"divergence": "cosine"}, "forward_kl, reverse_kl")],
)
def test_bad_settings_name_the_setting(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**kwargs)  # type: ignore[arg-type]


def test_a_missing_teacher_and_other_vocabularies_are_errors() -> None:
    logits, targets, teacher = case()
    with pytest.raises(ValueError, match="teacher=local"):
        distillation_loss(logits, targets, None, LossConfig(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="share one tokenizer"):
        distillation_loss(logits, targets, DenseSignal(torch.zeros(7, 4).log_softmax(-1)), LossConfig(1.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="same targets"):
        distillation_loss(logits, targets, DenseSignal(teacher[:3]), LossConfig(1.0, 1.0, 0.0))
