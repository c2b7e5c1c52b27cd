"""How large the inputs of a student's projections get, channel by channel: what rounding to eight bits has to bear."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from needle.engine.decode import Engine, Request
from needle.students.checkpoint import Checkpoint
from needle.text.records import Record

Ranges = dict[nn.Module, Tensor]


def input_ranges(checkpoint: Checkpoint, records: Sequence[Record]) -> Ranges:
    """[in] the largest magnitude of each channel, of every linear layer that took part in answering these."""
    found: Ranges = {}

    def watch(module: nn.Module) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            most = inputs[0].detach().float().abs().flatten(0, -2)
            if len(most):
                found[module] = torch.maximum(found.get(module, torch.zeros(most.shape[1])), most.amax(0).cpu())

        return note

    hooks = [
        module.register_forward_pre_hook(watch(module))
        for module in checkpoint.student.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        Engine(checkpoint).answer_all([Request(record.query, record.tools) for record in records], batch_size=1)
    finally:
        for hook in hooks:
            hook.remove()
    return found
