"""The mean of the weights of checkpoints that were trained on from one another: a checkpoint, too.

python -m needle.release.average outputs/needle_26m/part_5 outputs/needle_26m/part_7 --output outputs/needle_26m/mean
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from needle.students.checkpoint import load_checkpoint, save_checkpoint
from needle.text.folder import CheckpointError


def average(folders: Sequence[Path], output: Path) -> None:
    """The last folder gives the rest: config, tokenizer, what the data were. Raises `CheckpointError` where they
    differ in student or tokenizer."""
    *others, mean = [load_checkpoint(folder) for folder in folders]
    for folder, other in zip(folders, others, strict=False):
        if (other.config, other.tokenizer.fingerprint) != (mean.config, mean.tokenizer.fingerprint):
            raise CheckpointError(
                f"{folder} and {folders[-1]} differ in student or tokenizer: only weights that were trained on from one"
                " another can be averaged"
            )
    states = [checkpoint.student.float().state_dict() for checkpoint in (*others, mean)]
    mean.student.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    save_checkpoint(output, mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    average(arguments.checkpoints, arguments.output)


if __name__ == "__main__":
    main()
