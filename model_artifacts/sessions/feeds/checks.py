"""Arrays and the inputs of an engine → a refusal of what the engine would read out of bounds or misread. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_artifacts.records import BatchRange, TensorSpec


def sample_of(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of a sample of an input."""
    return tuple(int(size) for size in spec.shape[1:])


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
        fits = len(shape) > 0 and shape[1:] == sample_of(spec) and takes.takes(shape[0])
        if not fits or array.dtype != np.dtype(spec.dtype):
            name = f"{spec.name}: " if len(inputs) > 1 else ""
            raise refusal(inputs, takes, f"{name}{array.dtype} {shape}")
    if len({array.shape[0] for array in arrays}) > 1:
        raise refusal(
            inputs, takes, f"{listed([str(array.shape[0]) for array in arrays])} samples for the inputs of one batch"
        )


def refusal(inputs: Sequence[TensorSpec], takes: BatchRange, got: str) -> RunError:
    """Return the error of a batch that an engine does not take."""
    batches = str(takes.min) if takes.is_fixed else f"{takes.min} to {takes.max}"
    expected = [f"{spec.dtype} ({', '.join(map(str, (batches, *sample_of(spec))))}), contiguous" for spec in inputs]
    if len(inputs) > 1:
        expected = [f"{spec.name}: {text}" for spec, text in zip(inputs, expected, strict=True)]
    return RunError(
        "the engine takes other batches",
        expected="; ".join(expected),
        got=got,
        fix="split or pad the batch, cast it, or build a profile for it (`profiles` in pipeline.yaml)",
    )
