"""Choosing a few tools among many before a student answers: by the student's own encoder, by words alone (BM25), or by
both.

A student that ranks (`can_rank`) scores each tool by itself against the request; the scores are those that its answer's
first token is made of, so that choosing needs no other network. A tool's key is computed once and kept. Those scores
are about the first call of an answer; words also find the tools of later ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Protocol

import numpy as np
from cachetools import LRUCache

from needle.engine.backend import Backend, Floats
from needle.engine.bm25 import Bm25Retriever, descending
from needle.text.prompt import RenderedTool
from needle.text.records import Record, Tool

CACHED_BYTES = 400_000_000  # of tools' keys


class Retriever(Protocol):
    """Whatever ranks tools."""

    def rank(self, query: str, tools: Sequence[Tool]) -> list[int]:
        """Indices of `tools`, the best first; equal ones keep their order."""


def build_retriever(backend: Backend) -> Retriever:
    """The best that a student can do: its own scores and BM25 in turn, or BM25 alone."""
    words = Bm25Retriever()
    return MergedRetriever(EncoderRetriever(backend), words) if backend.can_rank else words


class EncoderRetriever:
    """Ranks tools by a student's own scores."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.renderer = backend, backend.model.renderer
        self._keys: LRUCache[str, Floats] = LRUCache(CACHED_BYTES, getsizeof=lambda key: key.nbytes)
        self._lock = Lock()

    def rank(self, query: str, tools: Sequence[Tool]) -> list[int]:
        """Indices of `tools`, the best first; equal ones keep their order."""
        return descending(self.scores(query, [self.renderer.tool(tool) for tool in tools]).tolist())

    def scores(self, query: str, tools: Sequence[RenderedTool]) -> Floats:
        """[n]; products of keys, not probabilities."""
        if not tools:
            return np.zeros(0, np.float32)
        with self._lock:
            known = {tool.key: self._keys.get(tool.key) for tool in tools}
        missing = {tool.key: tool for tool in tools if known[tool.key] is None}
        if missing:
            keys = self.backend.tool_keys(list(missing.values()))
            known |= {name: row.copy() for name, row in zip(missing, keys, strict=True)}  # no views of all of them
            with self._lock:
                self._keys.update({name: key for name in missing if (key := known[name]) is not None})
        mine = np.stack([key for tool in tools if (key := known[tool.key]) is not None])
        scores: Floats = mine @ self.backend.request_key(self.renderer.prompt("", query, ()))
        return scores


class MergedRetriever:
    """Takes turns between two rankings: the first of each, then the second of each, and so on."""

    def __init__(self, encoder: EncoderRetriever, words: Bm25Retriever) -> None:
        self.encoder, self.words = encoder, words

    def rank(self, query: str, tools: Sequence[Tool]) -> list[int]:
        """Indices of `tools`, the best first."""
        pairs = zip(self.encoder.rank(query, tools), self.words.rank(query, tools), strict=True)
        return list(dict.fromkeys(index for pair in pairs for index in pair))


def recall_at(
    retriever: Retriever, records: Iterable[Record], tools: Sequence[Tool], ks: Sequence[int]
) -> dict[int, float]:
    """The share of records all of whose called tools are among the first k of `tools`, for each k. Records without a
    call don't count."""
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
