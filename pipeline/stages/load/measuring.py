"""An opened artifact under load → its best results, with every run that led to them."""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.records import LoadResult, LoadSettings, Scenario
from model_artifacts.tensorrt.graphs import MOST_GRAPHS
from pipeline.records import LoadRun
from pipeline.stages.load.loadgen import MULTI_STREAM_SAMPLES, Ask, run_loadgen
from pipeline.stages.load.search import batches_of, choices_of, confirmed, largest_rate, refused_batches
from pipeline.stages.load.system import rows_of, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model_artifacts.records import BatchRange
    from model_artifacts.serving.pool import Runner
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.config.benchmark import LoadConfig
    from pipeline.stages.load.loadgen import Answer

_TRIES = 4
"""Runs until one is long enough: LoadGen prepares as many images as it was told to expect."""
_SLACK = 1.5
_PROBE = 0.1
"""The share of a bare loop's throughput that is expected at first: with threads it may be a tenth, or several times."""
_TIMED = 5


class Facts(NamedTuple):
    """Facts of an artifact that decide the settings to try."""

    profile: BatchRange | None
    """The batch sizes that it takes; None if it takes all."""
    joins: bool
    """True if a check has shown that a row does not depend on the others, so that calls may be joined."""
    on_gpu: bool
    timed: tuple[int, ...]
    """The batch sizes that are timed."""

    @property
    def least(self) -> int:
        """The smallest batch."""
        return self.profile.min if self.profile else 1


class Measured(NamedTuple):
    """The results of an artifact."""

    results: tuple[LoadResult, ...]
    notes: tuple[str, ...]
    """Scenarios, bounds and batch sizes without a result, and why."""
    runs: tuple[LoadRun, ...]
    summaries: str
    """LoadGen's summaries of all runs."""


class Trial(NamedTuple):
    """A run with its settings."""

    settings: LoadSettings
    answer: Answer


def measure(runs: Sequence[Runner], images: Batch, count: int, facts: Facts, config: LoadConfig) -> Measured:
    """Run the configured scenarios, and search for the settings that do best.

    Args:
        runs: runners of the artifact, for one thread at a time each.
        images: the images that are sent.
        count: their number.
        facts: the artifact's facts.
        config: the scenarios, bounds and settings to try.

    Raises:
        RunError: the artifact failed under load.
    """
    bench = Bench(runs, images, count, facts, config)
    results: list[LoadResult] = []
    for scenario in config.scenarios:
        results += bench.results_of(scenario)
    return Measured(tuple(results), tuple(bench.notes), tuple(bench.taken), "\n".join(bench.summaries))


