"""Training steps side by side: ours, `transformers.Trainer` and TRL's trainers, on the same weights, data and batches.

    python -m experiments.bench_training.bench --data snips/train.jsonl.gz

Every contender runs in a process of its own, in rounds, so that slow minutes of the machine hit all alike; ratios are
taken within a round. Writes results.json, table.md and steps.png beside this file.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from needle.cli.app import compose
from needle.config import settings
from needle.data.encoding import BatchOrder, Encoded, TokenizerConfig, encode_records, fit_tokenizer
from needle.losses.loss import LossConfig
from needle.students.build import build_student
from needle.students.checkpoint import Checkpoint, save_checkpoint, student_config
from needle.teachers.local import LocalTeacher, TokenSignals
from needle.teachers.signals import OnlineSignals, SignalCache, Signals
from needle.text.codecs import build_codec
from needle.text.formats import read_records
from needle.text.prompt import Renderer, prompt_ids
from needle.text.tokenizer import TextTokenizer
from needle.training.loop import Job, TrainConfig, _length, _Loop
from needle.training.optim import OptimConfig
from needle.training.runstate import HardwareConfig, keep_memory
from needle.training.tracking import TrackerConfig

HERE = Path(__file__).parent
OURS = ("ours fine-tuning", "ours distillation, cached", "ours distillation, online")
RIVALS = (
    "trainer/masked",
    "trainer/sliced",
    "sft/masked",
    "sft/compact",
    "gkd/masked",
    "gold/masked",
    "gold/sliced",
    "distillation/autocast",
)
KIND = {
    "trainer": "fine-tuning",
    "sft": "fine-tuning",
    "gkd": "distillation",
    "gold": "distillation",
    "distillation": "distillation",
}


def prepare(options: argparse.Namespace) -> tuple[TextTokenizer, Encoded, list[int]]:
    """Tokenizer, examples, and the indices that all contenders see, in order."""
    records = list(read_records(Path(options.data), "auto", None))[: options.records]
    tokenizer = fit_tokenizer(records, TokenizerConfig(size=8192), options.work)
    data = encode_records(records, Renderer(tokenizer), build_codec("decisions", tokenizer), 2048)
    order = BatchOrder([_length(example, "flat") for example in data.examples], options.batch, 0)
    return tokenizer, data, [index for step in range(options.steps) for index in order[step]]


def weights(options: argparse.Namespace, tokenizer: TextTokenizer) -> Any:
    """The students' config; saves a student and a teacher of it, each from its own seed, once."""
    config = replace(student_config(settings(compose([f"student={options.student}"])).student), dropout=0.0)
    for seed, name in ((1, "student"), (2, "teacher")):
        if not (options.work / name / "config.json").exists():
            torch.manual_seed(seed)
            save_checkpoint(
                options.work / name,
                Checkpoint(build_student(config, tokenizer.size), config, tokenizer, "decisions", 2048),
            )
    return config


def run_ours(name: str, options: argparse.Namespace) -> dict[str, Any]:
    tokenizer, data, _ = prepare(options)
    config = weights(options, tokenizer)
    signals: Signals | None = None
    facts: dict[str, Any] = {}
    loss = LossConfig()
    if "distillation" in name:
        loss = LossConfig(temperature=1.0, alpha=1.0, beta=0.0)
        teacher = LocalTeacher([options.work / "teacher"])
        signals = OnlineSignals(teacher)
        if "cached" in name:
            signals = SignalCache.beside(options.work, TokenSignals(teacher, "top_k", 64, 1.0))
            begun = time.perf_counter()
            built = signals.build(data.records, data.examples, torch.device("cpu"))
            facts = {"teacher_records_per_second": built / (time.perf_counter() - begun)} if built else {}
    train = TrainConfig(
        steps=options.steps + 1,
        batch_size=options.batch,
        micro_batch=options.batch,
        eval_every=10**6,
        save_every=10**6,
        log_every=10**6,
    )
    optim = OptimConfig(schedule="constant", warmup=0)
    hardware = HardwareConfig(device="cpu", precision=options.precision, threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            config,
            tokenizer,
            "decisions",
            loss,
            optim,
            train,
            hardware,
            TrackerConfig(),
            data,
            [],
            2048,
            Path(folder),
            signals,
        )
        loop = _Loop(job, lambda values: None)
        seconds = []
        for _ in range(options.steps):
            begun = time.perf_counter()
            loop.step()
            seconds.append(time.perf_counter() - begun)
        if name == OURS[0]:
            with FlopCounterMode(display=False) as counter:
                loop._pass(loop.order[options.warmup], 1.0, 0)
            facts |= {"step_flops": counter.get_total_flops(), "step_for_flops": seconds[options.warmup]}
    return {"seconds": seconds[options.warmup :], **facts}


