"""Which answers become records, and a reason for each that doesn't.

The checks, in order: the request is a request and says what was planned; the answer came whole; its calls are valid
under the declared tools; its values stand in the request; enough of the samples agree; the calls are those of the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from needle.collect.grounding import Grounded, grounded, same
from needle.collect.plan import MISSING, NEAR_MISS, NONE, Item
from needle.collect.services.hosted import STOP, Reply
from needle.text.records import Call, FieldError, Record, Tool, canonical_json, encodable
from needle.text.validity import call_errors

LONGEST = 2000  # characters of a request

REASONS: Mapping[str, str] = {
    "not_written": "the teacher wrote no request for this item",
    "too_long": f"the request is longer than {LONGEST} characters",
    "not_text": "the request isn't text that can be encoded",
    "slot_missing": "the request doesn't say a value that was planned",
    "tool_named": "the request speaks of a tool by its internal name",
    "not_labelled": "no answer: every attempt failed",
    "finish": "the teacher's answer was cut off, blocked, empty or unreadable",
    "unknown_tool": "a call names a tool that wasn't offered",
    "schema": "a call's arguments aren't allowed by the tool",
    "ungrounded": "a value of a call doesn't stand in the request",
    "no_agreement": "too few samples gave the same calls",
    "called_anyway": "calls, where the plan says that none is right",
    "not_called": "no calls, where the plan has some",
    "other_tools": "calls of other tools than planned",
    "other_values": "calls with other values than planned",
    "duplicate": "the same request and calls as another record",
    "near_duplicate": "almost the words of another record, its values aside",
}


@dataclass(frozen=True)
class Verdict:
    """A record, or why there is none. `doubt` says that more samples could change it."""

    record: Record | None
    reason: str = ""
    detail: str = ""
    doubt: bool = False


@dataclass(frozen=True)
class Case:
    """A request to be judged, planned or real; `item` is its plan."""

    id: str
    query: str
    tools: tuple[Tool, ...]
    language: str = "en"
    item: Item | None = None


def check_request(case: Case) -> Verdict | None:
    """What is wrong with a request before anybody answers it; None if nothing is."""
    query, item = case.query, case.item
    if not query.strip():
        return Verdict(None, "not_written")
    if len(query) > LONGEST:
        return Verdict(None, "too_long", f"{len(query)} characters")
    try:
        encodable(query, "query")
    except FieldError as error:
        return Verdict(None, "not_text", error.expected)
    if item is None or item.kind in (NONE, NEAR_MISS):
        return None
    for tool in item.subjects:
        if "_" in tool.name and tool.name in query:
            return Verdict(None, "tool_named", tool.name)
    for tool, call in zip(item.subjects, item.calls, strict=True):
        for name, value in call.arguments.items():
            if (
                grounded(value, tool.parameters.get("properties", {}).get(name, {}), query, case.language)
                == Grounded.ABSENT
            ):
                return Verdict(None, "slot_missing", f"{tool.name}.{name} = {value!r}")
    return None


def verify(case: Case, answers: Sequence[Reply], agreement: float = 0.6) -> Verdict:
    """Judges the samples of a request together. With one sample, whatever isn't beyond doubt is in doubt."""
    if not answers:
        return Verdict(None, "not_labelled", doubt=False)
    single = len(answers) == 1
    problems = [_answer_problem(answer, case.tools) for answer in answers]
    ballots: Counter[str] = Counter()
    calls: dict[str, tuple[Call, ...]] = {}
    for answer, problem in zip(answers, problems, strict=True):
        if problem is None:
            key = canonical_json(sorted(call.key for call in answer.calls))
            ballots[key] += 1
            calls.setdefault(key, answer.calls)
    if not ballots:
        reason, detail = next(problem for problem in problems if problem)
        return Verdict(None, reason, detail, doubt=single)
    winner, votes = ballots.most_common(1)[0]
    share = votes / len(answers)
    if share < agreement:
        return Verdict(None, "no_agreement", f"{votes} of {len(answers)}", doubt=single)
    chosen = calls[winner]
    level, what = _grounding(chosen, case)
    if level == Grounded.ABSENT:
        return Verdict(None, "ungrounded", what, doubt=single)
    differs = _plan_problem(chosen, case) if case.item else None
    if differs:
        return Verdict(None, *differs, doubt=single)
    teacher = {
        "answers": [
            {"calls": [call.to_json() for call in calls[key]], "count": count} for key, count in ballots.most_common()
        ],
        "model": answers[0].model,
    }
    item = case.item
    meta = {**(item.to_json() if item else {}), "samples": len(answers)}
    if answers[0].logprob is not None:
        meta["logprob"] = round(answers[0].logprob, 4)
    record = Record(case.id, case.query, case.tools, chosen, "collected", teacher, meta)
    # An implied value of a real request has no plan to confirm it, so that votes have to.
    return Verdict(record, doubt=single and item is None and level == Grounded.IMPLIED)


def _answer_problem(answer: Reply, tools: tuple[Tool, ...]) -> tuple[str, str] | None:
    if answer.finish != STOP:
        return "finish", answer.finish
    names = {tool.name for tool in tools}
    for call in answer.calls:
        if call.name not in names:
            return "unknown_tool", call.name
        errors = call_errors(call, tools)
        if errors:
            return "schema", f"{call.name}{errors[0]}"
    return None


def _grounding(calls: Sequence[Call], case: Case) -> tuple[Grounded, str]:
    """The worst supported value of all calls, and which it is."""
    schemas = {tool.name: tool.parameters.get("properties", {}) for tool in case.tools}
    worst, what = Grounded.SAID, ""
    for call in calls:
        for name, value in call.arguments.items():
            level = grounded(value, schemas[call.name].get(name, {}), case.query, case.language)
            if level < worst:
                worst, what = level, f"{call.name}.{name} = {value!r}"
    return worst, what


def _plan_problem(calls: Sequence[Call], case: Case) -> tuple[str, str] | None:
    """How the calls differ from what was planned. Optional arguments on top, if they stand in the request, are no
    difference."""
    assert case.item is not None
    item, wanted = case.item, list(case.item.wanted)
    if item.kind in (NONE, NEAR_MISS, MISSING):
        return ("called_anyway", ", ".join(call.name for call in calls)) if calls else None
    if not calls:
        return "not_called", ", ".join(call.name for call in wanted)
    if sorted(call.name for call in calls) != sorted(call.name for call in wanted):
        return "other_tools", f"{', '.join(call.name for call in calls)} for {', '.join(call.name for call in wanted)}"
    left = list(calls)
    for call in wanted:
        match = next((other for other in left if other.name == call.name and _covers(other, call, case.language)), None)
        if match is None:
            return (
                "other_values",
                f"{[other.to_json() for other in left if other.name == call.name]} for {call.to_json()}"[:300],
            )
        left.remove(match)
    return None


def _covers(call: Call, planned: Call, language: str) -> bool:
    return all(
        name in call.arguments and same(call.arguments[name], value, language)
        for name, value in planned.arguments.items()
    )
