"""Engine → the bytes that each input and output takes at most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.host import cuda
from model_artifacts.sessions.feeds.checks import shape_of

if TYPE_CHECKING:
    from model_artifacts.records import TensorSpec
    from model_artifacts.tensorrt.runtime import Context, LoadedEngine


def largest_bytes(loaded: LoadedEngine, context: Context) -> dict[str, int]:
    """Return the bytes of each input and output in the largest batch of the largest samples.

    An output that follows the inputs has no range of its own. The library computes its bound from their ranges.

    Args:
        loaded: the engine.
        context: an execution context of it, whose inputs then have their largest shapes if outputs follow them.

    Raises:
        RunError: an input has an axis without a range, or the size of an output is not known.
    """
    largest = loaded.batches.max
    follows = [spec.name for spec in loaded.outputs if any(isinstance(size, str) for size in spec.shape[1:])]
    for spec in loaded.inputs if follows else ():
        context.set_input_shape(spec.name, shape_of(spec, largest, "max"))
    return {
        spec.name: context.most_bytes(spec.name) if spec.name in follows else _bytes(spec, largest)
        for spec in (*loaded.inputs, *loaded.outputs)
    }


def _bytes(spec: TensorSpec, largest: int) -> int:
    batch = largest if spec.shape[0] == "batch" else int(spec.shape[0])
    return cuda.bytes_of(shape_of(spec, batch, "max"), np.dtype(spec.dtype))
