"""`needle train`: one student, or with -m a sweep. `needle train student=llama_tiny loss=finetune data=snips`"""

from __future__ import annotations

from needle.cli.app import TrainingProgress, console, launch
from needle.config import Settings, build_job
from needle.train import train


def run(config: Settings) -> None:
    job = build_job(config, lambda text: console.print(text, markup=False))
    summary = train(job, TrainingProgress())
    best = summary["validation_exact_call"]
    known = f", exact call {100 * best:.1f}% on validation at step {summary['best_step']}" if best is not None else ""
    state = "was finished already" if summary.get("resumed") else f"trained {summary['steps']} steps in {summary['seconds']:.0f} s"
    console.print(f"[bold]{job.output}[/] {state}{known}")


def main() -> None:
    launch("train", run)
