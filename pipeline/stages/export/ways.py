"""A graph, compared with its network wherever the network may go another way through forward than the graph's trace.

torch's exporter traces one way, and drops the conditions that the trace holds under.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.records import Graph
from pipeline.adapters import onnx_graph
from pipeline.planning.freshness import current
from pipeline.planning.steps import Step
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.sizes.axes import Axes
from pipeline.stages.common.sizes.search import Ranges
from pipeline.stages.common.sizes.ways import Restored, in_groups, require_narrow_ways, trials_of
from pipeline.stages.common.tensors.axes import dynamic_inputs
from pipeline.stages.export.agreement import require_agreement

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from torch import nn

    from pipeline.planning.project import Project
    from pipeline.stages.common.sizes.conditions import Conditions


def require_every_way(
    project: Project,
    conditions: Conditions,
    graph: Graph,
    fp32: Path,
    remake: Callable[[nn.Module], onnx.ModelProto],
) -> None:
    """Refuse a graph whose trace does not hold for all sizes, unless it computes the same there.

    The graph is compared in FP32 with the network: on each other way through forward that its code may take, where a
    condition of torch's own does not hold, and at sizes that are drawn. For a graph in another precision, a trace of
    the network is compared, too, on the other ways that it takes there; its FP32 graph is made again if there is no
    current one.

    Args:
        project: the source stage must have run.
        conditions: those of the graph's trace.
        graph: the precision.
        fp32: the file, if the precision is FP32.
        remake: makes the FP32 graph of a network.

    Raises:
        ExportError: the graph computes something else at some size, or cannot be run there; or the ways cannot be
            followed.
    """
    step = Step("export", f"{project.plan.model}/{graph.value}")
    config = project.config
    axes = Axes(dynamic_inputs(project), config.axes)
    ranges = Ranges(config.axes, max(*config.timed_batches, *(profile.max for profile in config.profiles)))
    if graph is not Graph.FP32:
        narrow = Restored(project, axes, precision=graph.precision)
        require_narrow_ways(narrow, ranges, narrow.trace, conditions.ways)
        first = Step("export", f"{project.plan.model}/{Graph.FP32.value}")
        if current(project, first, partial(project.onnx, Graph.FP32)) is not None:
            return
    restored = Restored(project, axes)
    trials = trials_of(conditions, restored, ranges, config.checked_sizes)
    if not trials:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = fp32
        if graph is not Graph.FP32:
            file = Path(folder) / "fp32.onnx"
            onnx_graph.save(remake(restore_model(project)), file)
        for wanted in in_groups(map(restored.expected, trials)):
            require_agreement(file, wanted, project.command(step))