def run_rival(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from experiments.bench_training.rivals import Scene, Setup, measure

    tokenizer, data, indices = prepare(options)
    config = weights(options, tokenizer)
    keep_memory()  # the rivals get what we give ourselves
    theirs = LlamaConfig(
        vocab_size=tokenizer.size, hidden_size=config.width, intermediate_size=config.hidden,
        num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads, rms_norm_eps=1e-5, rope_theta=config.rope_theta,
        tie_word_embeddings=True, max_position_embeddings=2048,
        pad_token_id=tokenizer.pad, eos_token_id=tokenizer.eos, bos_token_id=None, use_cache=False,
    )  # fmt: skip

    def load(part: str) -> LlamaForCausalLM:
        model = LlamaForCausalLM(theirs)
        state = {f"model.{key}": value for key, value in load_file(options.work / part / "model.safetensors").items()}
        missing = set(model.load_state_dict(state, strict=False).missing_keys) - {"lm_head.weight"}
        assert not missing, missing
        model.tie_weights()
        return model

    wrapped = PreTrainedTokenizerFast(
        tokenizer_file=str(options.work / "student" / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )
    examples = [(prompt_ids(data.examples[i], tokenizer), list(data.examples[i].target)) for i in indices]
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(
            load("student"),
            load("teacher"),
            wrapped,
            examples,
            Setup(options.steps, options.batch, options.precision, options.warmup),
            folder,
        )
        return {"seconds": measure(name, scene)}


def matmul_peak() -> float:
    """FLOP/s of a large bfloat16 matrix product, the best of a few."""
    a, b = torch.randn(4096, 448, dtype=torch.bfloat16), torch.randn(448, 1152, dtype=torch.bfloat16)
    best = 1e9
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(5):
            a @ b
        best = min(best, (time.perf_counter() - begun) / 5)
    return 2 * 4096 * 448 * 1152 / best


def one(name: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    peak = matmul_peak() if name == OURS[0] else None
    found = run_ours(name, options) if name in OURS else run_rival(name, options)
    print(
        json.dumps(
            {"name": name, **found, "peak": peak, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        )
    )


def report(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Every step against our fine-tuning's on the same batch in the same round: median and quartiles; a table and a
    plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tokenizer, data, indices = prepare(options)
    tokens = sum(len(data.examples[i].target) for i in indices[options.warmup * options.batch :]) / (
        options.steps - options.warmup
    )
    positions = sum(data.examples[i].length for i in indices[options.warmup * options.batch :]) / (
        options.steps - options.warmup
    )
    base = {row["round"]: row["seconds"] for row in results if row["name"] == OURS[0]}
    rows = []
    for name in (*OURS, *RIVALS):
        mine = [row for row in results if row["name"] == name]
        if not mine:
            continue
        step = statistics.median(second for row in mine for second in row["seconds"])
        ratios = [
            ours / theirs for row in mine for ours, theirs in zip(row["seconds"], base[row["round"]], strict=True)
        ]
        low, middle, high = statistics.quantiles(ratios, n=4)
        memory = max(row["memory"] for row in mine) / 2**30
        rows.append((name, step, middle, low, high, options.batch / step, tokens / step, positions / step, memory))
    lines = [
        (
            "| contender | step, s | time against our fine-tuning on the same batch (quartiles) | records/s | target"
            " tokens/s | all tokens/s | peak memory, GiB |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {n} | {s:.2f} | {m:.2f} ({low:.2f}–{high:.2f}) | {r:.1f} | {t:.0f} | {p:.0f} | {g:.1f} |"
        for n, s, m, low, high, r, t, p, g in rows
    ]
    shares = [row["step_flops"] / row["step_for_flops"] / row["peak"] for row in results if row["name"] == OURS[0]]
    peaks = [row["peak"] / 1e9 for row in results if row["name"] == OURS[0]]
    made = [row["teacher_records_per_second"] for row in results if "teacher_records_per_second" in row]
    lines += [
        "",
        (
            f"Matmul share of our fine-tuning step: {100 * statistics.median(shares):.0f}%"
            f" ({100 * min(shares):.0f}–{100 * max(shares):.0f}%) of a measured {statistics.median(peaks):.0f} GFLOP/s."
        ),
    ]
    lines += [f"Filling the cache: {statistics.median(made):.1f} records/s, once for all arms."] if made else []
    (HERE / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    figure, axes = plt.subplots(figsize=(8, 4.6))
    colors = [
        "#1f6feb" if row[0] in OURS else "#d9822b" if KIND[row[0].split("/")[0]] == "fine-tuning" else "#8250df"
        for row in rows
    ]
    for place, (row, color) in enumerate(zip(reversed(rows), reversed(colors), strict=True)):
        axes.barh(place, row[5], color=color, height=0.62)
        axes.text(row[5] + 0.15, place, f"{row[5]:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xlabel(
        f"records per second, {options.student}, batches of {options.batch}, {options.precision}; ours blue, rival"
        " fine-tuning orange, rival distillation violet",
        fontsize=8,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "steps.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--student", default="llama_26m")
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("outputs/bench_training"))
    parser.add_argument("--only", nargs="*", default=[*OURS, *RIVALS])
    parser.add_argument("--report", action="store_true", help="write table and plot again from results.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options)
        return
    if options.report:
        report(json.loads((HERE / "results.json").read_text()), options)
        return
    weights(options, prepare(options)[0])
    results: list[dict[str, Any]] = []
    words = [
        word
        for key in ("data", "student", "records", "batch", "steps", "warmup", "precision", "threads", "work")
        for word in (f"--{key}", str(getattr(options, key)))
    ]
    for number in range(options.rounds):
        for name in options.only:
            ran = subprocess.run(
                [sys.executable, "-m", "experiments.bench_training.bench", *words, "--one", name],
                capture_output=True,
                text=True,
            )
            if ran.returncode:
                sys.exit(f"{name}: {ran.stderr[-3000:]}")  # results so far are in results.json
            results.append({"round": number, **json.loads(ran.stdout.strip().splitlines()[-1])})
            row = results[-1]
            (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            print(
                f"round {number + 1}  {name:<28} {sum(row['seconds']) / len(row['seconds']):.2f} s a step,"
                f" {row['memory'] / 2**30:.1f} GiB",
                flush=True,
            )
    report(results, options)


if __name__ == "__main__":
    main()
