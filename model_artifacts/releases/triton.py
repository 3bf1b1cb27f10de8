"""A manifest → model repositories for Triton Inference Server: one for each kind of host.

In a repository, each model has a folder with its config.pbtxt.

The configurations are written with Triton's own protobuf, then read back and compared with the manifest before the
repositories take their place. `triton_models` chooses the models; deployable artifacts without one are reported with
the reason.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.deployment.files import incomplete
from model_artifacts.deployment.loading import checked_file, read_manifest
from model_artifacts.errors import TritonError
from model_artifacts.host.files import replacing_folder
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.terminal import one_row
from model_artifacts.records import Task, manifests_of, of_model
from model_artifacts.releases.triton_models import LeftOut, Platform, TritonModel, plan_models
from model_artifacts.sessions.preprocessing import to_feed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import ManifestModel, Preprocessing, TensorSpec

CONFIG, LABELS, SAMPLE = "config.pbtxt", "labels.txt", "image"
"""Names in a model's folder: its configuration, its classes, its input for the warm-up."""
MARKER = ".model-artifact-pipeline"
"""File with the paths of the written models, one a line; Triton reads folders only."""
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
"""Triton's names of the types of inputs and outputs."""


class WrittenModel(NamedTuple):
    """A model in a repository, and its version."""

    model: TritonModel
    version: int


