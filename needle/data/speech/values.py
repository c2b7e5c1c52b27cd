"""Values for synthetic requests: each kind draws a surface (what the user says) and a JSON value (what the tool gets).

Open kinds (names, titles, places) come from pools that training and test share no member of.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from faker import Faker

from needle.data.speech.numbers import ONES, in_words
from needle.data.speech.times import clock

Drawn = tuple[str, Any]
SAID = {*range(13), 15, 20, 25, 30, 40, 45, 50, 60, 90}  # the numbers that are said in words now and then
FIXED: Mapping[str, Sequence[str]] = {
    "room": ("kitchen", "living room", "bedroom", "bathroom", "hallway", "garage", "office", "nursery", "dining room",
        "attic", "basement", "guest room", "study", "laundry room"),
    "color": ("red", "blue", "green", "warm white", "purple", "orange", "yellow", "pink", "turquoise", "black", "navy",
        "beige"),
    "door": ("front door", "back door", "garage door", "garden gate", "cellar door", "patio door", "side entrance"),
    "scene": ("movie night", "good morning", "party", "dinner", "bedtime", "away", "relax", "focus", "game night",
        "romance"),
    "genre": ("jazz", "techno", "hip hop", "classical", "country", "reggae", "punk", "soul", "heavy metal",
        "bossa nova", "indie rock", "ambient"),
    "moviegenre": ("comedy", "horror", "thriller", "western", "romantic", "science fiction", "documentary", "crime",
        "fantasy", "war"),
    "currency": ("dollars", "euros", "pounds", "yen", "swiss francs", "rupees", "pesos", "kroner", "zloty", "rand"),
    "language": ("French", "German", "Spanish", "Italian", "Japanese", "Portuguese", "Dutch", "Polish", "Turkish",
        "Korean", "Swedish", "Greek"),
    "day": ("today", "tomorrow", "on monday", "next tuesday", "this weekend", "on the 3rd of may", "next friday",
        "on sunday", "on june 12", "the day after tomorrow", "on wednesday", "on thursday morning", "next week",
        "on the 21st", "on saturday evening"),
    "table": ("users", "orders", "invoices", "customers", "products", "payments", "sessions", "events", "employees",
        "shipments", "reviews", "suppliers"),
    "column": ("id", "name", "email", "created_at", "price", "status", "country", "quantity", "total", "age", "city",
        "score"),
    "tag": ("login", "billing", "mobile", "outage", "refund", "api", "printing", "network", "export", "password"),
    "ticker": ("AAPL", "MSFT", "TSLA", "AMZN", "NVDA", "SAP", "NFLX", "IBM", "INTC", "KO", "DIS", "BA", "GE", "F",
        "ORCL"),
    "medicine": ("ibuprofen", "aspirin", "metformin", "vitamin d", "amoxicillin", "paracetamol", "insulin", "zinc",
        "iron tablets", "omeprazole"),
    "symptom": ("a sore throat", "back pain", "a rash", "headaches", "a toothache", "blurry vision", "a cough",
        "knee pain", "dizziness"),
    "place": ("the airport", "central station", "the museum", "city hall", "the stadium", "the harbor",
        "the university", "the zoo", "the town library", "the opera", "the convention center"),
}  # fmt: skip
PARTS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "title": (("The Silent", "Broken", "A Distant", "Golden", "The Last", "Crimson", "Midnight", "Electric",
        "Forgotten", "The Hollow", "Paper", "Northern"), ("River", "Garden", "Crown", "Machine", "Promise",
        "Lighthouse", "Echo", "Kingdom", "Harvest", "Mirror", "Voyage", "Winter", "Orchard")),
    "song": (("Dancing", "Falling", "Running", "Lost", "Blue", "Sweet", "Summer", "Neon", "Lonely", "Burning",
        "Endless", "Velvet"), ("Hearts", "in the Rain", "Skies", "Tonight", "Without You", "Dreams", "Road", "Fire",
        "Again", "Shadows", "Home", "Love")),
    "playlist": (("chill", "morning", "road trip", "workout", "summer", "party", "rainy day", "focus", "dinner",
        "throwback"), ("vibes", "mix", "favorites", "hits", "tunes", "classics", "session", "beats")),
    "event": (("the budget", "my dentist", "the team", "the yoga", "the project", "the board", "the parents'",
        "the quarterly", "the design", "the sales", "the piano"), ("meeting", "appointment", "review", "class",
        "workshop", "call", "lunch", "presentation", "lesson", "check in")),
    "phrase": (("quarterly", "holiday", "birthday", "weekly", "monthly", "family", "office", "garden", "travel",
        "school", "lunch"), ("plans", "report", "party", "budget", "checklist", "rent", "photos", "update", "gift",
        "fees", "notes")),
    "chore": (("water", "call", "pick up", "pay", "clean", "return", "renew", "feed", "check", "order", "charge"),
        ("the plants", "the landlord", "the dry cleaning", "the rent", "the gutters", "the library books",
        "my passport", "the cat", "the oven", "new filters", "the camera")),
    "remark": (("the package", "my train", "dinner", "the meeting", "the printer", "our flight", "the new version",
        "the garden", "the show", "the car"), ("is late", "has arrived", "is ready", "was great", "is broken again",
        "starts in an hour", "needs your help", "looks wonderful", "is almost done", "got cancelled")),
    "product": (("wireless", "leather", "stainless", "organic", "foldable", "waterproof", "vintage", "portable",
        "wooden", "cordless"), ("headphones", "backpack", "water bottle", "desk lamp", "running shoes", "jacket",
        "coffee maker", "umbrella", "keyboard", "drill", "tent")),
    "grocery": (("fresh", "frozen", "organic", "sliced", "canned", "whole", "low fat", "large"), ("milk", "bread",
        "spinach", "tomatoes", "eggs", "butter", "rice", "apples", "chicken", "onions", "yogurt")),
    "food": (("spicy", "grilled", "baked", "homemade", "vegan", "creamy", "roasted", "fried"), ("pasta", "salmon",
        "lasagna", "soup", "potatoes", "rice bowl", "pizza", "omelette", "chicken", "tofu")),
    "problem": (("login", "checkout", "printer", "email sync", "mobile app", "invoice export", "password reset",
        "search", "video call"), ("fails", "is very slow", "shows an error", "crashes", "times out", "stopped working",
        "loses data")),
    "filename": (("report", "budget", "notes", "photo", "draft", "invoice", "slides", "backup", "summary", "recipe"),
        (".pdf", "_2024.xlsx", ".txt", "-final.docx", "_v2.md", ".png", "-03.csv", ".zip")),
    "folder": (("documents", "downloads", "projects", "archive", "photos", "music", "work", "shared"), ("/2024", "/old",
        "/taxes", "/clients", "/alpha", "/holiday", "/drafts")),
}  # fmt: skip
CITIES = (
    "Paris", "London", "Berlin", "New York", "Los Angeles", "San Diego", "San Antonio", "San Jose", "Santa Fe",
    "Las Vegas", "Chicago", "Boston", "Seattle", "Tokyo", "Hong Kong",
    "Sao Paulo", "Buenos Aires", "Mexico City", "Cape Town", "New Delhi", "Mumbai", "Kuala Lumpur", "Abu Dhabi",
    "Tel Aviv", "Rome", "Milan", "Madrid", "Barcelona", "Lisbon", "Vienna",
    "Prague", "Warsaw", "Oslo", "Stockholm", "Helsinki", "Copenhagen", "Dublin", "Edinburgh", "Salt Lake City",
    "Kansas City", "Saint Paul", "Fort Worth", "El Paso", "San Juan", "Rio de Janeiro",
    "St. Louis", "New Orleans", "San Salvador", "Addis Ababa", "Den Haag",
)  # fmt: skip
POOL = 400


class Values:
    """Draws values for one split. `held_out` uses the fifth of each open pool that training never sees."""

    def __init__(self, held_out: bool) -> None:
        self.pools = {name: _side(pool, held_out) for name, pool in _pools().items()}

    def draw(self, kind: str, argument: str, source: random.Random) -> Drawn:
        """A surface and a value; `argument` is what stands in the kind's parentheses."""
        if kind in self.pools:
            text = source.choice(self.pools[kind])
            return text, text
        return _DRAW[kind](source, argument)


