"""Values of declared arguments, and how people say them: read off a name, a type, a description and its examples.

A value is drawn only if it can be read back from what was said: a date in the form that a description wants is said in
that form, a number that is declared as a string is said in digits.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from needle.data.invented.draw import Draw
from needle.data.speech.numbers import in_words, plain
from needle.data.speech.times import clock, spoken
from needle.text.leaves import solid_type
from needle.text.words import WORD

EXAMPLES = re.compile(
    r"(?:\(?\be\.?g\.?,?:?|for example,?:?|such as|examples?(?: values?)?(?: are| is)?:|like)\s+([^.;()\n]{1,80})",
    re.IGNORECASE,
)
FORMS = (("yyyy-mm-dd", "%Y-%m-%d"), ("mm/dd/yyyy", "%m/%d/%Y"), ("dd/mm/yyyy", "%d/%m/%Y"), ("iso 8601", "%Y-%m-%d"))
HIDDEN = re.compile(r"api.?key|access.?token|auth|secret|password|callback|jsonp|\bunused\b", re.IGNORECASE)
SCALES = ((1_000_000, " million"), (1000, "k"), (1000, " thousand"))


@dataclass(frozen=True)
class Spoken:
    """A value, and how it is said. `kind` is what a name or a preposition goes with; `items` are those of a list."""

    said: str
    value: Any
    kind: str = ""


@lru_cache(maxsize=2)
def phrases(held_out: bool) -> Mapping[str, Any]:
    """phrases.yaml, of each list but the verbs one half."""
    found = yaml.safe_load(files("needle.data.declared").joinpath("phrases.yaml").read_text(encoding="utf-8"))
    found["odd"] = {kind: lines[held_out::2] for kind, lines in found["odd"].items()}
    return {name: lines[held_out::2] if isinstance(lines, list) else lines for name, lines in found.items()}


class Values(Draw):
    """Draws values; `said` are the phrases of one side."""

    def __init__(self, source: random.Random, held_out: bool) -> None:
        super().__init__(source)
        self.said = phrases(held_out)

    def of(self, name: str, schema: Mapping[str, Any], level: int = 0) -> Spoken | None:
        """A value of an argument; None for one that nobody would say, or that isn't understood. A flag is said by its
        name, which the caller does."""
        words, about = worded(name), str(schema.get("description", ""))
        if HIDDEN.search(words) or level > 3:
            return None
        if "anyOf" in schema:
            beside = {key: value for key, value in schema.items() if key != "anyOf"}
            return self.of(name, {**beside, **self.one(schema["anyOf"])}, level)
        members = [member for member in schema.get("enum", ()) if member is not None]
        if members:
            return self.member(members)
        kind = solid_type(schema)
        if kind == "boolean":
            return Spoken("", self.chance(0.5), "flag")
        if kind in ("integer", "number"):
            return self.number(words, about, schema, kind == "integer")
        if kind == "array":
            return self.several(name, schema, level)
        if kind == "object":
            return self.group(schema, level)
        return self.text(words, about, schema) if kind in ("string", None) else None

    def member(self, members: Sequence[Any]) -> Spoken:
        value = self.one(members)
        text = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
        plainly = re.sub(r"[_-]+", " ", text) if re.search(r"[a-z]", text, re.IGNORECASE) else text
        return Spoken(self.one((text, plainly, plainly.lower())), value, "member")

    def number(self, words: str, about: str, schema: Mapping[str, Any], whole: bool) -> Spoken:
        low, high = schema.get("minimum"), schema.get("maximum")
        found = re.search(r"(?<![\w.-])(-?\d+(?:\.\d+)?) ?(?:-|–|to|and) ?(\d+(?:\.\d+)?)(?![\w-])", about)
        if low is None and high is None and found:
            low, high = sorted((float(found[1]), float(found[2])))
        draw = self.source.randint
        kinds: tuple[tuple[str, float, float, bool], ...] = (
            (r"\byear\b", 1950, 2030, True), (r"\bmonth\b", 1, 12, True), (r"\bhour\b", 0, 23, True),
            (r"\bage\b", 1, 95, True), (r"latitude|\blat\b", -90, 90, False),
            (r"longitude|\blo?ng?\b", -180, 180, False),
            (r"limit|count|max|number of|num\b|\bsize\b|page|top|quantity|guests|people|\bk\b", 1, 100, True),
            (r"percent|opacity|volume|brightness|humidity", 0, 100, True), (r"\bport\b", 80, 9999, True),
            (r"rating|stars|score", 1, 5, False), (r"probability|ratio|fraction|threshold|confidence", 0, 1, False),
            (r"\bid\b|identifier", 1, 99999, True),
        )  # fmt: skip
        if low is None and high is None:
            for form, least, most, integral in kinds:
                if re.search(form, words):
                    low, high, whole = least, most, whole or integral
                    break
        if low is None and high is None:
            value: float = self.figure(whole)
        else:
            least = float(low if low is not None else min(0, high or 0))
            most = float(high if high is not None else least + self.one((10, 100, 1000)))
            value = (
                draw(int(-(-least // 1)), max(int(most // 1), int(-(-least // 1))))
                if whole or (most - least > 3 and self.chance(0.5))
                else plain(round(self.source.uniform(least, most), self.one((1, 1, 2, 2, 4))))
            )
        return Spoken(self.figure_said(value, words, about), value, "number")

    def figure_said(self, value: float, words: str, about: str) -> str:
        """Digits mostly; words, thousands, signs and units now and then."""
        text, chance = str(value), self.source.random()
        if isinstance(value, int):
            if 0 <= value <= 100 and chance < 0.25:
                text = in_words(value)
            elif value >= 1000 and chance < 0.2:
                text = f"{value:,}"
            elif value >= 1000 and chance < 0.35:
                text = next((f"{value // size}{word}" for size, word in SCALES if value % size == 0), text)
        if value < 0 and self.chance(0.3):
            text = f"minus {-value}"
        unit = re.search(
            r"\bin (seconds|minutes|hours|days|weeks|meters|km|miles|kg|percent|dollars|euros|pixels|px|ms)\b",
            f"{words} {about}".lower(),
        )
        if unit and self.chance(0.7):
            if unit[1] == "dollars" and text[:1].isdigit():
                return f"${text}"
            return f"{text}%" if unit[1] == "percent" and self.chance(0.5) else f"{text} {unit[1]}"
        if re.search(r"price|cost|amount|budget|salary", words) and text[:1].isdigit() and self.chance(0.4):
            return str(self.one((f"${text}", f"{text} dollars", f"{text} euros", f"€{text}")))
        return text

    def several(self, name: str, schema: Mapping[str, Any], level: int) -> Spoken | None:
        items = schema.get("items")
        items = items if isinstance(items, Mapping) and items else {"type": "string"}
        if solid_type(items) in ("boolean", "array") or "prefixItems" in schema:
            return None
        single = re.sub(r"s$", "", name)
        made: dict[str, Spoken] = {}
        for _ in range(self.one((1, 2, 2, 3, 3, 4))):
            one = self.of(
                single, {**items, "description": items.get("description", schema.get("description", ""))}, level + 1
            )
            if one is None:
                return None
            made.setdefault(str(one.value), one)
        values = list(made.values())
        grouped = values[0].kind == "group"
        if grouped:
            row = self.one(("; ", ", and ", " and ")).join(one.said for one in values)
        else:
            row = self.listed([one.said for one in values])
        return Spoken(row, [one.value for one in values], "groups" if grouped else "list")

    def group(self, schema: Mapping[str, Any], level: int) -> Spoken | None:
        """An object, its members by name; of one that may hold anything, a few names."""
        properties = schema.get("properties", {})
        if not properties:
            extra = schema.get("additionalProperties")
            if extra is False:
                return None
            pairs: dict[str, Spoken] = {}
            for _ in range(self.one((1, 2, 2))):
                own = extra if isinstance(extra, Mapping) and extra else {"type": "string"}
                value = self.of(key := self.noun(), own, level + 1)
                if value is None or not isinstance(value.value, str | int | float) or value.kind == "flag":
                    return None
                pairs[key] = value
            form = self.one(("{0} {1}", "{0}: {1}", "{0}={1}", "{0} is {1}", "{0} set to {1}"))
            row = self.row([form.format(key, one.said) for key, one in pairs.items()])
            return Spoken(row, {key: one.value for key, one in pairs.items()}, "group")
        parts, values = [], {}
        required = schema.get("required", ())
        for name, own in properties.items():
            if name not in required and not self.chance(0.5 if required else 0.7):
                continue
            one = self.of(name, own, level + 1)
            if one is None or one.kind in ("group", "groups"):
                if name in required:
                    return None
                continue
            parts.append(
                self.flag(name, bool(one.value))
                if one.kind == "flag"
                else self.one(
                    ("{0} {1}", "{0} {1}", "{0}: {1}", "{1}" if one.kind not in ("number", "list") else "{0} {1}")
                ).format(worded(name), one.said)
            )
            values[name] = one.value
        return Spoken(self.one((", ", " and ", ", ")).join(parts), values, "group") if values else None

    def flag(self, name: str, value: bool) -> str:
        about = re.sub(
            r"^(is|has|should|enable|enabled|include|use|allow|with|show|do|want|needs?|only)\b ?", "", worded(name)
        )
        about = re.sub(r" ?\b(enabled|allowed|included|required|only|on|flag)$", "", about) or worded(name)
        return str(self.one(self.said["on" if value else "off"])).format(about)

    # Texts

    def text(self, words: str, about: str, schema: Mapping[str, Any]) -> Spoken | None:
        form, lower = schema.get("format", ""), about.lower()
        if "pattern" in schema:
            return None
        if form == "date":  # said as the reader of typed values knows it without a calendar
            day = self.day()
            said = (day.isoformat(), f"{day:%B} {day.day}, {day.year}", f"{day.day} {day:%B} {day.year}")
            return Spoken(self.one(said), day.isoformat(), "date")
        if form in ("date-time", "time", "duration"):
            return None
        for name, code in FORMS:
            if name in lower or (name == "yyyy-mm-dd" and re.search(r"\d{4}-\d\d-\d\d", about)):
                day = self.day()
                return Spoken(day.strftime(code), day.strftime(code), "date")
        examples = self.examples(about, schema)
        if examples and self.chance(0.55):
            return self.quote(self.one(examples), "example")
        kind = self.odd_kind(words)
        if kind and self.chance(0.75):
            value = self.odd(kind)
            return Spoken(self.wrapped(value), value, "odd")
        head = words.split()[-1] if words else ""
        if re.search(r"number of|limit|\bcount\b|max|\bsize\b|offset|\bpage\b|quantity", words):
            value = str(self.source.randint(1, 50))
            return Spoken(value, value, "number")
        if re.search(r"\byear\b", words):
            value = str(self.source.randint(1950, 2030))
            return Spoken(value, value, "number")
        if re.search(r"\b(date|day|birthday|deadline|when)\b", words):
            return self.quote(self.one(spoken(self.day())), "date")
        if re.search(r"\btime\b", words):
            return self.quote(self.one(clock(self.source.randint(0, 23), self.one((0, 15, 30, 45)))), "time")
        if re.search(r"\b(duration|period|interval)\b", words):
            return self.quote(
                f"{self.source.randint(2, 30)} {self.one(('days', 'minutes', 'weeks', 'months', 'hours'))}", "duration"
            )
        if re.search(r"\b(id|ids|identifier|uuid|guid|key|sku|code|symbol|hash|slug|ref|reference)\b", words):
            return Spoken(value := self.identifier(words), value, "code")
        found = self.words["kind_of"].get(words) or self.words["kind_of"].get(head)
        if head in ("name", "title") and not found:
            value = self.value(self.one(("person", "title", "product", "company", "topic", "topic", "filename")))
            return self.quote(self.one((value, value.title())), "title")
        if head in ("country", "countries") and self.chance(0.2):
            return Spoken(value := self.one(("US", "DE", "FR", "GB", "JP", "IN", "BR")), value, "country")
        if found:
            return self.quote(self.value(found), found)
        value = self.value(
            self.one(("topic", "topic", "topic", "title", "remark", "product", "company", "person", "city"))
        )
        return self.quote(self.one((value, value, value.title())), "topic")

    def examples(self, about: str, schema: Mapping[str, Any]) -> list[str]:
        found = [text for text in schema.get("examples", ()) if isinstance(text, str)]
        for part in EXAMPLES.findall(about):
            found += part.split(",") if not re.search(r"\d,\s?\d", part) else [part]
        found = [re.sub(r"^(or|and) ", "", text.strip(" '\"`)")) for text in found]
        return [text for text in found if 1 < len(text) < 60 and not re.search(r"\betc\b|\.\.\.|^the |^a ", text)]

    def odd_kind(self, words: str) -> str:
        forms = (
            ("url", r"\b(url|uri|link|website|webhook|endpoint|domain)\b"), ("sql", r"\b(sql|statement)\b"),
            ("shell", r"\b(command|cmd|shell|script)\b"), ("code", r"\b(code|snippet|source)\b(?! id)"),
            ("sum", r"\b(expression|formula|equation)\b"), ("regex", r"\b(pattern|regex|regexp)\b"),
            ("path", r"\b(path|file|filename|directory|folder|filepath)\b"),
            ("json", r"\b(json|payload|data|config|filter)\b"),
            ("note", r"\b(text|body|content|message|note|notes|description|comment|markdown|prompt)\b"),
        )  # fmt: skip
        return next((kind for kind, form in forms if re.search(form, words)), "")

    def odd(self, kind: str) -> str:
        if kind == "note" and self.chance(0.6):
            return self.value(self.one(("remark", "remark", "topic", "chore")))
        noun, other = self.noun(), self.noun()
        host = f"{self.one(('www.', 'api.', ''))}{noun}.{self.one(('com', 'org', 'io', 'net', 'de'))}"
        fill = {"noun": noun, "noun2": other, "adjective": self.adjective(), "n": self.source.randint(2, 9999)}
        return str(self.one(self.said["odd"][kind])).format(**fill, host=host, code=self.identifier(""))

    def wrapped(self, value: str) -> str:
        return str(
            self.one(
                (
                    value,
                    value,
                    value,
                    f"`{value}`",
                    f'"{value}"' if '"' not in value else value,
                    f"'{value}'" if "'" not in value else value,
                )
            )
        )

    def identifier(self, words: str) -> str:
        draw, letters = self.source.randint, "ABCDEFGHJKLMNPQRSTUVWXYZ"
        three = "".join(self.one(letters) for _ in range(3))
        return str(self.one((
            str(draw(1, 99999)), str(draw(10**5, 10**8)), f"{three}-{draw(10, 9999)}", f"{three}{draw(1, 999)}",
            f"{self.noun()}-{draw(1, 99)}", f"{self.noun()}_{self.noun()}", three, f"{draw(16**7, 16**8 - 1):x}",
            f"{words.split()[0]}_{draw(1, 999)}" if words else three.lower(), f"#{draw(1, 9999)}",
        )))  # fmt: skip

    def quote(self, value: str, kind: str) -> Spoken:
        return Spoken(self.quoted(value) if len(value.split()) > 1 else value, value, kind)


def worded(name: str) -> str:
    return " ".join(word.lower() for word in WORD.findall(name)) or name
