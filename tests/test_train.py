"""The loop: it learns, it resumes bit for bit after kill -9, processes and micro-batches add up, bad settings are
named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from needle.data.encoding import Encoded
from needle.engine.decode import Engine
from needle.judging.evaluate import judge
from needle.judging.metrics import METRICS
from needle.losses.loss import LossConfig
from needle.students.checkpoint import load_checkpoint, save_checkpoint
from needle.students.pointer.batch import PointerBatch
from needle.students.pointer.encoder import PointerConfig
from needle.teachers.local import LocalTeacher, TokenSignals
from needle.teachers.signals import OnlineSignals, SignalCache, example_key
from needle.text.codecs import build_codec
from needle.text.folder import CheckpointError
from needle.text.prompt import Example
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer
from needle.training.loop import Job, TrainConfig, train
from needle.training.optim import OptimConfig, learning_rate
from needle.training.runidentity import RunError
from needle.training.runstate import HardwareConfig
from needle.training.tracking import TrackerConfig, read_metrics
from tests.conftest import TINY

CPU = HardwareConfig(device="cpu")
COMMAND = [sys.executable, "-m", "needle.cli", "train"]
SMALL = [
    "data.synthetic.train=96", "data.synthetic.validation=8", "data.synthetic.test=0", "data.synthetic.unseen=0",
    "tokenizer.size=900", "student.width=32",
    "student.heads=2", "student.hidden=48", "student.encoder_layers=1", "student.decoder_layers=1",
    "train.batch_size=16", "train.log_every=1", "hardware.threads=1",
]  # fmt: skip


def job(output: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record], **changes: Any) -> Job:
    data = Encoded(examples, records)
    made = Job(
        TINY["pointer"], tokenizer, "decisions", LossConfig(), OptimConfig(lr=3e-3, warmup=5), TrainConfig(steps=6,
            batch_size=8, micro_batch=8, eval_every=100, log_every=1), CPU,
        TrackerConfig(), data, [], 1024, output, config={"train": {"steps": 6}},
    )  # fmt: skip
    return replace(made, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", ["pointer", "llama", "seed"])
def test_every_student_learns_by_heart(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record], family: str
) -> None:
    few = [i for i in range(60) if len(examples[i].target) < 14 and examples[i].length < 160][:6]
    data = Encoded([examples[i] for i in few], [records[i] for i in few])
    config = (
        PointerConfig(width=64, encoder_layers=1, decoder_layers=2, heads=4, hidden=96, dropout=0.0)
        if family == "pointer"
        else replace(TINY[family], width=64)
    )
    steps = {"pointer": 120, "llama": 150, "seed": 250}[family]
    learn = TrainConfig(steps=steps, batch_size=6, micro_batch=6, eval_every=steps, log_every=50)
    summary = train(
        job(tmp_path, tokenizer, data.examples, data.records, student=config, train=learn, validation=data.records)
    )
    assert summary["validation_exact_call"] == 1.0
    _, scores = judge(Engine(load_checkpoint(tmp_path)), data.records)
    assert all(score.exact for score in scores)


def test_micro_batches_give_the_weights_of_the_whole_batch(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    for name, micro in (("whole", 8), ("ragged", 3)):
        train(
            job(
                tmp_path / name,
                tokenizer,
                examples,
                records,
                train=TrainConfig(steps=4, batch_size=8, micro_batch=micro, eval_every=100),
            )
        )
    whole, ragged = weights(tmp_path / "whole"), weights(tmp_path / "ragged")
    for name in whole:
        torch.testing.assert_close(whole[name], ragged[name], atol=2e-5, rtol=1e-3)
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("whole", "ragged")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_same_seed_gives_the_same_weights(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    for name in ("a", "b"):
        train(job(tmp_path / name, tokenizer, examples, records))
    assert all(torch.equal(value, weights(tmp_path / "b")[name]) for name, value in weights(tmp_path / "a").items())


def test_runs_of_one_process_may_differ_in_precision(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    learn = TrainConfig(steps=2, batch_size=8, micro_batch=8, eval_every=100)
    for precision in ("no", "bf16", "no"):
        summary = train(
            job(
                tmp_path / f"{precision}-{len(list(tmp_path.iterdir()))}",
                tokenizer,
                examples,
                records,
                train=learn,
                hardware=HardwareConfig("cpu", precision),
            )
        )
        assert summary["steps"] == 2
    first, half, again = (weights(tmp_path / name) for name in ("no-0", "bf16-1", "no-2"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, half[name]) for name, value in first.items())


def run(words: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=300, env=environment, **kwargs)


def test_kill_minus_9_and_resume_end_in_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    words = [
        *SMALL,
        "train.steps=60",
        "train.save_every=7",
        "train.eval_every=20",
        "student.dropout=0.2",
        "student.token_dropout=0.1",
        f"cache={tmp_path}/cache",
    ]
    whole = run([*words, f"output={tmp_path}/whole"])
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*COMMAND, *words, f"output={tmp_path}/killed"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    metrics, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 120
    while not any(row["step"] >= 16 for row in read_metrics(metrics)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "train.json").exists()
    again = run([*words, f"output={tmp_path}/killed"])
    assert again.returncode == 0, again.stderr
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [
        [{k: v for k, v in row.items() if "second" not in k} for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    third = run([*words, f"output={tmp_path}/killed"])
    assert "finished already" in third.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress.json", b""),
        ("progress.json", b"{"),
        ("progress.json", b"[]"),
        ("model.safetensors", b""),
        ("optimizer.safetensors", b"cut off"),
        ("optimizer.safetensors", None),
    ],
)
def test_a_state_that_can_not_be_read_is_named_and_the_one_before_it_used(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record], name: str,
    content: bytes | None,
) -> None:  # fmt: skip
    def begin(steps: int, folder: str, report: Any = None) -> dict[str, Any]:
        settings = TrainConfig(steps=steps, batch_size=8, micro_batch=8, save_every=2, eval_every=100, log_every=1)
        return train(job(tmp_path / folder, tokenizer, examples, records, train=settings), report)

    class KilledError(Exception):
        pass

    def kill(values: Mapping[str, Any]) -> None:
        if values.get("step") == 7:
            raise KilledError

    begin(9, "whole")
    with pytest.raises(KilledError):
        begin(9, "broken", kill)
    states = sorted((tmp_path / "broken" / "state").glob("step-*"))
    assert [state.name for state in states] == ["step-00000004", "step-00000006"]
    file = states[-1] / name
    file.unlink() if content is None else file.write_bytes(content)
    notes: list[str] = []
    begin(9, "broken", lambda values: notes.append(values["note"]) if "note" in values else None)
    assert len(notes) == 1
    assert str(file) in notes[0]
    assert "going on from the state before it" in notes[0]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(first[tensor], second[tensor]) for tensor in first)


def test_where_no_state_can_be_read_the_folder_to_delete_is_named(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    (tmp_path / "state" / "step-00000002").mkdir(parents=True)
    with pytest.raises(RunError, match=r"progress.json can't be read .*; delete .*state to begin anew"):
        train(job(tmp_path, tokenizer, examples, records))


@pytest.mark.parametrize("name", ["run.json", "train.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_file_about_a_run_is_named_with_what_to_do(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record], name: str, content: str
) -> None:
    train(job(tmp_path, tokenizer, examples, records))
    before = weights(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError, match=rf"{name} can't be read .*: delete it.*or choose another output="):
        train(job(tmp_path, tokenizer, examples, records))
    (tmp_path / name).unlink()
    train(job(tmp_path, tokenizer, examples, records))
    assert all(torch.equal(before[tensor], tensors) for tensor, tensors in weights(tmp_path).items())


def test_zero_steps_and_another_runs_folder_are_errors(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    with pytest.raises(RunError, match="train.steps=0"):
        train(job(tmp_path, tokenizer, examples, records, train=TrainConfig(steps=0)))
    train(job(tmp_path, tokenizer, examples, records))
    with pytest.raises(RunError, match=r"train.steps was 6, now 9.*choose another output="):
        train(job(tmp_path, tokenizer, examples, records, config={"train": {"steps": 9}}))
    with pytest.raises(RunError, match="holds a run already"):
        train(job(tmp_path, tokenizer, examples, records, train=TrainConfig(steps=6, resume="never")))


def test_changed_data_under_the_same_settings_is_another_run(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    train(job(tmp_path, tokenizer, examples[:20], records[:20]))
    with pytest.raises(RunError, match="content.training_data was"):
        train(job(tmp_path, tokenizer, examples[1:21], records[1:21]))


@pytest.mark.parametrize("name", ["batch_size", "micro_batch", "eval_every", "save_every", "log_every"])
def test_numbers_that_make_no_run_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"train.{name} is 0; it must be at least 1"):
        TrainConfig(**{name: 0})


def test_unknown_hardware_is_named() -> None:
    with pytest.raises(ValueError, match="hardware.device is 'cuda'; expected auto"):
        HardwareConfig(device="cuda")


def test_a_batch_larger_than_the_data_trains_on_all_of_it(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    summary = train(
        job(tmp_path, tokenizer, examples[:5], records[:5], train=TrainConfig(steps=3, batch_size=500, micro_batch=500))
    )
    assert summary["steps"] == 3
    assert summary["records"] == 15


@pytest.mark.parametrize("change", [{"batch_distractors": 4}, {"rename": 1.0}], ids=lambda change: next(iter(change)))
def test_tools_that_change_in_the_loop_train_but_not_beside_stored_signals(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record], change: dict[str, Any]
) -> None:
    changed = TrainConfig(steps=3, batch_size=8, micro_batch=3, **change)
    for folder, settings in (("plain", TrainConfig(steps=3, batch_size=8, micro_batch=3)), ("a", changed)):
        train(job(tmp_path / folder, tokenizer, examples, records, train=settings))
    plain, other = (weights(tmp_path / folder) for folder in ("plain", "a"))
    assert any(not torch.equal(plain[name], other[name]) for name in plain)
    teacher = LocalTeacher([tmp_path / "a"])
    stored = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", 8, 1.0))
    with pytest.raises(RunError, match=f"train.{next(iter(change))} changes the tools of a record"):
        train(
            job(
                tmp_path / "b",
                tokenizer,
                examples,
                records,
                train=changed,
                loss=LossConfig(1.0, 0.5, 0.5),
                signals=stored,
            )
        )
    train(
        job(
            tmp_path / "c",
            tokenizer,
            examples,
            records,
            train=changed,
            loss=LossConfig(1.0, 0.5, 0.5),
            signals=OnlineSignals(teacher),
        )
    )


def test_early_stop_ends_a_run_that_no_longer_improves(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    frozen = OptimConfig(lr=0.0)
    summary = train(
        job(
            tmp_path,
            tokenizer,
            examples,
            records,
            optim=frozen,
            validation=records[:4],
            train=TrainConfig(steps=50, batch_size=4, micro_batch=4, eval_every=1, patience=3),
        )
    )
    assert summary["stopped_early"]
    assert summary["steps"] == 4


def test_the_weights_of_the_end_are_kept_beside_the_best(
    tmp_path: Path,
    tokenizer: TextTokenizer,
    examples: list[Example],
    records: list[Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = iter([0.5, 0.25, 0.25])
    monkeypatch.setattr(
        "needle.training.loop.summarise",
        lambda scores: {**dict.fromkeys(METRICS, {"value": next(rates)}), "groups": {}},
    )
    every = TrainConfig(steps=3, batch_size=4, micro_batch=4, eval_every=1)
    summary = train(job(tmp_path / "judged", tokenizer, examples, records, validation=records[:4], train=every))
    train(job(tmp_path / "plain", tokenizer, examples, records, train=every))
    assert summary["best_step"] == 1
    judged, last, plain = (weights(tmp_path / folder) for folder in ("judged", "judged/last", "plain"))
    assert all(torch.equal(last[name], plain[name]) for name in plain)
    assert any(not torch.equal(judged[name], last[name]) for name in plain)
    assert not (tmp_path / "plain" / "last").exists()
    assert load_checkpoint(tmp_path / "judged" / "last").student


def test_the_schedule_warms_up_and_decays() -> None:
    config = OptimConfig(lr=1.0, warmup=10, final=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ValueError, match="cosine, linear, constant"):
        learning_rate(OptimConfig(schedule="step"), 0, 10)


# Checkpoints and signals


def trained(
    folder: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record], seed: int = 0
) -> Path:
    train(job(folder, tokenizer, examples, records, train=TrainConfig(steps=3, batch_size=8, micro_batch=8, seed=seed)))
    return folder


def test_a_checkpoint_reads_back_equal_and_holds_no_pickle(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    folder = trained(tmp_path / "run", tokenizer, examples, records)
    loaded = load_checkpoint(folder)
    save_checkpoint(tmp_path / "copy", loaded)
    assert all(torch.equal(value, weights(tmp_path / "copy")[name]) for name, value in weights(folder).items())
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_broken_checkpoints_say_which_part_is_wrong(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    folder = trained(tmp_path / "run", tokenizer, examples, records)
    with pytest.raises(CheckpointError, match="has no config.json"):
        load_checkpoint(tmp_path)
    good = (folder / "config.json").read_text()
    (folder / "config.json").write_text(good.replace('"pointer"', '"rnn"'))
    with pytest.raises(CheckpointError, match="student.family is 'rnn'; expected one of seed, llama, san, pointer"):
        load_checkpoint(folder)
    (folder / "config.json").write_text(good)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load_checkpoint(folder)
    TextTokenizer.train(["other words"] * 9, 700).save(folder)
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_checkpoint(folder)


def test_cached_signals_are_what_the_teacher_says_in_any_order_and_batch(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    teacher = LocalTeacher([trained(tmp_path / "t", tokenizer, examples, records)])
    cache = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", 8, 2.0))
    assert cache.build(records[:20], examples[:20], torch.device("cpu"), batch_size=7) == 20
    assert cache.build(records[:30], examples[:30], torch.device("cpu")) == 10
    again = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", 8, 2.0))
    assert again.missing(examples[:30]) == []
    shuffled = [examples[i] for i in (25, 3, 17)]
    batch = PointerBatch.of(shuffled, tokenizer)
    signal = again.read(shuffled, batch)
    assert signal.ids is not None
    dense = (teacher.log_probs(shuffled, torch.device("cpu")) / 2.0).log_softmax(-1).flatten(0, 1)
    for row, target in enumerate(batch.targets.flatten()):
        if target != -100:
            torch.testing.assert_close(signal.log_probs[row], dense[row, signal.ids[row]], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(signal.log_probs[row], dense[row].topk(8).values, atol=1e-4, rtol=1e-3)
    with pytest.raises(KeyError):
        again.read([examples[50]], batch)


def test_signals_of_another_teacher_temperature_or_record_are_never_mixed_up(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    one = LocalTeacher([trained(tmp_path / "a", tokenizer, examples, records)])
    two = LocalTeacher([trained(tmp_path / "b", tokenizer, examples, records, seed=1)])
    folders = {
        SignalCache.beside(tmp_path / "c", TokenSignals(teacher, "top_k", k, T)).folder
        for teacher, k, T in ((one, 8, 1.0), (two, 8, 1.0), (one, 9, 1.0), (one, 8, 2.0))
    }
    assert len(folders) == 4
    assert example_key(examples[0]) != example_key(
        replace(examples[0], tools=examples[0].tools[::-1], target=examples[0].target)
    )
    with pytest.raises(ValueError, match="set tokenizer.path to the teacher's folder"):
        one.check("0123", "decisions", "the student")
    with pytest.raises(ValueError, match="set codec=decisions"):
        one.check(tokenizer.fingerprint, "json", "the student")


def test_an_ensemble_averages_probabilities(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    folders = [trained(tmp_path / name, tokenizer, examples, records, seed) for name, seed in (("a", 0), ("b", 1))]
    device = torch.device("cpu")
    both = LocalTeacher(folders).log_probs(examples[:3], device).exp()
    apart = sum(LocalTeacher([folder]).log_probs(examples[:3], device).exp() for folder in folders) / 2
    torch.testing.assert_close(both, apart, atol=1e-5, rtol=1e-3)


def test_distillation_pulls_a_student_toward_its_teacher(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    teacher = LocalTeacher([trained(tmp_path / "t", tokenizer, examples, records)])
    cache = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", 32, 2.0))
    cache.build(records[:16], examples[:16], torch.device("cpu"))
    run_config = TrainConfig(steps=25, batch_size=16, micro_batch=16, log_every=1, seed=5)
    train(
        job(
            tmp_path / "s",
            tokenizer,
            examples[:16],
            records[:16],
            loss=LossConfig(2.0, 1.0, 0.0),
            signals=cache,
            train=run_config,
        )
    )
    soft = [row["soft"] for row in read_metrics(tmp_path / "s" / "metrics.jsonl")]
    assert soft[-1] < 0.5 * soft[0]


def test_the_codec_of_a_checkpoint_decides_how_it_decodes(
    tmp_path: Path, tokenizer: TextTokenizer, records: list[Record]
) -> None:
    from needle.text.prompt import Renderer, render_record

    codec = build_codec("json", tokenizer)
    few = [render_record(Renderer(tokenizer), codec, record) for record in records[:3]]
    train(
        job(
            tmp_path,
            tokenizer,
            few,
            records[:3],
            codec="json",
            train=TrainConfig(steps=150, batch_size=3, micro_batch=3, log_every=50),
        )
    )
    _, scores = judge(Engine(load_checkpoint(tmp_path)), records[:3])
    assert all(score.exact for score in scores)
