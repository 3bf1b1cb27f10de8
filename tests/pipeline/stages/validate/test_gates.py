"""Logits measured against the reference's, and judged by a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from model_artifacts.errors import RunError
from model_artifacts.records import Accuracy, GateCheck, LayerShare, Precision, RowCheck
from pipeline.config.settings import Gate
from pipeline.stages.validate.gates import (
    executed_precision,
    judge,
    judge_finite,
    judge_layers,
    judge_rows,
    measure,
    row_dependence,
    wilson,
    worst_class,
)

if TYPE_CHECKING:
    import numpy.typing as npt

GATE = Gate(cosine=0.99, relative_l2=0.1, top1_agreement=0.9, top1_drop=0.05)


def logits(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return rows of logits."""
    return np.array(rows, dtype=np.float32)


def failed(accuracy: Accuracy, *, require_proof: bool = False) -> list[str]:
    """Return the metrics that miss `GATE`."""
    return [check.metric for check in judge(accuracy, GATE, require_proof=require_proof) if not check.passed]


def test_equal_logits_are_perfect() -> None:
    """Logits equal to the reference's agree wholly, and pass."""
    same = logits((1, 2), (3, 1))
    accuracy = measure(same, same, None)
    assert accuracy.cosine == pytest.approx(1)
    assert (accuracy.relative_l2, accuracy.max_abs, accuracy.top1_agreement) == (0, 0, 1)
    assert failed(accuracy) == []


def test_metrics_by_hand() -> None:
    """Cosine, relative L2 and maximum are those of a case computed by hand."""
    accuracy = measure(logits((3, 4), (0, 2)), logits((3, 4), (2, 0)), None)
    assert accuracy.cosine == pytest.approx(0.5)
    assert accuracy.cosine_min == pytest.approx(0.0)
    assert accuracy.relative_l2 == pytest.approx(np.sqrt(8 / 29))
    assert accuracy.max_abs == 2
    assert accuracy.top1_agreement == 0.5
    assert accuracy.worst_sample == 1


def test_labels_give_top1_and_its_drop() -> None:
    """Labels give top-1 and its drop below the reference."""
    accuracy = measure(logits((1, 0), (1, 0)), logits((1, 0), (0, 1)), np.array([0, 1]))
    assert (accuracy.top1, accuracy.top1_drop) == (0.5, 0.5)
    assert "labelled top-1 drop" in failed(accuracy)


