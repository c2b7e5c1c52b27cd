"""What many tests share: a tokenizer, records and tiny students, all made in milliseconds."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from needle.data.encoding import TokenizerConfig, fit_tokenizer
from needle.data.synthetic import SyntheticConfig, generate
from needle.exports.onnx import export_onnx
from needle.students.base import Student
from needle.students.build import build_student
from needle.students.causal import LlamaConfig, SeedConfig
from needle.students.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from needle.students.pointer.encoder import PointerConfig
from needle.students.san import SanConfig
from needle.students.span.reader import SpanConfig
from needle.students.span.student import LITERAL
from needle.text.codecs import build_codec
from needle.text.folder import EXPORT
from needle.text.pieces import Pieces
from needle.text.prompt import Example, Renderer, render_record
from needle.text.records import Record
from needle.text.tokenizer import TextTokenizer

os.environ.setdefault("WANDB_MODE", "offline")
hypothesis.settings.register_profile("repeatable", derandomize=True)  # the same examples in each run
hypothesis.settings.load_profile("repeatable")
torch.set_num_threads(int(os.environ.get("NEEDLE_TEST_THREADS", "1")))
REAL = Path(os.environ.get("NEEDLE_DATA") or Path(__file__).parents[2] / "shared" / "data")
SPAN = SpanConfig(
    width=32, encoder_layers=3, encoder_heads=4, encoder_hidden=64, positions=64, heads=4, hidden=48, pieces=900,
    joint=1, literal=True,
)  # fmt: skip
TINY = {
    "seed": SeedConfig(width=32, layers=2, heads=2, hidden=64, max_length=1024),
    "llama": LlamaConfig(width=32, layers=2, heads=4, kv_heads=2, hidden=64, max_length=1024),
    "san": SanConfig(width=32, encoder_layers=1, decoder_layers=2, heads=4, kv_heads=2),
    "san_mlp": SanConfig(width=32, encoder_layers=1, decoder_layers=1, heads=4, kv_heads=2, hidden=64),
    "pointer": PointerConfig(
        width=32, encoder_layers=1, decoder_layers=2, heads=2, hidden=64, dropout=0.0, lexical=True
    ),
    "pretrained": PointerConfig(
        width=32,
        encoder_layers=1,
        decoder_layers=2,
        heads=2,
        hidden=64,
        dropout=0.0,
        encoder="tiny",
        pool=True,
        encoder_heads=4,
        encoder_hidden=48,
        positions=64,
    ),
}


@pytest.fixture(scope="session")
def records() -> list[Record]:
    """Synthetic records with every kind of value, negatives and several calls."""
    return list(generate(SyntheticConfig(train=400, validation=0, test=0, unseen=0))[0])


@pytest.fixture(scope="session")
def tokenizer(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return fit_tokenizer(records, TokenizerConfig(size=1200), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def examples(records: list[Record], tokenizer: TextTokenizer) -> list[Example]:
    renderer, codec = Renderer(tokenizer), build_codec("decisions", tokenizer)
    return [render_record(renderer, codec, record) for record in records]


@pytest.fixture(params=list(TINY))
def student(request: pytest.FixtureRequest, tokenizer: TextTokenizer) -> Student:
    """One tiny student of each family, in evaluation mode."""
    torch.manual_seed(0)
    return build_student(TINY[request.param], tokenizer.size).eval()


def hear(student: Student) -> None:
    """What is said literally counts for nothing in a new span student; here it does."""
    for name, parameter in student.named_parameters():
        if name.split(".")[0] in LITERAL:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def exported(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny span student with its export in both precisions."""
    tokenizer = fit_tokenizer(
        records,
        TokenizerConfig(size=2100),
        tmp_path_factory.mktemp("cache"),
        pieces=lambda texts: Pieces.train(texts, 900),
    )
    torch.manual_seed(0)
    student = build_student(SPAN, tokenizer.size).eval()
    hear(student)
    target = tmp_path_factory.mktemp("model")
    save_checkpoint(target, Checkpoint(student, SPAN, tokenizer, "spans", 512))
    export_onnx(load_checkpoint(target), target / EXPORT, ("int8", "fp32"))
    return target


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is missing."""
    if not (REAL / "snips" / "train.jsonl.gz").exists():
        pytest.skip(f"the real data sets aren't in {REAL}; set NEEDLE_DATA to their folder")
    return REAL
