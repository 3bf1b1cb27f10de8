"""The system under test: every image is answered once, by a batch of its own number."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import BatchRange, LoadSettings
from pipeline.stages.load.system import rows_of, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.stages.load.system import System

IMAGES = np.arange(8, dtype=np.float32)[:, None]


_TICKETS = itertools.count(1000, 7)


class Network:
    """Keeps the batches that it has seen, and refuses image 7."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, batch: Any) -> Any:
        """Run a batch."""
        self.batches.append([int(value) for value in batch[:, 0]])
        if 7 in self.batches[-1]:
            raise RunError("image 7 is refused")
        return batch


class Query:
    """Waits for all answers of a query."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.tickets = [next(_TICKETS) for _ in numbers]
        self.left = set(self.tickets)
        self.calls = 0
        self.done = threading.Event()

    def __call__(self, tickets: Sequence[int]) -> None:
        """Note answers; each ticket comes once."""
        self.calls += 1
        for ticket in tickets:
            self.left.remove(ticket)
        if not self.left:
            self.done.set()


def send(system: System, query: Query) -> None:
    """Issue a query."""
    system.issue(query.tickets, query.numbers, query)


def settings(contexts: int = 1, batch: int = 1, delay: float = 0.0) -> LoadSettings:
    """Return settings of a loader."""
    return LoadSettings(contexts=contexts, batch=batch, max_delay_ms=delay)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("contexts", [1, 2])
def test_each_image_is_answered_once(batch: int, contexts: int) -> None:
    """A query is cut into batches of at most this size, whose images are those that it names."""
    network, query = Network(), Query(6, 5, 4, 3, 2, 1, 0)
    with serving([network] * 2, IMAGES, settings(contexts, batch), None) as system:
        send(system, query)
        assert query.done.wait(30)
        system.check()
    assert sorted(number for found in network.batches for number in found) == list(range(7))
    assert max(map(len, network.batches)) <= batch
    assert query.calls == len(network.batches)  # one call to LoadGen a batch


@pytest.mark.parametrize("contexts", [1, 3])
def test_many_images_at_once_are_cut_into_full_batches(contexts: int) -> None:
    """They are queued bit by bit, so that the first ones run meanwhile; only the last batch is smaller."""
    network, query = Network(), Query(*[number % 7 for number in range(1000)])
    with serving([network] * contexts, IMAGES, settings(contexts, 3), None) as system:
        send(system, query)
        assert query.done.wait(30)
        system.check()
    assert sorted(map(len, network.batches)) == [1, *[3] * 333]


def test_queries_of_one_image_are_joined() -> None:
    """Images that wait are one batch, as those of the loader's callers."""
    network = Network()
    queries = [Query(number) for number in range(4)]
    with serving([network], IMAGES, settings(1, 4, 60_000.0), None) as system:
        for query in queries:
            send(system, query)
        assert all(query.done.wait(30) for query in queries)
    assert network.batches == [[0, 1, 2, 3]]


def test_batches_are_filled_up_to_what_an_engine_takes() -> None:
    """The last batch of a fixed size repeats images, whose answers nobody waits for."""
    network, query = Network(), Query(0, 1, 2, 3, 4, 5)
    with serving([network], IMAGES, settings(1, 4), BatchRange(min=4, opt=4, max=4)) as system:
        send(system, query)
        assert query.done.wait(30)
    assert network.batches == [[0, 1, 2, 3], [4, 5, 4, 5]]


def test_failure_is_kept_and_ends_the_run() -> None:
    """A batch that fails is answered, so that LoadGen ends; the next query and the check raise its error."""
    network, query = Network(), Query(7)
    with serving([network], IMAGES, settings(), None) as system:
        send(system, query)
        assert query.done.wait(30)
        with pytest.raises(RunError, match="image 7"):
            system.check()
        with pytest.raises(RunError, match="image 7"):
            send(system, Query(0))


def test_single_image_is_a_view_and_a_batch_a_copy() -> None:
    """A call of one image copies nothing, as with the loader; a joined batch is gathered."""
    numbers = np.array([3], np.int64)
    assert np.shares_memory(rows_of(IMAGES, numbers), IMAGES)
    both = rows_of({"a": IMAGES, "b": IMAGES + 1}, np.array([1, 1], np.int64))
    assert isinstance(both, dict)
    assert {name: rows.tolist() for name, rows in both.items()} == {"a": [[1], [1]], "b": [[2], [2]]}
