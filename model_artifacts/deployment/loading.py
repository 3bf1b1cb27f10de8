"""Deployments: resolve, verify and run an artifact of an artifacts folder.

    with model_artifacts.load("artifacts/") as model:
        logits = model(batch)
        print(model.predict("photo.jpg")[0].name)

This needs numpy and the runtime of the resolved artifact: no torch for an engine or an ONNX file, and never doit.
"""

from __future__ import annotations

import logging
import platform
import threading
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_artifacts.deployment.files import check_model_names, check_names, unusable
from model_artifacts.deployment.model import Model
from model_artifacts.deployment.pictures.readers import OnGpu, gpu_reader
from model_artifacts.deployment.requirements import Requirements
from model_artifacts.deployment.resolution import Resolution, resolve_entry
from model_artifacts.deployment.tensors.named_inputs import no_pictures
from model_artifacts.errors import RunError, StorageError, UsageError, one_line
from model_artifacts.host.environment import (
    driver_cuda,
    driver_version,
    free_memory_bytes,
    installed_onnxruntime,
    installed_torch_tensorrt,
    onnxruntime_has_cuda,
    processor,
    read_host,
)
from model_artifacts.host.hashes import check_digest
from model_artifacts.host.record_files import read_record
from model_artifacts.records import (
    DeploymentHost,
    EngineFlavour,
    FileRecord,
    Manifest,
    ManifestModel,
    Variant,
    of_model,
)
from model_artifacts.serving.batching import Batcher
from model_artifacts.serving.pool import Pool
from model_artifacts.serving.runners import open_serving
from model_artifacts.serving.settings import PLAIN, PicturesOn, Serving
from model_artifacts.serving.streams import Streams, ahead, in_turn
from model_artifacts.sessions.opening import ArtifactFile, ModuleFacts
from model_artifacts.tensorrt.kernels import kept_kernels, user_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import NoReturn

    from model_artifacts.records import Gpu, ManifestEntry
    from model_artifacts.serving.batching import Batching
    from model_artifacts.sessions.opening import Runner
    from model_artifacts.tensorrt.kernels import KeptKernels

log = logging.getLogger(__name__)

ANY = Requirements()
"""No requirements: the fastest artifact at batch 1."""

_FIX = "pull the artifact again, or build it again"


def this_host() -> DeploymentHost:
    """Return this machine's description. It queries the driver, but uses no GPU and imports no library."""
    host = read_host()
    return DeploymentHost(
        machine=platform.machine(),
        processor=processor(),
        host=host,
        free_memory_bytes=tuple(free_memory_bytes(gpu) for gpu in host.gpus),
        driver=driver_version(),
        driver_cuda=driver_cuda(),
        torch_tensorrt=installed_torch_tensorrt(),
        onnxruntime=installed_onnxruntime(),
        onnxruntime_cuda=onnxruntime_has_cuda(),
    )


