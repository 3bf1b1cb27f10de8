"""Each output of an artifact, judged by its own bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.records import Graph, LayerShare, Precision, Task
from pipeline.config.settings import Gate, Gates
from pipeline.records import Loss, OutputRounding, Verdict
from pipeline.stages.common.rows import Span
from pipeline.stages.validate.batches import Measured, check_rows
from pipeline.stages.validate.judgement import Yardstick
from pipeline.stages.validate.outputs import (
    Judged,
    Ran,
    compare,
    executed_of,
    farthest,
    judge_output,
    largest_loss,
    worst_of,
)
from tests.support.records import reread, rounding_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.stages.validate.outputs import Compared, Verdicts

SPANS = (Span("boxes", (4,), slice(0, 4)), Span("scores", (3,), slice(4, 7)))
RANDOM = np.random.default_rng(7)
WANT = (RANDOM.normal(size=(64, 7)) * [300] * [1, 1, 1, 1, 1e-3, 1e-3, 1e-3]).astype(np.float32)
NOISE = RANDOM.normal(size=WANT.shape)
ROUNDING = rounding_of(Graph.FP16, high=4e-3, sample=8e-3).model_copy(
    update={
        "outputs": (
            OutputRounding(name="boxes", relative_l2_high=1e-3, sample_l2_high=2e-3, part_l2_high=(2e-3,) * 4),
            OutputRounding(name="scores", relative_l2_high=4e-3, sample_l2_high=8e-3, part_l2_high=(6e-3,) * 3),
        )
    }
)


def moved(boxes: float, scores: float) -> npt.NDArray[np.float32]:
    """Return the outputs of an artifact whose relative distances are about these."""
    factors: npt.NDArray[np.float64] = 1 + NOISE * np.array([boxes] * 4 + [scores] * 3)
    return np.asarray(WANT * factors, dtype=np.float32)


def compared(got: npt.NDArray[np.float32], **more: Any) -> tuple[Compared, ...]:
    """Return each output beside the reference's."""
    return compare(Ran(got, **more), WANT, SPANS, None, None, Task.TENSORS)


def verdicts(got: npt.NDArray[np.float32], **more: Any) -> dict[str, Verdicts]:
    """Return the verdict on each output."""
    found = {}
    for item in compared(got, **more):
        name, shape, _ = item.span
        yardstick = Yardstick(Gates(), Gate(), ROUNDING.of(name), task=Task.TENSORS, sample_shape=shape)
        found[name] = judge_output(item, None, yardstick)
    return found


@pytest.mark.parametrize(
    ("boxes", "scores", "passing"),
    [
        pytest.param(1e-3, 4e-3, {"boxes", "scores"}, id="as rounding moves each"),
        pytest.param(4e-3, 4e-3, {"scores"}, id="boxes as far as scores may be"),
        pytest.param(1e-3, 0.03, {"boxes"}, id="scores too far"),
        pytest.param(1e-6, 4e-3, {"scores"}, id="boxes without the rounding of their type"),
    ],
)
def test_each_output_is_held_to_its_own_rounding(boxes: float, scores: float, passing: set[str]) -> None:
    """A distance that one output may have is too far, or too near, for another one."""
    found = verdicts(moved(boxes, scores))
    assert {name for name, verdict in found.items() if verdict.passed} == passing
    for name, verdict in found.items():
        metrics = [check.metric for check in (*verdict.all_samples, *verdict.other_runs)]
        assert all(metric.startswith(f"{name}: ") for metric in metrics)


def test_other_runs_are_those_of_the_output() -> None:
    """A NaN for an extreme image, and images in channels_last, count for the output that shows them."""
    good = moved(1e-3, 4e-3)
    extremes = WANT[:3].copy()
    extremes[1, 5] = np.nan
    found = verdicts(good, extremes=extremes, channels_last=moved(0.02, 4e-3))
    failed = [check.metric for verdict in found.values() for check in verdict.other_runs if not check.passed]
    assert failed == [
        "boxes: relative L2 of images in channels_last",
        "boxes: largest relative L2 of a part in channels_last",
        "scores: finite outputs of extreme images",
    ]


def test_an_output_that_depends_on_its_neighbours_is_named() -> None:
    """The rows of the other output are independent, and its checks say so."""
    source = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)

    def run(images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        leaked = images + np.float32(0.01) * np.roll(images, 1, axis=0)
        return {"scores": leaked[:, 4:], "boxes": images[:, :4]}

    rows = check_rows(
        run, lambda start, stop: source[start:stop], source, 4, measured=[Measured(span) for span in SPANS]
    )
    assert [(row.output, row.relative_l2 > 1e-3) for row in rows] == [("boxes", False), ("scores", True)]
    assert reread(rows[1]) == rows[1]
    found = verdicts(moved(1e-3, 4e-3), rows=rows)
    failed = [check.metric for verdict in found.values() for check in verdict.other_runs if not check.passed]
    assert "scores: row beside other rows, relative L2" in failed
    assert not [metric for metric in failed if metric.startswith("boxes")]


def test_tf32_shows_in_any_output() -> None:
    """An engine that claims FP32 multiplied in TF32 if one of its outputs is as far as TF32 makes it."""
    layers = (LayerShare(precision=Precision.FP32, layers=3, examples=("conv",)),)
    for distances, expected in (((1e-7, 1e-7), Precision.FP32), ((1e-7, 1e-3), Precision.TF32)):
        found = compared(moved(*distances))
        assert executed_of(Precision.FP32, layers, found, [1e-5, 1e-5]) is expected
    assert executed_of(Precision.FP32, (), compared(WANT), [1e-5, 1e-5]) is None


def test_the_farthest_output_stands_for_all() -> None:
    """It is the one that is not finite, or has the largest distance."""
    assert farthest(compared(moved(1e-3, 4e-3))).span.name == "scores"
    broken = moved(1e-3, 4e-3)
    broken[:, 0] = np.nan
    assert farthest(compared(broken)).span.name == "boxes"


def profile_run(distance: float, drop: float | None, verdict: Verdict = Verdict.PASSES) -> Judged:
    """Return the judged run of a profile of an engine: its distance from the reference, and its loss."""
    lost = None if drop is None else round(64 * drop)
    loss = None if lost is None else Loss(samples=64, lost=lost, won=0, drop=lost / 64, drop_high=1.0, verdict=verdict)
    return Judged(compared(moved(distance, distance)), (), (), (loss,))


def test_the_largest_loss_of_all_profiles_is_recorded() -> None:
    """The profile that lies farthest off may have lost fewer answers than another one."""
    far, near, none = profile_run(0.1, 0.125), profile_run(1e-3, 0.25, Verdict.FAILS), profile_run(1e-3, None)
    assert worst_of([far, near]) is far
    assert largest_loss([far, near]) == near.loss
    assert largest_loss([near, far, none]) == near.loss
    assert largest_loss([none]) is None
    assert (far.is_proven, near.is_proven, none.is_proven) == (True, False, False)
    several = near._replace(losses=(near.loss, near.loss))
    assert (several.loss, several.is_proven) == (None, False), "each output has a loss of its own"
