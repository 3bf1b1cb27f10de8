"""The search for the largest rate, on systems whose limits are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.records import BatchRange, LoadSettings
from pipeline.stages.load.search import PRECISION, batches_of, choices_of, confirmed, largest_rate, refused_batches

if TYPE_CHECKING:
    from collections.abc import Callable

ONE = LoadSettings(contexts=1, batch=1, max_delay_ms=0)
TWO = LoadSettings(contexts=2, batch=1, max_delay_ms=0)
FOUR = LoadSettings(contexts=4, batch=1, max_delay_ms=0)


class Server:
    """A server that holds every rate up to a limit of its settings, and counts the runs."""

    def __init__(self, limits: dict[LoadSettings, float]) -> None:
        self.limits = limits
        self.runs = 0

    def __call__(self, settings: LoadSettings, rate: float) -> bool:
        """Return whether the settings hold a rate."""
        self.runs += 1
        return rate <= self.limits[settings]


def capacity_of(value: float) -> Callable[[LoadSettings], float]:
    """Return a capacity that is the same for all settings."""
    return lambda _: value


@given(
    limits=st.lists(st.floats(0, 1000), min_size=1, max_size=5),
    capacity=st.floats(10, 1000),
)
def test_the_best_settings_are_found(limits: list[float], capacity: float) -> None:
    """The rate is one that its settings hold, and no settings hold two steps more."""
    choices = choices_of(range(1, len(limits) + 1), (1,), (0.0,))
    server = Server(dict(zip(choices, limits, strict=True)))
    found = largest_rate(choices, capacity_of(capacity), server)
    reachable = max(min(limit, 1.2 * capacity) for limit in limits)
    if found is None:
        assert reachable < 1.2 * capacity / 16
    else:
        assert found.rate <= server.limits[found.settings]
        assert found.rate * (1 + PRECISION) ** 2 >= reachable * (1 - PRECISION)


def test_settings_that_are_no_better_cost_one_run() -> None:
    """The first settings are bisected; worse ones are told by a single run each."""
    alone = Server({ONE: 80})
    assert largest_rate((ONE,), capacity_of(100), alone)
    server = Server({ONE: 80, TWO: 80, FOUR: 70})
    found = largest_rate((ONE, TWO, FOUR), capacity_of(100), server)
    assert found is not None
    assert found.settings == ONE
    assert server.runs == alone.runs + 2


def test_settings_below_the_best_rate_are_not_run() -> None:
    """Settings whose offline throughput lies below the best rate cannot hold it."""
    capacities = {ONE: 100.0, TWO: 10.0}
    server = Server({ONE: 80, TWO: 80})
    found = largest_rate((ONE, TWO), capacities.__getitem__, server)
    alone = Server({ONE: 80})
    largest_rate((ONE,), capacities.__getitem__, alone)
    assert found is not None
    assert (found.settings, server.runs) == (ONE, alone.runs)


def test_bound_that_nothing_keeps_ends_soon() -> None:
    """A server that holds no rate is asked for a few rates only, down to a hundredth."""
    server = Server({ONE: 0.0})
    assert largest_rate((ONE,), capacity_of(100), server) is None
    assert server.runs < 10


def test_lucky_rate_goes_down_until_it_holds_again() -> None:
    """A rate that was luck is lowered by steps of 5 %; one that never holds is none."""
    assert confirmed(100, lambda rate: rate <= 100) == 100
    assert confirmed(100, lambda rate: rate <= 92) == pytest.approx(100 * (1 - PRECISION) ** 2)
    assert confirmed(100, lambda _: False) is None


def test_single_images_wait_for_nobody() -> None:
    """Delays count for batches of several only, and entries that repeat count once."""
    choices = choices_of((2, 1, 2), (1, 4), (1.0, 0.0))
    shown = [(item.batch, item.contexts, item.max_delay_ms) for item in choices]
    assert shown == [(1, 1, 0), (1, 2, 0), (4, 1, 0), (4, 1, 1), (4, 2, 0), (4, 2, 1)]


@pytest.mark.parametrize(
    ("profile", "configured", "expected"),
    [
        (None, None, (1, 8)),
        (None, (16, 2), (2, 16)),
        (BatchRange(min=1, opt=8, max=32), None, (1, 8, 32)),
        (BatchRange(min=1, opt=8, max=32), (4, 64), (4,)),
        (BatchRange(min=16, opt=16, max=16), (4, 8), (16,)),
    ],
    ids=["any", "any-configured", "range", "range-configured", "none-fits"],
)
def test_batches_are_those_that_the_artifact_takes(
    profile: BatchRange | None, configured: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    """The configuration's sizes, as far as the artifact takes them, else its own."""
    assert batches_of(profile, configured, (8,)) == expected


@pytest.mark.parametrize(
    ("profile", "configured", "note"),
    [
        (None, (16, 2), ""),
        (BatchRange(min=1, opt=8, max=32), None, ""),
        (BatchRange(min=1, opt=8, max=32), (4, 8), ""),
        (BatchRange(min=1, opt=8, max=32), (64, 4), "batch 64 of `load.batches`: it takes 1 to 32 images"),
        (
            BatchRange(min=16, opt=16, max=16),
            (8, 4),
            "batch 4, 8 of `load.batches`: it takes 16 images, so that its own sizes were tried: 16",
        ),
    ],
    ids=["any", "its own", "all fit", "one does not fit", "none fits"],
)
def test_batches_that_an_artifact_does_not_take_are_named(
    profile: BatchRange | None, configured: tuple[int, ...] | None, note: str
) -> None:
    """Nothing of the configuration is replaced in silence."""
    assert refused_batches(profile, configured) == note
