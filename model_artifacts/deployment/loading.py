"""Deployments: resolve, verify and run an artifact of an artifacts folder.

    with model_artifacts.load("artifacts/") as model:
        logits = model(batch)
        print(model.predict("photo.jpg")[0].name)

This needs numpy and the runtime of the resolved artifact: no torch for an engine or an ONNX file, and never doit.
"""

from __future__ import annotations

import platform
import re
import threading
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.deployment.files import unusable
from model_artifacts.deployment.model import Model
from model_artifacts.deployment.resolution import Requirements, Resolution, resolve_entry
from model_artifacts.errors import RunError, UsageError
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
from model_artifacts.host.hashes import check_digest, leaves_its_folder
from model_artifacts.host.record_files import read_record
from model_artifacts.records import DeploymentHost, FileRecord, Manifest, ManifestModel, Variant
from model_artifacts.sessions.opening import ArtifactFile, ModuleFacts, open_artifact

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from types import TracebackType
    from typing import NoReturn

    from model_artifacts.records import ManifestEntry

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
    for entry in manifest.artifacts:
        _check_names(path, entry)
    return manifest


def _check_names(path: Path, entry: ManifestEntry) -> None:
    """Check the names of an artifact, of which commands make paths and lines of listings.

    Raises:
        RunError: a file lies outside of the manifest's folder, or a name is none that a build gives.
    """
    files = [value for _, value in entry if isinstance(value, FileRecord)]
    for file in files:
        if leaves_its_folder(file.path):
            raise RunError(
                f"the manifest names a file outside its folder: {file.path}",
                where=str(path),
                expected="a path below the folder",
                got=file.path,
                fix="do not use this manifest",
            )
    wrong = [name for name in (entry.model, entry.target) if not _NAME.fullmatch(name)]
    wrong += [name for name in (entry.id, *(file.path for file in files)) if not name.isprintable()]
    if wrong:
        raise RunError(
            "the manifest has a name that no build gives",
            where=str(path),
            expected="letters, digits, `.`, `_`, `+` and `-`",
            got=ascii(wrong[0]),
            fix="do not use this manifest",
        )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""A name of a model or a target."""


def resolve(
    artifacts: str | os.PathLike[str], requirements: Requirements = ANY, host: DeploymentHost | None = None
) -> Resolution:
    """Return the artifact to take from a folder, and the reasons against the others. Nothing is loaded.

    Args:
        artifacts: the folder with manifest.json.
        requirements: the caller's requirements.
        host: the machine to resolve for; None for this one, which takes only artifacts whose files are in the folder.

    Raises:
        ResolveError: no artifact suits; the message has the reason for each.
        RecordError: the manifest is missing or damaged.
    """
    manifest = read_manifest(artifacts)
    if host:
        return resolve_entry(manifest, host, requirements)
    return resolve_entry(manifest, this_host(), requirements, unusable(Path(artifacts), manifest))


class _Open(threading.local):
    """Models that a thread has opened and not closed yet, the last one last."""

    def __init__(self) -> None:
        self.models: list[AbstractContextManager[Model]] = []


class Loading(AbstractContextManager[Model]):
    """A model that is opened by `with` and closed at the end of the block. Each `with` opens one anew."""

    def __init__(self, root: Path, requirements: Requirements) -> None:
        self._root = root
        self._requirements = requirements
        self._open = _Open()

    def __enter__(self) -> Model:
        """Open the model."""
        opening = _opened(self._root, self._requirements)
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


def load(artifacts: str | os.PathLike[str], requirements: Requirements = ANY) -> Loading:
    """Resolve an artifact for this machine, check its digest, and open it.

    Args:
        artifacts: the folder with manifest.json.
        requirements: the caller's requirements.

    Returns:
        a context manager of the model, which turns batches into outputs, and images into classes or vectors. It raises
        the errors below when it is entered.

    Raises:
        ResolveError: no artifact suits; the message has the reason for each.
        RecordError: the manifest is missing or damaged.
        RunError: a file is damaged, or cannot be run.
        UnsupportedError: a library that the artifact needs does not start here.
    """
    return Loading(Path(artifacts), requirements)


@contextmanager
def _opened(root: Path, requirements: Requirements) -> Iterator[Model]:
    manifest = read_manifest(root)
    if manifest.model is None:
        raise RunError(
            f"{root / 'manifest.json'} does not describe the model", fix="use the manifest of a finished build"
        )
    resolution = resolve_entry(manifest, this_host(), requirements, unusable(root, manifest))
    with open_artifact(_file_of(root, resolution, manifest.model)) as run:
        model = Model(resolution, manifest.model, run)
        try:
            yield model
        finally:
            model.close()


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
        RunError: the manifest names no file, or the runtime cache or the weights are damaged.
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
        ),
        path=path,
        gpu=resolution.place.gpu,
        fix=_FIX,
        record=record,
        built_for=entry.built_for,
        weights=checked_file(root, entry.weights) if entry.weights else None,
        runtime_cache=checked_file(root, entry.runtime_cache).read_bytes() if entry.runtime_cache else None,
        module=_module_of(root, entry, model),
    )


def _module_of(root: Path, entry: ManifestEntry, model: ManifestModel) -> ModuleFacts | None:
    """Return the facts of a torch module; None for a model of tensors, of which there is none."""
    if model.preprocessing is None:
        return None
    shape = model.preprocessing.input_shape
    return ModuleFacts(entry.module, model.factory, shape, root, model.arguments, _names_of(entry))


def _names_of(entry: ManifestEntry) -> tuple[str, ...]:
    """Return the names of several outputs; () for one."""
    names = tuple(spec.name for spec in entry.outputs)
    return names if len(names) > 1 else ()
