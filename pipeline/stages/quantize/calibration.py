"""Calibration images → the range of each activation: its ends, and those of a percentile of its absolute values.

The ranges are those of ONNX Runtime's `MinMaxCalibrater` and `PercentileCalibrater`. One run of the FP32 graph gives
both, which the graphs for TensorRT and for x86 share. The percentiles' calibrater keeps every activation of every image
until it sorts them into histograms: 14 GB for ResNet18 and 512 images. Here only the largest values are kept, which
decide. Where exactly the share lies inside a bin's edge, that one's rounded sum of shares may take the next bin, and
this none.
"""

from __future__ import annotations

import inspect
import io
import math
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, calibrate, quantize_static
from onnxruntime.quantization.calibrate import CalibraterBase, TensorData, TensorsData
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from model_artifacts.host.files import write_bytes
from model_artifacts.sessions.feeds.batches import feed_of
from pipeline.stages.common.samples import to_batch
from pipeline.stages.quantize.histograms import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from onnxruntime import InferenceSession

    from model_artifacts.records import Key, Preprocessing
    from model_artifacts.sessions.feeds.batches import Batch

    Floats = npt.NDArray[np.float32]
    Ends = dict[str, tuple[np.float32, np.float32]]

_PART = 1 << 17
"""Values that are looked at together: 512 kB of float32, which a processor's second cache holds."""
_ENDS = ("_ReduceMin", "_ReduceMax")
"""The operators that give the ends of an activation, as endings of their results' names."""
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
    """The calibration images, which are prepared batch by batch; or samples of a model of tensors."""

    def __init__(self, pixels: npt.NDArray[Any], preprocessing: Preprocessing | None) -> None:
        """Take uint8 pixels (images, height, width, channels), at least one image.

        Without preprocessing, take an array with a field for each input.
        """
        self._pixels = pixels
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._pixels)

    def batches(self, size: int = _BATCH) -> Iterator[Batch]:
        """Yield normalised NCHW batches of this size; the last may be smaller."""
        for start in range(0, len(self), size):
            yield to_batch(self._pixels[start : start + size], self._preprocessing)


def names_of(session: InferenceSession) -> list[str]:
    """Return the names of a graph's inputs."""
    return [item.name for item in session.get_inputs()]