@dataclass(frozen=True)
class Repositories:
    """Written model repositories, one for each kind of host."""

    folder: Path
    """The folder of the repositories."""
    models: tuple[WrittenModel, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The kinds of hosts, which are the names of the repositories."""
        return tuple(dict.fromkeys(written.model.host for written in self.models))


def make_repositories(
    artifacts: Path,
    folder: Path,
    version: int | None = None,
    model: str | None = None,
    p99_ms: float | None = None,
) -> Repositories:
    """Write model repositories, replacing older ones. A server may have several models, and gets all of a manifest.

    Args:
        artifacts: the folder of manifest.json: a build's or a release's.
        folder: the repositories' folder: absent, empty, or one that this function wrote before.
        version: the version of all models. None gives a model the version of the one that it replaces, or the next one
            if its file is another; 1 if it replaces none.
        model: the name of the only model to write; None writes every model of the manifest.
        p99_ms: the bound in milliseconds of the 99th percentile, whose settings of `doit load` are written; None takes
            the strictest bound that a model kept.

    Raises:
        TritonError: Triton can run no artifact, or the folder holds other files.
        UsageError: the manifest has no model of this name.
        RecordError: the manifest is missing or damaged.
        RunError: an artifact's file is damaged.
        StorageError: a repository cannot be written.
    """
    whole = read_manifest(artifacts)
    manifest = of_model(whole, model) if model else whole  # planned together: a server has one TensorRT
    parts = [(item.model, item.artifacts) for item in manifests_of(manifest)]
    facts = {entry.model: about for about, entries in parts if about for entry in entries}
    models, left_out = plan_models(manifest, incomplete(artifacts, manifest), p99_ms)
    if not models or any(item.entry.model not in facts for item in models):
        reasons = "".join(f"\n    {item.id}: {item.reason}" for item in left_out) or "nothing deployable"
        raise TritonError(
            "Triton can serve no artifact of this manifest", got=reasons, fix="build TensorRT engines or ONNX files"
        )
    _check_replaceable(folder)
    written = tuple(WrittenModel(item, version or _next_version(folder / item.path, item)) for item in models)
    with replacing_folder(folder) as scratch:
        for item in written:
            own = facts[item.model.entry.model]
            _write_model(scratch / item.model.path, item, own, artifacts)
            check_model(scratch / item.model.path, item, own)
        (scratch / MARKER).write_text("".join(f"{item.path}\n" for item in models), encoding="utf-8")
    return Repositories(folder, written, left_out)


def _next_version(there: Path, model: TritonModel) -> int:
    """Return the version of a model that may replace another one: its version, or the next if the file differs."""
    names = [path.name for path in there.iterdir() if path.is_dir()] if there.is_dir() else []
    last = max((int(name) for name in names if name.isascii() and name.isdecimal()), default=0)
    file = there / str(last) / model.filename
    same = model.entry.file is not None and file.is_file() and sha256_of(file) == model.entry.file.sha256
    return max(1, last if same else last + 1)


def check_model(folder: Path, item: WrittenModel, facts: ManifestModel) -> None:
    """Compare a written model's folder with the manifest: names, types, shapes, parameters, and the file's digest.

    Args:
        folder: the model's folder.
        item: the model that it must hold.
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
    model, entry = item.model, item.model.entry
    there = folder / str(item.version)
    expected: dict[str, tuple[object, object]] = {
        "name": (folder.name, written.name),
        "platform": (model.platform.value[0], written.platform),
        "backend": (model.platform.value[1], written.backend),
        "largest batch": (model.max_batch, written.max_batch_size),
        "inputs": (_tensors(model, entry.inputs, "INPUT"), _written_tensors(written.input)),
        "outputs": (_tensors(model, entry.outputs, "OUTPUT"), _written_tensors(written.output)),
        "versions": ([str(item.version)], [path.name for path in folder.iterdir() if path.name.isdecimal()]),
        "files": ([model.filename], [path.name for path in there.iterdir()] if there.is_dir() else []),
        "profiles": ([model.profiles], [list(group.profile) for group in written.instance_group]),
        "preferred batches": (_preferred(model), list(written.dynamic_batching.preferred_batch_size)),
        "longest delay": (model.max_delay_us, written.dynamic_batching.max_queue_delay_microseconds),
        "instances": ([model.instances], [group.count for group in written.instance_group]),
        "CUDA graphs": (model.graph_batches, _written_graphs(written)),
        "parameters": (
            _parameters(model, facts),
            {name: item.string_value for name, item in written.parameters.items()},
        ),
        "files by GPU": (model.files_by_capability, dict(written.cc_model_filenames)),
        "labels": (_labels(facts), (folder / LABELS).read_text(encoding="utf-8") if _names_classes(facts) else ""),
    }
    if entry.file and (there / model.filename).is_file():  # a missing file is reported by "files"
        expected[f"digest of {model.filename}"] = (entry.file.sha256, sha256_of(there / model.filename))
    for warmup in written.model_warmup:
        for sample in warmup.inputs.values():
            if sample.input_data_file:
                size = (folder / "warmup" / sample.input_data_file).stat().st_size
                each = np.dtype(entry.io.input.value).itemsize
                expected[f"bytes of {sample.input_data_file}"] = (each * math.prod(sample.dims), size)
    for fact, (wanted, got) in expected.items():
        if wanted != got:
            raise TritonError(f"{folder} does not match the manifest: {fact}", expected=str(wanted), got=str(got))


def _write_model(folder: Path, item: WrittenModel, facts: ManifestModel, artifacts: Path) -> None:
    from google.protobuf import text_format  # noqa: PLC0415 - Triton's configuration alone needs it

    model = item.model
    (folder / str(item.version)).mkdir(parents=True)
    (folder / "warmup").mkdir()
    shutil.copyfile(checked_file(artifacts, model.entry.file), folder / str(item.version) / model.filename)
    if _names_classes(facts):
        (folder / LABELS).write_text(_labels(facts), encoding="utf-8")
    if facts.preprocessing is not None:
        (folder / "warmup" / SAMPLE).write_bytes(_sample(model, facts.preprocessing).tobytes())
    text = text_format.MessageToString(_config(model, facts))
    header = f"# {model.entry.id}\n# instances, batching and CUDA graphs: {one_row(model.origin)}\n"
    (folder / CONFIG).write_text(f"{header}{text}", encoding="utf-8")


def _names_classes(facts: ManifestModel) -> bool:
    """Return true if each number of an output's row belongs to a class with a name. Triton knows none of maps."""
    return bool(facts.class_names) and facts.task in {Task.CLASSIFICATION, Task.MULTILABEL}


def _labels(facts: ManifestModel) -> str:
    """Return the names of the classes, one a line: Triton counts lines, so that no name may hold a line break."""
    names = facts.class_names if _names_classes(facts) else None
    return "".join(f"{' '.join(name.splitlines())}\n" for name in names or ())


def _parameters(model: TritonModel, facts: ManifestModel) -> dict[str, str]:
    """Return the model's parameters for clients: the artifact, its digest, and the preprocessing as JSON.

    The manifest leaves fields with defaults out; clients in other languages get them all.
    """
    return {
        "artifact": model.entry.id,
        "sha256": model.entry.file.sha256 if model.entry.file else "",
        **({"preprocessing": json.dumps(dict(facts.preprocessing), sort_keys=True)} if facts.preprocessing else {}),
    }


def _preferred(model: TritonModel) -> list[int]:
    return [model.preferred_batch] if model.composes and model.preferred_batch else []


def _sample(model: TritonModel, spec: Preprocessing) -> npt.NDArray[np.generic]:
    """Return the input for the warm-up: noise, as the model takes images."""
    shape = (_sample_count(model), spec.height, spec.width, spec.channels)
    return to_feed(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), spec, model.entry.io.input)


def _sample_count(model: TritonModel) -> int:
    """Return the number of images of the warm-up: the tuned batch, or one if Triton composes batches."""
    profile = model.entry.profile
    return 1 if model.max_batch or profile is None else profile.opt


