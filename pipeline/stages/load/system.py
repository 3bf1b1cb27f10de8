"""The system under test: an artifact in the loader's own pool, with its joined batches."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from itertools import cycle, groupby, islice, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from model_artifacts.serving.line import Line
from model_artifacts.serving.pool import WAITED, Pool, closed
from model_artifacts.serving.runners import run_joined
from model_artifacts.sessions.feeds.batches import each

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from model_artifacts.records import BatchRange, LoadSettings
    from model_artifacts.serving.pool import Runner
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.stages.load.loadgen import Answered

    Numbers = npt.NDArray[np.int64]
    Sample = tuple[float, int, int, Answered]
    """An image that waits: when it came, its ticket, its number, and whom to tell. A hundred thousand come in a second,
    and a class would cost as much as all else.
    """


_BATCHES_AT_ONCE = 64
"""The batches that are queued in one go. Of a million images offline, the first would wait for the last."""


def rows_of(images: Batch, numbers: Numbers) -> Batch:
    """Return a batch of images by their numbers: a copy, as joined calls are; a single image is a view."""
    at: Any = slice(int(numbers[0]), int(numbers[0]) + 1) if len(numbers) == 1 else numbers
    if isinstance(images, dict):
        return {name: array[at] for name, array in images.items()}
    return images[at]


class System:
    """An artifact that answers queries by the settings of a loader: images that wait are joined to batches."""

    def __init__(self, pool: Pool, images: Batch, settings: LoadSettings, profile: BatchRange | None) -> None:
        """Start the threads.

        Args:
            pool: the artifact's runners; `close` closes it.
            images: the images that queries name by their numbers.
            settings: the loader's settings.
            profile: the batch sizes that the artifact takes; None takes all.
        """
        self._images = images
        self._least = profile.min if profile else 1
        self._failures: list[BaseException] = []
        limit = min(settings.batch, profile.max) if profile else settings.batch
        self._line: Line[Sample] = Line(pool, limit, settings.max_delay_ms, self)

    def issue(self, tickets: Sequence[int], numbers: Sequence[int], answered: Answered) -> None:
        """Queue images that have come together.

        Args:
            tickets: the name of each image's answer.
            numbers: the number of each image.
            answered: called with the tickets of each batch once it has run.

        Raises:
            BaseException: an earlier batch failed, so that nothing of this run counts.
        """
        self.check()
        came, most = time.monotonic(), _BATCHES_AT_ONCE * self._line.limit
        for start in range(0, len(tickets), most):
            few = slice(start, start + most)
            samples = [*zip(repeat(came), tickets[few], numbers[few], repeat(answered))]
            self._line.put(samples, len(samples))

    def check(self) -> None:
        """Raise the error of the first batch that failed, if one did."""
        if self._failures:
            raise self._failures[0]

    def close(self) -> None:
        """Wait for the batches that run, and end the threads."""
        self._line.close(lambda _: self._failures.append(closed(WAITED)))

    def came(self, item: Sample) -> float:
        """Return the moment at which an image came."""
        return item[0]

    def take(self, waiting: deque[Sample], limit: int) -> tuple[list[Sample], int]:
        """Remove the images of the next batch."""
        count = min(limit, len(waiting))
        return [waiting.popleft() for _ in range(count)], count

    def run(self, run: Runner, group: list[Sample]) -> Callable[[], None]:
        """Run images as one batch, filled up to what the artifact takes, and return what reports their answers.

        A batch that fails is reported, too: LoadGen would wait for it without an end.
        """
        numbers = [number for _, _, number, _ in group]
        wanted = [*islice(cycle(numbers), max(len(numbers), self._least))]
        try:
            images = [each(self._images, itemgetter(slice(number, number + 1))) for number in wanted]
            run(images[0]) if len(images) == 1 else run_joined(run, images)
        except BaseException as exc:  # noqa: BLE001 - `check` raises it
            self._failures.append(exc)
        return partial(_report, group)


def _report(group: list[Sample]) -> None:
    for answered, samples in groupby(group, itemgetter(-1)):
        answered([ticket for _, ticket, _, _ in samples])


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
    system = System(Pool(runs[: settings.contexts]), images, settings, profile)
    try:
        yield system
    finally:
        system.close()
