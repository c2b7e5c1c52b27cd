"""A local teacher: one checkpoint of any family, or several averaged into an ensemble.

A teacher that shares the student's tokenizer and codec is asked about the student's own target positions. One that
doesn't still teaches, by whole values (`SampledAnswers`) or by pieces of text (`ByteSpans`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from needle.engine.decode import Engine, Request
from needle.losses.loss import draw
from needle.students.base import Trace
from needle.students.batch import Batch, move
from needle.students.checkpoint import Checkpoint, load_checkpoint
from needle.teachers.replay import Stored, ValueSignals
from needle.text.codecs import VERSIONS
from needle.text.folder import weights_fingerprint
from needle.text.prompt import Example, render_record
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer


class LocalTeacher:
    """Says what one or more checkpoints think of target positions."""

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders:
            raise ValueError(
                "teacher=local needs teacher.checkpoint, a folder (or a list of them) that `needle train` wrote"
            )
        self.folders = list(folders)
        self.checkpoints = [load_checkpoint(folder) for folder in folders]
        self.tokenizer: TextTokenizer = self.checkpoints[0].tokenizer
        self.codec_name = self.checkpoints[0].codec_name
        self.fingerprint = "+".join(weights_fingerprint(folder) for folder in folders)
        for checkpoint, folder in zip(self.checkpoints, folders, strict=True):
            self.check(checkpoint.tokenizer.fingerprint, checkpoint.codec_name, str(folder))

    def check(self, tokenizer: str, codec: str, who: str) -> None:
        """Raises ValueError when signals would be about other tokens than `who` writes."""
        if tokenizer != self.tokenizer.fingerprint:
            raise ValueError(
                f"the teacher's tokenizer is {self.tokenizer.fingerprint}, that of {who} {tokenizer}: signals must be"
                " about the same tokens; set tokenizer.path to the teacher's folder, or teach by values or pieces of"
                " text with teacher.rung=value or teacher.rung=span"
            )
        if codec != self.codec_name:
            setting = next((name for name, stored in VERSIONS.items() if stored == self.codec_name), self.codec_name)
            raise ValueError(
                f"the teacher writes the codec '{self.codec_name}', {who} '{codec}'; set codec={setting}, or"
                " teacher.rung=value"
            )

    @torch.no_grad()
    def log_probs(
        self, examples: Sequence[Example], device: torch.device, batch: Batch | None = None, trace: Trace | None = None
    ) -> Tensor:
        """[B, T, V] normalised log-probabilities; an ensemble averages probabilities. `trace` sees the only
        checkpoint's insides.

        `batch` is what these examples are as tensors, if somebody knows.
        """
        parts: list[Tensor] = []
        for checkpoint in self.checkpoints:
            student = checkpoint.student.to(device)
            if batch is None or not isinstance(batch, student.batch_type):
                ready: Batch = move(student.collate(examples, self.tokenizer), device)
            else:
                ready = batch
            parts.append(student(ready, trace).float().log_softmax(-1))
        if len(parts) == 1:
            return parts[0]
        return torch.stack(parts).logsumexp(0) - torch.tensor(float(len(parts))).log()

    def white_box(self) -> Checkpoint:
        """The checkpoint to look into; raises ValueError for an ensemble, whose members' insides have no mean."""
        if len(self.checkpoints) > 1:
            raise ValueError(
                "loss.hidden and loss.attention look into one teacher; give one teacher.checkpoint instead of an"
                " ensemble"
            )
        return self.checkpoints[0]

    def named(self) -> str:
        return "teacher=local teacher.checkpoint=[" + ",".join(str(folder) for folder in self.folders) + "]"


class TokenSignals:
    """A white box that shares the tokenizer: the K likeliest tokens with an exact tail, or K drawn ones, at one
    temperature."""

    rung = "white box: a local teacher that shares the tokenizer"

    def __init__(self, teacher: LocalTeacher, kind: str, k: int, temperature: float, seed: int = 0) -> None:
        self.teacher, self.kind, self.temperature, self.seed = teacher, kind, temperature, seed
        self.k = min(k, teacher.tokenizer.size)
        self.identity: dict[str, Any] = {
            "teacher": teacher.fingerprint,
            "tokenizer": teacher.tokenizer.fingerprint,
            "codec": teacher.codec_name,
            "kind": kind,
            "k": self.k,
        }
        self.identity |= {"temperature": temperature, **({"seed": seed} if kind == "sampled" else {})}
        self.rebuild = f"{teacher.named()} teacher.rung={kind} teacher.k={k} loss.temperature={temperature:g}"

    @property
    def bytes_per_token(self) -> int:
        return self.k * 8 + 4

    def make(self, records: Sequence[Record], examples: Sequence[Example], device: torch.device) -> list[Stored]:
        log_probs = self.teacher.log_probs(examples, device)
        if self.kind == "top_k":
            tempered = (log_probs / self.temperature).log_softmax(-1)
            top = tempered.topk(self.k, dim=-1)
            tail = tempered.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
            parts = {"ids": top.indices.to(torch.int32).cpu(), "log_probs": top.values.cpu(), "tail": tail.cpu()}
            return [
                {name: part[row, : len(example.target)] for name, part in parts.items()}
                for row, example in enumerate(examples)
            ]
        out = []
        for row, example in enumerate(examples):
            random = torch.Generator().manual_seed(
                hash((self.seed, example.query, example.target)) % 2**63
            )  # hashes of numbers are the same in every process
            signal = draw(log_probs[row, : len(example.target)].cpu(), self.k, self.temperature, random)
            assert signal.ids is not None
            assert signal.entropy is not None
            out.append({"ids": signal.ids.to(torch.int32), "log_probs": signal.log_probs, "entropy": signal.entropy})
        return out


