"""Outputs of graphs that lie at a distance from those without quantisation."""

from __future__ import annotations

import numpy as np

from model_artifacts.records import Task
from pipeline.stages.common.rows import ALONE
from pipeline.stages.sensitivity.judging import Judged, Meaning, judge


def off_by(distance: float) -> Judged:
    """Return logits at this distance from the reference."""
    reference = np.eye(4, dtype=np.float32)
    return judge((reference * (1 + distance)).astype(np.float32), reference, Meaning(Task.CLASSIFICATION, ALONE))


def agreeing(samples: int) -> Judged:
    """Return logits that agree in so many of 1,000 samples."""
    reference = np.tile(np.array([[0.0, 1.0]], np.float32), (1000, 1))
    rows = np.where(np.arange(1000)[:, None] < samples, reference, reference[:, ::-1])
    return judge(rows, reference, Meaning(Task.CLASSIFICATION, ALONE))
