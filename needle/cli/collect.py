"""`needle collect`: requests and calls from a hosted model, within a budget. `needle collect service=gemini
collect.tools=my_tools.json collect.budget_usd=5`"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from needle.cli.app import launch
from needle.cli.say import console, fail
from needle.collect.catalogue import read_catalogue
from needle.collect.money import find_price
from needle.collect.pipeline import MAX_PLANNED, Collection
from needle.collect.run import confirm, confirmed, finish, read_requests, take_traffic
from needle.collect.run import run as collect
from needle.collect.services.build import build_service
from needle.collect.settings import CollectConfig
from needle.config import Settings

SHOWN = 12  # findings about the tools, or skipped lines, that are printed
PLANNED = (
    "A seeded plan chose tools, values, persona and style; the model wrote the requests; it then answered each by"
    " native function calling without seeing the plan; what isn't valid, doesn't stand in the request or isn't agreed"
    " upon was dropped."
)
LABELLED = "Real requests were answered by native function calling and verified."
TRAFFIC = "The calls of logged requests, verified."


def run(config: Settings, words: Sequence[str]) -> None:
    for name in ("httpx", "httpx2", "google_genai", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)
    options, service = config.collect, config.service
    folder = Path(config.output or "outputs/collected")
    # Logged traffic needs nobody to ask.
    if options.traffic:
        _take_traffic(options, folder)
        return
    if service.kind == "none":
        raise ValueError(
            "to collect data set service=gemini, or service=openai service.base_url=URL for any server that speaks its"
            " API"
        )
    # What is asked about: the tools, and real requests where there are some.
    sources, findings = read_catalogue(Path(options.tools) if options.tools else None)
    errors = [finding for finding in findings if finding.error]
    _say_some([str(finding) for finding in errors or findings])
    if errors and (options.strict or not sources):
        fail(f"{len(errors)} of the tools in {options.tools} can't be used; correct or remove them")
    if errors:
        _say(f"left out {len(errors)} of the tools in {options.tools}, as above (collect.strict=true stops instead)")
    left_out: Counter[str] = Counter()
    requests = (
        read_requests(Path(options.requests), sources, options.max_tools, options.languages[0], left_out)
        if options.requests
        else []
    )
    _say_some([f"left out {count:,} times: {reason}" for reason, count in left_out.most_common()])
    # What it will cost, said and agreed to before anything is sent.
    price = find_price(service.provider, str(service.model), options.price)
    collection = Collection(options, sources, str(service.model), price, requests, service.thinking)
    families = f", {len(collection.unseen)} families of them kept unseen for the test" if collection.unseen else ""
    _say(f"{len(sources):,} tools{families}" + (f", {len(requests):,} requests to label" if requests else ""))
    _say_estimate(collection)
    if options.dry_run:
        _say("dry run: nothing was sent")
        return
    _agree(folder, config)
    # Asking, judging and storing, then everything that a run leaves.
    stopped, known = asyncio.run(collect(collection, lambda: build_service(service, options.concurrency), folder, _say))
    title = f"{Path(options.tools).stem if options.tools else 'built-in catalogue'}: collected calls"
    manifest = finish(
        folder, options, price, f"{service.kind}: {service.model}", LABELLED if requests else PLANNED, known, title
    )
    _summary(manifest, folder, f"${known['dollars']:.4f}")
    if stopped:
        fail(stopped)
    # Fewer than were wanted: say why.
    wanted = len(requests) or options.records
    if not requests and manifest["records"] < wanted:
        _say(
            f"{manifest['records']:,} of the {wanted:,} records that were asked for, after {MAX_PLANNED} planned"
            " items for each; more tools or languages, or collect.phrasings, make room for more"
        )


def _take_traffic(options: CollectConfig, folder: Path) -> None:
    assert options.traffic is not None
    path = Path(options.traffic)
    count, skipped = take_traffic(path, folder, options)
    _say_some([f"skipped: {message}" for message in skipped])
    manifest = finish(
        folder,
        options,
        None,
        "logged traffic",
        TRAFFIC,
        {"lines_skipped": len(skipped)},
        f"{path.stem}: verified calls",
    )
    _summary(manifest, folder, f"{count:,} logged requests")


def _say_estimate(collection: Collection) -> None:
    options, estimate = collection.config, collection.estimate()
    budget = (
        f"the budget is ${options.budget_usd:g} and can't be exceeded"
        if options.budget_usd
        else "no budget is set: collect.budget_usd=5"
    )
    _say(
        f"about {estimate.requests:,} requests to {collection.model}, {estimate.input_tokens / 1e6:.2f}M tokens in and"
        f" {estimate.output_tokens / 1e6:.2f}M out, ${estimate.likely:.2f} (at worst ${estimate.worst:.2f}),"
        f" {estimate.minutes:.0f} minutes; {budget}"
    )
    if options.budget_usd and estimate.likely > options.budget_usd:
        wanted = len(collection.requests) or options.records
        _say(
            f"the budget is likely to suffice for about {wanted * options.budget_usd / estimate.likely:,.0f} of"
            f" {wanted:,} records; collecting stops there"
        )


def _agree(folder: Path, config: Settings) -> None:
    """Asks before money is spent, once for each run and budget."""
    if not config.collect.yes and not confirmed(folder, config.collect):
        if not sys.stdin.isatty():
            raise ValueError(
                "this would send requests that cost money, and there is nobody to ask; look at collect.dry_run=true,"
                " then give collect.yes=true"
            )
        if input("Send them? [y/N] ").strip().lower() not in ("y", "yes"):
            raise ValueError("nothing was sent")
    confirm(folder, config.collect)


def _say(text: str) -> None:
    console.print(text, markup=False)


def _say_some(lines: Sequence[str]) -> None:
    """The first lines, and how many more there are."""
    for line in lines[:SHOWN]:
        _say(line)
    if len(lines) > SHOWN:
        _say(f"… and {len(lines) - SHOWN} more")


def _summary(manifest: dict[str, Any], folder: Path, cost: str) -> None:
    table = Table(title=f"{folder}: {manifest['records']:,} records, {cost}", title_justify="left", show_header=False)
    for reason, count in manifest["funnel"].items():
        table.add_row(reason, f"{count:,}", manifest["reasons"].get(reason, ""))
    console.print(table)
    _say(
        f"look through them in {folder / 'records.html'}; train on them: needle train data=jsonl"
        f" data.train=[{folder}/train.jsonl.gz] data.validation=[{folder}/validation.jsonl.gz]"
    )


def main() -> None:
    launch("collect", run)
