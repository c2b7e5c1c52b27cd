"""The seventeen traps of distillation, one test each. The references are slow loops in 64-bit floats (`tests.slow`)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from needle.losses.divergences import DIVERGENCES
from needle.losses.loss import LossConfig, Signal, distillation_loss
from needle.losses.objective import Objective
from needle.students.base import Student
from needle.students.batch import FlatBatch
from needle.students.pointer.batch import PointerBatch
from needle.teachers.local import LocalTeacher, TokenSignals
from needle.teachers.signals import SignalCache, example_key
from needle.text.prompt import Example
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer
from needle.training.loop import TrainConfig, train
from needle.training.optim import OptimConfig
from needle.training.tracking import read_metrics
from tests.slow import log_softmax, slow_loss
from tests.test_losses import case, top_k
from tests.test_train import job, trained

DISTILL = LossConfig(2.0, 0.7, 0.3)


def gradient_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


@pytest.mark.parametrize("weighted", [False, True])
def test_trap_01_ragged_micro_batches_give_loss_and_gradient_of_the_one_large_batch(weighted: bool) -> None:
    logits, targets, teacher = case(N=13)
    weights = torch.linspace(0.5, 2, 13) if weighted else torch.ones(13)
    whole = distillation_loss(logits, targets, Signal.dense(teacher), DISTILL, weights=weights).total
    assert whole.item() == pytest.approx(
        slow_loss(logits.detach(), targets, teacher, DISTILL, weights=weights.tolist()), rel=1e-5
    )
    count = float((weights * (targets != -100)).sum())
    total, pieces = 0.0, []
    for piece in torch.arange(13).split([1, 5, 0, 7]):
        part = logits.detach()[piece].requires_grad_()
        loss = distillation_loss(
            part, targets[piece], Signal.dense(teacher[piece]), DISTILL, count, weights[piece]
        ).total
        loss.backward()
        total += loss.item()
        pieces.append(part.grad if part.grad is not None else torch.zeros_like(part))
    assert total == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(torch.cat(pieces), gradient_of(whole, logits))


def test_trap_02_clipping_sees_the_true_scale(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    """The logged norm is that of the mean loss, whatever the number of micro-batches, and not of their sum."""
    for micro in (8, 3, 1):
        config = TrainConfig(steps=1, batch_size=8, micro_batch=micro, eval_every=9, log_every=1)
        train(job(tmp_path / str(micro), tokenizer, examples, records, train=config, optim=OptimConfig(clip=1e9)))
    norms = [read_metrics(tmp_path / str(micro) / "metrics.jsonl")[0]["gradient_norm"] for micro in (8, 3, 1)]
    assert norms[1:] == pytest.approx(norms[:1] * 2, rel=1e-4)
    torch.manual_seed(0)
    from needle.data.encoding import BatchOrder
    from needle.students.build import build_student
    from tests.conftest import TINY

    student = build_student(TINY["pointer"], tokenizer.size).train()
    chosen = [examples[i] for i in BatchOrder([len(e.query) for e in examples], 8, 0)[0]]
    batch = PointerBatch.of(chosen, tokenizer)
    logits = student(batch)
    mean = nn.functional.cross_entropy(logits.flatten(0, 1).double(), batch.targets.flatten(), ignore_index=-100)
    mean.backward()
    exact = math.sqrt(sum(float(p.grad.double().square().sum()) for p in student.parameters() if p.grad is not None))
    assert norms[0] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_trap_03_temperature_squared_keeps_the_soft_gradients_size_and_sampling_temperature_stays_out(
    divergence: str,
) -> None:
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(200, 50, generator=random) * 0.3).requires_grad_()
    teacher = (torch.randn(200, 50, generator=random) * 0.3).log_softmax(-1)
    targets = torch.zeros(200, dtype=torch.long)
    norms = [
        gradient_of(
            distillation_loss(logits, targets, Signal.dense(teacher), LossConfig(T, 1.0, 0.0, divergence)).total, logits
        )
        .norm()
        .item()
        for T in (2.0, 4.0, 8.0)
    ]
    assert max(norms) / min(norms) < 1.1
    # A signal stored at 3 and compared at 2 is the signal at 2: the temperature it was taken at doesn't leak.
    stored = Signal.dense((teacher / 3).log_softmax(-1), temperature=3.0)
    at_two = [
        distillation_loss(logits, targets, signal, LossConfig(2.0, 1.0, 0.0, divergence)).total.item()
        for signal in (stored, Signal.dense(teacher))
    ]
    assert at_two[0] == pytest.approx(at_two[1], rel=1e-4)


def test_trap_04_the_mean_is_over_positions_neither_over_records_nor_over_the_vocabulary() -> None:
    """`batchmean` on [B, S, V] would divide by B, `mean` by B * S * V."""
    B, S, V = 3, 5, 7
    logits, targets, teacher = case(B * S, V)
    targets = targets.clamp_min(0)
    config = LossConfig(1.0, 1.0, 0.0)
    ours = distillation_loss(logits, targets, Signal.dense(teacher), config).total.item()
    assert ours == pytest.approx(slow_loss(logits.detach(), targets, teacher, config), rel=1e-5)
    student = logits.detach().log_softmax(-1).view(B, S, V)
    assert nn.functional.kl_div(
        student, teacher.view(B, S, V), reduction="batchmean", log_target=True
    ).item() == pytest.approx(ours * S, rel=1e-5)


def test_trap_05_there_is_no_second_division_by_the_masks_count() -> None:
    """Masking half of the positions leaves the mean over the other half, not a half of it."""
    logits, targets, teacher = case(N=12)
    keep = targets != -100
    masked = distillation_loss(logits, targets, Signal.dense(teacher), DISTILL).total.item()
    assert masked == pytest.approx(slow_loss(logits.detach()[keep], targets[keep], teacher[keep], DISTILL), rel=1e-5)
    given = distillation_loss(logits, targets, Signal.dense(teacher), DISTILL, normalizer=int(keep.sum())).total.item()
    assert given == pytest.approx(masked, rel=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_trap_06_with_one_unmasked_token_only_the_position_that_predicts_it_gets_gradient(
    student: Student, tokenizer: TextTokenizer, examples: list[Example], soft: bool
) -> None:
    batch = student.collate(examples[:3], tokenizer)
    batch.targets[:] = -100
    batch.targets[1, 2] = examples[1].target[2]
    logits = student(batch)
    logits.retain_grad()
    signal = Signal.dense(torch.randn_like(logits.detach()).flatten(0, 1).log_softmax(-1))
    distillation_loss(
        logits.flatten(0, 1), batch.targets.flatten(), signal if soft else None, DISTILL if soft else LossConfig()
    ).total.backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1).nonzero().tolist()
    assert touched == [[1, 2]]
    # and that position is the one which has read everything before the token, and not the token itself
    shorter = replace(examples[1], target=examples[1].target[:3], open_tool=examples[1].open_tool[:3], kinds=())
    other = replace(shorter, target=(*shorter.target[:2], tokenizer.null))
    assert other != shorter
    rows = [student(student.collate([example], tokenizer))[0, 2].log_softmax(-1) for example in (shorter, other)]
    torch.testing.assert_close(rows[0], rows[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows[0], logits.detach()[1, 2].log_softmax(-1), atol=1e-4, rtol=1e-3)


def test_trap_07_paddings_content_and_length_never_change_the_loss_and_the_real_eos_counts(
    student: Student, tokenizer: TextTokenizer, examples: list[Example]
) -> None:
    short = min(examples[:40], key=lambda e: len(e.target))
    long = max(examples[:40], key=lambda e: len(e.target))
    count = len(short.target)

    def loss(batch: Any) -> float:
        logits, targets = student(batch)[0], batch.targets[0]
        return distillation_loss(logits, targets, None, LossConfig(), count).total.item()

    alone, beside = student.collate([short], tokenizer), student.collate([short, long], tokenizer)
    assert loss(alone) == pytest.approx(loss(beside), rel=1e-4)
    beside.inputs[0, count:] = 7  # what stands in the padding is nobody's business
    if isinstance(beside, FlatBatch):
        beside.sequence[0, int(beside.prompt_length[0]) + count - 1 :] = 7
    assert loss(alone) == pytest.approx(loss(beside), rel=1e-4)
    assert alone.targets[0, -1] == tokenizer.eos
    logits = student(alone)
    logits.retain_grad()
    distillation_loss(logits[0], alone.targets[0], None, LossConfig()).total.backward()
    assert logits.grad[0, count - 1].abs().sum() > 0


def test_trap_08_stored_log_probabilities_are_used_as_they_are_and_a_truncated_one_keeps_its_tail() -> None:
    logits, targets, teacher = case(N=9, V=30)
    config = LossConfig(1.0, 1.0, 0.0)
    once = distillation_loss(logits, targets, Signal.dense(teacher), config).total.item()
    assert once == pytest.approx(slow_loss(logits.detach(), targets, teacher, config), rel=1e-5)
    for unnormalised in (torch.randn(3, 5) + 4, torch.zeros(3, 5)):
        with pytest.raises(ValueError, match="pass logits through log_softmax first"):
            Signal.dense(unnormalised)
    with pytest.raises(ValueError, match="log_softmax"):
        Signal.top_k(torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2))
    # At another temperature the tail's mass spreads over the tokens that it stands for, and is not forgotten.
    top = teacher.topk(5)
    hot = LossConfig(3.0, 1.0, 0.0)
    ours = distillation_loss(logits, targets, Signal.top_k(top.indices, top.values), hot).total.item()
    total = 0.0
    for row, target, ids, values in zip(
        logits.tolist(), targets.tolist(), top.indices.tolist(), top.values.tolist(), strict=True
    ):
        if target == -100:
            continue
        rest = (1 - sum(math.exp(v) for v in values)) / 25
        spread = [values[ids.index(i)] if i in ids else math.log(rest) for i in range(30)]
        p, q = ([math.exp(x) for x in log_softmax([x / 3 for x in scores])] for scores in (spread, row))
        p, q = ([full[i] for i in ids] + [sum(x for i, x in enumerate(full) if i not in ids)] for full in (p, q))
        total += 9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert ours == pytest.approx(total / int((targets != -100).sum()), rel=1e-4)


def test_trap_09_the_tail_is_one_exact_bucket() -> None:
    """K + 1 outcomes rise to the full divergence as K rises to V; renormalising the student over the top k would
    not."""
    logits, targets, teacher = case(N=9, V=40)
    config = LossConfig(2.0, 1.0, 0.0)
    full = distillation_loss(logits, targets, Signal.dense(teacher), config).total.item()
    values = []
    for K in (2, 5, 20, 39, 40):
        values.append(distillation_loss(logits, targets, top_k(teacher, K, 2.0), config).total.item())
        assert values[-1] == pytest.approx(slow_loss(logits.detach(), targets, teacher, config, K), rel=1e-4)
    assert values == sorted(values)
    assert values[-1] == pytest.approx(full, rel=1e-4)
    # The student's mass outside the top k is punished: its logits there get a gradient that pushes them down together.
    confident = torch.tensor([[5.0, 5.0, -5.0, -5.0]], requires_grad=True)
    signal = Signal.top_k(torch.tensor([[2, 3]]), torch.tensor([[0.5, 0.499]]).log())
    gradient = gradient_of(
        distillation_loss(confident, torch.tensor([2]), signal, LossConfig(1.0, 1.0, 0.0)).total, confident
    )
    assert gradient[0, 0] > 0.4
    assert gradient[0, 1] > 0.4


def test_trap_10_the_softmax_is_float32_whatever_the_autocast() -> None:
    logits, targets, teacher = case(N=30, V=500)
    exact = distillation_loss(logits, targets, Signal.dense(teacher), DISTILL).total
    with torch.autocast("cpu", torch.bfloat16):
        auto = distillation_loss(logits, targets, Signal.dense(teacher), DISTILL).total
    assert auto.dtype == torch.float32
    assert auto.item() == exact.item()
    assert torch.equal(gradient_of(auto, logits), gradient_of(exact, logits))
    half = logits.detach().bfloat16().requires_grad_()
    from_half = distillation_loss(half, targets, Signal.dense(teacher), DISTILL).total
    assert from_half.item() == pytest.approx(slow_loss(half.detach(), targets, teacher, DISTILL), rel=1e-5)
    assert gradient_of(from_half, half).dtype == torch.bfloat16


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_trap_11_padded_vocabulary_rows_are_minus_infinity_never_zero(divergence: str) -> None:
    logits, targets, teacher = case()
    config = LossConfig(2.0, 0.7, 0.3, divergence, label_smoothing=0.1)
    whole = distillation_loss(logits, targets, Signal.dense(teacher), config).total
    wide = torch.cat([logits.detach(), torch.full((7, 5), -torch.inf)], 1).requires_grad_()
    said = torch.cat([teacher, torch.full((7, 5), -torch.inf)], 1)
    padded = distillation_loss(wide, targets, Signal.dense(said), config).total
    assert padded.item() == pytest.approx(whole.item(), rel=1e-5)
    gradient = gradient_of(padded, wide)
    torch.testing.assert_close(gradient[:, :11], gradient_of(whole, logits))
    assert gradient[:, 11:].abs().max() == 0
    zeros = torch.cat([logits.detach(), torch.zeros(7, 5)], 1)
    assert distillation_loss(zeros, targets, Signal.dense(said), config).total.item() != pytest.approx(
        whole.item(), rel=1e-2
    )


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("sparse", [False, True])
def test_trap_12_a_chunked_loss_equals_the_unchunked_one(chunk: int, sparse: bool) -> None:
    logits, targets, teacher = case(N=23)
    signal = top_k(teacher, 4, 2.0) if sparse else Signal.dense(teacher)
    whole = distillation_loss(logits, targets, signal, replace(DISTILL, chunk=10_000)).total
    parts = distillation_loss(logits, targets, signal, replace(DISTILL, chunk=chunk)).total
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(gradient_of(parts, logits), gradient_of(whole, logits), atol=1e-7, rtol=1e-5)


def test_trap_13_the_forward_pass_goes_through_the_wrapped_model(
    tmp_path: Path,
    tokenizer: TextTokenizer,
    examples: list[Example],
    records: list[Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What Accelerate returns is what runs: DDP joins gradients in its own forward pass and nowhere else."""
    calls = []
    prepare = Accelerator.prepare

    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any) -> Any:
            calls.append(1)
            return self.module(*args)

    monkeypatch.setattr(
        Accelerator,
        "prepare",
        lambda self, model, *rest: (
            (Wrapped(model), *prepare(self, *rest)) if len(rest) > 1 else (Wrapped(model), prepare(self, *rest))
        ),
    )
    monkeypatch.setattr(Accelerator, "unwrap_model", lambda self, model: model.module)
    train(
        job(
            tmp_path,
            tokenizer,
            examples,
            records,
            train=TrainConfig(steps=3, batch_size=8, micro_batch=3, eval_every=9),
        )
    )
    assert len(calls) == 3 * 3


