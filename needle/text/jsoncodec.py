"""The codec `json`: the compact text of the calls, in the order of their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime

from needle.text.jsontext import DecodeError, dump, in_schema_order
from needle.text.pieces import Said
from needle.text.prompt import KINDS, Codec
from needle.text.records import Call, Missing, Tool
from needle.text.tokenizer import TextTokenizer

SYNTAX, NAME, KEY, VALUE = range(len(KINDS))


class JsonCodec(Codec):
    """Compact JSON in schema order, tokenised piece by piece: strings apart from the punctuation around them."""

    name = "json"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(
        self, calls: Sequence[Call], tools: Sequence[Tool], query: Sequence[int] | Said, missing: Missing | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        schemas = {tool.name: tool.parameters for tool in tools}
        rows = [
            {"name": call.name, "arguments": in_schema_order(call.arguments, schemas.get(call.name, {}))}
            for call in calls
        ]
        ids: list[int] = []
        for piece in _json_pieces(dump(rows)):
            ids.extend(self.tokenizer.encode(piece))
        ids.append(self.tokenizer.eos)
        return tuple(ids), (-1,) * len(ids)

    def kinds(self, ids: Sequence[int]) -> tuple[int, ...]:
        pieces = [self.tokenizer.raw(token) if token != self.tokenizer.eos else "" for token in ids]
        marks = _json_marks("".join(pieces))
        out, start = [], 0
        for piece in pieces:
            out.append(max(marks[start : start + len(piece)], default=SYNTAX))
            start += len(piece)
        return tuple(out)

    def decode(
        self,
        ids: Sequence[int],
        tools: Sequence[Tool],
        now: datetime | None = None,
        left_out: list[str] | None = None,
        said: Said | None = None,
        missing: list[Missing] | None = None,
    ) -> list[Call]:
        text = self.tokenizer.decode(ids)
        try:
            rows = json.loads(text)
            return [Call(str(row["name"]), dict(row["arguments"])) for row in rows]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DecodeError(f"not a list of calls: {text[:80]!r}") from error


def _json_pieces(text: str) -> list[str]:
    """Cuts JSON text so that the inside of each string is a piece of its own."""
    pieces: list[str] = []
    start = 0
    inside = escaped = False
    for index, char in enumerate(text):
        if inside and escaped:
            escaped = False
        elif inside and char == "\\":
            escaped = True
        elif char == '"':
            cut = index if inside else index + 1
            pieces.append(text[start:cut])
            start = cut
            inside = not inside
    pieces.append(text[start:])
    return [piece for piece in pieces if piece]


def _json_marks(text: str) -> list[int]:
    """For each character of a JSON list of calls, an index of `KINDS`."""
    marks = [SYNTAX] * len(text)
    depth = 0  # of braces: 1 is a call, 2 its arguments
    naming = False  # the next string is a tool's name
    for found in re.finditer(r'"((?:[^"\\]|\\.)*)"(:)?|[{}]|[^{}\[\],:"]+', text):
        symbol = found[0]
        depth += (symbol == "{") - (symbol == "}")
        if symbol in "{}":
            continue
        inside = found.span(1) if symbol[0] == '"' else found.span(0)
        is_key = bool(found[2])
        kind = (KEY if depth > 1 else SYNTAX) if is_key else NAME if naming else VALUE
        naming = is_key and depth == 1 and found[1] == "name"
        marks[slice(*inside)] = [kind] * (inside[1] - inside[0])
    return marks
