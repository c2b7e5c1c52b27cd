"""The W&B workspace of a project, defined in code: the charts that one looks at when arms are compared.

Needs the extra `wandb`, and an account only for saving it: `needle dashboard tracker.project=needle tracker.entity=ME`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

SECTIONS: dict[str, dict[str, list[str]]] = {
    "Distillation against fine-tuning": {
        "exact call on validation": ["validation/exact_call"],
        "tool name": ["validation/tool_name"],
        "false calls": ["validation/false_call_rate"],
        "argument F1": ["validation/argument_f1"],
    },
    "Loss": {
        "loss": ["train/loss"],
        "hard: cross-entropy with the gold answer": ["train/hard"],
        "soft: divergence from the teacher": ["train/soft"],
        "the teacher's entropy": ["train/teacher_entropy"],
        "the teacher's mass that the student can't write": ["train/teacher_mass_lost"],
        "gradient norm and learning rate": ["train/gradient_norm", "train/lr"],
    },
    "Throughput": {
        "records per second": ["train/records_per_second"],
        "target tokens per second": ["train/tokens_per_second"],
    },
}


def build_workspace(project: str, entity: str) -> Any:
    """A `wandb_workspaces` workspace, not saved yet: runs grouped by sweep and arm, learning curves, samples.

    Raises:
        ValueError: the extra isn't installed.
    """
    try:
        panels, workspaces, expr = (
            import_module(f"wandb_workspaces.{name}") for name in ("reports.v2", "workspaces", "expr")
        )
    except ImportError as error:
        raise ValueError(
            "a dashboard needs the package wandb-workspaces: pip install '.[wandb]' in the clone"
        ) from error
    sections = [
        workspaces.Section(
            name=name,
            is_open=True,
            panels=[panels.LinePlot(title=title, x="Step", y=list(metrics)) for title, metrics in charts.items()],
        )
        for name, charts in SECTIONS.items()
    ]
    best = panels.BarPlot(title="best exact call on validation", metrics=["validation_exact_call"])
    samples = panels.WeavePanelSummaryTable(table_name="validation/samples")
    sections.append(workspaces.Section(name="Arms", is_open=True, panels=[best, samples]))
    grouping = workspaces.RunsetSettings(groupby=[expr.Metric("Group"), expr.Metric("JobType")])
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="Needle: distillation against fine-tuning",
        sections=sections,
        runset_settings=grouping,
    )
