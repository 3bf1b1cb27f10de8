"""Arrays that callers hand over for a model of tensors → what an artifact takes; or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.deployment.inputs import array_of, check_finite, detached, fix_of_size
from model_artifacts.errors import RunError, UsageError, listed
from model_artifacts.sessions.feeds.checks import require_one_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from model_artifacts.records import TensorSpec
    from model_artifacts.sessions.feeds.batches import Batch


def given_inputs(batch: Any, inputs: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, Any]:  # noqa: ANN401 - whatever a caller hands over
    """Return each input's array by its name, in the order of the artifact.

    Args:
        batch: the array of the one input, or a mapping of arrays by name; None if they are keywords.
        inputs: the keywords.
        specs: the artifact's inputs.

    Raises:
        RunError: there are other inputs than the artifact's.
    """
    names = [spec.name for spec in specs]
    found = dict(batch) if isinstance(batch, Mapping) else dict(inputs)
    twice = batch is not None and bool(inputs)
    if batch is not None and not isinstance(batch, Mapping) and len(names) == 1 and not inputs:
        found = {names[0]: batch}
    if twice or found.keys() != {*names}:
        call = ", ".join(f"{name}=…" for name in names)
        got = listed(sorted(map(str, found))) if found and not twice else "a batch and keywords"
        raise RunError(
            "the artifact takes other inputs",
            expected=listed([_shown(spec) for spec in specs]),
            got=got if found else "none" if batch is None else f"one {type(batch).__name__} without a name",
            fix=f"call `model({call})`, or hand over a mapping of these names",
        )
    return {name: found[name] for name in names}


def checked_inputs(given: Mapping[str, Any], specs: Sequence[TensorSpec], is_near: Callable[[object], bool]) -> Batch:
    """Return the inputs as contiguous arrays of the artifact's types. Every backend then takes and refuses the same.

    Args:
        given: each input's array or tensor, by the names of `specs`.
        specs: the artifact's inputs.
        is_near: tells whether an array lies in the memory of the engine's GPU, where it is read.

    Returns:
        the array of the one input; of several, such an array by the name of each.

    Raises:
        RunError: an array has another type or shape, or is not finite; or the inputs have different numbers of samples.
    """
    arrays = {name: detached(array) for name, array in given.items()}
    if all(is_near(array) for array in arrays.values()):
        for array in arrays.values():
            check_finite(array)
    else:
        arrays = {spec.name: _checked(arrays[spec.name], spec) for spec in specs}
    counts = {name: array.shape[0] if len(array.shape) else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise RunError(
            "the inputs have different numbers of samples",
            expected="as many in each",
            got=listed([f"{count} of {name!r}" for name, count in counts.items()]),
            fix="repeat or cut them, so that each has a row for each sample",
        )
    require_one_size(specs, [arrays[spec.name] for spec in specs])
    return arrays if len(specs) > 1 else arrays[specs[0].name]


def _checked(given: Any, spec: TensorSpec) -> npt.NDArray[Any]:  # noqa: ANN401 - whatever a caller hands over
    expected = _shown(spec)
    array = array_of(given, expected)
    if (
        array.dtype != np.dtype(spec.dtype)
        or not array.ndim
        or not spec.takes_sample(array.shape[1:])
        or not len(array)
    ):
        fix = f"cast it: `.astype(numpy.{spec.dtype})`"
        if array.dtype == np.dtype(spec.dtype):
            lacks_batch = spec.takes_sample(array.shape)
            fix = "add the axis of the batch: `array[None]`" if lacks_batch else "hand over a row for each sample"
            fix = fix_of_size(array.shape, spec) or fix
        got = f"{array.dtype} {array.shape}" if array.ndim else type(given).__name__
        raise RunError(
            f"the artifact takes other arrays for the input {spec.name!r}", expected=expected, got=got, fix=fix
        )
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "f":
        check_finite(array)
    return array


def no_pictures(name: str, specs: Sequence[TensorSpec]) -> UsageError:
    """Return the error of pictures for a model of tensors.

    Args:
        name: the method that takes pictures.
        specs: the artifact's inputs.
    """
    call = ", ".join(f"{spec.name}=…" for spec in specs)
    return UsageError(
        f"`{name}` prepares images, and this model takes tensors as they are",
        expected=listed([_shown(spec) for spec in specs]),
        got="images",
        fix=f"call the model itself: `model({call})`",
    )


def _shown(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} ({', '.join([str(spec.shape[0]), *spec.sample_words])})"
