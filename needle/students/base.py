"""What every student is: a module that answers `logits [B, T, V]` for a batch, and decodes step by step.

Legend: B records, T target positions, S positions so far, V vocabulary, D width, H heads, d width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from needle.students.batch import Batch, FlatBatch
from needle.text.prompt import Example, RenderedTool
from needle.text.tokenizer import ARGUMENT_LABELS, TOOL_LABELS, TextTokenizer

EXPLICIT = 2**27  # attention weights that training on a CPU may hold at once
HIDDEN = -1e4  # added to the score of what a query may not see; exp of it is 0 in every precision


@dataclass
class Trace:
    """What a student thought on its way to the target positions, layer by layer: for teachers that show their
    insides."""

    attend: bool = False  # whether to collect attention, which then isn't computed by the fast kernel
    hidden: list[Tensor] = field(default_factory=list)  # [B, T, D] after each layer of the decoder
    attention: list[Tensor] = field(
        default_factory=list
    )  # [B, T, S] over the prompt's positions, the mean of the heads


class Student(nn.Module, ABC):
    """Base of all students. `batch_type` says how it reads records; the methods with a body are for one that reads
    everything in one row."""

    batch_type: type[Batch] = FlatBatch
    read_at_once = "the request and its tools are"  # what `read_length` counts, for messages
    can_rank = False  # whether `tool_keys` and `request_keys` choose a few tools among many
    vocabulary: int
    pretrained: tuple[str, ...] = ()  # how the names of parameters begin that may come from another network
    checkpointing = False  # forget what a block computed, and compute it again for the gradient

    @property
    @abstractmethod
    def traced(self) -> tuple[int, int]:
        """How many layers a `Trace` gets, and their width D."""

    @abstractmethod
    def forward(self, batch: Batch, trace: Trace | None = None, wanted: Tensor | None = None) -> Tensor:
        """[B, T, V] scores or normalised log-probabilities in float32; labels that a record lacks are -inf.

        `wanted` [N] are indices of the flattened B*T positions: then only these are scored, [N, V].
        """

    def run(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """A block's output, through activation checkpointing while training if asked for."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    # Reading

    def collate(
        self, examples: Sequence[Example], tokenizer: TextTokenizer, kind_weights: Sequence[float] = ()
    ) -> Batch:
        """The examples as this student reads them; see `Batch.of`."""
        return self.batch_type.of(examples, tokenizer, kind_weights)

    def read_length(self, example: Example) -> int:
        """Tokens of a prompt that are read at once."""
        return example.prompt_length

    def padded_length(self, example: Example) -> int:
        """The length that examples of one batch should share, so that little is padded."""
        return example.length

    def room(self, example: Example, max_length: int) -> int:
        """How many tokens an answer may have when prompt and answer together have at most `max_length`."""
        return max_length - example.prompt_length

    # Answering

    def set_precision(self, reading: torch.dtype, answering: torch.dtype) -> None:
        """Puts the weights into the precision of what reads; `answering` is for students whose parts can differ."""
        self.to(reading)

    def new_cache(self) -> Any:
        """What `start` may keep between calls with the same weights; None for nothing."""
        return None

    @abstractmethod
    def start(self, batch: Batch, cache: Any = None) -> State:
        """Reads prompts; `step` then decodes. `cache` is what `new_cache` made."""

    @abstractmethod
    def step(self, state: State, tokens: Tensor, open_tool: Tensor) -> Tensor:
        """Appends `tokens` [B, n] (the first are `<answer>`) and returns the next scores behind each, [B, n, V].

        `open_tool` [B, n] is the index of the tool that is open after each of `tokens`, or -1. n is 1 unless `draft`
        gave more.
        """

    def draft(self, state: State, token: int, most: int) -> list[int]:
        """Tokens that may follow `token` in the answer of the only row, to be scored together with it."""
        return []

    def sources(self, state: State) -> list[list[int]] | None:
        """[B][n] where in the request the last tokens were copied from, -1 for none; None if the student can't tell."""
        return None

    # Choosing a few tools among many

    def tool_keys(self, tools: Sequence[RenderedTool]) -> Tensor:
        """[n, D] of tools: what `request_keys` of fitting requests are close to."""
        raise NotImplementedError(f"{type(self).__name__} doesn't rank tools")

    def request_keys(self, batch: Batch) -> Tensor:
        """[B, D] of requests without tools: their products with `tool_keys` say how well each tool fits, each by
        itself."""
        raise NotImplementedError(f"{type(self).__name__} doesn't rank tools")


