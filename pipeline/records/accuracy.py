"""Record of the validate stage."""

from __future__ import annotations

from pydantic import Field

from model_artifacts.records import Accuracy, GateCheck, LayerShare, Precision, RowCheck, StageRecord
from pipeline.records.outcome import Outcome


class AccuracyReport(StageRecord):
    """Verdict of a precision's gate on a variant: `accuracy.json` beside the artifact."""

    variant_id: str
    """Variant of the artifact: `model/target/name`."""
    outcome: Outcome
    """Outcome of the validation."""
    reason: str = ""
    """Reason for a skipped, failed or rejected variant; empty if it passed."""
    retryable: bool = Field(default=False, alias="mendable")
    """True if the variant was skipped, but the next run tries it again, because this host may change."""
    evaluator: str = ""
    """Library and version that ran the artifact; empty if it was not run."""
    accuracy: Accuracy | None = None
    """Accuracy against the FP32 reference; None if the artifact was not run."""
    checks: tuple[GateCheck, ...] = ()
    """Checks of the precision's gate."""
    proven: bool = False
    """True if the lower end of the agreement's Wilson interval passes the gate, too."""
    executed: Precision | None = None
    """Precision that the artifact computed in; None if unknown. An fp32 engine that multiplied in TF32 has tf32 here,
    and must pass tf32's gate."""
    layers: tuple[LayerShare, ...] = ()
    """Types of an engine's convolutions and matrix products, from its inspector."""
    rows: tuple[RowCheck, ...] = ()
    """Dependence on other rows at the smallest, the best, the largest and an odd batch size of the artifact."""
    device: str = ""
    """GPU and driver that ran the artifact; empty on a processor."""

    @property
    def passed(self) -> bool:
        """True if the artifact was run and passed every check of the gate."""
        return self.outcome is Outcome.DONE and all(check.passed for check in self.checks)
