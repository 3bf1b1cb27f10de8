"""The tiny project on an H100, and builds of it that have finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import Artifact, Outcome, tensor_spec
from pipeline.stages import STAGES
from tests.support.hosts import H100, host

if TYPE_CHECKING:
    from model_artifacts.records import Variant


def on_an_h100(built: Project) -> Project:
    """Return the finished tiny project, planned for a host with an H100."""
    return Project(Plan(built.config, host(H100)), built.paths, STAGES)


IMAGES = (tensor_spec("image", (3, 32, 32)),)
"""The inputs of its network."""
TORCH = "sm90-h100-80gb-hbm3-torch2.11"


def finished(project: Project, variant: Variant) -> Artifact:
    """Return the record of a build that went well."""
    source = project.source()
    return Artifact(
        key=source.key, built_at=source.built_at, variant=variant, outcome=Outcome.DONE, file=source.weights
    )
