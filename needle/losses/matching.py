"""Matching a white-box teacher's insides: its hidden states and its attention at the target positions.

Legend: B records, T target positions, D width, S prompt positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from needle.losses.loss import LossConfig
from needle.students.base import Student, Trace


class Matching(nn.Module):
    """Compares pairs of layers; the projections from the student's width to the teacher's learn along with the student.

    Hidden states: mean squared error against the teacher's, each normalised to variance 1 (Romero et al. 2015,
    arXiv:1412.6550, with the projection; Jiao et al. 2020, arXiv:1909.10351, for several layers).
    Attention: KL(teacher || student) of the heads' mean over the prompt (Wang et al. 2020, arXiv:2002.10957).

    Raises:
        ValueError: the map names a layer that doesn't exist, or attention is asked of students that read other layouts.
    """

    def __init__(self, config: LossConfig, student: Student, teacher: Student) -> None:
        super().__init__()
        (layers, width), (teacher_layers, teacher_width) = student.traced, teacher.traced
        self.pairs = layer_pairs(config.layer_map, layers, teacher_layers)
        self.attend = config.attention > 0
        if self.attend and student.batch_type is not teacher.batch_type:
            raise ValueError(
                "loss.attention compares attention over the same positions; the student reads a"
                f" {student.batch_type.__name__}, the teacher a {teacher.batch_type.__name__}"
            )
        self.projections = nn.ModuleList([nn.Linear(width, teacher_width, bias=False) for _ in self.pairs])

    def forward(self, student: Trace, teacher: Trace, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Both terms summed over target positions with `weights` [B, T], the mean of the pairs of layers."""
        hidden = weights.new_zeros(())
        attention = weights.new_zeros(())
        for (ours, theirs), projection in zip(self.pairs, self.projections, strict=True):
            wanted = F.layer_norm(teacher.hidden[theirs].float(), teacher.hidden[theirs].shape[-1:])
            error = (projection(student.hidden[ours]).float() - wanted).square().mean(-1)
            hidden = hidden + (error * weights).sum() / len(self.pairs)
            if self.attend:
                p, q = teacher.attention[theirs].clamp_min(1e-12), student.attention[ours].clamp_min(1e-12)
                attention = attention + ((p * (p / q).log()).sum(-1) * weights).sum() / len(self.pairs)
        return hidden, attention


def layer_pairs(layer_map: Sequence[Sequence[int]] | None, layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """(student layer, teacher layer), from 0; without a map the student's layers are spread over the teacher's, last on
    last."""
    if layer_map is None:
        return [(i, -(-(i + 1) * teacher_layers // layers) - 1) for i in range(layers)]
    for pair in layer_map:
        if len(pair) != 2 or not (0 <= pair[0] < layers and 0 <= pair[1] < teacher_layers):
            raise ValueError(
                f"loss.layer_map has {list(pair)}; expected [student layer 0 to {layers - 1}, teacher layer 0 to"
                f" {teacher_layers - 1}]"
            )
    return [(pair[0], pair[1]) for pair in layer_map]
