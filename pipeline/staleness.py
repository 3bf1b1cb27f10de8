"""The staleness key: what each result depends on, and whether the result on disk still is what it should be.

A result is current while its record's key is the one computed now, its files have their digests, and it did not fail.
Not in any key: the time, the host's name, the driver's version, comments and key order of the configuration.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from pipeline.atomic import sha256_of
from pipeline.environment import (
    driver_version,
    installed,
    missing_driver,
    processor,
    threads,
    torch_tensorrt,
    version,
)
from pipeline.errors import RecordError, StorageError
from pipeline.plan import CPU_TARGET, Stage, Step
from pipeline.records import (
    SCHEMA_VERSION,
    AccuracyReport,
    Artifact,
    Backend,
    BenchmarkReport,
    Graph,
    Key,
    KeyField,
    LayerProfile,
    Outcome,
    Precision,
    ReportRecord,
    StageRecord,
    Variant,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.project import Project
    from pipeline.records import Gpu

R = TypeVar("R", bound=StageRecord)


def key_of(project: Project, step: Step) -> Key:
    """Return the key of a step's result, from the configuration and the records that the step builds on.

    Raises:
        RecordError: one of those records is missing.
    """
    makers = {
        Stage.SOURCE: lambda: source_key(project),
        Stage.DATA: lambda: data_key(project),
        Stage.EXPORT: lambda: export_key(project, project.plan.graph(step.subject)),
        Stage.QUANTIZE: lambda: quantize_key(project, project.plan.graph(step.subject)),
        Stage.BUILD: lambda: build_key(project, project.plan.variant(step.subject)),
        Stage.VALIDATE: lambda: accuracy_key(project, project.plan.variant(step.subject)),
        Stage.BENCHMARK: lambda: benchmark_key(project, project.plan.target(step.subject)),
        Stage.MANIFEST: lambda: manifest_key(project),
        Stage.REPORT: lambda: report_key(project),
        Stage.SENSITIVITY: lambda: sensitivity_key(project, project.plan.quantized(step.subject)),
        Stage.PROFILE: lambda: profile_key(project, project.plan.variant(step.subject)),
    }
    return makers[step.stage]()


def is_current(project: Project, step: Step) -> bool:
    """Return whether a step has nothing to do: its results are there, whole, and made from what there is now."""
    try:
        if step.stage in {Stage.VALIDATE, Stage.PROFILE} and _unbuilt(project, step):
            return True
        if taken_as_given(step):
            return all(_vouched_for(project, step, record) for record in _records(project, step))
        key = key_of(project, step)
        return all(holds(project, record, key) and not _failed(record) for record in _records(project, step))
    except (RecordError, StorageError):
        return False


def _records(project: Project, step: Step) -> list[StageRecord]:
    plan = project.plan
    if step.stage is Stage.SOURCE:
        return [project.source()]
    if step.stage is Stage.DATA:
        return [project.data()]
    if step.stage in {Stage.EXPORT, Stage.QUANTIZE}:
        return [project.onnx(plan.graph(step.subject))]
    if step.stage is Stage.BUILD:
        return [project.artifact(plan.variant(step.subject))]
    if step.stage is Stage.VALIDATE:
        return [project.accuracy(plan.variant(step.subject))]
    if step.stage is Stage.SENSITIVITY:
        return [project.sensitivity(plan.quantized(step.subject))]
    if step.stage is Stage.PROFILE:
        return [project.layers(plan.variant(step.subject))]
    if step.stage is Stage.MANIFEST:
        return [project.manifest()]
    if step.stage is Stage.REPORT:
        return [project.report()]
    return [project.benchmark(variant) for variant in _benchmarked(project, plan.target(step.subject))]


_MADE_WITH_TORCH = {Stage.SOURCE, Stage.DATA, Stage.EXPORT, Stage.QUANTIZE}

_OF_THE_MAKER = frozenset(
    {"torch", "torchvision", "scikit_learn", "pillow", "onnx", "onnxscript", "onnxruntime"}
    | {"factory_code", "checkpoint", "folder"}
)
"""Fields of keys that tell of the host that made a result, rather than of what the configuration asks for."""


def taken_as_given(step: Step) -> bool:
    """Return whether a step's results, made elsewhere, are used as they are: a build host needs no torch."""
    return step.stage in _MADE_WITH_TORCH and not installed("torch")


