"""Torch's modules on a real GPU: compiled, saved, loaded again, proven."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.host.environment import installed
from model_artifacts.records import Backend, Graph, Layout, Precision
from pipeline.config.settings import Gate
from pipeline.planning.paths import Paths
from pipeline.planning.plan import Arithmetic
from pipeline.planning.project import Project
from pipeline.records import Artifact, Outcome
from pipeline.stages import STAGES
from pipeline.stages.common.opening import gpu_of, open_module
from pipeline.stages.validate.gates import bounds_of, judge_distance
from pipeline.stages.validate.metrics import largest_sample, measure
from tests.gpu.conftest import needs_torch_tensorrt
from tests.support.logits import FP16, images

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.skipif(not installed("torch"), reason="torch is not installed here")

SAVED = ("dynamo-fp16-b1-ws64MiB", "dynamo-fp16-b1-2-4-ws64MiB")
COMPILED = [
    pytest.param(name, marks=needs_torch_tensorrt)
    for name in (*SAVED, "dynamo-fp32-b1-ws64MiB", "torch_compile-fp16-b1-ws64MiB")
]


def artifact_of(project: Project, name: str) -> Artifact:
    """Return the build of the variant of this name."""
    target = project.plan.module_targets[0].name
    return project.artifact(project.plan.variant(f"{project.plan.model}/{target}/{name}"))


@pytest.mark.parametrize("name", [*COMPILED, "eager-fp32", "eager-fp16-channels_last", "inductor-fp16"])
def test_every_module_passes_its_gate(modules: Project, name: str) -> None:
    """A module in a fresh process keeps its precision's gate with images in every layout that it takes."""
    artifact = artifact_of(modules, name)
    assert artifact.outcome is Outcome.DONE, artifact.reason
    report = modules.accuracy(artifact.variant)
    assert report.outcome is Outcome.DONE, report.reason
    assert report.passed, report.reason
    looked = "relative L2 of images in channels_last" in {check.metric for check in report.checks}
    assert looked == (Layout.CHANNELS_LAST in artifact.variant.backend.layouts)


@pytest.mark.parametrize("name", COMPILED)
def test_a_module_is_tensorrt_and_proves_its_precision(modules: Project, name: str) -> None:
    """The whole tiny network becomes engines, whose inspector reports their precision."""
    artifact = artifact_of(modules, name)
    assert artifact.module is not None
    assert (artifact.module.segments, artifact.module.torch_operators) == (1, ())
    shown = {share.precision for share in artifact.module.layers}
    assert shown <= ({Precision.FP16} if "fp16" in name else {Precision.FP32, Precision.TF32})
    assert shown


@pytest.mark.parametrize("name", [*COMPILED, "eager-fp16-channels_last"])
@pytest.mark.parametrize("layout", list(Layout))
def test_a_cuda_graph_gives_the_same(modules: Project, name: str, layout: Layout) -> None:
    """A replayed graph gives the logits of its kernels, and the next batch gives its own logits."""
    artifact = artifact_of(modules, name)
    size = 1 if artifact.variant.profile and artifact.variant.profile.max == 1 else 2
    with open_module(modules, artifact) as run:
        for batch in (images(modules, size), images(modules, 10)[-size:]):
            plain = run(batch, layout)
            run.upload(batch, layout)
            run.enqueue()
            assert np.array_equal(run.result(), plain)
        assert run.graph_trouble == ""


@needs_torch_tensorrt
def test_a_damaged_module_is_refused_before_it_is_loaded(modules: Project, tmp_path: Path) -> None:
    """A .pt2 that was changed has another digest: nothing of it runs."""
    artifact = artifact_of(modules, SAVED[0])
    assert artifact.file is not None
    target = tmp_path / "artifacts" / artifact.file.path
    target.parent.mkdir(parents=True)
    target.write_bytes(modules.file(artifact.file).read_bytes()[:-9] + b"x" * 9)
    other = Project(modules.plan, Paths(tmp_path / "artifacts", modules.plan.model), STAGES)
    other.paths.source.parent.mkdir(parents=True)
    other.paths.source.write_bytes(modules.paths.source.read_bytes())
    with pytest.raises(RunError, match="is damaged"), open_module(other, artifact):
        pass


@needs_torch_tensorrt
def test_weights_in_channels_last_are_caught_by_the_gate(modules: Project) -> None:
    """The gate rejects ResNet18 if this version gives wrong numbers from such weights at batch 64.

    A version that gives right ones proves nothing here; that the gate rejects wrong ones is tested without a GPU.
    """
    import torch  # noqa: PLC0415 - hosts that build engines may have none
    from torchvision.models import resnet18  # noqa: PLC0415 - the same

    from model_artifacts.sessions import torch_tensorrt_runtime  # noqa: PLC0415 - the same
    from model_artifacts.sessions.torch_model import in_layout, ready_to_compile  # noqa: PLC0415 - the same

    gpu = gpu_of(modules, artifact_of(modules, "torch_compile-fp16-b1-ws64MiB"))
    library, device = torch_tensorrt_runtime.load_library(), torch_tensorrt_runtime.device_of(gpu)
    torch.manual_seed(0)
    model = resnet18().eval()
    batch = torch.rand(64, 3, 224, 224, device=device)
    spoilt = in_layout(ready_to_compile(model, Precision.FP16, (3, 224, 224)), torch.channels_last).to(device)
    arguments = {"use_explicit_typing": True, "pass_through_build_failures": True}
    with torch.inference_mode():
        got = torch_tensorrt_runtime.compile_in_time(library, spoilt, arguments, lambda _: None)(batch).cpu().numpy()
        want = model.to(device)(batch).cpu().numpy()
    accuracy = measure(got, want, None)
    if accuracy.relative_l2 < FP16:
        pytest.skip(f"not provoked: this version gives right numbers (relative L2 {accuracy.relative_l2:.1e})")
    bounds = bounds_of(Gate(), modules.rounding(Arithmetic(Graph.FP16, Precision.FP16)), 2.0)
    checks = judge_distance(accuracy, largest_sample(got, want), bounds, Gate())
    assert "relative L2" in {check.metric for check in checks if not check.passed}


def test_what_torch_runs_as_it_is_says_so(modules: Project) -> None:
    """The baselines have no engines and no inspector, and their file is the source's weights."""
    artifact = artifact_of(modules, "eager-fp32")
    assert (artifact.variant.backend, artifact.module) == (Backend.EAGER, None)
    assert artifact.file == modules.source().weights
