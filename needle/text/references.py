"""Where a reference leads: through objects and arrays, to an anchor, or to a definition of its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from needle.text.keywords import DEFINITIONS

MAX_DEPTH = 24


def followed(start: Any, path: str) -> Any:
    """What a JSON pointer leads to, through objects and arrays, or what has this `$anchor`. Raises `LookupError`."""
    if path and not path.startswith("/"):
        return dict(anchors(start))[path]
    here = start
    for part in path.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, list) and part.isdigit():
            here = here[int(part)]
        elif isinstance(here, Mapping):
            here = here[part]
        else:
            raise LookupError(part)
    return here


def anchors(node: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    if depth > 2 * MAX_DEPTH:
        return
    if isinstance(node, Mapping):
        for key in ("$anchor", "$dynamicAnchor", "$id"):
            if isinstance(node.get(key), str):
                yield node[key].lstrip("#"), node
    for value in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from anchors(value, depth + 1)


def definitions(node: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything that is defined for references, wherever it stands."""
    if depth > 2 * MAX_DEPTH or not isinstance(node, Mapping | list):
        return
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if key in DEFINITIONS and isinstance(value, Mapping):
            yield from value.items()
        yield from definitions(value, depth + 1)
