"""What all commands share: Hydra with a helpful word about typos, one line for an error, and progress."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from needle.cli.say import console, fail, missing_package
from needle.cli.sweep import Book, Entry
from needle.cli.typos import missing_key, renamed
from needle.config import Settings, settings
from needle.data.sources import SETS
from needle.judging.study import arm_folder
from needle.students.build import FAMILIES

CONFIGS = "pkg://needle_conf"


def register() -> None:
    """The typed settings, the students' defaults by family, and a choice of data for each known set."""
    schema = OmegaConf.structured(Settings)
    OmegaConf.set_struct(schema.data.limits, False)  # its keys are the user's sources
    store = ConfigStore.instance()
    store.store(name="schema", node=schema)
    for family, defaults in FAMILIES.items():
        store.store(group="family", name=family, node=defaults)
    for name in SETS:
        store.store(group="data", name=name, node={"kind": "set", "name": name})


Command = Callable[[Settings, Sequence[str]], float | None]
"""A command: it gets its settings, and the words of the command line that said them."""


def launch(command: str, run: Command) -> None:
    """Runs a command as a Hydra app, or with -m as a sweep of it. Errors of the user's making end in one line and exit
    code 2."""
    register()
    words = given_settings(sys.argv[1:])
    problem = misspelt(words)
    if problem:
        fail(problem)
    sys.argv[0] = f"needle {command}"
    hydra_config = _hydra_config(words)
    book = None
    many = bool({"-m", "--multirun"} & set(sys.argv)) or str(hydra_config.mode or "").endswith("MULTIRUN")
    problem = None if many else _sweeps(words)
    if problem:
        fail(problem)
    if many:
        book = _plan(command, words, hydra_config)
        sys.argv.append(f"hydra.sweep.dir='{book.folder}'")
    interrupts = Interrupts()
    try:
        body = functools.partial(_body, run, words, interrupts)
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name="config")(body)()
    except KeyboardInterrupt:
        console.print("[yellow]interrupted[/]; the same command goes on where it stopped")
        sys.exit(130)
    finally:
        if book:
            console.print(f"[bold]{book.summary()}[/]; {book.folder}")
            for choice, reason in book.missing():
                console.print(f"  missing: {' '.join(choice)}: {reason}", markup=False)
    if book and book.missing():
        sys.exit(1)


class Interrupts:
    """Hears Ctrl-C. While Hydra composes, which takes a moment, nothing is raised: it would come out as another error
    with a traceback. `inside` a run it is raised at once."""

    def __init__(self) -> None:
        self.heard, self.running = False, False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        if self.running:
            raise KeyboardInterrupt

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Around a run; raises what was heard before it."""
        self.running = True
        try:
            if self.heard:
                raise KeyboardInterrupt
            yield
        finally:
            self.running = False


def _body(run: Command, words: Sequence[str], interrupts: Interrupts, config: DictConfig) -> float | None:
    """One run. In a sweep an error is written down and the next arm goes on; None is what a sweeper takes for a
    failure."""
    with interrupts.inside():
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN:
            return _arm(run, config, Book(Path(hydra_config.sweep.dir)), list(hydra_config.overrides.task))
        try:
            return run(settings(config), words)
        except (ValueError, OmegaConfBaseException, FileNotFoundError) as error:
            fail(str(error))
        except ModuleNotFoundError as error:
            fail(missing_package(error))


def _arm(run: Command, config: DictConfig, book: Book, overrides: Sequence[str]) -> float | None:
    choice = book.choice(overrides)
    entry = Entry(choice, "running", started=time.time())
    book.write(entry)
    console.print(f"[bold]{' '.join(choice)}[/]  ({book.summary()})")
    try:
        typed = settings(config)
        if typed.output:
            typed.output = str(arm_folder(Path(typed.output), choice))
        if typed.tracker.group is None:
            typed.tracker.group = book.folder.name
        if typed.tracker.arm is None:
            typed.tracker.arm = next(
                (word.partition("=")[2] for word in overrides if word.startswith(("arm=", "loss="))), None
            )
        entry.output = str(typed.output or "")
        result = run(typed, overrides)
        entry.state, entry.result = "finished", result
        return result
    except (Exception, KeyboardInterrupt) as error:  # an arm's error, whatever it is, is not the other arms'
        entry.state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        entry.error = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            entry.error = ""
            raise
        console.print(f"failed: {' '.join(choice)}: {entry.error}", style="red", markup=False)
        return None
    finally:
        entry.seconds = round(time.time() - entry.started, 1)
        book.write(entry)


def _hydra_config(words: Sequence[str]) -> Any:
    """Hydra's own settings for these words; of a sweep's words, the first value each."""
    return compose(
        [_single(override) for override in OverridesParser.create().parse_overrides(list(words))], with_hydra=True
    ).hydra


def _plan(command: str, words: Sequence[str], hydra_config: Any) -> Book:
    """The sweep's book, with all arms where the sweeper knows them beforehand."""
    if "ray" in str(hydra_config.launcher._target_):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    trials = hydra_config.sweeper.get("n_trials")
    grid = [] if trials else sweep_grid(words)
    constant = [
        str(override.input_line)
        for override in OverridesParser.create().parse_overrides(list(words))
        if not override.is_sweep_override()
    ]
    return Book.plan(Path("outputs/sweeps"), command, words, constant, grid, trials or len(grid))