def batch_size(session: InferenceSession, names: list[str], images: Images) -> int:
    """Return the number of images at once whose activations fit into memory: `_BATCH` at most, and one at least.

    Args:
        session: the graph.
        names: the outputs that a run returns, all activations to look at.
        images: the images, of which the first is run.
    """
    first = next(images.batches(1))
    found: int = sum(value.nbytes for value in session.run(names, feed_of(names_of(session), first)))
    return min(_BATCH, max(1, _MOST_BYTES // max(found, 1)))


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Batches of images in the form that ONNX Runtime reads."""

    def __init__(self, batches: Iterator[Batch], names: Sequence[str]) -> None:
        """Create a reader.

        Args:
            batches: float32 (batch, channels, height, width), or the arrays of several inputs by their names.
            names: the names of the graph's inputs.
        """
        self._batches = batches
        self._names = names

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the inputs' names; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else feed_of(self._names, batch)


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
        self._count += flat.size
        found, held = [self._largest], len(self._largest)
        for start in range(0, flat.size, _PART):
            sizes = self._sizes(flat[start : start + _PART])
            found.append(sizes[sizes > self._bar])
            held += len(found[-1])
            if held > 2 * self._keep + _PART:
                found = [self._trimmed(found)]
                held = len(found[0])
        self._largest = self._trimmed(found)

    def _sizes(self, part: Floats) -> Floats:
        """Return the absolute values, and note the ends."""
        low, high = part.min(), part.max()  # both are NaN if one value is
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"an activation of the calibration images is not finite: from {low} to {high}")
        sizes: Floats = np.abs(part)
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._smallest = min(self._smallest, sizes.min() if low < 0 else abs(low))
        return sizes

    def _trimmed(self, found: list[Floats]) -> Floats:
        """Return the largest of the values found, and raise the bar."""
        largest = np.concatenate(found)
        if len(largest) > self._keep:
            largest = np.partition(largest, -self._keep)[-self._keep :]
            self._bar = largest[0]  # enough of its equals are here
        return largest

    def range(self) -> tuple[np.float32, np.float32]:
        """Return the ends of the range: the bin's edge beyond which less than the rest lies, within the values."""
        largest = max(-self._low, self._high)
        if self._smallest < largest and not _holds_bins(self._smallest, largest):
            return self.ends  # nearly constant, as probabilities of one value: nothing is far out
        ends: Any = (self._smallest, largest)  # in float32, as the edges then are; the stub knows only Python's floats
        counts, edges = np.histogram(self._largest, bins=_BINS, range=ends)
        above = counts.sum() - np.cumsum(counts)  # exact for the bins that matter: the largest values are all here
        inside = (self._count - above) / self._count
        end = edges.astype(np.float32)[int(np.argmax(inside >= self._share))]
        return max(-end, self._low), min(end, self._high)

    @property
    def ends(self) -> tuple[np.float32, np.float32]:
        """The smallest and the largest value."""
        return self._low, self._high


def _holds_bins(low: np.float32, high: np.float32) -> bool:
    """Return True if float32 has numbers enough between two others for the edges of all bins, as numpy demands."""
    return bool((np.diff(np.linspace(low, high, _BINS + 1, dtype=np.float32)) > 0).all())


class Ranges(NamedTuple):
    """The ranges of the activations of a graph on the calibration images, by the tensors' names."""

    extremes: Ends
    """The smallest and the largest value of each."""
    clipped: Ends = {}  # noqa: RUF012 - nothing changes it
    """The ends by a rule that clips, such as a percentile, of the tensors that were asked for."""

    def of(self, kind: CalibrationMethod) -> Ends:
        """Return the ranges of a method."""
        return self.clipped if kind is CalibrationMethod.Percentile else self.extremes

    def write(self, kind: CalibrationMethod, names: Collection[str], file: Path) -> None:
        """Write the ranges of some tensors in the form that ONNX Runtime's quantiser reads."""
        shape = () if kind is CalibrationMethod.Percentile else (1,)  # as its own calibraters do
        data = {
            name: TensorData(lowest=np.full(shape, low, np.float32), highest=np.full(shape, high, np.float32))
            for name, (low, high) in self.of(kind).items()
            if name in names
        }
        calibrate.save_tensors_data(TensorsData(kind, data), file)

    def keep(self, key: Key, file: Path) -> None:
        """Write the ranges for other graphs of the same network and images.

        Raises:
            StorageError: they cannot be written.
        """
        arrays: dict[str, Any] = {"key": np.array(key.digest)}
        for name, ends in (("extremes", self.extremes), ("percentiles", self.clipped)):
            arrays[name] = np.array([*ends.values()], np.float32).reshape(-1, 2)
            arrays[f"{name}_of"] = np.array([*ends], np.str_)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(file, buffer.getvalue())


class Kept(NamedTuple):
    """The place of ranges or means that graphs of one network and its images share."""

    key: Key
    file: Path


def kept_ranges(key: Key, file: Path) -> Ranges | None:
    """Return the ranges in a file; None if there are none, if it is damaged, or if they are of another key."""
    try:
        with np.load(io.BytesIO(file.read_bytes())) as arrays:
            if str(arrays["key"]) != key.digest:
                return None
            found = [
                dict(zip(arrays[f"{name}_of"].tolist(), map(tuple, arrays[name]), strict=True))
                for name in ("extremes", "percentiles")
            ]
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return Ranges(*found)


def kept_arrays(kept: Kept, make: Callable[[], dict[str, Floats]]) -> dict[str, Floats]:
    """Return named arrays from a file; if they are not there, are damaged or of another key, make and write them.

    Raises:
        StorageError: they cannot be written.
        Exception: what `make` raises.
    """
    try:
        with np.load(io.BytesIO(kept.file.read_bytes())) as there:
            if str(there["key"]) == kept.key.digest:
                return {str(name): there[f"array_{index}"] for index, name in enumerate(there["names"])}
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        pass  # it is made anew
    found = make()
    arrays: dict[str, Any] = {f"array_{index}": array for index, array in enumerate(found.values())}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, key=np.array(kept.key.digest), names=np.array([*found], np.str_))
    write_bytes(kept.file, buffer.getvalue())
    return found


class Calibration(CalibraterBase):  # type: ignore[misc]  # onnxruntime is untyped
    """The activations of an FP32 graph, and a session of ONNX Runtime that gives their ranges."""

    def __init__(self, graph: onnx.ModelProto, percentile: float, folder: Path) -> None:
        """Prepare a calibration.

        Args:
            graph: the FP32 graph. It is written to the folder, once as it is and once with more outputs.
            percentile: the percentage of absolute values inside a range.
            folder: an empty folder.
        """
        file = folder / "fp32.onnx"
        onnx.save(graph, file)
        super().__init__(file, augmented_model_path=str(folder / "augmented.onnx"))
        self._share = percentile / 100.0

    def names(self, kinds: Collection[str] | None = None) -> set[str]:
        """Return the names of the activations around operators.

        Args:
            kinds: the operators' types; None for all that ONNX Runtime quantises.
        """
        self.op_types_to_calibrate = kinds or {*QLinearOpsRegistry, *QDQRegistry}
        return {*self.select_tensors_to_calibrate(self.model)[0]}

    def run(self, images: Images, ranked: Collection[str]) -> Ranges:
        """Run the graph, and return the ranges of all activations that can be quantised.

        Args:
            images: the calibration images.
            ranked: the names of the activations whose percentile is wanted.

        Raises:
            ValueError: one of those is not finite.
        """
        others = sorted(self.names() - {*ranked})
        self._augment(sorted(ranked), others)
        self.create_inference_session()
        outputs = [*ranked, *(f"{name}{end}" for name in others for end in _ENDS)]
        size = batch_size(self.infer_session, outputs, images)
        batches = math.ceil(len(images) / size)
        ends: Ends = {}
        found: dict[str, Largest] = {}
        for results in self._results(images, outputs, size):
            for name in ranked:
                if (values := results.pop(name)).size:
                    found.setdefault(name, Largest(self._share, batches * values.size)).add(values)
            for name in others:
                low, high = (results[f"{name}{end}"].reshape(()) for end in _ENDS)
                least, most = ends.get(name, (low, high))
                ends[name] = np.fmin(least, low), np.fmax(most, high)  # as ONNX Runtime, without NaN
        ends |= {name: largest.ends for name, largest in found.items()}
        return Ranges(ends, {name: largest.range() for name, largest in found.items()})

    def histograms(self, images: Images, ends: Ends) -> dict[str, Histogram]:
        """Run the graph again, and return the histograms of some activations.

        Args:
            images: the calibration images.
            ends: the smallest and the largest value of each on these images.

        Raises:
            ValueError: one of those is not finite.
        """
        names = sorted(ends)
        self._augment(names, ())
        self.create_inference_session()
        found = {name: Histogram(*ends[name]) for name in names}
        for results in self._results(images, names, batch_size(self.infer_session, names, images)):
            for name, histogram in found.items():
                histogram.add(results[name])
        return found

    def _results(self, images: Images, outputs: list[str], size: int) -> Iterator[dict[str, Any]]:
        """Yield the outputs of the graph by their names, for so many images at once."""
        for batch in images.batches(size):
            feed = feed_of(names_of(self.infer_session), batch)
            yield dict(zip(outputs, self.infer_session.run(outputs, feed), strict=True))

    def _augment(self, whole: Collection[str], reduced: Collection[str]) -> None:
        """Add outputs to the graph: some activations, and the ends of others, which would fill the memory."""
        graph = self.model.graph
        known = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
        already = {output.name for output in graph.output}
        graph.output.extend(known[name] for name in whole if name not in already)
        for name in reduced:
            # Where the activation is read, so that its memory is free soon.
            place = next((at for at, node in enumerate(graph.node) if name in node.input), len(graph.node))
            for end in _ENDS:
                graph.node.insert(place, onnx.helper.make_node(end[1:], [name], [f"{name}{end}"], name=f"{name}{end}"))
                graph.output.append(onnx.ValueInfoProto(name=f"{name}{end}"))
        onnx.save(self.model, self.augmented_model_path)
