"""The span student as graphs: what `needle.engine.spanonnx` puts together, for one request at a time.

Projections of the same input are one matrix. The last layers of the encoder are one graph, which reads requests and
tools alone and a request beside its tool. What is looked up in a table stays outside.

Legend: s positions, W positions beside, C of a card, R of a row (a request's, then its tool's arguments), S of all
cards, n tokens of a step, P tokens before, N keys that may be pointed at, L layers of the decoder, J layers that read
together, D width, d width of a head, V what is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from needle.exports.net import Net
from needle.exports.ranges import Ranges
from needle.students.base import Rope
from needle.students.span.reader import ReadingBlock
from needle.students.span.student import DecoderBlock, SpanStudent


def graphs(student: SpanStudent, small: bool, longest: int, ranges: Ranges) -> dict[str, Net]:
    """The graphs of a student in float32, for answers of at most `longest` tokens. `ranges` are of the encoder's
    feed-forward layers, few channels of which get twenty times as large as the others, and of its attention."""
    return {
        "lower": _lower(student, small, ranges),
        "upper": _upper(student, small, ranges),
        "row": _row(student, small),
        "card": _card(student, small),
        "step": _step(student, small, longest),
    }


def tables(student: SpanStudent) -> dict[str, Tensor]:
    """What is looked up, or too small for a graph."""
    found: dict[str, Tensor] = {
        "embed": student.embed.weight, "case": student.case.weight, "position": student.position.weight,
        "kind": student.kind.weight, "write": student.write.weight, "role": student.role.weight,
        "opening": student.opening.weight, "key_member": student.key["member"].weight,  # type: ignore[dict-item]
        "key_tool": student.key["tool"].weight,  # type: ignore[dict-item]
        "seen_empty": _stacked([block.tools.kv_proj for block in _decoder(student)]) @ student.no_tool,
    }  # fmt: skip
    if student.config.literal:
        found |= {"said": student.said.weight, "heard": student.heard.weight}
    return {name: table.detach().float().contiguous() for name, table in found.items()}


def _lower(student: SpanStudent, small: bool, ranges: Ranges) -> Net:
    """The encoder below the layers that read together: sums of embeddings [1, s, D] to [1, s, D]."""
    net, config, first = Net(small), student.config, student.norm_encoder
    x = net.norm(net.input("embedded", 1, "s", config.width), first.weight, first.bias, first.eps)
    for block in _encoder(student)[: config.encoder_layers - config.joint]:
        x, _, _ = _reading(net, block, ranges, config.encoder_heads, x)
    net.output("lower", x, 1, "s", config.width)
    return net


def _upper(student: SpanStudent, small: bool, ranges: Ranges) -> Net:
    """Those that do: [1, s, D] beside keys and values [1, W, D] of each to [1, s, D] and their own."""
    net, config = Net(small), student.config
    x, D = net.input("lower", 1, "s", config.width), config.width
    kept: list[str] = []
    for number, block in enumerate(_encoder(student)[config.encoder_layers - config.joint :]):
        beside = [net.input(f"beside_{part}_{number}", 1, "W", D) for part in "kv"]
        x, *own = _reading(net, block, ranges, config.encoder_heads, x, beside)
        kept += own
    net.output("read", x, 1, "s", D)
    for place, own_part in enumerate(kept):
        net.output(f"kept_{'kv'[place % 2]}_{place // 2}", own_part, 1, "s", D)
    return net


def _reading(
    net: Net, block: ReadingBlock, ranges: Ranges, heads: int, x: str, beside: Sequence[str] | None = None
) -> tuple[str, str, str]:
    """`ReadingBlock`: what it makes of x, and x's keys and values."""
    own, mlp, D = block.attention, block.mlp, block.norm_mlp.weight.shape[0]
    asks = [own.q_proj, own.kv_proj]
    q, k, v = net.split(net.dense(x, _stacked(asks), _biases(asks), ranges.get(own.q_proj)), D, D, D)
    others = [net.join(mine, theirs, axis=1) for mine, theirs in zip((k, v), beside, strict=True)] if beside else [k, v]
    read = net.dense(net.attend(heads, q, *others)[0], own.o_proj.weight)
    norm = block.norm_attention
    x, _ = net.add_norm(x, read, norm.weight, norm.bias, norm.eps, own.o_proj.bias)
    up = net.dense(x, mlp.up_proj.weight, ranges=ranges.get(mlp.up_proj))
    up = net.op("BiasGelu", up, net.constant(mlp.up_proj.bias), domain="com.microsoft")
    down = net.dense(up, mlp.down_proj.weight, ranges=ranges.get(mlp.down_proj), by_row=True)
    norm = block.norm_mlp
    x, _ = net.add_norm(x, down, norm.weight, norm.bias, norm.eps, mlp.down_proj.bias)
    return x, k, v


def _row(student: SpanStudent, small: bool) -> Net:
    """What a row is to the decoder: positions [1, R, D] to their keys and values of each layer [1, H, R, d], and to
    their keys as beginnings, ends and arguments, each [1, R, D]."""
    net, D, blocks = Net(small), student.config.width, _decoder(student)
    keys = [student.key[kind] for kind in ("begin", "end", "argument")]
    weight = _stacked([*(block.pair.kv_proj for block in blocks), *keys])  # type: ignore[list-item]
    parts = net.split(net.dense(net.input("row", 1, "R", D), weight), *[D] * (2 * len(blocks) + 3))
    for part, name in zip(parts, _names("cross", len(blocks)), strict=False):
        net.output(name, net.heads(part, student.config.heads), 1, student.config.heads, "R", student.head_width)
    for part, name in zip(parts[-3:], ("begin", "end", "argument"), strict=True):
        net.output(name, part, 1, "R", D)
    return net