def sweep_grid(words: Sequence[str]) -> list[list[str]]:
    """The overrides of each arm: the product of the sweep's parameters, the last one varying fastest, as Hydra does
    it."""
    parser = OverridesParser.create()
    params = dict(_hydra_config([word for word in words if not word.startswith("-")]).sweeper.params or {})
    given = {override.key_or_group: override for override in parser.parse_overrides(list(words))}
    axes = {
        str(key): parser.parse_overrides([f"{key}={value}"])[0] for key, value in params.items() if key not in given
    }
    axes |= {key: override for key, override in given.items() if override.is_sweep_override()}
    if not axes:
        raise ValueError(
            "the sweep has no axis: give hydra.sweeper.params in a file of conf/sweep, or values with commas,"
            " train.seed=0,1,2"
        )
    values = [
        [f"{key}={value}" for value in (o.sweep_string_iterator() if o.is_sweep_override() else [o.value()])]
        for key, o in axes.items()
    ]
    return [list(choice) for choice in itertools.product(*values)]


def given_settings(words: Sequence[str]) -> list[str]:
    """The settings on a command line, without Hydra's own flags and their values."""
    return [word for word in words if "=" in word and not word.startswith("-")]


def compose(overrides: Sequence[str], with_hydra: bool = False) -> DictConfig:
    """A composed config, as `needle train` would see it under these overrides. Keeps Hydra's own state as it was."""
    register()
    hydra_state = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module("needle_conf", version_base="1.3"):
            return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)
    finally:
        GlobalHydra.instance().hydra = hydra_state


def _unreadable(word: str, why: str) -> str:
    """A sentence about a setting that isn't in Hydra's grammar, with the quotes that would make it so."""
    key, _, value = word.partition("=")
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f"can't read the setting {word}: {why}; for a text with such signs, quote it: '{key}=\"{quoted}\"'"


def _sweeps(words: Sequence[str]) -> str | None:
    """A sentence about a setting with several values outside a sweep."""
    for override in OverridesParser.create().parse_overrides(list(words)):
        if override.is_sweep_override():
            key, _, value = str(override.input_line).partition("=")
            return (
                f"'{override.input_line}' are several values: quote them where they are one text, '{key}=\"{value}\"',"
                f" write '{key}=[{value}]' for a list, or add -m to run them all"
            )
    return None


def misspelt(words: Sequence[str]) -> str | None:
    """A sentence about the first override whose key doesn't exist, with the nearest that does; None when all are
    fine."""
    old = next((problem for word in words if (problem := renamed(word))), None)
    if old:
        return old
    overrides = []
    for word in words:
        try:
            overrides += OverridesParser.create().parse_overrides([word])
        except HydraException as error:
            return _unreadable(word, str(error).splitlines()[0])
    try:
        config = compose([_single(o) for o in overrides if _is_group(o)])
    except HydraException as error:
        return _bad_choice(str(error))
    for override in overrides:
        if (
            _is_group(override)
            or override.package
            or override.is_add()
            or override.is_force_add()
            or override.is_delete()
            or override.key_or_group.startswith("hydra")
        ):
            continue
        problem = missing_key(config, override.key_or_group)
        if problem:
            return problem
    try:
        compose([_single(o) for o in overrides])
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        hint = "; a list is written in brackets: key=[value]" if "not a ListConfig" in reason else ""
        return f"{str(error).splitlines()[0]}: {reason}{hint}"
    return None


GROUPS = frozenset(entry.name for entry in files("needle_conf").iterdir() if entry.is_dir())


def _is_group(override: Override) -> bool:
    return override.key_or_group in GROUPS or override.key_or_group.startswith("hydra/")


def _single(override: Override) -> str:
    """The override as one run would get it: of a sweep, its first value."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return f"{override.get_key_element()}={value.start}"
    if override.is_sweep_override():
        return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
    return str(override.input_line)


def _bad_choice(message: str) -> str:
    """Hydra's several lines about a choice that doesn't exist, as one sentence."""
    found = re.search(r"Could not find '([^/']+)/([^']+)'", message)
    options = re.findall(r"^\t(\S+)$", message.split("Config search path")[0], re.MULTILINE)
    if not found:
        return message.splitlines()[0]
    group, choice = found.groups()
    near = difflib.get_close_matches(choice, options, 1, 0.5)
    return (
        f"there is no {group}={choice}; "
        + (f"did you mean {group}={near[0]}? " if near else "")
        + f"choices: {', '.join(options)}"
    )
