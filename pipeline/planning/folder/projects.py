"""A configuration → its projects, one for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_artifacts.host.environment import read_host
from pipeline.planning.folder.configurations import read_place
from pipeline.planning.paths import Paths
from pipeline.planning.plan import find_named
from pipeline.planning.project import Project

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model_artifacts.records import Variant
    from pipeline.planning.spec import StageSpec
    from pipeline.planning.steps import Step


def load_projects(
    place: Path, stages: tuple[StageSpec[Any], ...], artifacts: Path | None = None
) -> tuple[Project, ...]:
    """Read a configuration, or all of a folder, and the record of the farm.

    Args:
        place: the configuration's file, or a folder of such files.
        stages: the table of stages.
        artifacts: the artifacts folder; by default the one that the configuration names, relative to its file.

    Returns:
        a project for each of its models, in their order.

    Raises:
        UsageError: it cannot be read, or the folder has no configuration.
        ConfigError: the configuration is wrong.
        UnknownFarmError: nobody has looked at the farm yet, or the configuration names others of it now.
        FarmError: this is a worker of the farm, and not what it was when that was looked at.
    """
    host = read_host()
    found = read_place(place, host)
    root, several = artifacts or found[0].artifacts, len(found) > 1
    return tuple(
        Project.of(config, host, Paths(root, config.model.name, several), stages, file).named_by(place)
        for config, file in found
    )


def project_of(projects: Sequence[Project], step: Step) -> Project:
    """Return the project of a step.

    Raises:
        UsageError: no project has such a stage or subject; the message lists the closest.
    """
    subjects = projects[0].schedule.spec(step.stage).subjects
    known = {name: project for project in projects for name in subjects.named(project.plan)}
    return find_named(step.subject, known, subjects.noun)


def project_with(projects: Sequence[Project], variant_id: str) -> tuple[Project, Variant]:
    """Return the project of a variant, and the variant.

    Raises:
        UsageError: no project has it; the message lists the closest.
    """
    known = {name: (project, item) for project in projects for name, item in project.plan.variants_by_id.items()}
    return find_named(variant_id, known, "variant")
