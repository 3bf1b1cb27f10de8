"""A graph, compared with its network wherever the network may go another way through forward than the graph's trace.

torch's exporter traces one way, and drops the conditions that the trace holds under.
"""

from __future__ import annotations

import tempfile
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model_artifacts.errors import ExportError, one_line, out_of_memory
from model_artifacts.records import Graph
from model_artifacts.sessions.arithmetic import tensors, torch_batch
from model_artifacts.sessions.torch_model import Typed, TypedInputs
from pipeline.adapters import onnx_graph
from pipeline.config.axes import shown_sizes
from pipeline.planning.freshness import current
from pipeline.planning.steps import Step
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.probe import inputs_at, probe_batch, taking
from pipeline.stages.common.tensors.axes import dynamic_inputs, what_of
from pipeline.stages.export.agreement import expected_of, require_agreement
from pipeline.stages.export.axes import Axes, dims_of
from pipeline.stages.export.conditions import BATCH, conditions_of, noting_branches
from pipeline.stages.export.graph import INPUT, quiet
from pipeline.stages.export.search import LARGEST_BATCH, Ranges, Trial, drawn_sizes, other_ways, where_broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx
    from torch import nn

    from pipeline.config.axes import Sizes
    from pipeline.planning.project import Project
    from pipeline.stages.export.agreement import Expected
    from pipeline.stages.export.conditions import Condition, Conditions

_SAMPLES = 2
"""The batch at other sizes."""
_BYTES = 2**27
"""The outputs to hold at once, in bytes."""
_FIX = (
    "take the branch on the size out of forward, or narrow the range in `profiles` so that the network goes one way; a "
    "batch size other than the configuration's own counts, too, since an ONNX file takes any"
)


class _Restored:
    """The network in FP32 as it was before its export, restored when it is first needed."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.axes = Axes(dynamic_inputs(project), project.config.axes)

    @cached_property
    def model(self) -> nn.Module:
        return restore_model(self.project)

    def expected(self, trial: Trial) -> Expected:
        """Run the network at some sizes.

        Raises:
            ExportError: it takes no such samples, or more than are compared.
        """
        sizes, batch = _apart(trial.sizes)
        if batch > LARGEST_BATCH:
            raise ExportError(
                "what the network computes may depend on the batch size",
                where=trial.reason,
                expected=f"the same way through forward for a batch of any size, or another one in batches of at most "
                f"{LARGEST_BATCH}, in which it is compared with the graph",
                got=f"another one for a batch of {batch}",
                fix=_FIX,
            )
        names = tuple(spec.name for spec in self.project.source().outputs)
        with taking(what_of(self.project), trial.sizes, ExportError):
            found = expected_of(self.model, inputs_at(self.project, sizes), names, (batch,))
        return with_reason(found._replace(where=f", {shown_sizes(sizes)}" if sizes else ""), trial.reason)

    def follow(self, point: Sizes) -> tuple[Condition, ...]:
        """Trace the network at some sizes, and return the conditions of its own code.

        Raises:
            ExportError: it takes no samples of these sizes, or torch cannot trace it there.
        """
        sizes, batch = _apart(point)
        with taking(what_of(self.project), point, ExportError):
            expected_of(self.model, inputs_at(self.project, sizes), (), (batch,))
        several = len(self.project.source().inputs) > 1
        typed = (TypedInputs if several else Typed)(self.model, torch.float32).eval()
        given = tensors(torch_batch(probe_batch(inputs_at(self.project, sizes), batch)))
        auto: Any = torch.export.Dim.AUTO
        dims = tuple(
            {place: auto(min=dim.min, max=dim.max) for place, dim in more.items()} | {0: auto(min=1)}
            for more in dims_of(self.axes, len(given))
        )
        try:
            return self._conditions(typed, given, {"inputs": dims} if several else {INPUT: dims[0]})
        except Exception as exc:  # torch.export raises almost any type
            raise out_of_memory(exc) or ExportError(
                "the network goes a way through forward that torch cannot trace",
                where=shown_sizes(point),
                expected="the same way at each size, or others that torch.export can trace",
                got=one_line(exc),
                fix=_FIX,
            ) from exc

    def _conditions(self, typed: Typed, given: tuple[torch.Tensor, ...], dims: dict[str, Any]) -> tuple[Condition, ...]:
        """Trace the network as torch's exporter to ONNX does: by running it, else by its bytecode."""
        export = partial(torch.export.export, prefer_deferred_runtime_asserts_over_guards=True)
        with quiet(), noting_branches() as asked:
            try:
                return conditions_of(export(typed, given, dynamic_shapes=dims, strict=False), self.axes, asked).ways
            except Exception as exc:
                if out_of_memory(exc):
                    raise
            found = conditions_of(export(typed, given, dynamic_shapes=dims, strict=True), self.axes, asked)
            return (*found.ways, *found.checks)  # a trace of bytecode asks in torch's own code alone


