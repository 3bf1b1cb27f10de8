"""Torch module → a session that turns batches into logits, on the CPU or on a GPU."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from model_artifacts.errors import RunError, one_line
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Backend, Layout, Precision, Recipe, call_of
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.arithmetic import fastest, kept_randomness, strict_fp32, tensors
from model_artifacts.sessions.feeds.batches import feed_of
from model_artifacts.sessions.feeds.checks import require_for_module, shape_of, shapes_of
from model_artifacts.sessions.onnx import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model_artifacts.host import cuda
    from model_artifacts.records import Gpu, ModuleContents, TensorSpec, Variant
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.feeds.checks import Shapes
    from model_artifacts.sessions.onnx import Outputs
    from model_artifacts.sessions.opening import ArtifactFile


FORMATS = {Layout.CONTIGUOUS: torch.contiguous_format, Layout.CHANNELS_LAST: torch.channels_last}

_WARM_UP = 3
"""The number of runs before a CUDA graph is captured, from torch's documentation of CUDAGraph."""
_KEPT = 16
"""The most shapes whose buffers stay without a CUDA graph: a module of many sizes would keep the memory of each."""


@dataclass(frozen=True)
class Loaded:
    """A module on its device."""

    module: nn.Module
    parts: list[nn.Module] = field(default_factory=list)
    """The parts that Torch-TensorRT compiled: the module, or one for each batch size compiled in this process."""
    warm_up: tuple[int, ...] = ()
    """The batch sizes that are compiled before the module counts as open."""
    constant_weights: bool = False
    """True if those are compiled with the weights as constants."""
    output_names: tuple[str, ...] = ()
    """The names of several outputs, in the module's order; () for one."""


def load_compiled(file: ArtifactFile) -> Loaded:
    """Return a Torch-TensorRT module on its device.

    Args:
        file: a saved module, or a recipe, which is compiled anew. The caller has checked its digest.

    Raises:
        UnsupportedError: this host lacks Torch-TensorRT or its driver.
        RunError: other versions made the module, it cannot be read, or the recipe belongs to another model.
    """
    facts, backend = file.module, file.variant.backend
    if facts is None or facts.contents is None:
        raise RunError(f"{file.id} does not record the libraries that made it", fix=file.fix)
    torch_tensorrt_runtime.check_made_here(facts.contents.libraries)
    if backend is not Backend.TORCH_COMPILE:
        module = torch_tensorrt_runtime.load(torch_tensorrt_runtime.load_library(), backend, file.path, file.gpu)
        # An AOTInductor package is no torch module, and shows nothing of its contents.
        return Loaded(module, [module] if isinstance(module, nn.Module) else [], output_names=facts.output_names)
    recipe = read_record(file.path, Recipe, fix=file.fix)
    torch_tensorrt_runtime.check_made_here(recipe.libraries)
    called = (recipe.factory, recipe.arguments, recipe.output_names)
    if called != (facts.factory, facts.arguments, facts.output_names):
        raise RunError(
            f"{file.path} calls another function than the model's factory, or with other arguments or outputs",
            expected=call_of(facts.factory, facts.arguments),
            got=call_of(recipe.factory, recipe.arguments),
            fix=f"do not use it; {file.fix}",
        )
    model = torch_tensorrt_runtime.model_of(facts.root, recipe, file.fix).to(torch_tensorrt_runtime.device_of(file.gpu))
    library, arguments = torch_tensorrt_runtime.load_library(), torch_tensorrt_runtime.arguments_of(recipe.settings)
    parts: list[nn.Module] = []
    module = torch_tensorrt_runtime.compile_in_time(library, model, arguments, parts.append)
    return Loaded(module, parts, recipe.warm_up, recipe.constant_weights, facts.output_names)


@contextmanager
def open_session(
    loaded: Loaded, variant: Variant, inputs: Sequence[TensorSpec], gpu: Gpu | None
) -> Iterator[ModuleSession]:
    """Open a session for the calling thread, without gradients, and with TF32 unless the variant is strict FP32.

    A module that is compiled just in time has been compiled for its recipe's batch sizes once the session is open.

    Args:
        loaded: float32 (batch, channels, height, width), or several tensors → float32 (batch, classes), or a tuple of
            several outputs.
        variant: the module's variant.
        inputs: the module's inputs in its order, of which the first axis is the batch.
        gpu: the GPU; None for the CPU.

    Raises:
        RunError: the GPU cannot be used.
    """
    with _opened(loaded, variant, inputs, gpu) as session, session.surroundings():
        session.warm_up()
        yield session


_TORCH = threading.RLock()
"""Held while a deployment's module runs: torch's settings of the arithmetic belong to the whole process."""


