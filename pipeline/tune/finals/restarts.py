"""Finalists → latencies with intervals: the benchmark's own interleaved rounds, across the folders of all points.

Each restart is recorded when it is taken, so that finals which were killed go on after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from model_artifacts.host.environment import now, tools
from model_artifacts.records import Backend, Clock, Layout
from pipeline.planning.keys import make_key
from pipeline.stages.benchmark.spec import restart_key
from pipeline.stages.benchmark.timing import time_together
from pipeline.tune.finals.entrants import NOBODY, Entrants
from pipeline.tune.records import FinalRestart, FinalSet, Point
from pipeline.tune.steps.limits import Waits
from pipeline.tune.trials import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Key
    from pipeline.stages.benchmark.results import Measured
    from pipeline.tune.records import Trial
    from pipeline.tune.setups import Place, Setups


@dataclass(frozen=True)
class Finals:
    """The restarts of a set of finalists, with eager FP32 beside them where the model has it."""

    setups: Setups
    entrants: Entrants = NOBODY

    @property
    def finalists(self) -> tuple[Trial, ...]:
        """The best of each objective, in the order of the search."""
        return self.entrants.finalists

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The finalists, what else takes part, then eager FP32."""
        own = [trial.point for trial in (*self.finalists, *self.entrants.rivals)]
        baseline = self.setups.baseline(own[0]) if own else None
        eager = [Point(subject=baseline)] if baseline else []
        return (*own, *self.entrants.streams, *self.entrants.baselines, *eager)

    def backends(self) -> dict[int, str]:
        """Return the backend of each point but eager FP32, by its place."""
        backends = {index: place.variant.backend for index, place in enumerate(self._places)}
        return {index: found.value for index, found in backends.items() if found is not Backend.EAGER}

    @cached_property
    def _places(self) -> list[Place]:
        return [self.setups.place(point) for point in self.points]

    def path(self, key: Key, restart: int) -> Path:
        """Return the place of a restart's record."""
        return self.setups.base.paths.tune / "finals" / f"{key.digest[:16]}-{restart}.json"

    @property
    def key(self) -> Key:
        """The key of the finals: each finalist's file, and the circumstances of the timing."""
        timings = [
            [point.to_json(), restart_key(project, variant.target, variant).digest]
            for point, (project, variant) in zip(self.points, self._places, strict=True)
        ]
        return make_key(tune=VERSION, finalists=timings)

    def read(self) -> list[FinalRestart]:
        """Return the restarts that are there, up to the first that is missing or damaged."""
        if not self.finalists:
            return []
        key, found = self.key, []
        for restart in range(1, self.setups.base.config.benchmark.restarts + 1):
            try:
                record = self.setups.base.read(self.path(key, restart), FinalRestart)
            except RecordError:
                break
            if record.key != key:
                break
            found.append(record)
        return found

    def take(self, restart: int) -> FinalRestart:
        """Time all finalists in turn, and record the restart.

        Raises:
            StorageError: the record cannot be written.
        """
        base, places = self.setups.base, self._places
        gpu = base.plan.gpu(places[0].variant.target)
        artifacts = [(project, project.artifact(variant)) for project, variant in places]
        with Waits().turn(gpu, alone=True):
            began = time.monotonic()
            measured = time_together(base.config, gpu, artifacts, restart)
        key = self.key
        record = FinalRestart(
            key=key,
            built_at=now(),
            toolchain=tools("cuda-bindings") if gpu else tools("torch", "onnxruntime-gpu"),
            restart=restart,
            finalists=self.points,
            sets=tuple(
                found
                for index, (item, place) in enumerate(zip(measured, places, strict=True))
                for found in _sets(index, item, place.project.config.benchmark.streams)
            ),
            failures=tuple(
                f"{point.text}: {item.ending.reason}"
                for point, item in zip(self.points, measured, strict=True)
                if item.ending
            ),
            seconds=round(time.monotonic() - began, 2),
        )
        return base.write(self.path(key, restart), record)


def _sets(index: int, measured: Measured, streams: int) -> list[FinalSet]:
    """Return the medians of a finalist's rounds, of the faster layout of each clock and batch size."""
    found: dict[tuple[int, str], FinalSet] = {}
    for what, rounds in measured.rounds.items():
        if measured.ending:
            continue
        medians = tuple(median(item.samples.milliseconds) for item in rounds)
        several = streams if what.clock is Clock.STREAMS else None
        own = FinalSet(finalist=index, batch=what.batch, clock=what.clock, rounds_ms=medians, streams=several)
        best = found.get((what.batch, what.clock.value))
        if best is None or (what.layout is not Layout.CONTIGUOUS and median(medians) < median(best.rounds_ms)):
            found[what.batch, what.clock.value] = own
    return list(found.values())
