"""What of a tool a request says word for word: its name, the names of its arguments, members of their enums.

Words are compared as pieces, so that case, width and accents don't matter, nor do `-` and `_` within a name, nor the
plural.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from needle.text.pieces import EDGE, UNTOLD

NOT, PARTLY, WHOLE = range(3)  # how much is said: no word, some of them, all of them one behind the other
LEVELS = 3
IN_MEMBER, IN_ARGUMENT, IN_TOOL = 1, 2, 4  # what of the open tool a piece of the request says, added up
SAID = 8


@dataclass(frozen=True)
class Names:
    """What of a tool may be said, each as `Pieces.compared` joined, with an `EDGE` behind."""

    tool: str
    arguments: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]


@dataclass
class Found:
    """What of one tool is said."""

    said: list[int]  # of each piece of the request
    arguments: list[int]  # of each argument: `LEVELS` times how much of its name, and how much of its enum
    members: list[int]  # how much of each member, those of all arguments in a row


class Literal:
    """A request in which names are looked for."""

    def __init__(self, compared: Sequence[str]) -> None:
        self.size = len(compared)
        self.text = "".join(compared).replace(UNTOLD, EDGE) + EDGE
        self._piece = [piece for piece, sign in enumerate(compared) for _ in sign]
        self._words = set(self.text.split(EDGE)) - {""}

    def level(self, name: str) -> int:
        if len(name) > 1 and name in self.text:
            return WHOLE
        return NOT if self._words.isdisjoint(name.split(EDGE)) else PARTLY

    def find(self, names: Names) -> Found:
        said, arguments, members = [0] * self.size, list[int](), list[int]()
        self._mark(said, names.tool, IN_TOOL)
        for name, own in zip(names.arguments, names.members, strict=True):
            self._mark(said, name, IN_ARGUMENT)
            levels = [self.level(member) for member in own]
            whole = [member for member, level in zip(own, levels, strict=True) if level == WHOLE]
            for number, member in enumerate(own):
                if levels[number] == WHOLE and any(member != other and member in other for other in whole):
                    levels[number] = PARTLY  # a longer one is meant
                elif levels[number] == WHOLE:
                    self._mark(said, member, IN_MEMBER)
            arguments.append(LEVELS * self.level(name) + max(levels, default=NOT))
            members += levels
        return Found(said, arguments, members)

    def _mark(self, said: list[int], name: str, what: int) -> None:
        """Notes at the pieces that say a name what it is."""
        at = self.text.find(name) if len(name) > 1 else -1
        while at >= 0:
            for piece in range(self._piece[at], self._piece[at + len(name) - 2] + 1):
                said[piece] |= what
            at = self.text.find(name, at + 1)
