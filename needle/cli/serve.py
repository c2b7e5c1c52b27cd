"""`needle serve`: answers POST /tool-call. `needle serve checkpoint=outputs/demo/best serve.port=8000`

Without Hydra, so that serving needs only what answers.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field

import uvicorn
from fastapi import FastAPI
from omegaconf import OmegaConf

from needle.cli.plain import read_settings
from needle.cli.say import console, fail
from needle.engine.decode import Engine
from needle.engine.open import open_engine
from needle.serve.app import create_app
from needle.serve.desk import ServeConfig

SETTINGS = "NEEDLE_SERVE"  # the environment variable by which workers are told


@dataclass
class ServeSettings:
    """`checkpoint` a folder, the released student when there is none; `decoding` constrained or free; `backend` onnx
    (what `needle export` wrote beside the weights), torch, or auto: onnx if there is an export; `precision` float32,
    bfloat16, mixed, int8, or auto: what is fastest on this processor; of more than `max_tools` tools the student is
    shown those that fit best, 0 shows all."""

    checkpoint: str | None = None
    decoding: str = "constrained"
    backend: str = "auto"
    precision: str = "auto"
    max_tools: int = 0
    serve: ServeConfig = field(default_factory=ServeConfig)


def run(config: ServeSettings) -> None:
    engine, serve = _engine(config), config.serve
    workers = f", {serve.workers} workers" if serve.workers > 1 else ""
    console.print(
        f"serving {engine.model.folder} in {engine.backend.name}{workers} on http://{serve.host}:{serve.port}"
        " (POST /tool-call, GET /health, docs at /docs)",
        markup=False,
    )
    if serve.workers == 1:
        uvicorn.run(create_app(engine, serve), host=serve.host, port=serve.port, log_level="warning")
        return
    os.environ[SETTINGS] = json.dumps(asdict(config))
    application = f"{__name__}:application"
    uvicorn.run(application, factory=True, workers=serve.workers, host=serve.host, port=serve.port, log_level="warning")


def application() -> FastAPI:
    """What each of several workers answers with: the settings come from the process that started it."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ServeSettings), json.loads(os.environ[SETTINGS])))
    assert isinstance(config, ServeSettings)
    return create_app(_engine(config), config.serve)


def _engine(config: ServeSettings) -> Engine:
    return open_engine(
        config.checkpoint, config.decoding, config.precision, config.max_tools, alone=True, backend=config.backend
    )


def main() -> None:
    try:
        config = read_settings(ServeSettings, sys.argv[1:], "serve")
        if config is not None:
            run(config)
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