def test_without_labels_there_is_no_drop_to_judge() -> None:
    """Without labels the gate does not speak of top-1."""
    accuracy = measure(logits((1, 0)), logits((1, 0)), None)
    assert accuracy.top1 is None
    assert "labelled top-1 drop" not in [check.metric for check in judge(accuracy, GATE, require_proof=False)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_rejected(bad: float) -> None:
    """NaN or infinity in a single logit misses the gate, and counts as disagreement."""
    accuracy = measure(logits((1, bad), (0, 1)), logits((1, 0), (0, 1)), None)
    assert not accuracy.finite
    assert accuracy.top1_agreement == 0.5
    assert "finite outputs" in failed(accuracy)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sample_with_a_logit_that_is_not_finite_is_wrong_and_the_worst(bad: float) -> None:
    """However good its other logits are: it is no hit, no agreement, and the one to look at."""
    want = logits((5, 1, 0), (1, 9, 0), (0, 1, 5))
    accuracy = measure(logits((5, 1, 0), (1, 9, bad), (5, 1, 0)), want, np.array([0, 1, 2]))
    assert accuracy.top1 == pytest.approx(1 / 3)
    assert accuracy.top1_agreement == pytest.approx(1 / 3)
    assert accuracy.worst_sample == 1
    assert accuracy.max_abs == 9


@pytest.mark.parametrize(("samples", "lost"), [(500, 1), (500, 5), (997, 2), (50_000, 100)])
def test_drop_that_is_exactly_its_bound_passes(samples: int, lost: int) -> None:
    """Whatever the reference's own share is: a difference of two rounded shares would often lie above."""
    gate = GATE.model_copy(update={"top1_drop": lost / samples, "class_drop": lost / samples, "top1_agreement": 0.0})
    labels = np.zeros(samples, dtype=np.int64)
    for right in range(lost, samples + 1, max(1, samples // 50)):
        want, got = (np.zeros((samples, 2), dtype=np.float32) for _ in range(2))
        want[right:, 1] = got[right - lost :, 1] = 1
        accuracy = measure(got, want, labels)
        drops = [check for check in judge(accuracy, gate, require_proof=False) if "drop" in check.metric]
        assert [check.passed for check in drops] == [True, True], (right, drops)


def test_many_samples_are_measured_in_parts_as_all_at_once() -> None:
    """In float64 all of 50,000 would take gigabytes; the numbers are the same."""
    random = np.random.default_rng(0)
    want = random.normal(size=(2500, 7)).astype(np.float32)
    got = want + random.normal(scale=0.1, size=want.shape).astype(np.float32)
    accuracy = measure(got, want, None)
    exact = np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want.astype(np.float64))
    assert accuracy.relative_l2 == pytest.approx(float(exact), rel=1e-12)
    assert accuracy.top1_agreement == pytest.approx(float((got.argmax(1) == want.argmax(1)).mean()))
    assert accuracy.worst_sample == int(np.linalg.norm(got - want, axis=1).argmax())


def test_another_shape_is_an_error() -> None:
    """Logits of another shape than the reference's cannot be compared."""
    with pytest.raises(RunError, match="another shape"):
        measure(logits((1, 2, 3)), logits((1, 2)), None)


def test_proof_can_be_required() -> None:
    """Full agreement on few samples passes, unless the gate demands that it be proven."""
    same = logits(*[(1, 0)] * 20)
    accuracy = measure(same, same, None)
    assert failed(accuracy) == []
    assert failed(accuracy, require_proof=True) == ["top-1 agreement, proven"]


def test_wilson_by_the_book() -> None:
    """The interval of 997 out of 997 begins at 99.62 %, as the design says."""
    low, high = wilson(997, 997)
    assert low == pytest.approx(0.99616, abs=1e-5)
    assert high == 1


@given(st.integers(1, 10_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_contains_the_share(case: tuple[int, int]) -> None:
    """The interval lies in [0, 1] and contains the share."""
    successes, trials = case
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


# What an engine computed in.


def layers(*found: tuple[Precision | None, int]) -> tuple[LayerShare, ...]:
    """Return shares of layers, the most frequent first."""
    return tuple(LayerShare(precision=precision, layers=count, examples=()) for precision, count in found)


@pytest.mark.parametrize(
    ("asked", "found", "relative_l2", "executed"),
    [
        (Precision.FP32, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.FP32, layers((Precision.FP32, 20)), 4e-4, Precision.TF32),
        (Precision.FP32, layers((Precision.FP32, 19), (Precision.TF32, 1)), 1e-6, Precision.TF32),
        (Precision.TF32, layers((Precision.TF32, 20)), 4e-4, Precision.TF32),
        (Precision.TF32, layers((Precision.FP32, 20)), 4e-4, Precision.TF32),
        (Precision.TF32, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.FP16, layers((Precision.FP16, 20), (Precision.FP32, 1)), 1e-3, Precision.FP16),
        (Precision.FP16, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.INT8, layers((Precision.INT8, 19), (Precision.FP16, 1)), 0.05, Precision.INT8),
        (Precision.FP16, layers((None, 20)), 1e-3, None),
        (Precision.FP32, (), 1e-3, None),
    ],
)
def test_executed_precision_is_that_of_most_layers(
    asked: Precision, found: tuple[LayerShare, ...], relative_l2: float, executed: Precision | None
) -> None:
    """The precision of most convolutions is the engine's, and the distance separates TF32 from strict FP32."""
    assert executed_precision(asked, found, relative_l2, 1e-5) is executed


@pytest.mark.parametrize(
    ("claimed", "found", "value", "passed"),
    [
        (Precision.FP16, layers((Precision.FP16, 20)), "100.0%", True),
        (Precision.FP16, layers((Precision.FP16, 19), (Precision.FP32, 1)), "95.0%", True),
        (Precision.FP16, layers((Precision.FP16, 18), (Precision.FP32, 2)), "90.0%", False),
        (Precision.FP16, layers((Precision.FP32, 20)), "0.0%", False),
        (Precision.TF32, layers((Precision.FP32, 10), (Precision.TF32, 10)), "100.0%", True),
        (Precision.FP32, layers((Precision.FP32, 10), (Precision.TF32, 10)), "50.0%", False),
        (Precision.INT8, layers((Precision.INT8, 4), (Precision.FP16, 1)), "80.0%", True),
        (Precision.INT8, layers((Precision.INT8, 2), (Precision.FP16, 1)), "66.7%", True),
        (Precision.INT8, layers((Precision.INT8, 3), (Precision.FP16, 2)), "60.0%", False),
        (Precision.INT8, layers((Precision.FP16, 1)), "0.0%", False),
        (Precision.FP8, layers((Precision.FP8, 19), (Precision.FP16, 1)), "95.0%", True),
        (Precision.BF16, layers((None, 20)), "0.0%", False),
    ],
)
def test_layers_are_held_against_the_claimed_precision(
    claimed: Precision, found: tuple[LayerShare, ...], value: str, *, passed: bool
) -> None:
    """An engine that claims a precision multiplies in it, but for a few layers; quantisers leave more."""
    bound = "80%" if claimed in {Precision.INT8, Precision.FP8} else "95%"
    assert judge_layers(claimed, found) == (
        GateCheck(metric="executed precision", bound=f"≥ {bound} {claimed.value}", value=value, passed=passed),
    )


@pytest.mark.parametrize(
    ("quantized", "left_out", "passed"), [(16, 4, True), (13, 4, True), (12, 4, False), (0, 20, False)]
)
def test_layers_that_are_left_on_request_are_not_held_against_an_engine(
    quantized: int, left_out: int, *, passed: bool
) -> None:
    """The bound is of the others; an engine with nothing quantised is not int8, whatever was left."""
    found = layers(*([(Precision.INT8, quantized)] if quantized else []), (Precision.FP16, 20 - quantized))
    (check,) = judge_layers(Precision.INT8, found, left_out=left_out)
    assert (check.bound, check.passed) == (f"≥ 80% int8 of all but {left_out}", passed)


def test_artifact_that_tells_no_layers_is_not_held_against_them() -> None:
    """ONNX Runtime tells nothing, and a network may have no convolution."""
    assert judge_layers(Precision.FP16, ()) == ()


# Labels.


def test_top5_counts_labels_among_the_five_largest() -> None:
    """A label at the fifth place counts, at the sixth it does not; and the drop is the reference's less that."""
    rows = logits((6, 5, 4, 3, 2, 1), (6, 5, 4, 3, 2, 1))
    right = logits((6, 5, 4, 3, 2, 1), (1, 2, 3, 4, 5, 6))
    accuracy = measure(rows, right, np.array([4, 5]))
    assert (accuracy.top5, accuracy.top5_drop) == (0.5, 0.5)


def test_five_classes_have_no_top5() -> None:
    """Five classes have no top-5 accuracy."""
    assert measure(logits((1, 2, 3, 4, 5)), logits((1, 2, 3, 4, 5)), np.array([0])).top5 is None


@given(
    npst.arrays(np.float32, (7, 8), elements=st.integers(-3, 3)), npst.arrays(np.int64, 7, elements=st.integers(0, 7))
)
def test_top1_is_argmax_whatever_is_equal(rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
    """The share of right answers is that of argmax, which takes the first of equals."""
    assert measure(rows, rows, labels).top1 == float((rows.argmax(axis=1) == labels).mean())


def test_the_worst_class_is_named() -> None:
    """The class that drops most, among those with enough samples, is reported by name."""
    labels = np.array([0] * 5 + [1] * 10 + [2])
    want = np.eye(3, dtype=np.float32)[labels]
    got = want.copy()
    got[10:13] = (1, 0, 0)  # three of ten of class 1
    got[15] = (1, 0, 0)  # the only one of class 2
    found = worst_class(got, want, labels, ("cat", "dog", "owl"))
    assert found is not None
    assert (found.name, found.samples, round(found.drop, 9)) == ("dog", 10, 0.3)
    unnamed = worst_class(got, want, labels)
    assert unnamed is not None
    assert unnamed.name == "1"


def test_classes_of_few_samples_say_nothing() -> None:
    """Four samples of a class tell nothing of it."""
    want = np.eye(2, dtype=np.float32)[[0] * 4]
    assert worst_class(want, want, np.array([0] * 4)) is None


def test_the_worst_class_is_judged_where_the_gate_asks() -> None:
    """A gate may bound the worst class's drop; without a bound it is recorded only."""
    labels = np.array([0] * 5 + [1] * 5)
    want = logits(*[(1, 0)] * 5, *[(0, 1)] * 5)
    got = want.copy()
    got[9] = (1, 0)
    accuracy = measure(got, want, labels)
    metric = "top-1 drop of class 1"
    strict = GATE.model_copy(update={"class_drop": 0.1})
    assert metric not in [check.metric for check in judge(accuracy, GATE, require_proof=False)]
    assert metric in [check.metric for check in judge(accuracy, strict, require_proof=False) if not check.passed]


# Rows.


def test_row_dependence_is_that_of_the_row_that_moved_most() -> None:
    """Each row counts by its own size."""
    assert row_dependence(logits((3, 4), (6, 8)), logits((3, 4), (6, 9))) == pytest.approx(0.1)


def test_a_row_that_became_nan_moved_by_all_it_is() -> None:
    """NaN is no distance that JSON knows."""
    assert row_dependence(logits((3, 4)), logits((3, np.nan))) == pytest.approx(1.0)


def test_rows_are_judged_by_their_worst_batch_size() -> None:
    """Each of both distances is that of the batch size where it is largest, which is named."""
    rows = (
        RowCheck(batch=1, reference_l2=0.12, relative_l2=0.0),
        RowCheck(batch=3, reference_l2=0.01, relative_l2=0.2),
    )
    far, moved = judge_rows(rows, GATE)
    assert (far.value, far.passed) == ("0.12 at batch 1", False)
    assert (moved.value, moved.passed) == ("0.2 at batch 3", False)


def test_a_part_of_the_samples_may_lie_a_little_farther() -> None:
    """Fewer samples vary more than all of them, for which the bound is made."""
    far, _ = judge_rows((RowCheck(batch=1, reference_l2=0.109, relative_l2=0.0),), GATE)
    assert far.passed


def test_no_rows_are_not_judged() -> None:
    """An artifact without runs at batch sizes has no check of its rows."""
    assert judge_rows((), GATE) == ()


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (np.nan, False), (np.inf, False)])
def test_extreme_images_give_finite_logits(value: float, *, passed: bool) -> None:
    """Whatever the images, logits are numbers."""
    assert [check.passed for check in judge_finite("finite", logits((1, value)))] == [passed]


def test_what_was_not_run_is_not_judged() -> None:
    """Without extreme images there is no check."""
    assert judge_finite("finite", None) == ()
