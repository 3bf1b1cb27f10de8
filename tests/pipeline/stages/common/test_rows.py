"""The margin of an answer, and the parts of an output."""

from __future__ import annotations

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import Io, OutputForm
from pipeline.stages.common.rows import (
    ALONE,
    Span,
    as_shown,
    lifted,
    margins,
    of_each_output,
    part_squares,
    parts_of,
    rows_of,
    shown_rows,
    shown_share,
)


def test_the_margin_is_between_the_references_two_first_classes() -> None:
    """An artifact that turned them round has a negative one."""
    want = np.array([[1.0, 5.0, 3.0]])
    assert margins(want, want).tolist() == [2.0]
    assert margins(np.array([[9.0, 3.0, 4.0]]), want).tolist() == [-1.0]


def test_one_class_has_no_other() -> None:
    """Its margin is infinite."""
    assert margins(np.ones((2, 1)), np.ones((2, 1))).tolist() == [np.inf, np.inf]


def test_every_axis_is_cut_into_parts() -> None:
    """Axes count from 1, behind the batch. Long ones are cut into runs, and one of length 1 is the whole."""
    assert parts_of((2, 1)) == ("axis 1, entry 0", "axis 1, entry 1")
    assert len(parts_of((3, 16, 20))) == 39
    long = parts_of((1, 640))
    assert (len(long), long[0], long[1], long[-1]) == (
        256,
        "axis 2, entries 0 to 1",
        "axis 2, entries 2 to 4",
        "axis 2, entries 637 to 639",
    )
    assert parts_of((1,)) == ()


def test_squares_of_parts() -> None:
    """Each part has the sum of its own squares, for each sample apart."""
    rows = np.arange(12, dtype=np.float64).reshape(2, 6)
    found = part_squares(rows, (2, 3))
    first = np.square(rows[0].reshape(2, 3))
    assert found.shape == (2, 5)
    np.testing.assert_array_equal(found[0], [*first.sum(axis=1), *first.sum(axis=0)])
    assert part_squares(rows[:, :1], (1,)).shape == (2, 0)


def test_flattened_channels_are_told_apart() -> None:
    """Scores behind boxes on one long axis are runs of their own."""
    rows = np.ones((1, 84_000))
    rows[:, 80_000:] = 0
    squares = part_squares(rows, (84_000,))
    assert squares.shape == (1, 256)
    assert squares.sum() == 80_000
    assert (squares[0, -12:] == 0).all()


SPANS = (Span("boxes", (2, 2), slice(0, 4)), Span("scores", (3,), slice(4, 7)))
OUTPUTS = {"scores": np.ones((5, 3), np.float32), "boxes": np.zeros((5, 2, 2), np.float32)}


def test_outputs_lie_side_by_side_in_rows_by_their_names() -> None:
    """The order is that of the model, whatever the artifact's is, and back again."""
    rows = rows_of(OUTPUTS, SPANS)
    assert rows[0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    again = of_each_output(rows, SPANS)
    assert [*again] == ["boxes", "scores"]
    for name, values in again.items():
        np.testing.assert_array_equal(values, OUTPUTS[name])
    assert rows_of(np.zeros((5, 2, 2), np.float32)).shape == (5, 4)


@pytest.mark.parametrize(
    ("outputs", "spans", "message"),
    [
        pytest.param({"boxes": OUTPUTS["boxes"]}, SPANS, "other outputs", id="one less"),
        pytest.param({**OUTPUTS, "more": OUTPUTS["boxes"]}, SPANS, "other outputs", id="one more"),
        pytest.param(OUTPUTS["boxes"], SPANS, "got: +one output", id="one of several"),
        pytest.param(OUTPUTS, ALONE, "expected: one output", id="several of one"),
        pytest.param({**OUTPUTS, "scores": OUTPUTS["boxes"]}, SPANS, "another shape of output 'scores'", id="shape"),
    ],
)
def test_other_outputs_are_refused(outputs: object, spans: tuple[Span, ...], message: str) -> None:
    """Nothing is judged by a part of what an artifact gives."""
    with pytest.raises(RunError, match=rf"(?s){message}"):
        rows_of(outputs, spans)


TOP3, ALL = Io(output=OutputForm.TOP, top=3), Io(output=OutputForm.PROBABILITIES)
WANT = np.random.default_rng(3).normal(scale=3, size=(20, 8)).astype(np.float32)


def outputs_of(logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]], io: Io) -> object:
    """Return what an artifact with these logits gives."""
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    values = (wide / wide.sum(axis=1, keepdims=True)).astype(np.float32)
    if io.top is None:
        return values
    order = np.argsort(-logits, axis=1, kind="stable")[:, : io.top].astype(np.int32)
    return {"probabilities": np.take_along_axis(values, order, axis=1), "indices": order}


