"""Vectors of an embedding that an artifact moved too far to be found by."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.stages.validate import neighbours
from pipeline.stages.validate.metrics import Answers
from pipeline.stages.validate.neighbours import compare_neighbours

CIRCLE = np.array([[np.cos(turn), np.sin(turn)] for turn in np.linspace(0, 2 * np.pi, 8, endpoint=False)], np.float32)
"""Eight directions, each 45 degrees from its neighbours."""


def turned(vectors: np.typing.NDArray[np.float32], degrees: float) -> np.typing.NDArray[np.float32]:
    """Return vectors of two numbers, turned."""
    turn = np.radians(degrees)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    rotated: np.typing.NDArray[np.float32] = (vectors @ matrix.T).astype(np.float32)
    return rotated


@pytest.mark.parametrize(("degrees", "lost"), [(0, 0), (21, 0), (23, 8), (40, 8), (180, 8)])
def test_a_vector_is_lost_half_way_to_its_neighbour(degrees: float, lost: int) -> None:
    """Half the distance between neighbours 45 degrees apart is a turn by 22.06 degrees."""
    assert compare_neighbours(turned(CIRCLE, degrees), CIRCLE) == Answers(8, lost, 0, 0)


def test_lengths_do_not_count() -> None:
    """A search by cosine sees directions alone; the relative L2 judges lengths."""
    sizes = np.arange(1, 9, dtype=np.float32)[:, None]
    assert compare_neighbours(turned(CIRCLE, 20) * sizes, CIRCLE / sizes) == Answers(8, 0, 0, 0)


def test_kept_vectors_are_found_in_a_gallery_of_fp32() -> None:
    """A vector that counts as kept is nearer to the reference's own than to any other, whatever its noise."""
    random = np.random.default_rng(0)
    reference = random.normal(size=(300, 4)).astype(np.float32)
    vectors = (reference + random.normal(size=(300, 4)) * 0.2).astype(np.float32)
    own, others = (array / np.linalg.norm(array, axis=1, keepdims=True) for array in (vectors, reference))
    found = (own @ others.T).argmax(axis=1) == np.arange(300)

    answers = compare_neighbours(vectors, reference)

    assert 0 < int((~found).sum()) <= answers.lost < 300


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0])
def test_a_broken_vector_is_lost(broken: float) -> None:
    """A vector that is not finite, or has no direction, finds nothing."""
    vectors = CIRCLE.copy()
    vectors[3] = broken
    assert compare_neighbours(vectors, CIRCLE) == Answers(8, 1, 0, 0)


def test_an_image_that_is_there_twice_is_a_near_tie() -> None:
    """No precision tells two equal vectors apart; of equal vectors alone each one counts."""
    twice = np.concatenate([CIRCLE, CIRCLE[:1]])
    assert compare_neighbours(twice, twice) == Answers(7, 0, 0, 2)
    same = np.repeat(CIRCLE[:1], 5, axis=0)
    assert compare_neighbours(turned(same, 1), same) == Answers(5, 5, 0, 0)


def test_many_samples_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and a gallery of the first samples count the same where these hold the nearest neighbours."""
    vectors, reference = turned(CIRCLE, 23), CIRCLE
    whole = compare_neighbours(vectors, reference)
    monkeypatch.setattr(neighbours, "_AT_ONCE", 3)
    assert compare_neighbours(vectors, reference) == whole
    monkeypatch.setattr(neighbours, "GALLERY", 2)
    assert compare_neighbours(vectors, reference).lost == 4  # the two, and their neighbours on the other sides
