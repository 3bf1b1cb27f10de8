"""Two drivers that build the same key."""

from __future__ import annotations

from pipeline.farm.flights import Board


def test_one_driver_builds_a_key_at_a_time() -> None:
    """A second driver gets the name of the key's builder until that one gives the key back."""
    board = Board()
    assert board.take("k", "a") == "a"
    assert board.take("k", "b") == "a"
    assert board.take("other", "b") == "b"
    board.give("k", "b")
    assert board.take("k", "b") == "a"
    board.give("k", "a")
    assert board.take("k", "b") == "b"


def test_what_a_killed_driver_holds_is_free_soon() -> None:
    """A living driver renews its claims, and those of a killed driver expire."""
    board = Board()
    board.take("k", "a", now=0)
    assert board.take("k", "b", now=19) == "a"
    assert board.take("k", "a", now=19) == "a"
    assert board.take("k", "b", now=38) == "a"
    assert board.take("k", "b", now=39) == "b"
