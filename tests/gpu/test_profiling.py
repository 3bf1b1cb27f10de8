"""Profiles on a real GPU: an engine's layers, and the kernels of every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import installed
from pipeline.records import LayerProfile, Outcome
from pipeline.stages.profile.stage import profile_variant

if TYPE_CHECKING:
    from pipeline.planning.project import Project
    from pipeline.records import Artifact


def check_kernels(profile: LayerProfile) -> None:
    """Check the facts that hold for every list of kernels."""
    assert profile.outcome is Outcome.DONE, profile.reason
    assert profile.functions, profile.reason
    assert sum(item.share for item in profile.functions) == pytest.approx(1, abs=0.02)
    assert max(item.calls for item in profile.functions) >= profile.runs


def test_an_engine_tells_its_layers_and_kernels(project: Project, fixed: Artifact) -> None:
    """Every layer has a time, convolutions their type, and the kernels are those that the GPU ran."""
    profile = profile_variant(project, fixed.variant)
    assert profile.layers
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1, abs=0.02)
    assert any(layer.precision for layer in profile.layers), "the profiler's names are not the inspector's"
    if installed("torch"):
        check_kernels(profile)


@pytest.mark.skipif(not installed("torch"), reason="torch is not installed here")
def test_a_module_tells_its_kernels(modules: Project) -> None:
    """The profile of an eager module has kernels, although it has no layers."""
    target = modules.plan.module_targets[0].name
    check_kernels(profile_variant(modules, modules.plan.variant(f"{modules.plan.model}/{target}/eager-fp32")))
