"""Batches: an array of the one input, or of several inputs such an array by the name of each. Pure.

The first axis of every array is the sample. Torch's code holds several tensors in a tuple, in the model's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

Batch = Any
"""The array of the one input; of several inputs, a dictionary with an array by the name of each.

The model's signature decides which, so that types do not tell them apart.
"""


class Parts:
    """Arrays of the host that are one batch, one after another: an engine's session copies each where it is needed.

    Joined first, every byte would be copied twice.
    """

    def __init__(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Take arrays.

        Args:
            arrays: at least one, contiguous, of one type and of samples of one shape.
        """
        self.arrays = tuple(arrays)
        self.dtype = self.arrays[0].dtype
        self.shape = (sum(map(len, self.arrays)), *self.arrays[0].shape[1:])


def parts_of(batches: Sequence[Batch]) -> Batch:
    """Return several batches as one: `Parts` where the arrays allow it, else new arrays.

    Args:
        batches: at least one, with the same inputs.
    """
    if isinstance(batches[0], dict):
        return {name: _parts_of([batch[name] for batch in batches]) for name in batches[0]}
    return _parts_of(batches)


def _parts_of(arrays: Sequence[npt.NDArray[Any]]) -> Any:  # noqa: ANN401 - an array, or parts of one
    first = arrays[0]
    kind, sample = first.dtype, first.shape[1:]
    if all(array.dtype == kind and array.shape[1:] == sample and array.flags.c_contiguous for array in arrays):
        return Parts(arrays)
    return np.concatenate(arrays)


def each(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """Return a batch with each of its arrays or tensors changed."""
    if isinstance(batch, dict):
        return {name: change(array) for name, array in batch.items()}
    if isinstance(batch, tuple):
        return tuple(change(tensor) for tensor in batch)
    return change(batch)


def values_of(batch: Batch) -> tuple[Any, ...]:
    """Return the arrays or tensors of a batch in the model's order."""
    if isinstance(batch, dict):
        return tuple(batch.values())
    return batch if isinstance(batch, tuple) else (batch,)


def size_of(batch: Batch) -> int:
    """Return the number of samples in a batch."""
    return len(values_of(batch)[0])


def rows_of_batch(batch: Batch, chosen: Any) -> Batch:  # noqa: ANN401 - whatever numpy takes for an index
    """Return the chosen samples of a batch as contiguous arrays: a slice, or their numbers in any order."""
    return each(batch, lambda array: np.ascontiguousarray(array[chosen]))


def filled(batch: Batch, size: int) -> Batch:
    """Return a batch of this size: its samples, repeated where they are too few."""
    return each(batch, lambda array: np.resize(array, (size, *array.shape[1:])))


def from_fields(rows: npt.NDArray[Any]) -> Batch:
    """Return a batch from an array with a field for each input.

    Args:
        rows: (samples,), of a structured type.
    """
    names = rows.dtype.names or ()
    arrays = {name: np.ascontiguousarray(rows[name]) for name in names}
    return arrays if len(arrays) > 1 else arrays[names[0]]


def feed_of(names: Sequence[str], batch: Batch) -> dict[str, Any]:
    """Return each input's array by its name.

    Args:
        names: the names of the artifact's inputs.
        batch: the batch.

    Raises:
        RunError: the artifact has other inputs than the batch.
    """
    several = isinstance(batch, dict)
    if (several and batch.keys() != {*names}) or (not several and len(names) != 1):
        raise RunError(
            "the artifact has other inputs than the batch",
            expected=listed(list(names)) if names else "none",
            got=listed(list(batch)) if several else "one array",
            fix="build it from the network that the manifest describes",
        )
    return {name: batch[name] for name in names} if several else {names[0]: batch}


def shown(batch: Batch) -> str:
    """Return the types and the shapes of a batch as messages show them: `float32 (2, 3, 32, 32)`."""
    if isinstance(batch, dict):
        return ", ".join(f"{name}: {shown(array)}" for name, array in batch.items())
    return f"{getattr(batch, 'dtype', type(batch).__name__)} {tuple(getattr(batch, 'shape', ()))}"
