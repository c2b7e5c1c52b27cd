"""Teachers: recorded answers, other tokenizers, sampled signals, white boxes; and the cache that keeps what they
say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from needle.cli.app import compose
from needle.config import build_job, settings
from needle.data.augment import AugmentConfig, expand
from needle.data.encoding import Encoded, TokenizerConfig, encode_records, fit_tokenizer
from needle.data.votes import as_targets, votes
from needle.losses.loss import LossConfig, distillation_loss
from needle.losses.matching import Matching, layer_pairs
from needle.students.base import Student, Trace
from needle.students.batch import FlatBatch
from needle.students.build import build_student
from needle.students.pointer.batch import PointerBatch
from needle.teachers.local import ByteSpans, LocalTeacher, SampledAnswers, TokenSignals, ends, shared_spans
from needle.teachers.replay import ValueSignals
from needle.teachers.signals import OnlineSignals, SignalCache
from needle.text.codecs import build_codec
from needle.text.declarations import normalise_tool, normalise_tools
from needle.text.prompt import Example, Renderer, render_record
from needle.text.records import Call, DataError, Record, write_jsonl
from needle.text.tokenizer import TextTokenizer
from needle.training.loop import TrainConfig, train
from needle.training.runidentity import RunError
from needle.training.tracking import read_metrics
from tests.conftest import TINY
from tests.test_train import job, trained

CPU = torch.device("cpu")
TOOLS = normalise_tools(
    [
        {
            "name": "alarm",
            "parameters": {
                "type": "object",
                "properties": {"time": {"type": "string"}, "weekly": {"type": "boolean"}},
                "required": ["time"],
            },
        },
        {"name": "timer", "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}}},
    ]
)


def recorded(*answers: tuple[int, list[Call]], gold: Call | None = None) -> Record:
    rows = [{"calls": [call.to_json() for call in calls], "count": count} for count, calls in answers]
    return Record("r", "wake me at 7 am", TOOLS, (gold or Call("alarm", {"time": "7 am"}),), teacher={"answers": rows})


def at(signal: dict[str, torch.Tensor], position: int) -> dict[int, float]:
    return {
        int(token): float(p)
        for token, p in zip(signal["ids"][position], signal["log_probs"][position].exp(), strict=True)
        if p > 0
    }


def value_signal(
    record: Record, tokenizer: TextTokenizer, codec: str = "decisions"
) -> tuple[Example, dict[str, torch.Tensor]]:
    made = ValueSignals(tokenizer, codec, 8)
    example = render_record(Renderer(tokenizer), build_codec(codec, tokenizer), record)
    return example, made.make([record], [example], CPU)[0]


def test_the_items_of_a_list_are_decisions_of_their_own(tokenizer: TextTokenizer) -> None:
    item = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": item}}}
    tool = normalise_tool({"name": "order", "parameters": schema})

    def order(*names: str) -> Call:
        return Call("order", {"items": [{"name": name} for name in names]})

    said = [{"calls": [order(*names).to_json()], "count": 1} for names in (("tea", "milk"), ("tea", "sugar"))]
    record = Record("1", "tea and milk", (tool,), (order("tea", "milk"),), teacher={"answers": said})
    example, signal = value_signal(record, tokenizer, "decisions-2")
    first = example.target.index(tokenizer.encode(" tea")[0])
    second = example.target.index(tokenizer.encode(" milk")[0])
    assert at(signal, first) == {example.target[first]: 1.0}
    assert at(signal, second) == {
        example.target[second]: 0.5, tokenizer.encode(" sugar")[0]: 0.5,
    }  # fmt: skip


# Recorded answers


def test_votes_join_answers_that_are_equal_as_multisets() -> None:
    one, two = Call("alarm", {"time": "7", "weekly": True}), Call("timer", {"minutes": 3})
    record = recorded((2, [one, two]), (1, [two, Call("alarm", {"weekly": True, "time": "7"})]), (1, []))
    assert [(len(vote.calls), vote.share) for vote in votes(record)] == [(2, 0.75), (0, 0.25)]


def test_answers_that_the_tools_do_not_allow_leave_their_share_to_the_others() -> None:
    good = Call("timer", {"minutes": 3})
    record = recorded(
        (5, [Call("nobody", {})]),
        (3, [Call("alarm", {"weekly": True})]),
        (2, [Call("timer", {"minutes": "3"})]),
        (1, [good]),
    )
    assert [(vote.calls, vote.share) for vote in votes(record)] == [((good,), 1.0)]
    targets, weights = as_targets([record, recorded((1, [Call("nobody", {})]))], "argmax")
    assert ([target.answers for target in targets], weights) == ([(good,)], [1.0])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"calls": [], "count": float("nan")}], r"teacher.answers\[0\].count': expected a positive number, got nan"),
        ("x", "field 'teacher.answers': expected an array"),
        ([{"calls": [], "count": 0}], r"teacher.answers\[0\].count': expected a positive number, got 0"),
        ([{"calls": [{"arguments": {}}]}], r"teacher.answers\[0\].calls\[0\].name"),
    ],
)
def test_malformed_answers_are_named(answers: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        votes(replace(recorded(), teacher={"answers": answers}))


def test_vote_shares_become_distributions_over_the_students_own_tokens(tokenizer: TextTokenizer) -> None:
    """Three of four answers set an alarm; of these two say 7 am and one 7 pm, whose first token is the same and adds
    up."""
    record = recorded(
        (2, [Call("alarm", {"time": "7 am"})]),
        (1, [Call("alarm", {"time": "7 pm", "weekly": True})]),
        (1, [Call("timer", {"minutes": 7})]),
    )
    example, signal = value_signal(record, tokenizer)
    label, argument = tokenizer.first_tool_label, tokenizer.first_argument_label
    assert at(signal, 0) == pytest.approx({label: 0.75, label + 1: 0.25})
    assert at(signal, 1) == pytest.approx({argument: 1.0})
    am, pm = (tokenizer.encode(" " + text) for text in ("7 am", "7 pm"))
    split = next(i for i, (a, b) in enumerate(zip(am, pm, strict=False)) if a != b)
    for position in range(split):
        assert at(signal, 2 + position) == pytest.approx({am[position]: 1.0})
    assert at(signal, 2 + split) == pytest.approx({am[split]: 2 / 3, pm[split]: 1 / 3})
    assert at(signal, len(example.target) - 1) == pytest.approx({tokenizer.eos: 1.0})
    assert signal["known"].all()


def test_a_value_is_judged_whatever_was_chosen_elsewhere_and_unknown_ways_say_nothing(tokenizer: TextTokenizer) -> None:
    """Both answers set `weekly`, at other times than the gold one: the time is unknown after its first step, `weekly`
    isn't."""
    gold = Call("alarm", {"time": "noon", "weekly": True})
    record = recorded(
        (1, [Call("alarm", {"time": "7", "weekly": True})]),
        (1, [Call("alarm", {"time": "8", "weekly": False})]),
        gold=gold,
    )
    example, signal = value_signal(record, tokenizer)
    place = example.target.index(tokenizer.first_argument_label + 1)
    assert not signal["known"][place]  # the end of a time that the teacher never gave
    true, false = tokenizer.encode(" true")[0], tokenizer.encode(" false")[0]
    assert at(signal, place + 1) == pytest.approx({true: 0.5, false: 0.5} if true != false else {true: 1.0})
    _, json_signal = value_signal(record, tokenizer, "json")
    assert json_signal["known"][0]
    assert not json_signal["known"][-1]


