"""The project's model with its weights. Importing this module imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.sessions.torch_model import assemble

if TYPE_CHECKING:
    from torch import nn

    from pipeline.planning.project import Project


def restore_model(project: Project) -> nn.Module:
    """Return the model with the weights of the source stage, in evaluation mode.

    Raises:
        RecordError: the source stage has not run.
        SourceError: the factory has changed since the source stage ran.
    """
    source = project.source()
    weights = project.file(source.weights)
    return assemble(source.factory, source.replaced_head, source.classes, weights, source.torchvision_weights)
