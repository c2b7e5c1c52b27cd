"""The Berkeley Function Calling Leaderboard's single-turn categories, judged by its own checker. Never training data.

`bfcl-eval` carries the questions, the allowed answers and the checker. Its checker looks up one flag of each vendor's
model in a table whose import pulls in every vendor's SDK; a table of one entry stands in for it here.

Source: Patil et al., The Berkeley Function Calling Leaderboard (ICML 2025); categories and means as in version 4.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from needle.engine.decode import Answer, Engine, Report, Request
from needle.judging.metrics import interval
from needle.text.declarations import normalise_tools
from needle.text.records import DataError, ToolSchemaError

MODEL = "needle"
PREFIX = "BFCL_v4_"
CHECKER = "bfcl_eval.eval_checker.ast_eval.ast_checker"
TABLE = "bfcl_eval.constants.model_config"
NON_LIVE = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
)
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance")
CATEGORIES = NON_LIVE + LIVE
GROUPS = {"all": CATEGORIES, "non_live": NON_LIVE, "live": LIVE}
INSTALL = "pip install --no-deps bfcl-eval (its checker and data need none of its dependencies)"


def evaluate_bfcl(
    engine: Engine,
    category: str = "all",
    predictions: Path | None = None,
    max_tokens: int = 150,
    batch_size: int = 32,
    report: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """`{"categories": {name: {"records", "accuracy": {"value", "low", "high"}, "errors": {kind: n}}}, "means": {...},
    "seconds"}`.

    `category` is one of `CATEGORIES`, or `all`, `live`, `non_live`. A tool that can't be read, or an answer that isn't
    one, counts as no call: wrong where one is due, right where none is, as the leaderboard counts what it can't decode.
    `report` hears a category, how many of it are answered, and of how many. Raises `DataError` for an unknown category
    or a missing package.
    """
    names = GROUPS.get(category, (category,) if category in CATEGORIES else ())
    if not names:
        raise DataError(
            f"category={category} is unknown; expected {', '.join(GROUPS)} or one of {', '.join(CATEGORIES)}"
        )
    folder, check = _data(), _checker()
    started = time.perf_counter()
    categories: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for name in names:
        rows = _rows(folder, name)
        answers = _answer(engine, rows, name, max_tokens, batch_size, partial(report, name) if report else None)
        reasons = [_judge(row, answer, name, check) for row, answer in zip(rows, answers, strict=True)]
        wrong = [reason for reason in reasons if reason]
        accuracy = interval([(float(not reason), 1.0) for reason in reasons], 0)
        categories[name] = {
            "records": len(rows),
            "accuracy": accuracy,
            "errors": {kind: wrong.count(kind) for kind in sorted(set(wrong))},
        }
        for row, answer, reason in zip(rows, answers, reasons, strict=True):
            calls = None if answer.calls is None else [call.to_json() for call in answer.calls]
            lines.append(
                {
                    "id": row["id"],
                    "category": name,
                    "predicted": calls,
                    "correct": not reason,
                    "confidence": round(answer.confidence, 6),
                    "error": answer.error or reason,
                }
            )
    if predictions:
        predictions.parent.mkdir(parents=True, exist_ok=True)
        predictions.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return {"categories": categories, "means": means(categories), "seconds": round(time.perf_counter() - started, 1)}


def means(categories: Mapping[str, Any]) -> dict[str, float]:
    """The leaderboard's own: `non_live_ast` averages categories, `live_ast` records; only those whose categories are
    all there."""
    value = {name: row["accuracy"]["value"] for name, row in categories.items()}
    count = {name: row["records"] for name, row in categories.items()}
    out = {}
    if all(name in value for name in NON_LIVE):
        simple = (value["simple_python"] + value["simple_java"] + value["simple_javascript"]) / 3
        out["non_live_ast"] = (simple + value["multiple"] + value["parallel"] + value["parallel_multiple"]) / 4
    if all(name in value for name in LIVE):
        calls = LIVE[:4]
        out["live_ast"] = sum(value[name] * count[name] for name in calls) / sum(count[name] for name in calls)
    if "irrelevance" in value and "live_irrelevance" in value:
        out["irrelevance"] = (value["irrelevance"] + value["live_irrelevance"]) / 2
    return out


def _data() -> Path:
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or found.origin is None:
        raise DataError(f"data=bfcl needs the leaderboard's data: {INSTALL}")
    return Path(found.origin).parent / "data"


def _checker() -> Callable[..., Mapping[str, Any]]:
    """The official AST checker, imported beside a table of models that holds this one alone."""
    if CHECKER not in sys.modules and TABLE not in sys.modules:
        table = ModuleType(TABLE)
        table.MODEL_CONFIG_MAPPING = {MODEL: SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
        sys.modules[TABLE] = table
        try:
            importlib.import_module(CHECKER)
        finally:
            del sys.modules[TABLE]
    check: Callable[..., Mapping[str, Any]] = importlib.import_module(CHECKER).ast_checker
    return check


def _rows(folder: Path, category: str) -> list[dict[str, Any]]:
    try:
        rows = [
            json.loads(line)
            for line in (folder / f"{PREFIX}{category}.json").read_text(encoding="utf-8").splitlines()
            if line
        ]
        if "relevance" not in category:
            truth = (
                json.loads(line)
                for line in (
                    (folder / "possible_answer" / f"{PREFIX}{category}.json").read_text(encoding="utf-8").splitlines()
                )
                if line
            )
            allowed = {row["id"]: row["ground_truth"] for row in truth}
            rows = [{**row, "ground_truth": allowed[row["id"]]} for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the installed bfcl-eval holds no readable {category}: {type(error).__name__}: {error}; {INSTALL}"
        ) from error
    return rows


def _answer(
    engine: Engine,
    rows: Sequence[Mapping[str, Any]],
    category: str,
    max_tokens: int,
    batch_size: int,
    report: Report | None,
) -> list[Answer]:
    """Answers in the order of `rows`; one whose tools can't be read is `refused`."""
    requests: list[Request] = []
    answers: dict[int, Answer] = {}
    for index, row in enumerate(rows):
        words = [message["content"] for message in row["question"][0] if message["role"] == "user"]
        try:
            requests.append(
                Request(
                    "\n".join(words),
                    normalise_tools([_in_words(function, category) for function in row["function"]]),
                    str(index),
                )
            )
        except ToolSchemaError as error:
            answers[index] = Answer(None, 0.0, "refused", error=str(error))
    for request, answer in zip(
        requests, engine.answer_all(requests, max_tokens, batch_size, report=report), strict=True
    ):
        answers[int(request.id)] = answer
    return [answers[index] for index in range(len(rows))]


