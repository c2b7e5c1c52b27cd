"""Choosing among many tools by words alone: BM25 (Robertson and Zaragoza 2009), the baseline of `retrieve`. Needs no
torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from needle.text.records import Tool
from needle.text.words import WORD

K1, B = 1.5, 0.75  # the usual saturation and length normalisation


class Bm25Retriever:
    """Ranks tools by the words that they share with the request."""

    def rank(self, query: str, tools: Sequence[Tool]) -> list[int]:
        """Indices of `tools`, the best first; equal ones keep their order."""
        documents = [_counted("\n".join((tool.name, tool.description, *_members(tool)))) for tool in tools]
        lengths = [document.total() for document in documents]
        mean = sum(lengths) / max(len(documents), 1)
        scores = [0.0] * len(documents)
        for word in dict.fromkeys(_words(query)):  # in one order: sums of floats depend on it
            found = [index for index, document in enumerate(documents) if word in document]
            weight = math.log(1 + (len(documents) - len(found) + 0.5) / (len(found) + 0.5))
            for index in found:
                count = documents[index][word]
                scores[index] += (
                    weight * count * (K1 + 1) / (count + K1 * (1 - B + B * lengths[index] / max(mean, 1e-9)))
                )
        return descending(scores)


def descending(scores: Sequence[float]) -> list[int]:
    """Indices by falling score; equal ones keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


@lru_cache(maxsize=100_000)
def _counted(text: str) -> Counter[str]:
    return Counter(_words(text))


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _members(tool: Tool) -> list[str]:
    return [
        text
        for name, schema in tool.parameters.get("properties", {}).items()
        for text in (name, schema.get("description", ""))
    ]
