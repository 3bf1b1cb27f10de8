"""The fewest layers that stay in FP16."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tune.repair import next_count


def search_for(fewest: int, most: int, proposed: int) -> dict[int, bool]:
    """Return the numbers that are tried if `fewest` layers are needed, with what they gave."""
    verdicts: dict[int, bool] = {}
    while (count := next_count(most, proposed, verdicts)) is not None:
        assert count not in verdicts
        assert 1 <= count <= most
        verdicts[count] = count >= fewest
    return verdicts


@given(most=st.integers(1, 200), proposed=st.integers(0, 200), fewest=st.integers(1, 220))
def test_it_ends_after_a_few_numbers_each_tried_once(most: int, proposed: int, fewest: int) -> None:
    """However many layers there are."""
    assert len(search_for(fewest, most, proposed)) <= 6


@given(most=st.integers(8, 60), fewest=st.integers(1, 8))
def test_the_fewest_are_found_near_the_proposal(most: int, fewest: int) -> None:
    """A proposal of up to eight layers is halved or doubled to the least number that passes."""
    verdicts = search_for(fewest, most, proposed=4)
    assert min(count for count, good in verdicts.items() if good) == fewest


def test_a_proposal_of_one_layer_that_passes_is_the_answer() -> None:
    """There is no smaller number than one to try: none has failed already."""
    assert search_for(1, 20, 1) == {1: True}


def test_nothing_is_tried_without_layers() -> None:
    """A graph without a ranking is not repaired."""
    assert next_count(0, 3, {}) is None
