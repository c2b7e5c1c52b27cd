"""Synthetic data, subsets, augmentation, batch order."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from needle.data.augment import AugmentConfig, Pools, expand, join, swap_values
from needle.data.catalogue import load_catalogue
from needle.data.choices import change_members
from needle.data.encoding import BatchOrder, TokenizerConfig, add_distractors, fit_tokenizer, rename_examples, share
from needle.data.rename import Strength, rename, synonyms
from needle.data.sources import DataConfig, load_splits, subset
from needle.data.speech.values import Values
from needle.data.synthetic import ASIDE_FRAMES, ORDER_FRAMES, SyntheticConfig, _deal, dealt, generate, unseen_tools
from needle.text.codecs import build_codec
from needle.text.formats import read_records
from needle.text.prompt import Example
from needle.text.records import Call, DataError, Record, Tool, canonical_json, write_jsonl
from needle.text.tokenizer import TextTokenizer
from needle.text.validity import call_errors

SMALL = SyntheticConfig(train=1500, validation=100, test=200, unseen=80)


@pytest.fixture(scope="module")
def splits() -> tuple[tuple[Record, ...], tuple[Record, ...], tuple[Record, ...]]:
    return generate(SMALL)


def test_the_catalogue_has_80_tools_in_15_domains_with_every_json_type() -> None:
    entries = load_catalogue()
    assert len(entries) >= 80
    assert len({entry.domain for entry in entries}) == 15
    text = json.dumps([entry.tool.parameters for entry in entries])
    for kind in ("string", "integer", "number", "boolean", "array", "object", "null"):
        assert f'"{kind}"' in text
    assert '"enum"' in text
    for entry in entries:
        assert len(entry.say) >= 4, entry.tool.name
        assert dealt(entry, "train"), entry.tool.name


def test_every_synthetic_answer_is_valid(splits: tuple[tuple[Record, ...], ...]) -> None:
    for record in (record for part in splits for record in part):
        for call in record.answers:
            assert call_errors(call, record.tools) == [], record


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(splits: tuple[tuple[Record, ...], ...]) -> None:
    again = generate(SMALL)
    assert [r.to_json() for r in again[0]] == [r.to_json() for r in splits[0]]
    other = generate(SyntheticConfig(train=50, validation=0, test=0, unseen=0, seed=1))[0]
    assert other[0].query != splits[0][0].query


def test_requests_are_distinct_within_and_across_splits(splits: tuple[tuple[Record, ...], ...]) -> None:
    queries = [record.query for part in splits for record in part]
    assert len(set(queries)) == len(queries)


def test_one_fifth_are_hard_negatives_and_several_calls_occur(splits: tuple[tuple[Record, ...], ...]) -> None:
    calls = Counter(len(record.answers) for record in splits[0])
    assert 0.17 < calls[0] / len(splits[0]) < 0.23
    assert calls[2] > 150
    assert calls[3] > 30
    same = [r for r in splits[0] if len(r.answers) > len({c.name for c in r.answers})]
    assert len(same) > 50


def test_phrasings_and_unseen_tools_are_kept_from_training(splits: tuple[tuple[Record, ...], ...]) -> None:
    train, _, test = splits
    hidden = unseen_tools()
    assert len(hidden) == 15
    assert not {tool.name for record in train for tool in record.tools} & hidden
    shown = [record for record in test if record.meta.get("unseen_tool")]
    assert len(shown) == SMALL.unseen
    assert {call.name for record in shown for call in record.answers} <= hidden
    kinds = Counter(record.meta["phrasing"] for record in test if "phrasing" in record.meta)
    assert kinds["new wording"] > 70
    assert kinds["new frame"] > 70
    for frames in (ORDER_FRAMES, ASIDE_FRAMES):
        assert not set(_deal(frames, "train", "frame", 3)) & set(_deal(frames, "test", "frame", 3))
    for entry in load_catalogue():
        parts = [set(dealt(entry, split)) for split in ("train", "validation", "test")]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert parts[2]


def test_a_near_miss_never_offers_the_tool_that_would_fit() -> None:
    by_wording = {}
    for entry in load_catalogue():
        for text in entry.say:
            start = text.lstrip("?").split("{")[0].strip().lower()
            if len(start) > 12:
                by_wording[start] = entry.tool.name
    found = 0
    for record in generate(SyntheticConfig(train=4000, validation=0, test=0, unseen=0, negatives=1.0))[0]:
        query = record.query.lower()
        if any(word in query for word in ("don't", "do not", "no need", "stop, i", "must not")):
            continue
        for start, name in by_wording.items():
            if start in query and name in {tool.name for tool in record.tools} and "{" not in start:
                found += not _is_vague(record.query, name)
    assert found == 0


def _is_vague(query: str, name: str) -> bool:
    entry = next(entry for entry in load_catalogue() if entry.tool.name == name)
    return any(text.lstrip("?").split("{")[0].strip().lower() in query.lower() for text in entry.vague)


def test_the_catalogue_can_be_narrowed_to_domains() -> None:
    names = {entry.tool.name for entry in load_catalogue() if entry.domain in ("music", "weather")}
    for few in generate(SyntheticConfig(train=50, validation=9, test=9, unseen=80, domains="music, weather")):
        assert few
        assert {tool.name for record in few for tool in record.tools} <= names
    with pytest.raises(ValueError, match="names 'musik'; expected some of alarms,"):
        generate(SyntheticConfig(train=5, domains="musik"))


def test_a_smaller_subset_lies_inside_a_larger_one(splits: tuple[tuple[Record, ...], ...]) -> None:
    train = list(splits[0])
    small, large = ({r.id for r in subset(train, size, 0)} for size in (100, 500))
    assert small < large
    assert len(small) == 100
    assert {r.id for r in subset(train, 100, 1)} != small


def test_asking_for_more_records_than_exist_is_an_error() -> None:
    with pytest.raises(DataError, match="data.size=99, but only 20"):
        load_splits(DataConfig(size=99, synthetic=SyntheticConfig(train=20, validation=0, test=0, unseen=0)))
    with pytest.raises(ValueError, match="data.size is -5; it must be at least 1"):
        DataConfig(size=-5)
    with pytest.raises(DataError, match="data.train"):
        load_splits(DataConfig(kind="jsonl"))


def test_augmented_copies_stay_valid_and_repeat_by_seed(real_data: Path) -> None:
    records = list(read_records(real_data / "snips" / "validation.jsonl.gz"))
    config = AugmentConfig(copies=2, rename=0.5, strangers=0.5)
    grown = expand(records, config, 0)
    assert grown[: len(records)] == records
    assert len(grown) == 3 * len(records)
    assert len({r.id for r in grown}) == len(grown)
    assert [r.to_json() for r in grown] == [r.to_json() for r in expand(records, config, 0)]
    changed = sum(r.query != records[i % len(records)].query for i, r in enumerate(grown))
    assert changed > len(records) / 2
    for record in grown:
        for call in record.answers:
            assert call_errors(call, record.tools) == []
            for value in call.arguments.values():
                if isinstance(value, str):
                    assert value in record.query


GROWN = """
import sys
from pathlib import Path
from needle.data.augment import AugmentConfig, expand
from needle.data.encoding import TokenizerConfig, data_fingerprint, fit_tokenizer
from needle.text.formats import read_records
records = list(read_records(Path(sys.argv[1]) / "seal_tools" / "train.jsonl.gz"))
grown = expand(records, AugmentConfig(copies=3, rename=0.5, join=0.5, shuffle=0.5, strangers=0.5), 0)
print(data_fingerprint(grown), fit_tokenizer(grown, TokenizerConfig(size=1000), Path(sys.argv[2])).fingerprint)
"""


def test_every_process_makes_the_same_copies_and_tokenizer(real_data: Path, tmp_path: Path) -> None:
    """Python hashes strings differently in each process, so that whatever depends on the order of a set differs."""
    made = [
        subprocess.run(
            [sys.executable, "-c", GROWN, real_data, tmp_path / str(seed)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            text=True,
            capture_output=True,
            check=True,
        )
        for seed in range(3)
    ]
    assert len({process.stdout for process in made}) == 1


def test_whole_copies_are_renamed_or_shuffled(real_data: Path) -> None:
    records = list(read_records(real_data / "snips" / "validation.jsonl.gz"))[:50]
    known = {json.dumps(tool.to_json()) for record in records for tool in record.tools}
    names = {tool.name for record in records for tool in record.tools}
    grown = expand(records, AugmentConfig(copies=4, rename=0.5, shuffle=0.5), 0)
    kinds = []
    for copy in range(5):
        tools = {
            json.dumps(tool.to_json()): tool
            for record in grown
            if record.meta.get("copy", 0) == copy
            for tool in record.tools
        }
        kinds.append(
            "same"
            if set(tools) <= known
            else "shuffled"
            if {tool.name for tool in tools.values()} <= names
            else "renamed"
        )
    assert kinds == ["same", "renamed", "shuffled", "renamed", "same"]


def test_new_distractors_are_tools_that_stood_beside_the_right_one_before_or_are_unlike_it(real_data: Path) -> None:
    """A tool never offered beside the right one may be as right as it: hwu64's weather_query beside snips'
    GetWeather."""
    records = [r for name in ("snips", "hwu64") for r in read_records(real_data / name / "validation.jsonl.gz")]
    beside: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for call in record.answers:
            beside[call.name] |= {tool.name for tool in record.tools}
    for record in expand(records, AugmentConfig(copies=2), 0):
        for call in record.answers:
            assert {tool.name for tool in record.tools} <= beside[call.name]
    grown = expand(records, AugmentConfig(copies=1, strangers=1.0, max_strangers=5), 0)[len(records) :]
    more = [r for r in grown if any(not {tool.name for tool in r.tools} <= beside[call.name] for call in r.answers)]
    assert len(more) > len(records) / 4
    for record in more:
        for call in record.answers:
            assert not {"GetWeather", "weather_query"} <= {tool.name for tool in record.tools} or call.name not in (
                "GetWeather",
                "weather_query",
            )


def test_joined_requests_hold_all_their_calls_and_no_tool_that_might_answer_both(real_data: Path) -> None:
    records = list(read_records(real_data / "hwu64" / "validation.jsonl.gz"))
    beside: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for call in record.answers:
            beside[call.name] |= {tool.name for tool in record.tools}
    config = AugmentConfig(copies=1, join=1.0)
    grown = expand(records, config, 0)[len(records) :]
    assert grown == expand(records, config, 0)[len(records) :]
    several = [r for r in grown if len(r.answers) > 1]
    assert len(several) > len(records) / 2
    assert {len(r.answers) for r in several} == {2, 3}
    whole = {r.query for r in records}
    for record in several:
        assert record.query not in whole
        names = {call.name for call in record.answers}
        for call in record.answers:
            assert call_errors(call, record.tools) == []
            assert names - {call.name} <= beside[call.name]
            assert {tool.name for tool in record.tools} - names <= beside[call.name]


def test_shuffling_arguments_leaves_names_and_descriptions(real_data: Path) -> None:
    records = list(read_records(real_data / "snips" / "validation.jsonl.gz"))[:100]
    grown = expand(records, AugmentConfig(copies=1, shuffle=1.0), 0)[len(records) :]
    before = {tool.name: tool for record in records for tool in record.tools}
    moved = 0
    for record in grown:
        for tool in record.tools:
            old = before[tool.name]
            assert tool.description == old.description
            assert tool.parameters["properties"] == old.parameters["properties"]
            moved += list(tool.parameters["properties"]) != list(old.parameters["properties"])
    assert moved > 100


WEATHER = Tool(
    "get_weather",
    "Get the weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city"},
            "unit": {"type": "string", "enum": ["C", "F"], "description": "Unit of the temperature"},
            "days": {"type": "integer"},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)


def test_renamed_examples_are_what_their_renamed_records_would_be(
    records: list[Record], tokenizer: TextTokenizer, examples: list[Example]
) -> None:
    codec = build_codec("decisions", tokenizer)
    once, again, other = (
        rename_examples(examples[:60], records[:60], tokenizer, codec, 2048, seed) for seed in (1, 1, 2)
    )
    assert once == again
    asking = [row for row in range(60) if examples[row].tools]
    assert sum(once[row].tools == examples[row].tools for row in asking) < len(asking) / 5
    assert sum(once[row].tools == other[row].tools for row in asking) < len(asking) / 5
    for row, example in enumerate(once):
        renamed = rename(change_members(records[row], 1), 0, 1)
        assert codec.decode(example.target[:-1], renamed.tools) == list(renamed.answers)
        assert [tool.name for tool in example.tools] == [tool.name for tool in renamed.tools]
    weighted = [replace(example, weight=0.25, votes="v") for example in examples[:60]]
    assert {
        (example.weight, example.votes)
        for example in rename_examples(weighted, records[:60], tokenizer, codec, 2048, 1)
    } == {(0.25, "v")}
    assert (
        rename_examples(examples[:60], records[:60], tokenizer, codec, 1, 1) == examples[:60]
    )  # too long by another name: as it was


def test_a_request_names_the_new_members_that_its_calls_take() -> None:
    schema = {
        "type": "object",
        "properties": {
            "genre": {"type": "string", "enum": ["Jazz", "Hard Rock"]},
            "loud": {"type": "integer", "enum": [0, 1]},
        },
    }
    play, other = Tool("play", "Plays music", schema), Tool("show", "Shows films", schema)
    seen = set()
    for seed in range(20):
        record = Record(
            "1", "some hard rock, now", (play, other), (Call("play", {"genre": "Hard Rock", "loud": 0}),), "s"
        )
        changed = change_members(record, seed, 1.0)
        assert changed == change_members(record, seed, 1.0)
        (call,) = changed.answers
        old, new = schema["properties"]["genre"]["enum"], changed.tools[0].parameters["properties"]["genre"]["enum"]
        assert not set(old) & set(new)
        assert call.arguments == {"genre": new[1], "loud": 0}
        assert changed.query == f"some {new[1].lower()}, now"
        assert new[1][0].isupper()
        assert changed.tools[1].parameters["properties"]["genre"]["enum"] != old
        assert changed.tools[0].parameters["properties"]["loud"] == schema["properties"]["loud"]
        seen.add(new[1])
        for query in (
            "something heavy",
            "hard rock, I said hard rock",
        ):  # not named, or not once: this tool keeps its members
            unnamed = change_members(replace(record, query=query), seed, 1.0)
            assert (unnamed.query, unnamed.tools[0], unnamed.answers) == (query, play, record.answers)
            assert unnamed.tools[1] != other
        assert change_members(record, seed, 0.0) == record
    assert len(seen) > 15


def pay(id: str, query: str, *pairs: tuple[str, str]) -> Record:
    tool = Tool(
        "pay",
        "",
        {
            "type": "object",
            "properties": {"account": {"type": "string"}, "to": {"type": "string"}},
            "required": [],
            "additionalProperties": False,
        },
    )
    return Record(id, query, (tool,), tuple(Call("pay", {"account": account, "to": to}) for account, to in pairs), "s")


def test_no_value_is_replaced_by_one_that_the_request_says_of_another_argument() -> None:
    """From savings to checking: with the values of both arguments alike, an exchange of one may name the other twice,
    and the next exchange then takes the wrong place."""
    record = pay("1", "From savings to checking", ("savings", "checking"))
    pools = {("pay", "account"): ["Checking", "savings", "credit"], ("pay", "to"): ["SAVINGS", "checking", "rent"]}
    for seed in range(200):
        changed = swap_values(record, pools, random.Random(seed))
        account, to = changed.answers[0].arguments["account"], changed.answers[0].arguments["to"]
        assert changed.query == f"From {account} to {to}"
        assert account.lower() != to.lower()


def test_joined_requests_keep_the_points_of_their_values_and_ask_nothing_twice() -> None:
    one, same, other = (
        pay(id, query, pair)
        for id, query, pair in (
            ("1", "Pay Shazam!", ("a", "Shazam!")),
            ("2", "pay shazam from a", ("a", "Shazam!")),
            ("3", "Pay Bob.", ("b", "Bob")),
        )
    )
    pools = Pools([one, same, other])
    for seed in range(60):
        joined = join(one, pools, random.Random(seed))
        assert "Shazam!" in joined.query
        assert len({call.key for call in joined.answers}) == len(joined.answers)
    assert any(len(join(one, pools, random.Random(seed)).answers) > 1 for seed in range(60))


def test_names_that_differ_little_stay_apart_when_renamed() -> None:
    properties = {name: {"type": "string"} for name in ("x1", "x_1", "from", "From")}
    arguments = {name: name * 2 for name in properties}
    record = Record(
        "1",
        "x",
        (Tool("t", "", {"type": "object", "properties": properties, "required": []}),),
        (Call("t", arguments),),
        "s",
    )
    for seed in range(200):
        renamed = rename(record, 0, seed)
        assert len(renamed.tools[0].parameters["properties"]) == 4
        assert sorted(renamed.answers[0].arguments.values()) == sorted(arguments.values())


def test_of_further_requests_those_that_the_teacher_answered_count() -> None:
    tool = Tool("t", "", {"type": "object", "properties": {}, "required": [], "additionalProperties": False})
    rows = [
        Record(
            str(number),
            f"q {number}",
            (tool,),
            (),
            "s",
            {"answers": [{"calls": [{"name": "t", "arguments": {}}]}]} if number % 2 else None,
        )
        for number in range(40)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "a.jsonl", rows)
        splits = load_splits(DataConfig(kind="jsonl", train=[f"{folder}/a.jsonl"], size=10, unlabelled=5))
        assert (len(splits.train), splits.skipped) == (15, [])
        fewer = load_splits(DataConfig(kind="jsonl", train=[f"{folder}/a.jsonl"], size=10, unlabelled=100))
        assert len(fewer.train) < 40
        assert f"only {len(fewer.train) - 10} records" in fewer.skipped[0]
        with pytest.raises(DataError, match="0 or more"):
            load_splits(DataConfig(kind="jsonl", train=[f"{folder}/a.jsonl"], limits={"s": -5}))
        assert load_splits(DataConfig(kind="jsonl", train=[f"{folder}/a.jsonl"], limits={"s": 0})).train == []


def test_two_tools_of_one_name_are_never_joined() -> None:
    def record(id: str, query: str, description: str) -> Record:
        tool, other = (
            Tool("find", description, {"type": "object", "properties": {}}),
            Tool(f"other_{id}", "", {"type": "object", "properties": {}}),
        )
        return Record(id, query, (tool, other), (Call("find", {}),), "s")

    one, same, different = (
        record("1", "a b", "Finds flights."),
        record("2", "c d", "Finds flights."),
        record("3", "e f", "Finds hotels."),
    )
    pools = Pools([one, same, different])
    assert pools.apart(one, same)
    assert not pools.apart(one, different)


def test_no_argument_takes_the_name_of_another_and_forms_stay_described() -> None:
    about = "Day of travel, in the format YYYY-MM-DD"
    properties = {
        "movie": {"type": "string"},
        "film": {"type": "string"},
        "date": {"type": "string", "description": about},
    }
    record = Record(
        "1",
        "Up and Brazil",
        (Tool("compare", "", {"type": "object", "properties": properties}),),
        (Call("compare", {"movie": "Up", "film": "Brazil"}),),
        "s",
    )
    for variant in range(200):
        (tool,) = rename(record, variant, 0).tools
        names = {name.lower(): schema for name, schema in tool.parameters["properties"].items()}
        (call,) = rename(record, variant, 0).answers
        told = {value: name.lower() for name, value in call.arguments.items()}
        assert told["Up"] != "film"
        assert told["Brazil"] != "movie"
        assert about in [schema.get("description") for schema in names.values()]


def test_members_that_a_description_tells_stay() -> None:
    schema = {"type": "string", "enum": ["asc", "desc"], "description": "Order: asc or desc"}
    record = Record(
        "1",
        "asc",
        (Tool("sort", "", {"type": "object", "properties": {"order": schema}}),),
        (Call("sort", {"order": "asc"}),),
        "s",
    )
    assert all(change_members(record, seed, share=1.0) == record for seed in range(10))
    plain = replace(
        record,
        tools=(Tool("sort", "", {"type": "object", "properties": {"order": {**schema, "description": "The order"}}}),),
    )
    assert change_members(plain, 1, share=1.0) != plain


def test_a_renamed_record_asks_the_same_of_the_same_tools() -> None:
    other = Tool("play_music", "Play music")
    record = Record(
        "1", "weather in Rome in C", (WEATHER, other), (Call("get_weather", {"city": "Rome", "unit": "C"}),), "s"
    )
    seen = set()
    for variant in range(60):
        changed = rename(record, variant, 0)
        assert changed == rename(record, variant, 0)
        (call,) = changed.answers
        tool = next(tool for tool in changed.tools if tool.name == call.name)
        assert call_errors(call, changed.tools) == []
        assert sorted(call.arguments.values()) == ["C", "Rome"]
        assert changed.query == record.query
        properties = tool.parameters["properties"]
        assert sorted(schema.get("type", "") for schema in properties.values()) == ["integer", "string", "string"]
        (city,) = tool.parameters["required"]
        assert call.arguments[city] == "Rome"
        if (
            re.fullmatch(r"(get|climate|weather|meteorology|obtain|retrieve|fetch|give|[_-])+", tool.name.lower())
            is None
        ):
            assert tool.description, "a name that tells nothing keeps its description"
        seen.add((tool.name, tuple(properties), tool.description))
    assert len(seen) > 40
    assert len({name for name, *_ in seen}) > 15


def test_synonyms_of_tests_and_of_training_share_no_word() -> None:
    for word, (first, *others) in synonyms().items():
        assert first not in others
        assert word not in (first, *others)
    record = Record("1", "x", (Tool("find_song", "Find a song by its title"),), (Call("find_song", {}),), "s")
    only = Strength(opaque=0, astray=0, other_words=1, recase=0, bare=0, synonym=1, shuffle=0, tests=True)
    for variant in range(20):
        (tool,) = rename(record, variant, 0, only).tools
        assert tool.description == "Locate a tune by its name"
        assert sorted(word.lower() for word in re.findall(r"[A-Z]?[a-z]+", tool.name)) == ["locate", "tune"]


def test_a_source_can_be_limited_and_files_joined_by_synthetic_records(real_data: Path) -> None:
    files = [str(real_data / "ha_intents" / "train.jsonl.gz"), str(real_data / "seal_tools" / "train.jsonl.gz")]
    config = DataConfig(
        kind="mixed",
        train=files,
        limits={"ha_intents": 50},
        synthetic=SyntheticConfig(train=30, validation=0, test=0, unseen=0),
    )
    counts = Counter(record.source for record in load_splits(config).train)
    assert counts == {"ha_intents": 50, "seal_tools": 668, "synthetic": 30}
    with pytest.raises(
        DataError, match="data.limits.nonsense: no training record is of this source; there are ha_intents, seal_tools"
    ):
        load_splits(DataConfig(kind="jsonl", train=files, limits={"nonsense": 3}))


def test_the_tokenizer_is_cached_by_content(records: list[Record], tmp_path: Path) -> None:
    first = fit_tokenizer(records[:50], TokenizerConfig(600), tmp_path)
    assert fit_tokenizer(records[:50], TokenizerConfig(600), tmp_path).fingerprint == first.fingerprint
    assert len(list(tmp_path.iterdir())) == 1
    fit_tokenizer(records[:51], TokenizerConfig(600), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(DataError, match="tokenizer.path"):
        fit_tokenizer([], TokenizerConfig(path="/nowhere"), tmp_path)


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (64, 64), (5, 100), (200, 7)])
def test_an_epoch_shows_every_record_once_in_an_order_of_seed_and_step_alone(count: int, batch: int) -> None:
    lengths = list(np.random.default_rng(0).integers(1, 50, count))
    order = BatchOrder(lengths, batch, 3)
    epoch = [index for step in range(order.per_epoch) for index in order[step]]
    assert sorted(epoch) == list(range(count))
    jumped = BatchOrder(lengths, batch, 3)
    assert (
        jumped[order.per_epoch + 1 if order.per_epoch > 1 else 1]
        == order[order.per_epoch + 1 if order.per_epoch > 1 else 1]
    )
    if count > 10:
        assert [order[s] for s in range(3)] != [BatchOrder(lengths, batch, 4)[s] for s in range(3)] or batch >= count


def test_pieces_of_one_batch_cost_about_the_same() -> None:
    groups = [index % 4 for index in range(800)]
    costs = [1.0, 9.0, 1.1, 9.5]
    order = BatchOrder([5] * 800, 20, 0, groups, 10, lambda piece: float(np.mean([costs[groups[i]] for i in piece])))
    batches = [order[step] for step in range(order.per_epoch)]
    assert sorted(index for batch in batches for index in batch) == list(range(800))
    pieces = [[{groups[index] for index in batch[start : start + 10]} for start in (0, 10)] for batch in batches]
    pure = [(a, b) for a, b in pieces if len(a) == len(b) == 1]
    assert len(pure) == len(pieces)
    spread = [abs(costs[next(iter(a))] - costs[next(iter(b))]) for a, b in pure]
    assert np.mean([value < 1 for value in spread]) > 0.9
    assert any(a != b for a, b in pure)


@pytest.mark.parametrize(("batch", "processes", "micro"), [(8, 1, 8), (8, 2, 4), (7, 2, 2), (1, 4, 3), (13, 3, 2)])
def test_processes_share_a_batch_without_loss_and_in_step(batch: int, processes: int, micro: int) -> None:
    pieces = [share(list(range(batch)), rank, processes, micro) for rank in range(processes)]
    assert len({len(piece) for piece in pieces}) == 1
    assert sorted(index for piece in pieces for part in piece for index in part) == list(range(batch))
    assert max(len(part) for piece in pieces for part in piece) <= micro


def test_tools_borrowed_from_the_batch_leave_labels_right_and_spare_records_without_a_call(
    examples: list[Example],
) -> None:
    some = examples[:20]
    grown = add_distractors(some, 3, (0, 1))
    assert grown == add_distractors(some, 3, (0, 1))
    assert any(len(new.tools) > len(old.tools) for new, old in zip(grown, some, strict=True))
    for new, old in zip(grown, some, strict=True):
        assert new.tools[: len(old.tools)] == old.tools
        assert len({tool.name for tool in new.tools}) == len(new.tools)
        assert len(new.tools) - len(old.tools) <= (3 if len(old.target) > 1 else 0)


def test_json_values_compare_as_json() -> None:
    assert canonical_json({"b": 1.0, "a": [2]}) == canonical_json({"a": [2.0], "b": 1})
    assert canonical_json(True) != canonical_json(1)


def test_open_values_of_training_and_test_share_no_member() -> None:
    training, held_out = Values(False).pools, Values(True).pools
    for kind, pool in training.items():
        if len(pool) + len(held_out[kind]) >= 50:
            assert not set(pool) & set(held_out[kind]), kind
