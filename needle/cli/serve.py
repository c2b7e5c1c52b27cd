"""`needle serve`: answers POST /tool-call. `needle serve checkpoint=outputs/demo/best serve.port=8000`"""

from __future__ import annotations

import uvicorn

from needle.cli.app import console, launch
from needle.config import Settings, build_engine
from needle.serve.app import create_app


def run(config: Settings) -> None:
    engine = build_engine(config, alone=True)
    console.print(
        f"serving {engine.checkpoint.folder} on http://{config.serve.host}:{config.serve.port} (POST /tool-call, GET"
        " /health, docs at /docs)",
        markup=False,
    )
    uvicorn.run(create_app(engine, config.serve), host=config.serve.host, port=config.serve.port, log_level="warning")


def main() -> None:
    launch("serve", run)
