"""How a student reads: uncased word pieces, whatever case, width or accents the text has, and where each stands in it.

What was read is given back from the text's own characters, so nothing is lost by folding: `PLAY` and `play` are one
piece with two features (`CASES`), full-width letters and typographic quotes are the plain ones, and the end of a line
is a piece of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from needle.text.files import replacing

PIECES_FILE = "pieces.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # padding, what no piece spells, a request or tool, an argument
CASES = ("untold", "lower", "title", "upper", "mixed")
LINE = "\u00b6"  # stands for the end of a line
EDGE = "\0"  # stands between words that are compared
UNTOLD = "\x01"  # a word that no piece spells, which is like none
WITHIN = "-_./:,'"  # what may stand in a name or not: "lo-fi" is "lo fi"
PLAIN = {"[\u2018\u2019\u201b`\u00b4]": "'", "[\u201c\u201d\u201e\u00ab\u00bb]": '"', "[\u2010-\u2015\u2212]": "-"}


@dataclass(frozen=True)
class Reading:
    """A text as pieces: their ids, the case of each (an index of `CASES`), and its characters, first and behind the
    last."""

    ids: tuple[int, ...]
    cases: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Said:
    """What somebody said, and the characters of each of its pieces."""

    text: str
    offsets: tuple[tuple[int, int], ...]

    @cached_property
    def starts(self) -> Mapping[int, int]:
        """The piece that begins at a character."""
        return {start: index for index, (start, _) in reversed(list(enumerate(self.offsets)))}

    @cached_property
    def ends(self) -> Mapping[int, int]:
        """The piece that ends before a character."""
        return {end: index for index, (_, end) in enumerate(self.offsets)}

    def part(self, first: int, last: int) -> str:
        """The characters from one piece to another, both included."""
        return self.text[self.offsets[first][0] : self.offsets[last][1]]

    def whole(self, first: int, last: int) -> bool:
        """Whether no word or number goes on beyond these pieces."""
        start, end = self.offsets[first][0], self.offsets[last][1]
        return not (_inside(self.text, start) or _inside(self.text, end))

    def places(self, text: str) -> list[tuple[int, int]]:
        """The first and the last piece wherever these characters stand, if pieces begin and end with them."""
        found, at = [], self.text.find(text) if text else -1
        while at >= 0:
            first, last = self.starts.get(at), self.ends.get(at + len(text))
            if first is not None and last is not None and first <= last:
                found.append((first, last))
            at = self.text.find(text, at + 1)
        return found


def _inside(text: str, place: int) -> bool:
    return 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum()


class Pieces:
    """Text to pieces. Ids of `SPECIAL` are 0 to 3."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size: int = tokenizer.get_vocab_size()
        self.pad, self.unknown, self.begin, self.argument = range(len(SPECIAL))
        found = [tokenizer.token_to_id(name) for name in SPECIAL]
        if found != list(range(len(SPECIAL))):
            raise ValueError(f"the pieces don't begin with {', '.join(SPECIAL)}: they weren't made by needle")
        self.json: str = tokenizer.to_str()
        self.fingerprint: str = hashlib.sha256(self.json.encode()).hexdigest()[:16]
        self._cache: dict[str, Reading] = {}

    @classmethod
    def of(cls, vocabulary: Sequence[str]) -> Pieces:
        """Pieces of a vocabulary, the specials in front."""
        words = list(dict.fromkeys([*SPECIAL, *vocabulary]))
        model = models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
        model.max_input_chars_per_word = 64
        return cls(_folding(Tokenizer(model)))

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> Pieces:
        """At most `size` pieces, fitted to texts."""
        tokenizer = _folding(Tokenizer(models.WordPiece(unk_token="[UNK]")))
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        vocabulary = tokenizer.get_vocab()
        return cls.of(sorted(vocabulary, key=vocabulary.__getitem__))

    @classmethod
    def load(cls, file: Path) -> Pieces:
        try:
            return cls(Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{file} can't be read: {error}") from error

    def save(self, folder: Path) -> None:
        with replacing(folder / PIECES_FILE) as temporary:
            temporary.write_text(self.json, encoding="utf-8")

    def words(self) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab())

    @cached_property
    def _signs(self) -> list[str]:
        """A character for each piece, behind an `EDGE` if a word begins with it; of a plural that of its singular."""
        signs, known = [EDGE + UNTOLD] * self.size, self.words()
        for word, index in known.items():
            if word in WITHIN or word == "##s":
                signs[index] = ""
            elif index >= len(SPECIAL):
                one = known.get(word[:-1], index) if len(word) > 3 and word.endswith("s") else index
                signs[index] = ("" if word.startswith("##") else EDGE) + chr(one + 0x10000)
        return signs

    def compared(self, ids: Sequence[int]) -> list[str]:
        """Of each piece what stands for it in `needle.text.literal`."""
        return [self._signs[piece] for piece in ids]

    def read(self, text: str) -> Reading:
        """Cached, since names, descriptions and enum members come again and again."""
        found = self._cache.get(text)
        if found is None:
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
            offsets = tuple(encoded.offsets)
            found = Reading(tuple(encoded.ids), tuple(case_of(text[start:end]) for start, end in offsets), offsets)
            if len(self._cache) < 200_000 and len(text) < 200:
                self._cache[text] = found
        return found


def case_of(text: str) -> int:
    """An index of `CASES`."""
    if text == text.lower():
        return 1
    if text == text.upper():
        return 2 if len(text) == 1 else 3
    return 2 if text[:1].isupper() and text[1:] == text[1:].lower() else 4


def _folding(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\n\r]"), f" {LINE} "),
            *(normalizers.Replace(Regex(odd), plain) for odd, plain in PLAIN.items()),
            normalizers.NFKC(),
            normalizers.BertNormalizer(lowercase=True, strip_accents=True),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits()])
    return tokenizer
