"""Joined batches: every caller gets its own rows and its own errors, however the calls come."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_artifacts.errors import BusyError, RunError, UsageError
from model_artifacts.serving.batching import Batcher, Batching
from model_artifacts.serving.pool import Pool

if TYPE_CHECKING:
    import numpy.typing as npt

    Batch = npt.NDArray[np.float32]

SLOW = 30_000.0
"""A delay in milliseconds that no test waits for: what comes earlier comes by another rule."""


def rows_of(*values: float) -> Batch:
    """Return images of one value each."""
    return np.array(values, np.float32)[:, None]


class Network:
    """Doubles its rows, refuses batches with a value below 0, and keeps the sizes of all batches."""

    def __init__(self, *, names: bool = False) -> None:
        self.sizes: list[int] = []
        self.names = names
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Semaphore(0)

    def __call__(self, batch: Batch) -> Any:
        """Run a batch."""
        self.sizes.append(len(batch))
        self.inside.release()
        assert self.gate.wait(30)
        if (batch < 0).any():
            raise RunError(f"a batch of {len(batch)} has a value below 0: {batch.min():g}")
        return {"double": 2 * batch, "same": batch} if self.names else 2 * batch


def until_waiting(batcher: Batcher, calls: int) -> None:
    """Wait until so many calls of other threads wait."""
    end = time.monotonic() + 30
    while batcher.waiting != calls:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_samples_of_other_shapes_are_not_joined() -> None:
    """Images of several sizes run in a batch for each size, in the order in which they came."""
    network = Network()
    network.gate.clear()
    batcher = Batcher(Pool((network,)), Batching(8, 0), None)
    with ThreadPoolExecutor(5) as threads:
        widths = (1, 1, 1, 2, 2)
        answers = []
        for number, width in enumerate(widths):
            answers.append(threads.submit(batcher, np.full((1, width), number, np.float32)))
            if number == 0:
                assert network.inside.acquire(timeout=30)
            else:
                until_waiting(batcher, number)
        network.gate.set()
        for number, (width, answer) in enumerate(zip(widths, answers, strict=True)):
            np.testing.assert_array_equal(answer.result(30), np.full((1, width), 2 * number, np.float32))
    batcher.close()
    assert network.sizes == [1, 2, 2]


@settings(suppress_health_check=[HealthCheck.too_slow])  # the lists are short; a busy machine makes them slowly
@given(
    calls=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=24),
    limit=st.integers(1, 9),
    contexts=st.integers(1, 3),
    delay=st.sampled_from([0.0, 0.5, 2.0]),
    wrong=st.sets(st.integers(0, 23), max_size=3),
)
def test_every_caller_gets_its_own_rows(
    calls: list[tuple[int, int]], limit: int, contexts: int, delay: float, wrong: set[int]
) -> None:
    """Whoever calls when, with how many rows, beside whose errors: the outputs are those of its own rows."""
    network = Network()
    batcher = Batcher(Pool([network] * contexts), Batching(limit, delay), None)
    begin = threading.Barrier(len(calls))

    def call(number: int) -> str:
        pause, count = calls[number]
        own = rows_of(*(100 * number + row + 1 for row in range(count)))
        given_rows = -own if number in wrong else own
        begin.wait()
        time.sleep(pause * 2e-4)
        try:
            found = batcher(given_rows)
        except RunError as exc:
            return f"{number in wrong} {str(exc) == f'a batch of {count} has a value below 0: {-own.max():g}'}"
        np.testing.assert_array_equal(found, 2 * own)
        return f"{number in wrong} True"

    with ThreadPoolExecutor(len(calls)) as threads:
        assert [*threads.map(call, range(len(calls)))] == [f"{number in wrong} True" for number in range(len(calls))]
    batcher.close()
    assert max(network.sizes) <= max(limit, *(count for _, count in calls))


def test_calls_that_come_in_time_are_one_batch() -> None:
    """A batch that is full runs at once, whatever its delay; several outputs are split by their names."""
    network = Network(names=True)
    batcher = Batcher(Pool([network]), Batching(6, SLOW), None)
    with ThreadPoolExecutor(3) as threads:
        found = [*threads.map(batcher, [rows_of(1, 2), rows_of(3), rows_of(4, 5, 6)])]
    assert network.sizes == [6]
    assert [item["double"].ravel().tolist() for item in found] == [[2, 4], [6], [8, 10, 12]]
    assert [item["same"].ravel().tolist() for item in found] == [[1, 2], [3], [4, 5, 6]]
    assert not any(np.shares_memory(found[0][name], found[1][name]) for name in found[0])
    batcher.close()


def test_what_waits_for_a_context_is_joined() -> None:
    """Calls that come while a batch runs are the next batch, as far as they fit, in their order."""
    network = Network()
    network.gate.clear()
    batcher = Batcher(Pool([network]), Batching(4, 0), None)
    with ThreadPoolExecutor(5) as threads:
        calls = [threads.submit(batcher, rows_of(0))]
        network.inside.acquire()
        for number, count in enumerate([2, 1, 2, 1], 1):
            calls.append(threads.submit(batcher, rows_of(*[number] * count)))
            until_waiting(batcher, number)
        network.gate.set()
        assert [call.result()[0, 0] for call in calls] == [0, 2, 4, 6, 8]
    assert network.sizes == [1, 3, 3]
    batcher.close()


def test_a_batch_above_the_limit_runs_alone() -> None:
    """It is never cut, because it ran as it is without batching."""
    network = Network()
    batcher = Batcher(Pool([network]), Batching(4, 0), largest=2)
    assert batcher.limit == 2
    np.testing.assert_array_equal(batcher(rows_of(1, 2, 3, 4, 5)), 2 * rows_of(1, 2, 3, 4, 5))
    assert network.sizes == [5]
    batcher.close()


def test_a_batch_that_is_no_array_of_the_host_runs_on_its_own_thread() -> None:
    """Arrays on the GPU are ordered by their thread's stream."""
    seen: list[tuple[Any, str]] = []

    def run(batch: Any) -> str:
        seen.append((batch, threading.current_thread().name))
        return "outputs"

    batcher = Batcher(Pool([run]), Batching(4, SLOW), None)
    assert batcher("on the GPU") == "outputs"
    assert seen == [("on the GPU", threading.current_thread().name)]
    batcher.close()


