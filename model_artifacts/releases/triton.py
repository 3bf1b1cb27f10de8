"""A manifest → a model repository for Triton Inference Server: a folder for each model, with its config.pbtxt.

The configurations are written with Triton's own protobuf, then read back and compared with the manifest before the
repository takes its place. `triton_models` chooses the models; deployable artifacts without one are reported with the
reason.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.deployment.loading import checked_file, read_manifest
from model_artifacts.errors import TritonError
from model_artifacts.host.files import replacing_folder
from model_artifacts.host.hashes import sha256_of
from model_artifacts.records import Status
from model_artifacts.releases.triton_models import LeftOut, Platform, TritonModel, plan_models
from model_artifacts.sessions.preprocessing import to_input

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import Manifest, ManifestModel, TensorSpec

CONFIG, VERSION, LABELS, SAMPLE = "config.pbtxt", "1", "labels.txt", "image"
"""Names in a model's folder: its configuration, its only version, its classes, its input for the warm-up."""
MARKER = ".model-artifact-pipeline"
"""File with the names of the written models, one a line; Triton reads a repository's folders only."""
_TYPES = {"float32": "TYPE_FP32"}
"""Triton's names of the types of inputs and outputs."""


@dataclass(frozen=True)
class Repository:
    """A written model repository."""

    folder: Path
    models: tuple[TritonModel, ...]
    left_out: tuple[LeftOut, ...]


def make_repository(artifacts: Path, folder: Path) -> Repository:
    """Write a model repository, replacing an older one.

    Args:
        artifacts: the folder of manifest.json: a build's or a release's.
        folder: the repository's folder: absent, empty, or a repository that this function wrote before.

    Raises:
        TritonError: Triton can run no artifact, or the folder holds other files.
        RecordError: the manifest is missing or damaged.
        RunError: an artifact's file is damaged.
        StorageError: the repository cannot be written.
    """
    manifest, missing = _present(read_manifest(artifacts), artifacts)
    models, left_out = plan_models(manifest)
    left_out += missing
    if not models or manifest.model is None:
        reasons = "".join(f"\n    {item.id}: {item.reason}" for item in left_out) or "nothing deployable"
        raise TritonError(
            "Triton can serve no artifact of this manifest", got=reasons, fix="build TensorRT engines or ONNX files"
        )
    _check_replaceable(folder)
    with replacing_folder(folder) as scratch:
        for model in models:
            _write_model(scratch / model.name, model, manifest.model, artifacts)
            check_model(scratch / model.name, model, manifest.model)
        (scratch / MARKER).write_text("".join(f"{model.name}\n" for model in models), encoding="utf-8")
    return Repository(folder, models, left_out)


def _present(manifest: Manifest, artifacts: Path) -> tuple[Manifest, tuple[LeftOut, ...]]:
    """Return the manifest of the artifacts whose files are in a folder, and the deployable ones that are left out."""
    absent = {
        entry.id
        for entry in manifest.artifacts
        if entry.status is Status.DEPLOYABLE and entry.file and not (artifacts / entry.file.path).exists()
    }
    present = tuple(entry for entry in manifest.artifacts if entry.id not in absent)
    reason = "its file is not in this folder"
    return manifest.model_copy(update={"artifacts": present}), tuple(LeftOut(name, reason) for name in sorted(absent))


def check_model(folder: Path, model: TritonModel, facts: ManifestModel) -> None:
    """Compare a written model's folder with the manifest: names, types, shapes, files and their digests.

    Args:
        folder: the model's folder.
        model: the model that it must hold.
        facts: the manifest's facts of the network.

    Raises:
        TritonError: the configuration cannot be read, or something differs.
    """
    from google.protobuf import text_format  # noqa: PLC0415 - Triton's configuration alone needs it
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415 - the same

    try:
        written = text_format.Parse((folder / CONFIG).read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except text_format.ParseError as exc:
        raise TritonError(f"{folder / CONFIG} is no valid configuration of Triton", got=str(exc)) from exc
    entry = model.entries[0]
    expected: dict[str, tuple[object, object]] = {
        "name": (folder.name, written.name),
        "platform": (model.platform.value[0], written.platform),
        "backend": (model.platform.value[1], written.backend),
        "largest batch": (model.max_batch, written.max_batch_size),
        "inputs": (_tensors(model, entry.inputs, "INPUT"), _written_tensors(written.input)),
        "outputs": (_tensors(model, entry.outputs, "OUTPUT"), _written_tensors(written.output)),
        "files": (set(model.filenames), {path.name for path in (folder / VERSION).iterdir()}),
        "files by GPU": (model.files_by_capability, dict(written.cc_model_filenames)),
        "labels": (_labels(facts), (folder / LABELS).read_text(encoding="utf-8") if facts.class_names else ""),
    }
    for item, name in zip(model.entries, model.filenames, strict=True):
        there = folder / VERSION / name
        if item.file and there.is_file():  # a missing file is reported by "files"
            expected[f"digest of {name}"] = (item.file.sha256, sha256_of(there))
    for warmup in written.model_warmup:
        for sample in warmup.inputs.values():
            if sample.input_data_file:
                size = (folder / "warmup" / sample.input_data_file).stat().st_size
                expected[f"bytes of {sample.input_data_file}"] = (4 * math.prod(sample.dims), size)  # float32
    for fact, (wanted, got) in expected.items():
        if wanted != got:
            raise TritonError(f"{folder} does not match the manifest: {fact}", expected=str(wanted), got=str(got))


def _write_model(folder: Path, model: TritonModel, facts: ManifestModel, artifacts: Path) -> None:
    from google.protobuf import text_format  # noqa: PLC0415 - Triton's configuration alone needs it

    (folder / VERSION).mkdir(parents=True)
    (folder / "warmup").mkdir()
    for entry, name in zip(model.entries, model.filenames, strict=True):
        shutil.copyfile(checked_file(artifacts, entry.file), folder / VERSION / name)
    if facts.class_names:
        (folder / LABELS).write_text(_labels(facts), encoding="utf-8")
    (folder / "warmup" / SAMPLE).write_bytes(_sample(model, facts).tobytes())
    head = "".join(f"# {entry.id}\n" for entry in model.entries)
    text = text_format.MessageToString(_config(model, facts))
    (folder / CONFIG).write_text(head + text, encoding="utf-8")


def _labels(facts: ManifestModel) -> str:
    return "".join(f"{name}\n" for name in facts.class_names or ())


def _sample(model: TritonModel, facts: ManifestModel) -> npt.NDArray[np.float32]:
    """Return the input for the warm-up: preprocessed noise, float32 (batch, channels, height, width)."""
    spec = facts.preprocessing
    shape = (_sample_count(model), spec.height, spec.width, spec.channels)
    return to_input(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), spec)


