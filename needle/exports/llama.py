"""The llama student for other people's runtimes: a Hugging Face folder, and a GGUF file for llama.cpp.

Either reads the row of ids that `needle.text.prompt.prompt_ids` makes, and goes on with ids of the answer; what may
come next under the declared tools, the grammar knows and they don't.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from needle.exports.errors import ExportError
from needle.students.base import RMSNorm
from needle.students.causal import LlamaConfig, LlamaStudent
from needle.students.checkpoint import Checkpoint
from needle.text.files import replacing, write_json
from needle.text.folder import WEIGHTS
from needle.text.tokenizer import FILE_NAME

GGUF_FILE = "model.gguf"
KINDS = {"F32": torch.float32, "F16": torch.float16}
NORMAL, CONTROL = 1, 3  # kinds of tokens, as llama.cpp numbers them
PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def export_huggingface(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Writes what `AutoModelForCausalLM` and `AutoTokenizer` load; returns the config.

    Raises:
        ExportError: another family than llama.
    """
    student, config = _llama(checkpoint, "huggingface")
    folder.mkdir(parents=True, exist_ok=True)
    names = checkpoint.tokenizer
    facts = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "float32",
        "vocab_size": names.size, "hidden_size": config.width, "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "max_position_embeddings": config.max_length,
        "rms_norm_eps": _epsilon(student), "rope_theta": config.rope_theta, "attention_bias": False,
        "mlp_bias": False, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": names.eos,
        "pad_token_id": names.pad,
    }  # fmt: skip
    tensors = {f"model.{name}": value.detach().float().contiguous() for name, value in student.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", facts)
    ends = {"eos_token": "<eos>", "pad_token": "<pad>"}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.max_length, **ends}
    write_json(folder / "tokenizer_config.json", {**described, "clean_up_tokenization_spaces": False})
    write_json(folder / "generation_config.json", {"eos_token_id": names.eos, "pad_token_id": names.pad})
    with replacing(folder / FILE_NAME) as temporary:
        temporary.write_text(names.json, encoding="utf-8")
    return facts


def export_gguf(checkpoint: Checkpoint, folder: Path, precision: str = "F16") -> Path:
    """Writes model.gguf with matrices in `precision` F16 or F32 and vectors in F32; returns the file.

    Raises:
        ExportError: another family than llama, or a precision that isn't known.
    """
    try:
        from gguf import GGUFWriter, LlamaFileType
    except ModuleNotFoundError as error:
        raise ExportError("format=gguf needs the package gguf: pip install gguf") from error
    student, config = _llama(checkpoint, "gguf")
    if precision not in KINDS:
        raise ExportError(f"precision is '{precision}'; gguf has {', '.join(KINDS)}")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / GGUF_FILE) as temporary:
        writer = GGUFWriter(str(temporary), "llama")
        writer.add_name(f"needle {config.width}x{config.layers}")
        writer.add_context_length(config.max_length)
        writer.add_embedding_length(config.width)
        writer.add_block_count(config.layers)
        writer.add_feed_forward_length(config.hidden)
        writer.add_head_count(config.heads)
        writer.add_head_count_kv(config.kv_heads)
        writer.add_layer_norm_rms_eps(_epsilon(student))
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_rope_dimension_count(config.width // config.heads)
        writer.add_vocab_size(checkpoint.tokenizer.size)
        writer.add_file_type(LlamaFileType.ALL_F32 if precision == "F32" else LlamaFileType.MOSTLY_F16)
        _describe_tokens(writer, checkpoint)
        for name, tensor in student.state_dict().items():
            writer.add_tensor(*_named(name, tensor.detach().float(), config, KINDS[precision]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / GGUF_FILE


def _describe_tokens(writer: Any, checkpoint: Checkpoint) -> None:
    """Byte-level BPE. llama.cpp has no way to be told our words' edges: texts are cut by the caller, as ids."""
    names = checkpoint.tokenizer
    model = json.loads(names.json)["model"]
    special = {token["id"] for token in json.loads(names.json)["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.raw(token) for token in range(names.size)])
    writer.add_token_types([CONTROL if token in special else NORMAL for token in range(names.size)])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(names.eos)
    writer.add_pad_token_id(names.pad)
    writer.add_add_bos_token(False)


def _named(name: str, tensor: Tensor, config: LlamaConfig, kind: torch.dtype) -> tuple[str, NDArray[np.generic]]:
    """A tensor under llama.cpp's name and in its layout."""
    if name == "embed_tokens.weight":
        return "token_embd.weight", tensor.to(kind).numpy()
    if name == "norm.weight":
        return "output_norm.weight", tensor.numpy()
    _, layer, rest = name.split(".", 2)
    part = PARTS[rest.removesuffix(".weight")]
    if part in ("attn_q", "attn_k"):  # it rotates neighbours, we the halves of a head
        heads = config.heads if part == "attn_q" else config.kv_heads
        tensor = tensor.view(heads, 2, -1, config.width).transpose(1, 2).reshape(tensor.shape)
    return f"blk.{layer}.{part}.weight", (tensor if tensor.dim() == 1 else tensor.to(kind)).contiguous().numpy()


def _llama(checkpoint: Checkpoint, format: str) -> tuple[LlamaStudent, LlamaConfig]:
    student, config = checkpoint.student, checkpoint.config
    if not isinstance(student, LlamaStudent) or not isinstance(config, LlamaConfig):
        raise ExportError(f"format={format} takes students of the family llama; this one is {config.family}")
    return student, config


def _epsilon(student: LlamaStudent) -> float:
    assert isinstance(student.norm, RMSNorm)
    return student.norm.eps
