"""The system under test: an artifact in the loader's own pool, with its joined batches."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.serving.batching import Batcher, Batching
from model_artifacts.serving.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    import numpy.typing as npt

    from model_artifacts.records import BatchRange, LoadSettings
    from model_artifacts.serving.pool import Runner
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.stages.load.loadgen import Answered

    Numbers = npt.NDArray[np.int64]


def rows_of(images: Batch, numbers: Numbers) -> Batch:
    """Return a batch of images by their numbers: a copy, as joined calls are; a single image is a view."""
    at: Any = slice(int(numbers[0]), int(numbers[0]) + 1) if len(numbers) == 1 else numbers
    if isinstance(images, dict):
        return {name: array[at] for name, array in images.items()}
    return images[at]


def chunks_of(count: int, batch: int, profile: BatchRange | None) -> list[tuple[range, int]]:
    """Return the batches that a query is cut into: the positions of their images, and their size.

    Args:
        count: the images of the query.
        batch: the most images in a batch.
        profile: the sizes that the artifact takes; a smaller batch is filled up to the least of them. None takes all.
    """
    least = profile.min if profile else 1
    cuts = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
    return [(cut, max(len(cut), least)) for cut in cuts]


class System:
    """An artifact that answers queries by the settings of a loader."""

    def __init__(self, batcher: Batcher, batch: int, profile: BatchRange | None) -> None:
        self._batcher = batcher
        self._batch = batch
        self._profile = profile
        self._failures: list[BaseException] = []

    def issue(self, numbers: Sequence[int], answered: Answered) -> None:
        """Queue the images of a query; each batch reports when it is answered.

        Raises:
            BaseException: an earlier batch failed, so that nothing of this run counts.
        """
        if self._failures:
            raise self._failures[0]
        for cut, size in chunks_of(len(numbers), self._batch, self._profile):
            chosen = np.resize(np.array([numbers[position] for position in cut], np.int64), size)
            self._batcher.submit(chosen).add_done_callback(self._report(cut, answered))

    def _report(self, cut: range, answered: Answered) -> Callable[[Future[Any]], None]:
        def report(found: Future[Any]) -> None:
            if (error := found.exception()) is not None:
                self._failures.append(error)
            answered(cut)

        return report

    def check(self) -> None:
        """Raise the error of the first batch that failed, if one did."""
        if self._failures:
            raise self._failures[0]


@contextmanager
def serving(
    runs: Sequence[Runner], images: Batch, settings: LoadSettings, profile: BatchRange | None
) -> Iterator[System]:
    """Serve an artifact as `load(contexts=…, batching=…)` does, until the block ends.

    Args:
        runs: runners, at least as many as `settings.contexts`.
        images: the images that queries name by their numbers.
        settings: the loader's settings.
        profile: the batch sizes that the artifact takes; None takes all.
    """

    def by_number(run: Runner) -> Runner:
        return lambda numbers: run(rows_of(images, numbers))

    pool = Pool([by_number(run) for run in runs[: settings.contexts]])
    largest = profile.max if profile else None
    batcher = Batcher(pool, Batching(settings.batch, settings.max_delay_ms), largest)
    try:
        yield System(batcher, settings.batch, profile)
    finally:
        batcher.close()
