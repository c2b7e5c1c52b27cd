"""What a request says of a tool word for word."""

from __future__ import annotations

import pytest

from needle.text.declarations import normalise_tool
from needle.text.literal import IN_ARGUMENT, IN_MEMBER, IN_TOOL, LEVELS, NOT, PARTLY, WHOLE, Literal
from needle.text.pieces import EDGE, Pieces
from needle.text.prompt import _in_pieces

WORDS = ["set", "lamp", "to", "blue", "blues", "cyan", "red", "the", "colour", "power", "powers", "of", "more", "##s"]
LAMP = normalise_tool(
    {
        "name": "setLamp",
        "parameters": {
            "type": "object",
            "properties": {
                "lamp_colour": {"type": "string", "enum": ["blue", "BLUE_CYAN", "red"]},
                "power": {"type": "boolean"},
            },
        },
    }
)


@pytest.fixture(scope="module")
def pieces() -> Pieces:
    return Pieces.of([*WORDS, "-", "_", ":"])


def of_request(pieces: Pieces, text: str) -> Literal:
    return Literal(pieces.compared(pieces.read(text).ids))


@pytest.mark.parametrize(
    ("said", "tool", "colour", "power", "members", "where"),
    [
        ("Set LAMP to Blue-Cyan", WHOLE, (PARTLY, WHOLE), NOT, [PARTLY, WHOLE, NOT], "TT.MMM"),
        ("the lamp colour: blue", PARTLY, (WHOLE, WHOLE), NOT, [WHOLE, PARTLY, NOT], ".AA.M"),
        ("the lamp red, blue", PARTLY, (PARTLY, WHOLE), NOT, [WHOLE, PARTLY, WHOLE], "..M.M"),
        ("cyan more power", NOT, (NOT, PARTLY), WHOLE, [NOT, PARTLY, NOT], "..A"),
        ("more reds", NOT, (NOT, WHOLE), NOT, [NOT, NOT, WHOLE], ".M."),
        ("set powers", PARTLY, (NOT, NOT), WHOLE, [NOT, NOT, NOT], ".A"),
        ("to blues of", NOT, (NOT, WHOLE), NOT, [WHOLE, PARTLY, NOT], ".M."),
        ("predicted", NOT, (NOT, NOT), NOT, [NOT, NOT, NOT], None),
    ],
)
def test_names_and_members_are_found_word_for_word(
    pieces: Pieces, said: str, tool: int, colour: tuple[int, int], power: int, members: list[int], where: str | None
) -> None:
    """Whatever their case and separators, and in the plural; of two members that are said at one place the longer one
    is meant."""
    words, request = _in_pieces(pieces, LAMP).words, of_request(pieces, said)
    found = request.find(words)
    assert request.level(words.tool) == tool
    assert found.arguments == [LEVELS * colour[0] + colour[1], LEVELS * power]
    assert found.members == members
    signs = {0: ".", IN_MEMBER: "M", IN_ARGUMENT: "A", IN_TOOL: "T"}
    assert where is None or "".join(signs[piece] for piece in found.said) == where


def test_what_has_no_words_is_said_nowhere(pieces: Pieces) -> None:
    unknown = "".join(pieces.compared(pieces.read("\u4e16\u754c").ids)) + EDGE
    for text in ("", "-", "\u4e16\u754c", "set"):
        request = of_request(pieces, text)
        assert request.level(EDGE) == NOT
        assert request.level("") == NOT
        assert request.level(unknown) == NOT