class SampledAnswers(ValueSignals):
    """Any local teacher, whatever its tokenizer: its sampled answers' shares, pushed through the student's tokens."""

    rung = "value level: shares of answers sampled from a local teacher, pushed through the student's tokens"

    def __init__(
        self, teacher: LocalTeacher, tokenizer: TextTokenizer, codec: str, k: int, samples: int, seed: int = 0
    ) -> None:
        super().__init__(tokenizer, codec, k)
        self.engine, self.samples, self.seed = Engine(teacher.checkpoints[0]), samples, seed
        if len(teacher.checkpoints) > 1:
            raise ValueError(
                "teacher.rung=value samples from one teacher; give one teacher.checkpoint instead of an ensemble"
            )
        self.identity |= {"teacher": teacher.fingerprint, "samples": samples, "seed": seed}
        self.rebuild = f"{teacher.named()} teacher.rung=value teacher.samples={samples}"

    def make(self, records: Sequence[Record], examples: Sequence[Example], device: torch.device) -> list[Stored]:
        requests = [Request(record.query, record.tools, record.id) for record in records]
        drawn = [
            self.engine.answer_all(requests, sample=self.seed * self.samples + sample) for sample in range(self.samples)
        ]
        said = [
            [{"calls": [call.to_json() for call in answer.calls]} for answer in answers if answer.calls is not None]
            for answers in zip(*drawn, strict=True)
        ]
        return super().make(
            [replace(record, teacher={"answers": answers}) for record, answers in zip(records, said, strict=True)],
            examples,
            device,
        )


class ByteSpans:
    """A white box with another tokenizer: how likely it finds each piece of the target between bytes where both
    tokenizers end."""

    rung = "byte spans: pieces of the target's text on whose ends both tokenizers agree"
    kind = "span"
    temperature = 1.0
    bytes_per_token = 8

    def __init__(self, teacher: LocalTeacher, tokenizer: TextTokenizer, codec: str) -> None:
        if not (codec.startswith("decisions") and teacher.codec_name.startswith("decisions")):
            raise ValueError(
                f"teacher.rung=span needs codec=decisions on both sides; the student writes '{codec}', the teacher"
                f" '{teacher.codec_name}'"
            )
        self.teacher, self.tokenizer = teacher, tokenizer
        checkpoint = teacher.checkpoints[0]
        self.renderer, self.codec = checkpoint.renderer, checkpoint.codec
        self.identity: dict[str, Any] = {
            "teacher": teacher.fingerprint,
            "tokenizer": tokenizer.fingerprint,
            "codec": codec,
            "kind": "span",
        }
        self.rebuild = f"{teacher.named()} teacher.rung=span"

    def make(self, records: Sequence[Record], examples: Sequence[Example], device: torch.device) -> list[Stored]:
        theirs = [render_record(self.renderer, self.codec, record) for record in records]
        log_probs = self.teacher.log_probs(theirs, device).cpu()
        out = []
        for row, (ours, other) in enumerate(zip(examples, theirs, strict=True)):
            said = log_probs[row, : len(other.target)].gather(1, torch.tensor(other.target)[:, None])[:, 0]
            mine, yours = shared_spans(ends(ours.target, self.tokenizer), ends(other.target, self.teacher.tokenizer))
            whole = torch.zeros(len(ours.target)).index_add(
                0, torch.tensor(yours), said
            )  # spans are never more than our tokens
            out.append({"span": torch.tensor(mine, dtype=torch.int32), "log_probs": whole})
        return out


def ends(ids: Sequence[int], tokenizer: TextTokenizer) -> list[int]:
    """Where each target token ends, counted in symbols: a label, a marker and each byte of a value are one.

    The space in front of a value doesn't count: whether it is written depends on the tokenizer. A token that holds
    nothing else ends where the next one does.
    """
    out, place, fresh = [], 0, False
    for token in ids:
        text = tokenizer.raw(token)
        special = token >= tokenizer.first_tool_label or token <= tokenizer.null
        size = 1 if special else len(text) - (fresh and text.startswith("Ġ"))
        place += size
        out.append(place)
        fresh = special or (fresh and size == 0)
    for index in range(len(out) - 2, -1, -1):
        if out[index] == (out[index - 1] if index else 0):
            out[index] = out[index + 1]
    return out


def shared_spans(mine: Sequence[int], yours: Sequence[int]) -> tuple[list[int], list[int]]:
    """For the tokens of both sides, which common span each belongs to; spans end where both sides have a token's
    end."""
    common = sorted(set(mine) & set(yours))
    number = {end: index for index, end in enumerate(common)}

    def place(own: Sequence[int]) -> list[int]:
        found, current = [], len(common) - 1
        for end in reversed(own):
            current = number.get(end, current)
            found.append(current)
        return found[::-1]

    return place(mine), place(yours)
