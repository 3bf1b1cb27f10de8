"""Artifacts × batch sizes → `BenchmarkReport`: interleaved rounds, one process per variant, all samples kept."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from model_artifacts.errors import RecordError
from model_artifacts.host.environment import host_memory_bytes, missing_driver
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.records import CPU_TARGET, STAND_IN, Backend
from pipeline.config.axes import own_sizes, shown_sizes
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import Outcome, TimedVariant
from pipeline.stages.benchmark.linking import disagreement, sessions_of
from pipeline.stages.benchmark.restarts import Kept, Rounds, kept_restarts, remove_restarts, write_restart
from pipeline.stages.benchmark.results import Measured, Taken, report_of
from pipeline.stages.benchmark.spec import restart_key
from pipeline.stages.benchmark.timing import time_restart
from pipeline.stages.common.inputs import is_whole
from pipeline.stages.common.outcomes import Ending, unbuilt
from pipeline.stages.common.tensors.axes import dynamic_inputs, what_of
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_artifacts.records import Gpu, Key, Variant
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import Artifact, BenchmarkReport


log = logging.getLogger(__name__)

_NOT_BUILT = "not built: what it is made from is missing, or the build was not run or died"

_PROCESSES = 12
"""The number of variants timed against each other, besides the baseline."""
_PROCESS_BYTES = 4 * 2**30
"""The share of a host's and of a GPU's memory for each: libraries, CUDA's context, weights, a batch's activations."""


def benchmark_target(project: Project, target: str) -> tuple[BenchmarkReport, ...]:
    """Time a target's variants against each other, and record each one's latencies.

    Every round times every variant once (A B C A B C), so that a change of the machine's speed affects all alike. Each
    variant has a process of its own, only one of them works at a time, and all are restarted several times. Each
    restart is recorded when it is taken, and a benchmark goes on after those that are there. The reports are made from
    these records alone.

    Returns:
        one report per variant, in the plan's order.

    Raises:
        RecordError: an artifact is missing.
        StorageError: the results cannot be written.
        NewerRecordError: a newer version of this package wrote a present record.
    """
    key = key_of(project, Step("benchmark", f"{project.plan.model}/{target}"))
    variants = [variant for variant in project.plan.variants if variant.target == target]
    for variant in variants:
        refuse_newer(project.paths.benchmark(variant))
    artifacts = [artifact for variant in variants if (artifact := _artifact(project, variant))]
    reasons = {variant.id: _NOT_BUILT for variant in variants}
    reasons.update({artifact.variant.id: _untimed(artifact) for artifact in artifacts})
    with exclusive(project.plan.gpu(target)):
        ready = [artifact for artifact in artifacts if not reasons[artifact.variant.id]]
        shared = _shared(ready)
        own = [artifact for artifact in ready if artifact.variant.id not in shared]
        measured = {item.variant.id: item for item in _Benchmark(project, target, own).measure()}
    sessions = sessions_of([item for item in measured.values() if not item.ending])
    reports = []
    for variant in variants:
        found = measured.get(shared.get(variant.id, variant.id))
        result = found or Measured(variant, ending=Ending(Outcome.SKIPPED, reasons[variant.id]))
        report = report_of(project, key, replace(result, variant=variant), sessions)
        reports.append(project.write(project.paths.benchmark(variant), report))
    return tuple(reports)


class _Benchmark:
    """The restarts of a target's variants: those on disk, and those that are still to be taken."""

    def __init__(self, project: Project, target: str, artifacts: Sequence[Artifact]) -> None:
        self._project, self._target, self._artifacts = project, target, artifacts
        self._restarts = project.config.benchmark.restarts
        self._variants = [artifact.variant for artifact in artifacts]
        # A damaged file is not what was timed, whatever its record says.
        self._keys: dict[Variant, Key] = {
            artifact.variant: restart_key(project, target, artifact.variant)
            for artifact in artifacts
            if all(is_whole(project, file) for file in artifact.files)
        }

    def measure(self) -> list[Measured]:
        """Take the restarts that are missing, and return the samples of all, or the ending of a variant."""
        if not self._artifacts:
            return []
        kept = self._kept(with_baseline=_baseline(self._project, self._target, self._artifacts) is not None)
        if self._is_finished(kept):
            log.info("all latencies are current: timing them anew, as the step was asked for")
            kept = self._anew()
        _say(kept, self._variants, self._restarts)
        measured = self._measured(self._take(kept))
        if reason := disagreement([item for item in measured if not item.ending]):
            log.info("timing all variants again, because earlier samples cannot be compared with new ones: %s", reason)
            measured = self._measured(self._take(self._anew()))
        return measured

    def _kept(self, *, with_baseline: bool) -> Kept:
        return kept_restarts(self._project, self._keys, with_baseline=with_baseline)

    def _is_finished(self, kept: Kept) -> bool:
        """Return whether nothing is left to do, so that somebody who asks for the step wants new latencies."""
        if any(kept.missing(variant.id, self._restarts) for variant in self._variants):
            return False
        return is_current(self._project, Step("benchmark", f"{self._project.plan.model}/{self._target}"))

    def _anew(self) -> Kept:
        remove_restarts(self._project, self._variants)
        return Kept()

    def _measured(self, endings: dict[str, Ending]) -> list[Measured]:
        """Return what the records hold; the ending of a variant that could not be timed in every restart."""
        kept = self._kept(with_baseline=False)
        lost = Ending(Outcome.FAILED, "its samples are not there any more: another process has removed them")
        return [
            kept.of(variant, self._restarts) or Measured(variant, ending=endings.get(variant.id, lost))
            for variant in self._variants
        ]

    def _take(self, kept: Kept) -> dict[str, Ending]:
        """Take and record the restarts that are missing, and return the endings of variants that could not be timed."""
        run = uuid4().hex
        endings: dict[str, Ending] = {}
        gpu = self._project.plan.gpu(self._target)
        for number in range(1, self._restarts + 1):
            done = {variant_id for variant_id, known in kept.restarts if known == number}
            lacking = [artifact for artifact in self._artifacts if artifact.variant.id not in {*done, *endings}]
            for members in group(self._project, self._target, lacking):
                there = [artifact for artifact in members if artifact.variant.id not in endings]
                guests = {artifact.variant.id for artifact in there if artifact not in lacking} | done
                found = time_restart(self._project, gpu, there, number, guests)
                endings |= {item.variant.id: item.ending for item in found if item.ending}
                own = [item for item in found if item.variant.id not in guests and not item.ending]
                endings |= {item.variant.id: self._damaged(item) for item in own if item.variant not in self._keys}
                self._write([item for item in own if item.variant in self._keys], number, run)
                done |= {item.variant.id for item in own}
        return endings

    def _damaged(self, item: Measured) -> Ending:
        """Return the ending of a variant whose file was changed, but could be opened."""
        build = self._project.command(Step("build", item.variant.id))
        return Ending(Outcome.FAILED, f"its file is not what was built; run `{build}`")

    def _write(self, measured: Sequence[Measured], number: int, run: str) -> None:
        """Write the records of one restart of a group."""
        keys = {item.variant.id: self._keys[item.variant] for item in measured}
        peers = tuple(TimedVariant(variant_id=peer, key_sha256=key.digest) for peer, key in keys.items())
        rounds = Rounds(number, Taken(run, uuid4().hex), peers)
        for item in measured:
            write_restart(self._project, item, keys[item.variant.id], rounds)