def read_manifest(artifacts: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of an artifacts folder.

    Raises:
        RecordError: the manifest is missing or damaged.
        NewerRecordError: a newer version of this package wrote it.
        RunError: it names a file outside its folder, or has names that no build gives.
    """
    path = Path(artifacts) / "manifest.json"
    fix = "name a folder that `doit` or `pull` has filled; if the manifest was changed, run that again"
    manifest = read_record(path, Manifest, fix=fix)
    check_model_names(path, manifest)
    for entry in manifest.artifacts:
        check_names(path, entry)
    return manifest


def resolve(
    artifacts: str | os.PathLike[str],
    requirements: Requirements = ANY,
    host: DeploymentHost | None = None,
    *,
    model: str | None = None,
) -> Resolution:
    """Return the artifact to take from a folder, and the reasons against the others. Nothing is loaded.

    Args:
        artifacts: the folder with manifest.json.
        requirements: the caller's requirements.
        host: the machine to resolve for; None for this one, which takes only artifacts whose files are in the folder.
        model: the name of the model, in a folder of several; None takes the only one.

    Raises:
        ResolveError: no artifact suits; the message has the reason for each.
        UsageError: the folder has several models and none was named, or it lacks the named one; the message lists them.
        RecordError: the manifest is missing or damaged.
    """
    manifest = of_model(read_manifest(artifacts), model)
    if host:
        return resolve_entry(manifest, host, requirements)
    return resolve_entry(manifest, this_host(), requirements, unusable(Path(artifacts), manifest))


class _Open(threading.local):
    """Models that a thread has opened and not closed yet, the last one last."""

    def __init__(self) -> None:
        self.models: list[AbstractContextManager[Model]] = []


class Loading(AbstractContextManager[Model]):
    """A model that is opened by `with` and closed at the end of the block. Each `with` opens one anew."""

    def __init__(
        self, root: Path, requirements: Requirements, serving: Serving = PLAIN, model: str | None = None
    ) -> None:
        self._root = root
        self._model = model
        self._serving = serving
        self._requirements = requirements
        self._open = _Open()

    def __enter__(self) -> Model:
        """Open the model."""
        opening = _opened(self._root, self._requirements, self._serving, self._model)
        model = opening.__enter__()
        self._open.models.append(opening)
        return model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Close the model."""
        return self._open.models.pop().__exit__(kind, error, trace)

    def __call__(self, batch: object = None, **inputs: object) -> NoReturn:
        """Refuse a batch: nothing is open.

        Raises:
            UsageError: always, with the line to write.
        """
        del batch, inputs
        raise _unopened()

    def predict(self, images: object, *, top: object = None) -> NoReturn:
        """Refuse images: nothing is open.

        Raises:
            UsageError: always, with the line to write.
        """
        del images, top
        raise _unopened()

    def stream(self, batches: object, *, buffers: object = None) -> NoReturn:
        """Refuse batches: nothing is open.

        Raises:
            UsageError: always, with the line to write.
        """
        del batches, buffers
        raise _unopened()

    def outputs(self, images: object) -> NoReturn:
        """Refuse images: nothing is open.

        Raises:
            UsageError: always, with the line to write.
        """
        del images
        raise _unopened()


def _unopened() -> UsageError:
    return UsageError(
        "`load` has not opened the model yet",
        expected="a call inside of its `with` block",
        got="a call without one",
        fix="write `with load(…) as model:`, and use `model`",
    )


def load(  # noqa: PLR0913 - keywords of the one call that deployments write
    artifacts: str | os.PathLike[str],
    requirements: Requirements = ANY,
    *,
    model: str | None = None,
    contexts: int = 1,
    wait_seconds: float | None = None,
    batching: Batching | None = None,
    kernel_cache: str | os.PathLike[str] | None = None,
    pictures: PicturesOn | Literal["cpu", "gpu"] = PicturesOn.CPU,
) -> Loading:
    """Resolve an artifact for this machine, check its digest, and open it.

    Args:
        artifacts: the folder with manifest.json.
        requirements: the caller's requirements.
        model: the name of the model, in a folder of several; None takes the only one.
        contexts: the most calls that run at once; further ones wait, first come, first served. Contexts share the
            weights of one engine, but each needs GPU memory for its activations. `Model.contexts` tells how many there
            are: torch's modules take turns.
        wait_seconds: the longest time that a call waits for its turn, in seconds; None has no limit.
        batching: joins calls of several threads to one batch; None runs each as it is.
        kernel_cache: the folder in which kernels are kept that TensorRT-RTX compiles here, if the artifact brings none
            for this GPU; None takes `~/.cache/model-artifacts/kernels`.
        pictures: the place where `predict` and `outputs` decode and resize pictures. `gpu` takes nvJPEG and torch on
            the artifact's GPU, and needs a proof of its answers in the manifest: `doit pictures`.

    Returns:
        a context manager of the model, which turns batches into outputs, and images into classes or vectors. It raises
        the errors below when it is entered.

    Raises:
        UsageError: `contexts`, `wait_seconds`, `batching` or `pictures` is none of these, which is raised at once; or
            the folder has several models and none was named, or it lacks the named one: the message lists them.
        ResolveError: no artifact suits; the message has the reason for each.
        RecordError: the manifest is missing or damaged.
        RunError: a file is damaged, or cannot be run.
        UnsupportedError: a library that the artifact needs does not start here; or pictures may not be decoded on this
            GPU.
    """
    folder = Path(kernel_cache) if kernel_cache is not None else None
    return Loading(Path(artifacts), requirements, Serving(contexts, wait_seconds, batching, folder, pictures), model)


@contextmanager
def _opened(root: Path, requirements: Requirements, serving: Serving, name: str | None) -> Iterator[Model]:
    manifest = of_model(read_manifest(root), name)
    if manifest.model is None:
        raise RunError(
            f"{root / 'manifest.json'} does not describe the model", fix="use the manifest of a finished build"
        )
    resolution = resolve_entry(manifest, this_host(), requirements, unusable(root, manifest))
    file = _file_of(root, resolution, manifest.model)
    kept = _kept(resolution.entry, resolution.place.gpu, serving.kernel_cache)
    read = _reader(resolution, manifest.model) if serving.pictures == PicturesOn.GPU else None
    with open_serving(file, serving.contexts, kept) as opened:
        calls = _served(opened.runs, serving, resolution.entry)
        alone = ahead(calls) if resolution.entry.backend.is_onnxruntime else in_turn(calls)
        model = Model(resolution, manifest.model, calls, read, Streams(calls, opened.overlap or alone))
        try:
            yield model
        finally:
            model.close()
            if read:
                read.close()


def _reader(resolution: Resolution, model: ManifestModel) -> OnGpu:
    """Return the reader of pictures on the artifact's GPU.

    Raises:
        UnsupportedError: its answers are not proven there.
        UsageError: the model takes tensors.
    """
    if model.preprocessing is None:
        raise no_pictures("load(pictures=...)", resolution.entry.inputs)
    return gpu_reader(resolution.entry, model.preprocessing, resolution.place.gpu)


def _served(runs: Sequence[Runner], serving: Serving, entry: ManifestEntry) -> Pool | Batcher:
    """Return the runners as threads call them, and log a setting that this artifact cannot use to the full."""
    pool = Pool(runs, serving.wait_seconds)
    if len(runs) < serving.contexts:
        log.warning("%s runs one call at a time instead of %d: such artifacts take turns", entry.id, serving.contexts)
    if serving.batching is None:
        return pool
    if not entry.rows:
        log.warning("%s joins no calls: no check has shown that its rows do not depend on each other", entry.id)
        return pool
    batcher = Batcher(pool, serving.batching, entry.profile.max if entry.profile else None)
    if batcher.limit < serving.batching.max_size:
        log.warning("%s takes %d images at most, which limits the batching", entry.id, batcher.limit)
    return batcher


def checked_file(root: Path, file: FileRecord | None) -> Path:
    """Return the path of a manifest's file, after a check of its digest.

    Args:
        root: the folder with manifest.json.
        file: the record of the file in a manifest that `read_manifest` has read.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path, record = _recorded(root, file)
    check_digest(path, record, fix=_FIX)
    return path


def _recorded(root: Path, file: FileRecord | None) -> tuple[Path, FileRecord]:
    """Return the path of a manifest's file, and its record.

    Raises:
        RunError: there is none.
    """
    if file is None:
        raise RunError("the manifest names no file", where=str(root / "manifest.json"), fix=_FIX)
    return root / file.path, file


def _file_of(root: Path, resolution: Resolution, model: ManifestModel) -> ArtifactFile:
    """Return the file of a resolved artifact.

    Raises:
        RunError: the manifest names no file, or the weights are damaged.
    """
    entry = resolution.entry
    path, record = _recorded(root, entry.file)
    return ArtifactFile(
        id=entry.id,
        variant=Variant(
            model=entry.model,
            target=entry.target,
            backend=entry.backend,
            precision=entry.precision,
            graph=entry.graph,
            profile=entry.profile,
            io=entry.io,
        ),
        path=path,
        gpu=resolution.place.gpu,
        fix=_FIX,
        record=record,
        built_for=entry.built_for,
        weights=checked_file(root, entry.weights) if entry.weights else None,
        runtime_cache=_kernels(root, entry),
        specialization=entry.kernel_specialization,
        module=_module_of(root, entry, model),
    )


def _kernels(root: Path, entry: ManifestEntry) -> bytes | None:
    """Return the kernels that came with an engine; None if there are none, or none that can be used, with a warning."""
    if entry.runtime_cache is None:
        return None
    try:
        return checked_file(root, entry.runtime_cache).read_bytes()
    except (RunError, StorageError, OSError) as exc:
        log.warning("%s: its kernels are compiled anew: %s", entry.id, one_line(exc))
        return None


def _kept(entry: ManifestEntry, gpu: Gpu | None, folder: Path | None) -> KeptKernels | None:
    """Return the place of the kernels that this machine compiles; None without one, and if the artifact needs none."""
    built = entry.built_for
    if gpu is None or entry.file is None or built is None or built.flavour is not EngineFlavour.TENSORRT_RTX:
        return None
    if (place := folder or user_folder()) is None:
        return None
    return kept_kernels(place, entry.file.sha256, built.version, gpu, driver_version())


def _module_of(root: Path, entry: ManifestEntry, model: ManifestModel) -> ModuleFacts:
    """Return the facts of a torch module."""
    return ModuleFacts(entry.module, model.factory, entry.inputs, root, model.arguments, _names_of(entry))


def _names_of(entry: ManifestEntry) -> tuple[str, ...]:
    """Return the names of several outputs; () for one."""
    names = tuple(spec.name for spec in entry.outputs)
    return names if len(names) > 1 else ()
