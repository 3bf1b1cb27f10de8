"""Samples of variants → `BenchmarkReport`, and the file that keeps every sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.host.environment import device_name, now, threads, tools
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import Variant, ranking_clock
from pipeline.records import BenchmarkReport, Outcome
from pipeline.stages.benchmark.gpu_watch import conditions_of
from pipeline.stages.benchmark.messages import Ready, SampleSet
from pipeline.stages.benchmark.statistics import UNKNOWN_SHIFT, noise_of, shift_of, summarize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import numpy.typing as npt

    from model_artifacts.records import BatchTiming, FileRecord, Key, Link
    from pipeline.planning.project import Project
    from pipeline.records import Conditions
    from pipeline.stages.benchmark.gpu_watch import Reading
    from pipeline.stages.benchmark.messages import Samples
    from pipeline.stages.common.outcomes import Ending

    Latencies = npt.NDArray[np.float64]


class Round(NamedTuple):
    """The samples of one round of one restart."""

    restart: int
    samples: Samples


class Taken(NamedTuple):
    """The origin of a restart."""

    run: str
    """The name of the run that took it."""
    rounds: str
    """The name of its rounds, which no others have."""


@dataclass
class Measured:
    """A variant's samples, or the reason why there are none."""

    variant: Variant
    rounds: dict[SampleSet, list[Round]] = field(default_factory=dict)
    ready: Ready = field(default_factory=Ready)
    ending: Ending | None = None
    """Present once the variant was skipped or has failed: it gets no more requests."""
    notes: list[str] = field(default_factory=list)
    """The reasons why clocks are missing, each once."""
    unsettled: list[str] = field(default_factory=list)
    disturbed_by: tuple[str, ...] = ()
    readings: list[Reading] = field(default_factory=list)
    """The GPU's sensor values during the measurement."""
    baseline: Measured | None = None
    """The baseline, timed in the same rounds."""
    link: Link | None = None
    """The rates of copies to and from the GPU."""
    taken: tuple[Taken, ...] = ()
    """The origin of each restart: variants with the same ones were always timed against each other."""

    def keep(self, restart: int, batch: int, samples: Samples) -> None:
        """Keep a round."""
        if samples.note and samples.note not in self.notes:
            self.notes.append(samples.note)
        self.rounds.setdefault(SampleSet(samples.clock, batch, samples.layout), []).append(Round(restart, samples))

    def latencies(self, what: SampleSet) -> list[list[Latencies]]:
        """Return a sample set's latencies in milliseconds: for each restart a list with one array per round."""
        by_restart: dict[int, list[Latencies]] = {}
        for found in self.rounds.get(what, ()):
            milliseconds = np.array(found.samples.milliseconds, dtype=np.float64)
            by_restart.setdefault(found.restart, []).append(milliseconds)
        return list(by_restart.values())

    def medians_of_restarts(self, what: SampleSet) -> list[float]:
        """Return the median latency of every restart."""
        return [float(np.median(np.concatenate(rounds))) for rounds in self.latencies(what)]

    @property
    def conditions(self) -> Conditions | None:
        """The ranges of the sensors' values over all restarts."""
        return conditions_of(self.readings)


def report_of(project: Project, key: Key, found: Measured, sessions: Sequence[Measured] = ()) -> BenchmarkReport:
    """Return a variant's report, and store its samples.

    Args:
        project: the place of the samples.
        key: the key of the target's benchmark.
        found: the variant's samples of all restarts, or its ending.
        sessions: one variant of each session of the target, as `linking.sessions_of` returns them.
    """
    variant = found.variant
    if found.ending:
        return BenchmarkReport(key=key, built_at=now(), variant_id=variant.id, **found.ending._asdict())
    gpu = project.plan.gpu(variant.target)
    ranking = ranking_clock({what.clock for what in found.rounds})
    restarts = [found.medians_of_restarts(what) for what in found.rounds if what.clock is ranking]
    return BenchmarkReport(
        key=key,
        built_at=now(),
        toolchain=tools("cuda-bindings") if gpu else tools("torch", "onnxruntime-gpu"),
        variant_id=variant.id,
        outcome=Outcome.DONE,
        reason="; ".join(found.notes),
        device=device_name(gpu),
        threads=threads(),
        timings=tuple(_timing(found, what, sessions) for what in found.rounds),
        samples=_store(project, variant, found),
        cold_start=found.ready.cold_start,
        device_memory_bytes=found.ready.device_memory_bytes,
        runtime_cache=found.ready.runtime_cache,
        disturbed_by=found.disturbed_by,
        restarts=project.config.benchmark.restarts,
        conditions=found.conditions,
        noise=noise_of(restarts, found.unsettled, found.disturbed_by, found.conditions),
        link=found.link,
    )


