"""Exports: the graphs answer as torch does, are refused when they don't fit, and need no torch."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from needle.cli.export import ExportSettings, run
from needle.engine.backend import Backend
from needle.engine.decode import Answer, Engine
from needle.engine.eager import EagerBackend
from needle.engine.open import open_engine, open_export
from needle.engine.retrieve import EncoderRetriever
from needle.exports.errors import ExportError
from needle.exports.llama import export_gguf, export_huggingface
from needle.exports.onnx import export_onnx
from needle.exports.parity import parity
from needle.students.checkpoint import load_checkpoint, save_checkpoint
from needle.text.folder import EXPORT, CheckpointError
from needle.text.prompt import Example, prompt_ids, render_record
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer
from tests.test_engine import random_checkpoint

SOME = 40  # tokens of an answer: random weights would go on for ever


def scores(backend: Backend, example: Example) -> list[np.ndarray]:
    """Behind every token of the right answer."""
    answers = backend.start([replace(example, target=(), open_tool=())])
    names = backend.model.tokenizer
    found, tool = [], -1
    for token in (names.answer, *example.target[:-1]):
        tool = token - names.first_tool_label if names.is_tool_label(token) else tool
        found.append(answers.step([[token]], [[tool]])[0, 0])
    return found


def answered(engine: Engine, record: Record) -> Answer:
    return engine.answer(record.query, record.tools, max_tokens=SOME)


def test_the_graphs_score_as_torch_does(exported: Path, records: list[Record]) -> None:
    checkpoint = load_checkpoint(exported)
    ours, whole = EagerBackend(checkpoint), open_export(checkpoint.model, exported / EXPORT, "fp32")
    small = open_export(checkpoint.model, exported / EXPORT, "int8")
    apart, alike = [], []
    for record in sorted(records[:80], key=lambda one: -len(one.answers))[:25]:
        example = render_record(checkpoint.renderer, checkpoint.codec, record)
        for a, b, c in zip(scores(ours, example), scores(whole, example), scores(small, example), strict=True):
            known = np.isfinite(a)
            assert (np.isfinite(b) == known).all()
            assert (np.isfinite(c) == known).all()
            apart.append(np.abs(a[known] - b[known]).max())
            alike.append(np.corrcoef(a[known], c[known])[0, 1])
    assert max(apart) < 1e-4
    assert len(apart) > 100
    assert np.mean(alike) > 0.99


def test_an_export_is_found_beside_its_weights_and_answers_alike(exported: Path, records: list[Record]) -> None:
    found = open_engine(exported, precision="float32")
    assert found.backend.name == "onnxruntime"
    assert open_engine(exported, backend="torch").backend.name == "torch"
    assert open_engine(exported, precision="bfloat16").backend.name == "torch"
    assert found.backend.parameters == open_engine(exported, backend="torch").backend.parameters
    checkpoint = load_checkpoint(exported)
    said = parity(checkpoint, exported / EXPORT, "fp32", records[:12])
    assert said["same"] == 1
    assert said["confidence_difference"] < 1e-4


def test_tools_are_ranked_as_torch_ranks_them(exported: Path, records: list[Record]) -> None:
    tools = list({tool.name: tool for record in records[:60] for tool in record.tools}.values())
    by = [open_engine(exported, precision="float32", backend=name) for name in ("torch", "onnx")]
    rendered = [by[0].renderer.tool(tool) for tool in tools]
    for record in records[:10]:
        ours, theirs = (EncoderRetriever(engine.backend).scores(record.query, rendered) for engine in by)
        assert np.abs(ours - theirs).max() < 1e-4


def test_answers_depend_on_no_thread_and_on_nothing_asked_before(exported: Path, records: list[Record]) -> None:
    asked = records[:40]
    engine = open_engine(exported, backend="onnx", precision="int8")
    serial = [answered(engine, record) for record in asked]
    order = random.Random(0).sample(range(len(asked)), len(asked))
    assert [answered(engine, asked[place]) for place in order] == [serial[place] for place in order]
    cold = open_engine(exported, backend="onnx", precision="int8")
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda record: answered(cold, record), asked)) == serial


def test_what_is_kept_of_tools_is_bounded(
    exported: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = open_engine(exported, backend="onnx")
    monkeypatch.setattr("needle.engine.onnx.CACHE_BYTES", 100_000)
    engine = open_engine(exported, backend="onnx")
    for record in records[:30]:
        assert answered(engine, record) == answered(wide, record)
        kept = (engine.backend._tools, engine.backend._offers)  # type: ignore[attr-defined]
        assert sum(own.currsize for own in kept) <= 100_000


@pytest.mark.parametrize("wrong", ["cut", "format", "tokenizer", "gone"])
def test_an_export_that_does_not_fit_is_refused_with_the_reason(exported: Path, tmp_path: Path, wrong: str) -> None:
    model = load_checkpoint(exported).model
    copied = tmp_path / "model"
    copied.mkdir()
    for file in exported.rglob("*"):
        if file.is_file():
            target = copied / file.relative_to(exported)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    graph, manifest = copied / EXPORT / "int8" / "step.onnx", copied / EXPORT / "manifest.json"
    facts = json.loads(manifest.read_text())
    if wrong == "cut":
        graph.write_bytes(graph.read_bytes()[:1000])
        reason = "can't be read"
    elif wrong == "gone":
        graph.unlink()
        reason = "can't be read"
    else:
        manifest.write_text(json.dumps({**facts, wrong: 99}))
        reason = "format 99" if wrong == "format" else "for the tokenizer 99"
    with pytest.raises(CheckpointError, match=reason):
        open_export(model, copied / EXPORT)


def test_an_export_of_other_weights_is_left_alone(exported: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(exported)
    target = tmp_path / "model"
    save_checkpoint(target, checkpoint)
    export_onnx(load_checkpoint(target), target / EXPORT)
    assert open_engine(target).backend.name == "onnxruntime"
    with torch.no_grad():
        next(checkpoint.student.parameters()).add_(1)
    save_checkpoint(target, checkpoint)
    assert open_engine(target).backend.name == "torch"
    with pytest.raises(CheckpointError, match="other weights; make an export with needle export"):
        open_engine(target, backend="onnx")
    with pytest.raises(CheckpointError, match="needle export"):
        open_engine(target, precision="int8")
    with pytest.raises(ValueError, match="backend is 'tensorrt'"):
        open_engine(target, backend="tensorrt")


@pytest.mark.parametrize("family", ["llama", "seed", "san", "san_mlp"])
def test_students_that_read_one_row_score_as_torch_does(
    tokenizer: TextTokenizer, records: list[Record], tmp_path: Path, family: str
) -> None:
    save_checkpoint(tmp_path, random_checkpoint(tokenizer, family))
    checkpoint = load_checkpoint(tmp_path)
    export_onnx(checkpoint, tmp_path / EXPORT, ("int8", "fp32"))
    ours = EagerBackend(checkpoint)
    small, whole = (open_export(checkpoint.model, tmp_path / EXPORT, kind) for kind in ("int8", "fp32"))
    apart, alike = [], []
    for record in sorted(records[:80], key=lambda one: -len(one.answers))[:8]:
        example = render_record(checkpoint.renderer, checkpoint.codec, record)
        for a, b, c in zip(scores(ours, example), scores(whole, example), scores(small, example), strict=True):
            known = np.isfinite(a)
            assert (np.isfinite(b) == known).all()
            apart.append(np.abs(a[known] - b[known]).max())
            alike.append(np.corrcoef(a[known], c[known])[0, 1])
    assert max(apart) < 1e-3
    assert np.mean(alike) > 0.97
    assert open_engine(tmp_path).answer("wake me", records[0].tools, 5).finish in ("stop", "length")


def test_a_family_without_graphs_says_so(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="this student is of pointer"):
        export_onnx(random_checkpoint(tokenizer), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_llama_student_is_a_hugging_face_model(
    tokenizer: TextTokenizer, records: list[Record], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = random_checkpoint(tokenizer, "llama")
    export_huggingface(checkpoint, tmp_path)
    theirs, names = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    for record in records[:5]:
        ids = prompt_ids(checkpoint.renderer.prompt("", record.query, record.tools), tokenizer)
        row = torch.tensor([ids])
        with torch.no_grad():
            hidden, _ = checkpoint.student.trunk(row, torch.arange(len(ids))[None], None, None)  # type: ignore[operator]
            ours = checkpoint.student.head(hidden)  # type: ignore[operator]
            torch.testing.assert_close(ours, theirs(row).logits, atol=1e-4, rtol=1e-4)
        assert tuple(names(" " + record.query)["input_ids"]) == tokenizer.encode(" " + record.query)


def test_a_gguf_file_holds_the_same_weights(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    from gguf import GGUFReader

    checkpoint = random_checkpoint(tokenizer, "llama")
    whole, half = (export_gguf(checkpoint, tmp_path / kind, kind) for kind in ("F32", "F16"))
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    read = GGUFReader(whole)
    found = {tensor.name: np.array(tensor.data) for tensor in read.tensors}
    weights = {name: value.numpy() for name, value in checkpoint.student.state_dict().items()}
    assert len(found) == len(weights)
    np.testing.assert_array_equal(found["token_embd.weight"], weights["embed_tokens.weight"])
    np.testing.assert_array_equal(found["blk.0.ffn_down.weight"], weights["layers.0.mlp.down_proj.weight"])
    config = checkpoint.config
    turned = weights["layers.0.self_attn.q_proj.weight"]
    head = config.width // config.heads  # type: ignore[union-attr]
    # The first pair of a head that llama.cpp rotates: what stands at 0 and in the middle here.
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"][:2], turned[[0, head // 2]])
    tokens = [
        bytes(read.fields["tokenizer.ggml.tokens"].parts[at]).decode()
        for at in read.fields["tokenizer.ggml.tokens"].data
    ]
    assert tokens == [tokenizer.raw(token) for token in range(tokenizer.size)]


def test_formats_that_do_not_fit_a_family_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="family llama; this one is span"):
        export_huggingface(load_checkpoint(exported), tmp_path)
    with pytest.raises(ExportError, match="family llama"):
        export_gguf(load_checkpoint(exported), tmp_path)


def test_the_command_exports_compares_and_says_so(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("needle.exports.make.LOOKED_AT", 2)
    output = tmp_path / "onnx"
    run(ExportSettings(str(exported), output=str(output), precisions=["fp32"], check=3))
    said, manifest = "".join(capsys.readouterr()), json.loads((output / "manifest.json").read_text())
    assert "100.0% of 3 answers as in torch" in said.replace("\n", " ")
    assert manifest["parity"]["fp32"]["records"] == 3
    assert manifest["weights"] == json.loads((exported / EXPORT / "manifest.json").read_text())["weights"]
    with pytest.raises(ValueError, match="expected one of onnx, huggingface, gguf"):
        run(ExportSettings(str(exported), format="tflite"))
