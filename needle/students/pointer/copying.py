"""How an answer's next token is chosen: one distribution over the vocabulary, the request's tokens, the names and enum
members of the tools, the tools, and the arguments of the open tool. Probabilities of equal tokens add up.

Legend: as in `pointer.batch`, and D width, n positions scored, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from needle.students.pointer.batch import Copies, Requests

FLOOR = 1e-30  # beside the likeliest outcome; a probability that underflows keeps a finite log


@dataclass
class Keys:
    """What an answer may point at, projected for the whole batch."""

    query: Tensor  # [B, Q, D]
    schema: Tensor  # [C, D]
    tools: Tensor  # [U, D]
    arguments: Tensor  # [G, D]
    words: Tensor | None  # [B, U] the weight of the words that request and tool share

    def select(self, rows: Tensor) -> Keys:
        return replace(self, query=self.query[rows], words=None if self.words is None else self.words[rows])


class Join(torch.autograd.Function):
    """[n, V] of float32: `text` and `labels` side by side, `joined` over the `candidates` among them. One pass over
    memory each way."""

    @staticmethod
    def forward(ctx: Any, text: Tensor, labels: Tensor, joined: Tensor, candidates: Tensor) -> Tensor:
        ctx.save_for_backward(candidates)
        ctx.split, ctx.dtype = text.shape[1], text.dtype
        scores = text.new_empty(len(text), text.shape[1] + labels.shape[1], dtype=torch.float32)
        scores[:, : ctx.split], scores[:, ctx.split :] = text, labels
        return scores.scatter_(1, candidates, joined)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        (candidates,) = ctx.saved_tensors
        text = gradient[:, : ctx.split].to(ctx.dtype, copy=True).scatter_(1, candidates, 0.0)
        return text, gradient[:, ctx.split :], gradient.gather(1, candidates), None


def join_copies(text: Tensor, labels: Tensor, copied: Tensor, candidates: Tensor, slots: Tensor) -> Tensor:
    """[n, V] scores, of those of the vocabulary `text`, of the labels, and of everything that can be copied [n, Q+N].

    Only the columns of tokens that can be copied differ from a plain output layer, so only those are touched.
    """
    spelled = text.gather(1, candidates).float()
    top = torch.maximum(spelled.amax(-1, keepdim=True), copied.amax(-1, keepdim=True)).detach()
    mass = (spelled - top).exp().scatter_add(1, slots, (copied - top).exp())
    joined = (mass.clamp_min(FLOOR).log() + top).masked_fill(candidates == 0, -torch.inf)  # <pad> is never an answer
    scores: Tensor = Join.apply(text, labels, joined, candidates)  # type: ignore[no-untyped-call]
    return scores


def aimed(slots: Tensor, query: Tensor, aims: Tensor) -> Tensor:
    """The slots [n, Q+N] of what may be copied, in which the right token elsewhere in the request counts as `<query>`,
    which no answer holds.

    `query` [n, Q], and `aims` [n], its only right positions, -1 where there is none. So a student learns to point at a
    value, not at any token like it.
    """
    right = query.gather(1, aims.clamp_min(0)[:, None])
    elsewhere = torch.arange(query.shape[1], device=query.device) != aims[:, None]
    wrong = (query == right) & elsewhere & (aims >= 0)[:, None]
    return torch.cat([slots[:, : query.shape[1]].masked_fill(wrong, 0), slots[:, query.shape[1] :]], dim=1)


def request_scores(scores: Tensor, follow: Tensor, sources: Tensor, requests: Requests, gate: Tensor) -> Tensor:
    """[B, T, Q] of how likely each position of the request is copied next: `follow` [B, T, 1] favours the one behind
    the last source [B, T]."""
    following = torch.arange(scores.shape[-1], device=scores.device) == (sources + 1)[..., None]
    scores = scores + follow * (following & (sources >= 0)[..., None]) + gate
    return scores.masked_fill(~requests.mask[:, None], -torch.inf)


def offered_scores(every: Tensor, scale: float, copies: Copies, gate: Tensor) -> Tensor:
    """[B, T, C] scores of all names and enum members to those of the record's own tools, [B, T, N]."""
    index = copies.offered[:, None].expand(-1, every.shape[1], -1)
    scores = every.gather(2, index.clamp_min(0)).float() * scale + gate
    return scores.masked_fill(index < 0, -torch.inf)
