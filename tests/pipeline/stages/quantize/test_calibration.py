"""Ranges of activations: those of ONNX Runtime's own calibrater, without its memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector

from model_artifacts.records import Graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.quantize import calibration, stage
from pipeline.stages.quantize.bias_correction import input_means
from pipeline.stages.quantize.calibration import Largest
from pipeline.stages.quantize.placement import PERCENTILE
from tests.support.quantized_graphs import Given

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx

    from pipeline.stages.quantize.calibration import Floats

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.normal(size=(6, 8, 40, 40)).astype(np.float32)


def theirs(parts: Sequence[Floats], percentile: float) -> tuple[float, float]:
    """Return the range by ONNX Runtime's own collector, which takes all parts at once."""
    collector = HistogramCollector("percentile", True, 2048, 128, percentile, "same")  # noqa: FBT003 - its signature
    collector.collect({"x": np.concatenate([part.ravel() for part in parts])})
    low, high, *_ = collector.compute_collection_result()["x"]
    return float(low), float(high)


def ours(parts: Sequence[Floats], percentile: float) -> tuple[float, float]:
    """Return the range from one part after another."""
    largest = Largest(percentile / 100, len(parts) * max(part.size for part in parts))
    for part in parts:
        largest.add(part)
    low, high = largest.range()
    return float(low), float(high)


@pytest.mark.parametrize("percentile", [99.995, 99.9, 90.0, 50.0])
@pytest.mark.parametrize(
    "values",
    [
        NORMAL,
        np.maximum(NORMAL, 0),
        np.clip(3 * NORMAL, 0, 6),
        NORMAL**3,
        -np.abs(NORMAL) - 1,
        np.zeros_like(NORMAL),
        np.full_like(NORMAL, 2.5),
        np.round(NORMAL),
    ],
    ids=["normal", "ReLU", "ReLU6", "long tails", "negative", "zeros", "constant", "steps"],
)
def test_the_range_is_onnx_runtimes(values: Floats, percentile: float) -> None:
    """Every kind of activation, in six parts, has the range that the whole has."""
    assert ours([*values], percentile) == theirs([*values], percentile)


@settings(deadline=None)
@given(
    st.lists(
        arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1024, 1024, width=16)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([99.99, 99.0, 75.0]),
)
def test_no_values_have_another_range(parts: list[Floats], percentile: float) -> None:
    """Parts of any sizes, with ties and zeros; not where the rounding of a sum of shares decides."""
    beyond = sum(part.size for part in parts) * (100 - percentile) / 100
    assume(abs(beyond - round(beyond)) > 1e-6)
    assert ours(parts, percentile) == theirs(parts, percentile)


def test_the_last_part_may_decide() -> None:
    """The largest values of all may come at the end, or at the beginning."""
    rising = [np.full(100, number, dtype=np.float32) for number in range(1, 50)]
    assert ours(rising, 90.0) == ours(rising[::-1], 90.0) == theirs(rising, 90.0)


def test_few_values_are_kept() -> None:
    """Of a million values no more than the share outside the range stays in memory."""
    largest = Largest(0.9999, 1_000_000)
    for _ in range(10):
        largest.add(RANDOM.normal(size=100_000).astype(np.float32))
    assert len(largest._largest) <= 102  # noqa: SLF001 - it is what this class is for


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_range(value: float) -> None:
    """One such value among many is an error."""
    values = NORMAL.copy()
    values.flat[777] = value
    with pytest.raises(ValueError, match="not finite"):
        ours([*values], PERCENTILE)


def test_the_graph_is_the_one_of_onnx_runtimes_calibrater(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantised graph is the same, byte by byte, as with the calibrater that keeps everything."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    files = []
    for takes_ranges in (True, False):
        monkeypatch.setattr(stage, "TAKES_RANGES", takes_ranges)
        files.append(tmp_path / f"{takes_ranges}.onnx")
        stage.place(project, Graph.INT8, files[-1], (), tmp_path)
    assert files[0].read_bytes() == files[1].read_bytes()


def wide_graph(side: int) -> onnx.ModelProto:
    """Return two convolutions of 64 channels on images of this side."""
    weights = {"first": (64, 3, 1, 1), "second": (64, 64, 1, 1)}
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Conv", ["image", "first"], ["middle"], name="a"),
                helper.make_node("Conv", ["middle", "second"], ["map"], name="b"),
            ],
            "wide",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, side, side])],
            [helper.make_tensor_value_info("map", TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(RANDOM.normal(size=shape).astype(np.float32), name)
                for name, shape in weights.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


@pytest.mark.parametrize(("room", "size"), [(2**30, 16), (300_000, 2), (1, 1)])
def test_large_activations_are_taken_from_fewer_images(
    room: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images at once are those whose activations fit, and the ranges and means are the same."""
    images, graph = RANDOM.normal(size=(5, 3, 16, 16)).astype(np.float32), wide_graph(16)
    ranges, means = [], []
    for at_once in (2**40, room):
        monkeypatch.setattr(calibration, "_MOST_BYTES", at_once)
        given = Given(images)
        calibration.write_ranges(graph, ["Conv"], 99.0, given, tmp_path / "ranges.json")
        ranges.append(numbers(json.loads((tmp_path / "ranges.json").read_text())))
        means.append(input_means(graph, Given(images)))
    assert given.sizes == [1, size]
    assert len(ranges[0]) > 3
    assert ranges[0] == pytest.approx(ranges[1], rel=1e-5)
    for name, mean in means[0].items():
        np.testing.assert_allclose(mean, means[1][name], rtol=1e-4, atol=1e-6)


def numbers(value: object) -> list[float]:
    """Return all numbers of a JSON document, in order."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []
