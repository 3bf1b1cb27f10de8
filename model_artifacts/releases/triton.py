"""A manifest → a model repository for Triton Inference Server: what of it Triton can run, each with its config.pbtxt.

    <model>-<precision>-<batches>-trt/    engines of TensorRT, one file a type of GPU (`cc_model_filenames`)
    <model>-<precision>-<batches>-aoti/   AOTInductor packages of Torch-TensorRT (Triton's platform `torch_aoti`)
    <model>-<graph>-onnx/                 ONNX files, on the processor; `-onnx-gpu` on GPUs

What is deployable and is not there is told with the reason. Configurations are made with Triton's own protobuf, and
what was written is read back and held against the manifest before it takes its place.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.deployment.loading import checked_file, read_manifest
from model_artifacts.errors import TritonError
from model_artifacts.host.files import replacing_folder
from model_artifacts.host.hashes import sha256_of
from model_artifacts.records import CPU_TARGET, Backend, EngineFlavour, Precision, Status, is_applied, ranking_clock
from model_artifacts.sessions.preprocessing import to_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import Manifest, ManifestEntry, ManifestModel, TensorSpec

CONFIG, VERSION, LABELS, SAMPLE = "config.pbtxt", "1", "labels.txt", "image"
MARKER = ".model-artifact-pipeline"
"""Names the models that were written, one a line; Triton looks at a repository's folders alone."""
_TYPES = {"float32": "TYPE_FP32"}
"""What inputs and outputs of this pipeline's graphs are, as Triton calls it."""


class Platform(Enum):
    """What runs a model in Triton: its platform, its backend, and the name that its file has there."""

    TENSORRT = ("tensorrt_plan", "tensorrt", "model.plan")
    AOTI = ("torch_aoti", "pytorch", "model.pt2")
    ONNX = ("onnxruntime_onnx", "onnxruntime", "model.onnx")


class LeftOut(NamedTuple):
    """A deployable artifact that is not in the repository."""

    id: str
    reason: str


@dataclass(frozen=True)
class TritonModel:
    """One model of the repository: the same network in the same precision for the same batches."""

    name: str
    platform: Platform
    on_gpu: bool
    entries: tuple[ManifestEntry, ...]
    """One a type of GPU; one alone where that does not matter, or is not known."""

    @property
    def filenames(self) -> tuple[str, ...]:
        """What the entries' files are called there, in their order."""
        plain = self.platform.value[2]
        if not self.by_gpu:
            return (plain,)
        stem, _, suffix = plain.rpartition(".")
        return tuple(f"{stem}.sm{_capability(entry)}.{suffix}" for entry in self.entries)

    @property
    def by_gpu(self) -> bool:
        """Whether the file depends on the GPU that Triton finds; an engine's always, so that no other loads it."""
        return self.platform is Platform.TENSORRT or len(self.entries) > 1

    @property
    def max_batch(self) -> int:
        """The largest batch that Triton may put together; 0 where requests must come as batches that fit already.

        Triton fills up to this size from 1 on, so that what takes no single image is not batched, and an engine of a
        fixed size says its size in the shape.
        """
        profile = self.entries[0].profile
        if profile is None:
            return max((timing.batch for timing in self.entries[0].timings), default=1)
        return profile.max if profile.min == 1 < profile.max else 0

    @property
    def preferred_batch(self) -> int | None:
        """The size that an engine was tuned for."""
        profile = self.entries[0].profile
        return profile.opt if profile and self.max_batch and profile.opt > 1 else None

    def dims(self, spec: TensorSpec) -> tuple[int, ...]:
        """Return a tensor's shape as Triton wants it: without the batch where Triton makes the batches."""
        sample = tuple(size if isinstance(size, int) else -1 for size in spec.shape[1:])
        if self.max_batch:
            return sample
        profile = self.entries[0].profile
        return (profile.min if profile and profile.is_fixed else -1, *sample)


@dataclass(frozen=True)
class Repository:
    """What was written."""

    folder: Path
    models: tuple[TritonModel, ...]
    left_out: tuple[LeftOut, ...]


def plan_models(manifest: Manifest) -> tuple[tuple[TritonModel, ...], tuple[LeftOut, ...]]:
    """Return the models that Triton can run, sorted by name, and what is deployable and left out."""
    left: dict[str, str] = {}
    groups: dict[str, list[ManifestEntry]] = {}
    for entry in manifest.artifacts:
        if entry.status is not Status.DEPLOYABLE or entry.kind.is_baseline:
            continue
        if reason := _why_not(entry):
            left[entry.id] = reason
        else:
            groups.setdefault(_name(entry), []).append(entry)
    models = []
    for name, entries in sorted(groups.items()):
        platform = _platform(entries[0])
        on_gpu = platform is not Platform.ONNX or entries[0].target != CPU_TARGET
        models.append(TritonModel(name, platform, on_gpu, tuple(_choose(entries, left))))
    order = [entry.id for entry in manifest.artifacts if entry.id in left]
    return tuple(models), tuple(LeftOut(name, left[name]) for name in order)


