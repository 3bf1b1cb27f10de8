"""Artifact × samples of other sizes → its rows, in the smallest and in the largest batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.sessions.feeds.batches import rows_of_batch
from pipeline.config.axes import shown_sizes
from pipeline.stages.common.probe import at_sizes
from pipeline.stages.common.rows import spans_of
from pipeline.stages.common.samples import to_batch
from pipeline.stages.validate.batches import run_batches
from pipeline.stages.validate.outputs import SizedRun
from pipeline.stages.validate.spec import sizes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_artifacts.records import Variant
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs
    from pipeline.planning.project import Project
    from pipeline.stages.validate.batches import BatchSizes

    Run = Callable[[Batch], Outputs]


def run_sizes(run: Run, project: Project, variant: Variant, batches: BatchSizes | int) -> tuple[SizedRun, ...]:
    """Run the samples of each other size that a variant takes, in its smallest and its largest batch.

    Args:
        run: a batch of samples → the artifact's outputs.
        project: the data stage must have run.
        variant: the variant.
        batches: its batch sizes; or the most samples of each size, which run as one batch, of a variant that is slow.

    Returns:
        a run for each size and batch; none for a variant without dynamic axes beside the batch.

    Raises:
        RunError: the artifact cannot run such samples, or its outputs have another shape for them than the network's.
    """
    found, own = [], project.source().preprocessing
    for item in sizes_of(project, variant):
        spec = at_sizes(own, item.sizes) if own else None
        images = to_batch(project.pixels(item.pixels), spec, variant.io.input)
        reference = np.load(project.file(item.reference))
        spans = spans_of(project.source(), item.shapes)
        count = min(item.samples, batches) if isinstance(batches, int) else item.samples
        both = (count,) if isinstance(batches, int) else (batches.smallest, batches.most)
        for size in dict.fromkeys(both):

            def load(start: int, stop: int, images: Batch = images) -> Batch:
                return rows_of_batch(images, slice(start, stop))

            what = f"the artifact, at {shown_sizes(item.sizes)},"
            rows = run_batches(run, load, count, batch=size, smallest=size, spans=spans, what=what)
            found.append(SizedRun(item, size, rows, reference[:count], spans))
    return tuple(found)
