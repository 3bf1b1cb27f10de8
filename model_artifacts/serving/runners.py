"""An artifact's file → runners that several threads call at once, with the kernels that this machine has compiled.

An engine also has streams of batches, whose copies and computation overlap.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import KernelsError
from model_artifacts.records import Backend
from model_artifacts.sessions.feeds.batches import each, parts_of
from model_artifacts.sessions.onnx import joined
from model_artifacts.sessions.opening import gpu_of, open_artifact, open_engine_file, run_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model_artifacts.records import Gpu
    from model_artifacts.serving.streams import Opening
    from model_artifacts.sessions.engine import Engine, Session
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs
    from model_artifacts.sessions.opening import ArtifactFile, Runner
    from model_artifacts.sessions.overlap.lanes import Overlap
    from model_artifacts.tensorrt.kernels import KeptKernels

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """An open artifact, as threads call it."""

    runs: tuple[Runner, ...]
    """Functions as `open_artifact` yields one, for one thread at a time each."""
    overlap: Opening | None = None
    """Opens a stream of batches that overlap, beside the runners; None for an artifact without."""


@contextmanager
def open_runners(
    file: ArtifactFile, contexts: int = 1, kept: KeptKernels | None = None
) -> Iterator[tuple[Runner, ...]]:
    """Open an artifact as `open_serving` does, and yield its runners."""
    with open_serving(file, contexts, kept) as opened:
        yield opened.runs


@contextmanager
def open_serving(file: ArtifactFile, contexts: int = 1, kept: KeptKernels | None = None) -> Iterator[Opened]:
    """Open an artifact as `open_artifact` does, for several threads at once.

    Execution contexts share one engine, and calls share one session of ONNX Runtime, which is thread-safe. Torch's
    modules take turns, because torch's settings belong to the whole process, and so does onnx's reference evaluator.

    Args:
        file: the artifact.
        contexts: the most batches that are to run at once.
        kept: the place of the kernels that an engine compiles on this machine; None keeps none.

    Yields:
        at most `contexts` runners. An engine's streams have contexts of their own beside them.

    Raises:
        UnsupportedError: this host lacks the runtime.
        RunError: the file is damaged, or cannot be loaded, or the GPU has no room for the contexts.
    """
    backend = file.variant.backend
    if backend is Backend.TENSORRT:
        with _open_engine(file, contexts, kept) as opened:
            yield opened
    else:
        with open_artifact(file) as run:
            yield Opened((run,) * (contexts if backend.is_onnxruntime else 1))


@contextmanager
def _open_engine(file: ArtifactFile, contexts: int, kept: KeptKernels | None) -> Iterator[Opened]:
    """Open an engine with several contexts. Each call has the engine's GPU; the caller's thread keeps its own."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    gpu = gpu_of(file)
    with cuda.using(gpu), ExitStack() as opening:
        engine = opening.enter_context(open_engine_file(file))
        first = opening.enter_context(_first_session(engine, file, kept))
        sessions = [first.session]
        compiled = first.session.runtime_cache()  # later contexts load the kernels that the first one has compiled
        for _ in range(contexts - 1):
            opened = engine.session(cache=compiled, specialization=file.specialization)
            sessions.append(opening.enter_context(opened))
        _keep(kept, sessions, first.kernels)
        still_open = opening.pop_all()

    @contextmanager
    def overlap(buffers: int) -> Iterator[_OnGpu]:
        with cuda.using(gpu), ExitStack() as stack:
            lanes = stack.enter_context(engine.overlap(buffers, cache=compiled, specialization=file.specialization))
            still_there = stack.pop_all()
        try:
            yield _OnGpu(gpu, lanes)
        finally:
            _end(gpu, still_there)

    try:
        yield Opened(tuple(EngineRunner(gpu, session) for session in sessions), overlap)
    finally:
        still_open.callback(_keep, kept, sessions, first.kernels)  # before they end
        _end(gpu, still_open)


def _end(gpu: Gpu, opened: ExitStack) -> None:
    """Give back what is open on a GPU, on whatever thread: a garbage collection may do so."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    try:
        with cuda.beside_captures(), cuda.using(gpu):
            opened.close()
    finally:
        opened.close()  # after an error of CUDA, which `using` meets first; else nothing is left


class EngineRunner:
    """Runs batches in an engine's session. Of several batches that are to be one, it copies each where it is read."""

    def __init__(self, gpu: Gpu, session: Session) -> None:
        self._run = partial(run_session, gpu, session)

    def __call__(self, batch: Batch) -> Outputs:
        """Run a batch.

        Raises:
            RunError: the engine does not take it, or running failed.
        """
        return self._run(batch)


def run_joined(run: Runner, batches: Sequence[Batch]) -> Outputs:
    """Run several batches as one.

    Args:
        run: the runner of an artifact. One of an engine makes no array of them all.
        batches: at least one, of samples of the same shapes in the host's memory.

    Raises:
        RunError: the artifact does not take them, or running failed.
    """
    return run(parts_of(batches) if isinstance(run, EngineRunner) else joined(batches))


class _OnGpu:
    """Batches under way on an engine's GPU. Each step has that GPU; the thread keeps its own between the steps."""

    def __init__(self, gpu: Gpu, overlap: Overlap) -> None:
        from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

        self._overlap, self._there = overlap, partial(cuda.using, gpu)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._overlap)

    @property
    def full(self) -> bool:
        """True if every buffer has a batch."""
        return self._overlap.full

    def fits(self, batch: Batch) -> bool:
        """Return True if the buffers have the batch's shape, or no batch is under way."""
        return self._overlap.fits(batch)

    def put(self, batch: Batch) -> None:
        """Copy a batch to the next buffer, and start it.

        Raises:
            RunError: the engine does not take it, the GPU has no room, or running failed.
        """
        with self._there():
            self._overlap.put(batch)

    def result(self) -> Outputs:
        """Wait for the oldest batch, and return its outputs as new arrays.

        Raises:
            RunError: the engine failed.
        """
        with self._there():
            return each(self._overlap.result(), np.array)


class _First(NamedTuple):
    """The first session of an engine, and the kernels that it has loaded."""

    session: Session
    kernels: bytes


@contextmanager
def _first_session(engine: Engine, file: ArtifactFile, kept: KeptKernels | None) -> Iterator[_First]:
    """Open a session with the kernels of this machine, else with those of the artifact, else without any.

    Kernels that the library refuses are set aside with a warning: without them it compiles for some seconds.
    """
    own = kept.read() if kept else None
    with ExitStack() as stack:
        for kernels in [item for item in (own, file.runtime_cache) if item]:
            if (session := _session_with(kernels, engine, file, stack)) is not None:
                yield _First(session, kernels)
                return
            if kernels is own and kept:
                kept.drop()
        yield _First(stack.enter_context(engine.session(specialization=file.specialization)), b"")


def _session_with(kernels: bytes, engine: Engine, file: ArtifactFile, stack: ExitStack) -> Session | None:
    """Open a session with kernels; None, with a warning, if the library refuses them."""
    try:
        return stack.enter_context(engine.session(cache=kernels, specialization=file.specialization))
    except KernelsError as exc:
        log.warning("%s compiles its kernels anew: those kept are of another run: %s", file.id, exc.got or exc.what)
        return None


def _keep(kept: KeptKernels | None, sessions: Sequence[Session], loaded: bytes) -> None:
    """Keep the kernels of the session that has compiled most, if these are more than it has loaded."""
    if kept is None:
        return
    compiled = max((session.runtime_cache() or b"" for session in sessions), key=len)
    if len(compiled) > len(loaded):
        kept.keep(compiled)