def make_repository(artifacts: Path, folder: Path) -> Repository:
    """Write a model repository, in place of an older one.

    Args:
        artifacts: the folder with manifest.json: a build's, or a release's.
        folder: what becomes the repository.

    Raises:
        TritonError: nothing can be served, or the folder holds what was not written by this.
        RecordError: there is no manifest, or it is damaged.
        RunError: a file is damaged.
        StorageError: the repository cannot be written.
    """
    manifest = read_manifest(artifacts)
    models, left_out = plan_models(manifest)
    if not models or manifest.model is None:
        reasons = "".join(f"\n    {item.id}: {item.reason}" for item in left_out) or "nothing deployable"
        raise TritonError(
            "Triton can serve nothing of this manifest", got=reasons, fix="build TensorRT engines or ONNX"
        )
    _check_replaceable(folder)
    with replacing_folder(folder) as scratch:
        for model in models:
            _write_model(scratch / model.name, model, manifest.model, artifacts)
            check_model(scratch / model.name, model, manifest.model)
        (scratch / MARKER).write_text("".join(f"{model.name}\n" for model in models), encoding="utf-8")
    return Repository(folder, models, left_out)


def check_model(folder: Path, model: TritonModel, facts: ManifestModel) -> None:
    """Read a model's folder back, and hold it against the manifest: names, types, shapes, files and their digests.

    Raises:
        TritonError: something differs.
    """
    from google.protobuf import text_format  # noqa: PLC0415 - Triton's configuration alone needs it
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415 - the same

    try:
        said = text_format.Parse((folder / CONFIG).read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except text_format.ParseError as exc:
        raise TritonError(f"{folder / CONFIG} is no configuration of Triton", got=str(exc)) from exc
    entry = model.entries[0]
    expected: dict[str, tuple[object, object]] = {
        "name": (folder.name, said.name),
        "platform": (model.platform.value[0], said.platform),
        "backend": (model.platform.value[1], said.backend),
        "largest batch": (model.max_batch, said.max_batch_size),
        "inputs": (_tensors(model, entry.inputs, "INPUT"), _said(said.input)),
        "outputs": (_tensors(model, entry.outputs, "OUTPUT"), _said(said.output)),
        "files": (set(model.filenames), {path.name for path in (folder / VERSION).iterdir()}),
        "files by GPU": (_by_capability(model), dict(said.cc_model_filenames)),
        "labels": (_labels(facts), (folder / LABELS).read_text(encoding="utf-8") if facts.class_names else ""),
    }
    for item, name in zip(model.entries, model.filenames, strict=True):
        there = folder / VERSION / name
        if item.file and there.is_file():  # or else the files are not those
            expected[f"digest of {name}"] = (item.file.sha256, sha256_of(there))
    for warmup in said.model_warmup:
        for given in warmup.inputs.values():
            if given.input_data_file:
                size = (folder / "warmup" / given.input_data_file).stat().st_size
                expected[f"bytes of {given.input_data_file}"] = (4 * math.prod(given.dims), size)
    for what, (wanted, got) in expected.items():
        if wanted != got:
            raise TritonError(f"{folder}: {what} is not what the manifest says", expected=str(wanted), got=str(got))


def _why_not(entry: ManifestEntry) -> str:
    """Return why Triton cannot run a deployable artifact, if it cannot."""
    if entry.kind is Backend.DYNAMO:
        return "Triton loads AOTInductor packages of torch (`formats: [aot_inductor]`), and no ExportedPrograms"
    if entry.kind is Backend.TORCH_COMPILE:
        return "a recipe is compiled in Python when it is opened; Triton has nothing to load"
    if entry.kind is Backend.TENSORRT:
        if entry.built_for is None or entry.built_for.flavour is not EngineFlavour.TENSORRT:
            return "Triton runs engines of TensorRT, and none of TensorRT-RTX"
        if entry.built_for.gpu is None:
            return "it does not say which GPU it was built for"
        if is_applied("strip_plan", entry.settings):
            return "it was built without its weights"
    if entry.kind is Backend.ONNXRUNTIME and entry.graph:
        if entry.graph.precision in {Precision.INT8, Precision.FP8} and not entry.graph.for_x86:
            return "its int8 places are TensorRT's; ONNX Runtime ran it here with optimisers off that Triton leaves on"
        if entry.target != CPU_TARGET and entry.precision is Precision.FP32:
            return "it was validated without TF32, which Triton's ONNX Runtime does not switch off"
    return ""


def _platform(entry: ManifestEntry) -> Platform:
    if entry.kind is Backend.TENSORRT:
        return Platform.TENSORRT
    return Platform.AOTI if entry.kind is Backend.DYNAMO_AOTI else Platform.ONNX


def _name(entry: ManifestEntry) -> str:
    """Return the model's name: what is alike for Triton's clients is alike here."""
    platform = _platform(entry)
    if platform is Platform.ONNX:
        graph = entry.graph.value if entry.graph else entry.precision.value
        return f"{entry.model}-{graph}-onnx{'' if entry.target == CPU_TARGET else '-gpu'}"
    precision = entry.graph.value if entry.graph and entry.graph.is_mixed else entry.precision.value
    batches = entry.profile.label if entry.profile else "any"
    return f"{entry.model}-{precision}-{batches}-{'trt' if platform is Platform.TENSORRT else 'aoti'}"


def _choose(entries: Sequence[ManifestEntry], left: dict[str, str]) -> list[ManifestEntry]:
    """Return the fastest of each type of GPU that one server can hold side by side; say why not the others."""
    newest = max(_version(entry) for entry in entries)
    left.update(
        {
            entry.id: "others are engines of a newer TensorRT, and a server has one version"
            for entry in entries
            if _version(entry) != newest
        }
    )
    chosen: dict[int, ManifestEntry] = {}
    fitting = [entry for entry in entries if _version(entry) == newest]
    for entry in sorted(fitting, key=lambda entry: (_milliseconds(entry), entry.id)):
        taken = chosen.setdefault(_capability(entry), entry)
        if taken is not entry:
            left[entry.id] = f"{taken.id} takes its place: as fast or faster, and Triton tells GPUs apart by SM alone"
    return [chosen[place] for place in sorted(chosen)]


def _version(entry: ManifestEntry) -> tuple[int, ...]:
    return tuple(int(part) for part in entry.built_for.version.split(".")) if entry.built_for else ()


def _milliseconds(entry: ManifestEntry) -> float:
    """Return the median at the size that an artifact was tuned for, by the clock that ranks; infinite if not timed."""
    if not entry.timings:
        return math.inf
    clock = ranking_clock({timing.clock for timing in entry.timings})
    tuned = entry.profile.opt if entry.profile else 1
    times = [timing.p50_ms for timing in entry.timings if timing.clock is clock and timing.batch == tuned]
    return min(times, default=math.inf)


def _capability(entry: ManifestEntry) -> int:
    """Return the compute capability that a file is for; 0 where that does not matter."""
    if entry.built_for:
        return entry.built_for.compute_capabilities[0]
    return entry.gpu.compute_capability if entry.gpu and _platform(entry) is not Platform.ONNX else 0


def _by_capability(model: TritonModel) -> dict[str, str]:
    """Return `cc_model_filenames`: which file a GPU of a compute capability takes."""
    if not model.by_gpu:
        return {}
    names = zip(model.entries, model.filenames, strict=True)
    return {f"{_capability(entry) // 10}.{_capability(entry) % 10}": name for entry, name in names}


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
    """Return what warms a model up: noise, preprocessed as images are; float32 (batch, channels, height, width)."""
    spec = facts.preprocessing
    shape = (_sample_count(model), spec.crop, spec.crop, spec.channels)
    return to_input(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), spec)


