"""The stages of the data engine that ask nobody: catalogue, plan, grounding, verdicts, duplicates, export."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from needle.collect.asks import label_ask, read_requests, read_values, value_asks, write_ask
from needle.collect.catalogue import read_catalogue, unseen_families
from needle.collect.dedupe import Seen, fingerprint, mask
from needle.collect.export import export
from needle.collect.grounding import Grounded, grounded, same
from needle.collect.pipeline import _Judge, judge_traffic, mark_duplicates
from needle.collect.plan import CALLED, KINDS, MISSING, NEAR_MISS, NONE, Planner
from needle.collect.run import read_requests as read_request_file
from needle.collect.verify import Case, check_request, verify
from needle.collect.workers import Workers
from needle.formats import read_records
from needle.records import Call, DataError, Record, Tool
from needle.teachers.hosted import Answer
from needle.toolschema import call_errors

# Catalogue

OPENAPI = """
openapi: 3.0.0
paths:
  /pets/{id}:
    parameters: [{name: id, in: path, required: true, schema: {type: integer}}]
    get:
      operationId: getPet
      summary: Finds a pet.
      tags: [pets]
      parameters: [{name: verbose, in: query, schema: {type: boolean}}, {name: X-Trace, in: header, schema: {type: string}}]
    put:
      summary: Changes a pet
      requestBody: {content: {application/json: {schema: {$ref: '#/components/schemas/Change'}}}}
components:
  schemas:
    Named: {type: object, required: [name], properties: {name: {type: string, example: Rex}}}
    Change: {allOf: [{$ref: '#/components/schemas/Named'}, {type: object, properties: {tag: {type: string, enum: [cat, dog]}}}]}