def _in_words(function: Mapping[str, Any], category: str) -> Mapping[str, Any]:
    """A function of Java or JavaScript takes its arguments as that language writes them: each one a string."""
    language = {"simple_java": "Java", "simple_javascript": "JavaScript"}.get(category)
    if language is None:
        return function
    properties = {}
    for name, schema in function["parameters"]["properties"].items():
        kind = f"({language} {schema.get('type', 'any')}, as written in {language})"
        properties[name] = {"type": "string", "description": f"{schema.get('description', '')} {kind}".strip()}
    return {
        **function,
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": function["parameters"].get("required", []),
        },
    }


def _judge(row: Mapping[str, Any], answer: Answer, category: str, check: Callable[..., Mapping[str, Any]]) -> str:
    """Why an answer is wrong, in the checker's words; empty when it is right."""
    if "irrelevance" in category:
        return "irrelevance_error:call" if answer.calls else ""
    if category == "live_relevance":
        return "" if answer.calls else "relevance_error:no_call"
    if answer.calls is None:
        return f"no_answer:{answer.finish}"
    enums = importlib.import_module("bfcl_eval.constants.enums")
    language = {"simple_java": enums.Language.JAVA, "simple_javascript": enums.Language.JAVASCRIPT}.get(
        category, enums.Language.PYTHON
    )
    calls = [{call.name: dict(call.arguments)} for call in answer.calls]
    result = check(row["function"], calls, row["ground_truth"], language, category, MODEL)
    return "" if result["valid"] else str(result["error_type"])