def test_sequence_targets_weigh_by_share_and_argmax_takes_the_likeliest() -> None:
    record = recorded((3, [Call("alarm", {"time": "7 am"})]), (1, []))
    sequences, weights = as_targets([record, replace(record, id="s", teacher=None)], "sequence")
    assert [(len(r.answers), w) for r, w in zip(sequences, weights, strict=True)] == [(1, 0.75), (0, 0.25)]
    assert len({r.id for r in sequences}) == 2
    best, ones = as_targets([record], "argmax")
    assert (best[0].answers, ones) == ((Call("alarm", {"time": "7 am"}),), [1.0])


def test_sequence_monte_carlo_is_the_shares_cross_entropy(tokenizer: TextTokenizer) -> None:
    """The weighted loss of all answers over their weighted tokens, by hand."""
    record = recorded((3, [Call("alarm", {"time": "7 am"})]), (1, [Call("timer", {"minutes": 7})]))
    targets, weights = as_targets([record], "sequence")
    data = encode_records(targets, Renderer(tokenizer), build_codec("decisions", tokenizer), 500, "error", weights)
    torch.manual_seed(0)
    student = build_student(TINY["llama"], tokenizer.size).eval()
    batch = FlatBatch.of(data.examples, tokenizer)
    loss = distillation_loss(
        student(batch).flatten(0, 1), batch.targets.flatten(), None, LossConfig(), weights=batch.weights.flatten()
    ).total.item()
    total = count = 0.0
    for example, weight in zip(data.examples, (0.75, 0.25), strict=True):
        alone = FlatBatch.of([example], tokenizer)
        total += weight * torch.nn.functional.cross_entropy(student(alone)[0], alone.targets[0], reduction="sum").item()
        count += weight * len(example.target)
    assert loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("rung", ["value", "sequence", "argmax"])
