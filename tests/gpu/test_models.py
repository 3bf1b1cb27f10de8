"""Networks of several outputs, another task and an ONNX file on a real GPU: built, proven, and opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import model_artifacts
from model_artifacts.host.environment import installed
from model_artifacts.records import Backend, Precision, Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from tests.gpu.conftest import doit, needs_torch_tensorrt
from tests.support import heads, onnx_models, segments
from tests.support.logits import distance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(not installed("torch"), reason="torch is not installed here")

OF_TINY_NETWORKS = 2e-2
"""More than the rounding of FP16 makes in these networks, and less than any fault of an output: relative L2."""
ENGINES = "precisions: [fp32, fp16, int8]"


def _heads(_: Path) -> str:
    margin = "gates: {margin: 0.1}\n"  # int8 moves its features by 0.038
    return heads.configuration(precisions="[fp32, fp16, int8]") + margin


def _segmenter(folder: Path) -> str:
    segments.write_images(folder, 64)
    return segments.configuration(folder).replace("precisions: [fp32, fp16]", ENGINES)


def _file(folder: Path) -> str:
    onnx.save(onnx_models.make(batch=1, opset=11, flat=[1, 8], softmax=True), folder / "own.onnx")
    text = onnx_models.configuration(folder / "own.onnx")
    return text.replace("precisions: [fp32, fp16, bf16, int8]", ENGINES)


KINDS: dict[str, Callable[[Path], str]] = {"heads": _heads, "segmentation": _segmenter, "onnx": _file}


@pytest.fixture(scope="module", params=[*KINDS])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of each kind, whose TensorRT engines and Torch-TensorRT modules are built and validated."""
    folder = tmp_path_factory.mktemp(request.param)
    file = folder / "pipeline.yaml"
    file.write_text(KINDS[request.param](folder))
    project = Project.load(file, STAGES)
    kinds = {Backend.TENSORRT, Backend.DYNAMO, Backend.TORCH_COMPILE}
    doit(file, *(f"validate:{variant.id}" for variant in project.plan.variants if variant.backend in kinds))
    assert main(["manifest", project.plan.model, "--config", str(file)]) == 0
    return project


def assert_deployable(project: Project, backend: Backend, precision: Precision) -> None:
    """Check that all variants of a backend and precision were built, and pass their gates for every output."""
    entries = [
        entry
        for entry in project.manifest().artifacts
        if entry.backend is backend and entry.precision is precision and entry.status is not Status.SKIPPED
    ]
    assert entries
    for entry in entries:
        assert entry.status is Status.DEPLOYABLE, (entry.id, entry.reason)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_engines_are_deployable(own: Project, precision: Precision) -> None:
    """The engines of each kind of model are faithful, and good enough for its task."""
    assert_deployable(own, Backend.TENSORRT, precision)


@needs_torch_tensorrt
@pytest.mark.parametrize("backend", [Backend.DYNAMO, Backend.TORCH_COMPILE])
def test_modules_are_deployable_or_skipped(own: Project, backend: Backend) -> None:
    """Torch-TensorRT's modules are deployable, and those of an ONNX file are skipped with the reason."""
    if own.source().onnx is not None:
        entries = [entry for entry in own.manifest().artifacts if entry.backend is backend]
        assert all(entry.status is Status.SKIPPED and "ONNX" in (entry.reason or "") for entry in entries)
        return
    assert_deployable(own, backend, Precision.FP16)


def test_the_loader_gives_every_output(own: Project) -> None:
    """An engine that is loaded by the manifest alone gives each output near to the reference, by its name."""
    data = own.data()
    pixels, wanted = own.pixels(data.validation)[:4], model_artifacts.Requirements(precision=Precision.FP16)
    reference = np.load(own.file(data.reference))
    with model_artifacts.load(own.paths.root, wanted) as model:
        assert model.entry.backend is Backend.TENSORRT
        found = model.outputs([*pixels])
    if not isinstance(found, dict):
        assert distance(found.reshape(4, -1), reference[:4].reshape(4, -1)) < OF_TINY_NETWORKS  # maps are kept flat
        return
    assert set(found) == {*reference}
    for name, values in found.items():
        assert distance(values.reshape(4, -1), reference[name][:4].reshape(4, -1)) < OF_TINY_NETWORKS, name
