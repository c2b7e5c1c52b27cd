"""The span student as graphs: what `needle.engine.spanonnx` puts together, for one request at a time.

Projections of the same input are one matrix; the last layers of the encoder are one graph, which reads requests and
tools alone and a request beside its tool; what is looked up in a table stays outside.

Legend: s positions, W positions beside, Q of a request, A arguments, C of a card, S of all cards, n tokens of a step, P
tokens before, L layers of the decoder, J layers that read together, H heads, d width of a head, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from needle.students.span.reader import ReadingBlock
from needle.students.span.student import DecoderBlock, SpanStudent


@dataclass
class Graph:
    """A module, example inputs by name, names of the outputs, and which axes have any size."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    axes: dict[str, dict[int, str]] = field(default_factory=dict)


def _fused(*parts: nn.Linear, rows: bool = True) -> nn.Linear:
    """One matrix for several projections of one input, or, without `rows`, of several inputs whose outputs are
    added."""
    weight = torch.cat([part.weight for part in parts], dim=0 if rows else 1).detach().float().contiguous()
    whole = nn.Linear(weight.shape[1], weight.shape[0], bias=parts[0].bias is not None)
    whole.weight.data = weight
    if parts[0].bias is not None:
        whole.bias.data = torch.cat([part.bias for part in parts]).detach().float()
    return whole


def _heads(x: Tensor, count: int) -> Tensor:
    """[..., s, D] to [..., H, s, d]."""
    return _split(x, count, -1).transpose(-3, -2)


def _split(x: Tensor, *sizes: int) -> Tensor:
    """[..., D] to [..., *sizes]."""
    return x.reshape(*x.shape[:-1], *sizes)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """[H, s, d] over [H, S, d] to [s, D]."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    read: Tensor = ((scores if bias is None else scores + bias).softmax(-1) @ v).transpose(0, 1).flatten(1)
    return read


class _Layer(nn.Module):
    """`ReadingBlock` of one row."""

    def __init__(self, block: ReadingBlock, heads: int) -> None:
        super().__init__()
        own = block.attention
        self.heads, self.qkv, self.o = heads, _fused(own.q_proj, own.kv_proj), own.o_proj
        self.up, self.down = block.mlp.up_proj, block.mlp.down_proj
        self.norm_attention, self.norm_mlp = block.norm_attention, block.norm_mlp

    def forward(self, x: Tensor, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[s, D] beside [W, 2D] to [s, D] and its keys and values [s, 2D]."""
        q, own = self.qkv(x).split([x.shape[-1], 2 * x.shape[-1]], dim=-1)
        k, v = (own if beside is None else torch.cat([own, beside])).chunk(2, dim=-1)
        read = _attend(_heads(q, self.heads), _heads(k, self.heads), _heads(v, self.heads))
        x = self.norm_attention(x + self.o(read))
        return self.norm_mlp(x + self.down(F.gelu(self.up(x)))), own


class Lower(nn.Module):
    """The encoder below the layers that read together: sums of embeddings [s, D] to [s, D]."""

    def __init__(self, student: SpanStudent) -> None:
        super().__init__()
        config = student.config
        self.norm = student.norm_encoder
        alone = list(student.encoder)[: config.encoder_layers - config.joint]
        self.layers = nn.ModuleList([_Layer(block, config.encoder_heads) for block in alone])  # type: ignore[arg-type]

    def forward(self, embedded: Tensor) -> Tensor:
        x: Tensor = self.norm(embedded)
        for layer in self.layers:
            x, _ = layer(x)
        return x


