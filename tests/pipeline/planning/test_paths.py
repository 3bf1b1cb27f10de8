"""The layout of the artifacts folder."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.records import AxisRange, Backend, BatchRange, EngineFlavour, Graph, Precision, Variant
from pipeline.config.tensorrt import TensorRTConfig
from pipeline.planning.paths import Paths
from tests.support.hosts import H100

PATHS = Paths(Path("artifacts"), "m")
VARIANT = Variant(model="m", target="rtx-sm80+", backend=Backend.TENSORRT, precision=Precision.FP16, graph=Graph.FP16)
TIMINGS = partial(PATHS.timing_cache, EngineFlavour.TENSORRT, "8.6.0", None)
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
    PATHS.means: "m/onnx/means.npz",
    PATHS.variant(VARIANT): "m/rtx-sm80+/fp16",
    PATHS.artifact(VARIANT): "m/rtx-sm80+/fp16/artifact.json",
    PATHS.engine(VARIANT): "m/rtx-sm80+/fp16/model.engine",
    PATHS.build_log(VARIANT): "m/rtx-sm80+/fp16/build.log",
    PATHS.accuracy(VARIANT): "m/rtx-sm80+/fp16/accuracy.json",
    PATHS.benchmark(VARIANT): "m/rtx-sm80+/fp16/benchmark.json",
    PATHS.runtime_cache(VARIANT): "m/rtx-sm80+/fp16/runtime.cache",
    PATHS.timing_cache(EngineFlavour.TENSORRT, "8.6.0", H100): "timing-cache/tensorrt-8.6.0-sm90-h100-80gb-hbm3.bin",
    TIMINGS(TensorRTConfig(avg_timing_iterations=1)): "timing-cache/tensorrt-8.6.0-none.bin",
    TIMINGS(TensorRTConfig(avg_timing_iterations=8)): "timing-cache/tensorrt-8.6.0-none-avg8.bin",
    TIMINGS(TensorRTConfig(attempt=2)): "timing-cache/tensorrt-8.6.0-none-attempt2.bin",
    TIMINGS(TensorRTConfig(avg_timing_iterations=8, attempt=3)): "timing-cache/tensorrt-8.6.0-none-avg8-attempt3.bin",
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
    assert len(FILES) == len(set(FILES.values())) == 29


def test_variants_folder_is_its_id() -> None:
    """A variant's id, below the root, is its folder."""
    assert PATHS.variant(VARIANT) == PATHS.root / VARIANT.id


NAMES = st.from_regex(re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII), fullmatch=True) | st.text(
    "a1_", min_size=1
).filter(lambda name: not name[0].isdigit())
"""Names of axes, many of which end with a digit or with `_`."""
SIZES = st.lists(st.tuples(NAMES, st.integers(1, 2**31 - 1) | st.integers(1, 25)), min_size=1, max_size=3).map(tuple)


@given(SIZES, SIZES)
def test_other_sizes_have_other_files(first: tuple[tuple[str, int], ...], second: tuple[tuple[str, int], ...]) -> None:
    """Whatever the axes are called, `a` of 12 and `a1` of 2 among them."""
    assert (PATHS.sized_validation(first) == PATHS.sized_validation(second)) == (first == second)
    assert (PATHS.sized_reference(first) == PATHS.sized_reference(second)) == (first == second)


@given(SIZES, SIZES)
def test_other_ranges_have_other_folders(
    first: tuple[tuple[str, int], ...], second: tuple[tuple[str, int], ...]
) -> None:
    """Two profiles that differ in an axis alone are two variants."""
    profiles = [
        BatchRange(
            min=1, opt=1, max=1, axes=tuple(AxisRange(name=name, min=1, opt=1, max=size) for name, size in sizes)
        )
        for sizes in (first, second)
    ]
    folders = {PATHS.variant(VARIANT.model_copy(update={"profile": profile})) for profile in profiles}
    assert (len(folders) == 1) == (first == second)


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((("height", 160), ("width", 320)), "height160-width320"),
        ((("sequence", 8),), "sequence8"),
        ((("a", 12),), "a12"),
        ((("a1", 2),), "a1_2"),
        ((("a_", 2),), "a__2"),
        ((("a1_", 2),), "a1__2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_usual_axes_keep_their_names(sizes: tuple[tuple[str, int], ...], name: str) -> None:
    """A `_` stands only behind names that end with a digit or with `_`, so that no existing file has another name."""
    assert PATHS.sized_validation(sizes).name == f"validation-{name}.npy"
