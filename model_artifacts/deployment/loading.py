"""What a machine that runs artifacts does with an artifacts folder: resolve what to take, verify it, run it.

    with pipeline.load("artifacts/") as model:
        logits = model(batch)
        names = model.predict([image])

Takes numpy, and the runtime of what is resolved: no torch where that is an engine or an ONNX file, and no doit ever.
"""

from __future__ import annotations

import platform
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.deployment.resolution import Requirements, Resolution, Tier, resolve_entry
from model_artifacts.errors import RunError, UnsupportedError, one_line
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
from model_artifacts.records import DeploymentHost, FileRecord, Manifest, ManifestModel, Precision, Variant, is_applied
from model_artifacts.sessions.onnx import onnx_session
from model_artifacts.sessions.preprocessing import to_input, to_pixels

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt
    from PIL import Image

    from model_artifacts.records import BatchRange, Gpu, ManifestEntry, Preprocessing

    Batch = npt.NDArray[np.float32]

ANY = Requirements()
"""No wishes: the fastest at batch 1."""
_AT_ONCE = 32
"""How many images are run together where an artifact takes any number: memory is not the caller's to think of."""


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

    def __init__(self, resolution: Resolution, facts: ManifestModel, run: Callable[[Batch], Batch]) -> None:
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
        return self._run(batch)

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
    with ExitStack() as stack:
        if found.place.tier is Tier.ONNX:
            run = _open_onnx(root, found)
        elif found.place.tier is Tier.TORCH_TENSORRT:
            run = _open_module(root, found, manifest.model, stack)
        else:
            run = _open_engine(root, found, stack)
        yield Model(found, manifest.model, run)


def checked_file(root: Path, file: FileRecord | None) -> Path:
    """Return where a file of a manifest lies, once it is what the manifest says.

    Args:
        root: the folder with manifest.json.
        file: as the manifest has it.

    Raises:
        RunError: there is none, it leads out of the folder, or it is damaged.
    """
    if file is None:
        raise RunError("the manifest names no file")
    path = root / file.path
    if not path.resolve().is_relative_to(root.resolve()):
        raise RunError(f"the manifest names a file outside its folder: {file.path}", fix="do not use this manifest")
    check_digest(path, file, fix="pull or build the artifacts again")
    return path


def _gpu(found: Resolution) -> Gpu:
    if found.place.gpu is None:
        raise UnsupportedError(f"{found.entry.id} needs a GPU")
    return found.place.gpu


def _open_engine(root: Path, found: Resolution, stack: ExitStack) -> Callable[[Batch], Batch]:
    from model_artifacts.sessions.engine import open_engine  # noqa: PLC0415 - only where there is a GPU
    from model_artifacts.tensorrt.flavour import load_flavour  # noqa: PLC0415 - the same

    entry = found.entry
    if entry.built_for is None:
        raise RunError(f"{entry.id} does not say what its engine runs on")
    if is_applied("strip_plan", entry.settings):
        raise UnsupportedError(f"{entry.id} was built without its weights, and cannot be run from a manifest alone")
    plan = checked_file(root, entry.file).read_bytes()
    cache = checked_file(root, entry.runtime_cache).read_bytes() if entry.runtime_cache else None
    flavour = load_flavour(entry.built_for.flavour)
    engine = stack.enter_context(open_engine(flavour, plan, entry.built_for, _gpu(found)))
    session = stack.enter_context(engine.session(cache=cache))

    def run(batch: Batch) -> Batch:
        return np.asarray(session(batch))

    return run


def _open_module(root: Path, found: Resolution, facts: ManifestModel, stack: ExitStack) -> Callable[[Batch], Batch]:
    from model_artifacts.sessions.module import Saved, load_compiled, open_session  # noqa: PLC0415 - which needs torch

    entry, gpu = found.entry, _gpu(found)
    if entry.module is None:
        raise RunError(f"{entry.id} does not say what made it")
    variant = Variant(
        model=entry.model, target=entry.target, backend=entry.kind, precision=entry.precision, profile=entry.profile
    )
    saved = Saved(variant, entry.module, checked_file(root, entry.file), facts.factory)
    module = load_compiled(root, saved, gpu)
    return stack.enter_context(open_session(module, variant, facts.preprocessing.input_shape, gpu))


def _open_onnx(root: Path, found: Resolution) -> Callable[[Batch], Batch]:
    entry = found.entry
    tf32 = entry.precision is Precision.TF32
    session = onnx_session(checked_file(root, entry.file), entry.graph, found.place.gpu, tf32=tf32)
    name = session.get_inputs()[0].name

    def run(batch: Batch) -> Batch:
        try:
            return np.asarray(session.run(None, {name: batch})[0], dtype=np.float32)
        except Exception as exc:  # onnxruntime's exceptions have no common public base
            raise RunError(f"{entry.id} cannot run a batch {batch.shape}", got=one_line(exc)) from exc

    return run