class Upper(nn.Module):
    """Those that do: [s, D] beside [J, W, 2D] to [s, D] and their keys and values [J, s, 2D]."""

    def __init__(self, student: SpanStudent) -> None:
        super().__init__()
        config = student.config
        together = list(student.encoder)[config.encoder_layers - config.joint :]
        self.layers = nn.ModuleList([_Layer(block, config.encoder_heads) for block in together])  # type: ignore[arg-type]

    def forward(self, lower: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
        x, kept = lower, []
        for layer, own in zip(self.layers, beside.unbind(0), strict=True):
            x, mine = layer(x, own)
            kept.append(mine)
        return x, torch.stack(kept)


class Row(nn.Module):
    """What a row is to the decoder: its keys and values [L, 2, H, Q+A, d], and the keys of places and arguments
    [2Q+A, D]."""

    def __init__(self, student: SpanStudent) -> None:
        super().__init__()
        blocks: list[DecoderBlock] = list(student.decoder)  # type: ignore[arg-type]
        self.heads, self.layers = student.config.heads, len(blocks)
        self.cross = _fused(*(block.pair.kv_proj for block in blocks))
        self.places = _fused(student.key["begin"], student.key["end"])  # type: ignore[arg-type]
        self.argument = student.key["argument"]

    def forward(self, query: Tensor, arguments: Tensor) -> tuple[Tensor, Tensor]:
        begin, end = self.places(query).chunk(2, dim=-1)
        keys = torch.cat([begin, end, self.argument(arguments)])
        return _keys_values(self.cross(torch.cat([query, arguments])), self.layers, self.heads), keys


def _keys_values(x: Tensor, layers: int, heads: int) -> Tensor:
    """[s, L*2*D] to [L, 2, H, s, d]."""
    return x.reshape(x.shape[0], layers, 2, heads, -1).permute(1, 2, 3, 0, 4)


class Card(nn.Module):
    """What a card is to the decoder: its keys and values [L, 2, H, C, d], its mean [D], and its key as a tool [D]."""

    def __init__(self, student: SpanStudent) -> None:
        super().__init__()
        blocks: list[DecoderBlock] = list(student.decoder)  # type: ignore[arg-type]
        self.heads, self.layers = student.config.heads, len(blocks)
        self.seen = _fused(*(block.tools.kv_proj for block in blocks))
        self.key = student.key["tool"]

    def forward(self, read: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        use = read.mean(0)
        return _keys_values(self.seen(read), self.layers, self.heads), use, self.key(use)


class _Turn(nn.Module):
    """`DecoderBlock` of one answer."""

    def __init__(self, block: DecoderBlock, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _fused(block.own.q_proj, block.own.kv_proj)
        self.o = block.own.o_proj
        self.asks = _fused(block.pair.q_proj, block.tools.q_proj)
        self.hears = _fused(block.pair.o_proj, block.tools.o_proj, rows=False)
        self.up = _fused(block.mlp.gate_proj, block.mlp.up_proj)
        self.down = block.mlp.down_proj
        self.norm_own, self.norm_cross, self.norm_mlp = block.norm_own, block.norm_cross, block.norm_mlp

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, past: Tensor, cross: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (_heads(part, self.heads) for part in self.qkv(self.norm_own(x)).chunk(3, dim=-1))
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        past = torch.cat([past, torch.stack([k, v])], dim=2)
        x = x + self.o(_attend(q, past[0], past[1], bias))
        mine, theirs = (_heads(part, self.heads) for part in self.asks(self.norm_cross(x)).chunk(2, dim=-1))
        heard = torch.cat([_attend(mine, cross[0], cross[1]), _attend(theirs, seen[0], seen[1])], dim=-1)
        x = x + self.hears(heard)
        gate, up = self.up(self.norm_mlp(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up), past


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Step(nn.Module):
    """n tokens further: their inputs [n, D] to the keys and values so far [L, 2, H, P+n, d], what is hidden [n, D], the
    scores of text and of the kinds of outcome [n, V+5], and how well it fits each key of its row [n, 2Q+A], tool [n, U]
    and member [n, E]."""

    def __init__(self, student: SpanStudent) -> None:
        super().__init__()
        config = student.config
        blocks: list[DecoderBlock] = list(student.decoder)  # type: ignore[arg-type]
        self.layers = nn.ModuleList([_Turn(block, config.heads) for block in blocks])
        self.norm, self.scale = student.norm_decoder, student.scale
        self.spell, self.gate = student.spell, student.gate
        self.write = nn.Linear(config.width, student.text)
        self.write.weight.data = student.write.weight.detach().float().clone()
        self.write.bias.data = student.text_bias.detach().float().clone()

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        past: Tensor,
        cross: Tensor,
        seen: Tensor,
        row_keys: Tensor,
        tool_keys: Tensor,
        member_keys: Tensor,
    ) -> tuple[Tensor, ...]:
        kept = []
        for layer, own, row, tools in zip(self.layers, past.unbind(0), cross.unbind(0), seen.unbind(0), strict=True):
            x, mine = layer(x, cos, sin, bias, own, row, tools)
            kept.append(mine)
        hidden = self.norm(x)
        keys = torch.cat([row_keys, tool_keys, member_keys])
        text = torch.cat([self.write(self.spell(hidden)), self.gate(hidden)], dim=-1)
        return torch.stack(kept), hidden, text, (hidden @ keys.T) * self.scale


def graphs(student: SpanStudent) -> dict[str, Graph]:
    """The graphs of a student in float32, which isn't changed."""
    config = student.config
    D, H, L, J = config.width, config.heads, config.decoder_layers, config.joint
    d = D // H

    def some(*sizes: int) -> Tensor:
        return torch.randn(*sizes)

    return {
        "lower": Graph(Lower(student), {"embedded": some(7, D)}, ["lower"], {"embedded": {0: "s"}, "lower": {0: "s"}}),
        "upper": Graph(
            Upper(student),
            {"lower": some(7, D), "beside": some(J, 5, 2 * D)},
            ["read", "kept"],
            {"lower": {0: "s"}, "beside": {1: "W"}, "read": {0: "s"}, "kept": {1: "s"}},
        ),
        "row": Graph(
            Row(student),
            {"query": some(6, D), "arguments": some(3, D)},
            ["cross", "row_keys"],
            {"query": {0: "Q"}, "arguments": {0: "A"}, "cross": {3: "R"}, "row_keys": {0: "K"}},
        ),
        "card": Graph(
            Card(student), {"read": some(6, D)}, ["seen", "use", "tool_key"], {"read": {0: "C"}, "seen": {3: "C"}}
        ),
        "step": Graph(
            Step(student),
            {
                "x": some(2, D), "cos": some(2, d // 2), "sin": some(2, d // 2), "bias": torch.zeros(2, 5),
                "past": some(L, 2, H, 3, d), "cross": some(L, 2, H, 9, d), "seen": some(L, 2, H, 8, d),
                "row_keys": some(15, D), "tool_keys": some(2, D), "member_keys": some(4, D),
            },
            ["kept", "hidden", "text", "pointed"],
            {
                "x": {0: "n"}, "cos": {0: "n"}, "sin": {0: "n"}, "bias": {0: "n", 1: "T"}, "past": {3: "P"},
                "cross": {3: "R"}, "seen": {3: "S"}, "row_keys": {0: "K"}, "tool_keys": {0: "U"},
                "member_keys": {0: "E"}, "kept": {3: "T"}, "hidden": {0: "n"}, "text": {0: "n"},
                "pointed": {0: "n", 1: "N"},
            },
        ),
    }  # fmt: skip


def tables(student: SpanStudent) -> dict[str, Tensor]:
    """What is looked up, or too small for a graph."""
    blocks: list[DecoderBlock] = list(student.decoder)  # type: ignore[arg-type]
    found: dict[str, Tensor] = {
        "embed": student.embed.weight, "case": student.case.weight, "position": student.position.weight,
        "kind": student.kind.weight, "no_tool": student.no_tool, "write": student.write.weight,
        "role": student.role.weight, "opening": student.opening.weight,
        "key_member": student.key["member"].weight,  # type: ignore[dict-item]
        "seen_empty": torch.cat([block.tools.kv_proj.weight @ student.no_tool for block in blocks]),
    }  # fmt: skip
    return {name: table.detach().float().contiguous() for name, table in found.items()}
