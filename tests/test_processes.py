"""Several processes of one run: the figures of one process, a killed rank, shards; and kill -9 at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from needle.text.records import Record, write_jsonl
from needle.training.tracking import read_metrics
from tests.test_train import COMMAND, SMALL, run, weights

QUIET = ["student.dropout=0.0", "student.token_dropout=0.0", "optim.lr=1e-4"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_two_processes_with_half_the_batch_each_give_the_loss_and_weights_of_one(tmp_path: Path) -> None:
    """96 records in batches of 15: the last batch is uneven, and so are the micro-batches of 4."""
    words = [
        *SMALL,
        *QUIET,
        "train.steps=8",
        "train.batch_size=15",
        "train.micro_batch=4",
        f"cache={tmp_path}/cache",
        "optim.ema=0.9",
    ]
    one = run([*words, f"output={tmp_path}/one"])
    assert one.returncode == 0, one.stderr
    two = run([*words, "hardware=cpu_2", f"output={tmp_path}/two"])
    assert two.returncode == 0, two.stderr
    assert json.loads((tmp_path / "two" / "train.json").read_text())["processes"] == 2
    rows = [
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row] for name in ("one", "two")
    ]
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], rel=1e-4)
    assert [row["gradient_norm"] for row in rows[0]] == pytest.approx(
        [row["gradient_norm"] for row in rows[1]], rel=1e-3
    )
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_comparison_trains_its_arms_in_as_many_processes_as_its_hardware_says(tmp_path: Path) -> None:
    words = [
        *(word for word in SMALL if not word.startswith("data.synthetic.test=")),
        "data.synthetic.test=6",
        "train.steps=2",
        "max_tokens=8",
        "hardware=cpu_2",
    ]
    grid = [
        "compare.sweep=distill_vs_finetune",
        "data.size=40",
        "compare.seeds=[0]",
        f"output={tmp_path}/cmp",
        f"cache={tmp_path}/cache",
    ]
    ran = subprocess.run([*COMMAND[:-1], "compare", *words, *grid], env=ENVIRONMENT, text=True, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "cmp").glob("**/train.json")]
    assert [summary["processes"] for summary in summaries] == [2, 2, 2]
    assert len(json.loads((tmp_path / "cmp" / "report.json").read_text())["arms"]) == 2


def test_processes_that_read_other_data_are_an_error(tmp_path: Path, records: list[Record]) -> None:
    for rank in range(2):
        write_jsonl(tmp_path / f"train-{rank}.jsonl", records[rank : 40 + rank])
    words = [
        f"data.train=[{tmp_path}/train-${{oc.env:LOCAL_RANK,0}}.jsonl]",
        "data=jsonl",
        "hardware=cpu_2",
        "train.steps=2",
        f"cache={tmp_path}/cache",
        f"output={tmp_path}/out",
    ]
    each = ["torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "needle.cli", "train", *SMALL, *words]
    found = subprocess.run([sys.executable, "-m", *each], env=ENVIRONMENT, text=True, capture_output=True)
    assert found.returncode != 0
    assert "process 1 of 2 has another run than process 0 (data.train" in found.stderr
    assert "content.training_data was" in found.stderr


def test_a_killed_rank_and_ctrl_c_end_the_run_with_a_clear_message_and_it_resumes(tmp_path: Path) -> None:
    words = [
        *SMALL,
        "student.dropout=0.1",
        "train.steps=60",
        "train.save_every=5",
        "train.eval_every=100",
        "hardware=cpu_2",
        f"cache={tmp_path}/cache",
    ]
    whole = run([*words, f"output={tmp_path}/whole"])
    assert whole.returncode == 0, whole.stderr
    process = _reach(12, [*words, f"output={tmp_path}/killed"], tmp_path / "killed")
    os.kill(_rank(process.pid, 1), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert (
        "process 1 of 2 was killed (SIGKILL), so the run was stopped; the same command goes on from the last saved"
        " state" in said
    )
    process = _reach(30, [*words, f"output={tmp_path}/killed"], tmp_path / "killed")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; the same command goes on where it stopped" in said
    assert "Traceback" not in said
    again = run([*words, f"output={tmp_path}/killed"])
    assert again.returncode == 0, again.stderr
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)


SHARDS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from needle.training.optim import OptimConfig, build_optimizers
from needle.training.runstate import State

dist.init_process_group("gloo")
mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
accelerator = SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"), is_main_process=rank == 0,
                              wait_for_everyone=dist.barrier, unwrap_model=lambda m: m)

def fresh(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    fully_shard(model, mesh=mesh)
    return model, build_optimizers(model, OptimConfig(name=sys.argv[2]))

def steps(model, optimizers, count, seed):
    for step in range(count):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed + step))
        model(x).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

state = State(Path(sys.argv[1]), accelerator)
model, optimizers = fresh(0)
steps(model, optimizers, 3, 0)
state.save(model, optimizers, None, {"step": 3})
steps(model, optimizers, 2, 10)
other, others = fresh(1)
assert state.load(other, others, None) == {"step": 3}
steps(other, others, 2, 10)
one, two = state.whole(model), state.whole(other)
if rank == 0:
    assert set(one) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"}
    assert all(torch.equal(one[name], two[name]) for name in one), [float((one[n] - two[n]).abs().max()) for n in one]
    print("resumed bit for bit")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sharded_state_goes_to_disk_and_back(tmp_path: Path, optimizer: str) -> None:
    """FSDP's shards over two CPU processes; Accelerate itself gives FSDP to GPUs alone."""
    (tmp_path / "shards.py").write_text(SHARDS)
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(tmp_path / "shards.py"),
        str(tmp_path / "state"),
        optimizer,
    ]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
    assert "resumed bit for bit" in ran.stdout, ran.stderr[-3000:]