def _vouched_for(project: Project, step: Step, record: StageRecord) -> bool:
    """Return whether a result made elsewhere is what this configuration asks for, and has its digests."""
    wanted = tuple(field for field in key_of(project, step).fields if field.name not in _OF_THE_MAKER)
    given = tuple(field for field in record.key.fields if field.name not in _OF_THE_MAKER)
    return wanted == given and _whole(project, record)


def holds(project: Project, record: StageRecord, key: Key) -> bool:
    """Return whether a record was made with this key, and its files still have their digests.

    Raises:
        StorageError: one of the files cannot be read.
    """
    return record.key == key and _whole(project, record)


def _whole(project: Project, record: StageRecord) -> bool:
    return all(sha256_of(project.file(file)) == file.sha256 for file in record.files)


def current(project: Project, step: Step, read: Callable[[], R]) -> R | None:
    """Return a step's record as `read` gives it; None for one that is missing, damaged or made from something else."""
    try:
        record = read()
        return record if holds(project, record, key_of(project, step)) else None
    except (RecordError, StorageError):
        return None


def _unbuilt(project: Project, step: Step) -> bool:
    """Nothing was built on purpose, so that there is nothing to validate or to profile."""
    return project.artifact(project.plan.variant(step.subject)).outcome is Outcome.SKIPPED


def _failed(record: StageRecord) -> bool:
    """Failures are never cached."""
    kinds = (Artifact, AccuracyReport, BenchmarkReport, LayerProfile, ReportRecord)
    return isinstance(record, kinds) and record.outcome is Outcome.FAILED


def source_key(project: Project) -> Key:
    """Return what the weights depend on."""
    model = project.config.model
    return _key(
        factory=model.factory,
        factory_code=_code_of(model.factory),
        weights=model.weights,
        checkpoint=_file_digest(model.weights),
        preprocessing=project.config.preprocessing,
        torch=version("torch"),
        torchvision=version("torchvision"),
        scikit_learn=version("scikit-learn"),
    )


def data_key(project: Project) -> Key:
    """Return what the images and the reference's logits depend on."""
    source = project.source()
    data = project.config.data
    return _key(
        model=source.key.digest,
        weights=source.weights.sha256,
        preprocessing=source.preprocessing,
        images=data.images,
        folder=_folder_digest(data.images),
        calibration=data.calibration,
        validation=data.validation,
        pillow=version("pillow"),
        torch=version("torch"),
    )


def export_key(project: Project, graph: Graph) -> Key:
    """Return what an exported graph depends on."""
    source = project.source()
    return _key(
        model=source.key.digest,
        weights=source.weights.sha256,
        preprocessing=source.preprocessing,
        graph=graph,
        torch=version("torch"),
        onnx=version("onnx"),
        onnxscript=version("onnxscript"),
    )


_QUANTIZER = 3
"""Raised whenever `quantize` makes something else of the same graph and images.

2 has int8 in the first convolution; 3 keeps the ReLU before a layer that is left in FP32 for x86.
"""


def quantize_key(project: Project, graph: Graph) -> Key:
    """Return what a quantised graph depends on."""
    left = {"leave": project.config.leave_unquantized.of(graph)} if graph.is_mixed else {}
    return _key(
        **left,
        graph=graph,
        quantizer=_QUANTIZER,
        fp32=project.onnx(Graph.FP32).canonical_sha256,
        calibration=project.data().calibration.sha256,
        preprocessing=project.data().preprocessing,
        onnx=version("onnx"),
        onnxruntime=version("onnxruntime-gpu"),
    )


_SENSITIVITY = 1
"""Raised whenever `sensitivity` measures something else."""


