"""The margin of an answer, and the parts of an output."""

from __future__ import annotations

import numpy as np
import pytest

from model_artifacts.errors import RunError
from pipeline.stages.common.rows import ALONE, Span, margins, of_each_output, part_squares, parts_of, rows_of


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
