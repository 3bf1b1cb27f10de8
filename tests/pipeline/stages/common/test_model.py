"""Restoring the model from its record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from model_artifacts.errors import ArtifactError, RecordError, SourceError
from model_artifacts.sessions.torch_model import read_weights
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import put_in_fastest_layout, restore_model
from tests.support import factories, odd_networks, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn


def test_model_is_restored(built: Project) -> None:
    """The restored model has the fitted head and the stored weights."""
    model = restore_model(built)

    stored = read_weights(built.paths.weights)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_nothing_to_restore(write_config: Callable[[str], Path]) -> None:
    """Without the source stage's record the command that makes it is named."""
    project = Project.load(write_config(factories.configuration()), STAGES)

    with pytest.raises(RecordError, match="python -m pipeline source tiny"):
        restore_model(project)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"x" + data[1:]], ids=["cut", "changed"])
def test_damaged_weights_are_not_restored(copied: Path, damage: Callable[[bytes], bytes]) -> None:
    """Stored weights that are damaged are an error of the pipeline's own, not of the library's."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.weights.write_bytes(damage(project.paths.weights.read_bytes()))

    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        restore_model(project)


def test_removed_weights_are_not_restored(copied: Path) -> None:
    """Stored weights that were removed are an error of the pipeline's own."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.weights.unlink()

    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        restore_model(project)


@pytest.mark.parametrize("factory", ["three_classes", "feature_map"])
def test_factory_that_has_changed(copied: Path, monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    """A factory that gives another network now is a source error: the stored weights do not fit it."""
    monkeypatch.setattr(tiny_model, "make", getattr(factories, factory))

    with pytest.raises(SourceError):
        restore_model(Project.load(copied / "pipeline.yaml", STAGES))


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        (odd_networks.Plain, torch.channels_last),
        (odd_networks.Viewing, torch.contiguous_format),
        (odd_networks.Striding, torch.contiguous_format),
    ],
)
def test_a_layout_that_changes_the_network_is_not_taken(kind: type[nn.Module], layout: torch.memory_format) -> None:
    """A `view` that fails in channels_last, or strides that mean something else there, keep the weights contiguous."""
    model, images = kind().eval(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(images)

    assert put_in_fastest_layout(model, images) is layout
    torch.testing.assert_close(model(images.contiguous(memory_format=layout)), expected, rtol=1e-4, atol=1e-5)
