"""Histogram of an activation → its range by entropy or by squared error. Pure.

Both clip what is far out, where that makes the many small values finer. ONNX Runtime has the entropy; its calibrater
begins with as many bins as levels, 128, and can clip next to nothing. Here it gets 2048 bins, as TensorRT's does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnxruntime.quantization.calibrate import HistogramCollector

from model_artifacts.records import Precision
from pipeline.config.quantization import RangeMethod
from pipeline.stages.quantize.rewriting import QUANTIZED_TYPES

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from model_artifacts.records import Graph

    Floats = npt.NDArray[np.float32]
    Doubles = npt.NDArray[np.float64]
    Range = tuple[np.float32, np.float32]

_BINS = 2048
"""Bins between the largest value and its negative (S. Migacz, 8-bit inference with TensorRT, GTC 2017)."""
_LEVELS = 128
"""Bins that entropy compares with: those of eight bits, on both sides of zero, as in ONNX Runtime."""
_FIRST = 64
"""The fewest bins on a side that a range by squared error takes. It tries every `_STRIDE`th edge from there on."""
_STRIDE = 8
_STEPS_OF_UINT8 = 255


class Histogram:
    """The values of one activation in bins around zero."""

    def __init__(self, low: np.float32, high: np.float32) -> None:
        """Start without values.

        Args:
            low: the smallest value to come.
            high: the largest.
        """
        self.low, self.high = low, high
        self._most = max(abs(float(low)), abs(float(high)))
        self._counts: npt.NDArray[np.int64] = np.zeros(_BINS, np.int64)

    def add(self, values: Floats) -> None:
        """Take a part of the values, float32 of any shape.

        Values beyond the ends count as the largest: in batches of another size, sums may be rounded otherwise.

        Raises:
            ValueError: a value is not a number, or infinite.
        """
        if not np.isfinite(values).all():
            raise ValueError("an activation of the calibration images is not finite")
        inside = np.clip(values, -self._most, self._most)
        self._counts += np.histogram(inside, bins=_BINS, range=(-self._most, self._most))[0]

    @property
    def edges(self) -> Doubles:
        """The edges of the bins, from the negative of the largest value to that value."""
        return np.linspace(-self._most, self._most, _BINS + 1, dtype=np.float64)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of values in each bin."""
        return self._counts

    def within(self, most: float) -> Range:
        """Return the range that ends at an absolute value, or at the values' own ends in front of it."""
        return max(np.float32(-most), self.low), min(np.float32(most), self.high)

    @property
    def is_flat(self) -> bool:
        """True if all values are zero: nothing can be clipped."""
        return self._most == 0


def range_of(histogram: Histogram, method: RangeMethod, graph: Graph) -> Range:
    """Return the range of an activation.

    Args:
        histogram: its values.
        method: `entropy` or `mse`.
        graph: the graph whose numbers the values become.
    """
    if histogram.is_flat:
        return histogram.low, histogram.high
    return by_entropy(histogram) if method is RangeMethod.ENTROPY else by_error(histogram, numbers_of(graph))


def by_entropy(histogram: Histogram) -> Range:
    """Return the range whose histogram of eight bits diverges least from that of the values (Kullback, Leibler)."""
    collector = HistogramCollector("entropy", False, _BINS, _LEVELS, None, "same")  # noqa: FBT003 - its signature
    found = collector.get_entropy_threshold(
        (histogram.counts, histogram.edges, histogram.low, histogram.high, None), _LEVELS
    )
    return histogram.within(max(abs(float(found[0])), abs(float(found[1]))))


class Numbers(NamedTuple):
    """The numbers that a graph's activations become."""

    limit: float
    """The largest magnitude in units of the scale; of uint8 the number of steps."""
    signed: bool = True
    """True with symmetric ranges, false with those of uint8, whose zero may lie anywhere."""
    floating: np.dtype[Any] | None = None
    """The type of floating-point numbers; None for whole numbers."""

    def rounded(self, values: Doubles, ends: Range) -> Doubles:
        """Return values as they are after quantisation with a range."""
        low, high = min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)  # zero is a number of every range
        if self.signed:
            high = max(-low, high)
            low = -high
        scale = (high - low) / (2 * self.limit if self.signed else self.limit)
        units = np.clip(values, low, high) / scale
        return (np.rint(units) if self.floating is None else units.astype(self.floating).astype(np.float64)) * scale


def numbers_of(graph: Graph) -> Numbers:
    """Return the numbers of a graph's activations."""
    if graph.for_x86:
        return Numbers(_STEPS_OF_UINT8, signed=False)
    kind = QUANTIZED_TYPES[graph.precision]
    return Numbers(kind.limit, floating=kind.dtype if graph.precision is Precision.FP8 else None)


def by_error(histogram: Histogram, numbers: Numbers) -> Range:
    """Return the range with the least squared error of the quantised values; of equal ones the widest.

    Each bin counts with its middle. The range of all values is one of those that are tried.
    """
    edges, counts = histogram.edges, histogram.counts
    middles = (edges[:-1] + edges[1:]) / 2
    half = _BINS // 2
    ends = [histogram.within(float(edges[half + at])) for at in range(half, _FIRST - 1, -_STRIDE)]
    errors = [float(counts @ np.square(numbers.rounded(middles, item) - middles)) for item in ends]
    return ends[int(np.argmin(errors))]
