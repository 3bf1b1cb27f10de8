"""An artifact's file → a function from batches to logits: digest, runtime and errors, in one place for all backends.

Builds and deployments both open their artifacts here. Importing this module imports no runtime and no torch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.errors import RunError, UnsupportedError, one_line
from model_artifacts.host.environment import installed
from model_artifacts.host.hashes import check_digest
from model_artifacts.records import Backend, KernelSpecialization, Precision
from model_artifacts.sessions.feeds.batches import feed_of, shown
from model_artifacts.sessions.feeds.checks import require_one_size
from model_artifacts.sessions.onnx import ends_of, named, onnx_session, run_of, tensorrt_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from onnxruntime import InferenceSession

    from model_artifacts.records import Argument, BuiltFor, FileRecord, Gpu, ModuleContents, TensorSpec, Variant
    from model_artifacts.sessions.engine import Engine, Session
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.feeds.checks import Named
    from model_artifacts.sessions.module import Loaded, ModuleSession
    from model_artifacts.sessions.onnx import Outputs, ProviderFacts

    Runner = Callable[[Batch], Outputs]

_PACKAGES = {
    Backend.ONNXRUNTIME: "onnxruntime",
    Backend.ONNXRUNTIME_TENSORRT: "onnxruntime",
    Backend.ONNX_REFERENCE: "onnx",
}


class ModuleFacts(NamedTuple):
    """The facts that opening a torch module takes."""

    contents: ModuleContents | None
    """The module's contents with the libraries that made it; None if Torch-TensorRT did not make it."""
    factory: str
    """The model's factory; a recipe that names another function is refused."""
    inputs: tuple[TensorSpec, ...]
    """The module's inputs in its order, of which the first axis is the batch."""
    root: Path
    """The artifacts folder, in which a recipe finds its weights."""
    arguments: tuple[Argument, ...] = ()
    """The factory's arguments; a recipe that names others is refused."""
    output_names: tuple[str, ...] = ()
    """The names of the outputs, in the module's order; () for one output."""


@dataclass(frozen=True)
class ArtifactFile:
    """An artifact's file on this machine, with the facts that opening it takes."""

    id: str
    """The artifact's name in messages."""
    variant: Variant
    path: Path
    gpu: Gpu | None
    """The GPU to run on; None for the CPU."""
    fix: str
    """The remedy for a damaged or unsuitable file, as an imperative."""
    record: FileRecord | None
    """The record whose digest the file must have; None skips the check."""
    built_for: BuiltFor | None = None
    """The TensorRT and the GPUs that an engine runs with."""
    weights: Path | None = None
    """The ONNX file of an engine that was built without its weights."""
    runtime_cache: bytes | None = None
    """Kernels that an earlier session of the engine compiled."""
    specialization: KernelSpecialization = KernelSpecialization.EAGER
    """The time at which TensorRT-RTX compiles kernels for the shapes in use."""
    module: ModuleFacts | None = None
    """Present for a torch module."""
    provider: ProviderFacts | None = None
    """Present for ONNX Runtime's TensorRT provider."""


def package_of(backend: Backend) -> str | None:
    """Return the package that runs a backend's artifacts; None for an engine, whose flavour decides. Pure."""
    return "torch" if backend.is_module else _PACKAGES.get(backend)


def require_package(backend: Backend) -> None:
    """Check that the package of a backend is installed.

    Raises:
        UnsupportedError: it is not.
    """
    package = package_of(backend)
    if package and not installed(package):
        raise UnsupportedError(f"{package} is not installed here")


@contextmanager
def open_artifact(file: ArtifactFile, load: Callable[[], Loaded] | None = None) -> Iterator[Runner]:
    """Open an artifact of any backend, for any thread; one thread at a time may call it.

    Between the calls, the process and the calling thread have their own settings: the current GPU and torch's.

    Args:
        file: the artifact.
        load: loads a torch module in place of `load_compiled`.

    Yields:
        a function from float32 (batch, channels, height, width) to float32 (batch, classes). Of several inputs it
        takes an array by the name of each, and of several outputs it gives one.

    Raises:
        UnsupportedError: this host lacks the runtime.
        RunError: the file is damaged, or cannot be loaded.
    """
    backend = file.variant.backend
    require_package(backend)
    if backend is Backend.TENSORRT:
        with _engine_runner(file) as run:
            yield run
    elif backend.is_module:
        with _module_runner(file, load) as run:
            yield run
    elif backend.is_onnxruntime:
        with _kept_gpu(file):
            run = onnxruntime_runner(file, onnxruntime_session(file))
        yield _keeping_gpu(file, run)
    else:
        yield _reference_runner(file)


