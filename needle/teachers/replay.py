"""A recorded teacher: what it answered, one or several times a request, replayed without asking it again.

Three ways to learn from the answers in the records (`data.votes`):

value      distributions over the choices that an answer consists of (which tool, which argument, which value), pushed
           through the student's own tokens: choices that share a prefix add up. Beside the gold answer.
sequence   every distinct answer is a target of its own, weighted by its share: sequence-level Monte Carlo.
argmax     the likeliest answer is the target.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from needle.data.votes import Vote, votes
from needle.text.codecs import build_codec
from needle.text.prompt import Example, PromptError, Renderer
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer

Stored = dict[str, Tensor]  # one record's signal; the first dimension of each tensor is its target positions
Shares = Mapping[int, float]  # of the tokens that may come next


class ValueSignals:
    """Vote shares as distributions over the student's next token, along the record's own target.

    With the codec `decisions` a choice is judged at its decision, whatever was chosen for the other arguments; with
    `json` among the answers that are equal so far. Where no answer of the teacher has come this way, it says nothing.
    """

    rung = "value level: shares of the teacher's answers, pushed through the student's tokens"
    kind = "top_k"
    temperature = 1.0

    def __init__(self, tokenizer: TextTokenizer, codec: str, k: int) -> None:
        self.tokenizer, self.k = tokenizer, k
        self.codec_name, self.codec, self.renderer = codec, build_codec(codec, tokenizer), Renderer(tokenizer)
        self.identity: dict[str, Any] = {
            "teacher": "the records' own",
            "tokenizer": tokenizer.fingerprint,
            "codec": codec,
            "kind": "value",
            "k": k,
        }
        self.rebuild = "teacher=replay teacher.rung=value"

    @property
    def bytes_per_token(self) -> int:
        return self.k * 8 + 1

    def make(self, records: Sequence[Record], examples: Sequence[Example], device: torch.device) -> list[Stored]:
        """Raises `DataError` for a malformed `teacher` field."""
        return [self.signal(record, example, votes(record)) for record, example in zip(records, examples, strict=True)]

    def signal(self, record: Record, example: Example, found: Sequence[Vote]) -> Stored:
        """[T, K] ids and log-probabilities, and [T] whether the teacher says anything."""
        paths: dict[tuple[Any, ...], list[tuple[tuple[int, ...], float]]] = defaultdict(list)
        for vote in found:
            try:
                ids, _ = self.codec.encode(vote.calls, record.tools, example.said or example.query)
            except PromptError:  # an answer that the tools don't allow can't be written: its share goes to the others
                continue
            for place, tokens in self._steps(ids):
                paths[place].append((tokens, vote.share))
        rows: list[Shares] = []
        for place, tokens in self._steps(example.target):
            for position, _ in enumerate(tokens):
                shares: dict[int, float] = defaultdict(float)
                for other, share in paths[place]:
                    if other[:position] == tokens[:position] and len(other) > position:
                        shares[other[position]] += share
                rows.append(shares)
        return self._pack(rows)

    def _steps(self, ids: Sequence[int]) -> list[tuple[tuple[Any, ...], tuple[int, ...]]]:
        """An answer as decisions: where each is made, and the tokens that make it, the next label included."""
        if self.codec_name == "json":
            return [((), tuple(ids))]
        steps: list[tuple[tuple[Any, ...], tuple[int, ...]]] = []
        call, tool, taken = 0, -1, []
        argument: tuple[int, int] = (-1, 0)  # its label, and how often it came before: once for each item of a list
        times: Counter[int] = Counter()
        for token in ids:
            taken.append(token)
            if token == self.tokenizer.eos or token >= self.tokenizer.first_tool_label:
                steps.append(((call, tool, argument), tuple(taken)))
                taken = []
                if self.tokenizer.is_tool_label(token):
                    call, tool, argument = call + 1, token, (-1, 0)
                    times.clear()
                else:
                    argument = (token, times[token])
                    times[token] += 1
        return steps

    def _pack(self, rows: Sequence[Shares]) -> Stored:
        ids = torch.zeros(len(rows), self.k, dtype=torch.int32)
        log_probs = torch.full((len(rows), self.k), -torch.inf)
        for row, shares in enumerate(rows):
            top = sorted(shares.items(), key=lambda item: -item[1])[: self.k]
            unused = (token for token in range(self.tokenizer.size) if token not in shares)
            listed = [token for token, _ in top] + [
                next(unused) for _ in range(self.k - len(top))
            ]  # the rest is known to be zero
            ids[row] = torch.tensor(listed, dtype=torch.int32)
            if top:
                log_probs[row, : len(top)] = torch.tensor([share for _, share in top]).div(sum(shares.values())).log()
        return {"ids": ids, "log_probs": log_probs, "known": torch.tensor([bool(shares) for shares in rows])}
