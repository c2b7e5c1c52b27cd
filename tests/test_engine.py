"""Decoding: always valid under the grammar, the same alone and in a batch, no state between requests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from needle.cli.say import AnsweringProgress
from needle.engine.decode import Answer, Engine, Request, _Row
from needle.engine.fit import shortened
from needle.engine.open import set_precision
from needle.engine.spans import with_scales
from needle.judging.evaluate import evaluate, judge
from needle.students.build import build_student
from needle.students.checkpoint import Checkpoint
from needle.students.pointer.batch import PointerBatch
from needle.text.declarations import normalise_tool
from needle.text.grammar import Grammar, GrammarError, Matcher
from needle.text.prompt import Example, PromptError
from needle.text.records import Call, Record, Tool, ToolSchemaError
from needle.text.tokenizer import TextTokenizer
from needle.text.validity import call_errors
from tests.conftest import TINY


def random_checkpoint(
    tokenizer: TextTokenizer, family: str = "pointer", codec: str = "decisions", seed: int = 0
) -> Checkpoint:
    torch.manual_seed(seed)
    return Checkpoint(build_student(TINY[family], tokenizer.size).eval(), TINY[family], tokenizer, codec, 1024)


@pytest.mark.parametrize("family", list(TINY))
@pytest.mark.parametrize("codec", ["decisions", "json"])
def test_even_random_weights_answer_schema_valid_calls_under_the_grammar(
    tokenizer: TextTokenizer, records: list[Record], family: str, codec: str
) -> None:
    engine = Engine(random_checkpoint(tokenizer, family, codec))
    answers, _ = judge(engine, records[:16], max_tokens=40)
    assert {answer.finish for answer in answers} <= {"stop", "length"}
    for record, answer in zip(records, answers, strict=False):
        assert 0 <= answer.confidence <= 1
        for call in answer.calls or ():
            assert call_errors(call, record.tools) == []


@pytest.mark.parametrize("family", list(TINY))
def test_answers_are_the_same_alone_in_a_batch_and_after_other_requests(
    tokenizer: TextTokenizer, records: list[Record], family: str
) -> None:
    engine = Engine(random_checkpoint(tokenizer, family, seed=1))
    requests = [Request(record.query, record.tools) for record in records[:8]]
    together = engine.answer_all(requests, max_tokens=12)
    for request, answer in zip(reversed(requests), reversed(together), strict=True):
        alone = engine.answer(request.query, request.tools, max_tokens=12)
        assert (alone.calls, alone.finish, alone.tokens) == (answer.calls, answer.finish, answer.tokens)


def test_progress_is_heard_after_each_batch_and_ends_with_all(
    tokenizer: TextTokenizer, records: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
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
    apart, together = (
        Engine(replace(random_checkpoint(tokenizer, family), max_length=300)) for family in ("pointer", "llama")
    )
    assert apart.answer("turn it off", tools, max_tokens=5).finish in ("stop", "length")
    with pytest.raises(PromptError, match=r"the request and its tools are \d+ tokens long"):
        together.answer("turn it off", tools)


def test_without_tools_no_call_is_the_only_answer(tokenizer: TextTokenizer) -> None:
    answer = Engine(random_checkpoint(tokenizer)).answer("what is up", ())
    assert answer.calls == ()
    assert answer.confidence == 1.0


def test_an_answer_that_runs_out_of_tokens_has_no_call(tokenizer: TextTokenizer) -> None:
    tool = normalise_tool(
        {
            "name": "say",
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "string", "minLength": 200}},
                "required": ["x"],
            },
        }
    )
    checkpoint = random_checkpoint(tokenizer)
    for seed in range(20):  # a random student that starts a call at all
        answer = Engine(random_checkpoint(tokenizer, seed=seed)).answer("say it", (tool,), max_tokens=10)
        if answer.finish == "length":
            break
    assert (answer.finish, answer.calls, answer.confidence) == ("length", None, 0.0)
    assert checkpoint.max_length == 1024


def test_a_value_that_goes_on_beyond_what_was_said_is_no_value(tokenizer: TextTokenizer) -> None:
    tool = normalise_tool({"name": "say", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}})
    engines = (Engine(random_checkpoint(tokenizer, seed=seed)) for seed in range(20))
    answers = [engine.answer("say it", (tool,), max_tokens=900) for engine in engines]
    errors = [answer.error for answer in answers if answer.finish == "invalid"]
    assert "a value is longer than what was said, and goes on" in errors
    assert all(answer.tokens < 200 for answer in answers if answer.error)


def test_evaluation_counts_the_tools_that_were_left_out(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    long = Tool("long", "It does something. " * 900)
    wide = Tool("wide", "", {"type": "object", "properties": {f"a{number}": {} for number in range(70)}})
    record = Record("1", "do it", (Tool("t"), long, wide), ())
    summary = evaluate(Engine(random_checkpoint(tokenizer)), [record, record], tmp_path / "p.jsonl", max_tokens=3)
    assert (summary["tools_left_out"], summary["tools_shortened"]) == (2, 2)
    assert "at most 64" in (tmp_path / "p.jsonl").read_text()


@pytest.mark.parametrize(
    ("query", "copied", "value"),
    [
        ("send 2.5 million to Anna", "2.5", 2_500_000),
        ("send 3k to Anna", "3", 3000),
        ("send 1.2M to Anna", "1.2", 1_200_000),
        ("send 4 hundred to Anna", "4", 400),
        ("make it minus 18 degrees", "18", -18),
        ("make it -18 degrees", "18", -18),
        ("send 20 to Anna", "20", 20),
        ("send 20 monkeys to Anna", "20", 20),
        ("from 5-18 degrees", "18", 18),
        ("walk 3 m", "3", 3),
    ],
)
def test_a_copied_number_is_read_with_what_belongs_to_it(query: str, copied: str, value: float) -> None:
    inner = {"type": "object", "properties": {"n": {"type": "number"}}}
    schema = {"type": "object", "properties": {"amount": {"type": "number"}, "to": inner, "name": {"type": "string"}}}
    tool = normalise_tool({"name": "t", "parameters": schema})
    place = ((query.index(copied), query.index(copied) + len(copied)),)
    call = Call("t", {"amount": float(copied), "to": {"n": float(copied)}, "name": copied})
    found = with_scales(call, {"amount": place, "to.n": place, "name": place}, query, tool)
    assert found.arguments == {"amount": value, "to": {"n": value}, "name": copied}
    assert call.arguments["amount"] == float(copied)


def test_unknown_decoding_is_named(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match="constrained, free"):
        Engine(random_checkpoint(tokenizer), decoding="beam")


@pytest.mark.parametrize("follow", [40.0, 2.0, -2.0])
def test_guessing_ahead_saves_steps_and_changes_no_answer(
    tokenizer: TextTokenizer, records: list[Record], monkeypatch: pytest.MonkeyPatch, follow: float
) -> None:
    checkpoint = random_checkpoint(tokenizer, seed=2)
    student = checkpoint.student
    with torch.no_grad():
        student.follow.bias.fill_(follow)  # type: ignore[union-attr]  # at 40, once it copies it goes on copying; below, a guess may be right by another place
        student.key_query.weight.mul_(20)  # type: ignore[union-attr]  # and it likes to copy
    engine = Engine(checkpoint)
    steps = 0
    step = student.step

    def counted(*arguments: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(student, "step", counted)
    taken = tokens = 0
    for record in records[:12]:
        record = replace(
            record, query=f"{record.query} the {record.query} the the"
        )  # words that stand in several places
        request = Request(record.query, record.tools)
        plain = engine.answer_all([request, request], max_tokens=30)[0]
        before = steps
        alone = engine.answer(record.query, record.tools, max_tokens=30)
        assert (alone.calls, alone.finish, alone.tokens) == (plain.calls, plain.finish, plain.tokens)
        assert alone.confidence == pytest.approx(plain.confidence, rel=1e-3)
        taken, tokens = taken + steps - before, tokens + alone.tokens
    assert tokens > 100
    assert taken < (0.9 if follow == 40 else 1.2) * tokens


@pytest.mark.parametrize("precision", ["bfloat16", "mixed", "auto"])
@pytest.mark.parametrize("family", list(TINY))
def test_a_student_held_in_less_precision_answers_as_well(
    tokenizer: TextTokenizer, records: list[Record], family: str, precision: str
) -> None:
    checkpoint = random_checkpoint(tokenizer, family)
    set_precision(checkpoint.student, precision, alone=True)
    engine = Engine(checkpoint)
    answers, _ = judge(engine, records[:6], max_tokens=20)
    assert {answer.finish for answer in answers} <= {"stop", "length"}
    assert engine.answer(records[0].query, records[0].tools, max_tokens=20).finish in ("stop", "length")


def test_mixed_precision_decodes_in_float32_what_was_read_in_bfloat16(
    tokenizer: TextTokenizer, examples: list[Example]
) -> None:
    student = random_checkpoint(tokenizer, "pointer").student
    exact = copy.deepcopy(student)
    set_precision(student, "mixed")
    assert {name.split(".")[0] for name, value in student.named_parameters() if value.dtype == torch.bfloat16} == {
        "embed",
        "kind",
        "encoder",
        "norm_encoder",
    }
    batch = PointerBatch.of(examples[:4], tokenizer)
    with torch.inference_mode():
        whole, mixed = (model(batch).log_softmax(-1) for model in (exact, student))
    assert mixed.dtype == torch.float32
    assert (mixed.exp() - whole.exp()).abs().max() < 0.05


def test_a_wrong_precision_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match="precision is 'half'; expected one of auto, float32, bfloat16, mixed"):
        set_precision(random_checkpoint(tokenizer, "pointer").student, "half")


def amount(schema: dict[str, object]) -> Tool:
    return normalise_tool(
        {"name": "send", "parameters": {"type": "object", "properties": {"amount": schema}, "required": ["amount"]}}
    )


class Scripted:
    """A student's place taken by a script: the tokens that it wants, one after the other, each with this
    log-probability."""

    def __init__(self, engine: Engine, wanted: list[int], log_prob: float = -0.1) -> None:
        self.engine, self.wanted, self.log_prob = engine, wanted, log_prob

    def run(self, tools: tuple[Tool, ...], max_tokens: int = 20) -> Answer:
        engine = self.engine
        assert engine.grammar
        row = _Row(0, Request("", tools), engine.grammar.matcher(tools), limit=max_tokens)
        for token in self.wanted:
            scores = np.full((1, engine.tokenizer.size), np.float32(-20.0))
            scores[0, token] = 0.0
            (chosen,) = engine._choose(scores, [row], None)
            row.sources.append(-1)
            if engine._advance(row, chosen):
                break
        assert row.answer
        return row.answer


def test_an_answer_may_be_as_long_as_its_limit(tokenizer: TextTokenizer) -> None:
    engine = Engine(random_checkpoint(tokenizer))
    wanted = [tokenizer.first_tool_label, tokenizer.first_argument_label, *tokenizer.encode(" 7"), tokenizer.eos]
    assert Scripted(engine, wanted).run((amount({"type": "integer"}),), len(wanted) - 1).finish == "stop"
    assert Scripted(engine, wanted).run((amount({"type": "integer"}),), len(wanted) - 2).finish == "length"


def test_a_value_that_the_grammar_cut_off_has_no_confidence(tokenizer: TextTokenizer) -> None:
    engine = Engine(random_checkpoint(tokenizer))
    start = [tokenizer.first_tool_label, tokenizer.first_argument_label, *tokenizer.encode(" eco")]
    tool = amount({"type": "string", "enum": ["eco", "boost"]})
    meant = Scripted(engine, [*start, tokenizer.eos]).run((tool,))
    cut = Scripted(engine, [*start, *tokenizer.encode("nomy")]).run((tool,))
    assert meant.calls == cut.calls == (Call("send", {"amount": "eco"}),)
    assert meant.confidence > 0.9
    assert cut.confidence < 1e-6


def test_a_grammar_that_gives_up_costs_its_own_answer_alone(
    tokenizer: TextTokenizer, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(random_checkpoint(tokenizer))
    tools = (amount({"type": "integer"}),)
    plain = engine.answer_all([Request(record.query, record.tools) for record in records[:4]], max_tokens=12)
    allowed = Matcher.allowed

    def failing(matcher: Matcher) -> NDArray[np.bool_]:
        if matcher in broken:
            raise GrammarError("the grammar failed in mid-answer: too many items")
        return allowed(matcher)

    broken: list[Matcher] = []
    made = Grammar.matcher

    def remembered(grammar: Grammar, own: Sequence[Tool], said: object = None) -> Matcher:
        matcher = made(grammar, own)
        if tuple(own) == tools:
            broken.append(matcher)
        return matcher

    monkeypatch.setattr(Matcher, "allowed", failing)
    monkeypatch.setattr(Grammar, "matcher", remembered)
    *others, failed = engine.answer_all(
        [*(Request(record.query, record.tools) for record in records[:4]), Request("x", tools)], max_tokens=12
    )
    assert [(answer.calls, answer.finish) for answer in others] == [(answer.calls, answer.finish) for answer in plain]
    assert (failed.calls, failed.finish) == (None, "invalid")
    assert "too many items" in failed.error


def test_of_many_tools_those_too_long_are_never_chosen_and_a_long_request_is_refused_at_once(
    tokenizer: TextTokenizer, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(replace(random_checkpoint(tokenizer), max_length=200), max_tools=2)
    tools = [
        amount({"type": "integer"}),
        *({tool.name: tool for record in records[:20] for tool in record.tools}.values()),
    ]
    long = Tool("long", "word " * 300)
    assert engine.answer("send 5", [long, *tools], max_tokens=5).finish in ("stop", "length")
    monkeypatch.setattr(
        engine.retriever, "rank", lambda *_: pytest.fail("the request was ranked before its length was known")
    )
    with pytest.raises(PromptError, match="tokens long"):
        engine.answer("word " * 300, tools)


def test_of_many_tools_none_of_which_can_be_read_one_is_named(tokenizer: TextTokenizer) -> None:
    engine = Engine(random_checkpoint(tokenizer), max_tools=1)
    wide = [
        Tool(
            f"wide{number}",
            "",
            {"type": "object", "properties": {f"a{place}": {"type": "string"} for place in range(70)}, "required": []},
        )
        for number in range(3)
    ]
    with pytest.raises(PromptError, match="'wide0' has 70 arguments"):
        engine.answer("send 5", wide)


def test_a_tool_that_no_grammar_holds_is_left_out_and_the_fault_found_among_all_tools(
    tokenizer: TextTokenizer, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(random_checkpoint(tokenizer), max_tools=2)
    assert engine.grammar
    whole = engine.grammar.matcher

    def matcher(tools: Sequence[Tool], said: object = None) -> Any:
        for index, tool in enumerate(tools):
            if tool.name == "bad":
                raise ToolSchemaError(f"/{index}/parameters", "the schema of 'bad' can't be held by a grammar")
        return whole(tools)

    monkeypatch.setattr(engine.grammar, "matcher", matcher)
    monkeypatch.setattr(engine.retriever, "rank", lambda query, tools: [len(tools) - 1, 0])
    tools = (*records[0].tools[:1], *records[1].tools[:1], Tool("bad"))
    answer = engine.answer("x", tools, max_tokens=3)
    assert [(tool.index, tool.name) for tool in answer.skipped] == [(2, "bad")]
    with pytest.raises(ToolSchemaError, match="'bad'") as error:
        engine.answer_one(Request("x", tools, strict=True))
    assert error.value.pointer == "/2/parameters"
    with pytest.raises(ToolSchemaError, match="'bad'"):
        engine.answer("x", [Tool("bad")])


@pytest.mark.parametrize(
    ("sentences", "how"),
    [
        (400, "described in 300 of 400 sentences"),
        (3000, "described in 281 of 3000 sentences"),
    ],
)
def test_a_description_that_is_too_long_is_cut_at_a_sentence(sentences: int, how: str) -> None:
    tool = Tool("t", "It does something useful. " * sentences)
    found = shortened(tool, lambda tool: len(tool.description) < 8000)
    assert found
    assert found[1] == how
    assert found[0].description.endswith("useful.")


def test_descriptions_of_arguments_go_before_the_tool() -> None:
    long = "What it is. " + "And more of it. " * 100
    inner = {"type": "object", "properties": {"name": {"type": "string", "description": long}}}
    properties = {"a": {"type": "string", "description": long}, "b": {"type": "array", "items": inner}}
    tool = Tool("t", "Does it. " * 50, {"type": "object", "properties": properties})
    brief = shortened(tool, lambda tool: len(tool.declared) < 500)
    assert brief
    assert brief[0].parameters["properties"]["a"]["description"] == "What it is."
    assert brief[0].parameters["properties"]["b"]["items"]["properties"]["name"]["description"] == "What it is."
    bare = shortened(tool, lambda tool: len(tool.declared) < 260)
    assert bare
    assert "What" not in bare[0].declared
    assert shortened(tool, lambda tool: False) is None


def test_encoded_tools_are_kept_up_to_a_number_of_bytes(
    tokenizer: TextTokenizer, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("needle.students.pointer.encoder.CACHED_BYTES", 100_000)
    engine = Engine(random_checkpoint(tokenizer))
    cache = engine.backend.cache
    for record in records[:12]:
        engine.answer(record.query, record.tools, max_tokens=2)
        assert 1000 < cache.currsize <= 100_000
    held = sum(tensor.numel() * tensor.element_size() for tensors in cache.values() for tensor in tensors)
    assert cache.currsize == held
    assert len(cache) < len({tool.key for record in records[:12] for tool in record.tools})