@contextmanager
def _engine_runner(file: ArtifactFile) -> Iterator[Runner]:
    """Open an engine that any thread may run. Each call has the engine's GPU; the caller's thread keeps its own."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    gpu = gpu_of(file)
    with cuda.using(gpu), ExitStack() as opening:
        engine = opening.enter_context(open_engine_file(file))
        session = opening.enter_context(engine.session(cache=file.runtime_cache, specialization=file.specialization))
        opened = opening.pop_all()
    try:
        yield partial(run_session, gpu, session)
    finally:
        with cuda.using(gpu), opened:
            pass


def run_session(gpu: Gpu, session: Session, batch: Batch) -> Outputs:
    """Run a batch in an engine's session, on its GPU, and return the outputs in the host's memory.

    Raises:
        RunError: the engine does not take such a batch, or running failed.
    """
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    def on_host(output: Any) -> Batch:  # noqa: ANN401 - an array of numpy, or of ours on the GPU
        return cuda.downloaded(output) if isinstance(output, cuda.DeviceArray) else np.asarray(output)

    with cuda.using(gpu):
        found: Any = session(batch)
        if isinstance(found, dict):
            return {name: on_host(output) for name, output in found.items()}
        return on_host(found)


def _kept_gpu(file: ArtifactFile) -> AbstractContextManager[None]:
    """Keep the thread's current GPU over a block of ONNX Runtime, which chooses its own and leaves it chosen."""
    if file.gpu is None:
        return nullcontext()
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    return cuda.keeping()


def _keeping_gpu(file: ArtifactFile, run: Runner) -> Runner:
    def kept(batch: Batch) -> Outputs:
        with _kept_gpu(file):
            return run(batch)

    return kept if file.gpu else run


def gpu_of(file: ArtifactFile) -> Gpu:
    """Return the GPU that an artifact is to run on.

    Raises:
        UnsupportedError: there is none.
    """
    if file.gpu is None:
        raise UnsupportedError(f"{file.id} needs a GPU")
    return file.gpu


@contextmanager
def _module_runner(file: ArtifactFile, load: Callable[[], Loaded] | None) -> Iterator[Runner]:
    """Open a torch module that any thread may run. Between calls, the process has its own settings of torch."""
    from model_artifacts.sessions.module import open_guest  # noqa: PLC0415 - only here is torch needed

    facts, loader = _loader(file, load)
    with open_guest(loader, file.variant, facts.inputs, file.gpu) as run:
        yield run


@contextmanager
def open_engine_file(file: ArtifactFile) -> Iterator[Engine]:
    """Load a serialized engine into its GPU's memory, after a check of its digest.

    Raises:
        UnsupportedError: this host lacks the engine's TensorRT, or there is no GPU.
        RunError: the engine is damaged, or built for another GPU or version.
    """
    from model_artifacts.sessions.engine import open_engine  # noqa: PLC0415 - only where there is a GPU
    from model_artifacts.tensorrt.flavour import load_flavour  # noqa: PLC0415 - the same

    gpu = gpu_of(file)
    if file.built_for is None:
        raise RunError(f"{file.id} does not record which TensorRT and GPU its engine is for", fix=file.fix)
    _check(file)
    flavour = load_flavour(file.built_for.flavour)
    with open_engine(flavour, file.path.read_bytes(), file.built_for, gpu, file.weights) as engine:
        yield engine


@contextmanager
def open_module_file(file: ArtifactFile, load: Callable[[], Loaded] | None = None) -> Iterator[ModuleSession]:
    """Load a torch module, after a check of its digest, and open a session of it.

    Args:
        file: the artifact.
        load: loads the module in place of `load_compiled`.

    Raises:
        UnsupportedError: this host lacks torch, Torch-TensorRT or the driver.
        RunError: the module is damaged, or other versions made it.
    """
    require_package(file.variant.backend)
    from model_artifacts.sessions.module import open_session  # noqa: PLC0415 - only here is torch needed

    facts, loader = _loader(file, load)
    with open_session(loader(), file.variant, facts.inputs, file.gpu) as session:
        yield session


def _loader(file: ArtifactFile, load: Callable[[], Loaded] | None) -> tuple[ModuleFacts, Callable[[], Loaded]]:
    """Return a module's facts and the function that loads it, after a check of its digest.

    Raises:
        RunError: the file is damaged, or is not that of a module.
    """
    from model_artifacts.sessions.module import load_compiled  # noqa: PLC0415 - only here is torch needed

    if file.module is None:
        raise RunError(f"{file.id} is not a torch module")
    _check(file)
    return file.module, load or partial(load_compiled, file)


