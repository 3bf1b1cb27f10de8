"""Failed checks at several sizes: the worst is told, the others are counted."""

from __future__ import annotations

import numpy as np

from model_artifacts.records import FileRecord, GateCheck, Question
from pipeline.records import AxisSize, SizedSamples
from pipeline.stages.validate.gates import reason_of
from pipeline.stages.validate.outputs import SizedRun
from pipeline.stages.validate.sizes.judging import told_of_sizes

ROWS = np.zeros((1, 1), np.float32)


def run(length: int, batch: int = 1) -> SizedRun:
    """Return a run at a length."""
    file = FileRecord(path="x", bytes=1, sha256="0" * 64)
    samples = SizedSamples(axes=(AxisSize(name="length", size=length),), pixels=file, reference=file, samples=1)
    return SizedRun(samples, batch, ROWS, ROWS, ())


def check(metric: str, value: str, question: Question = Question.FAITHFUL, *, passed: bool = False) -> GateCheck:
    """Return a check."""
    return GateCheck(metric=metric, bound="≤ 0.1", value=value, passed=passed, question=question)


RUNS = [run(8), run(12), run(16), run(16, 4)]
OWN = check("relative L2", "0.2")
AT = [
    check("relative L2 at length 8 in batches of 1", "0.3"),
    check("largest sample at length 8 in batches of 1", "0.9"),
    check("relative L2 at length 12 in batches of 1", "0.05", passed=True),
    check("relative L2 at length 16 in batches of 1", "0.7"),
    check("cosine at length 16 in batches of 1", "0.1"),
    check("relative L2 at length 16 in batches of 4", "0.6"),
    check("mIoU at length 8 in batches of 1", "0.1", Question.GOOD_ENOUGH),
]


def test_the_worst_size_is_told_and_the_others_are_counted() -> None:
    """With the samples' own size, of the question that failed first."""
    told, more = told_of_sizes([OWN, *AT], RUNS)
    assert told == (OWN, AT[3], AT[4])
    assert more == "; so do 2 more of the 4 runs at other sizes, of which this is the worst"
    assert reason_of(told) == reason_of((OWN, AT[3], AT[4]))


def test_one_size_is_told_whole() -> None:
    """As is none."""
    assert told_of_sizes([OWN, *AT[:3]], RUNS) == ((OWN, *AT[:2]), "")
    assert told_of_sizes([AT[2]], RUNS) == ((), "")
    assert told_of_sizes([OWN], []) == ((OWN,), "")


def test_a_distance_that_is_no_number_is_the_worst() -> None:
    """Outputs that are not finite are farther than any other."""
    broken = check("relative L2 at length 12 in batches of 1", "nan")
    told, _ = told_of_sizes([*AT[:2], broken, AT[3]], RUNS)
    assert told == (broken,)


def test_without_a_distance_the_first_is_told() -> None:
    """It is not called the worst."""
    scores = [check(f"mIoU at length {length} in batches of 1", "0.1") for length in (8, 12)]
    told, more = told_of_sizes(scores, RUNS)
    assert (told, more) == ((scores[0],), "; so do 1 more of the 4 runs at other sizes, of which this is the first")
