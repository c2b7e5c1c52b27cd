"""Choosing a few tools among many before a student answers: by the student's own encoder, or by words alone (BM25).

A pointer student scores each tool by itself against the request; the scores are those that its answer's first token is
made of, so that choosing needs no other network. A tool's key is computed once and kept.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from needle.data.rename import WORD
from needle.prompt import Example, RenderedTool, Renderer
from needle.records import Record, Tool
from needle.students.batch import collate, move
from needle.students.pointer import PointerStudent

KEPT = 100_000  # keys of D numbers each
K1, B = 1.5, 0.75  # BM25's usual saturation and length normalisation


class EncoderRetriever:
    """Ranks tools by a pointer student's own scores."""

    def __init__(self, student: PointerStudent, renderer: Renderer) -> None:
        self.student, self.renderer = student, renderer
        self._keys: OrderedDict[str, Tensor] = OrderedDict()

    @torch.inference_mode()
    def rank(self, query: str, tools: Sequence[Tool]) -> list[int]:
        """Indices of `tools`, the best first; equal ones keep their order."""
        return _descending(self.scores(query, [self.renderer.tool(tool) for tool in tools]).tolist())

    @torch.inference_mode()
    def scores(self, query: str, tools: Sequence[RenderedTool]) -> Tensor:
        """[n] in float32; products of keys, not probabilities."""
        missing = {tool.key: tool for tool in tools if tool.key not in self._keys}
        if missing:
            keys = self.student.tool_keys([tool.ids for tool in missing.values()])
            self._keys |= dict(zip(missing, keys.unbind(0), strict=True))
        for tool in tools:
            self._keys.move_to_end(tool.key)
        mine = torch.stack([self._keys[tool.key] for tool in tools])
        while len(self._keys) > KEPT:
            self._keys.popitem(last=False)
        batch = collate([Example("", self.renderer.query(query), ())], self.renderer.tokenizer, self.student.layout)
        request = self.student.request_keys(move(batch, mine.device))[0]
        return (mine @ request).float().cpu()


class Bm25Retriever:
    """Ranks tools by the words that they share with the request (Robertson and Zaragoza 2009): the baseline."""

    def rank(self, query: str, tools: Sequence[Tool]) -> list[int]:
        """Indices of `tools`, the best first; equal ones keep their order."""
        documents = [Counter(_words([tool.name, tool.description, *_members(tool)])) for tool in tools]
        mean = sum(sum(document.values()) for document in documents) / max(len(documents), 1)
        seen = Counter(word for document in documents for word in document)
        scores = [0.0] * len(documents)
        for word in set(_words([query])):
            weight = math.log(1 + (len(documents) - seen[word] + 0.5) / (seen[word] + 0.5))
            for index, document in enumerate(documents):
                length = sum(document.values()) / max(mean, 1e-9)
                scores[index] += weight * document[word] * (K1 + 1) / (document[word] + K1 * (1 - B + B * length))
        return _descending(scores)


def recall_at(retriever: EncoderRetriever | Bm25Retriever, records: Iterable[Record], tools: Sequence[Tool], ks: Sequence[int]) -> dict[int, float]:
    """The share of records all of whose called tools are among the first k of `tools`, for each k. Records without a call don't count."""
    hits, count = dict.fromkeys(ks, 0), 0
    index = {tool.name: number for number, tool in enumerate(tools)}
    for record in records:
        wanted = {index[call.name] for call in record.answers}
        if not wanted:
            continue
        count += 1
        order = retriever.rank(record.query, tools)
        worst = max(order.index(number) for number in wanted)
        for k in ks:
            hits[k] += worst < k
    return {k: hit / max(count, 1) for k, hit in hits.items()}


def _descending(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def _words(texts: Iterable[str]) -> list[str]:
    return [word.lower() for text in texts for word in WORD.findall(text)]


def _members(tool: Tool) -> list[str]:
    return [text for name, schema in tool.parameters.get("properties", {}).items() for text in (name, schema.get("description", ""))]