def _card(student: SpanStudent, small: bool) -> Net:
    """What a card [1, C, D] is to the decoder: its keys and values of each layer [1, H, C, d]."""
    net, D, blocks = Net(small), student.config.width, _decoder(student)
    weight = _stacked([block.tools.kv_proj for block in blocks])
    parts = net.split(net.dense(net.input("card", 1, "C", D), weight), *[D] * (2 * len(blocks)))
    for part, name in zip(parts, _names("seen", len(blocks)), strict=True):
        net.output(name, net.heads(part, student.config.heads), 1, student.config.heads, "C", student.head_width)
    return net


def _step(student: SpanStudent, small: bool, longest: int) -> Net:
    """n tokens further: their inputs [1, n, D] and the position of the first [1], for each layer the keys and values
    of the answer so far [1, H, P, d], of its row and of its cards, and the keys that may be pointed at [N, D]; to what
    is hidden [1, n, D], the scores of text, of the kinds of outcome and of what is said literally [1, n, V+5+4], how
    well each key fits [1, n, N], and the keys and values of the answer [1, H, P+n, d]."""
    net, config, blocks = Net(small), student.config, _decoder(student)
    D, H = config.width, config.heads
    x = net.input("x", 1, "n", D)
    position = net.input("position", 1, kind="int64")
    keys = net.input("keys", "N", D)
    rope = Rope.at(torch.arange(longest), D // H, config.rope_theta)
    cos, sin = net.constant(rope.cos), net.constant(rope.sin)
    kept = []
    normed = net.norm(x, blocks[0].norm_own.weight, None, blocks[0].norm_own.eps)
    for number, block in enumerate(blocks):
        past = [net.input(f"past_{part}_{number}", 1, H, "P", D // H) for part in "kv"]
        cross = [net.input(f"cross_{part}_{number}", 1, H, "R", D // H) for part in "kv"]
        seen = [net.input(f"seen_{part}_{number}", 1, H, "S", D // H) for part in "kv"]
        q, k, v = net.split(net.dense(normed, _stacked([block.own.q_proj, block.own.kv_proj])), D, D, D)
        q, k = (net.op("RotaryEmbedding", own, position, cos, sin, domain="com.microsoft") for own in (q, k))
        said, *own = net.attend(H, q, k, v, "", "", "", *past, outputs=3, unidirectional=1)
        kept += own
        normed, x = net.add_norm(x, net.dense(said, block.own.o_proj.weight), *_scale(block.norm_cross))
        asks = net.split(net.dense(normed, _stacked([block.pair.q_proj, block.tools.q_proj])), D, D)
        heard = [net.attend(H, mine, *theirs)[0] for mine, theirs in zip(asks, (cross, seen), strict=True)]
        both = torch.cat([block.pair.o_proj.weight, block.tools.o_proj.weight], dim=1)
        normed, x = net.add_norm(x, net.dense(net.join(*heard, axis=2), both), *_scale(block.norm_mlp))
        gates = _stacked([block.mlp.gate_proj, block.mlp.up_proj])
        gate, up = net.split(net.dense(normed, gates), *[config.hidden] * 2)
        gate = net.op("QuickGelu", gate, domain="com.microsoft", alpha=1.0)  # the activation of SwiGLU
        down = net.dense(net.op("Mul", gate, up), block.mlp.down_proj.weight)
        following = blocks[number + 1].norm_own if number + 1 < len(blocks) else student.norm_decoder
        normed, x = net.add_norm(x, down, *_scale(following))
    spelled = student.write.weight @ student.spell.weight
    small_heads = [student.gate, *([student.literal] if config.literal else [])]
    weight, bias = torch.cat([spelled, _stacked(small_heads)]), torch.cat([student.text_bias, _biases(small_heads)])
    text = net.dense(normed, weight, bias)
    pointed = net.op("FusedMatMul", normed, keys, domain="com.microsoft", transB=1, alpha=student.scale)
    net.output("hidden", normed, 1, "n", D)
    net.output("text", text, 1, "n", "V")
    net.output("pointed", pointed, 1, "n", "N")
    for name, part in zip(_names("present", len(blocks)), kept, strict=True):
        net.output(name, part, 1, H, "T", D // H)
    return net


def _names(what: str, layers: int) -> list[str]:
    return [f"{what}_{part}_{number}" for number in range(layers) for part in "kv"]


def _scale(norm: nn.LayerNorm) -> tuple[Tensor, None, float]:
    return norm.weight, None, norm.eps


def _stacked(parts: Sequence[nn.Linear]) -> Tensor:
    """One matrix for several projections of one input."""
    return torch.cat([part.weight for part in parts])


def _biases(parts: Sequence[nn.Linear]) -> Tensor:
    return torch.cat([part.bias for part in parts])


def _encoder(student: SpanStudent) -> list[ReadingBlock]:
    return list(student.encoder)  # type: ignore[arg-type]


def _decoder(student: SpanStudent) -> list[DecoderBlock]:
    return list(student.decoder)  # type: ignore[arg-type]
