"""Arrays and the inputs of an engine → a refusal of what the engine would read out of bounds or misread. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_artifacts.records import BatchRange, TensorSpec

Shapes = tuple[tuple[int, ...], ...]
"""The shape of each input of a batch."""


def shapes_of(arrays: Sequence[Any]) -> Shapes:
    """Return the shape of each array."""
    return tuple(tuple(array.shape) for array in arrays)


def sample_of(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of a sample of an input whose axes are fixed, but for the batch."""
    return tuple(int(size) for size in spec.shape[1:])


def shape_of(spec: TensorSpec, batch: int, end: str) -> tuple[int, ...]:
    """Return the shape of a batch of an input or output, with its dynamic axes at one end of their ranges.

    Args:
        spec: the tensor.
        batch: the number of samples.
        end: min, opt or max.

    Raises:
        RunError: an axis is dynamic, and has no range.
    """
    ranges = {axis.name: axis for axis in spec.ranges}
    if free := [size for size in spec.shape[1:] if isinstance(size, str) and size not in ranges]:
        raise RunError(
            f"the size of {spec.name!r} is not known",
            expected="fixed axes, or axes with a range",
            got=f"({', '.join(map(str, spec.shape))})",
            fix=f"build an artifact whose axis {free[0]!r} is fixed",
        )
    sizes = (size if isinstance(size, int) else getattr(ranges[size], end) for size in spec.shape[1:])
    return (batch, *map(int, sizes))


def require_batch(inputs: Sequence[TensorSpec], takes: BatchRange, arrays: Sequence[Any]) -> None:
    """Check the arrays of a batch, each by its input, and that all have as many samples.

    Args:
        inputs: the engine's inputs.
        takes: the batch sizes that it takes.
        arrays: the array of each input, with `shape` and `dtype`.

    Raises:
        RunError: a type, a shape or the number of samples is another one.
    """
    for spec, array in zip(inputs, arrays, strict=True):
        shape = tuple(array.shape)
        fits = len(shape) > 0 and spec.takes_sample(shape[1:]) and takes.takes(shape[0])
        if not fits or array.dtype != np.dtype(spec.dtype):
            name = f"{spec.name}: " if len(inputs) > 1 else ""
            raise refusal(inputs, takes, f"{name}{array.dtype} {shape}")
    if len({array.shape[0] for array in arrays}) > 1:
        raise refusal(
            inputs, takes, f"{listed([str(array.shape[0]) for array in arrays])} samples for the inputs of one batch"
        )


def require_usable(*, ended: bool, prepared: bool = True) -> None:
    """Check that a session has its buffers still, and a prepared batch.

    Args:
        ended: its `with` block has ended.
        prepared: a batch is prepared, or need not be.

    Raises:
        RunError: it has ended, or no batch is prepared.
    """
    if ended:
        raise RunError("the session has ended", expected="a call within its `with` block", got="one after it")
    if not prepared:
        raise RunError("no batch is prepared", expected="a call of `prepare` first", got="one that starts a batch")


def refusal(inputs: Sequence[TensorSpec], takes: BatchRange, got: str) -> RunError:
    """Return the error of a batch that an engine does not take."""
    batches = str(takes.min) if takes.is_fixed else f"{takes.min} to {takes.max}"
    expected = [f"{spec.dtype} ({', '.join((batches, *spec.sample_words))}), contiguous" for spec in inputs]
    if len(inputs) > 1:
        expected = [f"{spec.name}: {text}" for spec, text in zip(inputs, expected, strict=True)]
    return RunError(
        "the engine takes other batches",
        expected="; ".join(expected),
        got=got,
        fix="split or pad the batch, cast it, or build a profile for it (`profiles` in pipeline.yaml)",
    )
