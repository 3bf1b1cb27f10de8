"""Arrays and the inputs of an engine → a refusal of what the engine would read out of bounds or misread. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from model_artifacts.errors import RunError, listed
from model_artifacts.sessions.feeds.batches import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model_artifacts.records import BatchRange, TensorSpec


class Named(Protocol):
    """An input with the sizes of its axes, some of which are names."""

    @property
    def name(self) -> str:
        """The name of the input."""

    @property
    def shape(self) -> Sequence[int | str]:
        """The sizes."""


Shapes = tuple[tuple[int, ...], ...]
"""The shape of each input of a batch."""


def shapes_of(arrays: Sequence[Any]) -> Shapes:
    """Return the shape of each array."""
    return tuple(tuple(array.shape) for array in arrays)


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
        RunError: a type, a shape or the number of samples is another one, or an axis of one name has several sizes.
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
    require_one_size(inputs, arrays)


def require_for_module(
    name: str, inputs: Sequence[TensorSpec], takes: BatchRange | None, feed: Mapping[str, Any]
) -> None:
    """Check the array of each input of a torch module, and that all have as many samples.

    Args:
        name: the module's name in messages.
        inputs: the module's inputs.
        takes: the batch sizes that it takes; None for any.
        feed: the array of each input by its name.

    Raises:
        RunError: a type, a shape, an order of the memory or the number of samples is another one, or an axis of one
            name has several sizes.
    """
    arrays = [feed[spec.name] for spec in inputs]
    counts = {array.shape[:1] for array in arrays}
    size = sum(min(counts))  # of an array without axes 0
    fits = len(counts) == 1 and all(
        array.dtype == np.dtype(spec.dtype) and spec.takes_sample(tuple(array.shape[1:])) and array.flags.c_contiguous
        for spec, array in zip(inputs, arrays, strict=True)
    )
    if fits and (takes.takes(size) if takes else size):
        require_one_size(inputs, arrays)
        return
    batches = f"{takes.min} to {takes.max}" if takes else "batch"
    strided = [array.strides for array in arrays if not array.flags.c_contiguous]
    got = shown(feed if len(inputs) > 1 else arrays[0])
    raise RunError(
        f"{name} takes other batches",
        expected=f"{'; '.join(_described(inputs, batches))}, contiguous",
        got=f"{got}{f' with strides {strided[0]}' if strided else ''}",
    )


def require_one_size(inputs: Sequence[Named], arrays: Sequence[Any]) -> None:
    """Refuse inputs with different sizes of an axis that has one name: no artifact was validated with such.

    Args:
        inputs: the artifact's inputs, or those of a session of ONNX Runtime.
        arrays: the array of each input, with `shape`.

    Raises:
        RunError: an axis of one name has several sizes.
    """
    seen: dict[str, tuple[str, int]] = {}
    for spec, array in zip(inputs, arrays, strict=True):
        for name, size in zip(spec.shape[1:], array.shape[1:], strict=False):
            if not isinstance(name, str):
                continue
            first, known = seen.setdefault(name, (spec.name, size))
            if known != size:
                raise RunError(
                    f"the inputs have different sizes of the axis {name!r}",
                    expected="one size in each",
                    got=listed([f"{known} of {first!r}", f"{size} of {spec.name!r}"]),
                    fix="pad or cut them alike",
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
    return RunError(
        "the engine takes other batches",
        expected="; ".join(f"{text}, contiguous" for text in _described(inputs, batches)),
        got=got,
        fix="split or pad the batch, cast it, or build a profile for it (`profiles` in pipeline.yaml)",
    )


def _described(inputs: Sequence[TensorSpec], batches: str) -> list[str]:
    """Return the type and the shape of each input, of several with its name: `float32 (1 to 4, 3, 32, 32)`."""
    found = [f"{spec.dtype} ({', '.join((batches, *spec.sample_words))})" for spec in inputs]
    return [f"{spec.name}: {text}" for spec, text in zip(inputs, found, strict=True)] if len(inputs) > 1 else found
