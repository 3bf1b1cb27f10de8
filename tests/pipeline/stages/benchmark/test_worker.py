"""A variant's process: timed calls, clocks and the first batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import Clock, Layout, Link
from pipeline.stages.benchmark.messages import Ask, NoLink, Samples
from pipeline.stages.benchmark.worker import _link_of, first_batches, takes, time_module
from tests.support.hosts import H100
from tests.support.modules import TORCH, finished, on_an_h100

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.planning.project import Project


CPU = "cpu-x86_64"


def test_batch_outside_a_profile_is_not_taken(built: Project) -> None:
    """An engine gets batches of its range only; an artifact without a range takes any."""
    fixed = built.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB")
    dynamic = built.plan.variant("tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB")
    eager = built.plan.variant(f"tiny/{CPU}/eager-fp32")
    assert [batch for batch in (1, 2, 4, 5) if takes(fixed, batch)] == [1]
    assert [batch for batch in (1, 2, 4, 5) if takes(dynamic, batch)] == [1, 2, 4]
    assert [batch for batch in (1, 2, 4, 5) if takes(eager, batch)] == [1, 2, 4, 5]


def test_rates_that_cannot_be_measured_keep_nothing_from_being_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without room for one more copy has no rates, with the reason."""

    def full(_: object) -> Link:
        raise RunError("the GPU has too little free memory for a buffer")

    monkeypatch.setattr("pipeline.stages.benchmark.worker.measured_link", full)
    assert _link_of(H100) == NoLink("RunError: the GPU has too little free memory for a buffer")


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

    def pinned(_ask: object, session: Module) -> Samples:
        session.enqueue_with_copies()
        return Samples(Clock.PINNED, (1.0,))

    monkeypatch.setattr("pipeline.stages.benchmark.worker.timed_on_gpu", once)
    monkeypatch.setattr("pipeline.stages.benchmark.worker.timed_pinned", pinned)


@pytest.mark.usefixtures("module_clock")
def test_a_module_is_timed_by_every_clock() -> None:
    """Without a CUDA graph, with one, and from the host's memory; the layout of the images is kept."""
    found = time_module(cast("Any", Module()), Ask(1, 1, 0.0), np.zeros((1, 3, 2, 2), "f"), Layout.CHANNELS_LAST)
    assert [item.clock for item in found] == [Clock.GPU, Clock.GPU_GRAPH, Clock.COPIES, Clock.PINNED, Clock.HOST]
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