@lru_cache(maxsize=1)
def _pools() -> dict[str, list[str]]:
    fake = Faker(["en_US", "en_GB"])
    fake.seed_instance(20240601)
    makers: dict[str, Callable[[], str]] = {
        "person": lambda: (
            fake.first_name()
            if fake.random_int(0, 1)
            else fake.name().replace("Dr. ", "").replace("Mr. ", "").replace("Mrs. ", "")
        ),
        "city": fake.city,
        "country": fake.country,
        "street": lambda: f"{fake.random_int(1, 300)} {fake.street_name()}",
        "company": fake.company,
        "email": fake.email,
        "phone": lambda: fake.numerify("###-###-####"),
        "zip": lambda: fake.numerify("#####"),
        "artist": lambda: f"{fake.first_name()} {fake.last_name()}",
        "code": lambda: fake.bothify("??-####").upper(),
    }
    pools = {name: list(dict.fromkeys(make() for _ in range(POOL))) for name, make in makers.items()}
    shuffle = random.Random(7)
    pools["city"] = list(dict.fromkeys([*pools["city"][:100], *CITIES]))  # Faker's are invented
    shuffle.shuffle(pools["city"])
    for name, (first, second) in PARTS.items():
        joint = "" if second[0][0] in "./" or second[0].startswith("_") else " "
        pools[name] = [f"{a}{joint}{b}" for a in first for b in second]
        shuffle.shuffle(pools[name])
    pools |= {name: list(values) for name, values in FIXED.items()}
    return pools


