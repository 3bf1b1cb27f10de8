"""Ranges by entropy and by squared error, from a histogram of an activation's values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model_artifacts.records import Graph
from pipeline.config.quantization import RangeMethod
from pipeline.stages.quantize.histograms import Histogram, by_entropy, by_error, numbers_of, range_of

if TYPE_CHECKING:
    from pipeline.stages.quantize.histograms import Floats

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.normal(size=(4, 5000)).astype(np.float32)
TAILS = RANDOM.standard_t(3, size=(4, 5000)).astype(np.float32)
FITTED = [RangeMethod.ENTROPY, RangeMethod.MSE]
GRAPHS = [Graph.INT8, Graph.INT8_CPU, Graph.FP8]


def histogram_of(values: Floats) -> Histogram:
    """Return the histogram of values that come in parts, one for each row."""
    found = Histogram(values.min(), values.max())
    for part in np.atleast_2d(values):
        found.add(part)
    return found


def error_of(values: Floats, graph: Graph, ends: tuple[np.float32, np.float32]) -> float:
    """Return the mean squared error of values that are quantised with a range."""
    wide = values.astype(np.float64)
    return float(np.square(numbers_of(graph).rounded(wide, ends) - wide).mean())


def test_all_values_are_counted() -> None:
    """However they are cut into parts; the largest lies in the last bin."""
    found = histogram_of(NORMAL)
    assert found.counts.sum() == NORMAL.size
    assert (found.counts == np.histogram(NORMAL, bins=found.edges)[0]).all()


@pytest.mark.parametrize("method", FITTED, ids=["entropy", "mse"])
@pytest.mark.parametrize("graph", GRAPHS, ids=["int8", "x86", "fp8"])
@settings(deadline=None)
@given(values=arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1024, 1024, width=16)))
def test_a_range_lies_within_the_values(method: RangeMethod, graph: Graph, values: Floats) -> None:
    """Of any values, with zeros and ties."""
    low, high = range_of(histogram_of(values), method, graph)
    assert values.min() <= low <= high <= values.max()


@pytest.mark.parametrize("method", FITTED, ids=["entropy", "mse"])
def test_long_tails_are_clipped(method: RangeMethod) -> None:
    """A few values are far out; the many small ones get finer steps."""
    low, high = range_of(histogram_of(TAILS), method, Graph.INT8)
    assert max(-low, high) < 0.95 * np.abs(TAILS).max()


@pytest.mark.parametrize("graph", [Graph.INT8, Graph.INT8_CPU], ids=["int8", "x86"])
@pytest.mark.parametrize("values", [NORMAL, np.maximum(TAILS, 0), TAILS], ids=["normal", "ReLU", "tails"])
def test_the_squared_error_is_the_least_of_all_ranges(values: Floats, graph: Graph) -> None:
    """Of the values themselves, and not of the histogram alone: within 2 % of the best of a hundred ranges."""
    histogram = histogram_of(values)
    found = error_of(values, graph, by_error(histogram, numbers_of(graph)))
    most = float(np.abs(values).max())
    best = min(error_of(values, graph, histogram.within(most * part)) for part in np.linspace(0.05, 1, 100))
    assert found <= 1.02 * best


def test_the_numbers_are_those_of_the_graph() -> None:
    """Int8 is symmetric with 127 steps, uint8 takes all of its 255 for positive values, E4M3 has three bits."""
    values, ends = np.array([-3.0, 0.26, 0.5, 1.0]), (np.float32(-1), np.float32(1))
    assert numbers_of(Graph.INT8).rounded(values, ends) * 127 == pytest.approx([-127, 33, 64, 127])
    positive = numbers_of(Graph.INT8_CPU).rounded(values, (np.float32(0), np.float32(1)))
    assert positive * 255 == pytest.approx([0, 66, 128, 255])
    assert numbers_of(Graph.FP8).rounded(values, ends) * 448 == pytest.approx([-448, 120, 224, 448])


def test_nothing_is_clipped_where_all_is_equal() -> None:
    """Zeros have no range, and a constant has its own."""
    zeros = np.zeros((2, 10), np.float32)
    for method in FITTED:
        assert [*map(float, range_of(histogram_of(zeros), method, Graph.INT8))] == [0, 0]
    assert by_entropy(histogram_of(zeros + 2.5))[1] == 2.5


@pytest.mark.parametrize("method", FITTED, ids=["entropy", "mse"])
def test_values_beyond_the_ends_count_as_the_largest(method: RangeMethod) -> None:
    """A second run in batches of another size may round up, and a constant would then have no value at all."""
    most = np.float32(2.5)
    histogram = Histogram(most, most)
    histogram.add(np.full(7, np.nextafter(most, np.float32(3)), np.float32))
    assert histogram.counts.sum() == 7
    assert range_of(histogram, method, Graph.INT8) == (most, most)


def test_what_is_not_finite_has_no_range() -> None:
    """One such value among many is an error."""
    histogram = Histogram(np.float32(-1), np.float32(1))
    with pytest.raises(ValueError, match="not finite"):
        histogram.add(np.array([0.5, np.nan], np.float32))