def onnxruntime_session(file: ArtifactFile, profile: str = "") -> InferenceSession:
    """Load an ONNX file into ONNX Runtime, after a check of its digest.

    Args:
        file: the artifact.
        profile: the prefix of the profiles' file names, to time every node; empty for no profile.

    Raises:
        UnsupportedError: onnxruntime is missing, or has no CUDA; or its TensorRT provider lacks something.
        RunError: the file is damaged, or is not an ONNX graph.
    """
    require_package(Backend.ONNXRUNTIME)
    _start_onnxruntime()
    _check(file)
    variant = file.variant
    if file.provider is not None:
        return tensorrt_session(file.path, variant, file.gpu, file.provider)
    return onnx_session(file.path, variant.graph, file.gpu, tf32=variant.precision is Precision.TF32, profile=profile)


def _start_onnxruntime() -> None:
    """Import ONNX Runtime.

    Raises:
        UnsupportedError: it is installed and does not start, as where two of its wheels lie over each other.
    """
    try:
        import onnxruntime  # noqa: F401,PLC0415 - that it starts is the question
    except Exception as exc:  # ImportError of its libraries, and whatever a damaged module raises
        raise UnsupportedError(
            "onnxruntime is installed, but does not start",
            got=one_line(exc),
            fix="uninstall all packages that bring it, then install one of them, onnxruntime or onnxruntime-gpu",
        ) from exc


def onnxruntime_runner(file: ArtifactFile, session: InferenceSession) -> Runner:
    """Return a function that runs batches in an ONNX Runtime session, and raises `RunError` where that fails.

    It raises one, too, for inputs with different sizes of an axis that has one name, which ONNX Runtime would take.

    Raises:
        RunError: the graph has no input or no output.
    """
    return _of_one_size(session.get_inputs(), _translated(file, run_of(session)))


def _reference_runner(file: ArtifactFile) -> Runner:
    import onnx  # noqa: PLC0415 - only needed here
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - the same
    from onnx.reference.op_run import OpRun  # noqa: PLC0415 - the same

    class GlobalAveragePool(OpRun):  # type: ignore[misc]  # onnx has no types for it
        """The mean over all places, summed in FP32: onnx's own sums in the type, and loses half of 2,304 places."""

        def _run(self, x: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.generic]]:
            return (x.astype(np.float32).mean(axis=tuple(range(2, x.ndim)), keepdims=True).astype(x.dtype),)

    _check(file)
    try:
        model = onnx.load(file.path)
        evaluator = ReferenceEvaluator(model, new_ops=[GlobalAveragePool])
    except Exception as exc:  # protobuf's DecodeError, OSError, and onnx's own types for operators it lacks
        raise RunError(f"onnx.reference cannot load {file.path}", got=one_line(exc)) from exc
    if not model.graph.node:  # protobuf reads an empty file as an empty model
        raise RunError(f"onnx.reference cannot load {file.path}", got="an empty graph", fix=file.fix)
    ends = ends_of([item.name for item in model.graph.input], [item.name for item in model.graph.output])

    def run(batch: Batch) -> Outputs:
        results = evaluator.run([*ends.outputs], feed_of(ends.inputs, batch))
        return named(ends.outputs, [np.asarray(result, dtype=np.float32) for result in results])

    inputs = [
        _Input(item.name, [size.dim_param or size.dim_value for size in item.type.tensor_type.shape.dim])
        for item in model.graph.input
    ]
    return _of_one_size(inputs, _translated(file, run))


class _Input(NamedTuple):
    """An input of a graph, with its sizes, some of which are names."""

    name: str
    shape: Sequence[int | str]


def _of_one_size(inputs: Sequence[Named], run: Runner) -> Runner:
    """Return a function that refuses several inputs with different sizes of an axis that has one name."""

    def checked(batch: Batch) -> Outputs:
        if isinstance(batch, dict):
            known = [item for item in inputs if item.name in batch]
            require_one_size(known, [batch[item.name] for item in known])
        return run(batch)

    return checked


def _translated(file: ArtifactFile, run: Runner) -> Runner:
    def guarded(batch: Batch) -> Outputs:
        try:
            return run(batch)
        except Exception as exc:  # each runtime raises types of its own, without a common public base
            raise RunError(f"{file.id} cannot run a batch {shown(batch)}", got=one_line(exc)) from exc

    return guarded


def _check(file: ArtifactFile) -> None:
    if file.record is not None:
        check_digest(file.path, file.record, fix=file.fix)
