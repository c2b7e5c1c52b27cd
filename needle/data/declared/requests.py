"""Requests for declared tools, as many as wanted: one call, several, or none.

A record is a function of the seed and its number. Its tools come from one family (a server, a plugin, a field), with a
few of other families. Requests are commands, questions, needs and fragments; arguments stand in any order, with or
without their names; several calls share what is said once. In a quarter of the records no call is right: the fitting
tool isn't offered, a required value isn't said or isn't allowed, the wish is taken back, or there is none. Half of the
families and phrasings are kept for validation (`held_out`).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from needle.data.declared.values import Spoken, Values, worded
from needle.data.rename import other_words
from needle.text.leaves import solid_type
from needle.text.records import Call, Record, Tool
from needle.text.validity import call_errors

SOURCE = "declared"
OPTIONAL = 0.4  # chance that an optional argument is said
HARDER = 0.65  # the same of a flag, an enum, a list or an object, which students get wrong most
HARDER_TOOL = 0.5  # chance that a tool is one with such an argument
POLITE = 0.08
KINDS = {  # shares of the records; the rest ask for one call
    "chain": 0.13, "row": 0.07, "again": 0.05, "shared": 0.06,  # several calls
    "gone": 0.11, "unsaid": 0.07, "beyond": 0.025, "undone": 0.025, "known": 0.02, "about": 0.015, "chat": 0.02,  # none
}  # fmt: skip
PREPOSITIONS = {
    "city": ("in", "near", "for", "at"),
    "country": ("in", "for", "of"),
    "street": ("at", "near", "to"),
    "place": ("at", "near"),
    "person": ("for", "by", "of", "with"),
    "company": ("from", "by", "at"),
    "artist": ("by", "of"),
    "date": ("on", "for", ""),
    "time": ("at", "for", ""),
    "duration": ("for", "over"),
    "topic": ("about", "on", "for", ""),
    "title": ("for", "called", "named", ""),
    "code": ("for", "of", "with", ""),
    "email": ("to", "for"),
    "language": ("in", "into"),
    "example": ("for", "of", "", "in"),
    "odd": ("for", "with", ":", ""),
    "member": ("", "in", "as", "for"),
    "number": ("", "of", "for"),
    "list": ("for", "of", ""),
    "product": ("for", "of", ""),
    "remark": ("saying", "that says", ":"),
    "link": ("at", "from"),
    "filename": ("in", "from", ""),
}


@dataclass
class Families:
    """Tools by family, of one side."""

    tools: list[list[Tool]]
    every: list[Tool] = field(default_factory=list)

    @classmethod
    def of(cls, declared: Sequence[tuple[str, Tool]], held_out: bool) -> Families:
        """`declared` are tools with the name of their family."""
        found: dict[str, dict[str, Tool]] = {}
        for family, tool in declared:
            if held_out_family(family) == held_out:
                found.setdefault(family, {}).setdefault(tool.name, tool)
        tools = [list(own.values()) for _, own in sorted(found.items())]
        return cls(tools, [tool for own in tools for tool in own])


def held_out_family(family: str) -> bool:
    return hashlib.sha256(family.encode()).digest()[0] % 2 == 1


def declared(
    count: int, seed: int, tools: Sequence[tuple[str, Tool]], held_out: bool = False, together: int = 12
) -> list[Record]:
    """`count` records of source `declared`; `together` records in a row ask for tools of one family."""
    families = Families.of(tools, held_out)
    return [
        Asker(random.Random(f"{seed}:{SOURCE}:{held_out}:{number}"), families, held_out).record(
            f"{SOURCE}-{'held-' if held_out else ''}{seed}-{number}",
            random.Random(f"{seed}:{SOURCE}:{held_out}:family:{number // together}"),
        )
        for number in range(count if families.tools else 0)
    ]


@dataclass
class Wish:
    """A call, and the words for its arguments: by name, what is said and its value."""

    tool: Tool
    said: dict[str, Spoken]

    def call(self) -> Call:
        order = self.tool.parameters.get("properties", {})
        return Call(self.tool.name, {name: self.said[name].value for name in order if name in self.said})


class Asker:
    """Asks for the tools of one side. What is public here is what suites are made with."""

    def __init__(self, source: random.Random, families: Families, held_out: bool, plain: bool = False) -> None:
        """`plain` says what has to be said, without corrections."""
        self.draw = Values(source, held_out)
        self.families, self.plain = families, plain
        self.one, self.chance, self.source = self.draw.one, self.draw.chance, source

    def record(self, id: str, shared: random.Random) -> Record:
        family = shared.choice(self.families.tools)
        around = shared.sample(family, min(len(family), 8))
        strangers = shared.sample(self.families.every, min(len(self.families.every), 6))
        while True:
            found = self.attempt(around, strangers)
            if found is not None:
                query, offered, calls = found
                tools = tuple({tool.name: tool for tool in offered}.values())
                if not any(call_errors(call, tools) for call in calls):
                    meta: dict[str, Any] = {"family": f"{SOURCE} {family[0].name}"}
                    meta |= {"missing": self.missing} if self.missing else {}
                    return Record(id, query, tools, tuple(calls), SOURCE, meta=meta)
                around = self.source.sample(family, min(len(family), 8))

    def attempt(self, around: list[Tool], strangers: list[Tool]) -> tuple[str, list[Tool], list[Call]] | None:
        self.missing: dict[str, Any] | None = None
        tool = self.tool(around) if self.chance(0.9) else self.one(self.families.every)
        wish = self.wish(tool)
        if wish is None:
            tool = self.one(self.families.every)
            wish = self.wish(tool)
            if wish is None:
                return None
        used, calls = [tool], [wish.call()]
        name = self.source.choices(["one", *KINDS], [1 - sum(KINDS.values()), *KINDS.values()])[0]
        query = None
        if name == "chain":
            query, used, calls = self.chain(wish, around)
        elif name == "row":
            query, calls = self.row(wish)
        elif name == "again":
            query, calls = self.again(wish)
        elif name == "shared":
            query, used, calls = self.shared(wish, around)
        elif name == "unsaid":
            required = [own for own in tool.parameters.get("required", ()) if own in wish.said]
            if required:
                unsaid = self.one(required)
                del wish.said[unsaid]
                self.missing = {"name": tool.name, "arguments": [unsaid]}
                query, calls = self.finished(self.sentence(wish)), []
        elif name == "beyond":
            query, used, calls = self.beyond(wish, around)
        elif name == "undone":
            query, calls = self.one(self.draw.said["undone"]).format(self.sentence(wish, command=True)), []
        elif name == "known":
            query, calls = self.one(self.draw.said["known"]).format(f"the {self.noun(tool)}"), []
        elif name == "about":
            query, calls = (
                self.one(self.draw.said["about"]).format(
                    self.one((tool.name, worded(tool.name), f"the {worded(tool.name)} tool"))
                ),
                [],
            )
        elif name == "chat":
            query, calls = self.one(self.draw.said["chat"]), []
        if query is None:
            query = self.finished(self.sentence(wish))
        offered = used if name != "gone" else []
        if name == "gone":
            calls = []
        most = self.one((0, 1, 1, 2, 3, 4, 5, 7))
        alike = {worded(tool.name) for tool in used}
        others = [other for other in [*around, *strangers] if other not in used and worded(other.name) not in alike]
        if name == "gone":  # what remains must not do the same
            others = [other for other in others if not _alike(other, tool)]
        picked = others[: len(around)] if self.chance(0.7) else others
        offered = [*offered, *self.source.sample(picked, min(len(picked), max(most, not offered)))]
        if not offered or not query.strip():
            return None
        self.source.shuffle(offered)
        return query, offered, calls

    def tool(self, among: Sequence[Tool]) -> Tool:
        harder = [tool for tool in among if any(map(_harder, tool.parameters.get("properties", {}).values()))]
        found: Tool = self.one(harder if harder and self.chance(HARDER_TOOL) else among)
        return found

    def wish(self, tool: Tool, given: Mapping[str, Spoken] | None = None) -> Wish | None:
        """A value for every required argument and some of the others; None if nobody would say one of them."""
        required, said = tool.parameters.get("required", ()), dict(given or {})
        properties = tool.parameters.get("properties", {})
        fewer = min(1, 8 / max(len(properties), 1))
        for name, schema in properties.items():
            share = fewer * (HARDER if _harder(schema) else OPTIONAL)
            if name in said or (name not in required and (self.plain or not self.chance(share))):
                continue
            value = self.draw.of(name, schema)
            if value is not None:
                said[name] = value
            elif name in required:
                return None
        return Wish(tool, said)

    def beyond(self, wish: Wish, around: Sequence[Tool]) -> tuple[str | None, list[Tool], list[Call]]:
        """A required value that isn't allowed, no member or out of bounds, of any tool that requires such a one."""
        for tool in self.source.sample(list(around), len(around)):
            for name in tool.parameters.get("required", ()):
                schema = tool.parameters.get("properties", {}).get(name, {})
                members = {worded(str(member)) for member in schema.get("enum", ())}
                most, other = schema.get("maximum"), None
                if members and solid_type(schema) == "string":
                    word = self.draw.noun()
                    other = Spoken(word, word, "member") if worded(word) not in members else None
                elif members and solid_type(schema) in ("integer", "number"):
                    value = self.source.randint(1, 999)
                    other = Spoken(str(value), value, "number") if str(value) not in members else None
                elif isinstance(most, int | float) and not members:
                    value = int(most) + self.source.randint(1, 500)
                    other = Spoken(str(value), value, "number")
                asked = self.wish(tool, {name: other}) if other else None
                if asked:
                    return self.finished(self.sentence(asked)), [tool], []
        return None, [wish.tool], [wish.call()]

    # Several calls

    def chain(self, wish: Wish, around: Sequence[Tool]) -> tuple[str, list[Tool], list[Call]]:
        """Two to five wishes, mostly for different tools."""
        wishes = [wish]
        for _ in range(self.one((1, 1, 2, 2, 2, 3, 4))):
            other = self.wish(self.one(around) if self.chance(0.8) else self.one(self.families.every))
            if other is not None and other.call().key not in {one.call().key for one in wishes}:
                wishes.append(other)
        texts = [self.sentence(one) for one in wishes]
        if self.chance(0.35):
            texts = [self.framed(text) for text in texts]
            query = texts[0]
            for text in texts[1:]:
                joint = " " if query[-1] in "?!." else self.one((". ", ". ", "\n"))
                query = f"{query}{joint}{text[:1].upper()}{text[1:]}"
        else:
            query = texts[0]
            for text in texts[1:-1]:
                query = self.one(("{}, {}", "{}, {}", "{}; {}", "{}, then {}")).format(query, text)
            if len(texts) > 1:
                query = self.one(self.draw.said["joints"]).format(query, texts[-1])
            query = self.finished(query)
        return query, [one.tool for one in wishes], [one.call() for one in wishes]

    def row(self, wish: Wish) -> tuple[str | None, list[Call]]:
        """Several values of one argument in a row, a call for each: "the weather in Oslo and Rome"."""
        free = [name for name, one in wish.said.items() if isinstance(one.value, str | int | float)
                and one.kind not in ("flag", "odd", "remark") and "," not in one.said]  # fmt: skip
        if not free:
            return None, [wish.call()]
        name = self.one(free)
        schema = wish.tool.parameters["properties"][name]
        values = {str(wish.said[name].value): wish.said[name]}
        for _ in range(self.one((1, 1, 2, 2, 3))):
            other = self.draw.of(name, schema)
            if other is not None and "," not in other.said and isinstance(other.value, str | int | float):
                values.setdefault(str(other.value), other)
        every = list(values.values())
        together = Spoken(self.draw.row([one.said for one in every]), "", every[0].kind)
        query = self.finished(self.sentence(Wish(wish.tool, {**wish.said, name: together})))
        return query, [Wish(wish.tool, {**wish.said, name: one}).call() for one in every]

    def again(self, wish: Wish) -> tuple[str | None, list[Call]]:
        """The same tool again, asked for by what differs: "and one for 5 pm"."""
        changing = [name for name, one in wish.said.items() if one.kind not in ("flag", "group", "groups")]
        if not changing:
            return None, [wish.call()]
        query, calls = self.sentence(wish), [wish.call()]
        for _ in range(self.one((1, 1, 1, 2))):
            fresh = {
                name: value
                for name in changing
                if (value := self.draw.of(name, wish.tool.parameters["properties"][name]))
            }
            if len(fresh) < len(changing):
                break
            if len(changing) > 1 and self.chance(0.4):  # some values hold for both
                fresh = {
                    name: value
                    for name, value in fresh.items()
                    if name in self.source.sample(changing, len(changing) - 1)
                }
            other = Wish(wish.tool, {**wish.said, **fresh})
            if other.call().key in {call.key for call in calls}:
                continue
            bare = " ".join(self.argument(wish.tool, name, value) for name, value in fresh.items())
            query = f"{query}{self.one((', ', ' ', '. ', '; '))}{self.one(self.draw.said['again']).format(bare)}"
            calls.append(other.call())
        return self.finished(query), calls

    def shared(self, wish: Wish, around: Sequence[Tool]) -> tuple[str | None, list[Tool], list[Call]]:
        """Another tool that takes a value which was said before."""
        for tool in self.source.sample(list(around), len(around)):
            mine, theirs = wish.tool.parameters["properties"], tool.parameters.get("properties", {})
            common = [
                name
                for name, value in wish.said.items()
                if name in theirs
                and theirs[name].get("type") == mine[name].get("type")
                and "enum" not in theirs[name]
                and value.kind != "flag"
            ]
            if tool.name == wish.tool.name or not common:
                continue
            name = self.one(common)
            other = self.wish(tool, {name: wish.said[name]})
            if other is None:
                continue
            rest = Wish(tool, {own: value for own, value in other.said.items() if own != name})
            if self.chance(0.5):
                return self.finished(self.coordinated(wish, rest, name)), [wish.tool, tool], [wish.call(), other.call()]
            text = self.sentence(rest, command=True)
            text += self.one(("", "", f" for the same {worded(name)}", " for it", " too", f" with that {worded(name)}"))
            query = self.one(self.draw.said["joints"]).format(self.sentence(wish), text)
            return self.finished(query), [wish.tool, tool], [wish.call(), other.call()]
        return None, [wish.tool], [wish.call()]

    def coordinated(self, wish: Wish, rest: Wish, name: str) -> str:
        """Two wishes with one value, said once behind both or in front: "lights off and heating down in the den"."""
        value = self.argument(wish.tool, name, wish.said[name])
        first = Wish(wish.tool, {own: said for own, said in wish.said.items() if own != name})
        verbs = [self.base(worded(tool.name).split()[0]) for tool in (wish.tool, rest.tool)]
        if verbs[0] and verbs[0] == verbs[1] and not first.said and not rest.said:
            article = self.one(("the ", "", "my "))
            things = [f"{article}{self.noun(tool)}" for tool in (wish.tool, rest.tool)]
            both = f"{self.one(self.draw.said['verbs'][verbs[0]])} {self.draw.row(things)}"
        else:
            both = f"{self.sentence(first, command=True)} and {self.sentence(rest, command=True)}"
        return str(self.one((f"{both} {value}", f"{both} {value}", f"{both}, {value}", f"{value}, {both}")))

    # Words

    def sentence(self, wish: Wish, command: bool = False) -> str:
        """A wish without its frame: what is wanted, and the arguments in any order."""
        tool, names = wish.tool, list(wish.said)
        self.source.shuffle(names)
        parts = []
        for name in names:
            parts.append(self.argument(tool, name, wish.said[name]))
        core = self.opening(tool, command)
        if not parts:
            return core
        form = self.source.random()
        if form < 0.08 and len(parts) > 1:
            listed = self.draw.row(
                [
                    f"{worded(name)} {wish.said[name].said}" if wish.said[name].kind != "flag" else part
                    for name, part in zip(names, parts, strict=True)
                ]
            )
            return f"{core}{self.one((': ', ', ', ' with ', ' - '))}{listed}"
        if form < 0.16 and not command:
            return f"{parts[0]}{self.one((', ', ' ', ': '))}{' '.join([core, *parts[1:]])}"
        joint = self.one((" ", " ", " ", ", ", " and ")) if len(parts) > 1 else " "
        return re.sub(r" ([:,])", r"\1", f"{core} {joint.join(parts)}")

    def argument(self, tool: Tool, name: str, value: Spoken) -> str:
        """An argument as a request has it: bare, behind a preposition, or by its name."""
        if value.kind == "flag":
            return self.draw.flag(name, bool(value.value))
        said = value.said
        simple = value.kind not in ("group", "groups") and isinstance(value.value, str | int | float)
        if simple and not self.plain and self.chance(0.04):
            wrong = self.draw.of(name, tool.parameters["properties"][name])
            if wrong is not None and wrong.value != value.value and len(wrong.said) < 30:
                said = self.one(self.draw.said["mend"]).format(wrong.said, said)
        alone = len(tool.parameters.get("properties", {})) < 3
        kinds = [schema.get("type") for schema in tool.parameters.get("properties", {}).values()]
        plain = value.kind in (
            "city",
            "country",
            "person",
            "date",
            "time",
            "email",
            "member",
            "odd",
            "duration",
            "language",
        )
        if (
            plain or alone or kinds.count(tool.parameters["properties"].get(name, {}).get("type")) == 1
        ) and self.chance(0.55):
            before = self.one(PREPOSITIONS.get(value.kind, ("for", "", "of")))
            return f"{before} {said}".strip()
        words = other_words(worded(name), 0.25, self.source)
        return str(self.one(self.draw.said["named"]).format(words, said))

    def opening(self, tool: Tool, command: bool = False) -> str:
        """What is wanted: the tool's name in words, or what its description says first."""
        words = worded(tool.name.rsplit(".", 1)[-1]).split()
        about = re.split(r"[.\n:;(]", tool.description.strip())[0].strip()
        if 2 < len(about.split()) < 13 and about.isascii() and self.chance(0.4):
            first, _, rest = about.partition(" ")
            verb = self.base(first.lower())
            if verb:
                return f"{self.one(self.draw.said['verbs'][verb])} {other_words(rest, 0.25, self.source)}"
            if not command and not re.match(r"(this|use|a|an|the|when)\b", about.lower()):
                return other_words(about[:1].lower() + about[1:], 0.25, self.source)
        verb = self.base(words[0]) if len(words) > 1 else ""
        thing = other_words(" ".join(words[1:] if verb else words), 0.3, self.source)
        if verb:
            said = self.one(self.draw.said["verbs"][verb])
            return f"{said} {self.one(('the ', 'the ', 'a ', '', 'my ', ''))}{thing}"
        return (
            f"{self.one(('run ', 'do ', 'use ', ''))}{thing}" if command else f"{self.one(('', 'the ', 'my '))}{thing}"
        )

    def base(self, word: str) -> str:
        """The verb that a word is a form of, if it is one that is known."""
        verbs = self.draw.said["verbs"]
        forms = (
            word,
            word.removesuffix("s"),
            word.removesuffix("es"),
            word.removesuffix("ing"),
            word.removesuffix("ing") + "e",
        )
        return next((form for form in forms if form in verbs), "")

    def noun(self, tool: Tool) -> str:
        words = worded(tool.name).split()
        return " ".join(words[1:]) if len(words) > 1 and self.base(words[0]) else " ".join(words)

    def framed(self, text: str) -> str:
        first = text.split()[0].lower() if text.split() else ""
        known = {said.split()[0] for own in self.draw.said["verbs"].values() for said in own}
        frame = self.one(self.draw.said["frames" if first in known else "wants"])
        return str(frame.replace("{}", text))

    def finished(self, text: str) -> str:
        text = self.framed(text)
        if self.chance(0.6):
            text = text[:1].upper() + text[1:]
        if text[-1:].isalnum():
            text += self.one(("", "", "", ".", "!" if self.chance(0.2) else ""))
        if self.chance(POLITE):
            joint = self.one((" ", ", ", ". ")) if text[-1:].isalnum() else " "
            text = f"{text}{joint}{self.one(self.draw.said['polite'])}"
        return text


def _harder(schema: Mapping[str, Any]) -> bool:
    return "enum" in schema or solid_type(schema) in ("boolean", "array", "object")


def _alike(one: Tool, other: Tool) -> bool:
    """Whether two tools might do the same: most words of their names are shared."""
    a, b = set(worded(one.name).split()), set(worded(other.name).split())
    return len(a & b) * 2 >= min(len(a), len(b)) + 1
