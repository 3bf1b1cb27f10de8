"""A batch in equal parts that run at once: contexts of one engine side by side, each on a stream of its own.

The kernels of a part leave room on the GPU where their last blocks end one after the other. Those of another part fill
it. On an H200 two parts of 128 images take 0.973 × the time of the engine for 256 (docs/performance.md, Tuning).
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import RunError
from model_artifacts.host import cuda

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model_artifacts.records import TensorSpec
    from model_artifacts.tensorrt.inspector import EngineLayer
    from model_artifacts.tensorrt.runtime import ExecutionContext

_ALIGNMENT = 256
"""The alignment of a tensor's address in bytes, which TensorRT asks for (`IExecutionContext::setTensorAddress`)."""


def part_obstacle(specs: Sequence[TensorSpec]) -> str:
    """Return the reason why inputs and outputs of a part cannot lie one behind the other; empty if they can. Pure.

    Args:
        specs: the inputs and outputs of one part.
    """
    for spec in specs:
        sizes = [size for size in spec.shape if isinstance(size, int)]
        if len(sizes) < len(spec.shape) or not sizes:
            return f"{spec.name} has axes of several sizes"
        if not _is_known(spec.dtype):
            return f"{spec.name} is of the type {spec.dtype}, which NumPy does not know"
        if rest := bytes_of_part(spec) % _ALIGNMENT:
            return (
                f"a part of {spec.name} has {bytes_of_part(spec):,} bytes, {rest} more than a multiple of "
                f"{_ALIGNMENT}, so that the next one could not begin there"
            )
    return ""


def _is_known(dtype: str) -> bool:
    """Return True for a type that arrays can have."""
    try:
        np.dtype(dtype)
    except TypeError:
        return False
    return True


def bytes_of_part(spec: TensorSpec) -> int:
    """Return the bytes of an input or output, all of whose axes have one size."""
    return cuda.bytes_of(tuple(int(size) for size in spec.shape), np.dtype(spec.dtype))


def of_all_parts(spec: TensorSpec, parts: int) -> TensorSpec:
    """Return the spec of the whole batch of an input or output of one part."""
    if parts == 1:
        return spec
    return spec.model_copy(update={"shape": (int(spec.shape[0]) * parts, *spec.shape[1:])})


class _Side(NamedTuple):
    """A part that runs beside the first one."""

    context: ExecutionContext
    stream: cuda.Stream
    ended: cuda.Event
    """The moment at which its latest batch is done."""


class SplitContext:
    """The execution contexts of a batch's parts. It has the methods of one context, for the whole batch."""

    def __init__(self, contexts: Sequence[ExecutionContext], part_bytes: Mapping[str, int]) -> None:
        """Make the streams of all parts but the first, which runs on the caller's.

        Args:
            contexts: a context for each part, at least two. They stay the caller's if this fails.
            part_bytes: the bytes of one part of each input and output, by its name.

        Raises:
            RunError: CUDA cannot make a stream or an event.
        """
        self._contexts = tuple(contexts)
        self._part_bytes = part_bytes
        self._sides: list[_Side] = []
        with ExitStack() as made:
            self._begun = made.enter_context(closing(cuda.Event()))
            for context in self._contexts[1:]:
                own = made.enter_context(closing(cuda.Stream()))
                self._sides.append(_Side(context, own, made.enter_context(closing(cuda.Event()))))
            self._made = made.pop_all()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set an input's shape for the next batch: its rows are divided among the parts.

        Args:
            name: name of the input.
            shape: sizes of all axes, the batch first.

        Raises:
            RunError: the rows cannot be divided, or the engine does not accept the shape of a part.
        """
        rows, rest = divmod(shape[0], len(self._contexts))
        if rest:
            raise RunError(f"a batch of {shape[0]} has no {len(self._contexts)} equal parts")
        for context in self._contexts:
            context.set_input_shape(name, (rows, *shape[1:]))

    def set_address(self, name: str, pointer: int) -> None:
        """Set a tensor's address in GPU memory, at which the parts lie one behind the other.

        Args:
            name: name of the input or output.
            pointer: address of the first element.

        Raises:
            RunError: the engine does not accept the address.
        """
        for number, context in enumerate(self._contexts):
            context.set_address(name, pointer + number * self._part_bytes[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of the whole batch."""
        rows, *others = self._contexts[0].shape(name)
        return (rows * len(self._contexts), *others)

    def most_bytes(self, name: str) -> int:
        """Return the most bytes that an output of the whole batch takes.

        Raises:
            RunError: the library does not know it.
        """
        return self._contexts[0].most_bytes(name) * len(self._contexts)

    def enqueue(self, stream: int) -> None:
        """Put the batch on a stream. The parts begin after its present work, and its later work after all of them.

        Args:
            stream: handle of the CUDA stream.

        Raises:
            RunError: the engine cannot be run. Parts that have begun end before the stream's later work all the same.
        """
        runtime = cuda.runtime
        cuda.check(runtime.cudaEventRecord(self._begun.handle, stream))
        started = []
        try:
            for side in self._sides:
                side.stream.wait(self._begun)
                started.append(side)
                side.context.enqueue(side.stream.handle)
                side.ended.record(side.stream)
            self._contexts[0].enqueue(stream)
            for side in started:
                cuda.check(runtime.cudaStreamWaitEvent(stream, side.ended.handle, 0))
        except BaseException:
            for _, own, ended in started:  # without a check: what fails here, too, would hide the first error
                runtime.cudaEventRecord(ended.handle, own.handle)
                runtime.cudaStreamWaitEvent(stream, ended.handle, 0)
            raise

    def layers(self) -> tuple[EngineLayer, ...]:
        """Return the engine's layers from its inspector, with the shapes of the whole batch."""
        return tuple(replace(layer, shape=self._of_all(layer.shape)) for layer in self._contexts[0].layers())

    def _of_all(self, shape: str) -> str:
        """Return a shape such as `64x10` with the rows of all parts."""
        rows, cross, others = shape.partition("x")
        return f"{int(rows) * len(self._contexts)}{cross}{others}" if rows.isdecimal() else shape

    def time_layers(self, stream: int, runs: int) -> dict[str, float]:
        """Run the parts one after the other, and return each layer's time of them all, in milliseconds.

        Args:
            stream: handle of the CUDA stream.
            runs: number of batches.

        Returns:
            the layer's name → the sum of its median times in the parts.

        Raises:
            RunError: the engine cannot be run.
        """
        times: dict[str, float] = {}
        for context in self._contexts:
            for name, taken in context.time_layers(stream, runs).items():
                times[name] = times.get(name, 0.0) + taken
        return times

    def runtime_cache(self) -> bytes | None:
        """Return the kernels compiled for this GPU so far, which all parts share; None for flavours without any."""
        return self._contexts[0].runtime_cache()

    def release(self) -> None:
        """Free the contexts' memory, then the objects that they use."""
        with self._made:
            self._sides.clear()
            for context in self._contexts:
                context.release()