def _side(pool: list[str], held_out: bool) -> list[str]:
    if len(pool) < 50:  # closed kinds: there are only so many rooms
        return pool
    cut = len(pool) * 4 // 5
    return pool[cut:] if held_out else pool[:cut]


def _number_word(value: int, source: random.Random) -> str:
    return in_words(value) if value in SAID and source.random() < 0.4 else str(value)


def _minutes(source: random.Random, argument: str) -> Drawn:
    value = source.choice((1, 2, 3, 5, 8, 10, 12, 15, 20, 25, 30, 40, 45, 50, 60, 75, 90, 120))
    if value % 60 == 0 and source.random() < 0.6:
        hours = value // 60
        return (
            source.choice(("an hour", "one hour", "1 hour", "60 minutes"))
            if hours == 1
            else source.choice(("two hours", "2 hours", "2 h"))
        ), value
    if value == 30 and source.random() < 0.3:
        return "half an hour", value
    if value == 90 and source.random() < 0.3:
        return "an hour and a half", value
    return (
        f"{_number_word(value, source)} {source.choice(('minutes', 'minutes', 'min'))}".replace(
            "one minutes", "one minute"
        ).replace("1 minutes", "1 minute"),
        value,
    )


def _hhmm(source: random.Random, argument: str) -> Drawn:
    hour, minute = source.randint(0, 23), source.choice((0, 0, 0, 15, 30, 30, 45, 5, 20))
    return source.choice(clock(hour, minute)[:3]), f"{hour:02d}:{minute:02d}"


def _clock(source: random.Random, argument: str) -> Drawn:
    text = source.choice(
        (
            f"{source.randint(1, 12)} {source.choice(('am', 'pm'))}",
            f"{source.randint(1, 12)}:{source.choice(('15', '30', '45'))}",
            "noon",
            f"{source.choice(ONES[1:13])} o'clock",
        )
    )
    return text, text


def _count(source: random.Random, argument: str) -> Drawn:
    value = source.randint(2, 9)
    return _number_word(value, source), value


def _number(source: random.Random, argument: str) -> Drawn:
    low, high = (int(part) for part in argument.split("-"))
    value = source.randint(low, high)
    return _number_word(value, source) if value <= 12 else str(value), value


def _percent(source: random.Random, argument: str) -> Drawn:
    value = source.choice((*range(5, 100, 5), 100, 33, 66))
    return source.choice((f"{value}%", f"{value} percent", f"{_number_word(value, source)} percent")), value


def _degrees(source: random.Random, argument: str) -> Drawn:
    value: float = source.randint(15, 27)
    if source.random() < 0.2:
        value += 0.5
    return source.choice((f"{value}", f"{value} degrees", f"{value}°")), value


def _amount(source: random.Random, argument: str) -> Drawn:
    value: float = source.choice((5, 10, 12, 20, 25, 40, 50, 75, 100, 120, 250, 300, 500, 1000))
    if source.random() < 0.25:
        value = round(value + source.choice((0.5, 0.99, 0.25, 0.75)), 2)
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return source.choice((f"${text}", f"{text} dollars", f"{text} bucks")), value


def _plain(source: random.Random, argument: str) -> Drawn:
    value: float = source.choice((source.randint(1, 999), source.randint(1, 99), round(source.uniform(1, 500), 1)))
    return str(value), value


def _decimal(source: random.Random, argument: str) -> Drawn:
    value = round(source.uniform(40, 99), source.choice((1, 2)))
    return str(value), value


_DRAW: dict[str, Callable[[random.Random, str], Drawn]] = {
    "minutes": _minutes, "hhmm": _hhmm, "clock": _clock, "count": _count, "number": _number, "percent": _percent,
    "degrees": _degrees, "amount": _amount, "plain": _plain, "decimal": _decimal,
}  # fmt: skip
