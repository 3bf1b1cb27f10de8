"""Rows of outputs → the margin of each answer, and the sums of squares of each part. Pure.

A row holds everything that the network gives for an image: the values of its outputs, one output after the other. What
is measured is measured for each output's columns apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.errors import RunError, listed
from model_artifacts.records import Task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import Io
    from model_artifacts.sessions.onnx import Outputs
    from pipeline.records import SourceRecord

    Rows = npt.NDArray[np.float32]


class Span(NamedTuple):
    """The columns of an output in the rows of all outputs."""

    name: str
    """The output's name; empty for the one output of a model, in whose rows it is alone."""
    shape: tuple[int, ...] | None
    """The shape of one sample; None for logits and vectors."""
    columns: slice

    def label(self, metric: str) -> str:
        """Return the name of a metric of this output."""
        return f"{self.name}: {metric}" if self.name else metric


def spans_of(source: SourceRecord, shapes: Sequence[tuple[int, ...]] = ()) -> tuple[Span, ...]:
    """Return the columns of each output, in the model's order.

    Args:
        source: the model.
        shapes: the shape of each output for an image of another size; empty for the network's own.
    """
    if not source.named_outputs:
        return (Span("", shapes[0] if shapes else source.sample_shape, slice(None)),)
    spans, start = [], 0
    own = [tuple(int(size) for size in spec.shape[1:]) for spec in source.named_outputs]
    for spec, shape in zip(source.named_outputs, shapes or own, strict=True):
        spans.append(Span(spec.name, shape, slice(start, start + math.prod(shape))))
        start += math.prod(shape)
    return tuple(spans)


ALONE = (Span("", None, slice(None)),)
"""The columns of one output."""


def rows_of(outputs: Outputs, spans: Sequence[Span] = ALONE, what: str = "the artifact") -> Rows:
    """Return the outputs of a batch as rows: (batch, values of all outputs).

    Args:
        outputs: an array (batch, …), or of several outputs such an array by the name of each.
        spans: the columns of each output. An artifact may give its outputs in another order: names decide.
        what: whose outputs they are, as messages name it.

    Raises:
        RunError: the artifact has other outputs than the model, or one of another shape.
    """
    names = [span.name for span in spans]
    found = outputs if isinstance(outputs, dict) else {"": outputs}
    if found.keys() != {*names}:
        raise RunError(
            f"{what} has other outputs than the model",
            expected=listed(names) if any(names) else "one output",
            got=listed([*found]) if any(found) else "one output",
        )
    for name, shape, _ in spans:
        if shape is not None and found[name].shape[1:] != shape:
            got, output = str(found[name].shape[1:]), f"output {name!r}" if name else "its output"
            raise RunError(f"{what} has another shape of {output}", expected=str(shape), got=got)
    rows = [found[name].reshape(len(found[name]), -1) for name in names]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


def load_rows(file: Path, spans: Sequence[Span]) -> Rows:
    """Return the rows of a file: (samples, values of all outputs).

    Args:
        file: a npy file with the rows of one output, or a npz file with an array by the name of each of several.
        spans: the columns of each output.

    Raises:
        RunError: the file has other outputs.
    """
    if len(spans) == 1:
        rows: Rows = np.load(file)
        return rows
    with np.load(file) as arrays:
        return rows_of({name: arrays[name] for name in arrays.files}, spans, str(file))


def of_each_output(rows: Rows, spans: Sequence[Span]) -> dict[str, Rows]:
    """Return each output by its name: (samples, …).

    Args:
        rows: the rows of all outputs.
        spans: the columns of each, of several outputs.
    """
    return {name: rows[:, columns].reshape(len(rows), *(shape or ())) for name, shape, columns in spans}


def shown_rows(outputs: Outputs, io: Io, classes: int) -> Rows:
    """Return what an artifact shows of each image's logits: (batch, classes), the logarithms of its probabilities.

    A class that it does not show has minus infinity. An image with a value that is not finite, or below zero, has NaN.

    Args:
        outputs: the artifact's outputs: probabilities, and for a top-k the indices of their classes.
        io: its output, which is no logits.
        classes: the number of the network's classes.

    Raises:
        RunError: the outputs have no such form: names, shapes, order, or classes that are none.
    """
    names = ["probabilities"] if io.top is None else ["probabilities", "indices"]
    found = outputs if isinstance(outputs, dict) else {names[0]: outputs}
    width = io.top or classes
    if {*found} != {*names} or any(array.ndim != 2 or array.shape[1] != width for array in found.values()):  # noqa: PLR2004
        got = ", ".join(f"{name} {array.shape}" for name, array in found.items())
        raise RunError("the artifact gives other outputs", expected=f"{listed(names)}, (batch, {width})", got=got)
    values = np.asarray(found["probabilities"], dtype=np.float64)
    finite = np.asarray((np.isfinite(values) & (values >= 0)).all(axis=1))
    logs = np.where(finite[:, None], _logarithms(values), np.nan)
    if io.top is None:
        return logs.astype(np.float32)
    places = found["indices"]
    _require_ranked(values[finite], places[finite], classes)
    rows = np.full((len(values), classes), -np.inf)
    np.put_along_axis(rows, np.where(finite[:, None], places, np.arange(width)), logs, axis=1)
    rows[~finite] = np.nan
    return rows.astype(np.float32)


