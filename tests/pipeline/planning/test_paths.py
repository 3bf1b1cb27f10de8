"""The layout of the artifacts folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_artifacts.records import Backend, EngineFlavour, Graph, Precision, Variant
from pipeline.planning.paths import Paths
from tests.support.hosts import H100

PATHS = Paths(Path("artifacts"), "m")
VARIANT = Variant(model="m", target="rtx-sm80+", backend=Backend.TENSORRT, precision=Precision.FP16, graph=Graph.FP16)
FILES = {
    PATHS.manifest: "manifest.json",
    PATHS.source: "m/source/source.json",
    PATHS.weights: "m/source/weights.safetensors",
    PATHS.data: "m/data/data.json",
    PATHS.calibration: "m/data/calibration.npy",
    PATHS.validation: "m/data/validation.npy",
    PATHS.labels: "m/data/labels.npy",
    PATHS.sample_names: "m/data/samples.json",
    PATHS.reference: "m/data/reference.npy",
    PATHS.onnx(Graph.INT8_CPU): "m/onnx/int8-cpu.onnx",
    PATHS.onnx_opset17(Graph.INT8): "m/onnx/int8.opset17.onnx",
    PATHS.onnx_record(Graph.INT8_CPU): "m/onnx/int8-cpu.json",
    PATHS.ranges: "m/onnx/ranges.npz",
    PATHS.variant(VARIANT): "m/rtx-sm80+/fp16",
    PATHS.artifact(VARIANT): "m/rtx-sm80+/fp16/artifact.json",
    PATHS.engine(VARIANT): "m/rtx-sm80+/fp16/model.engine",
    PATHS.build_log(VARIANT): "m/rtx-sm80+/fp16/build.log",
    PATHS.accuracy(VARIANT): "m/rtx-sm80+/fp16/accuracy.json",
    PATHS.benchmark(VARIANT): "m/rtx-sm80+/fp16/benchmark.json",
    PATHS.runtime_cache(VARIANT): "m/rtx-sm80+/fp16/runtime.cache",
    PATHS.timing_cache(EngineFlavour.TENSORRT, "8.6.0", H100): "timing-cache/tensorrt-8.6.0-sm90-h100-80gb-hbm3.bin",
    PATHS.timing_cache(EngineFlavour.TENSORRT, "8.6.0", None): "timing-cache/tensorrt-8.6.0-none.bin",
    PATHS.samples(VARIANT): "m/rtx-sm80+/fp16/benchmark.npz",
    PATHS.restart(VARIANT, 2): "m/rtx-sm80+/fp16/benchmark.restart-2.json",
    PATHS.restart_samples(VARIANT, 2): "m/rtx-sm80+/fp16/benchmark.restart-2.npz",
}


@pytest.mark.parametrize(("path", "expected"), list(FILES.items()), ids=list(FILES.values()))
def test_layout_is_the_documented_one(path: Path, expected: str) -> None:
    """Every file lies where the documentation of the layout says."""
    assert path == Path("artifacts") / expected


def test_no_two_things_share_a_path() -> None:
    """Nothing overwrites another thing."""
    assert len(FILES) == len(set(FILES.values())) == 25


def test_variants_folder_is_its_id() -> None:
    """A variant's id, below the root, is its folder."""
    assert PATHS.variant(VARIANT) == PATHS.root / VARIANT.id
