"""Ranges of activations: those of ONNX Runtime's own calibrater, without its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector

from model_artifacts.records import Graph
from pipeline.planning.keys import make_key
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.quantize import calibration, placing, stage
from pipeline.stages.quantize.bias_correction import input_means
from pipeline.stages.quantize.calibration import Calibration, Kept, Largest, Ranges, kept_arrays, kept_ranges
from pipeline.stages.quantize.rules import PERCENTILE
from tests.support.quantized_graphs import Given

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_values_are_looked_at_in_small_parts(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the parts are that a processor takes at once, the range is the same."""
    monkeypatch.setattr("pipeline.stages.quantize.calibration._PART", size)
    values = [np.tanh(3 * part[0]) - 0.2 for part in NORMAL]
    assert ours(values, 99.0) == theirs(values, 99.0)


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


@pytest.mark.parametrize("value", [7.5, -7.5, 1e-30])
def test_values_that_are_nearly_one_have_their_own_range(value: float) -> None:
    """The probabilities of an untrained detector: float32 has too few numbers between them for the bins."""
    values = np.full(1000, value, np.float32)
    values[::3] = np.nextafter(np.float32(value), np.float32(np.inf))

    assert ours([values], PERCENTILE) == (values.min(), values.max())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_range(value: float) -> None:
    """One such value among many is an error."""
    values = NORMAL.copy()
    values.flat[777] = value
    with pytest.raises(ValueError, match="not finite"):
        ours([*values], PERCENTILE)


@pytest.mark.parametrize("graph", [Graph.INT8, Graph.INT8_CPU, Graph.FP8])
def test_the_graph_is_the_one_of_onnx_runtimes_calibraters(
    graph: Graph, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantised graph is the same, byte by byte, as with ONNX Runtime's own pass for each graph."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.ranges.unlink(missing_ok=True)
    files = []
    for takes_ranges in (True, False):
        monkeypatch.setattr(placing, "TAKES_RANGES", takes_ranges)
        files.append(tmp_path / f"{takes_ranges}.onnx")
        stage.place(project, graph, files[-1], (), tmp_path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_graphs_share_one_pass_over_the_images(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After int8's calibration, x86's graph takes its ranges without an image, and is the same as by itself."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.ranges.unlink(missing_ok=True)
    alone, after = tmp_path / "alone.onnx", tmp_path / "after.onnx"
    stage.place(project, Graph.INT8_CPU, alone, (), tmp_path)
    stage.place(project, Graph.INT8, tmp_path / "int8.onnx", (), tmp_path)  # it needs percentiles, which are not there
    monkeypatch.setattr(Calibration, "run", None)
    stage.place(project, Graph.INT8_CPU, after, (), tmp_path)
    assert after.read_bytes() == alone.read_bytes()


def test_graphs_share_the_means_of_their_inputs(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second graph takes them without an image, and is the same, byte by byte, as with means of its own."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    files = [tmp_path / "own.onnx", tmp_path / "shared.onnx"]
    project.paths.means.unlink()
    stage.place(project, Graph.INT8_CPU, files[0], (), tmp_path)
    monkeypatch.setattr(stage, "input_means", lambda *_: {})  # which would leave a KeyError
    stage.place(project, Graph.INT8_CPU, files[1], (), tmp_path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_arrays_of_another_key_are_made_anew(tmp_path: Path) -> None:
    """So are those of a damaged file, and those that are not there; names may be any text."""
    kept = Kept(make_key(calibration="a"), tmp_path / "means.npz")
    first = {"/layer1/conv": np.array([0.5, -1], np.float32), "key": np.array([2], np.float32)}

    def never() -> dict[str, Any]:
        raise AssertionError

    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)

    assert kept_arrays(kept, lambda: first) is first
    assert same(kept_arrays(kept, never), first)
    second = {"other": np.array([3], np.float32)}
    assert kept_arrays(kept._replace(key=make_key(calibration="b")), lambda: second) is second
    assert kept_arrays(kept, lambda: first) is first
    for damage in (kept.file.read_bytes()[:-30], b"", b"garbage" * 100):
        kept.file.write_bytes(damage)
        assert kept_arrays(kept, lambda: second) is second
        assert same(kept_arrays(kept, never), second)


def test_ranges_of_other_images_are_not_taken(tmp_path: Path) -> None:
    """Ranges are read back as they are; another key's, a damaged file's and no file's are not."""
    file = tmp_path / "ranges.npz"
    ranges = Ranges({"x": (np.float32(-1.5), np.float32(0.1))}, {"x": (np.float32(-0.7), np.float32(0.1))})
    key, other = make_key(calibration="a"), make_key(calibration="b")
    assert kept_ranges(key, file) is None
    ranges.keep(key, file)
    assert kept_ranges(key, file) == ranges
    assert kept_ranges(other, file) is None
    for damage in (file.read_bytes()[:-30], b"", b"garbage" * 100):
        file.write_bytes(damage)
        assert kept_ranges(key, file) is None


def test_x86_calibrates_after_the_graph_that_gives_its_ranges(copied: Path) -> None:
    """Of several quantised graphs, all but the first follow int8's."""
    schedule = Project.load(copied / "pipeline.yaml", STAGES).schedule
    steps = {step.subject.rpartition("/")[2]: schedule.dependencies(step).follows for step in schedule.of("quantize")}
    assert [step.subject.rpartition("/")[2] for step in steps.pop("int8-cpu")] == ["int8"]
    assert steps.pop("int8") == ()


def test_values_that_are_not_finite_do_not_hide_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN in one batch leaves the ends of the others, as ONNX Runtime's calibrater does."""
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
    )
    monkeypatch.setattr(calibration, "_BATCH", 2)
    images = Given(np.array([1, 2, np.nan, np.nan, -3, 5], np.float32))
    ranges = Calibration(graph, PERCENTILE, tmp_path).run(images, ())
    assert [*map(float, ranges.extremes["x"])] == [-3, 5]


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
        run = Calibration(graph, 99.0, tmp_path)
        ranges.append(run.run(given, sorted(run.names(["Conv"]))).clipped)
        means.append(input_means(graph, Given(images)))
    assert given.sizes == [1, size]
    assert [*ranges[0]] == ["image", "map", "middle"]
    for name, ends in ranges[0].items():
        assert ends == pytest.approx(ranges[1][name], rel=1e-5)
    for name, mean in means[0].items():
        np.testing.assert_allclose(mean, means[1][name], rtol=1e-4, atol=1e-6)
