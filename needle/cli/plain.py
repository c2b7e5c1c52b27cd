"""Settings of the form key=value for commands that do without Hydra, with the same words about typos."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from needle.cli.typos import missing_key, renamed

S = TypeVar("S")


def read_settings(schema: type[S], words: Sequence[str], command: str) -> S | None:
    """The settings that the words of a command line say; None after printing what was asked for, by `--help` or
    `--cfg job`.

    Raises:
        ValueError: a word that isn't a setting, or a value that the setting can't have.
    """
    defaults: Any = OmegaConf.structured(schema)
    OmegaConf.set_struct(defaults, True)
    if {"-h", "--help"} & set(words):
        text = " ".join((inspect.getdoc(schema) or "").split())
        print(f"usage: needle {command} [key=value ...]\n\n{text}\n\n{OmegaConf.to_yaml(defaults)}", end="")
        return None
    given = [word for word in words if not word.startswith("-") and "=" in word]
    for word in given:
        problem = renamed(word) or missing_key(defaults, word.partition("=")[0].lstrip("+"))
        if problem:
            raise ValueError(problem)
    stray = [word for word in words if word not in given and word not in ("--cfg", "job")]
    if stray:
        raise ValueError(f"can't read '{stray[0]}'; expected settings of the form key=value")
    try:
        merged = OmegaConf.merge(defaults, OmegaConf.from_dotlist(list(given)))
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(str(error).splitlines()[0]) from error
    assert isinstance(merged, DictConfig)
    assert isinstance(result, schema)
    if "--cfg" in words:
        print(OmegaConf.to_yaml(merged), end="")
        return None
    return result