class ReadsApart(Student):
    """A student that reads requests and tools apart: only the longest of them has to fit."""

    read_at_once = "the longest of the request and its tools is"
    can_rank = True

    def read_length(self, example: Example) -> int:
        return max([len(example.query), *(len(tool.ids) for tool in example.tools)])

    def room(self, example: Example, max_length: int) -> int:
        return max_length

    def padded_length(self, example: Example) -> int:
        """Not the target: batches of equal targets would hold nothing but answers without a call, or nothing but
        calls."""
        return len(example.query)


class State(ABC):
    """What a student keeps between steps of one batch. One whose student drafts also has `confirms` and `cut`."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Keeps only these rows of the batch."""

    def confirms(self, token: int, step: int) -> bool:
        """Whether a drafted `token` that was chosen after the last tokens' `step` means what the draft meant."""
        raise NotImplementedError(f"{type(self).__name__} is of a student that doesn't draft")

    def cut(self, count: int) -> None:
        """Forgets the last `count` tokens of those that came together."""
        raise NotImplementedError(f"{type(self).__name__} is of a student that doesn't draft")


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, causal: bool = False) -> Tensor:
    """[B, H, S, d] of queries [B, H, S, d] over keys and values [B, G, K, d], H a multiple of G.

    `visible` is true where a query may look, [B, 1, 1 or S, K]; `causal` hides what comes later. On a CPU, where the
    fused kernel takes up to six times as long on short rows, training multiplies the matrices itself.
    """
    B, H, S, d = q.shape
    K = k.shape[2]
    if q.device.type != "cpu" or not torch.is_grad_enabled() or B * H * S * K > EXPLICIT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal, enable_gqa=k.shape[1] != H)
    if k.shape[1] != H:
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    if causal:
        visible = torch.ones(S, K, dtype=torch.bool, device=q.device).tril()[None, None]
    if visible is None:
        visible = torch.ones(1, 1, 1, K, dtype=torch.bool, device=q.device)
    bias = torch.zeros(visible.shape, dtype=q.dtype, device=q.device).masked_fill_(~visible, HIDDEN)
    bias = bias[0] if len(bias) == 1 else bias.expand(-1, H, -1, -1).flatten(0, 1)
    scores = torch.baddbmm(bias, (q * d**-0.5).flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    out: Tensor = torch.bmm(scores.softmax(-1), v.flatten(0, 1))
    return out.view(B, H, S, d)


def mean_attention(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """[B, T, S] attention of queries [B, H, T, d] over keys [B, G, S, d], the mean of the heads; `mask` is true where
    allowed."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q.float() @ k.float().transpose(-1, -2)) * q.shape[-1] ** -0.5
    shares: Tensor = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return shares.mean(1)


def mask_labels(logits: Tensor, batch: Batch, open_tool: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Puts -inf, in place, on the labels that a record lacks: tools beyond its own, arguments beyond those of the open
    tool.

    Args:
        logits: [B, T, V], or [N, V] of the `wanted` positions.
        open_tool: [B, T], -1 for none.
    """
    arguments = batch.argument_count.gather(1, open_tool.clamp_min(0)).masked_fill(open_tool < 0, 0)
    no_tool = torch.arange(TOOL_LABELS, device=logits.device) >= batch.tool_count[:, None, None]
    no_argument = torch.arange(ARGUMENT_LABELS, device=logits.device) >= arguments[..., None]
    mask = torch.cat([no_tool.expand(*open_tool.shape, -1), no_argument], dim=-1)
    logits[..., -mask.shape[-1] :].masked_fill_(at_positions(mask, wanted), -torch.inf)
    return logits


def at_positions(x: Tensor, wanted: Tensor | None) -> Tensor:
    """[B, T, ...] at flat positions [N]: [N, ...]; everything when `wanted` is None."""
    return x if wanted is None else x.flatten(0, 1).index_select(0, wanted)


def working_precision(x: Tensor) -> Tensor:
    """`x` in autocast's precision, so that the residual stream that begins with it moves half the bytes; itself without
    autocast."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bfloat16 by itself; others take longer for it than for float32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467).

    Centred, the weight is what is added to one, so that weight decay pulls towards one.
    """

    def __init__(self, width: int, eps: float = 1e-5, centred: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if centred else torch.ones(width))
        self.eps, self.offset = eps, float(centred)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = _RMSNorm.apply(x, self.weight + self.offset, self.eps)  # type: ignore[no-untyped-call]
        return normed


class _RMSNorm(torch.autograd.Function):
    """The sum of squares in float32, the rest in the precision of `x`, with as few passes over memory as eager PyTorch
    allows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (norm.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)
        ctx.save_for_backward(x, weight, scale)
        normed: Tensor = (x * scale).mul_(weight.to(x.dtype))
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        hat = x * scale
        weighted = gradient * weight.to(x.dtype)
        inner = (hat * weighted).sum(-1, keepdim=True, dtype=torch.float32).div_(x.shape[-1]).to(x.dtype)
        for_weight = (gradient * hat).flatten(0, -2).sum(0, dtype=torch.float32).to(weight.dtype)
        return weighted.addcmul_(hat, inner, value=-1).mul_(scale), for_weight, None


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) from random bytes, an eighth of the random numbers that a coin for each element
    takes.

    The share is rounded to the next 1/256, and the rest scaled by what that is.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.threshold = round(p * 256)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.threshold:
            return x
        words = torch.empty((*x.shape[:-1], -(-x.shape[-1] // 8)), dtype=torch.int64, device=x.device).random_(
            -(2**63), None
        )
        kept = words.view(torch.uint8)[..., : x.shape[-1]] >= self.threshold
        return torch.where(kept, x * (256 / (256 - self.threshold)), 0.0)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class GELU(nn.Module):
    """down(gelu(up(x))) with biases: the feed-forward layer of BERT (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, hidden)
        self.down_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))  # type: ignore[no-any-return]


