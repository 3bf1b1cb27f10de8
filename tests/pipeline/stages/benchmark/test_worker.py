"""A variant's process: timed calls, clocks and the first batches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import Clock, Layout
from pipeline.stages.benchmark.messages import Ask, Samples
from pipeline.stages.benchmark.worker import first_batches, takes, time_module, timed
from tests.support.modules import TORCH, finished, on_an_h100

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.planning.project import Project


CPU = "cpu-x86_64"


def test_calls_are_timed_as_often_and_as_long_as_asked() -> None:
    """A round has at least so many runs, and goes on for at least so long."""
    often = timed(Clock.HOST, Ask(batch=1, runs=3, milliseconds=0.0), lambda: None)
    long = timed(Clock.HOST, Ask(batch=1, runs=1, milliseconds=20.0), lambda: time.sleep(0.001))
    assert len(often.milliseconds) == 3
    assert sum(long.milliseconds) >= 15
    assert len(long.milliseconds) > 1


def test_batch_outside_a_profile_is_not_taken(built: Project) -> None:
    """An engine gets batches of its range only; an artifact without a range takes any."""
    fixed = built.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB")
    dynamic = built.plan.variant("tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB")
    eager = built.plan.variant(f"tiny/{CPU}/eager-fp32")
    assert [batch for batch in (1, 2, 4, 5) if takes(fixed, batch)] == [1]
    assert [batch for batch in (1, 2, 4, 5) if takes(dynamic, batch)] == [1, 2, 4]
    assert [batch for batch in (1, 2, 4, 5) if takes(eager, batch)] == [1, 2, 4, 5]


class Module:
    """A session that never runs; its timings are replaced."""

    def __init__(self, trouble: str = "") -> None:
        self.trouble, self.graph_trouble = trouble, ""

    def upload(self, *_: object) -> None:
        """Take a batch."""

    def enqueue_kernels(self) -> None:
        """Run."""

    def enqueue(self) -> None:
        """Replay, or find out that it cannot be captured."""
        if self.trouble:
            self.graph_trouble = self.trouble
            raise RunError("cannot be captured", got=self.trouble)

    def enqueue_with_copies(self) -> None:
        """Replay with copies around it."""
        self.enqueue()

    def __call__(self, *_: object) -> None:
        """Run from the host's memory."""


@pytest.fixture
def module_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a GPU's clock be one call."""

    def once(clock: Clock, _ask: object, _run: object, enqueue: Callable[[], None]) -> Samples:
        enqueue()
        return Samples(clock, (1.0,), (2.0,))

    monkeypatch.setattr("pipeline.stages.benchmark.worker.timed_on_gpu", once)


@pytest.mark.usefixtures("module_clock")
def test_a_module_is_timed_by_every_clock() -> None:
    """Without a CUDA graph, with one, and from the host's memory; the layout of the images is kept."""
    found = time_module(cast("Any", Module()), Ask(1, 1, 0.0), np.zeros((1, 3, 2, 2), "f"), Layout.CHANNELS_LAST)
    assert [item.clock for item in found] == [Clock.GPU, Clock.GPU_GRAPH, Clock.COPIES, Clock.HOST]
    assert {(item.layout, item.note) for item in found} == {(Layout.CHANNELS_LAST, "")}


@pytest.mark.usefixtures("module_clock")
def test_a_module_without_a_cuda_graph_says_why() -> None:
    """A module that cannot be captured is timed without a CUDA graph, and the samples have the reason."""
    module = cast("Any", Module("operation not permitted when stream is capturing"))
    for _ in range(2):
        found = time_module(module, Ask(1, 1, 0.0), np.zeros((1, 3, 2, 2), "f"), Layout.CONTIGUOUS)
        assert [item.clock for item in found] == [Clock.GPU, Clock.HOST]
        assert {item.note for item in found} == {"no CUDA graph: operation not permitted when stream is capturing"}


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("torch_compile-fp16-b1-2-4-ws16MiB", [1, 2, 4]),
        ("dynamo-fp16-b1-2-4-ws16MiB", [1]),
        ("dynamo-fp16-b1-ws16MiB", [1]),
        ("eager-fp16", [1]),
    ],
)
def test_a_module_is_ready_when_it_is_compiled(built: Project, name: str, batches: list[int]) -> None:
    """A cold start ends with the first result; just in time, when every size of the profile has been compiled."""
    project = on_an_h100(built)
    assert first_batches(project, finished(project, project.plan.variant(f"tiny/{TORCH}/{name}"))) == batches
