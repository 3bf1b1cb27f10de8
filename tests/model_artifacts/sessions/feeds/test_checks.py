"""Batches of an engine of several inputs, on a CUDA with memory in the host: what fills them, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import AxisRange, TensorSpec
from model_artifacts.sessions.engine import Engine
from model_artifacts.sessions.feeds.checks import require_batch, require_for_module
from tests.model_artifacts.sessions.test_engine_session import RANGE, downloaded, images, logits, uploaded
from tests.support.fake_cuda import FakeEngine, FakeRuntime
from tests.support.hosts import H100

if TYPE_CHECKING:
    import numpy.typing as npt


def tokens(count: int) -> npt.NDArray[np.int64]:
    """Return tokens whose sum is 1,000 for the first sample, 2,000 for the second, and so on."""
    return 500 * np.repeat(np.arange(1, count + 1)[:, None], 2, axis=1)


@pytest.mark.parametrize("cuda_graph", [False, True], ids=["kernels", "graph"])
def test_every_input_of_an_engine_is_filled_by_its_name(gpu: FakeRuntime, *, cuda_graph: bool) -> None:
    """From the host in any order of names, from the GPU, and from uploads, at every batch size."""
    engine = Engine(FakeEngine(gpu, RANGE, takes_tokens=True), H100)  # type: ignore[arg-type]  # a stand-in
    with engine.session(cuda_graph=cuda_graph) as run:
        for size in (1, 3, 1):
            expected = logits(size) + tokens(size).sum(axis=1, keepdims=True)
            batch: dict[str, Any] = {"tokens": tokens(size), "image": images(size)}
            np.testing.assert_allclose(run(batch), expected)
            run.upload(batch)
            run.enqueue()
            run.stream.synchronize()
            pairs = {name: uploaded(gpu, array) for name, array in batch.items()}
            there = run({name: array for name, (_, array) in pairs.items()})
            np.testing.assert_allclose(downloaded(there), expected)
            for memory, _ in pairs.values():
                memory.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"tokens": None}, r"(?s)other inputs than the batch.*image, tokens.*got: +image", id="one less"),
        pytest.param({"more": np.zeros(3)}, "other inputs than the batch", id="one more"),
        pytest.param({"tokens": tokens(2)}, "3, 2 samples for the inputs of one batch", id="another number"),
        pytest.param(
            {"tokens": tokens(3).astype(np.int32)},
            r"(?s)tokens: int64 \(1 to 12, 2\).*got: +tokens: int32",
            id="another type",
        ),
    ],
)
def test_other_inputs_than_the_engines_are_refused(gpu: FakeRuntime, change: dict[str, Any], message: str) -> None:
    """Nothing is filled by its place, cast, or left as the batch before had it."""
    engine = Engine(FakeEngine(gpu, RANGE, takes_tokens=True), H100)  # type: ignore[arg-type]  # a stand-in
    batch = {"image": images(3), "tokens": tokens(3), **change}
    with engine.session() as run, pytest.raises(RunError, match=message):
        run({name: array for name, array in batch.items() if array is not None})


def test_inputs_in_two_memories_are_refused(gpu: FakeRuntime) -> None:
    """A copy from the host would wait for nothing on the GPU."""
    engine = Engine(FakeEngine(gpu, RANGE, takes_tokens=True), H100)  # type: ignore[arg-type]  # a stand-in
    memory, array = uploaded(gpu, images(3))
    with engine.session() as run, pytest.raises(RunError, match="in this GPU's memory, and others in the host's"):
        run({"image": array, "tokens": tokens(3)})
    memory.close()


def test_a_refused_address_leaves_no_input_at_the_callers(gpu: FakeRuntime) -> None:
    """The first input is bound already where the second one is refused, and the next batch reads neither there."""
    loaded: Any = FakeEngine(gpu, RANGE, takes_tokens=True)
    with Engine(loaded, H100).session(cuda_graph=False) as run:
        batch = {"image": images(2), "tokens": tokens(2)}
        expected = run(batch)
        (memory, there), (other, row) = uploaded(gpu, images(2) + 1), uploaded(gpu, tokens(2))
        context = loaded.contexts[0]
        setting = context.set_address

        def refusing(name: str, pointer: int) -> None:
            if pointer == row.pointer:
                raise RunError("the engine does not accept a memory address")
            setting(name, pointer)

        context.set_address = refusing
        with pytest.raises(RunError, match="does not accept"):
            run({"image": there, "tokens": row})
        np.testing.assert_array_equal(run(batch), expected)
        assert memory.pointer not in context.addresses.values()
        memory.close()
        other.close()


LENGTHS = tuple(
    TensorSpec(
        name=name,
        shape=("batch", "sequence"),
        dtype="int64",
        layout="NC",
        ranges=(AxisRange(name="sequence", min=2, opt=3, max=4),),
    )
    for name in ("tokens", "mask")
)
DIFFERENT = r"(?s)different sizes of the axis 'sequence'.*3 of 'tokens', 4 of 'mask'.*pad or cut them alike"


def test_inputs_of_one_name_have_one_size() -> None:
    """An engine and a module take each size of the range, and the same in both inputs, as `load` does."""
    alike, other = [np.ones((2, 3), np.int64)] * 2, [np.ones((2, 3), np.int64), np.ones((2, 4), np.int64)]
    require_batch(LENGTHS, RANGE, alike)
    require_for_module("a module", LENGTHS, RANGE, dict(zip(("tokens", "mask"), alike, strict=True)))
    with pytest.raises(RunError, match=DIFFERENT):
        require_batch(LENGTHS, RANGE, other)
    with pytest.raises(RunError, match=DIFFERENT):
        require_for_module("a module", LENGTHS, None, dict(zip(("tokens", "mask"), other, strict=True)))
