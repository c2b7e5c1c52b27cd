"""The cache of signals: built in shards, resumed, checked, and never holding another record's signal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from needle.losses.loss import LossConfig
from needle.students.pointer.batch import PointerBatch
from needle.teachers.local import LocalTeacher, TokenSignals
from needle.teachers.signals import SignalCache
from needle.text.codecs import build_codec
from needle.text.declarations import normalise_tools
from needle.text.prompt import Example, Renderer, render_record
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer
from needle.training.loop import TrainConfig, train
from tests.test_train import job, trained

CPU = torch.device("cpu")


def built(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> tuple[SignalCache, LocalTeacher]:
    teacher = LocalTeacher([trained(tmp_path / "t", tokenizer, examples, records)])
    cache = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", 4, 1.0))
    return cache, teacher


def test_a_killed_build_goes_on_and_a_manifest_says_how_to_rebuild(
    tmp_path: Path,
    tokenizer: TextTokenizer,
    examples: list[Example],
    records: list[Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("needle.teachers.signals.SHARD", 8)
    cache, teacher = built(tmp_path, tokenizer, examples, records)

    def stop(done: int, every: int) -> None:
        if done > 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build(records[:40], examples[:40], CPU, stop)
    again = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", 4, 1.0))
    assert again.build(records[:40], examples[:40], CPU) == 40 - 16
    manifest = json.loads((again.folder / "manifest.json").read_text())
    assert manifest["rung"].startswith("white box")
    assert (manifest["k"], manifest["bytes_per_token"]) == (4, 36)
    assert (
        manifest["rebuild"]
        == f"teacher=local teacher.checkpoint=[{tmp_path}/t] teacher.rung=top_k teacher.k=4 loss.temperature=1"
    )


@pytest.mark.parametrize("damage", ["flipped", "cut", "lost", "index"])
def test_a_corrupt_shard_is_found_and_made_again(
    tmp_path: Path,
    tokenizer: TextTokenizer,
    examples: list[Example],
    records: list[Record],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    monkeypatch.setattr("needle.teachers.signals.SHARD", 10)
    cache, teacher = built(tmp_path, tokenizer, examples, records)
    cache.build(records[:20], examples[:20], CPU)
    batch = PointerBatch.of(examples[:20], tokenizer)
    before = cache.read(examples[:20], batch)
    shard = sorted(cache.folder.glob("shard-*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    if damage == "flipped":
        data[-3] ^= 0xFF
        shard.write_bytes(data)
    elif damage == "cut":
        shard.write_bytes(data[:-10])
    elif damage == "lost":
        shard.unlink()
    else:
        shard.with_suffix(".json").write_text("{")
    again = SignalCache.beside(tmp_path / "cache", TokenSignals(teacher, "top_k", 4, 1.0))
    messages = again.verify()
    assert len(messages) == 1
    assert "doesn't match its checksum" in messages[0]
    assert again.build(records[:20], examples[:20], CPU) == 10
    after = again.read(examples[:20], batch)
    assert torch.equal(before.log_probs, after.log_probs)
    assert again.verify() == []


def test_a_stored_cache_teaches_without_its_teacher_and_says_what_it_lacks(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    cache, _ = built(tmp_path, tokenizer, examples, records)
    cache.build(records[:16], examples[:16], CPU)
    stored = SignalCache.open(cache.folder, tokenizer.fingerprint, "decisions", 1.0)
    run = TrainConfig(steps=2, batch_size=16, micro_batch=16)
    assert (
        train(
            job(
                tmp_path / "s",
                tokenizer,
                examples[:16],
                records[:16],
                loss=LossConfig(1.0, 0.5, 0.5),
                signals=stored,
                train=run,
            )
        )["steps"]
        == 2
    )
    with pytest.raises(
        ValueError, match=r"no signals for 4 of 20 records; it was built with teacher=local teacher.checkpoint="
    ):
        stored.build(records[:20], examples[:20], CPU)
    with pytest.raises(ValueError, match="holds no manifest.json"):
        SignalCache.open(tmp_path, tokenizer.fingerprint, "decisions", 1.0)


def test_changed_records_never_get_a_stored_signal_that_isnt_theirs(
    tmp_path: Path, tokenizer: TextTokenizer, examples: list[Example], records: list[Record]
) -> None:
    """Shuffled tools, renamed arguments and other distractors: each is a record of its own, unknown until the teacher
    saw it."""
    cache, _ = built(tmp_path, tokenizer, examples, records)
    index = next(i for i, e in enumerate(examples) if len(e.tools) > 2 and len(e.target) > 2 and e.tools[0].markers)
    record = records[index]
    cache.build([record], [examples[index]], CPU)
    codec, renderer = build_codec("decisions", tokenizer), Renderer(tokenizer)

    def renamed(record: Record) -> Record:
        text = json.dumps([tool.to_json() for tool in record.tools])
        name = next(iter(record.tools[0].parameters["properties"]))
        return replace(record, tools=normalise_tools(json.loads(text.replace(f'"{name}"', f'"{name}_2"'))), answers=())

    changes = [
        replace(record, tools=record.tools[::-1]),
        replace(record, tools=(*record.tools, records[index - 1].tools[0])),
        renamed(record),
    ]
    for changed in changes:
        example = render_record(renderer, codec, changed)
        assert cache.missing([example]) == [0]
        with pytest.raises(KeyError):
            cache.read([example], PointerBatch.of([example], tokenizer))
    assert cache.missing([examples[index]]) == []
