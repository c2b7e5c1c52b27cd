"""The arguments of made-up tools: for each a schema, a value, and a way to say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from needle.data.invented.draw import Draw, plural
from needle.data.rename import styled
from needle.data.speech.numbers import plain
from needle.data.speech.times import clock, spoken

DATES = (
    ("%Y-%m-%d", "in the format YYYY-MM-DD"),
    ("%Y-%m-%d", "(YYYY-MM-DD)"),
    ("%d/%m/%Y", "as DD/MM/YYYY"),
    ("%m/%d/%Y", "in MM/DD/YYYY format"),
    ("", "as it was said"),
    ("", ""),
)
TIMES = (
    ("{0:02d}:{1:02d}", "in the format HH:MM"),
    ("{0:02d}:{1:02d}", "(HH:MM, 24 hours)"),
    ("{0:02d}:{1:02d}:00", "in the format HH:MM:SS"),
    ("", ""),
)
SHAPES: tuple[Callable[[str], str], ...] = (
    str,
    str,
    str.title,
    str.upper,
    lambda text: text.replace(" ", "_"),
    lambda text: text.upper().replace(" ", "_"),
)
Schemas = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Said:
    """Arguments with values, and how a request says them: `bare` may follow a noun as it is ("in Oslo"), else it is a
    noun phrase ("a limit of 3")."""

    text: str
    values: Mapping[str, Any]
    bare: bool = False


@dataclass
class Part:
    """One or more arguments of a tool that are said together. `each` draws a text and how it is written, for requests
    that name several after `before`."""

    words: str
    schemas: Schemas
    say: Callable[[], Said]
    required: bool = True
    each: Callable[[], tuple[str, str]] | None = None
    before: str = ""


class Arguments(Draw):
    """Draws arguments that one tool can hold together: whatever is said without its name is said so of one of them
    alone."""

    def begin(self, noun: str, style: str) -> None:
        """Starts a new tool."""
        self.of, self.style = noun, style
        self.measured: set[str] = set()
        self.alone: set[str] = set()
        self.before: set[str] = set()
        self.unnamed = False

    def part(self) -> Part:
        makers: dict[Callable[[], Part], int] = {
            self.measure: 17, self.count: 13, self.share: 7, self.symbols: 6, self.year: 3, self.text: 24,
                self.route: 3, self.about: 6, self.date: 5, self.time: 4, self.option: 8,
            self.code: 5, self.flag: 5, self.numbers: 4, self.texts: 4, self.group: 3,
        }  # fmt: skip
        return self.source.choices(list(makers), list(makers.values()))[0]()

    def named(self, words: str, schema: dict[str, Any], about: Sequence[str]) -> tuple[str, Schemas]:
        described = self.one(about)
        return styled(words.replace("-", " ").split(), self.style), {
            styled(words.replace("-", " ").split(), self.style): {
                **schema,
                **({"description": described} if described else {}),
            }
        }

    def measure(self) -> Part:
        measures, units = self.one([pair for pair in self.words["measures"] if pair[0][0] not in self.alone])
        alone = measures[0] not in self.measured and self.chance(0.35)  # then the unit tells enough
        (self.alone if alone else self.measured).add(measures[0])
        word, unit, whole = self.one(measures), self.one(units), self.chance(0.5)
        name, schemas = self.named(
            word,
            {"type": "integer" if whole else "number"},
            (
                "",
                f"{word.capitalize()} in {unit}",
                f"The {word} of the {self.of}",
                f"{word.capitalize()} of the {self.of} in {unit}.",
            ),
        )

        def say() -> Said:
            value = self.figure(whole)
            text = self.written(value)
            shown = (
                f"${text}"
                if unit in ("dollars", "USD") and text[0].isdigit() and self.chance(0.7)
                else f"{text} {unit}"
                if alone or self.chance(0.85)
                else text
            )
            if alone and self.chance(0.6):
                return Said(
                    f"{self.one(('of', 'for', 'at', 'in', 'after', 'within'))} {shown}", {name: value}, bare=True
                )
            return Said(self.phrase(word, shown), {name: value})

        return Part(word, schemas, say)

    def count(self) -> Part:
        word = self.one(self.words["counts"])
        words = self.one((word, word, f"number of {word}", f"max {word}")) if word.endswith("s") else word
        most = self.one((None, None, None, 10, 20, 50, 100))
        schema = {
            "type": "integer",
            **({"minimum": 1, "maximum": most} if most else {}),
            **({"default": self.source.randint(1, 10)} if self.chance(0.15) else {}),
        }
        name, schemas = self.named(
            words,
            schema,
            (
                "",
                f"The {words}",
                f"How many {word}",
                f"{words.capitalize()} (default is {self.source.randint(1, 20)})",
                f"{words.capitalize()}, at most {most or 100}",
            ),
        )

        def say() -> Said:
            value = self.source.randint(1, most or 20) if most or self.chance(0.6) else abs(int(self.figure(True)))
            shown = self.written(value)
            return Said(
                f"{shown} {word}" if word.endswith("s") and self.chance(0.6) else self.phrase(words, shown),
                {name: value},
            )

        return Part(words, schemas, say)

    def share(self) -> Part:
        """A share, in percent or as a fraction; the description tells which."""
        word, fraction = self.one(self.words["shares"]), self.chance(0.5)
        forms = (
            ("as a decimal", "as a fraction, e.g. 0.05 for 5%", "between 0 and 1")
            if fraction
            else ("in percent", "as a percentage", "(%)")
        )
        name, schemas = self.named(word, {"type": "number"}, [f"{word.capitalize()} {form}" for form in forms])

        def say() -> Said:
            draw = self.source.randint
            percent: float = self.one(
                (draw(1, 30), draw(1, 99), plain(round(self.source.uniform(0.5, 20), 1)), 5 * draw(1, 19))
            )
            value = round(percent / 100, 4) if fraction else percent
            shown = (
                self.one((f"{percent}%", f"{percent}%", f"{percent} percent"))
                if not fraction or self.chance(0.75)
                else str(value)
            )
            return Said(f"{shown} {word}" if self.chance(0.25) else self.phrase(word, shown), {name: value})

        return Part(word, schemas, say)

    def symbols(self) -> Part:
        """Numbers that are told apart by the order in which they are said, or by their short names."""
        names, kind, unnamed = (
            self.one(self.words["symbols"]),
            self.one(("integer", "integer", "number")),
            not self.unnamed,
        )
        self.unnamed = True
        made = [
            self.named(word, {"type": kind}, ("", f"{place} number", f"The {place.lower()} value"))
            for word, place in zip(names, ("First", "Second", "Third"), strict=False)
        ]

        def say() -> Said:
            values = [self.figure(kind == "integer") for _ in made]
            texts = [self.written(value) for value in values]
            row = f"{', '.join(texts[:-1])} and {texts[-1]}"
            if names[0] in ("start", "lower bound", "min") and self.chance(0.7):
                row = f"{texts[0]} to {texts[-1]}"
            named = " and ".join(f"{word} = {shown}" for word, shown in zip(names, texts, strict=True))
            text = (
                f"{self.one(('of', 'for', 'from', 'between'))} {row}"
                if unnamed and self.chance(0.6)
                else f"for {named}"
            )
            return Said(text, {name: value for (name, _), value in zip(made, values, strict=True)}, bare=True)

        return Part(names[0], {name: schema for _, own in made for name, schema in own.items()}, say)

    def year(self) -> Part:
        word = self.one(self.words["years"])
        name, schemas = self.named(
            word, {"type": "integer"}, ("", f"The {word}", f"{word.capitalize()} of the {self.of}")
        )

        def say() -> Said:
            value = self.source.randint(1800, 2030)
            return (
                Said(f"in {value}", {name: value}, bare=True)
                if word == "year" and self.chance(0.6)
                else Said(self.phrase(word, str(value)), {name: value})
            )

        return Part(word, schemas, say)

    def text(self) -> Part:
        kind = self.one([kind for kind, (_, before) in self.words["kinds"].items() if set(before) - self.before])
        names, before = self.words["kinds"][kind]
        word, preposition = self.one(names), self.one([word for word in before if word not in self.before])
        self.before.add(preposition)
        schema: dict[str, Any] = {"type": ["string", "null"]} if self.chance(0.06) else {"type": "string"}
        name, schemas = self.named(
            word,
            schema,
            (
                "",
                f"The {word} of the {self.of}",
                f"{word.capitalize()}",
                f"Name of the {word}",
                f"The {word}, e.g. {self.value(kind)}",
            ),
        )

        def each() -> tuple[str, str]:
            value = self.value(kind)
            return value, f"'{value}'" if kind == "remark" and self.chance(0.5) else self.quoted(value)

        def say() -> Said:
            value, shown = each()
            if self.chance(0.5) and kind != "code":
                return Said(f"{preposition} {shown}", {name: value}, bare=True)
            return Said(self.phrase(word, shown), {name: value})

        return Part(word, schemas, say, each=each, before=preposition)

    def route(self) -> Part:
        """From one place to another: the words before the values tell them apart."""
        made = [
            self.named(word, {"type": "string"}, ("", f"The {word}", f"Where it {verb}"))
            for word, verb in zip(self.one(self.words["routes"]), ("starts", "ends"), strict=True)
        ]
        self.before |= {"from", "to", "in"}

        def say() -> Said:
            kind = self.one(("city", "city", "street", "place", "country"))
            values = [self.value(kind), self.value(kind)]
            text = self.one(
                (
                    "from {0} to {1}",
                    "from {0} to {1}",
                    "to {1} from {0}",
                    "between {0} and {1}",
                    "starting in {0} and ending in {1}",
                )
            ).format(*values)
            return Said(text, {name: value for (name, _), value in zip(made, values, strict=True)}, bare=True)

        return Part("route", {name: schema for _, own in made for name, schema in own.items()}, say)

    def about(self) -> Part:
        """Any noun, with a text that anything may be: only the word before it tells where it belongs."""
        word = self.noun()
        name, schemas = self.named(
            word,
            {"type": "string"},
            ("", f"The {word} of the {self.of}", f"{word.capitalize()}", f"Which {word} to use"),
        )

        def say() -> Said:
            value = self.value("topic")
            value = value.title() if self.chance(0.3) else value
            return Said(self.phrase(word, self.quoted(value)), {name: value})

        return Part(word, schemas, say)

    def date(self) -> Part:
        """A date, as the description wants it."""
        word, (form, about) = self.one(self.words["dates"]), self.one(DATES)
        name, schemas = self.named(
            word, {"type": "string"}, (f"{word.capitalize()} {about}".strip(), f"The {word} {about}".strip())
        )

        def say() -> Said:
            day = self.day()
            shown = self.one(spoken(day))
            value = day.strftime(form) if form else shown
            return (
                Said(f"on {shown}", {name: value}, bare=True)
                if word == "date" and self.chance(0.6)
                else Said(self.phrase(word, shown), {name: value})
            )

        return Part(word, schemas, say)

    def time(self) -> Part:
        """A time of day, as the description wants it."""
        word, (form, about) = self.one(self.words["times"]), self.one(TIMES)
        name, schemas = self.named(
            word, {"type": "string"}, (f"{word.capitalize()} {about}".strip(), f"The {word} {about}".strip())
        )

        def say() -> Said:
            hour, minute = self.source.randint(0, 23), self.one((0, 0, 15, 30, 45, self.source.randint(1, 59)))
            shown = self.one(clock(hour, minute))
            value = form.format(hour, minute) if form else shown
            return (
                Said(f"at {shown}", {name: value}, bare=True)
                if word == "time" and "at" not in self.before and self.chance(0.6)
                else Said(self.phrase(word, shown), {name: value})
            )

        return Part(word, schemas, say)

    def members(self) -> list[str]:
        found = self.source.sample(self.words["adjective" if self.chance(0.4) else "noun"], self.source.randint(2, 7))
        if self.chance(0.3):
            found = [f"{word} {self.noun()}" if self.chance(0.5) else word for word in found]
        return list(dict.fromkeys(found))

    def option(self) -> Part:
        """One of a few words."""
        word = self.one(self.words["options"]) if self.chance(0.7) else self.noun()
        words = f"{self.noun()} {word}" if self.chance(0.4) else word
        shape = self.one(SHAPES)
        return self.chosen(
            words,
            {shape(member): member for member in self.members()},
            ("", f"The {words}", f"{words.capitalize()} of the {self.of}"),
        )

    def code(self) -> Part:
        """One of a few codes, which the request says in words and the description mostly explains."""
        words, codes = self.one(list(self.words["codes"].items()))
        kept = self.source.sample(list(codes), self.source.randint(2, len(codes)))
        explained = ", ".join(f"{code}: {codes[code]}" for code in kept)
        return self.chosen(
            words,
            {code: codes[code] for code in kept},
            (f"The {words} ({explained})", f"{words.capitalize()}: {explained}", f"The {words}"),
        )

    def chosen(self, words: str, members: Mapping[str, str], about: Sequence[str]) -> Part:
        """An enum whose members are said as the mapping has them, or as they are."""
        name, schemas = self.named(words, {"type": "string", "enum": list(members)}, about)

        def say() -> Said:
            value = self.one(list(members))
            shown = self.one((members[value], members[value], value))
            return Said(f"{shown} {words}" if self.chance(0.3) else self.phrase(words, shown), {name: value})

        return Part(words, schemas, say)

    def flag(self) -> Part:
        form, (yes, no) = self.one(list(self.words["flags"].items()))
        fill = {"noun": self.noun(), "adjective": self.adjective()}
        words = form.format(**fill)
        about = f"Whether to {words}" if words.split()[0] in ("include", "allow", "use") else f"If {words}"
        name, schemas = self.named(
            words,
            {"type": "boolean", **({"default": False} if self.chance(0.2) else {})},
            ("", about, f"{about}. Defaults to false"),
        )

        def say() -> Said:
            value = self.chance(0.6)
            return Said(self.one(yes if value else no).format(**fill), {name: value})

        return Part(words, schemas, say)

    def numbers(self) -> Part:
        word = (
            plural(self.noun())
            if self.chance(0.5)
            else self.one(("values", "numbers", "data", "scores", "prices", "measurements", "data points", "ages"))
        )
        kind = self.one(("integer", "number"))
        name, schemas = self.named(
            word, {"type": "array", "items": {"type": kind}}, ("", f"The {word}", f"List of {word}")
        )

        def say() -> Said:
            values = [self.figure(kind == "integer") for _ in range(self.source.randint(2, 6))]
            texts = [str(value) for value in values]
            row = self.one((", ".join(texts), f"[{', '.join(texts)}]", f"{', '.join(texts[:-1])} and {texts[-1]}"))
            return Said(f"the {word} {row}" if self.chance(0.5) else self.phrase(word, row), {name: values})

        return Part(word, schemas, say)

    def texts(self) -> Part:
        kind = self.one(("person", "city", "country", "product", "grocery", "company", "language", "topic"))
        word = plural({"person": "name", "grocery": "ingredient"}.get(kind, kind) if self.chance(0.6) else self.noun())
        members = self.members() if self.chance(0.3) else []
        name, schemas = self.named(
            word,
            {"type": "array", "items": {"type": "string", **({"enum": members} if members else {})}},
            ("", f"The {word}", f"List of {word}"),
        )

        def say() -> Said:
            size = self.source.randint(1, min(4, len(members)) if members else 4)
            values = (
                self.source.sample(members, size)
                if members
                else list(dict.fromkeys(self.value(kind) for _ in range(size)))
            )
            return Said(
                f"the {word} {self.listed(values)}" if self.chance(0.5) else self.phrase(word, self.listed(values)),
                {name: values},
            )

        return Part(word, schemas, say)

    def group(self) -> Part:
        """An object of a few arguments."""
        word = self.one(self.words["groups"])
        inner: list[Part] = []
        for make in self.source.choices(
            (self.measure, self.count, self.about, self.option, self.date), k=self.one((2, 2, 3))
        ):
            part = make()
            if not any(set(part.schemas) & set(other.schemas) for other in inner):
                inner.append(part)
        properties = {name: schema for part in inner for name, schema in part.schemas.items()}
        name, schemas = self.named(
            word,
            {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False},
            ("", f"The {word}", f"{word.capitalize()} of the {self.of}"),
        )

        def say() -> Said:
            said = [part.say() for part in inner]
            self.source.shuffle(said)
            values = {own: value for one in said for own, value in one.values.items()}
            return Said(
                f"{self.one(('the ', 'a ', ''))}{word} with {self.row([one.text for one in said])}",
                {name: {own: values[own] for own in properties}},
            )

        return Part(word, schemas, say)