_SMALLEST = np.log(np.finfo(np.float32).tiny).astype(np.float32)
"""The logarithm of the smallest normal number of FP32, below which some GPUs round to zero."""


def _logarithms(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the logarithms of probabilities; `_SMALLEST` for all that are as small, or zero."""
    small = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    found: Rows = np.maximum(small.astype(np.float32), _SMALLEST)
    return found


_RISE = 1e-5
"""The largest rise between two probabilities in order, as a share: their rounding in FP32."""


def _require_ranked(values: npt.NDArray[np.float64], places: npt.NDArray[Any], classes: int) -> None:
    """Check the form of a top-k.

    Raises:
        RunError: an index is no class or there twice, or a probability is larger than the one before.
    """
    whole = np.issubdtype(places.dtype, np.integer)
    if not whole or ((places < 0) | (places >= classes)).any() or (np.diff(np.sort(places, axis=1), axis=1) == 0).any():
        got = f"{places.dtype} from {places.min()} to {places.max()}" if places.size else str(places.dtype)
        raise RunError(
            "the artifact's indices are not those of different classes",
            expected=f"whole numbers from 0 to {classes - 1}, each once for an image",
            got=got,
        )
    if (values[:, 1:] > values[:, :-1] * (1 + _RISE)).any():
        raise RunError("the artifact's probabilities are not in order", expected="the largest first", got="a rise")


def as_shown(logits: Rows, io: Io) -> Rows:
    """Return what an artifact with these logits shows of them, as `shown_rows` does."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        logs = _logarithms(np.exp(wide - _log_sum(wide)))
    if io.top is not None:
        order = np.argsort(-wide, axis=1, kind="stable")[:, io.top :]
        np.put_along_axis(logs, order, -np.inf, axis=1)
    logs[~np.isfinite(wide).all(axis=1)] = np.nan
    return logs.astype(np.float32)


def lifted(rows: Rows, reference: Rows) -> Rows:
    """Return shown rows on the scale of the reference's logits, so that both are compared as logits are.

    A probability tells a logit but for a number that is added to all of an image. The reference's is taken, so that a
    wrong sum of the probabilities shows. A class that is not shown lies below all that are. If the reference says so,
    too, the class has the reference's logit: nothing is known against it. Otherwise its rank is wrong by as much as
    lies between. The same holds for a probability that FP32 rounds to zero: it lies below the smallest normal number.

    Args:
        rows: as `shown_rows` returns them.
        reference: the logits of the FP32 network (samples, classes).
    """
    want = reference.astype(np.float64)
    shown = rows + _log_sum(want)
    shown = np.where(rows <= _SMALLEST, np.minimum(want, shown), shown)
    hidden = np.isneginf(rows)
    lowest = np.where(hidden, np.inf, shown).min(axis=1, keepdims=True).astype(np.float32)
    below = np.minimum(want, np.nextafter(lowest, np.float32(-np.inf)))
    return np.where(hidden, below, shown).astype(np.float32)


def shown_share(reference: Rows, io: Io) -> float:
    """Return the share of the reference's norm that an output shows, or the share of the classes if that is larger.

    A bound on the relative L2 of all logits, times this share, is as strict for those that are shown.
    """
    if io.top is None:
        return 1.0
    squares = np.square(reference.astype(np.float64))
    first = np.argsort(-reference, axis=1)[:, : io.top]
    largest = float(np.take_along_axis(squares, first, axis=1).sum())
    share = math.sqrt(largest / max(float(squares.sum()), np.finfo(float).tiny))
    return min(1.0, max(share, math.sqrt(io.top / reference.shape[1])))


def _log_sum(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the logarithm of the sum of the exponentials of each row: (samples, 1)."""
    most = logits.max(axis=1, keepdims=True)
    total: npt.NDArray[np.float64] = most + np.log(np.exp(logits - most).sum(axis=1, keepdims=True))
    return total


def margins(logits: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the difference between the logits of the reference's two first classes, for each sample.

    Args:
        logits: (samples, classes).
        reference: (samples, classes); it decides which two classes. With one class the margin is infinite.
    """
    if reference.shape[1] < 2:  # noqa: PLR2004 - two classes make a margin
        return np.full(len(reference), np.inf)
    first = np.argsort(-reference, axis=1)[:, :2]
    pair = np.take_along_axis(logits, first, axis=1)
    return pair[:, 0] - pair[:, 1]


def pixel_margins(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the difference between the logits of the reference's two first classes, for each pixel of an image.

    Args:
        logits: (classes, pixels), of two classes or more.
        reference: (classes, pixels); it decides which two classes.
    """
    first, second = np.argpartition(-reference, 1, axis=0)[:2]
    places = np.arange(reference.shape[1])
    apart: npt.NDArray[np.float32] = logits[first, places] - logits[second, places]
    return apart


def moved_answers(
    logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], shape: Sequence[int] | None, task: Task
) -> npt.NDArray[np.float32] | npt.NDArray[np.float64] | None:
    """Return how far each answer moved towards a change, in units of the logits; None for tasks without such answers.

    Args:
        logits: flattened outputs (samples, values).
        reference: those of FP32.
        shape: the shape of a sample; None for logits and vectors.
        task: the task: the margin of a sample or of a pixel moves, or the logit of a label.
    """
    if task is Task.SEGMENTATION and shape is not None:
        pairs = (
            (got.reshape(shape[0], -1), want.reshape(shape[0], -1)) for got, want in zip(logits, reference, strict=True)
        )
        moved = np.concatenate([pixel_margins(got, want) - pixel_margins(want, want) for got, want in pairs])
        return np.asarray(np.abs(moved), dtype=np.float32)
    if task is Task.MULTILABEL:
        return np.abs(logits.astype(np.float64) - reference).ravel()
    if shape is not None:
        return None
    wide = reference.astype(np.float64)
    return np.abs(margins(logits.astype(np.float64), wide) - margins(wide, wide))


_MOST_PARTS = 256
"""The most parts of an axis. A longer one, of places or of flattened channels, is cut into runs of neighbours."""


class Parts(NamedTuple):
    """The parts of an output, for distances that no other part hides."""

    shape: tuple[int, ...]
    """The shape of one sample."""
    weights: npt.NDArray[np.float64]
    """By which each part's relative L2 is multiplied, to be held to the bound of the whole."""
    tolerance: float = 0.0
    """The error of a value that the user takes for none, in the output's own unit."""
    sizes: npt.NDArray[np.float64] | None = None
    """The usual root mean square of each part's norm. A distance is divided by no less: some images leave a part empty,
    in which a distance relative to them says nothing."""


def parts_of(shape: Sequence[int]) -> tuple[str, ...]:
    """Return the names of an output's parts: each entry of each axis, or each run of entries of a long one.

    A norm over all of an output hides an error in what is small, such as scores beside boxes in pixels. Which axis
    holds what belongs together is unknown, so every axis is cut apart.

    Args:
        shape: the shape of one sample, without the batch.
    """
    names = []
    for axis, size in enumerate(shape, start=1):  # the batch is axis 0
        starts = _starts(size)
        for first, last in zip(starts, [*(starts[1:] - 1), size - 1], strict=True) if size > 1 else ():
            names.append(f"axis {axis}, " + (f"entry {first}" if first == last else f"entries {first} to {last}"))
    return tuple(names)


def part_squares(rows: npt.NDArray[np.float64], shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the sum of squares of each part, for each sample.

    Args:
        rows: (samples, values), the flattened samples.
        shape: the shape of one sample.

    Returns:
        (samples, parts), in the order of `parts_of`.
    """
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    found = np.empty((len(rows), len(parts_of(shape))))
    for number, row in enumerate(rows):  # one at a time: a map's squares in float64 are large
        squares = np.square(row.reshape(shape))
        sums = [squares.sum(axis=tuple(other for other in range(len(shape)) if other != axis)) for axis in axes]
        cut = [np.add.reduceat(part, _starts(len(part))) for part in sums]
        found[number] = np.concatenate(cut) if cut else []
    return found


def part_largest(rows: npt.NDArray[np.float64], shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the largest absolute value of each part over all samples, in the order of `parts_of`.

    Args:
        rows: (samples, values), the flattened samples, at least one.
        shape: the shape of one sample.
    """
    largest = np.abs(rows).max(axis=0).reshape(shape)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    found = [largest.max(axis=tuple(other for other in range(len(shape)) if other != axis)) for axis in axes]
    return np.concatenate([np.maximum.reduceat(part, _starts(len(part))) for part in found]) if found else np.empty(0)


def _starts(size: int) -> npt.NDArray[np.int64]:
    """Return the first entries of an axis's parts, which are nearly equally long."""
    parts = min(size, _MOST_PARTS)
    return np.arange(parts, dtype=np.int64) * size // parts


def nearest(pixels: int, places: int) -> npt.NDArray[np.int64]:
    """Return the pixel below the centre of each of an output's places.

    Args:
        pixels: the number of pixels of an axis.
        places: the number of the output's places along it.
    """
    centres: npt.NDArray[np.int64] = ((np.arange(places) + 0.5) * pixels / places).astype(np.int64)
    return centres
