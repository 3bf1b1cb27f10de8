"""One step of the pipeline and its place in the order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Step:
    """One stage applied to one subject: a model, a graph, a variant or a target."""

    stage: str
    """The stage's name, such as `build`."""
    subject: str
    """The subject's name, such as `resnet18/fp16`."""

    @property
    def name(self) -> str:
        """The name of the step's doit task."""
        return f"{self.stage}:{self.subject}"

    @property
    def command(self) -> str:
        """The shell command that runs the step."""
        return f"python -m pipeline {self.stage} {self.subject}"


class Dependencies(NamedTuple):
    """The steps that come before a step."""

    requires: tuple[Step, ...] = ()
    """Steps that must succeed first."""
    follows: tuple[Step, ...] = ()
    """Steps that must end first, with or without success."""
