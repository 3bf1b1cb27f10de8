"""Logits measured against the reference's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from model_artifacts.errors import RunError
from pipeline.stages.validate.metrics import (
    Answers,
    compare_answers,
    largest_part,
    largest_sample,
    measure,
    row_dependence,
    wilson,
    worst_class,
)

if TYPE_CHECKING:
    import numpy.typing as npt


def logits(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return rows of logits."""
    return np.array(rows, dtype=np.float32)


def test_metrics_by_hand() -> None:
    """Cosine, relative L2 and maximum are those of a case computed by hand."""
    accuracy = measure(logits((3, 4), (0, 2)), logits((3, 4), (2, 0)), None)
    assert accuracy.cosine == pytest.approx(0.5)
    assert accuracy.cosine_min == pytest.approx(0.0)
    assert accuracy.relative_l2 == pytest.approx(np.sqrt(8 / 29))
    assert accuracy.max_abs == 2
    assert accuracy.top1_agreement == 0.5
    assert accuracy.worst_sample == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sample_with_a_logit_that_is_not_finite_is_wrong_and_the_worst(bad: float) -> None:
    """However good its other logits are: it is no hit, no agreement, and the one to look at."""
    want = logits((5, 1, 0), (1, 9, 0), (0, 1, 5))
    accuracy = measure(logits((5, 1, 0), (1, 9, bad), (5, 1, 0)), want, np.array([0, 1, 2]))
    assert accuracy.top1 == pytest.approx(1 / 3)
    assert accuracy.top1_agreement == pytest.approx(1 / 3)
    assert accuracy.worst_sample == 1
    assert accuracy.max_abs == 9


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


def test_row_dependence_is_that_of_the_row_that_moved_most() -> None:
    """Each row counts by its own size."""
    assert row_dependence(logits((3, 4), (6, 8)), logits((3, 4), (6, 9))) == pytest.approx(0.1)


def test_a_row_that_became_nan_moved_by_all_it_is() -> None:
    """NaN is no distance that JSON knows."""
    assert row_dependence(logits((3, 4)), logits((3, np.nan))) == pytest.approx(1.0)


def test_the_largest_sample_is_held_against_the_usual_size() -> None:
    """A sample's distance counts in root mean squares of the reference's norms, so that a small row is no excuse."""
    want = logits((3, 4), (0, 0), (5, 0))
    assert largest_sample(logits((3, 4), (0, 1), (5, 0)), want) == pytest.approx(1 / np.sqrt(50 / 3))


def test_answers_lost_and_won_are_counted_by_labels() -> None:
    """An answer that both have wrong is neither lost nor won."""
    want = logits((1, 0), (1, 0), (1, 0), (0, 1))
    got = logits((0, 1), (0, 1), (1, 0), (0, 1))
    assert compare_answers(got, want, np.array([0, 1, 1, 1]), tie=9.0) == Answers(4, lost=1, won=1)


def test_without_labels_near_ties_are_left_out() -> None:
    """A sample whose two first logits are nearer than rounding is no evidence; every other answer unlike it is lost."""
    want = logits((1.0, 0.9), (5, 0), (5, 0))
    got = logits((0.9, 1.0), (0, 5), (5, 0))
    assert compare_answers(got, want, None, tie=0.2) == Answers(2, lost=1, won=0, near_ties=1)


def test_where_all_are_near_ties_every_answer_counts() -> None:
    """Nothing else is left to judge by."""
    want = logits((1.0, 0.9), (1.0, 0.9))
    assert compare_answers(want[:, ::-1], want, None, tie=0.2) == Answers(2, lost=2, won=0)


def _map(row: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Return two samples of a map whose first row is next to nothing, and whose second is large."""
    return np.array([[[*row], [20.0, 10.0]]] * 2, np.float32).reshape(2, -1)


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    [pytest.param(0.0, 1.0, id="none"), pytest.param(9e-5, 1.0, id="smaller"), pytest.param(1e-4, 0.1, id="as-large")],
)
def test_a_part_within_the_tolerance_is_no_loss(tolerance: float, expected: float) -> None:
    """An empty row's own relative L2 says nothing; the columns, which hold the large row, are judged all the same."""
    want, got = _map((1e-4, 0.0)), _map((0.0, 0.0))
    got[:, 3] *= 1.1

    found = largest_part(got, want, (2, 2), tolerance)

    assert found == pytest.approx(max(expected, 0.1), rel=1e-3)


def test_values_within_the_tolerance_everywhere_are_no_loss_of_the_whole() -> None:
    """Every part and the whole are equal then; a NaN is within no tolerance."""
    want, got = _map((1e-4, 0.0)), _map((2e-4, 0.0))
    assert largest_part(got, want, (2, 2), 0.001) == 0
    want[:, 2:], got[:, 2:] = 0, np.nan
    assert largest_part(got, want, (2, 2), 1e6) == 1
