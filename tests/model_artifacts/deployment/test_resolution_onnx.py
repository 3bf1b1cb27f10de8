"""Resolution of ONNX files: the runtime that they need, and the devices that they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.deployment.requirements import Requirements
from model_artifacts.deployment.resolution import LEAST_ONNXRUNTIME, Resolution, Tier, resolve_entry
from model_artifacts.errors import ResolveError
from model_artifacts.records import Tool
from tests.conftest import REPOSITORY
from tests.support.deployables import CPU, MODULE_TARGET, engine, machine
from tests.support.hosts import H100, L4
from tests.support.manifests import entry, manifest, timing

if TYPE_CHECKING:
    from model_artifacts.records import DeploymentHost, ManifestEntry

ONNX = entry("onnx", timing(1, 0.4), device=CPU)


def taken(made: ManifestEntry, on: DeploymentHost) -> Resolution:
    """Return the resolution of one artifact."""
    return resolve_entry(manifest(made), on, Requirements())


def test_onnx_on_a_gpu_needs_onnxruntime_with_cuda_and_nothing_else() -> None:
    """It runs without torch and on any GPU, first on one of the type that it was validated on."""
    made = ONNX.model_copy(update={"target": MODULE_TARGET, "gpu": engine("e").gpu})
    there = machine(L4, H100)
    lean = there.model_copy(update={"host": there.host.model_copy(update={"torch": "absent", "flavours": ()})})
    found = taken(made, on=lean)
    assert (found.place, found.latency_ms) == ((Tier.ONNX, H100), 0.4)
    found = taken(made, on=machine(L4, onnxruntime_cuda=True))
    assert (found.place, found.latency_ms) == ((Tier.ONNX, L4), None)
    with pytest.raises(ResolveError, match=r"needs onnxruntime with CUDA, got onnxruntime-gpu 1\.31\.1: .*-gpu\]'`"):
        taken(made, on=machine(H100, onnxruntime_cuda=False))
    with pytest.raises(ResolveError, match="needs an NVIDIA GPU with its driver"):
        taken(made, on=machine())


@pytest.mark.parametrize(
    ("version", "runs"),
    [("1.19.2", False), ("1.20.0", True), ("1.31.0.dev20260101001", True), ("2.0", True), ("unknown", True)],
)
def test_onnx_needs_an_onnxruntime_that_the_extra_takes(version: str, *, runs: bool) -> None:
    """An older one is refused with the extra, whose bound is the same."""
    there = machine(onnxruntime=Tool(name="onnxruntime", version=version))
    if runs:
        assert taken(ONNX, on=there).entry is ONNX
    else:
        with pytest.raises(ResolveError, match=rf"needs onnxruntime 1\.20 or later, got {version}: `pip install"):
            taken(ONNX, on=there)
    bound = ".".join(map(str, LEAST_ONNXRUNTIME))
    assert f'onnxruntime = ["onnxruntime>={bound},' in (REPOSITORY / "pyproject.toml").read_text()
