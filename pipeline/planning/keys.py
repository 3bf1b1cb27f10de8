"""The staleness key: what each result depends on.

Not in any key: the time, the host's name, where the checkout lies, when files were touched, comments and key order of
the configuration.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel

from model_artifacts.errors import RecordError
from model_artifacts.host.environment import (
    driver_version,
    installed_torch_tensorrt,
    missing_driver,
    processor,
    tensorrt_of,
    threads,
    version,
)
from model_artifacts.host.factory_code import code_of
from model_artifacts.host.hashes import sha256_of
from model_artifacts.records import CPU_TARGET, SCHEMA_VERSION, Backend, Graph, Key, KeyField, Precision
from pipeline.planning.steps import Stage
from pipeline.system.digests import digests_in

if TYPE_CHECKING:
    from collections.abc import Collection

    from model_artifacts.records import Gpu, InstalledTensorRT, Tool, Variant
    from pipeline.planning.project import Project
    from pipeline.planning.steps import Step
    from pipeline.records import Artifact


def key_of(project: Project, step: Step) -> Key:
    """Return the key of a step's result, from the configuration and the records that the step builds on.

    The manifest's is `staleness.key_of_manifest`: it depends on what is current, too.

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
        Stage.REPORT: lambda: report_key(project),
        Stage.SENSITIVITY: lambda: sensitivity_key(project, project.plan.quantized(step.subject)),
        Stage.PROFILE: lambda: profile_key(project, project.plan.variant(step.subject)),
    }
    return makers[step.stage]()


def source_key(project: Project) -> Key:
    """Return what the weights depend on."""
    model = project.config.model
    return _key(
        factory=model.factory,
        factory_code=code_of(model.factory),
        weights=model.weights,
        checkpoint=_file_digest(project, model.weights),
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
        folder=_folder_digest(project, data.images),
        calibration=data.calibration,
        validation=data.validation,
        pillow=version("pillow"),
        torch=version("torch"),
    )


_EXPORTER = 2
"""Raised whenever `export` makes something else of the same weights: 2 notes nothing of the machine."""


def export_key(project: Project, graph: Graph) -> Key:
    """Return what an exported graph depends on."""
    source = project.source()
    return _key(
        model=source.key.digest,
        weights=source.weights.sha256,
        preprocessing=source.preprocessing,
        exporter=_EXPORTER,
        graph=graph,
        torch=version("torch"),
        onnx=version("onnx"),
        onnxscript=version("onnxscript"),
    )


_QUANTIZER = 5
"""Raised whenever `quantize` makes something else of the same graph and images.

2 has int8 in the first convolution; 3 keeps the ReLU before a layer that is left in FP32 for x86; 4 has seven bits in
the weights for x86; 5 leaves the last product in FP32 there.
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


_COMPILER = 2
"""Raised whenever Torch-TensorRT is asked for something else: 2 takes a model as one graph."""


def build_key(project: Project, variant: Variant) -> Key:
    """Return what an artifact depends on."""
    where: dict[str, object] = {}
    if variant.target != CPU_TARGET:
        where = {"gpu": _type_of(project.plan.gpu(variant.target)), "driver": _driver(project, variant)}
    has = _installed_for(project, variant.target)
    if variant.graph is None:
        source = project.source()
        compiled = variant.backend.is_torch_tensorrt
        if compiled:
            where["compiler"] = _COMPILER
        return _key(
            variant=variant.id,
            model=source.key.digest,
            weights=source.weights.sha256,
            workspace=variant.workspace,
            profile=variant.profile,
            torch=has.torch,
            torch_tensorrt=has.torch_tensorrt if compiled else None,
            tensorrt=has.tensorrt if compiled else None,
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
        flavour=target.flavour,
        flavour_version=target.flavour_version,
        cuda_major=target.cuda_major,
        settings=settings,
        weights_apart=bool(target.gpu) if settings.refit or settings.strip_plan else None,  # which takes a GPU
    )


_JUDGE = 4
"""Raised whenever `validate` looks at something else.

2 looks at rows, at every batch size, and at extreme images; 3 counts products of one quantised operand as floating
point; 4 looks for engines in a module once it is loaded.
"""


def accuracy_key(project: Project, variant: Variant) -> Key:
    """Return what a variant's accuracy depends on."""
    artifact = project.artifact(variant)
    data = project.data()
    has = _installed_for(project, variant.target)
    samples = project.config.validation.reference_evaluator_samples
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
        samples=samples if variant.backend is Backend.ONNX_REFERENCE else None,
        onnx=version("onnx") if variant.backend is Backend.ONNX_REFERENCE else None,
        onnxruntime=has.onnxruntime if variant.backend is Backend.ONNXRUNTIME else None,
        torch=has.torch if variant.backend in {Backend.EAGER, Backend.INDUCTOR} else None,
        driver=_driver(project, variant),
        gpu=_type_of(project.plan.gpu(variant.target)),
    )