def sensitivity_key(project: Project, graph: Graph) -> Key:
    """Return what a table of sensitivities depends on."""
    return _key(
        sensitivity=_SENSITIVITY,
        quantized=quantize_key(project, graph).digest,
        gate=project.config.gates.of(graph.precision),
    )


def build_key(project: Project, variant: Variant) -> Key:
    """Return what an artifact depends on."""
    where: dict[str, object] = {}
    if variant.target != CPU_TARGET:
        where = {"gpu": _type_of(project.plan.gpu(variant.target)), "driver": _driver(variant)}
    if variant.graph is None:
        source = project.source()
        compiled = variant.backend.is_torch_tensorrt
        return _key(
            variant=variant.id,
            model=source.key.digest,
            weights=source.weights.sha256,
            workspace=variant.workspace,
            profile=variant.profile,
            torch=version("torch"),
            torch_tensorrt=torch_tensorrt() if compiled else None,
            settings=project.config.torch_tensorrt.build_settings if compiled else None,
            **where,
        )
    graph = project.onnx(variant.graph)
    if variant.backend is not Backend.TENSORRT:
        return _key(
            variant=variant.id,
            onnx=graph.canonical_sha256,
            file=graph.file.sha256,
            **where,
        )
    target = project.plan.engine_target(variant)
    settings = project.config.tensorrt.build_settings
    return _key(
        variant=variant.id,
        onnx=graph.canonical_sha256,
        workspace=variant.workspace,
        profile=variant.profile,
        compute_capabilities=target.compute_capabilities,
        gpu=None if target.compute_capabilities else _type_of(target.gpu),
        flavour=project.plan.flavour,
        flavour_version=project.plan.flavour_version,
        settings=settings,
        weights_apart=bool(target.gpu) if settings.refit or settings.strip_plan else None,  # which takes a GPU
    )


_JUDGE = 3
"""Raised whenever `validate` looks at something else.

2 looks at rows, at every batch size, and at extreme images; 3 counts products of one quantised operand as floating
point.
"""


def accuracy_key(project: Project, variant: Variant) -> Key:
    """Return what a variant's accuracy depends on."""
    artifact = project.artifact(variant)
    data = project.data()
    return _key(
        judge=_JUDGE,
        artifact=_identity(artifact),
        reference=data.reference.sha256,
        validation=data.validation.sha256,
        labels=data.labels.sha256 if data.labels else None,
        preprocessing=data.preprocessing,
        gate=project.config.gates.of(variant.precision),
        # An fp32 engine may turn out to multiply in TF32.
        tf32_gate=project.config.gates.tf32 if variant.precision is Precision.FP32 else None,
        batches=project.config.timed_batches if variant.backend is Backend.INDUCTOR else None,
        require_proof=project.config.gates.require_proof,
        samples=project.config.validation if variant.backend is Backend.ONNX_REFERENCE else None,
        onnx=version("onnx") if variant.backend is Backend.ONNX_REFERENCE else None,
        onnxruntime=version("onnxruntime-gpu") if variant.backend is Backend.ONNXRUNTIME else None,
        driver=_driver(variant),
        gpu=_type_of(project.plan.gpu(variant.target)),
    )


def benchmark_key(project: Project, target: str) -> Key:
    """Return what the latencies of a target's variants depend on; they are measured together."""
    variants = [*_benchmarked(project, target)]
    baseline = project.plan.baseline(target)
    if baseline is not None and baseline not in variants:
        variants.append(baseline)
    gpu = project.plan.gpu(target)
    return _key(
        artifacts=sorted(_identity_on_disk(project, variant) for variant in variants),
        settings=project.config.benchmark.timing_settings,
        batches=project.config.timed_batches,
        preprocessing=project.source().preprocessing,
        processor=processor() if target == CPU_TARGET else None,
        threads=threads() if target == CPU_TARGET else None,
        torch=version("torch"),
        onnxruntime=version("onnxruntime-gpu"),
        driver=None if target == CPU_TARGET else missing_driver() or driver_version(),
        gpu=gpu.uuid if gpu else None,
        kernels=project.config.tensorrt.kernel_specialization,
    )