def with_reason(expected: Expected, reason: str) -> Expected:
    """Return expected outputs whose difference is told by a condition that does not hold; unchanged for none."""
    return expected._replace(cause=f"another way through forward: {reason}", fix=_FIX) if reason else expected


def _apart(sizes: Sizes) -> tuple[Sizes, int]:
    """Return the sizes of the axes beside the batch, and the batch."""
    return tuple(item for item in sizes if item[0] != BATCH), dict(sizes).get(BATCH, _SAMPLES)


def require_every_way(
    project: Project,
    conditions: Conditions,
    graph: Graph,
    fp32: Path,
    remake: Callable[[nn.Module], onnx.ModelProto],
) -> None:
    """Refuse a graph whose trace does not hold for all sizes, unless it computes the same there.

    The graph is compared in FP32 with the network: on each other way through forward that its code may take, where a
    condition of torch's own does not hold, and at sizes that are drawn. A graph in another precision has the same ways;
    its FP32 graph is made again if there is no current one.

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
    if graph is not Graph.FP32:
        first = Step("export", f"{project.plan.model}/{Graph.FP32.value}")
        if current(project, first, partial(project.onnx, Graph.FP32)) is not None:
            return
    restored = _Restored(project)
    trials = _trials(project, conditions, restored.follow)
    if not trials:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = fp32
        if graph is not Graph.FP32:
            file = Path(folder) / "fp32.onnx"
            onnx_graph.save(remake(restore_model(project)), file)
        for wanted in _groups(map(restored.expected, trials)):
            require_agreement(file, wanted, project.command(step))


def _trials(project: Project, conditions: Conditions, follow: Callable[[Sizes], Sequence[Condition]]) -> list[Trial]:
    """Return the sizes to compare at, each once.

    Where the network's own code has asked for nothing, the network itself is traced: torch.fx, which folds batch-norms,
    may have gone another way than it, and a trace of bytecode tells nothing of the network's code.
    """
    config = project.config
    largest = max(*config.timed_batches, *(profile.max for profile in config.profiles))
    ranges = Ranges(config.axes, largest)
    asked = any(item.line for item in conditions.ways)
    found = list(other_ways(conditions.ways if asked else follow(()), ranges, follow))
    found += [Trial(sizes, str(item)) for item in conditions.checks for sizes in where_broken(item, ranges)]
    found += [Trial(sizes, "") for sizes in drawn_sizes(config.axes)]
    known = {frozenset(sizes) for sizes in config.checked_sizes}
    first = {frozenset(trial.sizes): trial for trial in reversed(found)}
    return [trial for trial in found if first[frozenset(trial.sizes)] is trial and frozenset(trial.sizes) not in known]


def _groups(wanted: Iterator[Expected]) -> Iterator[list[Expected]]:
    """Yield expected outputs in groups of bounded memory."""
    group: list[Expected] = []
    for expected in wanted:
        group.append(expected)
        if sum(output.nbytes for item in group for outputs in item.outputs for output in outputs) > _BYTES:
            yield group
            group = []
    if group:
        yield group
