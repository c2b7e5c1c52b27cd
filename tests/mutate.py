"""Breaks the loss on purpose, one trap at a time, and sees whether the trap's own test notices: `python -m
tests.mutate`.

Each mutation is made in a copy of the project, so that nothing here changes. Exit code 1 when a broken loss passes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOSS, DIVERGENCE, LOOP, CACHE, BATCH = (
    "needle/losses/loss.py",
    "needle/losses/divergences.py",
    "needle/training/loop.py",
    "needle/teachers/signals.py",
    "needle/students/batch.py",
)
MUTATIONS: list[tuple[str, str, str, str, str]] = [  # trap's test, what is broken, file, right, wrong
    ("trap_01", "each micro-batch divides by its own count", LOSS, "(weights.sum() if normalizer is None else ",
        "(weights.sum() if True else "),
    ("trap_02", "the step's sum isn't divided by anything", LOOP,
        "normalizer = sum(self.sizes[index] for index in indices)", "normalizer = 1.0"),
    ("trap_03", "T instead of T squared", LOSS, 'T if config.divergence == "total_variation" else T * T', "T"),
    ("trap_04", "the mean is also over the vocabulary", LOSS, "weights = weights / torch.where(count > 0, count, 1.0)",
        "weights = weights / torch.where(count > 0, count * logits.shape[1], 1.0)"),
    ("trap_05", "the mask's share divides once more", LOSS, "weights = weights / torch.where(count > 0, count, 1.0)",
        "weights = weights / torch.where(count > 0, count, 1.0) / keep.float().mean()"),
    ("trap_06", "targets aren't shifted", BATCH, "(tokenizer.answer, *example.target[:-1])", "example.target"),
    ("trap_07", "padding is a target like any other", BATCH,
        "targets=pad([example.target for example in examples], width, IGNORE)",
        "targets=pad([example.target for example in examples], width, tokenizer.pad)"),
    ("trap_08", "stored log-probabilities go through softmax as if they were probabilities", LOSS,
        "stored = signal.log_probs[rows].float()", "stored = signal.log_probs[rows].float().exp().log_softmax(-1)"),
    ("trap_09", "the student is renormalised over the top k", LOSS,
        "if signal.entropy is not None:\n            tail =", "if signal.tail is not None:\n            tail ="),
    ("trap_10", "the loss runs in the logits' own precision", LOSS,
        "logits[rows].float(), targets[rows], rows", "logits[rows], targets[rows], rows"),
    ("trap_11", "label smoothing spreads over impossible tokens too", LOSS, "possible = log_q > -torch.inf",
        "possible = torch.ones_like(log_q, dtype=torch.bool)"),
    ("trap_12", "a short last chunk is forgotten", LOSS,
        "torch.split((targets != IGNORE).nonzero()[:, 0], config.chunk)",
        "[c for c in torch.split((targets != IGNORE).nonzero()[:, 0], config.chunk)"
        " if len(c) == config.chunk or len(c) == len(targets)]"),
    ("trap_13", "the bare student runs instead of the wrapped one", LOOP,
        "values: Tensor = self.model(batch, signal, normalizer, insides)",
        "values: Tensor = self.accelerator.unwrap_model(self.model)(batch, signal, normalizer, insides)"),
    ("trap_14", "cross-entropy with the teacher passes for KL", DIVERGENCE,
        "return kl(teacher, student)[:, None], -teacher.exp()",
        "return -(teacher.exp() * student)[..., :].sum(-1, keepdim=True), -teacher.exp()"),
    ("trap_15", "alpha and beta are one weight", LOSS, "total = config.alpha * soft + config.beta * hard",
        "total = config.alpha * soft + (1 - config.alpha) * hard * 0.99"),
    ("trap_16", "a signal is found by the request alone", CACHE,
        "            [tool.key for tool in example.tools],\n", ""),
    ("trap_17", "an empty batch divides by zero", LOSS, "weights = weights / torch.where(count > 0, count, 1.0)",
        "weights = weights / count"),
]  # fmt: skip


def main() -> None:
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("needle", "tests", "conf"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "setup.cfg", copy)
        for trap, what, file, right, wrong in MUTATIONS:
            source = (copy / file).read_text(encoding="utf-8")
            if source.count(right) != 1:
                sys.exit(f"{trap}: {file} no longer holds {right!r} exactly once; bring the mutation up to date")
            (copy / file).write_text(source.replace(right, wrong), encoding="utf-8")
            ran = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-n", "0", "-x", "-k", trap, "tests/test_traps.py"],
                cwd=copy,
                capture_output=True,
                text=True,
                timeout=300,
            )
            (copy / file).write_text(source, encoding="utf-8")
            noticed = ran.returncode == 1  # tests ran and failed; 2 and above are errors of another kind
            survived += not noticed
            print(f"{'noticed ' if noticed else 'SURVIVED'}  {trap}: {what}", flush=True)
            if ran.returncode > 1:
                print(ran.stdout[-2000:], ran.stderr[-2000:])
    print(f"{len(MUTATIONS) - survived} of {len(MUTATIONS)} broken losses were noticed")
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
