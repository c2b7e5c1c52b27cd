"""Decoding: always valid under the grammar, the same alone and in a batch, no state between requests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from needle.checkpoint import Checkpoint
from needle.cli.app import AnsweringProgress
from needle.engine.decode import Engine, Request, working_dtype
from needle.evaluate import evaluate, judge
from needle.prompt import PromptError
from needle.records import Record
from needle.students.build import build_student
from needle.tokenizer import TextTokenizer
from needle.toolschema import call_errors, normalise_tool
from tests.conftest import TINY


def random_checkpoint(tokenizer: TextTokenizer, family: str = "pointer", codec: str = "decisions", seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    return Checkpoint(build_student(TINY[family], tokenizer.size).eval(), TINY[family], tokenizer, codec, 1024)


@pytest.mark.parametrize("family", list(TINY))
@pytest.mark.parametrize("codec", ["decisions", "json"])
def test_even_random_weights_answer_schema_valid_calls_under_the_grammar(tokenizer: TextTokenizer, records: list[Record], family: str, codec: str) -> None:
    engine = Engine(random_checkpoint(tokenizer, family, codec))
    answers, _ = judge(engine, records[:16], max_tokens=40)
    assert {answer.finish for answer in answers} <= {"stop", "length"}
    for record, answer in zip(records, answers, strict=False):
        assert 0 <= answer.confidence <= 1
        for call in answer.calls or ():
            assert call_errors(call, record.tools) == []


@pytest.mark.parametrize("family", list(TINY))
def test_answers_are_the_same_alone_in_a_batch_and_after_other_requests(tokenizer: TextTokenizer, records: list[Record], family: str) -> None:
    engine = Engine(random_checkpoint(tokenizer, family, seed=1))
    requests = [Request(record.query, record.tools) for record in records[:8]]
    together = engine.answer_all(requests, max_tokens=12)
    for request, answer in zip(reversed(requests), reversed(together), strict=True):
        alone = engine.answer(request.query, request.tools, max_tokens=12)
        assert (alone.calls, alone.finish, alone.tokens) == (answer.calls, answer.finish, answer.tokens)


def test_progress_is_heard_after_each_batch_and_ends_with_all(tokenizer: TextTokenizer, records: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[int, int]] = []
    printed = AnsweringProgress("simple: ", every=0.0)

    def report(done: int, requests: int) -> None:
        heard.append((done, requests))
        printed(done, requests)

    evaluate(Engine(random_checkpoint(tokenizer)), records[:7], max_tokens=3, batch_size=3, report=report)
    assert heard == [(3, 7), (6, 7), (7, 7)]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("answered")[0] for line in lines] == ["simple: 3 of 7 ", "simple: 6 of 7 ", "simple: 7 of 7 "]
    assert lines[-1].endswith("0:00 left")


def test_free_decoding_may_break_and_is_then_counted_invalid(tokenizer: TextTokenizer, records: list[Record]) -> None:
    summary = evaluate(Engine(random_checkpoint(tokenizer), decoding="free"), records[:12], max_tokens=20)
    assert sum(summary["finish"].values()) == 12
    assert summary["finish"]["invalid"] + summary["finish"]["length"] > 0
    assert summary["schema_valid"]["value"] < 1


def test_a_long_request_is_refused_and_the_rest_go_on(tokenizer: TextTokenizer, records: list[Record]) -> None:
    engine = Engine(replace(random_checkpoint(tokenizer), max_length=300))
    long = Request("word " * 400, records[0].tools)
    with pytest.raises(PromptError, match="tokens long; this student reads fewer than 300"):
        engine.answer(long.query, long.tools)
    first, second = engine.answer_all([long, Request(records[1].query, records[1].tools[:1])], max_tokens=5)
    assert first.finish == "refused"
    assert "300" in first.error
    assert second.finish in ("stop", "length")


def test_a_student_that_reads_tools_apart_takes_many_of_them(tokenizer: TextTokenizer, records: list[Record]) -> None:
    """Each is far below the limit, all together are above it."""
    tools = list({tool.name: tool for record in records for tool in record.tools}.values())[:20]
    apart, together = (Engine(replace(random_checkpoint(tokenizer, family), max_length=300)) for family in ("pointer", "llama"))
    assert apart.answer("turn it off", tools, max_tokens=5).finish in ("stop", "length")
    with pytest.raises(PromptError, match=r"the request and its tools are \d+ tokens long"):
        together.answer("turn it off", tools)


def test_without_tools_no_call_is_the_only_answer(tokenizer: TextTokenizer) -> None:
    answer = Engine(random_checkpoint(tokenizer)).answer("what is up", ())
    assert answer.calls == ()
    assert answer.confidence == 1.0


def test_an_answer_that_runs_out_of_tokens_has_no_call(tokenizer: TextTokenizer) -> None:
    tool = normalise_tool({"name": "say", "parameters": {"type": "object", "properties": {"x": {"type": "string", "minLength": 200}}, "required": ["x"]}})
    checkpoint = random_checkpoint(tokenizer)
    for seed in range(20):  # a random student that starts a call at all
        answer = Engine(random_checkpoint(tokenizer, seed=seed)).answer("say it", (tool,), max_tokens=10)
        if answer.finish == "length":
            break
    assert (answer.finish, answer.calls, answer.confidence) == ("length", None, 0.0)
    assert checkpoint.max_length == 1024


def test_unknown_decoding_is_named(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match="constrained, free"):
        Engine(random_checkpoint(tokenizer), decoding="beam")


def test_guessing_ahead_saves_steps_and_changes_no_answer(tokenizer: TextTokenizer, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(tokenizer, seed=2)
    student = checkpoint.student
    with torch.no_grad():
        student.follow.bias.fill_(40.0)  # type: ignore[union-attr]  # once it copies, it goes on copying
        student.key_query.weight.mul_(20)  # type: ignore[union-attr]  # and it likes to copy
    engine = Engine(checkpoint)
    steps = 0
    extend = student.extend

    def counted(*arguments: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return extend(*arguments)  # type: ignore[operator,no-any-return]

    monkeypatch.setattr(student, "extend", counted)
    taken = tokens = 0
    for record in records[:12]:
        request = Request(record.query, record.tools)
        monkeypatch.setattr(engine, "_decode_one", None)
        plain = engine.answer_all([request, request], max_tokens=30)[0]
        monkeypatch.undo()
        monkeypatch.setattr(student, "extend", counted)
        before = steps
        alone = engine.answer(record.query, record.tools, max_tokens=30)
        assert (alone.calls, alone.finish, alone.tokens) == (plain.calls, plain.finish, plain.tokens)
        assert alone.confidence == pytest.approx(plain.confidence, rel=1e-3)
        taken, tokens = taken + steps - before, tokens + alone.tokens
    assert tokens > 100
    assert taken < 0.9 * tokens


@pytest.mark.parametrize("family", list(TINY))
def test_a_student_held_in_bfloat16_answers_as_well(tokenizer: TextTokenizer, records: list[Record], family: str) -> None:
    checkpoint = random_checkpoint(tokenizer, family)
    checkpoint.student.to(working_dtype("bfloat16"))
    answers, _ = judge(Engine(checkpoint), records[:6], max_tokens=20)
    assert {answer.finish for answer in answers} <= {"stop", "length"}
    assert working_dtype("auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="precision is 'half'; expected one of auto, float32, bfloat16"):
        working_dtype("half")
