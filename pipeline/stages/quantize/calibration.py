"""Calibration images → the range of each activation, by a percentile of its absolute values.

The ranges are those of ONNX Runtime's `PercentileCalibrater`. That one keeps every activation of every image until it
sorts them into histograms: 14 GB for ResNet18 and 512 images. Here only the largest values are kept, which decide.
Where exactly the share lies inside a bin's edge, that one's rounded sum of shares may take the next bin, and this none.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, calibrate, quantize_static
from onnxruntime.quantization.calibrate import PercentileCalibrater, TensorData, TensorsData

from model_artifacts.sessions.preprocessing import to_input

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt
    from onnxruntime import InferenceSession

    from model_artifacts.records import Preprocessing

    Floats = npt.NDArray[np.float32]

_BATCH = 16
"""The most images at once."""
_MOST_BYTES = 2**28
"""The most bytes of activations at once: a choice. With ONNX Runtime's own memory, EfficientNet-B0 then takes 0.8 GB,
and 2.4 GB with 16 images at once. ResNet18's graph is the same with 3, 13 and 16."""

_BINS = 2048
"""ONNX Runtime's number of bins: a range ends at the lower edge of a bin."""

TAKES_RANGES = "calibration_cache_path" in inspect.signature(quantize_static).parameters
"""True if this ONNX Runtime's quantiser takes ranges from a file. 1.23, for Python 3.10, calibrates by itself."""


class Images:
    """The calibration images, which are prepared batch by batch."""

    def __init__(self, pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> None:
        """Take uint8 pixels (images, height, width, channels), at least one image."""
        self._pixels = pixels
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._pixels)

    def batches(self, size: int = _BATCH) -> Iterator[Floats]:
        """Yield normalised NCHW batches of this size; the last may be smaller."""
        for start in range(0, len(self), size):
            yield to_input(self._pixels[start : start + size], self._preprocessing)


def batch_size(session: InferenceSession, names: list[str], images: Images) -> int:
    """Return the number of images at once whose activations fit into memory: `_BATCH` at most, and one at least.

    Args:
        session: the graph, with one input.
        names: the outputs that a run returns, all activations to look at.
        images: the images, of which the first is run.
    """
    first = next(images.batches(1))
    found: int = sum(value.nbytes for value in session.run(names, {session.get_inputs()[0].name: first}))
    return min(_BATCH, max(1, _MOST_BYTES // max(found, 1)))


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Batches of images in the form that ONNX Runtime reads."""

    def __init__(self, batches: Iterator[Floats], name: str) -> None:
        """Create a reader.

        Args:
            batches: float32 (batch, channels, height, width).
            name: the name of the graph's input.
        """
        self._batches = batches
        self._name = name

    def get_next(self) -> dict[str, Floats] | None:
        """Return the next batch by the input's name; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


class Largest:
    """The range of one activation, from its values part by part."""

    def __init__(self, share: float, values: int) -> None:
        """Start without values.

        Args:
            share: the share of the absolute values inside the range.
            values: the number of values to come, at most.
        """
        self._share = share
        self._keep = int((1 - share) * values) + 2
        """One more than may lie outside, and one for the rounding of the product."""
        self._count = 0
        self._low, self._high = np.float32(np.inf), np.float32(-np.inf)
        self._smallest = np.float32(np.inf)
        self._largest: Floats = np.empty(0, np.float32)
        self._bar = np.float32(-1)
        """Values up to this one are not among the largest."""

    def add(self, values: Floats) -> None:
        """Take another part of the values, float32 of any shape.

        Raises:
            ValueError: a value is not a number, or infinite.
        """
        flat = values.ravel()
        low, high = flat.min(), flat.max()  # both are NaN if one value is
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"an activation of the calibration images is not finite: from {low} to {high}")
        sizes = np.abs(flat)
        self._count += flat.size
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._smallest = min(self._smallest, sizes.min())
        self._largest = np.concatenate([self._largest, sizes[sizes > self._bar]])
        if len(self._largest) > self._keep:
            self._largest = np.partition(self._largest, -self._keep)[-self._keep :]
            self._bar = self._largest[0]  # enough of its equals are here

    def range(self) -> tuple[np.float32, np.float32]:
        """Return the ends of the range: the bin's edge beyond which less than the rest lies, within the values."""
        largest = max(-self._low, self._high)
        ends: Any = (self._smallest, largest)  # in float32, as the edges then are; the stub knows only Python's floats
        counts, edges = np.histogram(self._largest, bins=_BINS, range=ends)
        above = counts.sum() - np.cumsum(counts)  # exact for the bins that matter: the largest values are all here
        inside = (self._count - above) / self._count
        end = edges.astype(np.float32)[int(np.argmax(inside >= self._share))]
        return max(-end, self._low), min(end, self._high)


class Percentile(PercentileCalibrater):  # type: ignore[misc]  # onnxruntime is untyped
    """ONNX Runtime's calibrater, with its memory bounded."""

    def collect_data(self, images: Images) -> None:
        """Run all images, and take the activations of each batch."""
        names = [output.name for output in self.infer_session.get_outputs()]
        wanted = {*self.tensors_to_calibrate}
        found: dict[str, Largest] = {}
        size = batch_size(self.infer_session, names, images)
        batches = math.ceil(len(images) / size)
        for batch in images.batches(size):
            feed = {self.infer_session.get_inputs()[0].name: batch}
            for name, values in zip(names, self.infer_session.run(names, feed), strict=True):
                if name in wanted and values.size:
                    share = self.percentile / 100.0
                    found.setdefault(name, Largest(share, batches * values.size)).add(values)
        self._ranges = {name: largest.range() for name, largest in found.items()}

    def compute_data(self) -> Any:  # noqa: ANN401 - onnxruntime's own type
        """Return the ranges in ONNX Runtime's form."""
        return TensorsData(
            CalibrationMethod.Percentile,
            {
                name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
                for name, (low, high) in self._ranges.items()
            },
        )


def write_ranges(graph: onnx.ModelProto, kinds: list[str], percentile: float, images: Images, file: Path) -> None:
    """Write the ranges of the activations around operators, in the form that ONNX Runtime's quantiser reads.

    Args:
        graph: the FP32 graph.
        kinds: the operators' types.
        percentile: the percentage of absolute values inside a range.
        images: the calibration images.
        file: the file to write. The graph is written beside it, with more outputs.

    Raises:
        ValueError: an activation is not finite.
    """
    copy, augmented = file.with_name("fp32.onnx"), file.with_name("augmented.onnx")
    onnx.save(graph, copy)
    calibrater = Percentile(copy, kinds, str(augmented), symmetric=True, num_bins=_BINS, percentile=percentile)
    calibrater.augment_graph()
    calibrater.create_inference_session()
    calibrater.collect_data(images)
    calibrate.save_tensors_data(calibrater.compute_data(), file)