def test_a_run_learns_from_recorded_answers(tmp_path: Path, rung: str, records: list[Record]) -> None:
    def said(record: Record) -> Record:
        right = [call.to_json() for call in record.answers]
        return replace(
            record, teacher={"model": "m", "answers": [{"calls": right, "count": 3}, {"calls": [], "count": 1}]}
        )

    write_jsonl(tmp_path / "train.jsonl", [said(record) for record in records[:40]])
    loss = ["loss=distill", "loss.temperature=1"] if rung == "value" else ["loss=finetune"]
    small = [
        "student.width=32",
        "student.heads=2",
        "student.hidden=48",
        "student.encoder_layers=1",
        "student.decoder_layers=1",
        "tokenizer.size=900",
        "train.log_every=1",
    ]
    words = [
        "data=jsonl",
        f"data.train=[{tmp_path}/train.jsonl]",
        "teacher=replay",
        f"teacher.rung={rung}",
        *loss,
        *small,
        "train.steps=3",
        "train.batch_size=16",
    ]
    summary = train(build_job(settings(compose([*words, f"cache={tmp_path}/cache", f"output={tmp_path}/run"]))))
    assert summary["training_records"] == (
        40 if rung != "sequence" else 40 + sum(bool(record.answers) for record in records[:40])
    )
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert ("soft" in rows[0]) == (rung == "value")
    with pytest.raises(
        ValueError,
        match="set loss=finetune, or teacher.rung=value"
        if rung != "value"
        else "expected one of value, sequence, argmax",
    ):
        build_job(
            settings(
                compose([*words, "loss.alpha=0.5" if rung != "value" else "teacher.rung=span", f"cache={tmp_path}/c"])
            )
        )


def test_copies_carry_no_recorded_answers_and_replay_refuses_them(records: list[Record], tmp_path: Path) -> None:
    taught = [
        replace(record, teacher={"answers": [{"calls": [call.to_json() for call in record.answers]}]})
        for record in records[:20]
    ]
    assert [record.teacher is None for record in expand(taught, AugmentConfig(copies=1), 0)] == [False] * 20 + [
        True
    ] * 20
    write_jsonl(tmp_path / "train.jsonl", taught)
    words = [
        "data=jsonl",
        f"data.train=[{tmp_path}/train.jsonl]",
        "teacher=replay",
        "teacher.rung=argmax",
        "loss=finetune",
        "data.augment.copies=1",
        f"cache={tmp_path}",
        "tokenizer.size=900",
    ]
    with pytest.raises(ValueError, match=r"data\.augment\.copies=1 can't be combined with teacher=replay"):
        build_job(settings(compose(words)))


def test_replay_without_recorded_answers_is_an_error(tmp_path: Path) -> None:
    words = [
        "teacher=replay",
        "teacher.rung=argmax",
        "data.synthetic.train=20",
        f"cache={tmp_path}",
        "tokenizer.size=900",
    ]
    with pytest.raises(DataError, match="no training record has recorded answers"):
        build_job(settings(compose(words)))


