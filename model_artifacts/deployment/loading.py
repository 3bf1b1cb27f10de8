"""What a machine that runs artifacts does with an artifacts folder: resolve what to take, verify it, run it.

    with pipeline.load("artifacts/") as model:
        logits = model(batch)
        names = model.predict([image])

Takes numpy, and the runtime of what is resolved: no torch where that is an engine or an ONNX file, and no doit ever.
"""

from __future__ import annotations

import platform
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.deployment.resolution import Requirements, Resolution, resolve_entry
from model_artifacts.errors import RunError, UnsupportedError
from model_artifacts.host.environment import (
    driver_cuda,
    driver_version,
    installed_onnxruntime,
    installed_torch_tensorrt,
    processor,
    read_host,
)
from model_artifacts.host.hashes import check_digest
from model_artifacts.host.nvml import free_memory_bytes
from model_artifacts.host.record_files import read_record
from model_artifacts.records import DeploymentHost, FileRecord, Manifest, ManifestModel, Variant, is_applied
from model_artifacts.sessions.opening import ArtifactFile, ModuleFacts, open_artifact
from model_artifacts.sessions.preprocessing import to_input, to_pixels

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from PIL import Image

    from model_artifacts.records import BatchRange, ManifestEntry, Preprocessing
    from model_artifacts.sessions.opening import Runner

    Batch = npt.NDArray[np.float32]

ANY = Requirements()
"""No wishes: the fastest at batch 1."""
_AT_ONCE = 32
"""How many images are run together where an artifact takes any number: memory is not the caller's to think of."""

_FIX = "pull the artifact again, or build it again"


def this_host() -> DeploymentHost:
    """Return what this machine has; no GPU and no library is touched, but for asking the driver."""
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
    )


def read_manifest(artifacts: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of an artifacts folder.

    Raises:
        RecordError: there is none, or it is damaged.
        NewerRecordError: it was written by a newer version of this package.
    """
    return read_record(
        Path(artifacts) / "manifest.json", Manifest, fix="name a folder that `doit` or `pull` has filled"
    )


def resolve(
    artifacts: str | os.PathLike[str], requirements: Requirements = ANY, host: DeploymentHost | None = None
) -> Resolution:
    """Return which artifact of a folder to take, and why not the others; nothing is loaded.

    Args:
        artifacts: the folder with manifest.json.
        requirements: what is wanted of it.
        host: for which machine; None is this one, which takes only what the folder has.

    Raises:
        ResolveError: none suits; the message says why not, artifact by artifact.
        RecordError: there is no manifest, or it is damaged.
    """
    manifest = read_manifest(artifacts)
    if host:
        return resolve_entry(manifest, host, requirements)
    return resolve_entry(manifest, this_host(), requirements, _absent(Path(artifacts), manifest))


def _absent(root: Path, manifest: Manifest) -> set[str]:
    """Return the ids of artifacts whose files are not in the folder, as after a pull for one host."""
    return {entry.id for entry in manifest.artifacts if entry.file and not (root / entry.file.path).exists()}


class Model:
    """An artifact that runs, for the thread that opened it."""

    def __init__(self, resolution: Resolution, facts: ManifestModel, run: Runner) -> None:
        self.resolution = resolution
        """What was taken, and why not the others."""
        self._facts = facts
        self._run = run

    @property
    def entry(self) -> ManifestEntry:
        """What the manifest says of it: accuracy, latencies, what it computed in."""
        return self.resolution.entry

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to the input."""
        return self._facts.preprocessing

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the logits stand for; None where that is not known."""
        return self._facts.class_names

    def __call__(self, batch: Batch) -> Batch:
        """Return the logits of images that are preprocessed already.

        Args:
            batch: float32 (batch, channels, height, width).

        Returns:
            float32 (batch, classes).

        Raises:
            RunError: the artifact does not take such a batch.
        """
        return np.asarray(self._run(batch))

    def predict(self, images: Sequence[Image.Image]) -> tuple[str, ...]:
        """Return the most likely class of each image: its name, or its number where names are not known.

        The images are resized, cropped and normalised as the manifest says, and run in batches that the artifact takes;
        where those are larger, the last image fills them up.

        Args:
            images: of any size and mode.

        Raises:
            RunError: the artifact cannot run them.
        """
        if not images:
            return ()
        profile, names = self.entry.profile, self.class_names
        step = profile.max if profile else _AT_ONCE
        chunks = [images[start : start + step] for start in range(0, len(images), step)]
        found = [index for chunk in chunks for index in self._most_likely(chunk)]
        return tuple(names[index] if names else str(index) for index in found)

    def _most_likely(self, images: Sequence[Image.Image]) -> list[int]:
        spec = self.preprocessing
        batch = to_input(np.stack([to_pixels(image, spec) for image in images]), spec)
        logits = self(_filled(batch, self.entry.profile))[: len(batch)]
        return [int(index) for index in logits.argmax(axis=1)]


def _filled(batch: Batch, profile: BatchRange | None) -> Batch:
    """Return a batch that is not smaller than an artifact takes."""
    missing = max(0, profile.min - len(batch)) if profile else 0
    return np.concatenate([batch, *[batch[-1:]] * missing]) if missing else batch


@contextmanager
def load(artifacts: str | os.PathLike[str], requirements: Requirements = ANY) -> Iterator[Model]:
    """Resolve an artifact for this machine, check its digest, and open it.

    Args:
        artifacts: the folder with manifest.json.
        requirements: what is wanted of the artifact.

    Yields:
        what turns batches into logits, and images into names of classes.

    Raises:
        ResolveError: nothing suits; the message says why not, artifact by artifact.
        RecordError: there is no manifest, or it is damaged.
        RunError: a file is damaged, or cannot be run.
        UnsupportedError: what it takes does not start here.
    """
    root = Path(artifacts)
    manifest = read_manifest(root)
    if manifest.model is None:
        raise RunError(f"{root / 'manifest.json'} says nothing of the model", fix="take a finished build")
    found = resolve_entry(manifest, this_host(), requirements, _absent(root, manifest))
    with open_artifact(_file_of(root, found, manifest.model)) as run:
        yield Model(found, manifest.model, run)


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
    path = root / file.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise RunError(f"the manifest names a file outside its folder: {file.path}", fix="do not use this manifest")
    return path, file


def _file_of(root: Path, found: Resolution, model: ManifestModel) -> ArtifactFile:
    """Return the file of a resolved artifact.

    Raises:
        RunError: the manifest names no file in its folder, or the runtime cache is damaged.
        UnsupportedError: the engine has no weights.
    """
    entry = found.entry
    if is_applied("strip_plan", entry.settings):
        raise UnsupportedError(f"{entry.id} was built without its weights, and cannot be run from a manifest alone")
    path, record = _recorded(root, entry.file)
    return ArtifactFile(
        id=entry.id,
        variant=Variant(
            model=entry.model,
            target=entry.target,
            backend=entry.kind,
            precision=entry.precision,
            graph=entry.graph,
            profile=entry.profile,
        ),
        path=path,
        gpu=found.place.gpu,
        fix=_FIX,
        record=record,
        built_for=entry.built_for,
        runtime_cache=checked_file(root, entry.runtime_cache).read_bytes() if entry.runtime_cache else None,
        module=ModuleFacts(entry.module, model.factory, model.preprocessing.input_shape, root),
    )
