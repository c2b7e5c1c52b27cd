"""Which service `needle collect` asks, and a client for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from needle.collect.services.hosted import HostedTeacher

KINDS = ("none", "gemini", "openai")


@dataclass
class ServiceConfig:
    """`model`, `base_url` in place of the service's own, `key_file` in place of the environment's key, `thinking` how
    much the model may think, `timeout` in seconds, `project` and `location` for Gemini on Vertex AI."""

    kind: str = "none"
    model: str | None = None
    base_url: str | None = None
    key_file: str | None = None
    thinking: str | None = None
    timeout: float = 60.0
    project: str | None = None
    location: str = "global"

    @property
    def provider(self) -> str:
        """What the price list calls it."""
        return "google" if self.kind == "gemini" else self.kind

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"service.kind is '{self.kind}'; expected one of {', '.join(KINDS)}")
        if self.kind != "none" and not self.model:
            raise ValueError(f"service={self.kind} needs service.model, the name of the model to ask")


def build_service(service: ServiceConfig, concurrency: int) -> HostedTeacher:
    """The client of a service, made where an event loop runs, for so many requests at once.

    Raises:
        ValueError: its address or key is missing.
    """
    assert service.kind != "none"
    assert service.model is not None
    connections = concurrency + 8
    if service.kind == "openai":
        from needle.collect.services.openai import OpenAI

        if not service.base_url:
            raise ValueError(
                "service=openai needs service.base_url, which ends in the API's version:"
                " service.base_url=http://127.0.0.1:8080/v1"
            )
        key = _secret(service.key_file, ("OPENAI_API_KEY",))
        return OpenAI(service.model, key, service.base_url, service.timeout, connections)
    from needle.collect.services.gemini import Gemini

    vertex = (service.project, service.location) if service.project else None
    key = None if vertex else _secret(service.key_file, ("GEMINI_API_KEY", "GOOGLE_API_KEY"))
    if key is None and vertex is None:
        raise ValueError(
            "Gemini needs a key: set the environment variable GEMINI_API_KEY, or service.key_file=FILE (a file with the"
            " key alone)"
        )
    return Gemini(service.model, key, service.base_url, service.timeout, vertex, connections)


def _secret(path: str | None, names: Sequence[str]) -> str | None:
    """A key from its file, or from the first of some environment variables. It is handed to the client and goes nowhere
    else."""
    if path:
        try:
            return Path(path).expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"service.key_file is {path}, which can't be read: {error.strerror}") from error
    return next((os.environ[name].strip() for name in names if os.environ.get(name, "").strip()), None)