# Other tokenizers


@pytest.fixture(scope="module")
def other(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Another vocabulary than the usual one."""
    return fit_tokenizer(records[:100], TokenizerConfig(size=700), tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def foreign(records: list[Record], other: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> LocalTeacher:
    """A teacher that writes other tokens than the student."""
    data = encode_records(records, Renderer(other), build_codec("decisions", other), 2000)
    return LocalTeacher([trained(tmp_path_factory.mktemp("foreign") / "t", other, data.examples, data.records)])


def test_a_direct_mismatch_names_both_fingerprints(foreign: LocalTeacher, tokenizer: TextTokenizer) -> None:
    with pytest.raises(
        ValueError,
        match=f"{foreign.tokenizer.fingerprint}, that of the student {tokenizer.fingerprint}.*teacher.rung=span",
    ):
        foreign.check(tokenizer.fingerprint, "decisions", "the student")


def test_tokens_of_two_vocabularies_end_at_the_same_bytes(
    records: list[Record], tokenizer: TextTokenizer, other: TextTokenizer
) -> None:
    sides = [(Renderer(t), build_codec("decisions", t), t) for t in (tokenizer, other)]
    finer = 0
    for record in records[:80]:
        targets = [render_record(renderer, codec, record).target for renderer, codec, _ in sides]
        mine, yours = (ends(target, t) for target, (_, _, t) in zip(targets, sides, strict=True))
        assert mine[-1] == yours[-1]
        assert mine == sorted(mine)
        spans, theirs = shared_spans(mine, yours)
        assert max(spans) == max(theirs) == len(set(mine) & set(yours)) - 1
        assert sorted(set(spans)) == list(range(max(spans) + 1))
        finer += len(targets[0]) > len(set(spans))
        texts = []
        for target, numbers, (_, _, t) in zip(targets, (spans, theirs), sides, strict=True):
            pieces = Counter[int]()
            text: dict[int, str] = {}
            for token, number in zip(target, numbers, strict=True):
                pieces[number] += 1
                text[number] = text.get(number, "") + t.raw(token)
            texts.append([piece.replace("Ġ", " ").strip() for _, piece in sorted(text.items())])
        assert [t.split(">")[-1] for t in texts[0]] == [t.split(">")[-1] for t in texts[1]]
    assert finer > 0


def test_byte_spans_hold_the_teachers_probability_of_each_piece(
    foreign: LocalTeacher, tokenizer: TextTokenizer, records: list[Record], examples: list[Example]
) -> None:
    made = ByteSpans(foreign, tokenizer, "decisions")
    stored = made.make(records[:5], examples[:5], CPU)
    for record, example, signal in zip(records, examples, stored, strict=False):
        theirs = render_record(made.renderer, made.codec, record)
        log_probs = foreign.log_probs([theirs], CPU)[0]
        whole = sum(float(log_probs[i, token]) for i, token in enumerate(theirs.target))
        assert float(signal["log_probs"].sum()) == pytest.approx(whole, rel=1e-4)
        assert len(signal["span"]) == len(example.target)
    with pytest.raises(ValueError, match="needs codec=decisions on both sides"):
        ByteSpans(foreign, tokenizer, "json")


@pytest.mark.parametrize("rung", ["span", "value"])
def test_a_student_learns_from_a_teacher_with_another_tokenizer(
    tmp_path: Path,
    foreign: LocalTeacher,
    tokenizer: TextTokenizer,
    examples: list[Example],
    records: list[Record],
    rung: str,
) -> None:
    maker = (
        ByteSpans(foreign, tokenizer, "decisions")
        if rung == "span"
        else SampledAnswers(foreign, tokenizer, "decisions", 16, samples=3)
    )
    cache = SignalCache.beside(tmp_path / "cache", maker)
    cache.build(records[:12], examples[:12], CPU)
    steps = TrainConfig(steps=40, batch_size=12, micro_batch=5, log_every=1)
    train(
        job(
            tmp_path / "s",
            tokenizer,
            examples[:12],
            records[:12],
            loss=LossConfig(1.0, 1.0, 0.0),
            signals=cache,
            train=steps,
        )
    )
    soft = [row["soft"] for row in read_metrics(tmp_path / "s" / "metrics.jsonl")]
    assert soft[-1] < 0.7 * soft[0]


def test_sampled_answers_are_the_same_for_a_seed_and_follow_the_teachers_distribution(
    tmp_path: Path, tokenizer: TextTokenizer, records: list[Record], examples: list[Example]
) -> None:
    few = [i for i in range(60) if len(examples[i].tools) > 1 and len(examples[i].target) < 12][:3]
    some, shown = [records[i] for i in few], [examples[i] for i in few]
    taught = TrainConfig(steps=40, batch_size=3, micro_batch=3, eval_every=99)
    train(job(tmp_path, tokenizer, shown, some, train=taught))
    teacher = LocalTeacher([tmp_path])
    signals = [
        SampledAnswers(teacher, tokenizer, "decisions", 16, samples=30, seed=seed).make(some, shown, CPU)
        for seed in (0, 0)
    ]
    assert torch.equal(signals[0][0]["log_probs"], signals[1][0]["log_probs"])
    said = teacher.log_probs(shown, CPU)[:, 0].exp()
    labels = [
        tokenizer.eos,
        *range(tokenizer.first_tool_label, tokenizer.first_argument_label),
    ]  # what the grammar lets an answer begin with
    for row in range(3):
        for token, share in at(signals[0][row], 0).items():
            assert share == pytest.approx(float(said[row, token] / said[row, labels].sum()), abs=0.3)


# Signals at the student's own tokens


def test_sampled_token_signals_are_reproducible_and_train(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    teacher = LocalTeacher([trained(tmp_path / "t", tokenizer, examples, records)])
    made = [TokenSignals(teacher, "sampled", 12, 2.0, seed).make(records[:6], examples[:6], CPU) for seed in (0, 0, 1)]
    assert torch.equal(made[0][3]["ids"], made[1][3]["ids"])
    assert not all(torch.equal(a["ids"], b["ids"]) for a, b in zip(made[0], made[2], strict=True))
    cache = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "sampled", 12, 2.0))
    cache.build(records[:16], examples[:16], CPU)
    run = TrainConfig(steps=25, batch_size=16, micro_batch=7, log_every=1, seed=5)
    train(
        job(
            tmp_path / "s",
            tokenizer,
            examples[:16],
            records[:16],
            loss=LossConfig(2.0, 1.0, 0.0),
            signals=cache,
            train=run,
        )
    )
    rows = read_metrics(tmp_path / "s" / "metrics.jsonl")
    assert rows[-1]["soft"] < 0.6 * rows[0]["soft"]
    assert rows[0]["teacher_entropy"] > 0


def test_online_signals_equal_stored_ones_that_hold_the_whole_vocabulary(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    teacher = LocalTeacher([trained(tmp_path / "t", tokenizer, examples, records)])
    cache = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", tokenizer.size, 2.0))
    cache.build(records[:16], examples[:16], CPU)
    for name, signals in (("online", OnlineSignals(teacher)), ("stored", cache)):
        run = TrainConfig(steps=4, batch_size=16, micro_batch=5, log_every=1)
        train(
            job(
                tmp_path / name,
                tokenizer,
                examples[:16],
                records[:16],
                loss=LossConfig(2.0, 0.7, 0.3),
                signals=signals,
                train=run,
            )
        )
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("online", "stored")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_placebo_has_the_teachers_distributions_at_the_wrong_places(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    teacher = LocalTeacher([trained(tmp_path / "t", tokenizer, examples, records)])
    rows = []
    for name in ("real", "placebo"):
        run = TrainConfig(steps=1, batch_size=16, micro_batch=16, log_every=1)
        train(
            job(
                tmp_path / name,
                tokenizer,
                examples[:16],
                records[:16],
                loss=LossConfig(2.0, 0.7, 0.3),
                signals=OnlineSignals(teacher),
                placebo=name == "placebo",
                train=run,
            )
        )
        rows.append(read_metrics(tmp_path / name / "metrics.jsonl")[0])
    assert rows[0]["hard"] == pytest.approx(rows[1]["hard"], rel=1e-6)
    assert rows[0]["soft"] != pytest.approx(rows[1]["soft"], rel=1e-2)


# White boxes


def test_layers_are_spread_evenly_or_as_the_map_says() -> None:
    assert layer_pairs(None, 2, 6) == [(0, 2), (1, 5)]
    assert layer_pairs(None, 4, 2) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert layer_pairs([[1, 0]], 2, 6) == [(1, 0)]
    with pytest.raises(
        ValueError, match=r"loss.layer_map has \[2, 0\]; expected \[student layer 0 to 1, teacher layer 0 to 5\]"
    ):
        layer_pairs([[2, 0]], 2, 6)


def test_a_trace_holds_attention_that_sums_to_one_and_changes_nothing(
    student: Student, tokenizer: TextTokenizer, examples: list[Example]
) -> None:
    batch = student.collate(examples[:4], tokenizer)
    trace = Trace(attend=True)
    torch.testing.assert_close(student(batch, trace), student(batch))
    layers, width = student.traced
    assert [tuple(h.shape) for h in trace.hidden] == [(4, batch.targets.shape[1], width)] * layers
    assert len(trace.attention) == layers
    torch.testing.assert_close(trace.attention[0].sum(-1), torch.ones(4, batch.targets.shape[1]))


def test_matching_is_zero_for_a_projection_onto_the_teacher_and_learns(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    torch.manual_seed(0)
    same = build_student(TINY["pointer"], tokenizer.size).eval()
    matching = Matching(LossConfig(hidden=1.0, attention=1.0), same, same)
    traces = [Trace(attend=True), Trace(attend=True)]
    batch = PointerBatch.of(examples[:4], tokenizer)
    for trace in traces:
        same(batch, trace)
    for projection in matching.projections:
        torch.nn.init.eye_(projection.weight)  # type: ignore[arg-type,union-attr]
    normed = Trace(
        True, [torch.nn.functional.layer_norm(h, h.shape[-1:]) for h in traces[0].hidden], traces[0].attention
    )
    hidden, attention = matching(normed, traces[1], batch.weights)
    assert hidden.item() == pytest.approx(0, abs=1e-4)
    assert attention.item() == pytest.approx(0, abs=1e-4)

    data = Encoded(examples[:16], records[:16])
    folder = tmp_path / "t"
    train(
        job(
            folder,
            tokenizer,
            data.examples,
            data.records,
            student=replace(TINY["pointer"], width=48, decoder_layers=3),
            train=TrainConfig(steps=3, batch_size=8, micro_batch=8),
        )
    )
    teacher = LocalTeacher([folder])
    run = TrainConfig(steps=30, batch_size=16, micro_batch=7, log_every=1)
    train(
        job(
            tmp_path / "s",
            tokenizer,
            data.examples,
            data.records,
            loss=LossConfig(1.0, 0.0, 1.0, hidden=1.0, attention=1.0),
            signals=OnlineSignals(teacher),
            train=run,
        )
    )
    rows = read_metrics(tmp_path / "s" / "metrics.jsonl")
    assert rows[-1]["hidden"] < 0.9 * rows[0]["hidden"]
    assert rows[-1]["attention"] < rows[0]["attention"]
    cache = SignalCache.beside(tmp_path / "c", TokenSignals(teacher, "top_k", 4, 1.0))
    with pytest.raises(RunError, match="set teacher=local teacher.online=true"):
        train(job(tmp_path / "x", tokenizer, data.examples, data.records, loss=LossConfig(hidden=1.0), signals=cache))


def test_attention_of_other_layouts_and_insides_of_an_ensemble_are_errors(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    pointer, llama = (build_student(TINY[name], tokenizer.size) for name in ("pointer", "llama"))
    Matching(LossConfig(hidden=1.0), pointer, llama)
    with pytest.raises(ValueError, match="the student reads a PointerBatch, the teacher a FlatBatch"):
        Matching(LossConfig(attention=1.0), pointer, llama)
    folder = trained(tmp_path / "t", tokenizer, examples, records)
    with pytest.raises(ValueError, match="instead of an ensemble"):
        LocalTeacher([folder, folder]).white_box()