@contextmanager
def open_guest(
    load: Callable[[], Loaded], variant: Variant, inputs: Sequence[TensorSpec], gpu: Gpu | None
) -> Iterator[Callable[[Batch], Outputs]]:
    """Open a session as `open_session` does, for any thread of an application that uses torch itself.

    Settings of torch, random states and the current GPU are as before between the calls. Modules take turns.

    Yields:
        a function from float32 (batch, channels, height, width), of several inputs from an array by the name of each,
        to float32 (batch, classes); of several outputs, to such an array by the name of each.
    """
    with ExitStack() as stack:
        with _TORCH, kept_randomness():
            session = stack.enter_context(_opened(load(), variant, inputs, gpu))
            with session.surroundings():
                session.warm_up()

        def run(batch: Batch) -> Outputs:
            with _TORCH, session.surroundings():
                return session(batch)

        yield run


@contextmanager
def _opened(loaded: Loaded, variant: Variant, inputs: Sequence[TensorSpec], gpu: Gpu | None) -> Iterator[ModuleSession]:
    """Open a session that has not run yet, and free its memory and its stream in the end."""
    with ExitStack() as stack:
        stream = None
        if gpu is not None:
            from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

            with cuda.using(gpu):
                stream = cuda.Stream()
            stack.callback(stream.close)
        session = ModuleSession(loaded, variant, inputs, gpu, stream)
        stack.callback(session.close)
        yield session


