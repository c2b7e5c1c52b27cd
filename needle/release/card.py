"""The model card of a released student, made from its metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from needle.release.judge import CHANGED, SURFACES
from needle.students.base import count_parameters
from needle.students.checkpoint import Checkpoint
from needle.text.folder import WEIGHTS

LICENCES = {
    "snips": "CC0", "hwu64": "CC BY 4.0", "mixed_calls": "as its parts (CC0, CC BY 4.0)", "sgd": "CC BY-SA 4.0",
    "clinc150": "CC BY 3.0", "seal_tools": "Apache-2.0", "ha_intents": "CC BY 4.0",
    "skills": "MIT, Apache-2.0, BSD, ISC, MIT-0 (by repository)", "thingpedia": "BSD-3-Clause",
    "functions": "MIT, Apache-2.0", "star": "MIT", "restaurant8k": "CC BY 4.0", "taskmaster4": "CC BY 4.0",
    "nlu-corpora": "CC BY-SA 3.0", "snips-samples": "Apache-2.0", "home-llm": "MIT",
    "declared": "Apache-2.0 (this project's requests, for declarations under Apache-2.0 or MIT)",
    "synthetic": "Apache-2.0 (this project)", "invented": "Apache-2.0 (this project)",
}  # fmt: skip
SHARE_ALIKE = {"sgd": "SGD", "nlu-corpora": "the NLU evaluation corpora"}
TITLES = {"snips": "SNIPS", "hwu64": "HWU64", "sgd": "SGD", "mixed_calls": "several calls"}
SUITES = {
    "enums": "a member of an enum, said word for word", "enums_as_strings": "the same where it is a plain string",
    "groups": "objects, maps and lists of objects", "flags": "a flag that is to be false",
    "words": "a number in words", "odd": "URLs, commands, code, notes", "unsaid": "a required value isn't said",
    "chains": "three wishes in a row",
}  # fmt: skip
READS = {
    "pointer": (
        "A pointer student: encoder of six layers that starts from all-MiniLM-L6-v2 (Apache-2.0), decoder of two"
        " layers, byte-level vocabulary of {:,}."
    ),
    "span": (
        "A span student: an encoder of six layers that starts from all-MiniLM-L6-v2 (Apache-2.0) and reads in its word"
        " pieces, and a decoder of two layers that points at tools, arguments, members and places of the request, with"
        " {:,} tokens to write what can't be pointed at."
    ),
}
RECIPES = {"pointer": "needle_26m", "span": "needle_26m_spans"}
ERRORS = {"pointer": "e005_needle_26m", "span": "e009_second_student"}  # experiments that tell what goes wrong
SPLITS = {
    "test": "The test splits took no part in training or in any choice.",
    "validation": (
        "These are validation splits: not trained on, but the recipe was chosen by them, so that the figures flatter it"
        " a little. This student hasn't been judged on the test splits."
    ),
}


def share(cell: dict[str, Any]) -> str:
    return (
        "–"
        if cell["value"] is None
        else f"{100 * cell['value']:.1f} ({100 * cell['low']:.1f}–{100 * cell['high']:.1f})"
    )


def card(checkpoint: Checkpoint, results: dict[str, Any]) -> str:
    """The model card, from what metrics.json holds."""
    training, leaderboard = results["training"], results["leaderboard"]
    rows = [
        (
            f"| {results['split']} set | records | exact call | tool name | argument F1 | false calls, of records"
            " without a fitting tool |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in results["sets"].items():
        unfit = row["groups"]["calls"].get("0", {}).get("records", 0)
        false = f"{share(row['false_call_rate'])} of {unfit}" if unfit else "–"
        rows.append(
            f"| {name} | {row['records']:,} | {share(row['exact_call'])} | {share(row['tool_name'])} |"
            f" {share(row['argument_f1'])} | {false} |"
        )
        for member, part in row["groups"].get("seen", {}).items():
            if name == "sgd":
                rows.append(
                    f"| – {member} tools | {part['records']:,} | {share(part['exact_call'])} |"
                    f" {share(part['tool_name'])} | {share(part['argument_f1'])} | |"
                )
    of_all = [change for change in results["changes"]["snips"] if change in ("as they are", *SURFACES)]
    of_tools = [change for change in results["changes"]["snips"] if change not in SURFACES]
    surfaces = _changed("requests", of_all, results["changes"]) if len(of_all) > 1 else []
    changed = _changed("tools", of_tools, {name: results["changes"][name] for name in CHANGED})
    suites = [
        "| requests | records | exact call | names in order | calls anything |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in results.get("suites", {}).items():
        cells = (share(row[cell]) for cell in ("exact_call", "names_in_order", "any_call"))
        suites.append(f"| {SUITES[name]} | {row['records']} | {' | '.join(cells)} |")
    met = [
        f"{row['met']['records']} of {name}'s requests (without them {share(row['met']['exact_call_of_the_others'])})"
        for name, row in results["sets"].items()
        if row.get("met", {}).get("records")
    ]
    inside = (
        "Some requests stand word by word in training requests, short ones by chance, others because mixed_calls joins"
        f" requests of other sets: {', '.join(met)}.\n\n"
        if met
        else ""
    )
    made = f" These are the weights that it calls `{results['weights']}`." if results["weights"] else ""
    alike = " and ".join(title for name, title in SHARE_ALIKE.items() if name in checkpoint.data["sources"])
    sources = "\n".join(f"| {name} | {LICENCES[name]} |" for name in LICENCES if name in checkpoint.data["sources"])
    facts = {
        "parameters": count_parameters(checkpoint.student),
        "weights_file": WEIGHTS,
        "reads": READS[checkpoint.config.family].format(checkpoint.tokenizer.text_size),
        "alike": alike,
        "errors": ERRORS[checkpoint.config.family],
        "recipe": RECIPES[checkpoint.config.family],
        "split": SPLITS[results["split"]],
        "confidence": results.get("confidence"),
    }
    text = (files("needle.release") / "templates" / "model_card.md.j2").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)
    return template.render(
        **facts, training=training, leaderboard=leaderboard, rows=rows, surfaces=surfaces, changed=changed,
        suites=suites if len(suites) > 2 else [], inside=inside, made=made, sources=sources,
    )  # fmt: skip


def _changed(what: str, changes: Sequence[str], sets: Mapping[str, Any]) -> list[str]:
    """A table of exact calls: a row for each change, a column for each set."""
    rows = [f"| {what} | {' | '.join(TITLES[name] for name in sets)} |", f"| --- |{' ---: |' * len(sets)}"]
    for change in changes:
        cells = [own[change] for own in sets.values()]
        shares = [100 * (cell if isinstance(cell, float) else cell["exact_call"]) for cell in cells]
        rows.append(f"| {change} | {' | '.join(f'{one:.1f}' for one in shares)} |")
    return rows
