"""A local teacher: one checkpoint of any family, or several averaged into an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from needle.checkpoint import load_checkpoint, weights_fingerprint
from needle.prompt import Example
from needle.students.batch import collate, move


class LocalTeacher:
    """Says what one or more checkpoints think of target positions. All must share the student's tokenizer and codec."""

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders:
            raise ValueError("teacher=local needs teacher.checkpoint, a folder (or a list of them) that `needle train` wrote")
        self.checkpoints = [load_checkpoint(folder) for folder in folders]
        first = self.checkpoints[0]
        self.tokenizer = first.tokenizer
        self.codec_name = first.codec_name
        self.fingerprint = "+".join(weights_fingerprint(folder) for folder in folders)
        for checkpoint, folder in zip(self.checkpoints, folders, strict=True):
            self.check(checkpoint.tokenizer.fingerprint, checkpoint.codec_name, str(folder))

    def check(self, tokenizer: str, codec: str, who: str) -> None:
        """Raises ValueError when signals would be about other tokens than `who` writes."""
        if tokenizer != self.tokenizer.fingerprint:
            raise ValueError(
                f"the teacher's tokenizer is {self.tokenizer.fingerprint}, that of {who} {tokenizer}: signals must be about the same tokens; set tokenizer.path to the teacher's folder"
            )
        if codec != self.codec_name:
            raise ValueError(f"the teacher writes the codec '{self.codec_name}', {who} '{codec}'; set codec={self.codec_name}")

    @torch.no_grad()
    def log_probs(self, examples: Sequence[Example], device: torch.device) -> Tensor:
        """[B, T, V] normalised log-probabilities; an ensemble averages probabilities."""
        parts = []
        for checkpoint in self.checkpoints:
            student = checkpoint.student.to(device)
            batch = move(collate(examples, self.tokenizer, student.layout), device)
            parts.append(student(batch).float().log_softmax(-1))
        return torch.stack(parts).logsumexp(0) - torch.tensor(float(len(parts))).log()