def _timing(found: Measured, what: SampleSet, sessions: Sequence[Measured]) -> BatchTiming:
    base = baseline_latencies(found, what)
    enqueues = [value for kept in found.rounds[what] for value in kept.samples.enqueue_us]
    return summarize(
        found.latencies(what),
        what,
        np.concatenate([found for rounds in base for found in rounds]) if base else None,
        round(float(np.median(enqueues)), 2) if enqueues else None,
        widening_of(found, what, sessions),
    )


def widening_of(found: Measured, what: SampleSet, sessions: Sequence[Measured]) -> float:
    """Return the logarithm by which each end of a median's interval moves, for variants of other sessions.

    Two sessions share no round, and the machine's speed may differ between them. Eager FP32 was timed in both: its
    times bound the difference. Each of two variants takes half of that, so that their intervals are apart only if the
    medians would be at the bound.
    """
    others = [other for other in sessions if other.taken != found.taken]
    bounds = [shift_of(_baseline_medians(found, what), _baseline_medians(other, what)) for other in others]
    return max((UNKNOWN_SHIFT if bound is None else bound for bound in bounds), default=0.0) / 2


def _baseline_medians(found: Measured, what: SampleSet) -> list[float]:
    """Return the medians of eager FP32's restarts beside a variant, by the same clock if it has that."""
    same = SampleSet(what.clock, what.batch)
    if found.baseline and same in found.baseline.rounds:
        return found.baseline.medians_of_restarts(same)
    return [float(np.median(np.concatenate(rounds))) for rounds in baseline_latencies(found, what)]


def baseline_latencies(found: Measured, what: SampleSet) -> list[list[Latencies]]:
    """Return the latencies of eager FP32 with contiguous images, as the baseline of a sample set.

    Copies and whole calls are compared with copies and whole calls of eager FP32.
    """
    clock = what.clock.of_eager
    return found.baseline.latencies(SampleSet(clock, what.batch)) if found.baseline else []


def _store(project: Project, variant: Variant, found: Measured) -> FileRecord:
    path = project.paths.samples(variant)
    arrays: dict[str, Any] = {}
    for what, rounds in found.rounds.items():
        arrays |= samples_on_disk(what, rounds)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return describe_file(path, project.paths.root)


def samples_on_disk(what: SampleSet, rounds: list[Round]) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays, all of one length, from which a sample set's percentiles and intervals follow.

    `host_batch_1` holds milliseconds. `host_batch_1_restart` and `…_round` hold the restart and the round of each
    sample, and `…_enqueue_us` the host's time to enqueue it, if that was timed.
    """
    lengths = [len(found.samples.milliseconds) for found in rounds]
    arrays: dict[str, npt.NDArray[np.generic]] = {
        what.name: np.array([value for found in rounds for value in found.samples.milliseconds], dtype=np.float64),
        f"{what.name}_restart": np.repeat([found.restart for found in rounds], lengths),
        f"{what.name}_round": np.repeat(np.arange(len(rounds)), lengths),
    }
    if enqueues := [value for found in rounds for value in found.samples.enqueue_us]:
        arrays[f"{what.name}_enqueue_us"] = np.array(enqueues, dtype=np.float64)
    return arrays