@pytest.mark.parametrize("T", [1.0, 4.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_trap_14_a_teacher_equal_to_the_student_has_no_divergence_and_its_entropy_is_told(
    divergence: str, T: float
) -> None:
    logits, targets, _ = case()
    loss = distillation_loss(
        logits, targets, Signal.dense(logits.detach().log_softmax(-1)), LossConfig(T, 1.0, 0.0, divergence)
    )
    assert loss.soft.item() == pytest.approx(0, abs=2e-5)
    if divergence != "total_variation":  # which has a kink there
        assert gradient_of(loss.total, logits).abs().max() < 1e-5
    rows = [
        log_softmax([x / T for x in row])
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
        if target != -100
    ]
    assert loss.entropy.item() == pytest.approx(
        -sum(math.exp(x) * x for row in rows for x in row) / len(rows), rel=1e-4
    )


def test_trap_15_alpha_zero_is_plain_cross_entropy_to_the_bit_and_a_one_hot_teacher_equals_it() -> None:
    logits, targets, teacher = case(N=300, V=50)
    plain = nn.functional.cross_entropy(logits, targets, reduction="none").sum() / (targets != -100).sum()
    for signal in (None, Signal.dense(teacher)):
        ours = distillation_loss(logits, targets, signal, LossConfig(4.0, 0.0, 1.0)).total
        assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
        torch.testing.assert_close(gradient_of(ours, logits), gradient_of(plain, logits), atol=0, rtol=1e-5)
    one = slice(0, 1)
    assert (
        distillation_loss(logits[one], targets[one], None, LossConfig()).total.item()
        == nn.functional.cross_entropy(logits[one], targets[one]).item()
    )
    one_hot = torch.full_like(logits, -torch.inf).scatter(1, targets.clamp_min(0)[:, None], 0.0).detach()
    sparse = Signal.top_k(targets.clamp_min(0)[:, None], torch.zeros(len(targets), 1))
    for signal in (Signal.dense(one_hot), sparse):
        soft = distillation_loss(logits, targets, signal, LossConfig(1.0, 1.0, 0.0)).total
        assert soft.item() == pytest.approx(plain.item(), rel=1e-5)
        torch.testing.assert_close(gradient_of(soft, logits), gradient_of(plain, logits), atol=1e-7, rtol=1e-4)


def test_trap_16_a_cache_refuses_others_and_keeps_every_signal_with_its_record(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    """Shuffled, in other batches, read again by another process's cache: each record finds its own; a changed record
    finds none."""
    teacher = LocalTeacher([trained(tmp_path / "t", tokenizer, examples, records)])
    SignalCache.beside(tmp_path / "c", TokenSignals(teacher, "top_k", 6, 1.0)).build(
        records[:40], examples[:40], torch.device("cpu"), batch_size=7
    )
    cache = SignalCache.beside(tmp_path / "c", TokenSignals(teacher, "top_k", 6, 1.0))
    for chosen in ([31, 2, 17], [17], [5, 31, 0, 2]):
        some = [examples[i] for i in chosen]
        batch = PointerBatch.of(some, tokenizer)
        signal, width = cache.read(some, batch), batch.targets.shape[1]
        for row, example in enumerate(some):
            own = teacher.log_probs([example], torch.device("cpu"))[0].topk(6).values
            torch.testing.assert_close(
                signal.log_probs[row * width : row * width + len(example.target)], own, atol=1e-4, rtol=1e-3
            )
    first = next(example for example in examples if len(example.tools) > 2)
    for changed in (
        replace(first, tools=first.tools[::-1]),
        replace(first, tools=first.tools[:-1]),
        replace(first, query=first.query[1:]),
        replace(first, target=first.target[1:]),
    ):
        assert example_key(changed) != example_key(first)
    folder = cache.folder
    for settings, message in (
        (("0123", "decisions", 1.0), f"were built for tokenizer {tokenizer.fingerprint}, this run has tokenizer 0123"),
        ((tokenizer.fingerprint, "json", 1.0), "were built for codec decisions, this run has codec json"),
    ):
        with pytest.raises(ValueError, match=message):
            SignalCache.open(folder, *settings)
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace(teacher.fingerprint, "another"))
    with pytest.raises(ValueError, match="was built for teacher=another"):
        SignalCache.beside(tmp_path / "c", TokenSignals(teacher, "top_k", 6, 1.0))


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_trap_17_a_fully_masked_record_gives_a_finite_zero_with_a_gradient(
    student: Student, tokenizer: TextTokenizer, examples: list[Example], alpha: float
) -> None:
    batch = student.collate(examples[:2], tokenizer)
    batch.targets[:] = -100
    said = torch.zeros(batch.targets.numel(), tokenizer.size).log_softmax(-1)
    values = Objective(student, LossConfig(2.0, alpha, 1.0))(batch, Signal.dense(said) if alpha else None, 0.0)
    values[0].backward()
    assert values[0].item() == 0
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert gradients
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients)
    logits, targets, teacher = case()
    loss = distillation_loss(
        logits, torch.full_like(targets, -100), Signal.dense(teacher) if alpha else None, LossConfig(2.0, alpha, 1.0)
    ).total
    assert loss.item() == 0
    assert gradient_of(loss, logits).abs().max() == 0
