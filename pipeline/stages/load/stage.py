"""Deployable artifact → `LoadReport`: what it serves under load, and the settings of the loader that serve most."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from model_artifacts.errors import RetryableError, RunError, UnsupportedError
from model_artifacts.host.environment import device_name, now, tools
from model_artifacts.host.files import write_bytes
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import CPU_TARGET, STAND_IN, Backend, Load
from model_artifacts.serving.runners import open_runners
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import LoadReport, Outcome
from pipeline.stages.common.console import say_outcome
from pipeline.stages.common.opening import file_of, gpu_of
from pipeline.stages.common.outcomes import attempt, unbuilt
from pipeline.stages.common.samples import images_of
from pipeline.stages.load.loadgen import PACKAGE, loadgen_version, require_loadgen
from pipeline.stages.load.measuring import Facts, Measured, measure
from pipeline.stages.load.table import print_load
from pipeline.system.isolation import run_isolated
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from model_artifacts.records import FileRecord, Variant
    from model_artifacts.sessions.opening import ArtifactFile
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import AccuracyReport, Artifact

_IMAGES = 64
"""The number of different images that are sent: more than a processor's caches hold."""


def load_variant(project: Project, variant: Variant) -> LoadReport:
    """Put a deployable variant under load, and record what it serves.

    Raises:
        RecordError: the artifact, its validation or the data are missing.
        KilledError: on a worker of a farm, something outside has ended the process under load.
        StorageError: the record cannot be written.
    """
    key = key_of(project, Step("load", variant.id))
    artifact, accuracy = project.artifact(variant), project.accuracy(variant)
    loading = attempt(lambda: _load(project, artifact, accuracy), RunError, on_worker=project.on_worker)
    measured, ending = loading.result or Measured((), (), (), ""), loading.ending
    done = ending.outcome is Outcome.DONE
    report = LoadReport(
        key=key,
        built_at=now(),
        toolchain=tools(PACKAGE, "torch", "onnxruntime-gpu"),
        variant_id=variant.id,
        outcome=ending.outcome,
        reason=ending.reason,
        retryable=ending.retryable,
        load=_facts(project, artifact, measured) if done else None,
        notes=measured.notes,
        runs=measured.runs,
        summaries=_summaries(project, variant, measured) if done else None,
    )
    return project.write(project.paths.load(variant), report)


def _facts(project: Project, artifact: Artifact, measured: Measured) -> Load:
    gpu = None if artifact.variant.target == CPU_TARGET else gpu_of(project, artifact)
    return Load(device=device_name(gpu), loadgen=loadgen_version(), results=measured.results)


def _summaries(project: Project, variant: Variant, measured: Measured) -> FileRecord:
    path = project.paths.load_summaries(variant)
    write_bytes(path, measured.summaries.encode("utf-8"))
    return describe_file(path, project.paths.root)


def refuse(artifact: Artifact, accuracy: AccuracyReport) -> None:
    """Check that an artifact may be deployed: no other one is worth the time. Pure.

    Raises:
        UnsupportedError: it may not; the message has the reason.
    """
    variant = artifact.variant
    if reason := unbuilt(artifact):
        raise UnsupportedError(reason)
    if variant.backend.is_baseline or variant.stands_in:
        raise UnsupportedError(f"never deployed: {STAND_IN if variant.stands_in else 'a baseline for comparison'}")
    if accuracy.outcome is not Outcome.DONE:
        raise RetryableError(f"not validated: {accuracy.reason.splitlines()[0]}")
    if not accuracy.passed:
        raise UnsupportedError(f"not deployable: {accuracy.reason}")


def _load(project: Project, artifact: Artifact, accuracy: AccuracyReport) -> Measured:
    """Load in a process of its own, which may crash, while nothing else is timed."""
    variant = artifact.variant
    refuse(artifact, accuracy)
    require_loadgen()
    gpu = None if variant.target == CPU_TARGET else gpu_of(project, artifact)
    with exclusive(gpu):
        return run_isolated(
            under_load,
            project,
            artifact,
            bool(accuracy.rows),
            timeout_seconds=project.config.load.timeout_seconds,
            log=project.paths.load_log(variant),
            rerun=project.command(Step("load", variant.id)),
        )


def under_load(project: Project, artifact: Artifact, joins: bool) -> Measured:  # noqa: FBT001 - passed on by a process
    """Open an artifact with as many contexts as are tried, and run all scenarios.

    Raises:
        UnsupportedError: this host cannot run it.
        RunError: it cannot be loaded, or failed under load.
    """
    variant, config = artifact.variant, project.config.load
    images = images_of(project, _IMAGES, variant)
    facts = Facts(variant.profile, joins, variant.target != CPU_TARGET, project.config.timed_batches)
    with open_runners(_file(project, artifact), max(config.contexts)) as runs:
        return measure(runs, images, _IMAGES, facts, config)


def _file(project: Project, artifact: Artifact) -> ArtifactFile:
    """Return the artifact's file, with the kernels that the benchmark has kept."""
    file = file_of(project, artifact)
    if artifact.variant.backend is not Backend.TENSORRT:
        return file
    kernels = project.paths.runtime_cache(artifact.variant)
    return replace(
        file,
        runtime_cache=kernels.read_bytes() if kernels.is_file() else None,
        specialization=project.config.tensorrt.kernel_specialization,
    )


def run(project: Project, variant: Variant, console: Console) -> int:
    """Put a variant under load, and print what it serves."""
    report = load_variant(project, variant)
    if report.load is not None:
        print_load(report, sys.stdout)
        return 0
    return say_outcome(console, report.outcome, report.reason, "")
