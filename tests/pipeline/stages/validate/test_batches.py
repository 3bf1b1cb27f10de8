"""Batches of a validation: sizes, rows and extreme images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.records import BatchRange, Interpolation, Preprocessing
from pipeline.stages.validate.batches import check_rows, checked_sizes, extreme_images, run_batches

if TYPE_CHECKING:
    import numpy.typing as npt


def test_batches_cover_every_sample_once() -> None:
    """Samples that do not fill the last batch are run, too, in their order."""
    source = np.arange(70, dtype=np.float32).reshape(70, 1)
    out = run_batches(lambda batch: batch * 2, lambda start, stop: source[start:stop], 70)
    assert np.array_equal(out, source * 2)


# Batches of an engine.


def sizes_of(samples: int, batch: int, smallest: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Run samples whose only number is their index; return the sizes of the batches, and the results."""
    source = np.arange(samples, dtype=np.float32).reshape(samples, 1)
    sizes: list[int] = []

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        sizes.append(len(images))
        return images * 2

    return sizes, run_batches(run, lambda start, stop: source[start:stop], samples, batch=batch, smallest=smallest)


@pytest.mark.parametrize(
    ("samples", "batch", "smallest", "sizes"),
    [
        (10, 4, 1, [4, 4, 2]),
        (10, 4, 4, [4, 4, 4]),
        (3, 8, 8, [8]),
        (8, 8, 8, [8]),
        (5, 4, 3, [4, 3]),
        (1, 1, 1, [1]),
    ],
)
def test_batches_are_as_large_as_the_engine_takes(samples: int, batch: int, smallest: int, sizes: list[int]) -> None:
    """Only the last batch is smaller, and it is filled up to the smallest that the engine takes."""
    assert sizes_of(samples, batch, smallest)[0] == sizes


@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_filled_batches_are_cut_again(samples: int, batch: int, data: st.DataObject) -> None:
    """Every sample has its own result, in order, and no filler is left, at any batch size."""
    smallest = data.draw(st.integers(1, batch))
    sizes, results = sizes_of(samples, batch, smallest)
    assert results.ravel().tolist() == [2.0 * index for index in range(samples)]
    assert all(smallest <= size <= batch for size in sizes)


# Batch sizes and rows.


@pytest.mark.parametrize(
    ("profile", "sizes"),
    [
        (BatchRange(min=1, opt=1, max=1), (1,)),
        (BatchRange(min=8, opt=8, max=8), (8,)),
        (BatchRange(min=1, opt=8, max=32), (1, 8, 17, 32)),
        (BatchRange(min=1, opt=2, max=4), (1, 2, 3, 4)),
        (BatchRange(min=1, opt=2, max=2), (1, 2)),
        (BatchRange(min=2, opt=2, max=4), (2, 3, 4)),
        (BatchRange(min=8, opt=8, max=9), (8, 9)),
    ],
)
def test_checked_sizes_are_the_profile_s_and_an_odd_one(profile: BatchRange, sizes: tuple[int, ...]) -> None:
    """The smallest, the best, the largest, and one from the middle that kernels do not like."""
    assert checked_sizes(profile) == sizes


@given(st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300)).map(sorted))
def test_checked_sizes_are_taken(found: list[int]) -> None:
    """Every checked size is in the batch range, and one is odd if the range has an odd size inside."""
    profile = BatchRange(min=found[0], opt=found[1], max=found[2])
    sizes = checked_sizes(profile)
    assert all(map(profile.takes, sizes))
    assert any(size % 2 for size in sizes) or profile.is_fixed


def checked(mix: float, size: int) -> tuple[float, float]:
    """Return the check's result for a runner that adds a share of each row's neighbour to the row."""
    source = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return images + mix * np.roll(images, 1, axis=0)

    (row,) = check_rows(run, lambda start, stop: source[start:stop], source, size)
    return row.reference_l2, row.relative_l2


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_rows_that_are_independent_pass(size: int) -> None:
    """A runner that treats each row for itself moves none, at any batch size, more than there are samples included."""
    assert checked(0.0, size) == (0.0, 0.0)


@pytest.mark.parametrize("size", [2, 3, 7, 64])
def test_rows_that_depend_on_their_neighbours_are_found(size: int) -> None:
    """A thousandth of a neighbour is seen."""
    assert checked(1e-3, size)[1] > 1e-4


@pytest.mark.parametrize(
    ("samples", "size", "again"), [(100, 32, 0), (100, 64, 0), (20, 32, 1), (100, 48, 2), (32, 32, 0)]
)
def test_logits_that_are_known_are_not_computed_again(samples: int, size: int, again: int) -> None:
    """The check of the batch size that all samples ran with takes their logits, and gives the same result.

    It runs only the first batch as it is, in another order, and beside copies; and all of its batches if one of them
    was smaller.
    """
    source = np.random.default_rng(0).normal(size=(samples, 4)).astype(np.float32)
    batches: list[int] = []

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        batches.append(len(images))
        return images * 2

    def load(start: int, stop: int) -> npt.NDArray[np.float32]:
        return source[start:stop]

    known = run_batches(run, load, samples, batch=size)
    batches.clear()
    found = check_rows(run, load, source, size, known)
    assert batches == [size] * (3 + again)
    assert found == check_rows(run, load, source, size)


@pytest.mark.parametrize("channels", [1, 3])
def test_extreme_images_are_black_white_and_both(channels: int) -> None:
    """Nothing of them is between black and white, and the third has as much of one as of the other."""
    spec = Preprocessing(
        resize=8, crop=8, interpolation=Interpolation.BILINEAR, mean=(0.5,) * channels, std=(0.5,) * channels
    )
    images = extreme_images(spec)
    assert images.shape == (3, 8, 8, channels)
    assert [image.mean() for image in images] == [0, 255, 127.5]
    assert set(np.unique(images)) == {0, 255}
    wide = spec.model_copy(update={"crop": (4, 6)})
    assert extreme_images(wide).shape == (3, 4, 6, channels)
