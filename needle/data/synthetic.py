"""Synthetic requests from the catalogue, the embedded default data: seeded, distinct, split by phrasing.

A phrasing template is a frame ("could you …") around a wording ("set an alarm for …"). Wordings and frames are dealt to
training, validation and test once and for all, open values (names, titles, places) likewise, and one tool of each
domain is kept for the test of unseen tools. Half of the test requests have a wording that training never shows, the
other half a frame that it never shows; `meta.phrasing` says which. A record depends on the seed, its split and its
number alone, so that the first 500 are the first 500 of 1,000.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from needle.data.catalogue import Argument, Entry, load_catalogue
from needle.data.speech.joints import SPOKEN
from needle.data.speech.values import Values
from needle.text.records import Call, Record, Tool

Records = tuple[Record, ...]
SLOT = re.compile(r"\{([\w.]+)\}")
STATEMENT = (
    "i ",
    "i'",
    "we ",
    "my ",
    "{",
    "weather ",
    "volume ",
    "let's ",
    "don't ",
    "ticket ",
    "lights ",
    "alarm ",
    "next ",
    "tell me if",
)
PLAIN = 0.2  # share of requests in no frame at all; a test request with a known wording always has one
ORDER_FRAMES = (
    "please {}", "{} please", "can you {}", "could you {}?", "would you {}, please?", "hey, {}", "I'd like you to {}",
    "I need you to {}", "um, {}", "uh, can you, um, {}", "so, {}", "go ahead and {}",
    "it would be great if you could {}", "{}, thanks",
    "be so kind and {}", "{} now", "quick: {}", "okay, {}", "time to {}", "you should {}", "{} when you get a chance",
)  # fmt: skip
ASIDE_FRAMES = (
    "hey, {}",
    "um, {}",
    "so, {}",
    "okay, {}",
    "well, {}",
    "{}, please",
    "hi, {}",
    "listen, {}",
    "hello, {}",
    "{}, thanks",
    "sorry, {}",
    "quick one: {}",
    "right, {}",
)
NEGATIONS = (
    "don't {}",
    "please don't {}",
    "never mind, don't {}",
    "no need to {}",
    "do not {} yet",
    "I don't want you to {}",
    "you must not {}",
    "forget it, don't {}",
    "stop, I didn't ask you to {}",
)
CHAT = (
    "how are you {0}", "tell me a joke about {1}", "I love {1}", "what do you think of {1}", "thank you so much, {2}",
    "good night {2}", "who invented {1}",
    "why is the sky blue {0}", "sing something for {2}", "I'm bored {0}", "are you a robot, {2}",
    "{2} is my best friend", "explain {1} to me", "do you like {1}",
    "what's the meaning of {1}", "I had a strange dream {0}", "write a poem about {1}", "let's talk about {1}",
    "my day was fine {0}", "is {2} a nice name",
)  # fmt: skip
TOPICS = (
    "quantum physics",
    "cats",
    "the moon",
    "old ships",
    "democracy",
    "mathematics",
    "dragons",
    "gardening",
    "chess",
    "philosophy",
    "volcanoes",
    "bees",
    "poetry",
    "dinosaurs",
    "coffee",
    "happiness",
)


@dataclass(unsafe_hash=True)
class SyntheticConfig:
    """How many records of each split; `unseen` are test records whose tools training never shows."""

    train: int = 20_000
    validation: int = 500
    test: int = 1_000
    unseen: int = 250
    negatives: float = 0.2
    max_tools: int = 8
    bare: float = 0.2  # share of records whose tools come without any description, as people often declare them
    domains: str = ""  # names of the catalogue's domains, joined by commas; all when empty
    seed: int = 0


def generate(config: SyntheticConfig) -> tuple[Records, Records, Records]:
    """Training, validation and test; unseen tools stand at the end of test, marked `meta.unseen_tool`."""
    validation = tuple(_split("validation", config.validation, config, frozenset()))
    test = tuple(_split("test", config.test, config, frozenset()))
    unseen = tuple(_split("unseen", config.unseen, config, frozenset()))
    taken = frozenset(record.query for part in (validation, test, unseen) for record in part)
    return tuple(_split("train", config.train, config, taken)), validation, test + unseen


def _split(split: str, count: int, config: SyntheticConfig, taken: frozenset[str]) -> Iterator[Record]:
    """`count` records with requests that are distinct, also from `taken`."""
    world = _World(split, config)
    seen: set[str] = set()
    number = misses = 0
    while len(seen) < count:
        record = world.record(number)
        number += 1
        if record.query in seen or record.query in taken:
            misses += 1
            if misses > 50 * count + 1000:
                raise ValueError(f"the catalogue can't give {count} distinct {split} requests; {len(seen)} were found")
            continue
        seen.add(record.query)
        yield record


def dealt(entry: Entry, split: str) -> tuple[str, ...]:
    """The phrasings of a tool that belong to a split: one to test, one to validation, the rest to training."""
    return _deal(entry.say, split, entry.tool.name, 1)


def _deal(texts: Sequence[str], split: str, salt: str, share: int) -> tuple[str, ...]:
    """In an order by hash: `share` texts to test, as many to validation, the rest to training; unseen tools may use
    all."""
    order = sorted(texts, key=lambda text: hashlib.sha256(f"{salt}:{text}".encode()).digest())
    return {
        "test": tuple(order[:share]),
        "validation": tuple(order[share : 2 * share]),
        "train": tuple(order[2 * share :]),
        "unseen": tuple(order),
    }[split]


def _deal_vague(entry: Entry, split: str) -> tuple[str, ...]:
    """The phrasings that lack a required value. Of two, one is for training and one for the rest; a lone one is for
    training."""
    order = sorted(entry.vague, key=lambda text: hashlib.sha256(f"{entry.tool.name}:{text}".encode()).digest())
    return {"train": tuple(order[1:] or order), "unseen": tuple(order)}.get(
        split, tuple(order[:1] if len(order) > 1 else ())
    )


@lru_cache(maxsize=1)
def unseen_tools() -> frozenset[str]:
    """One tool of each domain, chosen by hash."""
    first: dict[str, str] = {}
    for entry in sorted(load_catalogue(), key=lambda e: hashlib.sha256(e.tool.name.encode()).digest()):
        first.setdefault(entry.domain, entry.tool.name)
    return frozenset(first.values())


def _catalogue(domains: str) -> list[Entry]:
    names = {name.strip() for name in domains.split(",") if name.strip()}
    known = {entry.domain for entry in load_catalogue()}
    if names - known:
        raise ValueError(
            f"data.synthetic.domains names '{sorted(names - known)[0]}'; expected some of {', '.join(sorted(known))}"
        )
    return [entry for entry in load_catalogue() if not names or entry.domain in names]


class _World:
    """What one split may draw from."""

    def __init__(self, split: str, config: SyntheticConfig) -> None:
        self.split, self.config = split, config
        catalogue = _catalogue(config.domains)
        hidden = unseen_tools()
        self.entries = [entry for entry in catalogue if (entry.tool.name in hidden) == (split == "unseen")]
        self.shown = list(catalogue) if split == "unseen" else self.entries
        self.values = Values(held_out=split != "train")
        self.wordings = {entry.tool.name: dealt(entry, split) for entry in self.entries}
        self.vague = {entry.tool.name: _deal_vague(entry, split) for entry in self.entries}
        kind = "test" if split == "unseen" else split
        self.known = (
            {entry.tool.name: dealt(entry, "train") for entry in self.entries}
            if split in ("test", "validation")
            else {}
        )
        self.orders, self.asides = _deal(ORDER_FRAMES, kind, "frame", 4), _deal(ASIDE_FRAMES, kind, "frame", 3)
        self.chat, self.negations = _deal(CHAT, kind, "chat", 4), _deal(NEGATIONS, kind, "negation", 2)
        self.neighbours = {entry.tool.name: _neighbours(entry, self.shown) for entry in self.entries}

    def record(self, number: int) -> Record:
        source = random.Random(f"{self.config.seed}:{self.split}:{number}")
        new_words = not self.known or source.random() < 0.5
        self.phrasings = self.wordings if new_words else self.known
        missing: Entry | None = None
        if source.random() < self.config.negatives:
            query, involved, missing = self._negative(source)
            calls: list[Call] = []
        else:
            query, calls, involved = self._positive(source)
        tools = self._tools(involved, missing, source)
        declared = [entry.tool for entry in tools]
        if source.random() < self.config.bare:
            declared = [_bare(tool) for tool in declared]
        meta: dict[str, Any] = {"unseen_tool": True} if self.split == "unseen" else {}
        if self.known:
            meta["phrasing"] = "new wording" if new_words else "new frame"
        return Record(
            f"synthetic-{self.split}-{number}",
            _finish(query, source),
            tuple(declared),
            tuple(calls),
            "synthetic",
            meta=meta,
        )

    def _positive(self, source: random.Random) -> tuple[str, list[Call], list[Entry]]:
        kind = source.random()
        if kind < 0.65:
            chosen = [source.choice(self.entries)]
        elif kind < 0.83:
            chosen = source.sample(self.entries, min(2, len(self.entries)))
        elif kind < 0.94:
            chosen = [source.choice(self.entries)] * 2
        else:
            chosen = source.sample(self.entries, min(3, len(self.entries)))
        parts = [self._request(entry, source, framed=len(chosen) == 1) for entry in chosen]
        calls = [call for _, call in parts]
        if len({call.key for call in calls}) < len(calls):  # the same call said twice would be one wish
            parts, calls, chosen = parts[:1], calls[:1], chosen[:1]
        query = parts[0][0]
        for text, _ in parts[1:]:
            query = source.choice(SPOKEN).format(query, text)
        return query, calls, chosen

    def _negative(self, source: random.Random) -> tuple[str, list[Entry], Entry | None]:
        """No call is right: nothing fits, the fitting tool is missing, a wish is taken back, or a required value isn't
        given.

        Returns the request, the tools that must be offered, and the one that must not.
        """
        kind = source.random()
        entry = source.choice(self.entries)
        name = entry.tool.name
        if kind < 0.3:  # near miss: neighbours stand in for the tool that would fit
            return self._request(entry, source, framed=True)[0], self.neighbours[name][:4], entry
        if kind < 0.5:
            orders = [text for text in self.phrasings[name] if _is_order(text)]
            if orders:
                core, _ = self._fill(entry, source.choice(orders), source)
                return source.choice(self.negations).format(core), [entry], None
        if kind < 0.8 and self.vague[name]:
            core, _ = self._fill(entry, source.choice(self.vague[name]), source)
            return self._frame(core, source), [entry], None
        day, person = (self.values.draw(kind_of, "", source)[0] for kind_of in ("day", "person"))
        return source.choice(self.chat).format(day, source.choice(TOPICS), person), [entry], None

    def _request(self, entry: Entry, source: random.Random, framed: bool) -> tuple[str, Call]:
        template = source.choice(self.phrasings[entry.tool.name])
        endings = [name for name in entry.endings if f"{{{name}" not in template]
        source.shuffle(endings)
        for name in endings:
            if source.random() < 0.35:
                template = _append(template, source.choice(entry.endings[name]))
        text, arguments = self._fill(entry, template, source)
        return (self._frame(text, source) if framed else text.removeprefix("?")), Call(entry.tool.name, arguments)

    def _frame(self, text: str, source: random.Random) -> str:
        question = text.startswith("?")
        text = text.removeprefix("?")
        plain = self.phrasings is not self.known and source.random() < PLAIN
        frames = self.orders if not question and _is_order(text) else self.asides
        return ("{}" if plain else source.choice(frames)).format(text) + (
            source.choice(("", "?", "?")) if question else ""
        )

    def _fill(self, entry: Entry, template: str, source: random.Random) -> tuple[str, dict[str, Any]]:
        """Draws a value for every slot; typos go into the words around the slots, never into a value."""
        if source.random() < 0.08:
            template = _typo(template, source)
        arguments: dict[str, Any] = {}

        def fill(match: re.Match[str]) -> str:
            path = match.group(1).split(".")
            argument = entry.arguments[path[0]]
            target = arguments
            for step in path[1:]:
                target = target.setdefault(path[0], {})
                argument = argument.members[step]
            surface, value = _draw(argument, self.values, source)
            target[path[-1]] = value
            return surface

        text = SLOT.sub(fill, template)
        return text, {name: arguments[name] for name in entry.arguments if name in arguments}

    def _tools(self, involved: Sequence[Entry], missing: Entry | None, source: random.Random) -> list[Entry]:
        """The involved tools among distractors: about half of them neighbours, the rest from anywhere; never
        `missing`."""
        chosen = {entry.tool.name: entry for entry in involved}
        size = len(chosen) + source.randint(0, max(self.config.max_tools - len(chosen), 0))
        near = (
            [other for entry in involved for other in self.neighbours.get(entry.tool.name, ())[:8]]
            if missing is None
            else []
        )
        pool = source.sample(near, min(len(near), (size - len(chosen) + 1) // 2)) + source.sample(
            self.shown, min(size, len(self.shown))
        )
        for other in pool:
            if len(chosen) < size and (missing is None or other.domain != missing.domain):
                chosen.setdefault(other.tool.name, other)
        offered = list(chosen.values())
        source.shuffle(offered)
        return offered


@lru_cache(maxsize=1)
def _bare_tools() -> dict[str, Tool]:
    return {
        entry.tool.name: Tool(entry.tool.name, "", _undescribed(entry.tool.parameters)) for entry in load_catalogue()
    }


def _bare(tool: Tool) -> Tool:
    return _bare_tools()[tool.name]


def _undescribed(schema: Any) -> Any:
    """The schema without its descriptions."""
    out = {key: value for key, value in schema.items() if key != "description"}
    if "properties" in out:
        out["properties"] = {name: _undescribed(sub) for name, sub in out["properties"].items()}
    return out


def _draw(argument: Argument, values: Values, source: random.Random) -> tuple[str, Any]:
    if argument.nullable and source.random() < 0.2:
        return source.choice(("no particular date", "whenever", "no one in particular")), None
    return argument.draw(values, source)


def _append(template: str, ending: str) -> str:
    return template + ending if ending.startswith(",") else f"{template} {ending}"


def _is_order(text: str) -> bool:
    return not text.startswith("?") and not text.lower().startswith(STATEMENT)


def _finish(query: str, source: random.Random) -> str:
    query = " ".join(query.replace("?", " ?", 1).split()).replace(" ?", "?").lstrip("?").strip()
    if source.random() < 0.5:
        query = query[:1].upper() + query[1:]
    if source.random() < 0.3 and query[-1:].isalnum():
        query += source.choice((".", "!", "."))
    return query


def _typo(template: str, source: random.Random) -> str:
    words = template.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 3 and word.isalpha()]
    if places:
        place = source.choice(places)
        word, cut = words[place], source.randint(1, len(words[place]) - 2)
        words[place] = source.choice(
            (
                word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :],
                word[:cut] + word[cut + 1 :],
                word[:cut] + word[cut] + word[cut:],
            )
        )
    return " ".join(words)


def _neighbours(entry: Entry, shown: Sequence[Entry]) -> list[Entry]:
    """The other tools, nearest first: those that share words, and those of the same domain."""
    mine = _words(entry)

    def distance(other: Entry) -> float:
        theirs = _words(other)
        return -len(mine & theirs) / len(mine | theirs) - 0.15 * (other.domain == entry.domain)

    return sorted((other for other in shown if other is not entry), key=distance)


def _words(entry: Entry) -> set[str]:
    text = f"{entry.tool.name.replace('_', ' ')} {entry.tool.description} {' '.join(entry.arguments)}".lower()
    return set(re.findall(r"[a-z]{3,}", text)) - {"the", "and", "for", "with", "name"}
