"""The spread of an emulation's distance."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.stages.rounding.spread import Spread, farthest, redrawn, spread_of, widest

RANDOM = np.random.default_rng(0)
WANT = RANDOM.normal(size=(64, 10)).astype(np.float32)


def test_the_distance_is_relative_to_the_reference() -> None:
    """Logits that are larger by 1 % everywhere: 1 % for all resampled sets."""
    spread = spread_of(WANT * np.float32(1.01), WANT)
    assert spread is not None
    assert spread.relative_l2 == pytest.approx(0.01, rel=1e-3)
    assert spread.relative_l2_high == pytest.approx(0.01, rel=1e-3)


def test_a_sample_that_is_far_raises_the_quantile_and_the_largest() -> None:
    """One sample in 64 with all of the distance may come twice in a set, or thrice."""
    got = WANT.copy()
    got[7] += 1
    spread = spread_of(got, WANT)
    assert spread is not None
    assert spread.relative_l2_high > 1.3 * spread.relative_l2
    size = np.sqrt(np.square(WANT.astype(np.float64)).sum(axis=1).mean())
    assert spread.sample_l2_high == pytest.approx(np.sqrt(10) / size, rel=1e-5)


def test_margins_move_by_the_difference_of_two_errors() -> None:
    """An error that all logits share moves no margin."""
    shifted = spread_of(WANT + np.float32(0.5), WANT)
    assert shifted is not None
    assert shifted.margin_noise == pytest.approx(0, abs=1e-6)


def test_the_spread_is_the_same_each_time() -> None:
    """The sets are drawn from a fixed seed."""
    assert spread_of(WANT * 2, WANT) == spread_of(WANT * 2, WANT)


def test_logits_that_are_not_finite_have_no_spread() -> None:
    """Their distance is no number."""
    got = WANT.copy()
    got[0, 0] = np.inf
    assert spread_of(got, WANT) is None


def test_a_reference_of_zeros_has_a_spread() -> None:
    """Nothing divides by zero."""
    zeros = np.zeros((4, 3), dtype=np.float32)
    assert spread_of(zeros, zeros) == Spread(0, 0, 0, 0)


def test_each_part_of_a_tensor_has_its_spread() -> None:
    """An error in small values beside large ones is small in the whole, and large in its part."""
    random = np.random.default_rng(3)
    want = random.normal(size=(20, 2, 300)) * np.array([100.0, 0.1])[:, None]
    got = want.copy()
    got[:, 1] *= 1.5
    spread = spread_of(got.reshape(20, -1).astype(np.float32), want.reshape(20, -1).astype(np.float32), (2, 300))
    assert spread is not None
    assert spread.margin_noise is None
    assert spread.relative_l2_high < 1e-3
    np.testing.assert_allclose(spread.part_l2_high[:2], [0, 0.5], atol=1e-6)
    assert max(spread.part_l2_high[2:]) < 0.1


def test_the_widest_of_each_part_counts() -> None:
    """Two emulations may be worst in different parts."""
    one, two = Spread(0.1, 0.2, 0.3, None, (0.1, 0.4)), Spread(0.2, 0.1, 0.3, None, (0.3, 0.2))
    assert widest([one, two]) == Spread(0.2, 0.2, 0.3, None, (0.3, 0.4))


def test_one_of_many_parts_may_be_at_its_worst() -> None:
    """The quantile holds for all parts together: it is larger, the more there are."""
    random = np.random.default_rng(0)
    want = random.normal(size=(20, 200))
    got = want + 1e-3 * random.normal(size=want.shape)
    few, many = (
        spread_of(got[:, :count].astype(np.float32), want[:, :count].astype(np.float32), (count,)) for count in (2, 200)
    )
    assert few is not None
    assert many is not None
    assert all(1 < high / low < 1.5 for low, high in zip(few.part_l2_high, many.part_l2_high[:2], strict=False))


def test_another_draw_of_the_rounding_lies_within_its_factor() -> None:
    """Two draws of errors of two normal numbers a sample: 97.5 % of their ratios are smaller, of uneven ones more."""
    random = np.random.default_rng(1)
    for weights, expected in (([1.0], 0.975), ([1.0] * 8, 0.975), ([4.0, 1.0, 1.0, 0.5], 0.986), ([1.0] * 64, 0.975)):
        one, other = (random.chisquare(2, size=(20_000, len(weights))) @ weights for _ in range(2))
        factor = redrawn(np.array(weights)[:, None], 0.975)
        assert factor.shape == (1,)
        assert np.mean(np.sqrt(one / other) <= factor[0]) == pytest.approx(expected, abs=0.004)


def test_a_sample_beside_tiny_ones_is_one_sample() -> None:
    """Its factor is that of one, and a part without any error has one, too."""
    columns = np.array([[1.0, 0.0], [1e-12, 0.0], [1e-12, 0.0]])
    np.testing.assert_allclose(redrawn(columns, 0.975), np.sqrt(39), rtol=1e-6)  # F(2, 2) is p / (1 - p)


def test_a_part_that_one_sample_fills_is_known_less_well() -> None:
    """Both parts have a distance of 1 %; one sample of 40 makes that of the second."""
    want = np.ones((40, 2), dtype=np.float32)
    want[1:, 1] = 1e-6
    spread = spread_of(want * np.float32(1.01), want, (2,))
    assert spread is not None
    even, alone = spread.part_l2_redrawn
    assert 0.01 < even < 0.02
    assert alone > 5 * even
    np.testing.assert_allclose(spread.part_l2_high, 0.01, rtol=1e-3)
    np.testing.assert_allclose(spread.part_sizes, [1, np.sqrt(1 / 40)], rtol=1e-4)


def test_the_low_end_knows_that_one_sample_may_be_missing() -> None:
    """Most resampled sets of even samples have most of the distance; many lack the one that makes all of it."""
    even, outlier = spread_of(WANT * np.float32(1.01), WANT), WANT * np.float32(1.0001)
    outlier[5] *= 2
    one = spread_of(outlier, WANT)
    assert even is not None
    assert one is not None
    assert 0.5 * even.relative_l2 < even.relative_l2_low < even.relative_l2
    assert one.relative_l2_low < 0.01 * one.relative_l2
    low = widest([even, one])
    assert low is not None
    assert low.relative_l2_low == one.relative_l2_low


def test_the_largest_rounding_of_the_outputs_stands_for_all() -> None:
    """One that is not finite leaves no distance."""
    near, far = Spread(0.1, 0.2, 0.9, None, (0.2,)), Spread(0.3, 0.4, 0.5, None, (0.4, 0.1))
    found = farthest([near, far])
    assert found is not None
    assert (found.relative_l2, found.relative_l2_high, found.sample_l2_high) == (0.3, 0.4, 0.9)
    assert farthest([near, None]) is None
    assert farthest([]) is None