@pytest.mark.parametrize("io", [TOP3, ALL], ids=["top3", "probabilities"])
def test_right_answers_are_the_reference_s_logits(io: Io) -> None:
    """What an artifact shows goes back to logits, whatever is added to all of an image; so does an emulation."""
    moved = WANT + np.arange(20, dtype=np.float32)[:, None]
    for rows in (shown_rows(outputs_of(moved, io), io, 8), as_shown(moved, io)):
        np.testing.assert_allclose(lifted(rows, WANT), WANT, atol=2e-6)


def test_a_class_that_is_not_shown_lies_below_all_that_are() -> None:
    """A rank that the reference has otherwise is off by what lies between; all others are known no better."""
    got = WANT.copy()
    first = int(WANT[0].argmax())
    got[0, first] = -20  # the best class is lost
    found = lifted(shown_rows(outputs_of(got, TOP3), TOP3, 8), WANT)
    order = np.argsort(-got[0])[:3]
    assert found[0, first] < found[0, order].min()
    assert int(found[0].argmax()) == order[0]
    beyond = [at for at in range(8) if at not in {*order, first}]
    np.testing.assert_array_equal(found[0, beyond], WANT[0, beyond])
    np.testing.assert_allclose(found[1:], WANT[1:], atol=2e-6)


def test_probabilities_of_zero_are_below_the_others() -> None:
    """FP32 has no smaller ones, so that nothing is known of these logits."""
    want = np.array([[200.0, 0.0, -50.0]], np.float32)
    found = lifted(shown_rows(outputs_of(want, ALL), ALL, 3), want)
    np.testing.assert_allclose(found, want)
    other = np.array([[200.0, 190.0, -50.0]], np.float32)  # its second class has a probability that is no zero
    assert lifted(shown_rows(outputs_of(want, ALL), ALL, 3), other)[0, 1] < 120


def test_a_probability_below_zero_is_none() -> None:
    """It is no logarithm, and is not taken for a zero."""
    assert np.isnan(shown_rows(np.array([[1.5, -0.5]], np.float32), ALL, 2)).all()


def test_an_image_that_is_not_finite_stays_so() -> None:
    """A NaN is no rank, and leaves other images as they are."""
    for io in (TOP3, ALL):
        logits = WANT.copy()
        given = outputs_of(logits, io)
        values = given["probabilities"] if isinstance(given, dict) else given
        values[2, 0] = np.nan  # type: ignore[index]  # an array, either way
        found = lifted(shown_rows(given, io, 8), WANT)
        assert np.isnan(found[2]).all()
        assert np.isfinite(np.delete(found, 2, axis=0)).all()


GOOD = outputs_of(WANT, TOP3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"indices": np.full((20, 3), 8)}, "not those of different classes", id="outside"),
        pytest.param({"indices": np.zeros((20, 3), np.int32)}, "not those of different classes", id="twice"),
        pytest.param({"indices": np.zeros((20, 3), np.float32)}, "not those of different classes", id="fractions"),
        pytest.param({"probabilities": np.tile([0.1, 0.2, 0.3], (20, 1))}, "not in order", id="rising"),
        pytest.param({"probabilities": np.ones((20, 4), np.float32)}, "gives other outputs", id="too-many"),
        pytest.param({"more": np.ones((20, 3), np.float32)}, "gives other outputs", id="one-more"),
    ],
)
def test_a_top_k_of_another_form_is_refused(change: dict[str, object], message: str) -> None:
    """Nothing is compared that is no ranking of classes."""
    assert isinstance(GOOD, dict)
    with pytest.raises(RunError, match=message):
        shown_rows({**GOOD, **change}, TOP3, 8)


def test_the_share_of_what_is_shown() -> None:
    """Fixed bounds are as strict for the logits that are shown as for all."""
    even = np.ones((4, 100), np.float32)
    assert shown_share(even, Io(output=OutputForm.TOP, top=4)) == pytest.approx(0.2)
    assert shown_share(even, ALL) == 1
    assert shown_share(np.eye(4, dtype=np.float32), Io(output=OutputForm.TOP, top=1)) == 1
