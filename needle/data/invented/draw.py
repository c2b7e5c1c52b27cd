"""Words, values and the ways in which people write them: what made-up tools and requests are drawn from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml
from faker.providers.lorem.en_US import Provider

from needle.data.rename import synonyms
from needle.data.speech.numbers import plain, spellings
from needle.data.speech.values import Values

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZabcdefghkmnpqrstuvwxyz0123456789"
FORMULAS = (
    "x^2 + 3x - 4",
    "sin(x)",
    "2*x + 1",
    "e^x",
    "3x + 5 = 20",
    "log(x) / x",
    "x**3",
    "a*b + c",
    "sqrt(x + 1)",
    "SELECT * FROM orders",
    "A1:B20",
    "5x^3 - 2x",
)


@lru_cache(maxsize=1)
def vocabulary() -> Mapping[str, Any]:
    """words.yaml with its comma-separated lists cut, and Faker's nouns and adjectives."""
    found: dict[str, Any] = yaml.safe_load(
        files("needle.data.invented").joinpath("words.yaml").read_text(encoding="utf-8")
    )
    found["verbs"] = {verb: said.split(", ") for verb, said in found["verbs"].items()}
    found["measures"] = [(words.split(", "), units.split(", ")) for words, units in found["measures"].items()]
    cut = {kind: text.split("; ") for kind, text in found["kinds"].items()}
    found["kinds"] = {
        kind: (names.split(", "), before.replace('"', "").split(", ")) for kind, (names, before) in cut.items()
    }
    found["kind_of"] = {word: kind for kind, (names, _) in found["kinds"].items() for word in names}
    found["flags"] = {form: [part.split(", ") for part in said.split("; ")] for form, said in found["flags"].items()}
    parts = Provider.parts_of_speech
    found["noun"] = [word for word in dict.fromkeys(parts["noun"]) if len(word) > 2]
    found["adjective"] = [word for word in dict.fromkeys(parts["adjective"]) if len(word) > 2]
    found["common"] = [
        word for word in synonyms() if word in set(parts["noun"])
    ]  # nouns that have other words for them
    return found


@lru_cache(maxsize=1)
def _values() -> Values:
    return Values(held_out=False)


def plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


class Draw:
    """Draws words and values from one random source."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.words = vocabulary()

    def one(self, options: Sequence[Any]) -> Any:
        return self.source.choice(options)

    def chance(self, share: float) -> bool:
        return self.source.random() < share

    def noun(self) -> str:
        return str(self.one(self.words["common" if self.chance(0.25) else "noun"]))

    def adjective(self) -> str:
        return str(self.one(self.words["adjective"]))

    def thing(self) -> str:
        """One to three words for what a tool is about."""
        found = [self.noun() for _ in range(self.one((1, 2, 2, 2, 3)))]
        if self.chance(0.3):
            found[0] = self.adjective()
            found.append(self.noun())
        return " ".join(dict.fromkeys(found[:3]))

    def figure(self, whole: bool) -> float:
        """A number of any size, rarely zero or below."""
        draw = self.source.random()
        if draw < 0.03:
            return 0
        if draw < 0.08:
            return -self.source.randint(1, 200) if whole else -plain(round(self.source.uniform(0.1, 100), 1))
        if draw < 0.13:
            return self.source.randint(1, 90) * int(10 ** self.one((5, 5, 6, 7)))
        if whole or self.chance(0.5):
            size = self.source.randint
            return int(
                self.one(
                    (
                        size(1, 12),
                        size(1, 100),
                        size(1, 1000),
                        int(10 ** size(1, 5)) * size(1, 9),
                        5 * size(1, 200),
                        size(1000, 99999),
                    )
                )
            )
        return plain(round(self.source.uniform(0.1, self.one((1, 10, 100, 1000, 20000))), self.one((1, 1, 2, 2, 3))))

    def written(self, value: float) -> str:
        """A number as people write it."""
        return str(self.one(spellings(value))) if self.chance(0.35) else str(value)

    def day(self) -> date:
        return date(2018, 1, 1) + timedelta(days=self.source.randint(0, 3650))

    def quoted(self, value: str) -> str:
        return str(self.one((value, value, value, f"'{value}'", f'"{value}"')))

    def listed(self, texts: Sequence[str]) -> str:
        """Texts in a row; quoted if a comma or an "and" in one of them would seem to part it."""
        if len(texts) > 1 and any("," in text or " and " in text for text in texts):
            texts = [f'"{text}"' for text in texts]
        return self.row(texts)

    def row(self, texts: Sequence[str]) -> str:
        last: str = self.one((" and ", " and ", ", and ", ", ", "; "))
        return last.join(texts) if len(texts) < 3 else ", ".join(texts[:-1]) + last + texts[-1]

    def phrase(self, words: str, value: str) -> str:
        """A noun phrase that gives a value its name."""
        forms = (
            "{0} {1}",
            "{0} {1}",
            "a {0} of {1}",
            "a {0} of {1}",
            "the {0} {1}",
            "{0}: {1}",
            "{0} = {1}",
            "{1} as the {0}",
            "{0} set to {1}",
            "the {0} is {1}",
            "{0} of {1}",
        )
        return str(self.one(forms).format(words, value))

    def value(self, kind: str) -> str:
        """A text of a kind of words.yaml."""
        draw = self.source.randint
        if kind == "topic":
            return (
                self.thing()
                if self.chance(0.5)
                else self.noun()
                if self.chance(0.6)
                else f"{self.adjective()} {self.noun()}"
            )
        if kind == "code":
            letters = "".join(self.one(LETTERS) for _ in range(draw(3, 8)))
            return str(self.one((letters, f"{letters[:3].upper()}-{draw(100, 99999)}", str(draw(100, 99999999)))))
        if kind == "link":
            host = f"{self.one(('www.', '', 'api.'))}{self.noun()}.{self.one(('com', 'org', 'io', 'net'))}"
            return f"https://{host}{self.one(('', f'/{self.noun()}', f'/{self.noun()}/{draw(1, 999)}'))}"
        if kind == "ip":
            return f"{self.one((10, 172, 192))}.{draw(0, 255)}.{draw(0, 255)}.{draw(1, 254)}"
        if kind == "path":
            return f"/{self.noun()}/{self.noun()}" + str(self.one(("", f"/{self.noun()}.txt", ".csv", ".json", ".py")))
        if kind == "formula":
            return str(self.one(FORMULAS))
        if kind == "remark":
            remarks = [
                str(_values().draw(self.one(("remark", "remark", "chore")), "", self.source)[1])
                for _ in range(self.one((1, 1, 2)))
            ]
            return str(self.one((" and ", ", please ", "! "))).join(remarks)
        return str(_values().draw(kind, "", self.source)[1])