class ModuleSession:
    """A session with buffers of its own, and a CUDA graph for every prepared batch size and layout."""

    def __init__(
        self,
        loaded: Loaded,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        gpu: Gpu | None,
        stream: cuda.Stream | None,
    ) -> None:
        self._loaded = loaded
        self._module = loaded.module
        self._variant = variant
        self._specs = tuple(inputs)
        self._names = loaded.output_names or ("",)
        self._gpu = gpu
        self._device = torch_tensorrt_runtime.device_of(gpu)
        self._stream = stream
        self._inputs: dict[tuple[Shapes, Layout], tuple[torch.Tensor, ...]] = {}
        self._graphs: dict[tuple[Shapes, Layout], tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]] = {}
        self._pinned: dict[tuple[Shapes, Layout], tuple[torch.Tensor, ...]] = {}
        self._landed: dict[tuple[Shapes, Layout], tuple[torch.Tensor, ...]] = {}
        self._now: tuple[Shapes, Layout] = ((), Layout.CONTIGUOUS)
        self._outputs: tuple[torch.Tensor, ...] = ()
        self.graph_trouble = ""
        """The reason why this module has no CUDA graph; empty if it has one."""

    @property
    def stream(self) -> cuda.Stream:
        """The CUDA stream of all its work.

        Raises:
            RunError: the module runs on the CPU.
        """
        if self._stream is None:
            raise RunError(f"{self._variant.id} runs on the CPU, and has no CUDA stream")
        return self._stream

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Give this thread and torch what the module runs with for a block: arithmetic, GPU and stream.

        Raises:
            RunError: the GPU cannot be used.
        """
        with ExitStack() as stack:
            stack.enter_context(strict_fp32() if self._variant.precision is Precision.FP32 else fastest())
            stack.enter_context(torch_tensorrt_runtime.tracing(constant_weights=self._loaded.constant_weights))
            if self._gpu is not None:
                from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

                stack.enter_context(cuda.using(self._gpu))
                ours = torch.cuda.ExternalStream(self.stream.handle, device=self._gpu.index)  # type: ignore[no-untyped-call]
                stack.enter_context(torch.cuda.stream(ours))
            yield

    def warm_up(self) -> None:
        """Run every batch size that the module must be compiled for.

        Raises:
            RunError: one of them failed.
        """
        for size in self._loaded.warm_up:
            self.prepare(size)
            self.enqueue_kernels()
            self.result()

    def contents(self) -> ModuleContents | None:
        """Return the contents of the parts that Torch-TensorRT compiled so far; None for an opaque module."""
        parts = [torch_tensorrt_runtime.contents_of(part) for part in self._loaded.parts]
        return torch_tensorrt_runtime.of_all_sizes(parts) if parts else None

    def __call__(self, batch: Batch, layout: Layout = Layout.CONTIGUOUS) -> Outputs:
        """Run one batch and wait for it.

        Args:
            batch: float32 (batch, channels, height, width), contiguous; of several inputs an array by the name of each.
            layout: the memory layout of the images that the module reads.

        Returns:
            float32 (batch, classes), a new array; of several outputs, such an array by the name of each.

        Raises:
            RunError: the module does not take such a batch, or running failed.
        """
        self.upload(batch, layout)
        self.enqueue_kernels()
        return self.result()

    def result(self) -> Outputs:
        """Wait for the batch that was enqueued last.

        Returns:
            float32 (batch, classes), a new array; of several outputs, such an array by the name of each.

        Raises:
            RunError: running failed, or the module gives another number of outputs.
        """
        with self._translated():
            # A copy to the host's memory waits for the stream.
            arrays = [np.array(output.detach().float().cpu().numpy(), dtype=np.float32) for output in self._outputs]
        return named(self._names, arrays)

    def upload(self, batch: Batch, layout: Layout = Layout.CONTIGUOUS) -> None:
        """Copy a batch into the session's own buffers, and prepare for its size.

        Raises:
            RunError: the module does not take such a batch.
        """
        feed = feed_of([spec.name for spec in self._specs], batch)
        require_for_module(self._variant.id, self._specs, self._variant.profile, feed)
        self._prepare(shapes_of([feed[spec.name] for spec in self._specs]), layout)
        with self._translated():
            for buffer, spec in zip(self._inputs[self._now], self._specs, strict=True):
                buffer.copy_(torch.from_numpy(feed[spec.name]))

    def prepare(self, size: int, layout: Layout = Layout.CONTIGUOUS) -> None:
        """Make the next `enqueue` run this number of samples from the session's own buffers.

        Dynamic axes have the size that the module is tuned for.

        Raises:
            RunError: the device has no room for them.
        """
        self._prepare(tuple(shape_of(spec, size, "opt") for spec in self._specs), layout)

    def _prepare(self, shapes: Shapes, layout: Layout) -> None:
        """Make the next `enqueue` run from buffers of these shapes, and free those that have been there longest."""
        self._now = (shapes, layout)
        if self._now in self._inputs:
            return
        plain = [key for key in self._inputs if key not in self._graphs]  # a graph reads its buffers for ever
        for key in plain[: max(0, len(plain) + 1 - _KEPT)]:
            del self._inputs[key]
        with self._translated():
            self._inputs[self._now] = tuple(
                _laid_out(torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=self._device), layout)
                for spec, shape in zip(self._specs, shapes, strict=True)
            )

    def enqueue_kernels(self) -> None:
        """Enqueue the prepared batch on the stream without waiting for it.

        Raises:
            RunError: the module failed.
        """
        with self._translated():
            self._outputs = tensors(self._module(*self._inputs[self._now]))

    def enqueue(self) -> None:
        """Enqueue as `enqueue_kernels` does, by a CUDA graph that the first call for a batch size captures.

        Raises:
            RunError: the module failed, or cannot be captured; then `graph_trouble` holds the reason.
        """
        captured = self._graphs.get(self._now)
        if captured is None:
            captured = self._graphs.setdefault(self._now, self._capture())
        graph, self._outputs = captured
        with self._translated():
            graph.replay()

    def enqueue_with_copies(self) -> None:
        """Enqueue as `enqueue` does, with copies from pinned host memory before and back to it after.

        Raises:
            RunError: the module failed, or cannot be captured.
        """
        if self._now not in self._pinned:
            with self._translated():
                self._pinned[self._now] = tuple(buffer.cpu().pin_memory() for buffer in self._inputs[self._now])
        with self._translated():
            for buffer, pinned in zip(self._inputs[self._now], self._pinned[self._now], strict=True):
                buffer.copy_(pinned, non_blocking=True)
        self.enqueue()
        with self._translated():
            if self._now not in self._landed:
                self._landed[self._now] = tuple(
                    torch.empty_like(output, device="cpu").pin_memory() for output in self._outputs
                )
            for landed, output in zip(self._landed[self._now], self._outputs, strict=True):
                landed.copy_(output, non_blocking=True)

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]:
        for _ in range(_WARM_UP):
            self.enqueue_kernels()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(self._device)):
                outputs = tensors(self._module(*self._inputs[self._now]))
        except Exception as exc:
            self.graph_trouble = one_line(exc)
            raise RunError(f"{self._variant.id} cannot be captured as a CUDA graph", got=self.graph_trouble) from exc
        return graph, outputs

    def close(self) -> None:
        """Free the session's memory."""
        self._graphs.clear()
        self._inputs.clear()
        self._pinned.clear()
        self._landed.clear()
        self._outputs = ()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as exc:
            raise RunError(
                f"the GPU has no room for {self._variant.id}",
                got=one_line(exc),
                fix="free GPU memory, or use a profile with a smaller batch",
            ) from exc
        except Exception as exc:  # torch, the compiler and the model's own code raise types without a common base
            got = torch_tensorrt_runtime.reason_of(exc)
            shapes, _ = self._now
            sized = any(spec.ranges for spec in self._specs)
            batch = f"of shape {shapes[0]}" if sized and shapes else f"of {shapes[0][0] if shapes else 0}"
            raise RunError(f"{self._variant.id} cannot run a batch {batch}", got=got) from exc


def _laid_out(buffer: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return a buffer of images in a memory layout; other inputs have one alone."""
    return buffer.to(memory_format=FORMATS[layout]) if buffer.ndim == len("NCHW") else buffer
