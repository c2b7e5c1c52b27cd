"""Records per second of `pointer_26m` on all real sets joined, and where the time goes.

NEEDLE_DATA=data python -m experiments.bench_training.pointer --batch 256
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from needle.cli.app import compose
from needle.config import settings
from needle.data.encoding import TokenizerConfig, encode_records, fit_tokenizer
from needle.losses.loss import LossConfig
from needle.students.checkpoint import student_config
from needle.text.codecs import build_codec
from needle.text.formats import read_records
from needle.text.prompt import Renderer
from needle.training.loop import Job, TrainConfig, _Loop
from needle.training.optim import OptimConfig
from needle.training.runstate import HardwareConfig
from needle.training.tracking import TrackerConfig

SETS = ("snips", "hwu64", "mixed_calls", "sgd", "ha_intents", "clinc150", "seal_tools")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--group", default="source")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    root = Path(os.environ.get("NEEDLE_DATA", "data"))
    records = [record for name in SETS for record in read_records(root / name / "train.jsonl.gz", "auto", None)]
    tokenizer = fit_tokenizer(records, TokenizerConfig(size=8192), Path("outputs/cache"))
    data = encode_records(records, Renderer(tokenizer), build_codec("decisions", tokenizer), 2048)
    student = student_config(settings(compose(["student=pointer_26m"])).student)
    train = TrainConfig(
        steps=10**6,
        batch_size=options.batch,
        micro_batch=options.batch,
        group=options.group,
        eval_every=10**6,
        save_every=10**6,
    )
    hardware = HardwareConfig(device="cpu", precision=options.precision, threads=2)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            student,
            tokenizer,
            "decisions",
            LossConfig(),
            OptimConfig(),
            train,
            hardware,
            TrackerConfig(),
            data,
            [],
            2048,
            Path(folder),
        )
        loop = _Loop(job, print)
        for _ in range(5):
            loop.step()
        seconds, before = [], loop.progress.records
        for _ in range(options.steps):
            begun = time.perf_counter()
            loop.step()
            seconds.append(time.perf_counter() - begun)
        print(
            f"{(loop.progress.records - before) / sum(seconds):.1f} records/s over {options.steps} steps of"
            f" {options.batch}; median step {statistics.median(seconds):.2f} s"
        )
        if options.profile:
            with profile(activities=[ProfilerActivity.CPU]) as found:
                for _ in range(4):
                    loop.step()
            print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=50))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
