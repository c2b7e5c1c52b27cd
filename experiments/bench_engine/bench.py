"""How long a call takes: the same requests by each backend in turn, over HTTP, and by other runtimes.

    python -m experiments.bench_engine.bench CHECKPOINT --output experiments/bench_engine/results.json

CHECKPOINT has an export in both precisions beside its weights. NEEDLE_DATA names the folder of the sets. Backends take
turns, request by request, so that a slow minute of the machine is everybody's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from needle.data.sources import subset
from needle.engine.decode import Engine
from needle.engine.open import open_engine
from needle.release.latency import shares
from needle.text.formats import read_records
from needle.text.records import Record, Tool

SETS = ("snips", "hwu64", "sgd")
BACKENDS = {"torch": ("torch", "float32"), "onnx fp32": ("onnx", "float32"), "onnx int8": ("onnx", "int8")}
CLIENTS, MANY, SHOWN = 8, 100, 8
THREADS = 2  # of the rivals
FEW = 20  # calls of a slow rival
LOOP = 1000  # calls for a profiler to look at
READY = 60.0  # seconds that a server may take to start


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Of times in seconds, in milliseconds."""
    points = (25, 50, 75, 95, 99)
    found = np.percentile(1000 * np.asarray(seconds), points).round(2).tolist()
    return {"calls": len(seconds), **{f"p{point}": value for point, value in zip(points, found, strict=True)}}


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_turns(engines: dict[str, Engine], records: Sequence[Record], warm: bool) -> dict[str, Any]:
    """One call of each record by each engine, its tools known from a call before, or never seen."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for number, record in enumerate(records):
        names = list(engines)
        random.Random(number).shuffle(names)
        for name in names:
            tools = record.tools if warm else _anew(record.tools, number)
            if warm:
                engines[name].answer(record.query, tools)
            times[name].append(timed(lambda: engines[name].answer(record.query, tools)))  # noqa: B023
    return {name: percentiles(own) for name, own in times.items()}


def _anew(tools: Sequence[Tool], number: int) -> list[Tool]:
    """The same tools, declared as none was before."""
    return [Tool(tool.name, f"{tool.description} (edition {number})", tool.parameters) for tool in tools]


class Server:
    """`needle serve` in a process of its own."""

    def __init__(self, checkpoint: Path, backend: str, port: int) -> None:
        words = [f"checkpoint={checkpoint}", f"backend={backend}", f"serve.port={port}"]
        self.address = f"http://127.0.0.1:{port}"
        started = time.perf_counter()
        command = [sys.executable, "-m", "needle.cli", "serve", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while time.perf_counter() - started < READY:
            try:
                self.ask({"prompt": "hello", "available_functions": [{"name": "say", "description": "Say it"}]})
                break
            except OSError:
                time.sleep(0.02)
        self.seconds_to_answer = time.perf_counter() - started

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/tool-call", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    @property
    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def over_http(checkpoint: Path, backend: str, records: Sequence[Record], port: int) -> dict[str, Any]:
    """A client by itself, then several at once."""
    server = Server(checkpoint, backend, port)
    try:
        bodies = [
            {"prompt": record.query, "available_functions": [tool.to_json() for tool in record.tools]}
            for record in records
        ]
        for body in bodies:
            server.ask(body)
        alone = percentiles([timed(lambda: server.ask(body)) for body in bodies])  # noqa: B023
        with ThreadPoolExecutor(CLIENTS) as pool:
            whole = timed(lambda: list(pool.map(server.ask, bodies)))
        return {
            "alone": alone,
            "per_second": round(len(bodies) / whole, 1),
            "megabytes": round(server.megabytes),
            "seconds_to_answer": round(server.seconds_to_answer, 2),
        }
    finally:
        server.stop()


def start_in_a_program(checkpoint: Path, backend: str) -> float:
    """Seconds of a fresh Python until it has its first answer."""
    program = (
        f"from needle import Needle; Needle({str(checkpoint)!r}, backend={backend!r})"
        ".call('hello', [{'name': 'say', 'description': 'Say it'}])"
    )
    return min(timed(lambda: subprocess.run([sys.executable, "-c", program], check=True)) for _ in range(3))


def rivals(records: Sequence[Record], tokens: Sequence[int], few: int) -> dict[str, Any]:
    """A llama of 26M parameters in other runtimes: the prompt of these requests and tools, and as many tokens as the
    answers have. Its weights are random; what it says doesn't matter for how long it takes. llama.cpp keeps nothing of
    the prompt before, as `transformers` doesn't, and has seen the tools of a request once where it may."""
    import torch
    from transformers import AutoModelForCausalLM

    from needle.data.encoding import TokenizerConfig, fit_tokenizer
    from needle.exports.llama import export_gguf, export_huggingface
    from needle.students.build import build_student
    from needle.students.causal import LlamaConfig
    from needle.students.checkpoint import Checkpoint
    from needle.text.prompt import prompt_ids

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = fit_tokenizer(list(records), TokenizerConfig(size=8192), folder)
        config = LlamaConfig()
        checkpoint = Checkpoint(build_student(config, tokenizer.size), config, tokenizer, "decisions", 2048)
        rows = [prompt_ids(checkpoint.renderer.prompt("", record.query, record.tools), tokenizer) for record in records]
        export_huggingface(checkpoint, folder / "hf")
        model = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
        torch.set_num_threads(THREADS)

        def generate(row: list[int], count: int) -> None:
            ids = torch.tensor([row])
            lengths = {"min_new_tokens": count, "max_new_tokens": count}
            with torch.inference_mode():
                model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths)

        pairs = list(zip(rows, tokens, strict=True))
        found = {"transformers.generate": percentiles([timed(lambda: generate(*pair)) for pair in pairs[:few]])}  # noqa: B023
        complete = llama_cpp(export_gguf(checkpoint, folder / "gguf"))
        for kept in (False, True):
            times = []
            for row, count in pairs:
                if kept:  # all but the request's last token has been read
                    complete(row, 1, True)
                times.append(timed(lambda: complete(row, count, kept)))  # noqa: B023
            found["llama.cpp, prompt kept" if kept else "llama.cpp"] = percentiles(times)
    sizes = {"prompt_tokens": [len(row) for row in rows], "answer_tokens": tokens}
    return {**{name: round(float(np.mean(own)), 1) for name, own in sizes.items()}, **found}


