"""What lies in a folder of artifacts: records, and files that should not be there."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from pipeline.planning.freshness import freshness_of
from pipeline.planning.steps import Stage, Step

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project


def unwhole(project: Project) -> list[str]:
    """Return what is wrong with what lies on disk, but for what is missing, or made from something else than now."""
    found = []
    for path in project.paths.root.rglob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            json.loads(path.read_bytes())
    for step in project.plan.steps:
        reasons = freshness_of(project, step).reasons
        found += [f"{step}: {reason}" for reason in reasons if "not what was made" in reason or "not a valid" in reason]
    return found


def temporaries(folder: Path) -> list[Path]:
    """Return the files that were being written."""
    return [path for path in folder.rglob("*") if path.name.startswith(".writing-")]


def record_paths(project: Project, step: Step) -> list[Path]:
    """Return where a step's records lie."""
    plan, paths = project.plan, project.paths
    one = {
        Stage.SOURCE: lambda: paths.source,
        Stage.DATA: lambda: paths.data,
        Stage.EXPORT: lambda: paths.onnx_record(plan.graph(step.subject)),
        Stage.QUANTIZE: lambda: paths.onnx_record(plan.graph(step.subject)),
        Stage.BUILD: lambda: paths.artifact(plan.variant(step.subject)),
        Stage.VALIDATE: lambda: paths.accuracy(plan.variant(step.subject)),
        Stage.MANIFEST: lambda: paths.manifest,
        Stage.REPORT: lambda: paths.report_record,
    }
    if step.stage in one:
        return [one[step.stage]()]
    return [paths.benchmark(variant) for variant in plan.variants_on(plan.target(step.subject))]
