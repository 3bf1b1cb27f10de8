"""Calibrated graphs by each rule for ranges, on a small network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_artifacts.errors import QuantizeError
from model_artifacts.records import Graph
from pipeline.config.quantization import QuantizationConfig
from pipeline.planning.keys import make_key
from pipeline.stages.quantize import placing
from pipeline.stages.quantize.calibration import Calibration, Kept
from pipeline.stages.quantize.placing import place_pairs
from tests.support.quantized_graphs import Given, residual_graph

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = np.random.default_rng(1).standard_t(3, size=(16, 3, 32, 32)).astype(np.float32)


def settings_of(rule: str) -> QuantizationConfig:
    """Return the settings with a rule."""
    return QuantizationConfig.model_validate({"calibration": rule})


def range_of_image(graph: Graph, rule: str, folder: Path, kept: Kept | None = None) -> float:
    """Return the largest value of the quantised image."""
    file = folder / "placed.onnx"
    place_pairs(Given(IMAGES), graph, residual_graph(), file, kept=kept, settings=settings_of(rule))
    tensors = {item.name: numpy_helper.to_array(item) for item in onnx.load(file).graph.initializer}
    scale, zero = float(tensors["image_scale"]), int(tensors["image_zero_point"])
    return scale * (255 - zero) if graph.for_x86 else scale * 127


@pytest.mark.parametrize("graph", [Graph.INT8, Graph.INT8_CPU], ids=["int8", "x86"])
def test_each_rule_has_its_own_range(graph: Graph, tmp_path: Path) -> None:
    """The maximum takes every value of an image with long tails, and all others clip it, each at another place."""
    rules = ("max", "99%", "99.9%", "entropy", "mse")
    found = {rule: range_of_image(graph, rule, tmp_path) for rule in rules}
    largest = float(IMAGES.max() if graph.for_x86 else np.abs(IMAGES).max())
    assert found["max"] == pytest.approx(largest, rel=0.01)
    assert found["99%"] == pytest.approx(np.percentile(np.abs(IMAGES), 99), rel=0.02)
    assert found["99%"] < found["99.9%"] < found["max"]
    assert found["entropy"] < 0.9 * found["max"]
    assert found["mse"] < 1.01 * found["max"]  # uint8 has twice as many steps, and clips least
    assert len({*found.values()}) == len(rules)


def test_fitted_ranges_are_kept_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second graph of the same key looks at no image."""
    kept = Kept(make_key(calibration="a"), tmp_path / "ranges.npz")
    before = range_of_image(Graph.INT8, "mse", tmp_path, kept)
    monkeypatch.setattr(Calibration, "run", None)
    monkeypatch.setattr(Calibration, "histograms", None)
    assert range_of_image(Graph.INT8, "mse", tmp_path, kept) == before


def test_an_onnx_runtime_that_takes_no_ranges_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calibrates by itself, and knows percentiles, but no squared error."""
    expected = range_of_image(Graph.INT8, "99%", tmp_path)
    monkeypatch.setattr(placing, "TAKES_RANGES", False)
    assert range_of_image(Graph.INT8, "99%", tmp_path) == expected
    with pytest.raises(QuantizeError, match=r"quantization\.calibration: mse needs an ONNX Runtime"):
        range_of_image(Graph.INT8, "mse", tmp_path)