_TIMER = 2
"""Raised whenever `benchmark` times in another way: 2 keeps the GPU busy while the host enqueues, and takes restarts
apart for its intervals."""


def benchmark_key(project: Project, target: str) -> Key:
    """Return what the latencies of a target's variants depend on; they are measured together."""
    variants = [*project.plan.variants_on(target)]
    baseline = project.plan.baseline(target)
    if baseline is not None and baseline not in variants:
        variants.append(baseline)
    gpu = project.plan.gpu(target)
    has = _installed_for(project, target)
    return _key(
        timer=_TIMER,
        artifacts=sorted(_identity_on_disk(project, variant) for variant in variants),
        settings=project.config.benchmark.timing_settings,
        batches=project.config.timed_batches,
        preprocessing=project.source().preprocessing,
        processor=processor() if target == CPU_TARGET else None,
        threads=threads() if target == CPU_TARGET else None,
        torch=has.torch,
        onnxruntime=has.onnxruntime,
        driver=None if target == CPU_TARGET else missing_driver() or driver_version(),
        gpu=gpu.uuid if gpu else None,
        kernels=project.config.tensorrt.kernel_specialization,
    )


def manifest_key(project: Project, current: Collection[Path]) -> Key:
    """Return what the manifest depends on: the source and the data, and the variants' records that are current.

    Args:
        project: where the records lie.
        current: those of variants; the manifest says of the others that there is nothing.
    """
    paths = project.paths
    records = [paths.source, paths.data]
    for variant in project.plan.variants:
        records += [paths.artifact(variant), paths.accuracy(variant), paths.benchmark(variant)]
    held = {paths.source, paths.data, *current}
    digests = {
        str(path.relative_to(paths.root)): sha256_of(path) if path in held and path.is_file() else None
        for path in records
    }
    return _key(records=digests)


_PROFILER = 1
"""Raised whenever `profile` looks at something else."""


def profile_key(project: Project, variant: Variant) -> Key:
    """Return what a variant's profile depends on."""
    on_cpu = variant.target == CPU_TARGET
    gpu = project.plan.gpu(variant.target)
    has = _installed_for(project, variant.target)
    return _key(
        profiler=_PROFILER,
        artifact=_identity(project.artifact(variant)),
        batches=project.config.timed_batches,
        preprocessing=project.source().preprocessing,
        processor=processor() if on_cpu else None,
        threads=threads() if on_cpu else None,
        torch=has.torch,
        onnxruntime=has.onnxruntime,
        nsight=None if on_cpu else shutil.which("nsys") is not None,
        driver=None if on_cpu else missing_driver() or driver_version(),
        gpu=gpu.uuid if gpu else None,
    )


_PAGE = 4
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


def _driver(project: Project, variant: Variant) -> str | None:
    """Return whether a driver is there, for variants that need one to run."""
    if variant.target == CPU_TARGET:
        return None
    if workers := project.plan.workers_of(variant.target):
        return workers.host.driver if workers.host.driver == "absent" else "present"
    return missing_driver() or "present"


class _Installed(NamedTuple):
    """The versions of what runs a target's variants."""

    torch: str
    onnxruntime: str
    torch_tensorrt: Tool
    tensorrt: InstalledTensorRT
    """The one that Torch-TensorRT builds with."""


def _installed_for(project: Project, target: str) -> _Installed:
    """Return what runs a target's variants, on this machine or on the workers that do."""
    if workers := project.plan.workers_of(target):
        has, library, onnxruntime = workers.machine, workers.host.torch_tensorrt, workers.host.onnxruntime.version
        return _Installed(has.torch, onnxruntime, library, has.tensorrt(tensorrt_of(library)))
    library = installed_torch_tensorrt()
    used = project.plan.host.tensorrt(tensorrt_of(library))
    return _Installed(version("torch"), version("onnxruntime-gpu"), library, used)


def _key(**fields: object) -> Key:
    named = {"schema": SCHEMA_VERSION, **fields}
    return Key(fields=tuple(KeyField(name=name, value=_text(named[name])) for name in sorted(named)))


def _text(value: object) -> str:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def _file_digest(project: Project, weights: str) -> str | None:
    file = Path(weights)
    return digests_in(project.paths.digests).sha256_of(file) if file.suffix and file.is_file() else None


def _folder_digest(project: Project, images: str) -> str | None:
    folder = Path(images)
    return digests_in(project.paths.digests).sha256_of_folder(folder) if folder.is_dir() else None