def _config(model: TritonModel, facts: ManifestModel) -> Any:  # noqa: ANN401 - protobuf's classes have no types
    """Return the model's configuration, Triton's protobuf message `ModelConfig`."""
    from tritonclient.grpc import model_config_pb2 as pb  # noqa: PLC0415 - Triton's configuration alone needs it

    entry = model.entry
    platform, backend, _ = model.platform.value
    config = pb.ModelConfig(name=model.name, platform=platform, backend=backend, max_batch_size=model.max_batch)
    for name, dtype, dims in _tensors(model, entry.inputs, "INPUT"):
        config.input.add(name=name, data_type=pb.DataType.Value(dtype), dims=dims)
    for name, dtype, dims in _tensors(model, entry.outputs, "OUTPUT"):
        labels = LABELS if _names_classes(facts) and entry.io.top is None else ""  # by place, and a top-k has ranks
        config.output.add(name=name, data_type=pb.DataType.Value(dtype), dims=dims, label_filename=labels)
    kind = pb.ModelInstanceGroup.KIND_GPU if model.on_gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(count=model.instances, kind=kind, profile=model.profiles)
    config.cc_model_filenames.update(model.files_by_capability)
    if not config.cc_model_filenames:
        config.default_model_filename = model.filename
    if model.composes:
        batching = pb.ModelDynamicBatching(
            preferred_batch_size=_preferred(model), max_queue_delay_microseconds=model.max_delay_us
        )
        config.dynamic_batching.CopyFrom(batching)
    if model.graph_batches is not None:
        config.optimization.cuda.graphs = True
        for size in model.graph_batches:
            config.optimization.cuda.graph_spec.add(batch_size=size)
    for name, value in _parameters(model, facts).items():
        config.parameters[name].string_value = value
    _add_warmup(config, model, facts)
    return config


def _add_warmup(config: Any, model: TritonModel, facts: ManifestModel) -> None:  # noqa: ANN401 - as above
    """Add the requests of the warm-up: one, and the largest batch, or one for each optimization profile.

    Args:
        config: the configuration with its inputs.
        model: the model.
        facts: the model's facts. The first request has images of a file; zeros are tensors of any meaning.
    """
    count = _sample_count(model)
    requests = [("one request", 1, count, SAMPLE if facts.preprocessing else "")]
    if model.max_batch > 1:
        requests.append(("the largest batch", model.max_batch, count, ""))
    tuned = model.entry.profile.tuned if model.entry.profile else ()
    requests += [(f"a batch of {size}", 1, size, "") for size in tuned if size != count]
    for name, size, images, data in requests:
        warmup = config.model_warmup.add(name=name, batch_size=size)
        for given, spec in zip(config.input, model.entry.inputs, strict=True):
            sample = warmup.inputs[given.name]
            sample.data_type = given.data_type
            if data:
                sample.input_data_file = data
            else:
                sample.zero_data = True
            shape = _own_sizes(spec, facts.preprocessing)
            sample.dims.extend(shape if model.max_batch else (images, *shape))


def _written_graphs(config: Any) -> tuple[int, ...] | None:  # noqa: ANN401 - as above
    """Return the batch sizes with CUDA graphs of a configuration, like `TritonModel.graph_batches`."""
    cuda = config.optimization.cuda
    return tuple(spec.batch_size for spec in cuda.graph_spec) if cuda.graphs else None


def _own_sizes(spec: TensorSpec, steps: Preprocessing | None) -> tuple[int, ...]:
    """Return the shape of a sample: dynamic axes are as large as preprocessed images, or tuned for."""
    own = {axis.name: axis.opt for axis in spec.ranges}
    own |= {"height": steps.height, "width": steps.width} if steps else {}
    return tuple(own[size] if isinstance(size, str) else size for size in spec.shape[1:])


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
    """Raise `TritonError` if the folder holds other files than written repositories', such as others' models."""
    if foreign := _foreign(folder):
        raise TritonError(
            f"{folder} holds files that this command did not write; the folder is kept",
            expected="a folder that is absent or empty, or repositories that this command wrote",
            got=foreign[0],
            fix="name a new folder, or one that this command wrote before",
        )


def _foreign(folder: Path) -> list[str]:
    """Return the names of what others have put into the folder, or into one of its repositories."""
    if not folder.is_dir():
        return ["a file"] if folder.exists() else []
    marker = folder / MARKER
    ours = {MARKER, *marker.read_text(encoding="utf-8").splitlines()} if marker.is_file() else set()
    hosts = {path.partition("/")[0] for path in ours if "/" in path}
    found = [path for path in folder.iterdir() if path.name not in hosts]
    found += [path for host in sorted(hosts) if (folder / host).is_dir() for path in (folder / host).iterdir()]
    return sorted({path.relative_to(folder).as_posix() for path in found} - ours)
