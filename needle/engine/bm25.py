"""Choosing among many tools by words alone: BM25 (Robertson and Zaragoza 2009), the baseline of `retrieve`. Needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from needle.data.rename import WORD
from needle.records import Tool

K1, B = 1.5, 0.75  # the usual saturation and length normalisation


class Bm25Retriever:
    """Ranks tools by the words that they share with the request."""

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
        return descending(scores)


def descending(scores: Sequence[float]) -> list[int]:
    """Indices by falling score; equal ones keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def _words(texts: Iterable[str]) -> list[str]:
    return [word.lower() for text in texts for word in WORD.findall(text)]


def _members(tool: Tool) -> list[str]:
    return [text for name, schema in tool.parameters.get("properties", {}).items() for text in (name, schema.get("description", ""))]
