"""The interval of a drop, and the verdict on it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Verdict
from pipeline.stages.validate.loss import judge_drop, largest_drop, smallest_drop
from pipeline.stages.validate.metrics import Answers

Z = 1.6448536269514722


@pytest.mark.parametrize("samples", [20, 500, 50_000])
def test_without_another_answer_the_interval_has_its_closed_form(samples: int) -> None:
    """With no lost and no won answer, Tango's score equation is solved by z² / (n + z²)."""
    assert largest_drop(samples, 0, 0) == pytest.approx(Z**2 / (samples + Z**2), rel=1e-9)


@pytest.mark.parametrize(("samples", "lost", "won"), [(44, 1, 0), (500, 7, 3), (872, 10, 12)])
def test_the_interval_ends_where_the_score_does(samples: int, lost: int, won: int) -> None:
    """The share of won answers that is likeliest at that drop, found by search, gives a score of -z."""
    drop = largest_drop(samples, lost, won)
    shares = np.linspace(1e-9, (1 - drop) / 2 - 1e-9, 2_000_001)
    same = samples - lost - won
    likelihood = lost * np.log(shares + drop) + won * np.log(shares) + same * np.log(1 - 2 * shares - drop)
    likeliest = shares[likelihood.argmax()]
    score = (lost - won - samples * drop) / np.sqrt(samples * (2 * likeliest + drop - drop**2))
    assert score == pytest.approx(-Z, abs=1e-3)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_the_interval_ends_above_the_drop(case: tuple[int, int, int]) -> None:
    """The end of the interval lies between the drop and 1."""
    samples, lost, won = case
    won = min(won, samples - lost)
    assert (lost - won) / samples - 1e-9 <= largest_drop(samples, lost, won) <= 1


@given(st.integers(2, 2000), st.integers(0, 50))
def test_more_lost_answers_allow_a_larger_drop(samples: int, lost: int) -> None:
    """The end of the interval grows with every lost answer."""
    lost = min(lost, samples - 1)
    assert largest_drop(samples, lost, 0) < largest_drop(samples, lost + 1, 0)


@pytest.mark.parametrize(
    ("samples", "lost", "won", "verdict"),
    [
        (500, 0, 0, Verdict.PASSES),
        (200, 0, 0, Verdict.NOT_PROVEN),
        (872, 2, 0, Verdict.PASSES),
        (872, 9, 0, Verdict.FAILS),
        (872, 20, 20, Verdict.NOT_PROVEN),
        (50_000, 400, 0, Verdict.PASSES),
    ],
)
def test_verdicts_at_a_margin_of_one_point(samples: int, lost: int, won: int, verdict: Verdict) -> None:
    """A drop beyond the margin fails, an interval below it passes, and the rest needs more samples."""
    assert judge_drop(Answers(samples, lost, won), 0.01).verdict is verdict


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_the_interval_begins_below_the_drop(case: tuple[int, int, int]) -> None:
    """Its lower end is the upper end of the gain, which the same interval has with the sides exchanged."""
    samples, lost, won = case
    won = min(won, samples - lost)
    assert -1 <= smallest_drop(samples, lost, won) <= (lost - won) / samples + 1e-9
    assert smallest_drop(samples, lost, won) == -largest_drop(samples, won, lost)


@pytest.mark.parametrize(
    ("samples", "lost", "won", "verdict"),
    [
        (64, 0, 0, Verdict.NOT_PROVEN),
        (64, 1, 0, Verdict.NOT_PROVEN),
        (64, 3, 0, Verdict.NOT_PROVEN),
        (64, 4, 0, Verdict.FAILS),
        (64, 4, 1, Verdict.NOT_PROVEN),
        (8, 1, 0, Verdict.NOT_PROVEN),
        (500, 0, 0, Verdict.PASSES),
        (872, 9, 0, Verdict.NOT_PROVEN),
        (872, 20, 0, Verdict.FAILS),
    ],
)
def test_a_part_fails_only_where_its_whole_interval_does(samples: int, lost: int, won: int, verdict: Verdict) -> None:
    """For what is never deployed one lost answer among few is no proof of a loss; the proof of a margin is the same."""
    loss = judge_drop(Answers(samples, lost, won), 0.01, is_part=True)
    assert loss.verdict is verdict
    assert (smallest_drop(samples, lost, won) > 0.01) is (verdict is Verdict.FAILS)


def test_no_number_of_samples_is_named_that_would_not_do() -> None:
    """With the same shares a drop beyond the margin is never proven to be within it."""
    assert judge_drop(Answers(64, 1, 0), 0.01, is_part=True).more == 0
    assert judge_drop(Answers(64, 0, 0), 0.01, is_part=True).more == 204


def test_what_is_not_proven_says_how_many_samples_would_do() -> None:
    """With that many samples of the same shares it passes, and with one less it does not."""
    loss = judge_drop(Answers(200, 0, 0), 0.01)
    enough = 200 + loss.more
    assert loss.verdict is Verdict.NOT_PROVEN
    assert largest_drop(enough, 0, 0) <= 0.01 < largest_drop(enough - 1, 0, 0)
    assert judge_drop(Answers(enough, 0, 0), 0.01).more == 0


def test_near_ties_are_kept_beside_the_verdict() -> None:
    """They are not among the judged samples."""
    assert judge_drop(Answers(500, 0, 0, 7), 0.01).near_ties == 7
