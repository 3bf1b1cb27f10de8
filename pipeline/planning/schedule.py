"""A plan and the table of stages → the steps to run, and the order between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from model_artifacts.errors import UsageError, closest
from pipeline.planning.steps import Dependencies, Step

if TYPE_CHECKING:
    from model_artifacts.records import Variant
    from pipeline.planning.plan import Plan
    from pipeline.planning.spec import StageSpec
    from pipeline.records import FarmHost


@dataclass(frozen=True)
class Schedule:
    """Every step of a plan, in an order in which they can run."""

    plan: Plan
    stages: tuple[StageSpec[Any], ...]

    def spec(self, stage: str) -> StageSpec[Any]:
        """Return the spec of a stage.

        Raises:
            UsageError: no stage has this name.
        """
        if stage not in self._specs:
            raise UsageError(f"no stage {stage!r}", expected=closest(stage, self._specs) or ", ".join(self._specs))
        return self._specs[stage]

    @cached_property
    def _specs(self) -> dict[str, StageSpec[Any]]:
        return {spec.name: spec for spec in self.stages}

    def subject(self, step: Step) -> Any:  # noqa: ANN401 - a model, graph, variant or target, by the stage's spec
        """Return the subject that a step names.

        Raises:
            UsageError: the plan has no such stage or subject.
        """
        return self.spec(step.stage).subjects.find(self.plan, step.subject)

    def of(self, stage: str) -> tuple[Step, ...]:
        """Return the steps of a stage, in order."""
        return self._by_stage[stage]

    @cached_property
    def _by_stage(self) -> dict[str, tuple[Step, ...]]:
        return {
            spec.name: tuple(Step(spec.name, subject) for subject in spec.subjects.named(self.plan))
            for spec in self.stages
        }

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step that `doit` runs, in an order in which they can run."""
        return tuple(step for spec in self.stages for step in self.planned(spec))

    def planned(self, spec: StageSpec[Any]) -> tuple[Step, ...]:
        """Return the steps of a stage that `doit` runs without its name; none if it is on demand."""
        return () if spec.on_demand else self.of(spec.name)

    @cached_property
    def on_demand(self) -> tuple[Step, ...]:
        """The steps that run only by their name."""
        return tuple(step for spec in self.stages if spec.on_demand for step in self.of(spec.name))

    def dependencies(self, step: Step) -> Dependencies:
        """Return the steps that come before one."""
        spec, subject = self.spec(step.stage), self.subject(step)
        return Dependencies(spec.requires(self, subject), spec.follows(self, subject))

    def workers(self, step: Step) -> FarmHost | None:
        """Return the farm's workers that run a step; None for this machine."""
        spec = self.spec(step.stage)
        if spec.inputs is None:
            return None
        target = spec.subjects.target(self.subject(step))
        return self.plan.workers_of(target) if target else None

    def smaller(self, stage: str, variant: Variant) -> tuple[Step, ...]:
        """Return the step of the next smaller workspace, whose engine may be the same; none for the smallest."""
        smaller = self._next_smaller.get(variant.id)
        return (Step(stage, smaller),) if smaller else ()

    @cached_property
    def _next_smaller(self) -> dict[str, str]:
        """The variant of the next smaller workspace, by the variants that have one."""
        pairs: dict[str, str] = {}
        for family in self.plan.families:
            smaller = last = None
            for size, variant_id in sorted((item.workspace.bytes, item.id) for item in family if item.workspace):
                if last and last[0] < size:
                    smaller = last[1]
                if smaller:
                    pairs[variant_id] = smaller
                last = size, variant_id
        return pairs
