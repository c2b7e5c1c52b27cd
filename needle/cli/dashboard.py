"""`needle dashboard`: saves the W&B workspace of a project. `needle dashboard tracker.project=needle
tracker.entity=me`"""

from __future__ import annotations

from collections.abc import Sequence

from needle.cli.app import launch
from needle.cli.say import console
from needle.config import Settings
from needle.judging.dashboard import build_workspace


def run(config: Settings, words: Sequence[str]) -> None:
    if not config.tracker.entity:
        raise ValueError("give tracker.entity, the W&B user or team that the project belongs to")
    workspace = build_workspace(config.tracker.project, config.tracker.entity)
    from wandb.errors import Error  # the extra is there: the workspace needs it

    try:
        workspace.save()
    except Error as error:
        raise ValueError(f"W&B doesn't take the workspace: {error}") from error
    console.print(f"[bold]{workspace.url}[/]")


def main() -> None:
    launch("dashboard", run)
