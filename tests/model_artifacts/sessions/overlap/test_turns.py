"""The order of buffers: each in turn, and none before its result was taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.errors import RunError, UsageError
from model_artifacts.sessions.overlap.turns import Turns


@given(st.integers(2, 4), st.lists(st.booleans(), max_size=40))
def test_results_come_in_the_order_of_the_batches(buffers: int, starts: list[bool]) -> None:
    """Whatever the order of calls, no buffer has two batches, and the oldest result is the next."""
    turns, started, ended = Turns(buffers), [], []
    for start in starts:
        if start and not turns.full:
            expected = turns.next
            started.append(turns.start())
            assert started[-1] == expected
        elif not start and len(turns):
            expected = turns.oldest
            ended.append(turns.end())
            assert ended[-1] == expected
        under_way = started[len(ended) :]
        assert len(turns) == len(under_way) == len(set(under_way)) <= buffers
        assert started[: len(ended)] == ended


@pytest.mark.parametrize("buffers", [0, 1, 5, 2.5, True, "3"], ids=repr)
def test_other_numbers_of_buffers_are_refused(buffers: Any) -> None:
    """One buffer overlaps nothing, and a fifth one has nothing to do."""
    with pytest.raises(UsageError, match="2 to 4 buffers"):
        Turns(buffers)


def test_a_call_out_of_turn_is_refused() -> None:
    """A result without a batch, or a batch without a buffer."""
    turns = Turns(2)
    with pytest.raises(RunError, match="no batch is under way"):
        turns.end()
    turns.start()
    turns.start()
    with pytest.raises(RunError, match="all buffers have a batch"):
        turns.start()