def _sample_count(model: TritonModel) -> int:
    """Return how many images that is: one where Triton makes the batches."""
    profile = model.entries[0].profile
    return 1 if model.max_batch or profile is None else profile.opt


def _config(model: TritonModel, facts: ManifestModel) -> Any:  # noqa: ANN401 - protobuf's classes have no types
    """Return the configuration as Triton's message."""
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
    config.cc_model_filenames.update(_by_capability(model))
    if not config.cc_model_filenames:
        config.default_model_filename = model.filenames[0]
    if model.max_batch > 1:
        preferred = model.preferred_batch
        config.dynamic_batching.CopyFrom(pb.ModelDynamicBatching(preferred_batch_size=[preferred] if preferred else []))
    shape = facts.preprocessing.input_shape
    dims = shape if model.max_batch else (_sample_count(model), *shape)
    warmup = config.model_warmup.add(name="one request", batch_size=1)
    given = warmup.inputs[config.input[0].name]
    given.data_type, given.input_data_file = config.input[0].data_type, SAMPLE
    given.dims.extend(dims)
    if model.max_batch > 1:
        warmup = config.model_warmup.add(name="the largest batch", batch_size=model.max_batch)
        given = warmup.inputs[config.input[0].name]
        given.data_type, given.zero_data = config.input[0].data_type, True
        given.dims.extend(dims)
    return config


def _tensors(model: TritonModel, specs: Iterable[TensorSpec], role: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return names, types and shapes as Triton has them; of torch's modules it knows the places alone."""
    by_place = model.platform is Platform.AOTI
    return [
        (f"{role}__{place}" if by_place else spec.name, _TYPES[spec.dtype], model.dims(spec))
        for place, spec in enumerate(specs)
    ]


def _said(tensors: Iterable[Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the same of a configuration that was read back."""
    from tritonclient.grpc import model_config_pb2 as pb  # noqa: PLC0415 - Triton's configuration alone needs it

    return [(tensor.name, pb.DataType.Name(tensor.data_type), tuple(tensor.dims)) for tensor in tensors]


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace what was not written here: models that others have put beside them, too."""
    if folder.is_dir():
        marker = folder / MARKER
        ours = {MARKER, *marker.read_text(encoding="utf-8").splitlines()} if marker.is_file() else set()
        foreign = sorted({path.name for path in folder.iterdir()} - ours)
    else:
        foreign = ["a file"] if folder.exists() else []
    if foreign:
        raise TritonError(
            f"{folder} holds what was not written here, and is not replaced",
            got=foreign[0],
            fix="name a new folder, or a repository that this has written before",
        )