@pytest.mark.parametrize("closing", [True, False], ids=["closed", "too late"])
def test_a_call_that_cannot_be_answered_is_told_so(*, closing: bool) -> None:
    """A call that waits at the end, or longer than it may, gets an error; the one that runs gets its answer."""
    network = Network()
    network.gate.clear()
    batcher = Batcher(Pool([network], None if closing else 0.05), Batching(4, 0), None)
    with ThreadPoolExecutor(3) as threads:
        running = threads.submit(batcher, rows_of(1))
        network.inside.acquire()
        waiting = threads.submit(batcher, rows_of(2))
        if closing:
            until_waiting(batcher, 1)
            ending = threads.submit(batcher.close)
            with pytest.raises(RunError, match=r"(?s)the model is closed.*still waited at its end"):
                waiting.result()
            assert not ending.done()
        else:
            with pytest.raises(BusyError, match="the model is busy"):
                waiting.result()
        network.gate.set()
        np.testing.assert_array_equal(running.result(), rows_of(2))
    batcher.close()
    assert network.sizes == [1]
    with pytest.raises(RunError, match=r"(?s)the model is closed.*a call after its end"):
        batcher(rows_of(3))


@pytest.mark.parametrize("wait_seconds", [0.0, 0.001])
def test_waiting_for_others_is_not_waiting_for_a_context(wait_seconds: float) -> None:
    """A call that may wait less than the delay is no late one: a context is there for it."""
    network = Network()
    batcher = Batcher(Pool([network], wait_seconds), Batching(4, 100), None)
    with ThreadPoolExecutor(2) as threads:
        assert [item.tolist() for item in threads.map(batcher, [rows_of(1), rows_of(2)])] == [[[2]], [[4]]]
    assert len(batcher(rows_of(1, 2, 3, 4, 5))) == 5
    batcher.close()


def test_a_fork_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of the batcher lives on in a fork: a call there would wait without an end."""
    batcher = Batcher(Pool([Network()]), Batching(8, 0), None)
    assert batcher(rows_of(1)) == 2
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RunError, match=r"before this process was forked[\s\S]*post_fork"):
        batcher(rows_of(1))
    monkeypatch.undo()
    batcher.close()


def test_outputs_of_another_number_of_rows_are_no_answers() -> None:
    """They cannot be told apart; each call runs alone, as it would without batching."""
    sizes = []

    def run(batch: Batch) -> Batch:
        sizes.append(len(batch))
        return batch if len(batch) == 1 else batch[:1]

    batcher = Batcher(Pool([run]), Batching(2, SLOW), None)
    with ThreadPoolExecutor(2) as threads:
        assert [item.tolist() for item in threads.map(batcher, [rows_of(1), rows_of(2)])] == [[[1]], [[2]]]
    assert sizes == [2, 1, 1]
    batcher.close()


class _Panic(BaseException):
    """An error of a library that is no `Exception`, as extensions in Rust raise."""


def test_errors_of_every_kind_come_back_to_the_callers() -> None:
    """A thread that such an error ended would leave these callers, and all that come later, without an answer."""

    def run(batch: Batch) -> Batch:
        if (batch < 0).any():
            raise _Panic(f"{len(batch)} rows")
        return batch

    batcher = Batcher(Pool([run]), Batching(2, SLOW), None)
    with ThreadPoolExecutor(2) as threads:
        good, bad = threads.submit(batcher, rows_of(1)), threads.submit(batcher, rows_of(-1))
        assert good.result(30).tolist() == [[1]]
        assert str(bad.exception(30)) == "1 rows"
    assert batcher(rows_of(3, 4)).tolist() == [[3], [4]]
    batcher.close()


@pytest.mark.parametrize(
    ("size", "delay", "told"),
    [
        pytest.param(0, 1.0, "`max_size`: a whole number above 0", id="no size"),
        pytest.param(True, 1.0, "`max_size`: a whole number above 0", id="a flag"),
        pytest.param(4, -1.0, "`max_delay_ms`: a number of milliseconds", id="a delay below zero"),
        pytest.param(4, float("inf"), "`max_delay_ms`: a number of milliseconds", id="no end"),
    ],
)
def test_limits_that_are_none_are_refused(size: int, delay: float, told: str) -> None:
    """The message has the expected and the actual value."""
    with pytest.raises(UsageError, match=told):
        Batching(size, delay)