def test_shards_without_gpus_are_an_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    ran = run([*SMALL, "hardware.strategy=fsdp", f"output={tmp_path}/x", f"cache={tmp_path}"])
    assert ran.returncode == 2
    assert "on a CPU use hardware=cpu_2" in ran.stderr


def _reach(step: int, words: list[str], output: Path) -> subprocess.Popen[str]:
    """A run that has come to a step."""
    process = subprocess.Popen([*COMMAND, *words], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in read_metrics(output / "metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def _rank(parent: int, rank: int) -> int:
    """The process id of one rank, from the environment of the launcher's children."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            entries = path.read_bytes().split(b"\0")
            mother = int((path.parent / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if mother == parent and f"RANK={rank}".encode() in entries:
            return int(path.parent.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_kill_minus_9_at_twenty_random_moments_always_ends_in_the_same_result(tmp_path: Path) -> None:
    """Muon, an average of the weights, dropout, validation and a cached teacher: all of a run's state goes through
    it."""
    common = [*SMALL, f"cache={tmp_path}/cache", "train.eval_every=40", "student.dropout=0.2"]
    taught = run([*common, "train.steps=20", f"output={tmp_path}/teacher"])
    assert taught.returncode == 0, taught.stderr
    words = [
        *common,
        "train.steps=800",
        "train.save_every=9",
        "optim=muon",
        "optim.ema=0.99",
        "loss=distill",
        "teacher=local",
        f"teacher.checkpoint={tmp_path}/teacher",
    ]
    words.append(f"tokenizer.path={tmp_path}/teacher")
    whole = run([*words, f"output={tmp_path}/whole"])
    assert whole.returncode == 0, whole.stderr
    moments, kills = random.Random(0), 0
    while kills < 20:
        process = subprocess.Popen(
            [*COMMAND, *words, f"output={tmp_path}/killed"], env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(moments.uniform(3, 8))
            break  # done before the next kill
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    again = run([*words, f"output={tmp_path}/killed"])
    assert again.returncode == 0, again.stderr
    assert kills == 20, f"only {kills} kills: give the run more steps"
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows = [
        [{k: v for k, v in row.items() if "second" not in k} for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
