"""`Config` → what there is to do: the variants of the matrix and the steps that make them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Stage(str, Enum):
    """The stages in their order; each is a task group of `doit` and a command of `python -m pipeline`."""

    SOURCE = "source"
    DATA = "data"
    EXPORT = "export"
    QUANTIZE = "quantize"
    BUILD = "build"
    VALIDATE = "validate"
    BENCHMARK = "benchmark"
    MANIFEST = "manifest"
    REPORT = "report"
    PROFILE = "profile"
    SENSITIVITY = "sensitivity"

    @property
    def by_default(self) -> bool:
        """Whether `doit` alone runs it; what decides nothing is run by its name."""
        return self not in {Stage.PROFILE, Stage.SENSITIVITY}


_LAST = {Stage.MANIFEST, Stage.REPORT}
"""What tells of everything else."""


@dataclass(frozen=True)
class Step:
    """One stage applied to one subject: a model, a graph, a variant or a target."""

    stage: Stage
    subject: str

    @property
    def command(self) -> str:
        """What a person pastes to run it."""
        return f"python -m pipeline {self.stage.value} {self.subject}"


class Dependencies(NamedTuple):
    """What comes before a step: what it needs, and what it only comes after, whether or not that succeeded."""

    requires: tuple[Step, ...] = ()
    follows: tuple[Step, ...] = ()
