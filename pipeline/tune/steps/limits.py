"""Limits of the steps of a point: what is left of the budget, without the time for which a search waits its turn."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.system.locks import exclusive, working

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import Gpu
    from pipeline.planning.project import Project
    from pipeline.planning.steps import Step

_LEAST_SECONDS = 30.0
"""The least time limit of a step: a short rest of the budget is no reason to record a failure."""
_WORK = {"validate": "validation", "quantize": "quantisation"}
"""The names of the work of stages, where another one reads better."""


class Waits:
    """The time for which a search has waited for its turn on the host: no part of any budget."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def turn(self, gpu: Gpu | None = None, *, alone: bool) -> Iterator[None]:
        """Wait for the turn of a step, and count that; timed work is alone, and holds its GPU."""
        began = time.monotonic()
        with working(alone=alone), exclusive(gpu):
            self.seconds += time.monotonic() - began
            yield


class Rest:
    """The rest of the budget while a trial runs; endless for a step that counts for no budget."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._seconds, self._began, self.waits = seconds, time.monotonic(), Waits()
        self.cut = ""
        """The reason if the last step has used up its limit, so that its failure is the budget's; else empty."""

    @property
    def seconds(self) -> float:
        """Time limit of what begins now."""
        return max(self._seconds - self.spent, _LEAST_SECONDS)

    @property
    def spent(self) -> float:
        """The seconds since its start, but those of waits."""
        return time.monotonic() - self._began - self.waits.seconds

    @contextmanager
    def limiting(self, project: Project, step: Step) -> Iterator[Project]:
        """Yield the project whose step ends in time, and note whether it has used up that time."""
        limit, self.cut = self.seconds, ""
        before = self.spent
        try:
            yield limited(project, limit)
        finally:
            if self.spent - before >= limit:
                work = _WORK.get(step.stage, step.stage)
                self.cut = f"the budget ended its {work} after {limit:.0f} s; a larger --budget tries it again"


def limited(project: Project, seconds: float) -> Project:
    """Return a project whose isolated work ends in time; its limits are in no key."""
    if math.isinf(seconds):
        return project
    config = project.config
    limits = {
        name: settings.model_copy(update={"build_timeout_seconds": min(settings.build_timeout_seconds, seconds)})
        for name, settings in (("tensorrt", config.tensorrt), ("torch_tensorrt", config.torch_tensorrt))
    }
    plan = replace(project.plan, config=config.model_copy(update=limits))
    return replace(project, plan=plan, run_seconds=seconds)
