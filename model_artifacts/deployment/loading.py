"""Deployments: resolve, verify and run an artifact of an artifacts folder.

    with model_artifacts.load("artifacts/") as model:
        logits = model(batch)
        names = model.predict([image])

This needs numpy and the runtime of the resolved artifact: no torch for an engine or an ONNX file, and never doit.
"""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.deployment.files import unusable
from model_artifacts.deployment.inputs import as_images, checked_batch, likeliest
from model_artifacts.deployment.resolution import Requirements, Resolution, resolve_entry
from model_artifacts.errors import RunError, UsageError
from model_artifacts.host.environment import (
    driver_cuda,
    driver_version,
    installed_onnxruntime,
    installed_torch_tensorrt,
    onnxruntime_has_cuda,
    processor,
    read_host,
)
from model_artifacts.host.hashes import check_digest, leaves_its_folder
from model_artifacts.host.nvml import free_memory_bytes
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Backend, DeploymentHost, FileRecord, Manifest, ManifestModel, Variant
from model_artifacts.sessions.opening import ArtifactFile, ModuleFacts, open_artifact
from model_artifacts.sessions.preprocessing import read_pixels, to_input, to_pixels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import NoReturn

    import numpy.typing as npt

    from model_artifacts.deployment.inputs import Picture, Readable
    from model_artifacts.records import BatchRange, ManifestEntry, Preprocessing
    from model_artifacts.sessions.opening import Runner

    Batch = npt.NDArray[np.float32]

ANY = Requirements()
"""No requirements: the fastest artifact at batch 1."""
_AT_ONCE = 32
"""The number of images in a batch, for an artifact that takes any number. It bounds the memory in use."""

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
    """
    fix = "name a folder that `doit` or `pull` has filled; if the manifest was changed, run that again"
    return read_record(Path(artifacts) / "manifest.json", Manifest, fix=fix)


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


class Model:
    """An artifact that runs, for the thread that opened it."""

    def __init__(self, resolution: Resolution, facts: ManifestModel, run: Runner) -> None:
        self.resolution = resolution
        """The artifact taken, and the reasons against the others."""
        self._facts = facts
        self._run = run

    @property
    def entry(self) -> ManifestEntry:
        """The manifest's entry: accuracy, latencies, the precision it computed in."""
        return self.resolution.entry

    @property
    def preprocessing(self) -> Preprocessing:
        """The steps from an image to the input."""
        return self._facts.preprocessing

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the logits' classes; None if unknown."""
        return self._facts.class_names

    def __call__(self, batch: Batch) -> Batch:
        """Return the logits of images that are preprocessed already.

        Args:
            batch: float32 (batch, channels, height, width): an array or a tensor in the host's memory. An engine also
                takes one in its GPU's memory, with `__dlpack__` or `__cuda_array_interface__`.

        Returns:
            float32 (batch, classes).

        Raises:
            RunError: the artifact does not take such a batch, or the `with` block has ended.
        """
        return np.asarray(self._run(self._checked(batch)))

    def predict(self, images: Picture | Iterable[Picture]) -> tuple[str, ...]:
        """Return the most likely class of each image: its name, or its number if names are unknown.

        The images are read, resized, cropped and normalised as the manifest records, by the code that read the images
        of the validation. They run in batches that the artifact takes. If its smallest batch is larger, copies of the
        last image fill it up.

        Args:
            images: paths of image files, Pillow's images of any size and mode, or uint8 arrays (height, width, 3) or
                (height, width); or one of these.

        Raises:
            DataError: an image cannot be read, or its mode does not fit the preprocessing.
            RunError: the artifact cannot run them, they are no images, or its logits are not finite.
        """
        images = as_images(images)
        profile, names = self.entry.profile, self.class_names
        step = profile.max if profile else _AT_ONCE
        chunks = [images[start : start + step] for start in range(0, len(images), step)]
        indices = [index for chunk in chunks for index in self._most_likely(chunk)]
        return tuple(names[index] if names else str(index) for index in indices)

    def _most_likely(self, images: Sequence[Readable]) -> list[int]:
        spec = self.preprocessing
        batch = to_input(np.stack([_pixels(image, spec) for image in images]), spec)
        logits = self(_filled(batch, self.entry.profile))[: len(batch)]
        return likeliest(logits, self.class_names)

    def close(self) -> None:
        """Refuse all further batches: the `with` block has ended."""
        self._run = _ended

    def _checked(self, batch: Batch) -> Batch:
        """Return a batch that every backend takes alike, as a contiguous array.

        Raises:
            RunError: type or shape are others.
        """
        if self.entry.backend is Backend.TENSORRT and _on_gpu(batch):
            return batch
        return checked_batch(batch, self.preprocessing.input_shape)