def _say(kept: Kept, variants: Sequence[Variant], restarts: int) -> None:
    """Tell what is used of earlier runs, and what is not."""
    for reason, count in Counter(kept.refused).items():
        log.info("%d restarts of an earlier run are taken again: %s", count, reason)
    missing = {variant.id: kept.missing(variant.id, restarts) for variant in variants}
    first = {numbers[0] for numbers in missing.values() if numbers}
    if not first:
        log.info("all %d restarts are there already: nothing is timed", restarts)
    elif len({*missing.values()}) == 1 and min(first) > 1:
        log.info("going on from restart %d of %d", min(first), restarts)
    elif kept.restarts:
        names = [variant_id.rpartition("/")[2] for variant_id, numbers in missing.items() if numbers]
        log.info(
            "%d of %d variants have restarts to take: %s; others keep their samples if eager FP32 is as fast as then",
            len(names),
            len(variants),
            ", ".join(names),
        )


def group(project: Project, target: str, artifacts: Sequence[Artifact]) -> list[list[Artifact]]:
    """Return the groups to time together: no more processes than the host has room for, each group with the baseline.

    The baseline of engines is eager FP32 on the same GPU, which belongs to another target.
    """
    baseline = _baseline(project, target, artifacts)
    others = [artifact for artifact in artifacts if artifact is not baseline]
    first = [baseline] if baseline else []
    room = room_of(project.plan.gpu(target), host_memory_bytes())
    chunks = [others[start : start + room] for start in range(0, len(others), room)]
    return [[*first, *chunk] for chunk in chunks] or ([first] if first else [])


