"""Records → `artifacts/manifest.json`: the facts and the status of every artifact."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.cli.answers import Place, devices_here, print_manifest
from model_artifacts.errors import RecordError
from model_artifacts.host.environment import now, tools
from model_artifacts.records import (
    CLOCKS,
    STAND_IN,
    Backend,
    EngineFlavour,
    GpuType,
    KernelSpecialization,
    Layout,
    Manifest,
    ManifestEntry,
    ManifestModel,
    StageRecord,
    Status,
    Variant,
    fastest_links,
    is_applied,
)
from pipeline.planning.folder.whole import shares_its_folder, write_part
from pipeline.planning.freshness import current_records
from pipeline.planning.steps import Step
from pipeline.records import AccuracyReport, Artifact, BenchmarkReport, LoadReport, Outcome, PicturesReport
from pipeline.stages.manifest.milestones import milestones_of
from pipeline.stages.manifest.provenance import Provenance
from pipeline.stages.manifest.spec import manifest_key

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import FileRecord, GitState
    from pipeline.planning.paths import Paths
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console


class Verdict(NamedTuple):
    """An artifact's status and the reason for it."""

    status: Status
    reason: str


def make_manifest(project: Project) -> Manifest:
    """Write the model's part of the manifest from its current records; results of older configurations are left out.

    Raises:
        StorageError: the manifest cannot be written.
        NewerRecordError: a newer version of this project wrote the present manifest.
    """
    records = current_records(project)
    everything = [_records_of(project.paths, variant, records) for variant in project.plan.variants]
    provenance = Provenance(project)
    made = (_entry(project, item, everything, provenance.commits(item.variant)) for item in everything)
    entries = tuple(sorted(made, key=lambda entry: entry.id))
    manifest = Manifest(
        key=manifest_key(project, records),
        toolchain=tools(),
        built_at=now(),
        git=project.git,
        host=f"{platform.system()} {platform.machine()}",
        model=_model(project),
        artifacts=entries,
        milestones=milestones_of(entries, project.plan.gpu),
        links=fastest_links(item.benchmark.link for item in everything if item.benchmark and item.benchmark.link),
    )
    return write_part(project, manifest)


class VariantRecords(NamedTuple):
    """A variant with its current records; None for a record that is missing or stale."""

    variant: Variant
    artifact: Artifact | None
    accuracy: AccuracyReport | None
    benchmark: BenchmarkReport | None
    load: LoadReport | None = None
    pictures: PicturesReport | None = None


def decide(records: VariantRecords, hardware: str) -> Verdict:
    """Return a variant's status.

    A variant is deployable if it was built, ran completely in the runtime that deployments use, and passed its gate.

    Args:
        records: the variant with its current records.
        hardware: the hardware that the variant runs on, such as "an SM80+ GPU".
    """
    variant, artifact, accuracy, benchmark = records[:4]
    if artifact is None:
        return Verdict(Status.FAILED, "not built: an input is missing, or the build did not run or died")
    if artifact.outcome is not Outcome.DONE:
        status = Status.FAILED if artifact.outcome is Outcome.FAILED else Status.SKIPPED
        return Verdict(status, artifact.reason)
    if accuracy is None:
        return Verdict(Status.FAILED, "not validated: the validation did not run or died")
    if accuracy.outcome is Outcome.FAILED:
        return Verdict(Status.FAILED, f"validation failed: {accuracy.reason}")
    if accuracy.outcome is Outcome.SKIPPED:
        return Verdict(Status.BUILT, f"built, not yet validated: needs {hardware} ({accuracy.reason})")
    if not accuracy.passed:
        return Verdict(Status.REJECTED, accuracy.reason)
    if variant.backend is Backend.ONNX_REFERENCE:
        return Verdict(
            Status.BUILT, f"numerically sound ({accuracy.evaluator}); no CPU runtime runs {variant.precision.value}"
        )
    if variant.stands_in:
        return Verdict(Status.BUILT, f"numerically sound ({accuracy.evaluator}); {STAND_IN}")
    if benchmark is not None and benchmark.outcome is Outcome.FAILED:
        return Verdict(Status.FAILED, f"benchmark failed: {benchmark.reason}")
    return Verdict(Status.DEPLOYABLE, "")


def _records_of(paths: Paths, variant: Variant, records: dict[Path, StageRecord]) -> VariantRecords:
    places = (paths.artifact, paths.accuracy, paths.benchmark, paths.load, paths.pictures)
    artifact, accuracy, benchmark, load, pictures = (records.get(place(variant)) for place in places)
    return VariantRecords(
        variant,
        artifact if isinstance(artifact, Artifact) else None,
        accuracy if isinstance(accuracy, AccuracyReport) else None,
        benchmark if isinstance(benchmark, BenchmarkReport) else None,
        load if isinstance(load, LoadReport) else None,
        pictures if isinstance(pictures, PicturesReport) else None,
    )


def _specialization(project: Project, artifact: Artifact | None) -> KernelSpecialization:
    """Return when an engine compiles kernels: the timings that count as current were taken with this setting."""
    built = artifact.built_for if artifact else None
    compiles = built is not None and built.flavour is EngineFlavour.TENSORRT_RTX
    return project.config.tensorrt.kernel_specialization if compiles else KernelSpecialization.EAGER


