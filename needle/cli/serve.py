"""`needle serve`: answers POST /tool-call. `needle serve checkpoint=outputs/demo/best serve.port=8000`

Without Hydra, so that serving needs only what answers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import uvicorn

from needle.cli.plain import read_settings
from needle.cli.say import console, fail
from needle.engine.open import open_engine
from needle.serve.app import ServeConfig, create_app


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
    engine = open_engine(
        config.checkpoint, config.decoding, config.precision, config.max_tools, alone=True, backend=config.backend
    )
    console.print(
        f"serving {engine.model.folder} in {engine.backend.name} on http://{config.serve.host}:{config.serve.port}"
        " (POST /tool-call, GET /health, docs at /docs)",
        markup=False,
    )
    app = create_app(engine, config.serve)
    uvicorn.run(app, host=config.serve.host, port=config.serve.port, log_level="warning")


def main() -> None:
    try:
        config = read_settings(ServeSettings, sys.argv[1:], "serve")
        if config is not None:
            run(config)
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