@dataclass
class Rope:
    """Rotary positions in the half-split layout that Llama weights use (Su et al. 2021, arXiv:2104.09864)."""

    cos: Tensor  # [..., S, d/2]
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head: int, theta: float) -> Rope:
        """`positions` [..., S]; the tables get a heads dimension when positions have a batch one."""
        frequencies = theta ** (-torch.arange(0, head, 2, device=positions.device).float() / head)
        angles = positions[..., None].float() * frequencies
        if angles.dim() == 3:
            angles = angles.unsqueeze(1)
        return cls(angles.cos(), angles.sin())

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates [B, H, S, d], in the precision of `x`."""
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        rotated: Tensor = _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _turn(x, cos, sin, -1)  # type: ignore[no-untyped-call]
        return rotated


class _Rotate(torch.autograd.Function):
    """Writes each half once and adds the other in place; backward turns the gradient the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, sin, 1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    out = torch.empty_like(x)
    first, second = out.chunk(2, dim=-1)
    torch.mul(left, cos, out=first).addcmul_(right, sin, value=sign)
    torch.mul(right, cos, out=second).addcmul_(left, sin, value=-sign)
    return out


def init_weights(module: nn.Module, residuals: int) -> None:
    """Unit-variance maps: weights of variance 1/fan-in, and 1/`residuals` of that where a branch joins the residual
    stream.

    The usual fixed 0.02 is made for widths near 2,500; in a student of width 128 it leaves attention uniform for
    thousands of steps.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            joins = name.endswith(("o_proj", "down_proj", "mlp.2"))
            nn.init.normal_(part.weight, std=(part.in_features * (residuals if joins else 1)) ** -0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers, a shared tensor counted once."""
    return sum({id(p): p.numel() for p in module.parameters()}.values())