def llama_cpp(model: Path) -> Callable[[list[int], int, bool], None]:
    """Completes ids by so many tokens, with or without what it kept of the prompt before."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel = 2048, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    server = xllamacpp.Server(params)

    def complete(row: list[int], count: int, keep: bool) -> None:
        asked = {"prompt": row, "n_predict": count, "max_tokens": count, "temperature": 0, "ignore_eos": True}
        answer = server.handle_completions({**asked, "cache_prompt": keep})
        if answer["usage"]["completion_tokens"] != count:
            raise RuntimeError(f"llama.cpp wrote {answer['usage']}, asked for {count}")

    return complete


def plot(out: dict[str, Any], path: Path) -> None:
    """Medians and quartiles of a call with known tools, by set and backend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    rows = [(name, backend) for name in SETS for backend in BACKENDS]
    for place, (name, backend) in enumerate(rows):
        own, colour = out[f"{name}, known tools"][backend], f"C{list(BACKENDS).index(backend)}"
        axes.barh(place, own["p50"], color=colour)
        axes.plot([own["p25"], own["p75"]], [place, place], color="black")
        axes.text(own["p75"] + 2, place, f"{own['p50']:.0f} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{name}, {backend}" for name, backend in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds of a call: median, quartiles")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEEDLE_DATA", "data")))
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--parts", nargs="+", default=["calls", "shares", "many", "http", "start", "rivals"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    sets = {}
    for name in SETS:
        records = list(read_records(arguments.data / name / "validation.jsonl.gz"))
        sets[name] = subset([one for one in records if len(one.tools) == 5 and one.answers], arguments.calls, 0)
    engines = {
        name: open_engine(arguments.checkpoint, precision=precision, alone=True, backend=backend)
        for name, (backend, precision) in BACKENDS.items()
    }
    out: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()}

    def note(part: str, found: Any) -> None:
        out[part] = found
        print(part, json.dumps(found), flush=True)

    if "calls" in arguments.parts:
        for name, records in sets.items():
            note(f"{name}, known tools", in_turns(engines, records, warm=True))
        note("snips, new tools", in_turns(engines, sets["snips"], warm=False))
    if "shares" in arguments.parts:
        for name, engine in engines.items():
            for record in sets["snips"]:
                engine.answer(record.query, record.tools)
            note(f"snips, shares of a call, {name}", shares(engine, sets["snips"]))
    if "loop" in arguments.parts:
        for record in itertools.islice(itertools.cycle(sets["snips"]), LOOP):
            engines["onnx int8"].answer(record.query, record.tools)
    if "many" in arguments.parts:
        every = list({tool.name: tool for own in sets.values() for record in own for tool in record.tools}.values())
        few = {
            name: open_engine(arguments.checkpoint, "constrained", precision, SHOWN, True, backend)
            for name, (backend, precision) in BACKENDS.items()
        }
        crowd = []
        for number, record in enumerate(sets["hwu64"]):
            others = [tool for tool in every if tool.name not in {own.name for own in record.tools}]
            drawn = random.Random(0).sample(others, min(MANY - len(record.tools), len(others)))
            crowd.append(Record(str(number), record.query, (*record.tools, *drawn), record.answers, "crowd"))
        for engine in few.values():  # every tool is known
            for record in crowd:
                engine.answer(record.query, record.tools)
        note(f"hwu64, {len(crowd[0].tools)} tools", in_turns(few, crowd, warm=True))
    if "http" in arguments.parts:
        for port, (name, backend) in enumerate((("onnx", "onnx"), ("torch", "torch")), 8731):
            for set_name in ("snips", "hwu64"):
                note(f"http, {name}, {set_name}", over_http(arguments.checkpoint, backend, sets[set_name], port))
    if "start" in arguments.parts:
        note("seconds to a first answer in a program", {
            backend: round(start_in_a_program(arguments.checkpoint, backend), 2) for backend in ("onnx", "torch")
        })  # fmt: skip
    if "rivals" in arguments.parts:
        records = sets["snips"]
        tokens = [engines["onnx int8"].answer(record.query, record.tools).tokens + 1 for record in records]
        note("a llama of 26M, snips", rivals(records, tokens, FEW))
    if arguments.output:
        arguments.output.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
        if "calls" in arguments.parts:
            plot(out, arguments.output.with_name("calls.png"))


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