def _entry(
    project: Project, records: VariantRecords, everything: list[VariantRecords], commits: tuple[GitState, ...]
) -> ManifestEntry:
    variant, artifact, accuracy, benchmark, load, pictures = records
    verdict = decide(records, project.plan.hardware(variant))
    gpu = project.plan.gpu(variant.target)
    return ManifestEntry(
        id=variant.id,
        model=variant.model,
        target=variant.target,
        backend=variant.backend,
        precision=variant.precision,
        graph=variant.graph,
        profile=variant.profile,
        workspace_bytes=variant.workspace.bytes if variant.workspace else None,
        status=verdict.status,
        reason=verdict.reason,
        file=artifact.file if artifact else None,
        built_for=artifact.built_for if artifact else None,
        module=artifact.module if artifact else None,
        executed=accuracy.executed if accuracy else None,
        layers=accuracy.layers if accuracy else (),
        device_memory_bytes=benchmark.device_memory_bytes if benchmark else None,
        cold_start=benchmark.cold_start if benchmark else None,
        runtime_cache=benchmark.runtime_cache if benchmark else None,
        kernel_specialization=_specialization(project, artifact),
        weights=_weights(project, artifact) if artifact else None,
        smallest_workspace=smallest_workspace(
            [other for other in everything if other.variant.family == variant.family], project.plan.hardware(variant)
        ),
        equals=_equals(records, everything),
        inputs=artifact.inputs if artifact else (),
        outputs=artifact.outputs if artifact else (),
        io=variant.io,
        weight_warnings=artifact.weight_warnings if artifact else (),
        build_seconds=artifact.build_seconds if artifact else None,
        memory=artifact.memory if artifact else None,
        settings=artifact.settings if artifact else (),
        evaluator=accuracy.evaluator if accuracy else "",
        accuracy=accuracy.accuracy if accuracy else None,
        accuracies=accuracy.accuracies if accuracy else (),
        checks=accuracy.checks if accuracy else (),
        proven=accuracy.proven if accuracy else False,
        gpu=GpuType(name=gpu.name, compute_capability=gpu.compute_capability) if gpu else None,
        device=benchmark.device if benchmark else "",
        timings=benchmark.timings if benchmark else (),
        load=load.load if load else None,
        rows=accuracy.rows if accuracy else (),
        gpu_pictures=pictures.verdict if pictures else None,
        noise=benchmark.noise if benchmark else (),
        toolchain=artifact.toolchain if artifact else (),
        commits=commits,
        rerun=Step("build", variant.id).command,
    )


_WITHIN = 1.01
"""Largest ratio to the best latency that counts as equal: 1 % more."""


def smallest_workspace(family: list[VariantRecords], hardware: str) -> str | None:
    """Return the variant with the smallest workspace that costs no speed.

    Equal engines share a file, so that differences between their latencies are noise: the best one counts for all.

    Args:
        family: the variants that differ in their workspace only, with their records.
        hardware: the hardware that they run on.

    Returns:
        the id of a deployable variant whose latency is within 1 % of the best; None if no variant was timed.
    """
    best: dict[str, float] = {}
    timed: list[tuple[int, str, str]] = []
    for member in family:
        latency = _latency(member)
        ready = decide(member, hardware).status is Status.DEPLOYABLE
        if ready and latency is not None and member.artifact and member.artifact.file and member.variant.workspace:
            digest = member.artifact.file.sha256
            best[digest] = min(latency, best.get(digest, latency))
            timed.append((member.variant.workspace.bytes, member.variant.id, digest))
    fast = [(size, name) for size, name, digest in timed if best[digest] <= min(best.values()) * _WITHIN]
    return min(fast)[1] if fast else None


def _latency(records: VariantRecords) -> float | None:
    """Return the median latency in ms at the tuned batch size, or else at the largest; None without a timing.

    The GPU's clock is preferred to the host's.
    """
    if records.benchmark is None or not records.benchmark.timings:
        return None
    tuned = records.variant.profile.opt if records.variant.profile else 0
    chosen = min(
        (timing for timing in records.benchmark.timings if timing.layout is Layout.CONTIGUOUS),
        key=lambda timing: (timing.batch != tuned, -timing.batch, CLOCKS.index(timing.clock)),
    )
    return chosen.p50_ms


def _weights(project: Project, artifact: Artifact) -> FileRecord | None:
    """Return the ONNX file that an engine without its weights needs; None for other artifacts."""
    graph = artifact.variant.graph
    if graph is None or not is_applied("strip_plan", artifact.settings):
        return None
    return project.onnx(graph).file


def _equals(records: VariantRecords, everything: list[VariantRecords]) -> tuple[str, ...]:
    """Return the ids of the other variants that share this variant's engine file."""
    if records.artifact is None or records.artifact.file is None or records.artifact.layers_sha256 is None:
        return ()
    return tuple(
        other.variant.id
        for other in everything
        if other.artifact and other.variant != records.variant and other.artifact.file == records.artifact.file
    )


def _model(project: Project) -> ManifestModel | None:
    try:
        source, data = project.source(), project.data()
    except RecordError:
        return None  # without them nothing is built, and every entry has that reason
    return ManifestModel(
        name=source.model,
        factory=source.factory,
        arguments=source.arguments,
        weights_origin=source.origin,
        weights_detail=source.origin_detail,
        weights_sha256=source.weights.sha256,
        class_names=data.class_names,
        preprocessing=source.preprocessing,
        images=data.origin_detail,
        labelled=data.labels is not None,
        reference_top1=data.reference_top1,
        task=source.task,
        threshold=project.config.model.threshold,
        decoding=project.config.model.decoding,
        postprocess=project.config.model.postprocess,
        uncompared=source.onnx.uncompared if source.onnx else "",
    )


def run(project: Project, _model: str, _console: Console) -> int:
    """Make the manifest, and print the artifacts to deploy and the table of all."""
    manifest = make_manifest(project)
    place = Place(project.paths.root, devices_here(), project.doit, shares_its_folder(project))
    print_manifest(manifest, place, sys.stdout)
    return 0