def _sample_count(model: TritonModel) -> int:
    """Return the number of images of the warm-up: the tuned batch, or one if Triton composes batches."""
    profile = model.entries[0].profile
    return 1 if model.max_batch or profile is None else profile.opt


def _config(model: TritonModel, facts: ManifestModel) -> Any:  # noqa: ANN401 - protobuf's classes have no types
    """Return the model's configuration, Triton's protobuf message `ModelConfig`."""
    from tritonclient.grpc import model_config_pb2 as pb  # noqa: PLC0415 - Triton's configuration alone needs it

    entry = model.entries[0]
    platform, backend, _ = model.platform.value
    config = pb.ModelConfig(name=model.name, platform=platform, backend=backend, max_batch_size=model.max_batch)
    for name, dtype, dims in _tensors(model, entry.inputs, "INPUT"):
        config.input.add(name=name, data_type=pb.DataType.Value(dtype), dims=dims)
    for name, dtype, dims in _tensors(model, entry.outputs, "OUTPUT"):
        labels = LABELS if facts.class_names else ""
        config.output.add(name=name, data_type=pb.DataType.Value(dtype), dims=dims, label_filename=labels)
    kind = pb.ModelInstanceGroup.KIND_GPU if model.on_gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=1, kind=kind)
    config.cc_model_filenames.update(model.files_by_capability)
    if not config.cc_model_filenames:
        config.default_model_filename = model.filenames[0]
    if model.max_batch > 1:
        preferred = model.preferred_batch
        config.dynamic_batching.CopyFrom(pb.ModelDynamicBatching(preferred_batch_size=[preferred] if preferred else []))
    shape = facts.preprocessing.input_shape
    dims = shape if model.max_batch else (_sample_count(model), *shape)
    warmup = config.model_warmup.add(name="one request", batch_size=1)
    sample = warmup.inputs[config.input[0].name]
    sample.data_type, sample.input_data_file = config.input[0].data_type, SAMPLE
    sample.dims.extend(dims)
    if model.max_batch > 1:
        warmup = config.model_warmup.add(name="the largest batch", batch_size=model.max_batch)
        sample = warmup.inputs[config.input[0].name]
        sample.data_type, sample.zero_data = config.input[0].data_type, True
        sample.dims.extend(dims)
    return config


def _tensors(model: TritonModel, specs: Iterable[TensorSpec], role: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return tensors as (name, type, shape) for Triton, which knows those of torch's modules by position only."""
    by_position = model.platform is Platform.AOTI
    return [
        (f"{role}__{position}" if by_position else spec.name, _TYPES[spec.dtype], model.dims(spec))
        for position, spec in enumerate(specs)
    ]


def _written_tensors(tensors: Iterable[Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the tensors of a configuration as (name, type, shape), like `_tensors`."""
    from tritonclient.grpc import model_config_pb2 as pb  # noqa: PLC0415 - Triton's configuration alone needs it

    return [(tensor.name, pb.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in tensors]


def _check_replaceable(folder: Path) -> None:
    """Raise `TritonError` if the folder holds other files than a written repository's, such as others' models."""
    if folder.is_dir():
        marker = folder / MARKER
        ours = {MARKER, *marker.read_text(encoding="utf-8").splitlines()} if marker.is_file() else set()
        foreign = sorted({path.name for path in folder.iterdir()} - ours)
    else:
        foreign = ["a file"] if folder.exists() else []
    if foreign:
        raise TritonError(
            f"{folder} holds files that this command did not write; the folder is kept",
            got=foreign[0],
            fix="name a new folder, or a repository that this command wrote before",
        )
