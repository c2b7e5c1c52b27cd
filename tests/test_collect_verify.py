"""What the data engine keeps: grounding, verdicts, duplicates, export."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from needle.collect.dedupe import Seen, fingerprint, mask
from needle.collect.export import export
from needle.collect.grounding import Grounded, grounded, same
from needle.collect.pipeline import _Judge, judge_traffic, mark_duplicates
from needle.collect.plan import MISSING, NEAR_MISS, NONE, Planner
from needle.collect.services.hosted import Reply
from needle.collect.verify import Case, check_request, verify
from needle.collect.workers import Workers
from needle.text.formats import read_records
from needle.text.records import Call, Record, Tool

# Grounding

TEXT = (
    "Remind me to water Anna's plants at half past five, set 25% on the living-room lamp for twenty five minutes and"
    " call +1 555-010-9999 on March 3rd"
)
SAID, IMPLIED, ABSENT = Grounded.SAID, Grounded.IMPLIED, Grounded.ABSENT


@pytest.mark.parametrize(
    ("value", "schema", "text", "level"),
    [
        ("water Anna's plants", {}, TEXT, SAID),
        ("Living Room", {}, TEXT, SAID),
        ("living_room", {"enum": ["living_room"]}, TEXT, SAID),
        ("kitchen", {"enum": ["kitchen"]}, TEXT, IMPLIED),
        ("kitchen", {}, TEXT, ABSENT),
        ("water", {}, "the watermelon", ABSENT),
        ("plants lamp", {}, TEXT, IMPLIED),
        (25, {}, TEXT, SAID),
        (1500, {}, TEXT, IMPLIED),
        (38, {}, TEXT, ABSENT),
        (1234.5, {}, "pay 1,234.50 now", SAID),
        (-3, {}, "it is -3 outside", SAID),
        (102, {}, "a hundred and two dogs", SAID),
        (12, {}, "a dozen eggs", SAID),
        (2_500_000, {}, "a budget of 2.5 million", SAID),
        (3000, {}, "send 3k to Anna", SAID),
        (0.5, {}, "half of it", SAID),
        (-18, {}, "minus 18 degrees", SAID),
        (0, {}, "no sugar", ABSENT),
        ("PT1H30M", {}, "for an hour and a half", SAID),
        ("PT20M", {}, "for 25 minutes", ABSENT),
        ("17:30", {}, TEXT, SAID),
        ("05:30", {}, TEXT, SAID),
        ("18:30", {}, TEXT, ABSENT),
        ("21:00", {}, "at 9pm", SAID),
        ("09:00", {}, "at 9pm", ABSENT),
        ("12:00", {}, "see you at noon", SAID),
        ("2026-03-03", {}, TEXT, SAID),
        ("2026-03-04", {}, TEXT, ABSENT),
        ("+15550109999", {}, TEXT, SAID),
        ("a.b@example.com", {}, "mail a.b@example.com please", SAID),
        (True, {}, TEXT, IMPLIED),
        (["plants", "lamp"], {}, TEXT, SAID),
        (["plants", "sofa"], {}, TEXT, ABSENT),
        ({"room": "living room", "level": 99}, {}, TEXT, ABSENT),
        ("Zürich", {}, "wetter in zurich", SAID),
    ],
)
def test_a_value_is_said_implied_or_absent(value: Any, schema: dict[str, Any], text: str, level: Grounded) -> None:
    assert grounded(value, schema, text) == level


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("5 pm", "17:00", True), ("The Kitchen", "kitchen", True), (3, "three", True), (3, 3.0, True), (["a", "b"],
            ["b", "a"], True), ({"x": "noon"}, {"x": "12:00"}, True),
        ("milk", "bread", False), ("milk", "oat milk", False), (3, 4, False), (True, False, False), (True, 1, False),
            (["a"], ["a", "b"], False),
    ],
)  # fmt: skip
def test_two_values_that_mean_the_same(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) == same(other, one) == equal


# Verdicts

LIGHT = Tool("light", "Sets a light", {"type": "object", "properties": {"room": {"type": "string"},
    "level": {"type": "integer"}, "mode": {"enum": ["on", "off"]}}, "required": ["room"],
    "additionalProperties": False})  # fmt: skip
RADIO = Tool("radio", "Plays radio")


def said(*calls: dict[str, Any], finish: str = "stop") -> Reply:
    return Reply(finish, tuple(Call("light", arguments) for arguments in calls))


ASKED = Case("1", "kitchen light to 40", (LIGHT, RADIO))


@pytest.mark.parametrize(
    ("answers", "reason", "doubt"),
    [
        ([said({"room": "kitchen", "level": 40})], "", False),
        ([said({"room": "kitchen", "mode": "on"})], "", True),
        ([said()], "", False),
        ([said({"room": "kitchen", "level": 40}, finish="max_tokens")], "finish", True),
        ([said({"level": 40})], "schema", True),
        ([Reply("stop", (Call("heater"),))], "unknown_tool", True),
        ([said({"room": "attic"})], "ungrounded", True),
        ([said({"room": "kitchen"}), said({"room": "kitchen"}), said()], "", False),
        ([said({"room": "kitchen"}), said(), said({"room": "kitchen", "level": 40})], "no_agreement", False),
        ([said({"room": "attic"}), said({"room": "attic"}), said()], "ungrounded", False),
        ([said({"level": 1})] * 3, "schema", False),
        ([], "not_labelled", False),
    ],
)
def test_verdicts_and_their_reasons(answers: list[Reply], reason: str, doubt: bool) -> None:
    verdict = verify(ASKED, answers)
    assert (verdict.reason, verdict.doubt) == (reason, doubt)
    assert (verdict.record is None) == bool(reason)


def test_votes_are_kept_as_shares() -> None:
    verdict = verify(
        ASKED,
        [said({"room": "kitchen", "level": 40}), said({"level": 40.0, "room": "kitchen"}), said({"room": "kitchen"})],
    )
    assert verdict.record is not None
    assert verdict.record.teacher is not None
    assert [row["count"] for row in verdict.record.teacher["answers"]] == [2, 1]
    assert verdict.record.answers[0].arguments == {"room": "kitchen", "level": 40}


def test_the_plan_has_a_say_too() -> None:
    from needle.collect.catalogue import Declared

    planner = Planner([Declared(LIGHT, "", "light"), Declared(RADIO, "", "radio")], frozenset(), 0, ["en"], 3)
    items = {
        item.kind: item for number in range(300) if (item := planner.item(number)) and item.subjects[0].name == "light"
    }
    single = next(
        item
        for number in range(300)
        if (item := planner.item(number)).kind == "single"
        and item.calls[0].name == "light"
        and "level" in item.calls[0].arguments
    )
    arguments = dict(single.calls[0].arguments)
    text = " ".join(str(value) for value in arguments.values())
    source = Case("1", f"light {text} and 77", (LIGHT, RADIO), "en", single)
    assert check_request(source) is None
    problem = check_request(Case("1", "light please", (LIGHT, RADIO), "en", single))
    assert problem is not None
    assert problem.reason == "slot_missing"
    for answer, reason in (
        (said(arguments), ""),
        (said({**arguments, "level": 77}), "other_values"),
        (Reply("stop", (Call("radio"),)), "other_tools"),
        (said(), "not_called"),
        (said(arguments, arguments), "other_tools"),
    ):
        assert verify(source, [answer]).reason == reason
    for kind in (MISSING, NEAR_MISS, NONE):
        quiet = Case("1", "light kitchen 40", (LIGHT, RADIO), "en", items[kind])
        assert verify(quiet, [said({"room": "kitchen"})]).reason == "called_anyway"
        assert verify(quiet, [said()]).reason == ""


# Duplicates


def record(number: int, query: str, **arguments: Any) -> Record:
    return Record(str(number), query, (LIGHT,), (Call("light", arguments),) if arguments else (), "collected")


def test_values_are_masked_and_the_same_phrasing_is_kept_only_so_often(tmp_path: Path) -> None:
    first = record(0, "please dim the lamp in the kitchen down to 40 percent", room="kitchen", level=40)
    assert mask(first) == "please dim the lamp in the <room> down to <level> percent"
    values = (("attic", 5), ("big old hall", 10), ("cellar", 99))
    others = [
        record(n, f"please dim the lamp in the {room} down to {level} percent", room=room, level=level)
        for n, (room, level) in enumerate(values)
    ]
    with Seen(tmp_path / "seen.sqlite", phrasings=3) as seen:
        assert [seen.reason(fingerprint(one), "train") for one in (first, *others)] == [
            None,
            None,
            None,
            "near_duplicate",
        ]
        assert seen.reason(fingerprint(first), "train") == "duplicate"
        assert (
            seen.reason(
                fingerprint(
                    record(9, "Please, dim the lamp in the kitchen down to 40 percent!", room="kitchen", level=40)
                ),
                "train",
            )
            == "duplicate"
        )
        assert (
            seen.reason(fingerprint(record(10, "could you make it a bit brighter over there", room="kitchen")), "train")
            is None
        )


def test_a_phrasing_never_stands_in_two_splits(tmp_path: Path) -> None:
    with Seen(tmp_path / "seen.sqlite", phrasings=3) as seen:
        assert (
            seen.reason(fingerprint(record(0, "please dim the lamp in the kitchen right now", room="kitchen")), "test")
            is None
        )
        assert (
            seen.reason(fingerprint(record(1, "please dim the lamp in the attic right now", room="attic")), "train")
            == "near_duplicate"
        )


def test_an_export_is_complete_and_says_what_is_in_it(tmp_path: Path) -> None:
    words = ["lamp", "dim", "bright", "hall", "now", "please", "switch", "glow", "shine", "warm"]
    rows: list[dict[str, Any]] = []
    for n in range(90):
        query = " ".join(words[int(digit)] for digit in str(n * 7919 + 123456))
        rows.append(
            {
                "split": "train" if n % 5 else "test",
                "reason": "" if n % 7 else "schema",
                "detail": "",
                "record": record(n, query, room=words[n % 10]).to_json(),
            }
        )
    rows.append({**rows[1], "record": {**rows[1]["record"], "id": "twin"}})
    with Workers(processes=2) as workers, Seen(tmp_path / "seen.sqlite", 3) as seen:
        mark_duplicates(rows, seen, workers)
    manifest = export(iter(rows), tmp_path, {"title": "Mine", "teacher": "nobody", "method": "by hand", "dollars": 1.5})
    kept = [one for split in ("train", "validation", "test") for one in read_records(tmp_path / f"{split}.jsonl.gz")]
    assert len(kept) == manifest["records"] == manifest["funnel"]["kept"]
    assert manifest["funnel"]["items"] == 91
    assert manifest["funnel"]["duplicate"] == 1
    with gzip.open(tmp_path / "dropped.jsonl.gz", "rt") as file:
        dropped = Counter(json.loads(line)["reason"] for line in file)
    assert sum(dropped.values()) + len(kept) == 91
    table = pq.read_table(tmp_path / "records.parquet").to_pylist()
    assert {row["id"] for row in table} == {one.id for one in kept}
    assert json.loads(table[0]["answers"])[0]["name"] == "light"
    assert manifest["dollars_per_record"] == pytest.approx(1.5 / len(kept), abs=1e-6)
    assert "| kept |" in (tmp_path / "README.md").read_text()
    page = (tmp_path / "records.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest
    assert not list(tmp_path.glob("writing*"))


def test_workers_on_a_ray_cluster_and_here_say_the_same() -> None:
    pytest.importorskip("ray")
    work = [[(ASKED, [said({"room": "kitchen"})])], [(ASKED, []), (ASKED, [said({"room": "attic"})])]]
    with Workers("ray") as ray, Workers() as here:
        assert list(ray.map(_Judge(0.6), work)) == list(here.map(_Judge(0.6), work))


# Logged traffic


def test_logged_traffic_is_read_and_verified(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": LIGHT.to_json()}]

    def row(query: str, arguments: str) -> str:
        calls = [{"type": "function", "function": {"name": "light", "arguments": arguments}}]
        return json.dumps({"request": {"messages": [{"role": "system", "content": "be good"}, {"role": "user",
            "content": query}], "tools": tools}, "response": {"choices": [{"message": {"content": None,
            "tool_calls": calls}}]}})  # fmt: skip

    (tmp_path / "log.jsonl").write_text(
        "\n".join(
            [row("kitchen light to 40", '{"room": "kitchen", "level": 40}'), row("kitchen light", '{"room": "attic"}')]
        )
    )
    judged = list(judge_traffic(read_records(tmp_path / "log.jsonl"), "en"))
    assert [one.verdict.reason for one in judged] == ["", "ungrounded"]
    assert judged[0].verdict.record is not None
    assert judged[0].verdict.record.source == "traffic"
