"""`build_student(config, vocabulary)`: one function for every family."""

from __future__ import annotations

from needle.students.base import Student
from needle.students.causal import LlamaConfig, LlamaStudent, SeedConfig, SeedStudent
from needle.students.pointer.encoder import PointerConfig
from needle.students.pointer.student import PointerStudent
from needle.students.san import SanConfig, SanStudent
from needle.students.span.reader import SpanConfig
from needle.students.span.student import SpanStudent

StudentConfig = SeedConfig | LlamaConfig | SanConfig | PointerConfig | SpanConfig
FAMILIES: dict[str, type[StudentConfig]] = {
    "seed": SeedConfig,
    "llama": LlamaConfig,
    "san": SanConfig,
    "pointer": PointerConfig,
    "span": SpanConfig,
}


def build_student(config: StudentConfig, vocabulary: int) -> Student:
    """Random weights from torch's current seed; `vocabulary` is the tokenizer's size, V."""
    if config.width % config.heads:
        raise ValueError(f"student.width={config.width} can't be split into student.heads={config.heads} equal heads")
    if (config.width // config.heads) % 2:
        raise ValueError(
            f"student.width={config.width} over student.heads={config.heads} gives heads of odd width; rotary positions"
            " need an even one"
        )
    if isinstance(config, SeedConfig):
        return SeedStudent(config, vocabulary)
    if isinstance(config, LlamaConfig | SanConfig) and config.heads % config.kv_heads:
        raise ValueError(f"student.heads={config.heads} isn't a multiple of student.kv_heads={config.kv_heads}")
    if isinstance(config, LlamaConfig):
        return LlamaStudent(config, vocabulary)
    if isinstance(config, SanConfig):
        return SanStudent(config, vocabulary)
    if isinstance(config, PointerConfig):
        return PointerStudent(config, vocabulary)
    if isinstance(config, SpanConfig):
        return SpanStudent(config, vocabulary)
    raise ValueError(
        f"student.family '{getattr(config, 'family', config)}' is unknown; expected one of {', '.join(FAMILIES)}"
    )
