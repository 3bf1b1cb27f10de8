"""Batches of engines, as far as they show without a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import BatchRange, TensorSpec
from model_artifacts.sessions.engine import Engine, Session
from tests.support.hosts import H100

BATCHES = BatchRange(min=2, opt=4, max=8)


# Batches, which are checked before anything is put on a GPU.


def loaded(batches: BatchRange = BATCHES) -> Any:
    """Return the facts of an absent engine: (2 to 8, 3, 4, 4) → (batch, 10)."""
    image = TensorSpec(name="image", shape=("batch", 3, 4, 4), dtype="float32", layout="NCHW")
    logits = TensorSpec(name="logits", shape=("batch", 10), dtype="float32", layout="NC")
    return SimpleNamespace(inputs=(image,), outputs=(logits,), batches=batches)


def session(batches: BatchRange = BATCHES) -> Session:
    """Return a session that has no buffers yet."""
    nothing: Any = None
    return Session(loaded(batches), nothing, nothing, nothing, cuda_graph=False)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 3, 4, 4), "float32"),
        ((9, 3, 4, 4), "float32"),
        ((0, 3, 4, 4), "float32"),
        ((2, 1, 4, 4), "float32"),
        ((2, 3, 4, 5), "float32"),
        ((3, 4, 4), "float32"),
        ((), "float32"),
        ((2, 3, 4, 4), "float64"),
        ((2, 3, 4, 4), "float16"),
        ((2, 3, 4, 4), "uint8"),
    ],
)
def test_batch_that_the_engine_does_not_take(shape: tuple[int, ...], dtype: str) -> None:
    """Another size, shape or type is refused with expected and got."""
    with pytest.raises(RunError) as caught:
        session()(np.zeros(shape, dtype))
    assert str(caught.value).splitlines()[:3] == [
        "the engine takes other batches",
        "  expected: float32 (2 to 8, 3, 4, 4), contiguous",
        f"  got:      {dtype} {shape}",
    ]


def test_fixed_batch_is_said_as_one_number() -> None:
    """An engine of one batch size says that size."""
    with pytest.raises(RunError, match=r"expected: float32 \(4, 3, 4, 4\), contiguous"):
        session(BatchRange(min=4, opt=4, max=4))(np.zeros((1, 3, 4, 4), np.float32))


def test_batch_that_is_not_contiguous() -> None:
    """A batch whose numbers do not lie one after another is refused with its strides, rather than copied in secret."""
    batch = np.zeros((2, 4, 4, 3), np.float32).transpose(0, 3, 1, 2)
    with pytest.raises(RunError, match=r"got: +float32 \(2, 3, 4, 4\) with strides \(192, 4, 48, 12\)"):
        session()(batch)


def test_upload_checks_the_batch() -> None:
    """An upload for timing is checked like a batch that runs."""
    with pytest.raises(RunError, match="the engine takes other batches"):
        session().upload(np.zeros((1, 3, 4, 4), np.float32))


def test_preparing_a_size_that_the_engine_does_not_take() -> None:
    """A size outside the profile is refused before the library sees it."""
    with pytest.raises(RunError, match=r"got: +float32 \(9, 3, 4, 4\)"):
        session()._shape_for(((9, 3, 4, 4),))  # noqa: SLF001 - `prepare` needs buffers


def test_session_without_buffers_has_nothing_to_give_back() -> None:
    """Closing a session that never got its memory does nothing."""
    with ExitStack() as stack:
        stack.callback(session().close)


def test_a_batch_before_prepare_is_refused() -> None:
    """There is nothing to enqueue yet."""
    for call in (session().enqueue, session().enqueue_kernels, session().enqueue_with_copies):
        with pytest.raises(RunError, match="no batch is prepared"):
            call()


def test_engine_tells_what_it_takes() -> None:
    """Input, output and batch range are those of the loaded engine."""
    engine = Engine(loaded(), H100)
    assert (engine.inputs[0].name, [item.name for item in engine.outputs], engine.batches) == (
        "image",
        ["logits"],
        BATCHES,
    )
