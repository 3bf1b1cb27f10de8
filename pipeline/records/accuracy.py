"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from pydantic import Field

from model_artifacts.records import Accuracy, GateCheck, LayerShare, Precision, RowCheck, StageRecord
from pipeline.records.outcome import Outcome


class AccuracyReport(StageRecord):
    """A variant judged by its precision's gate: `accuracy.json` beside the artifact."""

    variant_id: str
    outcome: Outcome
    reason: str = ""
    retryable: bool = Field(default=False, alias="mendable")
    """Whether it was skipped for what this host may have the next time: then it is tried again."""
    evaluator: str = ""
    accuracy: Accuracy | None = None
    checks: tuple[GateCheck, ...] = ()
    proven: bool = False
    """The Wilson lower bound clears the agreement gate too."""
    executed: Precision | None = None
    """What the artifact computed in, as far as it can be told: an fp32 engine that multiplied in TF32 says tf32, and is
    held to tf32's gate."""
    layers: tuple[LayerShare, ...] = ()
    """The types of an engine's convolutions and matrix products, from its inspector."""
    rows: tuple[RowCheck, ...] = ()
    """At the smallest, the best, the largest and an odd batch size that the artifact takes."""
    device: str = ""

    @property
    def passed(self) -> bool:
        """Every check of the gate passed."""
        return self.outcome is Outcome.DONE and all(check.passed for check in self.checks)
