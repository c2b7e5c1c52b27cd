"""Byte-level BPE with reserved symbols for structure: markers of the prompt, and labels that point at tools and
arguments.

Any Unicode text round-trips. Text never becomes a reserved symbol, whatever it spells. Every vocabulary ends in
`TOOL_LABELS` labels for the tools of a record and `ARGUMENT_LABELS` for the arguments of one tool, in that order.
Where a student reads word pieces (`needle.text.pieces`), this is what it writes with, and `MEMBER_LABELS` labels for
the members of one enum and `PLACE_LABELS` for the pieces of a request stand before those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from needle.text.files import replacing
from needle.text.pieces import PIECES_FILE, Pieces

TOOL_LABELS = 128
ARGUMENT_LABELS = 64
MEMBER_LABELS = 512
PLACE_LABELS = 1024
MARKERS = ("<pad>", "<eos>", "<query>", "<answer>", "<tool>", "<arg>", "<item>", "<null>")
FILE_NAME = "tokenizer.json"

# Words (in names like getWeather, too), single digits and punctuation stand apart, each with the space before it, so
# that
# a value inside a request is made of the same tokens as the value alone.
SPLIT = r" ?\p{Lu}+(?!\p{Ll})| ?\p{Lu}?[^\P{L}\p{Lu}]+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+(?!\S)|\s+"


class TextTokenizer:
    """Text to token ids and back. `size` is V, the whole vocabulary, labels included.

    With `pieces`, requests and tools are read in these. `text_size` tokens are no labels.
    """

    def __init__(self, tokenizer: Tokenizer, pieces: Pieces | None = None) -> None:
        self._tokenizer = tokenizer
        self.pieces = pieces
        self._tokenizer.encode_special_tokens = True  # text that spells a reserved symbol stays text
        self.size: int = tokenizer.get_vocab_size()
        self.pad, self.eos, self.query, self.answer, self.tool, self.argument, self.item, self.null = (
            self._id(marker) for marker in MARKERS
        )
        self.first_argument_label = self.size - ARGUMENT_LABELS
        self.first_tool_label = self.first_argument_label - TOOL_LABELS
        self.first_place = self.first_tool_label - PLACE_LABELS if pieces else self.first_tool_label
        self.first_member = self.first_place - MEMBER_LABELS if pieces else self.first_tool_label
        self.text_size = self.first_member
        self.json: str = tokenizer.to_str()
        whole = self.json + (pieces.json if pieces else "")
        self.fingerprint: str = hashlib.sha256(whole.encode()).hexdigest()[:16]
        self._cache: dict[str, tuple[int, ...]] = {}
        self._edges: dict[int, tuple[bool, bool]] = {}

    def _id(self, symbol: str) -> int:
        token = self._tokenizer.token_to_id(symbol)
        if token is None:
            raise ValueError(f"the tokenizer has no '{symbol}': it wasn't made by needle")
        return int(token)

    @classmethod
    def train(cls, texts: Iterable[str], size: int = 8192, pieces: Pieces | None = None) -> TextTokenizer:
        """Trains on `texts`; the result has at most `size` entries, labels and markers included (256 bytes and 200
        reserved at least; with `pieces` 1,736)."""
        labels = [tool_label(i) for i in range(TOOL_LABELS)] + [argument_label(i) for i in range(ARGUMENT_LABELS)]
        if pieces:
            labels = [f"<member_{i}>" for i in range(MEMBER_LABELS)] + [
                *(f"<place_{i}>" for i in range(PLACE_LABELS)),
                *labels,
            ]
        reserved = len(MARKERS) + len(labels)
        if size < reserved + 256:
            raise ValueError(
                f"a vocabulary of {size} entries can't hold 256 bytes and {reserved} reserved symbols; give at least"
                f" {reserved + 256}"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - len(labels),
            special_tokens=list(MARKERS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            min_frequency=2,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.add_special_tokens(labels)
        return cls(tokenizer, pieces)

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """Reads `tokenizer.json`, or the folder that holds one."""
        file = path / FILE_NAME if path.is_dir() else path
        pieces = file.parent / PIECES_FILE
        try:
            return cls(Tokenizer.from_file(str(file)), Pieces.load(pieces) if pieces.is_file() else None)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{file} isn't a tokenizer that can be read: {error}") from error

    def save(self, folder: Path) -> None:
        """Writes beside the name and renames, so that a crash never leaves half a file."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / FILE_NAME) as temporary:
            temporary.write_text(self.json, encoding="utf-8")
        if self.pieces:
            self.pieces.save(folder)

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of `text`; cached, since names, descriptions and enum members come again and again."""
        ids = self._cache.get(text)
        if ids is None:
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
            if len(self._cache) < 200_000 and len(text) < 200:
                self._cache[text] = ids
        return ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The first character of each of the ids of `text`, and the one behind its last."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; reserved symbols have none. Bytes that aren't UTF-8 come back as U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def joined(self, ids: Sequence[int]) -> list[bool]:
        """For each of `ids`, whether it goes on with the word or number that the one before it is part of."""
        edges = [self._edge(token) for token in ids]
        return [begins and before for (begins, _), (_, before) in zip(edges, [(False, False), *edges], strict=False)]

    def _edge(self, token: int) -> tuple[bool, bool]:
        """Whether a token begins, and whether it ends, in a letter or digit."""
        if token not in self._edges:
            text = self.decode((token,))
            self._edges[token] = (text[:1].isalnum(), text[-1:].isalnum())
        return self._edges[token]

    def raw(self, token: int) -> str:
        """A token's bytes, one character each, in the alphabet of byte-level BPE; a reserved symbol's own name."""
        return str(self._tokenizer.id_to_token(token))

    def is_tool_label(self, token: int) -> bool:
        return self.first_tool_label <= token < self.first_argument_label

    def is_argument_label(self, token: int) -> bool:
        return token >= self.first_argument_label


def tool_label(index: int) -> str:
    return f"<tool_{index}>"


def argument_label(index: int) -> str:
    return f"<arg_{index}>"
