"""Requests about made-up tools, as many as wanted, and made-up requests about given ones.

Real sets hold a few hundred tools, which a student may learn by heart. Of made-up tools nothing can be: names,
arguments, descriptions and values are drawn anew, from words of tools and Faker's word lists, so that only reading the
tools helps. A record is a function of the seed, its number and the given tools. Numbers, amounts, shares, dates, lists,
objects, enums and flags stand beside names and places; optional arguments go unsaid; and now and then no call is right:
the fitting tool isn't offered, a required value isn't said, the wish is taken back, or the request is about a tool.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from needle.data.invented.arguments import Arguments, Part, Said
from needle.data.invented.draw import plural
from needle.data.invented.given import neighbours, parts_of
from needle.data.rename import FORM, STYLES, other_words, styled
from needle.data.speech.joints import MADE_UP
from needle.text.records import Call, Record, Tool
from needle.text.words import WORD

SOURCE = "invented"
MISSING, VAGUE, UNDONE, ASKED = 0.06, 0.03, 0.02, 0.01  # chances that no call is right, for each of the reasons above
SAME, OTHER = 0.22, 0.12  # chance that a request asks for the same tool again; for another one as well
ROW = 0.6  # chance that the same tool is asked for by several values in a row, where it can be
GIVEN = 0.4  # chance that a tool is one of the given ones, if there are any
BARE, VAGUE_NAME, DOTTED = (
    0.25,
    0.12,
    0.12,
)  # chances that a tool has no description; a name that tells nothing; a name with a dot
OTHERS = (0, 1, 1, 2, 2, 3, 3, 4, 5, 8)  # how many tools are offered beside the ones that are asked for
ASIDE = 0.08
FRAMES = (
    "{}",
    "{}",
    "{}",
    "{}",
    "please {}",
    "can you {}?",
    "could you {}?",
    "I need to {}",
    "I'd like to {}",
    "help me {}",
    "{}, please",
    "I want to {}.",
    "hey, {}",
)
KNOWN = (
    "I have",
    "we have",
    "there is",
    "given",
    "here is what I know:",
    "with",
    "for",
    "using",
)  # a request that begins so stands in no frame
AGAIN = ("", "the same ", "another one ", "one more ", "again ")


@dataclass
class Wish:
    """A tool, and how a request for it begins: `verb` (of the vocabulary, or none) and `noun`, or one of `openings`."""

    tool: Tool
    verb: str
    noun: str
    parts: list[Part]
    openings: tuple[str, ...] = ()


def invented(count: int, seed: int, given: Sequence[Tool] = ()) -> list[Record]:
    """`count` records of source `invented`, the first of them the same for any larger count; some ask for tools of
    `given`."""
    near = neighbours(given)
    return [
        _Maker(random.Random(f"{seed}:{SOURCE}:{number}"), given, near).record(f"{SOURCE}-{seed}-{number}")
        for number in range(count)
    ]


class _Maker:
    """Makes one record."""

    def __init__(self, source: random.Random, given: Sequence[Tool], near: Callable[[Tool], list[Tool]]) -> None:
        self.draw = Arguments(source)
        self.given, self.near = given, near
        self.one, self.chance = self.draw.one, self.draw.chance

    def record(self, id: str) -> Record:
        # One wish, the same tool several times, or two wishes.
        kind = self.draw.source.random()
        wishes = [self.wish()]
        if kind < SAME:
            queries, calls = self.repeated(wishes[0])
        else:
            if kind < SAME + OTHER:
                wishes.append(self.wish())
            asked = [self.request(wish) for wish in wishes]
            queries, calls = [text for text, _ in asked], [call for _, call in asked]
        if len({wish.tool.name for wish in wishes}) < len(wishes):
            return self.record(id)
        # Now and then no call is right: missing tool, missing value, taken back, about a tool.
        query = self.finished(self.joined(queries))
        offered, refused = [wish.tool for wish in wishes], None
        meta: dict[str, Any] = {}
        draw = self.draw.source.random()
        if draw < MISSING:  # of two tools one may remain
            refused = offered.pop(self.draw.source.randrange(len(offered)))
            calls = [call for call in calls if call.name != refused.name]
        elif draw < MISSING + VAGUE and any(part.required for part in wishes[-1].parts):
            unsaid = self.one([part for part in wishes[-1].parts if part.required])
            query = self.finished(self.joined([*queries[: len(wishes) - 1], self.request(wishes[-1], unsaid)[0]]))
            calls = [call for call in calls if call.name != wishes[-1].tool.name]
            required = wishes[-1].tool.parameters.get("required", ())
            meta = {
                "missing": {
                    "name": wishes[-1].tool.name,
                    "arguments": [name for name in unsaid.schemas if name in required],
                }
            }
        elif draw < MISSING + VAGUE + UNDONE and not queries[0].lower().startswith((*KNOWN, *self.draw.words["asked"])):
            query, calls = self.one(self.draw.words["undone"]).format(self.joined(queries)), []
        elif draw < MISSING + VAGUE + UNDONE + ASKED:
            query, calls = (
                self.one(self.draw.words["about_tools"]).format(
                    self.one((wishes[0].tool.name, f"the {wishes[0].noun} tool"))
                ),
                [],
            )
        # Other tools beside them, more than half of which look alike.
        names = {wish.tool.name for wish in wishes}
        for _ in range(max(self.one(OTHERS), not offered)):
            other = self.beside(self.one(wishes)) if self.chance(0.6) else self.wish().tool
            if other.name not in names:
                names.add(other.name)
                offered.append(other)
        if not offered:
            offered.append(self.made_up().tool)
        self.draw.source.shuffle(offered)
        return Record(id, query, tuple(offered), tuple(calls), SOURCE, meta=meta)

    # -- requests
    # ---------------------------------------------------------------------------------------------------------

    def request(self, wish: Wish, unsaid: Part | None = None) -> tuple[str, Call]:
        said = self.values(wish, unsaid)
        return self.sentence(wish, said), self.call(wish, said)

    def values(self, wish: Wish, unsaid: Part | None = None) -> list[Said]:
        """A value for every required part and some of the others, in any order."""
        said = [part.say() for part in wish.parts if part is not unsaid and (part.required or self.chance(0.5))]
        self.draw.source.shuffle(said)
        return said

    def call(self, wish: Wish, said: Sequence[Said]) -> Call:
        values = {name: value for one in said for name, value in one.values.items()}
        return Call(
            wish.tool.name, {name: values[name] for name in wish.tool.parameters["properties"] if name in values}
        )

    def repeated(self, wish: Wish) -> tuple[list[str], list[Call]]:
        """The same tool again: for several values in a row, in whole requests, or by the other values alone; a value
        may hold for all of them."""
        # Several values in a row, where an argument can be said so.
        first = self.values(wish)
        held = {name for one in first for name in one.values}
        rows = [part for part in wish.parts if part.each and held & set(part.schemas)]
        if rows and self.chance(ROW):
            return self.in_a_row(wish, self.one(rows), first)
        # Else again and again: some values hold for all, the others are drawn anew.
        queries, calls = [self.sentence(wish, first)], [self.call(wish, first)]
        shared = [one for one in first if self.chance(0.25)]
        kept = {name for one in shared for name in one.values}
        fresh = [part for part in wish.parts if held & set(part.schemas) and not kept & set(part.schemas)]
        for _ in range(self.one((1, 1, 1, 2, 3)) if fresh else 0):
            said = [part.say() for part in fresh]
            # A whole sentence, or only what differs.
            if self.chance(0.4):
                queries.append(self.sentence(wish, [*said, *shared]))
            else:
                bare, phrases = _apart(said)
                queries.append(
                    (
                        self.one(AGAIN)
                        + " ".join(
                            [*bare, *([self.one(("with ", "for ")) + self.draw.row(phrases)] if phrases else [])]
                        )
                    ).strip()
                )
            calls.append(self.call(wish, [*said, *shared]))
        return (queries, calls) if len({call.key for call in calls}) == len(calls) else (queries[:1], calls[:1])

    def in_a_row(self, wish: Wish, part: Part, first: Sequence[Said]) -> tuple[list[str], list[Call]]:
        """One request that names several values of one argument: "the weather in Oslo, Rome and Bern"."""
        assert part.each
        name, drawn = next(iter(part.schemas)), dict(part.each() for _ in range(self.one((2, 2, 3, 4))))
        others = [one for one in first if name not in one.values]
        row = Said(f"{part.before} {self.draw.listed(list(drawn.values()))}", {}, bare=True)
        return [self.sentence(wish, [row, *others])], [
            self.call(wish, [*others, Said("", {name: value})]) for value in drawn
        ]

    def sentence(self, wish: Wish, said: Sequence[Said]) -> str:
        bare, phrases = _apart(said)
        core = " ".join([self.opening(wish), *bare])
        if not phrases:
            return core
        listed = self.draw.row(phrases)
        if self.chance(0.12):
            return f"{self.one(KNOWN[:5])} {listed}. {core[:1].upper()}{core[1:]}"
        if self.chance(0.1):
            return f"{self.one(('with', 'for', 'given', 'using'))} {listed}, {core}"
        joint = self.one((" with ", " with ", " for ", " given ", " using ", ", ", " of ", " where ", ": ", " having "))
        return f"{core}{joint}{listed}"

    def opening(self, wish: Wish) -> str:
        if wish.openings and (not wish.verb or self.chance(0.4)):
            return other_words(self.one(wish.openings), 0.3, self.draw.source)
        noun = other_words(wish.noun, 0.4, self.draw.source)
        if wish.verb in self.draw.words["questions"] and self.chance(0.35):
            return f"{self.one(self.draw.words['asked'])} the {noun}"
        return f"{self.one(self.draw.words['verbs'][wish.verb])} {self.one(('the ', 'the ', 'a ', '', 'my '))}{noun}"

    def joined(self, queries: Sequence[str]) -> str:
        query = queries[0]
        for text in queries[1:]:
            query = self.one(MADE_UP).format(query, text)
        return query

    def finished(self, query: str) -> str:
        """In a frame, which a question or a request that begins with what is known doesn't stand in; some behind an
        aside."""
        asked = query.startswith(tuple(self.draw.words["asked"]))
        framed = not asked and not query.lower().startswith(tuple(word.lower() for word in KNOWN))
        query = (self.one(FRAMES) if framed else self.one(("{}", "{}", "hey, {}"))).format(query)
        query = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", query)
        aside = f"{self.one(self.draw.words['asides'])} " if self.chance(ASIDE) else ""
        if aside or self.chance(0.7):
            query = query[:1].upper() + query[1:]
        return aside + (
            query if query[-1] in "?.!" else query + self.one(("", "?", "?") if asked else ("", "", ".", "."))
        )

    # -- tools
    # ------------------------------------------------------------------------------------------------------------

    def wish(self) -> Wish:
        """For a given tool or a made-up one."""
        if self.given and self.chance(GIVEN):
            tool = self.one(self.given)
            parts = parts_of(tool, self.draw)
            if parts is not None:
                first, *rest = [word.lower() for word in WORD.findall(tool.name)] or [tool.name]
                about = tool.description.split(". ")[0].removesuffix(".")
                openings = tuple(text for text in (" ".join([first, *rest]), about[:1].lower() + about[1:]) if text)
                return Wish(
                    tool,
                    first if rest and first in self.draw.words["verbs"] else "",
                    " ".join(rest) or first,
                    parts,
                    openings,
                )
        return self.made_up()

    def made_up(self, verb: str = "", noun: str = "") -> Wish:
        verb, noun = verb or self.one(list(self.draw.words["verbs"])), noun or self.draw.thing()
        style, bare = self.one(STYLES[:2]), self.chance(BARE)
        self.draw.begin(noun, style)
        parts: list[Part] = []
        for number in range(self.one((1, 1, 2, 2, 3, 3, 4, 5, 6))):
            part = self.draw.part()
            if not any(set(part.schemas) & set(other.schemas) for other in parts):
                part.required = number == 0 or self.chance(0.6)
                parts.append(part)
        properties = {own: schema for part in parts for own, schema in part.schemas.items()}
        parameters = {
            "type": "object",
            "properties": properties,
            "required": [own for part in parts if part.required for own in part.schemas],
            "additionalProperties": False,
        }
        vague = self.chance(VAGUE_NAME)
        name = self.name(verb, noun, style, vague)
        return Wish(
            (
                Tool(name, "", _undescribed(parameters))
                if bare and not vague
                else Tool(name, self.about(verb, noun, parts, vague), parameters)
            ),
            verb,
            noun,
            parts,
        )

    def name(self, verb: str, noun: str, style: str, vague: bool) -> str:
        if vague:
            return styled(
                [
                    *self.one(self.draw.words["vague_names"]).split("_"),
                    *([str(self.draw.source.randint(2, 99))] if self.chance(0.5) else []),
                ],
                self.one((style, "snake")),
            )
        if self.chance(DOTTED):
            return (
                f"{styled(noun.split(), 'snake')}.{verb}"
                if self.chance(0.5)
                else f"{self.draw.noun()}.{styled([verb, *noun.split()], style)}"
            )
        words = noun.split()[-1:] if self.chance(0.1) else noun.split()
        return styled([verb, *words], self.one((style, "snake", "snake")))

    def about(self, verb: str, noun: str, parts: Sequence[Part], needed: bool) -> str:
        said, noun = (
            self.one((verb, verb, self.one(self.draw.words["verbs"][verb]))),
            other_words(noun, 0.3, self.draw.source),
        )
        last = parts[-1].words
        forms = (
            f"{said.capitalize()} the {noun}.", f"{said.capitalize()} {noun} for the given {parts[0].words}",
                f"{said.capitalize()} the {noun} by {parts[0].words} and {last}.", f"{noun.capitalize()}: {said}",
            f"Use this when somebody wants to {verb} the {noun}. Needs the {parts[0].words}.",
                f"A function to {said} the {noun}, with an optional {last}.",
                f"{plural(verb).capitalize()} the {noun}. Returns an error if there is none.",
            *(() if needed else ("",)),
        )  # fmt: skip
        return str(self.one(forms))

    def beside(self, wish: Wish) -> Tool:
        """A tool that looks like another and does something else: another verb, or another thing."""
        if wish.openings:
            near = self.near(wish.tool)
            return self.one(near) if near else self.wish().tool
        if self.chance(0.5):
            writes = self.draw.words["writes"]
            return self.made_up(
                self.one([verb for verb in self.draw.words["verbs"] if (verb in writes) != (wish.verb in writes)]),
                wish.noun,
            ).tool
        words = [word for word in self.draw.thing().split() if word not in wish.noun.split()]
        return self.made_up(wish.verb, " ".join([*wish.noun.split()[:-1], *words[-1:]])).tool


def _apart(said: Sequence[Said]) -> tuple[list[str], list[str]]:
    return [one.text for one in said if one.bare], [one.text for one in said if not one.bare]


def _undescribed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without its descriptions but those that tell the form of a value."""
    out = {key: value for key, value in schema.items() if key != "description" or FORM.search(value)}
    if "properties" in out:
        out["properties"] = {name: _undescribed(sub) for name, sub in out["properties"].items()}
    return out
