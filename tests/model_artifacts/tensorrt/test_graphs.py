"""CUDA graphs of batch sizes: kept by use, within a number and a memory, without captures once all sizes have come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.host import cuda
from model_artifacts.tensorrt import graphs
from model_artifacts.tensorrt.graphs import SizeGraphs
from tests.support.fake_cuda import FakeRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator


class Captures:
    """The graphs of a stream on a CUDA with memory in the host, and the number of their captures."""

    def __init__(self) -> None:
        self.stream = cuda.Stream()
        self.ran = self.number = 0
        self.graphs = SizeGraphs(self._run, self._capture)

    def _run(self) -> None:
        self.ran += 1

    def _capture(self) -> cuda.Graph:
        self.number += 1
        return self.stream.capture(lambda: None)

    def call(self, sizes: list[int]) -> int:
        """Call batches of these sizes; return how many of them had no graph."""
        return sum(self.graphs.called(size) is None for size in sizes)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """A GPU; at the end nothing on it may still be open."""
    fake = FakeRuntime(2**30)
    monkeypatch.setattr(cuda, "runtime", fake)
    yield fake
    assert fake.idle


@pytest.fixture
def kept(gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Captures]:
    """Graphs of eight sizes at most."""
    del gpu
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 8)
    captures = Captures()
    yield captures
    captures.graphs.close()
    captures.stream.close()


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        pytest.param([*range(1, 9)] * 20, 8, id="eight in turn"),
        pytest.param([*range(1, 10)] * 20, 8, id="nine in turn"),
        pytest.param([*range(1, 13)] * 100, 8, id="twelve in turn"),
        pytest.param(np.random.default_rng(0).integers(1, 13, 2000).tolist(), 12, id="at random"),
    ],
)
def test_sizes_in_turn_do_not_take_each_others_graphs(kept: Captures, sizes: list[int], most: int) -> None:
    """More sizes than graphs are kept cost no capture at each batch; the engine runs once before each capture."""
    kept.call(sizes)
    assert kept.number <= most
    assert kept.ran == kept.number
    assert len(kept.graphs) == 8


def test_sizes_of_today_get_the_graphs_of_yesterday(kept: Captures) -> None:
    """A server whose batch sizes change for good has graphs for the new ones before long."""
    kept.call([*range(1, 9)] * 200)
    before = kept.number
    kept.call([9, 10, 11, 12] * 1000)
    assert kept.number - before == 4
    assert kept.call([9, 10, 11, 12]) == 0


def test_sizes_that_came_once_are_forgotten(kept: Captures) -> None:
    """A server of images of any size counts a bounded number of shapes."""
    kept.call([*range(1, 20000)])
    assert len(kept.graphs._calls) <= 4096  # noqa: SLF001 - what it remembers


def test_a_size_that_must_have_a_graph_takes_the_rarest_ones(kept: Captures) -> None:
    """A benchmark prepares a size, and times its graph whatever was called before."""
    kept.call([*range(1, 9)] * 3 + [*range(2, 9)])
    kept.graphs.keep(9)
    assert len(kept.graphs) == 8
    assert kept.call([*range(2, 10)]) == 0
    assert kept.number == 9


@pytest.mark.parametrize(("megabytes", "most"), [(0, 64), (2, 32), (50, 2), (100, 1)])
def test_memory_bounds_the_graphs(gpu: FakeRuntime, megabytes: int, most: int) -> None:
    """Graphs that take memory are fewer, but one is always kept; sizes without one never capture in turn."""
    gpu.graph_bytes = megabytes * 2**20
    captures = Captures()
    captures.call([*range(1, 101)] * 5)
    assert len(captures.graphs) == captures.number == most
    captures.graphs.close()
    captures.stream.close()