"""
MODULE = '''
from typing import Literal, Optional

def book_table(people: int, place: str, when: Optional[str] = None, mood: Literal["quiet", "lively"] = "quiet") -> str:
    """Books a table.

    Args:
        people: how many come
        place: the restaurant
    """
    return ""

def _hidden(x: int) -> None: ...

def weather(city: str):
    """Tells the weather."""
'''
PLAIN = {"name": "play", "description": "Plays music", "parameters": {"type": "object", "properties": {"song": {"type": "string", "description": "what to play"}}}}


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("tools.json", json.dumps([PLAIN]), ["play"]),
        ("tools.json", json.dumps([{"type": "function", "function": PLAIN}]), ["play"]),
        ("tools.json", json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "play", "inputSchema": PLAIN["parameters"]}]}}), ["play"]),
        ("tools.json", json.dumps([{"functionDeclarations": [PLAIN, {**PLAIN, "name": "stop"}]}]), ["play", "stop"]),
        ("tools.jsonl", json.dumps(PLAIN) + "\n" + json.dumps({**PLAIN, "name": "stop"}), ["play", "stop"]),
        ("api.yaml", OPENAPI, ["getPet", "put_pets_id"]),
        ("mine.py", MODULE, ["book_table", "weather"]),
    ],
)
def test_tools_are_read_from_whatever_they_are_declared_in(tmp_path: Path, name: str, content: str, names: list[str]) -> None:
    (tmp_path / name).write_text(content)
    sources, findings = read_catalogue(tmp_path / name)
    assert [source.tool.name for source in sources] == names
    assert not [finding for finding in findings if finding.error]


def test_an_openapi_operation_and_a_function_keep_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "api.yaml").write_text(OPENAPI)
    get, put = (source.tool for source in read_catalogue(tmp_path / "api.yaml")[0])
    assert get.description == "Finds a pet."
    assert list(get.parameters["properties"]) == ["id", "verbose"]
    assert get.parameters["required"] == ["id"]
    assert list(put.parameters["properties"]) == ["id", "name", "tag"]
    assert put.parameters["required"] == ["id", "name"]
    (tmp_path / "mine.py").write_text(MODULE)
    book = read_catalogue(tmp_path / "mine.py")[0][0].tool
    assert book.description == "Books a table."
    assert book.parameters["properties"]["people"] == {"type": "integer", "description": "how many come"}
    assert book.parameters["properties"]["mood"]["enum"] == ["quiet", "lively"]
    assert book.parameters["required"] == ["people", "place"]


def test_everything_wrong_with_the_tools_is_found_at_once_with_its_place(tmp_path: Path) -> None:
    broken = [PLAIN, {"name": "x", "parameters": {"type": "object", "properties": {"a": {"type": "strin"}}}}, PLAIN, {"name": "bare"}]
    (tmp_path / "t.json").write_text(json.dumps(broken))
    sources, findings = read_catalogue(tmp_path / "t.json")
    assert [source.tool.name for source in sources] == ["play", "bare"]
    errors = [str(finding) for finding in findings if finding.error]
    assert errors[0].startswith("error: t.json/1/parameters/properties/a")
    assert "'play' is declared at t.json/0 already" in errors[1]
    assert [finding.where for finding in findings if not finding.error] == ["t.json/3/description"]
    (tmp_path / "odd.py").write_text("class Thing: ...\n\ndef fine(x: int): ...\n\ndef odd(x: Thing): ...\n")
    sources, findings = read_catalogue(tmp_path / "odd.py")
    assert [source.tool.name for source in sources] == ["fine"]
    assert [str(finding)[:40] for finding in findings if finding.error] == ["error: odd.py:odd: the type hints say no"]
    (tmp_path / "t.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="expected an array of tools"):
        read_catalogue(tmp_path / "t.json")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(DataError, match="can't be imported: ZeroDivisionError"):
        read_catalogue(tmp_path / "bad.py")


# Plan


def test_a_plan_is_a_function_of_seed_and_number_and_its_calls_are_valid() -> None:
    sources, _ = read_catalogue(None)
    unseen = unseen_families(sources, 0)
    planner, again, another = (Planner(sources, unseen, seed, ["en", "de"], 10) for seed in (0, 0, 1))
    items = [planner.item(number) for number in range(600)]
    assert [again.item(number) for number in (599, 3)] == [items[599], items[3]]
    assert items[:20] != [another.item(number) for number in range(20)]
    hidden = {source.tool.name for source in sources if source.family in unseen}
    for item in items:
        names = [tool.name for tool in item.tools]
        assert 1 <= len(names) == len(set(names)) <= 10
        subjects = {tool.name for tool in item.subjects}
        for tool, call in zip(item.subjects, item.calls, strict=False):
            if item.kind != MISSING:
                assert call_errors(call, (tool,)) == [], item
            else:
                assert item.left_out in tool.parameters["required"]
                assert item.left_out not in call.arguments
        if item.kind in CALLED or item.kind == MISSING:
            assert subjects <= set(names)
        if item.kind == NEAR_MISS:
            assert not subjects & set(names)
        if item.kind in (NEAR_MISS, NONE):
            assert item.wanted == ()
        if item.split != "test":
            assert not hidden & (set(names) | subjects), "a tool of the test of unseen tools must not be shown before"
        assert item.unseen == bool(subjects & hidden)
    assert {item.kind for item in items} == set(KINDS)
    assert any(item.unseen for item in items)
    assert {item.language for item in items} == {"en", "de"}


def test_values_come_from_the_teacher_where_it_gave_allowed_ones() -> None:
    tool = Tool("book", "Books", {"type": "object", "properties": {"at": {"type": "string", "pattern": "^[0-9]{2}:[0-9]{2}$"}, "guests": {"type": "array", "items": {"type": "string"}}, "mood": {"enum": ["a"]}}, "required": ["at", "guests"]})  # fmt: skip
    ((ask, _, open_),) = value_asks([tool], "m")
    assert list(open_) == ["at", "guests"]
    assert ask.schema is not None
    said = Answer("stop", text=json.dumps({"at": ["19:30", "half past"], "guests": ["Ann", "Ann", " Bo "], "more": []}))
    pools = read_values(said, tool, open_)
    assert pools == {("book", "at"): ["19:30"], ("book", "guests"): ["Ann", "Bo"]}
    from needle.collect.catalogue import Declared

    planner = Planner([Declared(tool, "", "book")], frozenset(), 0, ["en"], 3, pools)
    calls = [call for number in range(60) for call in planner.item(number).calls if "at" in call.arguments and "guests" in call.arguments]
    assert {call.arguments["at"] for call in calls} == {"19:30"}
    assert {name for call in calls for name in call.arguments["guests"]} == {"Ann", "Bo"}


def test_who_labels_never_sees_the_plan() -> None:
    sources, _ = read_catalogue(None)
    item = next(item for number in range(100) if (item := Planner(sources, frozenset(), 0, ["en"], 6).item(number)).kind == "single" and len(item.tools) > 3)
    first, second = (label_ask("do it", item.tools, "m", sample) for sample in (0, 1))
    assert first.tools == item.tools
    assert sorted(tool.name for tool in second.tools) == sorted(tool.name for tool in item.tools)
    assert first.key != second.key
    assert item.persona in write_ask([item], "m").text
    assert item.persona not in first.text + first.system
    texts = read_requests(Answer("stop", text='```json\n{"requests": [{"task": 1, "text": " b "}, {"task": 7, "text": "x"}, {"task": 0}]}\n```'), 3)
    assert texts == [None, "b", None]


# Grounding

TEXT = "Remind me to water Anna's plants at half past five, set 25% on the living-room lamp for twenty five minutes and call +1 555-010-9999 on March 3rd"
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
        (12, {}, "a dozen eggs", IMPLIED),
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
        ("5 pm", "17:00", True), ("The Kitchen", "kitchen", True), (3, "three", True), (3, 3.0, True), (["a", "b"], ["b", "a"], True), ({"x": "noon"}, {"x": "12:00"}, True),
        ("milk", "bread", False), ("milk", "oat milk", False), (3, 4, False), (True, False, False), (True, 1, False), (["a"], ["a", "b"], False),
    ],
)  # fmt: skip
def test_two_values_that_mean_the_same(one: Any, other: Any, equal: bool) -> None:
    assert same(one, other) == same(other, one) == equal


# Verdicts

LIGHT = Tool("light", "Sets a light", {"type": "object", "properties": {"room": {"type": "string"}, "level": {"type": "integer"}, "mode": {"enum": ["on", "off"]}}, "required": ["room"], "additionalProperties": False})  # fmt: skip
RADIO = Tool("radio", "Plays radio")


def said(*calls: dict[str, Any], finish: str = "stop") -> Answer:
    return Answer(finish, tuple(Call("light", arguments) for arguments in calls))


ASKED = Case("1", "kitchen light to 40", (LIGHT, RADIO))


@pytest.mark.parametrize(
    ("answers", "reason", "doubt"),
    [
        ([said({"room": "kitchen", "level": 40})], "", False),
        ([said({"room": "kitchen", "mode": "on"})], "", True),
        ([said()], "", False),
        ([said({"room": "kitchen", "level": 40}, finish="max_tokens")], "finish", True),
        ([said({"level": 40})], "schema", True),
        ([Answer("stop", (Call("heater"),))], "unknown_tool", True),
        ([said({"room": "attic"})], "ungrounded", True),
        ([said({"room": "kitchen"}), said({"room": "kitchen"}), said()], "", False),
        ([said({"room": "kitchen"}), said(), said({"room": "kitchen", "level": 40})], "no_agreement", False),
        ([said({"room": "attic"}), said({"room": "attic"}), said()], "ungrounded", False),
        ([said({"level": 1})] * 3, "schema", False),
        ([], "not_labelled", False),
    ],
)
def test_verdicts_and_their_reasons(answers: list[Answer], reason: str, doubt: bool) -> None:
    verdict = verify(ASKED, answers)
    assert (verdict.reason, verdict.doubt) == (reason, doubt)
    assert (verdict.record is None) == bool(reason)


def test_votes_are_kept_as_shares() -> None:
    verdict = verify(ASKED, [said({"room": "kitchen", "level": 40}), said({"level": 40.0, "room": "kitchen"}), said({"room": "kitchen"})])
    assert verdict.record is not None
    assert verdict.record.teacher is not None
    assert [row["count"] for row in verdict.record.teacher["answers"]] == [2, 1]
    assert verdict.record.answers[0].arguments == {"room": "kitchen", "level": 40}


def test_the_plan_has_a_say_too() -> None:
    from needle.collect.catalogue import Declared

    planner = Planner([Declared(LIGHT, "", "light"), Declared(RADIO, "", "radio")], frozenset(), 0, ["en"], 3)
    items = {item.kind: item for number in range(300) if (item := planner.item(number)) and item.subjects[0].name == "light"}
    single = next(item for number in range(300) if (item := planner.item(number)).kind == "single" and item.calls[0].name == "light" and "level" in item.calls[0].arguments)
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
        (Answer("stop", (Call("radio"),)), "other_tools"),
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
    others = [record(n, f"please dim the lamp in the {room} down to {level} percent", room=room, level=level) for n, (room, level) in enumerate(values)]
    with Seen(tmp_path / "seen.sqlite", phrasings=3) as seen:
        assert [seen.reason(fingerprint(one), "train") for one in (first, *others)] == [None, None, None, "near_duplicate"]
        assert seen.reason(fingerprint(first), "train") == "duplicate"
        assert seen.reason(fingerprint(record(9, "Please, dim the lamp in the kitchen down to 40 percent!", room="kitchen", level=40)), "train") == "duplicate"
        assert seen.reason(fingerprint(record(10, "could you make it a bit brighter over there", room="kitchen")), "train") is None


def test_a_phrasing_never_stands_in_two_splits(tmp_path: Path) -> None:
    with Seen(tmp_path / "seen.sqlite", phrasings=3) as seen:
        assert seen.reason(fingerprint(record(0, "please dim the lamp in the kitchen right now", room="kitchen")), "test") is None
        assert seen.reason(fingerprint(record(1, "please dim the lamp in the attic right now", room="attic")), "train") == "near_duplicate"


def test_an_export_is_complete_and_says_what_is_in_it(tmp_path: Path) -> None:
    words = ["lamp", "dim", "bright", "hall", "now", "please", "switch", "glow", "shine", "warm"]
    rows: list[dict[str, Any]] = []
    for n in range(90):
        query = " ".join(words[int(digit)] for digit in str(n * 7919 + 123456))
        rows.append({"split": "train" if n % 5 else "test", "reason": "" if n % 7 else "schema", "detail": "", "record": record(n, query, room=words[n % 10]).to_json()})
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


# Real requests, logged traffic


def test_requests_without_tools_are_offered_those_that_fit(tmp_path: Path) -> None:
    sources, _ = read_catalogue(None)
    (tmp_path / "r.jsonl").write_text(json.dumps({"query": "set an alarm for seven"}) + "\n" + json.dumps({"id": "own", "query": "x", "tools": [PLAIN]}) + "\n")
    first, second = read_request_file(tmp_path / "r.jsonl", sources, 5, "en")
    assert len(first.tools) == 5
    assert "set_alarm" in {tool.name for tool in first.tools}
    assert [tool.name for tool in second.tools] == ["play"]
    (tmp_path / "r.txt").write_text("hello\n\nthere\n")
    assert [source.query for source in read_request_file(tmp_path / "r.txt", sources, 5, "en")] == ["hello", "there"]
    (tmp_path / "r.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(DataError, match=r"r\.jsonl, line 1: field 'query'"):
        read_request_file(tmp_path / "r.jsonl", sources, 5, "en")


def test_logged_traffic_is_read_and_verified(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": LIGHT.to_json()}]

    def row(query: str, arguments: str) -> str:
        calls = [{"type": "function", "function": {"name": "light", "arguments": arguments}}]
        return json.dumps({"request": {"messages": [{"role": "system", "content": "be good"}, {"role": "user", "content": query}], "tools": tools}, "response": {"choices": [{"message": {"content": None, "tool_calls": calls}}]}})  # fmt: skip

    (tmp_path / "log.jsonl").write_text("\n".join([row("kitchen light to 40", '{"room": "kitchen", "level": 40}'), row("kitchen light", '{"room": "attic"}')]))
    judged = list(judge_traffic(read_records(tmp_path / "log.jsonl"), "en"))
    assert [one.verdict.reason for one in judged] == ["", "ungrounded"]
    assert judged[0].verdict.record is not None
    assert judged[0].verdict.record.source == "traffic"
