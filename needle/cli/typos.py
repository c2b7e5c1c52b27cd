"""What to say of a setting that doesn't exist: its new name, or the nearest that does."""

from __future__ import annotations

import difflib
from typing import Any

from omegaconf import DictConfig, OmegaConf

RENAMED = {  # settings, and choices, by the names that they had
    "most_tools": "max_tools",
    "serve.most_waiting": "serve.max_waiting",
    "collect.most_tools": "collect.max_tools",
    "data.augment.most_strangers": "data.augment.max_strangers",
    "arm": "loss",
    **{
        f"experiment=needle_26m{part}": "recipe=needle_26m"
        for part in ("", "_more", "_names", "_invented", "_final", "_pointing", "_annealed")
    },
    "teacher=gemini": "service=gemini",
    "teacher=openai": "service=openai",
    **{
        f"teacher.{name}": f"service.{name}"
        for name in ("model", "base_url", "key_file", "thinking", "timeout", "project", "location")
    },
}


def renamed(word: str) -> str | None:
    """A sentence about a word of the command line that says something by an old name; None for any other."""
    key = word.partition("=")[0].lstrip("+~")
    old = next((old for old in (word, key) if old in RENAMED), None)
    return None if old is None else f"'{old}' is called '{RENAMED[old]}' now"


def missing_key(config: DictConfig, key: str) -> str | None:
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        names = [str(name) for name in node] if isinstance(node, DictConfig) else []
        if isinstance(node, DictConfig) and part not in node:
            if not OmegaConf.is_struct(node):
                return None
            where = ".".join(parts[:depth])
            near = difflib.get_close_matches(part, names, 1, 0.5)
            hint = (
                f"did you mean '{'.'.join([*parts[:depth], near[0]])}'?"
                if near
                else f"{where or 'the settings'} has: {', '.join(sorted(names))}"
            )
            return f"there is no setting '{key}'; {hint}"
        if not isinstance(node, DictConfig):
            return None
        node = node._get_node(part)
    return None
