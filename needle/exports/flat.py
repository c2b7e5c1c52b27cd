"""Students that read tools and request in one row as graphs: what `needle.engine.flatonnx` puts together.

Keys and values that queries share are repeated for each of them; gates are part of the matrix in front of them.

Legend: n positions, P positions before, R of a prompt, D width, H heads, d width of a head, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from needle.exports.net import MS, Net
from needle.students.base import RMSNorm, Rope, SwiGLU
from needle.students.causal import Block, CausalStudent, LlamaStudent, SeedStudent
from needle.students.san import Branch, Layer, SanStudent


def causal_graphs(student: CausalStudent, small: bool, longest: int) -> dict[str, Net]:
    """`step`: n embedded tokens [1, n, D], the position of the first [1] and each layer's keys and values of those
    before [1, H, P, d], to the scores behind the last [1, 1, V] and the keys and values of all."""
    net, width, blocks = Net(small), student.embed_tokens.embedding_dim, _blocks(student)
    heads, head = blocks[0].self_attn.heads, blocks[0].self_attn.head
    turn = _Turn(net, longest, head, student.theta) if isinstance(student, LlamaStudent) else None
    x = net.input("x", 1, "n", width)
    if turn is not None:
        turn.position = net.input("position", 1, kind="int64")
    kept = []
    for number, block in enumerate(blocks):
        own, past = block.self_attn, _past(net, number, heads, head)
        normed = _norm(net, x, block.input_layernorm)
        q, k, v = (_projected(net, normed, part, heads, head) for part in (own.q_proj, own.k_proj, own.v_proj))
        if turn is not None:
            q, k = turn(q), turn(k)
        said, *mine = net.attend(heads, q, k, v, "", "", "", *past, outputs=3, unidirectional=1)
        kept += mine
        x = net.op("Add", x, net.dense(said, own.o_proj.weight, own.o_proj.bias))
        x = net.op("Add", x, _mlp(net, _norm(net, x, block.post_attention_layernorm), block.mlp))
    own_head = student.lm_head if isinstance(student, SeedStudent) else None
    table = student.embed_tokens.weight if own_head is None else own_head.weight
    last = net.op("Slice", _norm(net, x, student.norm), *_last(net))
    net.output("scores", net.dense(last, table), 1, 1, student.vocabulary)
    _keep(net, kept, heads, head)
    return {"step": net}


def san_graphs(student: SanStudent, small: bool, longest: int) -> dict[str, Net]:
    """`prompt`: an embedded prompt [1, R, D] to each decoder layer's keys and values of it [1, H, R, d]; `step`: as
    that of `causal_graphs`, with these in front of the keys and values before."""
    config = student.config
    heads, head = config.heads, config.width // config.heads
    prompt = Net(small)
    turn = _Turn(prompt, longest, head, config.rope_theta)
    x = prompt.input("x", 1, "R", config.width)
    turn.position = prompt.constant(np.zeros(1, np.int64))
    for layer in _layers(student.encoder):
        x, _ = _own(prompt, layer, x, turn, heads, None)
        x = _feed(prompt, layer, x)
    x = _norm(prompt, x, student.norm_encoder)
    for number, layer in enumerate(_layers(student.decoder)):
        assert layer.cross is not None
        keys, values = _keys_values(prompt, layer.cross, x, heads, head)
        for part, value in (("k", keys), ("v", values)):
            prompt.output(f"prompt_{part}_{number}", prompt.heads(value, heads), 1, heads, "R", head)
    net, kept = Net(small), []
    turn = _Turn(net, longest, head, config.rope_theta)
    x, turn.position = net.input("x", 1, "n", config.width), net.input("position", 1, kind="int64")
    for number, layer in enumerate(_layers(student.decoder)):
        assert layer.cross is not None
        assert layer.norm_cross is not None
        read = [net.input(f"prompt_{part}_{number}", 1, heads, "R", head) for part in "kv"]
        x, mine = _own(net, layer, x, turn, heads, _past(net, number, heads, head))
        kept += mine
        asked = _queries(net, layer.cross, _norm(net, x, layer.norm_cross), heads, head)
        heard = net.attend(heads, asked, *read)[0]
        x = net.op("Add", x, net.dense(heard, _gated(layer, 1) * layer.cross.o_proj.weight))
        x = _feed(net, layer, x)
    last = net.op("Slice", _norm(net, x, student.norm_decoder), *_last(net))
    net.output("scores", net.dense(last, student.embed.weight), 1, 1, student.vocabulary)
    _keep(net, kept, heads, head)
    return {"prompt": prompt, "step": net}


def _blocks(student: CausalStudent) -> list[Block]:
    return list(student.layers)  # type: ignore[arg-type]


def _layers(layers: nn.ModuleList) -> list[Layer]:
    return list(layers)  # type: ignore[arg-type]


class _Turn:
    """Rotates queries or keys [1, n, D] from a position on."""

    def __init__(self, net: Net, longest: int, head: int, theta: float) -> None:
        rope = Rope.at(torch.arange(longest), head, theta)
        self.net, self.cos, self.sin, self.position = net, net.constant(rope.cos), net.constant(rope.sin), ""

    def __call__(self, x: str) -> str:
        return self.net.op("RotaryEmbedding", x, self.position, self.cos, self.sin, domain=MS)


def _past(net: Net, number: int, heads: int, head: int) -> list[str]:
    return [net.input(f"past_{part}_{number}", 1, heads, "P", head) for part in "kv"]


def _keep(net: Net, kept: list[str], heads: int, head: int) -> None:
    for place, own in enumerate(kept):
        net.output(f"present_{'kv'[place % 2]}_{place // 2}", own, 1, heads, "T", head)


def _last(net: Net) -> list[str]:
    """What cuts the last of n positions off."""
    return [net.constant(np.asarray([value], np.int64)) for value in (-1, np.iinfo(np.int64).max, 1)]


def _norm(net: Net, x: str, norm: nn.Module) -> str:
    if isinstance(norm, RMSNorm):
        return net.rms(x, norm.weight.detach().float() + norm.offset, norm.eps)
    assert isinstance(norm, nn.LayerNorm)
    return net.norm(x, norm.weight, norm.bias, norm.eps)


def _mlp(net: Net, x: str, mlp: nn.Module) -> str:
    if isinstance(mlp, SwiGLU):
        return _swiglu(net, x, mlp, torch.ones(()))
    assert isinstance(mlp, nn.Sequential)
    up, down = mlp[0], mlp[2]
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    return net.dense(net.op("Gelu", net.dense(x, up.weight, up.bias), domain=MS), down.weight, down.bias)


def _swiglu(net: Net, x: str, mlp: SwiGLU, gate: Tensor) -> str:
    open_, up = (net.dense(x, part.weight) for part in (mlp.gate_proj, mlp.up_proj))
    product = net.op("Mul", net.op("QuickGelu", open_, domain=MS, alpha=1.0), up)
    return net.dense(product, gate * mlp.down_proj.weight)


def _own(net: Net, layer: Layer, x: str, turn: _Turn, heads: int, past: list[str] | None) -> tuple[str, list[str]]:
    """A layer's attention to its own row: both ways, or behind what is `past`."""
    head, normed = layer.own.head, _norm(net, x, layer.norm_own)
    q = turn(_queries(net, layer.own, normed, heads, head))
    k, v = _keys_values(net, layer.own, normed, heads, head)
    rest = [] if past is None else ["", "", "", *past]
    more = {} if past is None else {"outputs": 3, "unidirectional": 1}
    said, *kept = net.attend(heads, q, turn(k), v, *rest, **more)  # type: ignore[arg-type]
    return net.op("Add", x, net.dense(said, _gated(layer, 0) * layer.own.o_proj.weight)), kept


