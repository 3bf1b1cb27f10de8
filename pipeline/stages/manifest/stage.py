"""Records → `artifacts/manifest.json`: what was built, and what of it may be deployed."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.cli.tables import print_manifest
from model_artifacts.errors import RecordError
from model_artifacts.host.environment import git_state, now, tools
from model_artifacts.host.record_files import write_record
from model_artifacts.records import (
    CLOCKS,
    Backend,
    GpuType,
    Layout,
    Manifest,
    ManifestEntry,
    ManifestModel,
    StageRecord,
    Status,
    Variant,
)
from pipeline.planning.freshness import current_records
from pipeline.planning.steps import Step
from pipeline.records import AccuracyReport, Artifact, BenchmarkReport, Outcome
from pipeline.stages.manifest.milestones import milestones_of
from pipeline.stages.manifest.spec import manifest_key

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.paths import Paths
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console


class Verdict(NamedTuple):
    """An artifact's status and the reason for it."""

    status: Status
    reason: str


def make_manifest(project: Project) -> Manifest:
    """Write the manifest from the records that are current; nothing is said of what an older configuration built.

    Raises:
        StorageError: the manifest cannot be written.
    """
    records = current_records(project)
    found = [_find(project.paths, variant, records) for variant in project.plan.variants]
    entries = tuple(sorted((_entry(project, item, found) for item in found), key=lambda entry: entry.id))
    manifest = Manifest(
        key=manifest_key(project, records),
        toolchain=tools(),
        built_at=now(),
        git=git_state(project.config_file.parent),
        host=f"{platform.system()} {platform.machine()}",
        model=_model(project),
        artifacts=entries,
        milestones=milestones_of(entries, project.plan.gpu),
    )
    write_record(project.paths.manifest, manifest)
    return manifest


class VariantRecords(NamedTuple):
    """A variant's records: None for one that is missing, or made from something else than what there is now."""

    variant: Variant
    artifact: Artifact | None
    accuracy: AccuracyReport | None
    benchmark: BenchmarkReport | None


def decide(found: VariantRecords, hardware: str) -> Verdict:
    """Return what may be said of a variant.

    Deployable is what was built, ran in full through the runtime that it is for, and kept its precision's gate.

    Args:
        found: the records.
        hardware: what hardware the variant runs on.
    """
    variant, artifact, accuracy, benchmark = found
    if artifact is None:
        return Verdict(Status.FAILED, "not built: what it is made from is missing, or the build was not run or died")
    if artifact.outcome is not Outcome.DONE:
        status = Status.FAILED if artifact.outcome is Outcome.FAILED else Status.SKIPPED
        return Verdict(status, artifact.reason)
    if accuracy is None:
        return Verdict(Status.FAILED, "not validated: the validation was not run or died")
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
    if benchmark is not None and benchmark.outcome is Outcome.FAILED:
        return Verdict(Status.FAILED, f"benchmark failed: {benchmark.reason}")
    return Verdict(Status.DEPLOYABLE, "")


def _find(paths: Paths, variant: Variant, records: dict[Path, StageRecord]) -> VariantRecords:
    artifact, accuracy, benchmark = (
        records.get(path) for path in (paths.artifact(variant), paths.accuracy(variant), paths.benchmark(variant))
    )
    return VariantRecords(
        variant,
        artifact if isinstance(artifact, Artifact) else None,
        accuracy if isinstance(accuracy, AccuracyReport) else None,
        benchmark if isinstance(benchmark, BenchmarkReport) else None,
    )


