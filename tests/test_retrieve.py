"""Choosing tools: the encoder's scores are those of the decoder's labels, BM25 ranks by words, the engine shows only
the best."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from needle.engine.bm25 import Bm25Retriever
from needle.engine.decode import Engine, Request
from needle.engine.eager import EagerBackend
from needle.engine.retrieve import EncoderRetriever, MergedRetriever, recall_at
from needle.students.base import Rope
from needle.students.build import build_student
from needle.students.checkpoint import Checkpoint
from needle.students.pointer.batch import PointerBatch
from needle.students.pointer.student import PointerStudent
from needle.text.prompt import Example
from needle.text.records import Call, Record, Tool
from needle.text.tokenizer import TextTokenizer
from tests.conftest import TINY

TOOLS = [
    Tool("get_weather", "Get the weather forecast of a city"),
    Tool("playMusic", "Play a song or an album"),
    Tool("set_alarm", "Wake somebody up at a time"),
]


@pytest.fixture(params=["pointer", "pretrained"])
def pointer(request: pytest.FixtureRequest, tokenizer: TextTokenizer) -> PointerStudent:
    torch.manual_seed(0)
    student = build_student(replace(TINY[request.param], lexical=False), tokenizer.size).eval()
    assert isinstance(student, PointerStudent)
    return student


def _backend(student: PointerStudent, tokenizer: TextTokenizer) -> EagerBackend:
    return EagerBackend(Checkpoint(student, TINY["pointer"], tokenizer, "decisions", 4096))


def test_the_encoders_scores_are_those_of_a_decoder_that_cannot_read_the_tools(
    pointer: PointerStudent, examples: list[Example], tokenizer: TextTokenizer
) -> None:
    example = next(e for e in examples if len(e.tools) >= 4)
    batch = PointerBatch.of([replace(example, target=(), open_tool=())], tokenizer)
    retriever = EncoderRetriever(_backend(pointer, tokenizer))
    with torch.no_grad():
        memory = pointer.remember(batch)
        memory.visible = memory.visible & (memory.owned == 0)
        x = pointer.embed_inputs(batch.inputs, batch.open_tool, torch.full_like(batch.inputs, -1), memory)
        rope = Rope.at(torch.zeros(1), pointer.head_width, pointer.config.rope_theta)
        for block in pointer.decoder:
            x, _ = block(x, rope, memory, block.cross_keys(memory), None)  # type: ignore[operator]
        hidden, keys = pointer.norm_decoder(x), pointer.keys(memory)
        copied = pointer._copy_scores(hidden, torch.full_like(batch.inputs, -1), batch, keys)
        labels = pointer.distribution(hidden, copied, batch.open_tool, batch, keys)[0, 0]
        expected = labels[tokenizer.first_tool_label : tokenizer.first_tool_label + len(example.tools)]
        query = tokenizer.decode(example.query).removeprefix(" ")
        cold, warm = (retriever.scores(query, example.tools) for _ in range(2))
    cold, warm = (torch.from_numpy(scores) for scores in (cold, warm))
    torch.testing.assert_close(
        cold - cold[0], expected - expected[0], atol=1e-4, rtol=1e-3
    )  # a gate adds the same to all labels
    torch.testing.assert_close(cold, warm)


def test_bm25_ranks_by_the_words_that_request_and_tool_share() -> None:
    ranked = Bm25Retriever()
    assert ranked.rank("what will the weather be", TOOLS)[0] == 0
    assert ranked.rank("some music, please", TOOLS)[0] == 1
    assert ranked.rank("nothing known", TOOLS) == [0, 1, 2]
    assert ranked.rank("anything", []) == []


def test_two_rankings_take_turns(pointer: PointerStudent, tokenizer: TextTokenizer) -> None:
    encoder, words = EncoderRetriever(_backend(pointer, tokenizer)), Bm25Retriever()
    merged = MergedRetriever(encoder, words)
    for query in ("some music", "wake me", ""):
        mine, theirs, ranked = encoder.rank(query, TOOLS), words.rank(query, TOOLS), merged.rank(query, TOOLS)
        assert sorted(ranked) == [0, 1, 2]
        assert ranked[0] == mine[0]
        assert theirs[0] in ranked[:2]
    assert merged.rank("anything", []) == []


def test_recall_counts_a_record_when_all_its_tools_are_among_the_first() -> None:
    both = Record("1", "play music, then the weather", tuple(TOOLS), (Call("playMusic"), Call("get_weather")), "s")
    silent = replace(both, id="2", answers=())
    wrong = replace(both, id="3", query="weather", answers=(Call("set_alarm"),))
    found = recall_at(Bm25Retriever(), [both, silent, wrong], TOOLS, (1, 2, 3))
    assert found == {1: 0.0, 2: 0.5, 3: 1.0}


def test_the_engine_shows_only_the_best_tools_in_their_own_order(
    pointer: PointerStudent, tokenizer: TextTokenizer
) -> None:
    many = [Tool(f"tool_{i}", f"does thing {i}") for i in range(200)]
    engine = Engine(_backend(pointer, tokenizer), max_tools=5)
    chosen = engine._choose_tools(Request("thing 7", tuple(many))).tools
    assert len(chosen) == 5
    assert [many.index(tool) for tool in chosen] == sorted(many.index(tool) for tool in chosen)
    best = engine.retriever.rank("thing 7", many)[:5]
    assert {tool.name for tool in chosen} == {many[index].name for index in best}
    assert engine.answer("thing 7", many, 5).finish in ("stop", "length")
    assert engine._choose_tools(Request("x", tuple(many[:5]))).tools == tuple(many[:5])