def manifest_key(project: Project) -> Key:
    """Return what the manifest depends on: every record of the plan, byte for byte."""
    paths = project.paths
    records = [paths.source, paths.data]
    for variant in project.plan.variants:
        records += [paths.artifact(variant), paths.accuracy(variant), paths.benchmark(variant)]
    digests = {str(path.relative_to(paths.root)): sha256_of(path) if path.is_file() else None for path in records}
    return _key(records=digests)


_PROFILER = 1
"""Raised whenever `profile` looks at something else."""


def profile_key(project: Project, variant: Variant) -> Key:
    """Return what a variant's profile depends on."""
    on_cpu = variant.target == CPU_TARGET
    gpu = project.plan.gpu(variant.target)
    return _key(
        profiler=_PROFILER,
        artifact=_identity(project.artifact(variant)),
        batches=project.config.timed_batches,
        preprocessing=project.source().preprocessing,
        processor=processor() if on_cpu else None,
        threads=threads() if on_cpu else None,
        torch=version("torch"),
        onnxruntime=version("onnxruntime-gpu"),
        nsight=None if on_cpu else shutil.which("nsys") is not None,
        driver=None if on_cpu else missing_driver() or driver_version(),
        gpu=gpu.uuid if gpu else None,
    )


_PAGE = 2
"""Raised whenever the report shows something else of the same records."""


def report_key(project: Project) -> Key:
    """Return what the report depends on: the manifest, and the released one."""
    release = project.config.release
    released = Path(release.manifest) if release else None
    return _key(
        page=_PAGE,
        manifest=sha256_of(project.paths.manifest),
        profiles=_profiles(project),
        release=release,
        released=sha256_of(released) if released and released.is_file() else None,
    )


def _profiles(project: Project) -> list[list[str]]:
    """Return the digests of the profiles that are there, which nobody has to make."""
    paths = {variant.id: project.paths.layers(variant) for variant in project.plan.variants}
    return [[name, sha256_of(path)] for name, path in paths.items() if path.is_file()]


def _benchmarked(project: Project, target: str) -> tuple[Variant, ...]:
    return tuple(variant for variant in project.plan.variants if variant.target == target)


def _identity(artifact: Artifact) -> list[str]:
    """Return what tells one build from another: its digest, or that there is nothing."""
    return [artifact.variant.id, artifact.file.sha256 if artifact.file else artifact.outcome.value]


def _identity_on_disk(project: Project, variant: Variant) -> list[str]:
    try:
        return _identity(project.artifact(variant))
    except RecordError:
        return [variant.id, "missing"]


def _type_of(gpu: Gpu | None) -> list[str | int] | None:
    """Return what an engine that was tuned on a GPU belongs to."""
    return [gpu.name, gpu.compute_capability] if gpu else None


def _driver(variant: Variant) -> str | None:
    """Return whether a driver is there, for variants that need one to run."""
    return None if variant.target == CPU_TARGET else missing_driver() or "present"


def _key(**fields: object) -> Key:
    named = {"schema": SCHEMA_VERSION, **fields}
    return Key(fields=tuple(KeyField(name=name, value=_text(named[name])) for name in sorted(named)))


def _text(value: object) -> str:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def _code_of(factory: str) -> str:
    """Return the digest of a factory's own file, or the version of the package that it comes from."""
    module = factory.split(":", maxsplit=1)[0]
    candidates = (Path(*module.split(".")).with_suffix(".py"), Path(*module.split("."), "__init__.py"))
    for file in candidates:
        if file.is_file():
            return sha256_of(file)
    return version(module.split(".")[0])


def _file_digest(weights: str) -> str | None:
    file = Path(weights)
    return sha256_of(file) if file.suffix and file.is_file() else None


def _folder_digest(images: str) -> list[list[str | int]] | None:
    """Return the names, sizes and times of a folder's files: reading 50,000 images would take minutes."""
    folder = Path(images)
    if not folder.is_dir():
        return None
    return [
        [file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns]
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