def _entry(project: Project, found: VariantRecords, everything: list[VariantRecords]) -> ManifestEntry:
    variant, artifact, accuracy, benchmark = found
    verdict = decide(found, project.plan.hardware(variant))
    gpu = project.plan.gpu(variant.target)
    return ManifestEntry(
        id=variant.id,
        model=variant.model,
        target=variant.target,
        kind=variant.backend,
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
        smallest_workspace=smallest_workspace(
            [other for other in everything if other.variant.family == variant.family], project.plan.hardware(variant)
        ),
        equals=_equals(found, everything),
        inputs=artifact.inputs if artifact else (),
        outputs=artifact.outputs if artifact else (),
        weight_warnings=artifact.weight_warnings if artifact else (),
        build_seconds=artifact.build_seconds if artifact else None,
        memory=artifact.memory if artifact else None,
        settings=artifact.settings if artifact else (),
        evaluator=accuracy.evaluator if accuracy else "",
        accuracy=accuracy.accuracy if accuracy else None,
        checks=accuracy.checks if accuracy else (),
        proven=accuracy.proven if accuracy else False,
        gpu=GpuType(name=gpu.name, compute_capability=gpu.compute_capability) if gpu else None,
        device=benchmark.device if benchmark else "",
        timings=benchmark.timings if benchmark else (),
        rows=accuracy.rows if accuracy else (),
        noise=benchmark.noise if benchmark else (),
        toolchain=artifact.toolchain if artifact else (),
        rerun=Step("build", variant.id).command,
    )


_WITHIN = 1.01
"""Latencies within 1 % of the best are as good as the best."""


def smallest_workspace(family: list[VariantRecords], hardware: str) -> str | None:
    """Return which of the variants that differ in the workspace only has the smallest that costs no speed.

    Equal engines share a file, and so the best latency that any of them showed: what differs between them is noise.

    Args:
        family: those variants with their records.
        hardware: what hardware they run on.

    Returns:
        the id of a deployable variant whose latency is within 1 % of the best; None where none was timed.
    """
    best: dict[str, float] = {}
    timed: list[tuple[int, str, str]] = []
    for found in family:
        latency = _latency(found)
        ready = decide(found, hardware).status is Status.DEPLOYABLE
        if ready and latency is not None and found.artifact and found.artifact.file and found.variant.workspace:
            digest = found.artifact.file.sha256
            best[digest] = min(latency, best.get(digest, latency))
            timed.append((found.variant.workspace.bytes, found.variant.id, digest))
    fast = [(size, name) for size, name, digest in timed if best[digest] <= min(best.values()) * _WITHIN]
    return min(fast)[1] if fast else None


def _latency(found: VariantRecords) -> float | None:
    """Return the median at the batch that the profile is tuned for (or else the largest), by the GPU's clock if any."""
    if found.benchmark is None or not found.benchmark.timings:
        return None
    tuned = found.variant.profile.opt if found.variant.profile else 0
    chosen = min(
        (timing for timing in found.benchmark.timings if timing.layout is Layout.CONTIGUOUS),
        key=lambda timing: (timing.batch != tuned, -timing.batch, CLOCKS.index(timing.clock)),
    )
    return chosen.p50_ms


def _equals(found: VariantRecords, everything: list[VariantRecords]) -> tuple[str, ...]:
    """Return the other variants whose engine is this one's file."""
    if found.artifact is None or found.artifact.file is None or found.artifact.layers_sha256 is None:
        return ()
    return tuple(
        other.variant.id
        for other in everything
        if other.artifact and other.variant != found.variant and other.artifact.file == found.artifact.file
    )


def _model(project: Project) -> ManifestModel | None:
    try:
        source, data = project.source(), project.data()
    except RecordError:
        return None  # nothing is built without them, and every entry says so
    return ManifestModel(
        name=source.model,
        factory=source.factory,
        weights_origin=source.origin,
        weights_detail=source.origin_detail,
        weights_sha256=source.weights.sha256,
        class_names=source.class_names,
        preprocessing=source.preprocessing,
        images=data.origin_detail,
        labelled=data.labels is not None,
        reference_top1=data.reference_top1,
    )


def run(project: Project, _model: str, _console: Console) -> int:
    """Make the manifest, and print it as a table."""
    print_manifest(make_manifest(project), sys.stdout)
    return 0