def _baseline(project: Project, target: str, artifacts: Sequence[Artifact]) -> Artifact | None:
    """Return eager FP32 among artifacts, or else as their guest; None if it was not built or there are none."""
    variant = project.plan.baseline(target)
    found = next((artifact for artifact in artifacts if artifact.variant == variant), None)
    if found is None and variant is not None and artifacts:
        guest = _artifact(project, variant)
        return guest if guest and not _untimed(guest) else None
    return found


def room_of(gpu: Gpu | None, host_bytes: int) -> int:
    """Return the number of variants that fit into the memory of the host and of its GPU, besides the baseline."""
    memories = (host_bytes, gpu.memory_bytes) if gpu else (host_bytes,)
    return max(1, min(_PROCESSES, *(memory // _PROCESS_BYTES for memory in memories)))


def _shared(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Return a map from variants that share another's engine to that other, which is timed for both."""
    ids = {artifact.variant.id for artifact in artifacts}
    return {artifact.variant.id: artifact.same_as for artifact in artifacts if artifact.same_as in ids}


def _artifact(project: Project, variant: Variant) -> Artifact | None:
    try:
        return project.artifact(variant)
    except RecordError:
        return None  # a failed build does not keep the others from being timed


def _untimed(artifact: Artifact) -> str:
    """Return the reason why an artifact is not timed; empty if it is."""
    if artifact.outcome is not Outcome.DONE:
        return unbuilt(artifact)
    if artifact.variant.backend is Backend.ONNX_REFERENCE:
        kind = artifact.variant.precision.value
        return f"ONNX Runtime's CPU provider runs no {kind} convolutions, and a reference evaluator is not timed"
    if artifact.variant.stands_in:
        return f"not deployed on a processor, and not timed: {STAND_IN}"
    if artifact.variant.target != CPU_TARGET and (reason := missing_driver()):
        return reason
    return ""


def run(project: Project, target: str, console: Console) -> int:
    """Time a target, and print the variants that could not be timed."""
    reports = benchmark_target(project, target)
    failed = [report for report in reports if report.outcome is Outcome.FAILED]
    for report in failed:
        console.say(f"FAILED: {report.variant_id}: {report.reason}")
    if project.config.axes:
        own = own_sizes(project.source().inputs, dynamic_inputs(project))
        console.say(f"timed with {what_of(project)} of {shown_sizes(tuple(own.items()))}: their own size")
    for reason in sorted({report.reason for report in reports if report.outcome is Outcome.SKIPPED}):
        console.say(f"skipped: {reason}")
    return 1 if failed else 0