def _pixels(image: Readable, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    return read_pixels(image, spec) if isinstance(image, (str, os.PathLike)) else to_pixels(image, spec)


def _filled(batch: Batch, profile: BatchRange | None) -> Batch:
    """Return a batch filled up to the smallest size that the artifact takes."""
    missing = max(0, profile.min - len(batch)) if profile else 0
    return np.concatenate([batch, *[batch[-1:]] * missing]) if missing else batch


def _ended(_batch: Batch) -> Batch:
    raise RunError("the model is closed", fix="call it inside the block: `with load(…) as model:`")


def _on_gpu(batch: object) -> bool:
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    return cuda.on_gpu(batch)


class Loading(AbstractContextManager[Model]):
    """A model that is opened by `with` and closed at the end of the block."""

    def __init__(self, opening: AbstractContextManager[Model]) -> None:
        self._opening = opening

    def __enter__(self) -> Model:
        """Open the model."""
        return self._opening.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Close the model."""
        return self._opening.__exit__(kind, error, trace)

    def __call__(self, batch: object) -> NoReturn:
        """Refuse a batch: nothing is open.

        Raises:
            UsageError: always, with the line to write.
        """
        del batch
        raise _unopened()

    def predict(self, images: object) -> NoReturn:
        """Refuse images: nothing is open.

        Raises:
            UsageError: always, with the line to write.
        """
        del images
        raise _unopened()


def _unopened() -> UsageError:
    return UsageError("`load` has not opened the model yet", fix="write `with load(…) as model:`, and use `model`")


def load(artifacts: str | os.PathLike[str], requirements: Requirements = ANY) -> Loading:
    """Resolve an artifact for this machine, check its digest, and open it.

    Args:
        artifacts: the folder with manifest.json.
        requirements: the caller's requirements.

    Returns:
        a context manager of the model, which turns batches into logits, and images into names of classes. It raises
        the errors below when it is entered.

    Raises:
        ResolveError: no artifact suits; the message has the reason for each.
        RecordError: the manifest is missing or damaged.
        RunError: a file is damaged, or cannot be run.
        UnsupportedError: a library that the artifact needs does not start here.
    """
    return Loading(_opened(Path(artifacts), requirements))


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
        file: the manifest's record of the file.

    Raises:
        RunError: there is none, it lies outside the folder, or it is damaged.
    """
    path, record = _recorded(root, file)
    check_digest(path, record, fix=_FIX)
    return path


def _recorded(root: Path, file: FileRecord | None) -> tuple[Path, FileRecord]:
    """Return the path of a manifest's file, and its record.

    Raises:
        RunError: there is none, or it lies outside the folder.
    """
    if file is None:
        raise RunError("the manifest names no file")
    if leaves_its_folder(file.path):
        raise RunError(f"the manifest names a file outside its folder: {file.path}", fix="do not use this manifest")
    return root / file.path, file


def _file_of(root: Path, resolution: Resolution, model: ManifestModel) -> ArtifactFile:
    """Return the file of a resolved artifact.

    Raises:
        RunError: the manifest names no file in its folder, or the runtime cache or the weights are damaged.
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
        module=ModuleFacts(entry.module, model.factory, model.preprocessing.input_shape, root),
    )
