"""The mean of the weights of checkpoints that were trained on from one another: a checkpoint, too. See README.md.

python -m experiments.005_needle_26m.average outputs/needle_26m_final outputs/needle_26m_pointing --output
outputs/needle_26m_mean
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from needle.students.checkpoint import load_checkpoint, save_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", help="the last one gives the rest: config, tokenizer, what the data were"
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    *others, mean = [load_checkpoint(folder) for folder in arguments.checkpoints]
    for folder, other in zip(arguments.checkpoints, others, strict=False):
        if (other.config, other.tokenizer.fingerprint) != (mean.config, mean.tokenizer.fingerprint):
            parser.error(
                f"{folder} and {arguments.checkpoints[-1]} differ in student or tokenizer: only weights that were"
                " trained on from one another can be averaged"
            )
    states = [checkpoint.student.float().state_dict() for checkpoint in (*others, mean)]
    mean.student.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    save_checkpoint(arguments.output, mean)


if __name__ == "__main__":
    main()