def _feed(net: Net, layer: Layer, x: str) -> str:
    if layer.mlp is None or layer.norm_mlp is None:
        return x
    return net.op("Add", x, _swiglu(net, _norm(net, x, layer.norm_mlp), layer.mlp, _gated(layer, len(layer.gates) - 1)))


def _gated(layer: Layer, number: int) -> Tensor:
    return layer.gates.detach().float()[number].sigmoid()


def _queries(net: Net, branch: Branch, x: str, heads: int, head: int) -> str:
    return _normed(net, net.dense(x, branch.q_proj.weight), branch.norm_q, heads, head)


def _keys_values(net: Net, branch: Branch, x: str, heads: int, head: int) -> tuple[str, str]:
    k, v = (net.dense(x, _repeated(part.weight, heads, head)) for part in (branch.k_proj, branch.v_proj))
    return _normed(net, k, branch.norm_k, heads, head), v


def _normed(net: Net, x: str, norm: RMSNorm, heads: int, head: int) -> str:
    """[1, n, H*d], each head normed by itself."""
    apart = net.op("Reshape", x, net.constant(np.asarray([0, 0, heads, head], np.int64)))
    return net.op("Reshape", _norm(net, apart, norm), net.constant(np.asarray([0, 0, heads * head], np.int64)))


def _projected(net: Net, x: str, part: nn.Linear, heads: int, head: int) -> str:
    bias = None if part.bias is None else _repeated(part.bias, heads, head)
    return net.dense(x, _repeated(part.weight, heads, head), bias)


def _repeated(weight: Tensor, heads: int, head: int) -> Tensor:
    """[G*d, D], or [G*d], to one for each of the H heads."""
    groups = weight.detach().float().unflatten(0, (-1, head))  # type: ignore[no-untyped-call]
    repeated: Tensor = groups.repeat_interleave(heads // groups.shape[0], dim=0).flatten(0, 1)
    return repeated