class Bench:
    """An artifact, and all runs so far."""

    def __init__(self, runs: Sequence[Runner], images: Batch, count: int, facts: Facts, config: LoadConfig) -> None:
        self._runs = runs
        self._images = images
        self._count = count
        self._facts = facts
        self._config = config
        self._contexts = tuple(dict.fromkeys(min(number, len(runs)) for number in config.contexts))
        self._batches = batches_of(facts.profile, config.batches, facts.timed)
        self._capacities: dict[tuple[int, int], float] = {}
        self._offline: list[Trial] = []
        self.notes = [note] if (note := refused_batches(facts.profile, config.batches)) else []
        self.taken: list[LoadRun] = []
        self.summaries: list[str] = []
        self._warm_up()
        self._one_ms = self._timed(facts.least)

    def _warm_up(self) -> None:
        """Run every size that may come, or on a processor the smallest and the largest, which captures its graph."""
        largest = max(self._batches)
        sizes = range(self._facts.least, largest + 1) if self._facts.on_gpu else (self._facts.least, largest)
        for run in self._runs:
            for size in dict.fromkeys((*sizes[: MOST_GRAPHS - 1], largest)):
                run(rows_of(self._images, np.resize(np.arange(self._count), size)))

    def _timed(self, size: int) -> float:
        """Return the median time of a batch in one context, in milliseconds."""
        batch = rows_of(self._images, np.resize(np.arange(self._count), size))
        found = []
        for _ in range(_TIMED):
            began = time.perf_counter()
            self._runs[0](batch)
            found.append((time.perf_counter() - began) * 1e3)
        return median(found)

    def results_of(self, scenario: Scenario) -> Iterator[LoadResult]:
        """Yield the results of a scenario; a missing one leaves a note."""
        if self._facts.least > 1 and scenario in {Scenario.SINGLE_STREAM, Scenario.SERVER}:
            self.notes.append(f"{scenario.value}: it takes no single image")
        elif self._facts.least > MULTI_STREAM_SAMPLES and scenario is Scenario.MULTI_STREAM:
            self.notes.append(f"{scenario.value}: it takes no batch of {MULTI_STREAM_SAMPLES} images")
        elif scenario is Scenario.SERVER:
            for bound in sorted(self._config.p99_ms):
                yield from self._server(bound)
        elif scenario is Scenario.OFFLINE:
            for settings in choices_of(self._contexts, self._batches, (0.0,)):
                self._capacity(settings)
            yield from self._best(scenario, self._offline, lambda trial: -trial.answer.rate_per_s)
        else:
            yield from self._best(scenario, self._streams(scenario), lambda trial: trial.answer.p99_ms)

    def _streams(self, scenario: Scenario) -> list[Trial]:
        """Run a scenario whose queries come one after another, by all settings that differ in it."""
        single = scenario is Scenario.SINGLE_STREAM
        batches = (
            (1,) if single else [max(self._facts.least, min(size, MULTI_STREAM_SAMPLES)) for size in self._batches]
        )
        expected = (1 if single else MULTI_STREAM_SAMPLES) * 1e3 / self._one_ms
        return [
            Trial(settings, self._long_run(scenario, settings, expected))
            for settings in choices_of((1,) if single else self._contexts, batches, (0.0,))
        ]

    def _best(
        self, scenario: Scenario, trials: Sequence[Trial], order: Callable[[Trial], float]
    ) -> Iterator[LoadResult]:
        """Yield the best of the valid runs."""
        valid = sorted((trial for trial in trials if trial.answer.valid), key=order)
        if valid:
            yield _result(scenario, valid[0], None)
        else:
            self.notes.append(f"{scenario.value}: {trials[-1].answer.why or 'LoadGen calls no run valid'}")

    def _server(self, bound: float) -> Iterator[LoadResult]:
        """Yield the largest rate of a server that keeps a bound, by a run that confirms it."""
        if self._one_ms > bound:
            self.notes.append(f"p99 ≤ {bound:g} ms: one image alone takes {self._one_ms:.3g} ms")
            return
        batches = self._batches if self._facts.joins else ()
        choices = choices_of(self._contexts, {1, *batches}, self._config.max_delay_ms)
        fitting = [settings for settings in choices if settings.max_delay_ms < bound]
        config = self._config

        def holds(settings: LoadSettings, rate: float) -> bool:
            return self._run(Scenario.SERVER, settings, rate, bound).valid

        found = largest_rate(fitting, self._capacity, holds)
        if found is None:
            self.notes.append(f"p99 ≤ {bound:g} ms: no rate keeps it")
            return
        confirming: list[Trial] = []

        def confirms(rate: float) -> bool:
            answer = self._run(Scenario.SERVER, found.settings, rate, bound, config.confirmation_seconds)
            confirming.append(Trial(found.settings, answer))
            return answer.valid

        if confirmed(found.rate, confirms) is None:
            self.notes.append(f"p99 ≤ {bound:g} ms: {found.rate:.4g} a second kept it once, but not again")
            return
        yield _result(Scenario.SERVER, confirming[-1], bound)

    def _capacity(self, settings: LoadSettings) -> float:
        """Return the offline throughput of settings, in images per second; their delay makes no difference."""
        place = settings.contexts, settings.batch
        if place not in self._capacities:
            plain = settings.model_copy(update={"max_delay_ms": 0.0})
            expected = _PROBE * settings.batch * 1e3 / self._timed(max(settings.batch, self._facts.least))
            answer = self._long_run(Scenario.OFFLINE, plain, expected)
            self._offline.append(Trial(plain, answer))
            self._capacities[place] = answer.rate_per_s
        return self._capacities[place]

    def _long_run(self, scenario: Scenario, settings: LoadSettings, expected: float) -> Answer:
        """Run LoadGen until a run is long enough, each time with more images."""
        answer = self._run(scenario, settings, expected)
        for _ in range(_TRIES - 1):
            if not answer.too_short:
                break
            expected = _SLACK * max(expected, answer.rate_per_s)
            answer = self._run(scenario, settings, expected)
        return answer

    def _run(
        self,
        scenario: Scenario,
        settings: LoadSettings,
        expected: float,
        bound: float | None = None,
        seconds: float | None = None,
    ) -> Answer:
        """Run LoadGen once, and keep its account."""
        ask = Ask(
            scenario=scenario,
            images=self._count,
            expected=expected,
            bound_ms=bound,
            min_seconds=seconds or self._config.min_duration_seconds,
            max_seconds=self._config.max_duration_seconds,
            seed=len(self.taken) + 1,  # arrivals of their own
        )
        with serving(self._runs, self._images, settings, self._facts.profile) as system:
            answer = run_loadgen(ask, system.issue)
            system.check()
        run = LoadRun(
            scenario=scenario,
            settings=settings,
            p99_bound_ms=bound,
            target_per_s=round(expected, 3) if scenario in {Scenario.SERVER, Scenario.OFFLINE} else None,
            valid=answer.valid,
            rate_per_s=answer.rate_per_s,
            p99_ms=round(answer.p99_ms, 6),
        )
        self.taken.append(run)
        self.summaries.append(f"# run {len(self.taken)}: {run.model_dump_json()}\n{answer.summary}")
        sys.stderr.write(f"run {len(self.taken)}: {run.model_dump_json()}\n")
        return answer


def _result(scenario: Scenario, trial: Trial, bound: float | None) -> LoadResult:
    settings, answer = trial
    return LoadResult(
        scenario=scenario,
        p99_bound_ms=bound,
        settings=settings,
        samples_per_query=answer.samples_per_query,
        queries=answer.queries,
        rate_per_s=answer.rate_per_s,
        p50_ms=round(answer.p50_ms, 6),
        p90_ms=round(answer.p90_ms, 6),
        p99_ms=round(answer.p99_ms, 6),
    )
