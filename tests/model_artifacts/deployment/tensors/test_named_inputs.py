"""Arrays that callers hand over for a model of tensors: names in any form, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_artifacts.deployment.tensors.named_inputs import checked_inputs, given_inputs, no_pictures
from model_artifacts.errors import RunError
from model_artifacts.records import AxisRange, TensorSpec

ONE = (TensorSpec(name="tokens", shape=("batch", 2), dtype="int64", layout="NC"),)
TWO = (*ONE, TensorSpec(name="weights", shape=("batch", 2), dtype="float32", layout="NC"))
TOKENS, WEIGHTS = np.array([[1, 2], [3, 4]]), np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("batch", "inputs", "specs"),
    [
        pytest.param(TOKENS, {}, ONE, id="the one array"),
        pytest.param({"tokens": TOKENS}, {}, ONE, id="a mapping of one"),
        pytest.param(None, {"tokens": TOKENS}, ONE, id="a keyword"),
        pytest.param({"weights": WEIGHTS, "tokens": TOKENS}, {}, TWO, id="a mapping"),
        pytest.param(None, {"weights": WEIGHTS, "tokens": TOKENS}, TWO, id="keywords"),
    ],
)
def test_inputs_come_in_any_form(batch: Any, inputs: dict[str, Any], specs: tuple[TensorSpec, ...]) -> None:
    """And leave in the order of the artifact."""
    assert [*given_inputs(batch, inputs, specs)] == [spec.name for spec in specs]


@pytest.mark.parametrize(
    ("batch", "inputs", "message"),
    [
        pytest.param(None, {}, "got: +none", id="nothing"),
        pytest.param(TOKENS, {}, "got: +one ndarray without a name", id="no name"),
        pytest.param({"tokens": TOKENS}, {"weights": WEIGHTS}, "got: +a batch and keywords", id="both forms"),
        pytest.param(None, {"tokens": TOKENS, "wieghts": WEIGHTS}, "got: +tokens, wieghts", id="another name"),
    ],
)
def test_other_names_are_refused(batch: Any, inputs: dict[str, Any], message: str) -> None:
    """The message has the call to write."""
    with pytest.raises(RunError, match=rf"(?s){message}.*model\(tokens=…, weights=…\)"):
        given_inputs(batch, inputs, TWO)


def test_arrays_are_checked_by_their_inputs() -> None:
    """Types are not cast: an id beyond float32's whole numbers would become another one."""
    given = {"tokens": TOKENS, "weights": WEIGHTS[:, ::-1]}
    found = checked_inputs(given, TWO, lambda _: False)
    assert [*found] == ["tokens", "weights"]
    assert found["weights"].flags.c_contiguous
    for name, array, message in (
        ("tokens", TOKENS.astype(np.int32), r"got: +int32 \(2, 2\)"),
        ("tokens", TOKENS[0], r"got: +int64 \(2,\)"),
        ("tokens", TOKENS[:1], "1 of 'tokens', 2 of 'weights'"),
        ("tokens", 3, "got: +int"),
        ("weights", np.full((2, 2), np.nan, np.float32), "not finite"),
    ):
        with pytest.raises(RunError, match=message):
            checked_inputs({**given, name: array}, TWO, lambda _: False)


LENGTHS = (AxisRange(name="sequence", min=2, opt=3, max=4),)
ANY_LENGTH = tuple(spec.model_copy(update={"shape": ("batch", "sequence"), "ranges": LENGTHS}) for spec in TWO)


@pytest.mark.parametrize("near", [False, True], ids=["host", "GPU"])
def test_inputs_of_one_name_have_one_size(near: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Each length in the range is taken, and the same in all inputs, in the host's memory and in the GPU's."""
    given = {"tokens": np.ones((2, 3), np.int64), "weights": np.ones((2, 3), np.float32)}
    assert [array.shape for array in checked_inputs(given, ANY_LENGTH, lambda _: near).values()] == [(2, 3), (2, 3)]
    longer = {**given, "weights": np.ones((2, 4), np.float32)}
    with pytest.raises(RunError, match=r"(?s)different sizes of the axis 'sequence'.*3 of 'tokens', 4 of 'weights'"):
        checked_inputs(longer, ANY_LENGTH, lambda _: near)


def test_a_size_outside_of_the_range_is_refused() -> None:
    """The message says which sizes the input takes."""
    given = {"tokens": np.ones((2, 5), np.int64), "weights": np.ones((2, 5), np.float32)}
    said = r"(?s)tokens: int64 \(batch, sequence 2 to 4\).*got: +int64 \(2, 5\).*bring sequence into the range"
    with pytest.raises(RunError, match=said):
        checked_inputs(given, ANY_LENGTH, lambda _: False)
    with pytest.raises(RunError, match="hand over at least one sample"):
        checked_inputs(
            {"tokens": np.ones((0, 3), np.int64), "weights": np.ones((0, 3), np.float32)}, ANY_LENGTH, lambda _: False
        )


def test_arrays_in_the_engines_memory_stay_there() -> None:
    """The engine reads them where they lie; only their numbers of samples are compared."""
    found = checked_inputs({"tokens": TOKENS, "weights": WEIGHTS}, TWO, lambda _: True)
    assert found["tokens"] is TOKENS


def test_pictures_get_the_call_to_write() -> None:
    """Nothing prepares a picture for tensors."""
    assert "model(tokens=…, weights=…)" in str(no_pictures("predict", TWO))
