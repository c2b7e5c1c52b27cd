"""One function over many pieces of work: in this process, in several on this machine, or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Workers:
    """Use as a context manager. `processes` 1 works here; ray takes what the cluster at RAY_ADDRESS has, or this
    machine."""

    def __init__(self, engine: str = "local", processes: int = 1) -> None:
        self.engine, self.processes = engine, processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.engine == "ray":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray

            ray.init(
                address=os.environ.get("RAY_ADDRESS"),
                ignore_reinit_error=True,
                include_dashboard=False,
                log_to_driver=False,
            )
        elif self.processes > 1:
            self._pool = ProcessPoolExecutor(self.processes, multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *reason: object) -> None:
        if self._pool:
            self._pool.shutdown()
        if self.engine == "ray":
            import ray

            ray.shutdown()

    def map(self, function: Callable[[A], B], work: Iterable[A]) -> Iterator[B]:
        """Results in the order of the work."""
        if self.engine == "ray":
            yield from _on_ray(function, work)
        elif self._pool:
            yield from self._pool.map(function, work)
        else:
            yield from map(function, work)


def _on_ray(function: Callable[[A], B], work: Iterable[A]) -> Iterator[B]:
    """Keeps a few pieces a core under way, so that neither the cluster nor the work has to fit into memory."""
    import ray

    def call(piece: A) -> B:  # ray takes plain functions alone
        return function(piece)

    remote: Any = ray.remote(call)
    resources: Any = ray.cluster_resources  # without annotations
    most = 4 * max(int(resources().get("CPU", 1)), 1)
    under_way: deque[Any] = deque()
    for piece in work:
        under_way.append(remote.remote(piece))
        if len(under_way) >= most:
            yield ray.get(under_way.popleft())
    while under_way:
        yield ray.get(under_way.popleft())
