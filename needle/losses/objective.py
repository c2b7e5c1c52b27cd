"""What training minimises: the student, its loss and the matching of insides, as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from needle.losses.loss import LossConfig, Signal, distillation_loss
from needle.losses.matching import Matching
from needle.students.base import Student, Trace
from needle.students.batch import Batch
from needle.text.prompt import IGNORE

VALUES = ("loss", "soft", "hard", "teacher_entropy", "teacher_mass_lost", "hidden", "attention")


class Objective(nn.Module):
    """Student and loss as one module, so that whatever wraps it (DDP, FSDP) sees the forward pass and every
    parameter."""

    def __init__(self, student: Student, config: LossConfig, matching: Matching | None = None) -> None:
        super().__init__()
        self.student, self.config, self.matching = student, config, matching

    def forward(self, batch: Batch, signal: Signal | None, normalizer: float, insides: Trace | None = None) -> Tensor:
        """`VALUES` as one tensor; the first is to be differentiated. `insides` are the teacher's."""
        trace = Trace(attend=insides.attend) if insides is not None else None
        targets, weights = batch.targets.flatten(), batch.weights.flatten()
        wanted = (targets != IGNORE).nonzero()[:, 0]
        logits = self.student(batch, trace, wanted)
        loss = distillation_loss(
            logits, targets[wanted], signal and signal.at(wanted), self.config, normalizer, weights[wanted]
        )
        hidden = attention = torch.zeros_like(loss.total)
        if self.matching is not None and trace is not None and insides is not None:
            hidden, attention = self.matching(trace, insides, batch.weights / max(normalizer, 1e-12))
        total = loss.total + self.config.hidden * hidden + self.config.attention * attention
        return torch.stack([total, loss.soft, loss.hard, loss.entropy, loss.lost, hidden.detach(), attention.detach()])
