"""A network wherever it may go another way through forward than a trace of it: its outputs, and its conditions.

torch traces one way. What is made of a trace is compared with the network at the sizes of all other ways.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.experimental import _config

from model_artifacts.errors import ExportError, one_line, out_of_memory
from model_artifacts.records import Precision
from model_artifacts.sessions.arithmetic import tensors, torch_batch
from model_artifacts.sessions.torch_model import DTYPES, Typed, TypedInputs
from pipeline.config.axes import shown_sizes
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.probe import inputs_at, probe_batch, taking
from pipeline.stages.common.sizes.axes import INPUT, dims_of
from pipeline.stages.common.sizes.conditions import BATCH, conditions_of, noting_branches, quiet
from pipeline.stages.common.sizes.expected import expected_of
from pipeline.stages.common.sizes.search import LARGEST_BATCH, Trial, drawn_sizes, other_ways, where_broken
from pipeline.stages.common.sizes.traces import require_trace, without_checks
from pipeline.stages.common.tensors.axes import what_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from pipeline.config.axes import Sizes
    from pipeline.planning.project import Project
    from pipeline.stages.common.sizes.axes import Axes
    from pipeline.stages.common.sizes.conditions import Condition, Conditions
    from pipeline.stages.common.sizes.expected import Expected
    from pipeline.stages.common.sizes.search import Ranges

_FX: Any = _config
"""torch.fx's settings, whose methods have no types."""
_SAMPLES = 2
"""The batch at other sizes, of a graph."""
_BYTES = 2**27
"""The outputs to hold at once, in bytes."""
_FIX = (
    "take the branch on the size out of forward, or narrow the range in `profiles` so that the network goes one way; a "
    "batch size other than the configuration's own counts, too, since an ONNX file takes any"
)


class Restored:
    """The network in FP32 as it was before its export, restored when it is first needed."""

    def __init__(
        self,
        project: Project,
        axes: Axes,
        samples: int = _SAMPLES,
        fix: str = _FIX,
        precision: Precision = Precision.FP32,
    ) -> None:
        """Name the network.

        Args:
            project: the source stage must have run.
            axes: the dynamic axes beside the batch.
            samples: the batch at sizes that name none. It is compared, however large: a module may take no smaller one.
            fix: advice about a difference on another way.
            precision: the type that it computes in.
        """
        self.project = project
        self.axes = axes
        self._samples = samples
        self._fix = fix
        self._precision = precision

    @cached_property
    def model(self) -> nn.Module:
        """The network with its weights, in its type: not folded and not traced."""
        narrow = DTYPES[self._precision] is not torch.float32
        return self.typed() if narrow else restore_model(self.project)

    def expected(self, trial: Trial) -> Expected:
        """Run the network at some sizes.

        Raises:
            ExportError: it takes no such samples, or more than are compared.
        """
        sizes, batch = self._apart(trial.sizes)
        if batch > max(LARGEST_BATCH, self._samples):
            raise ExportError(
                "what the network computes may depend on the batch size",
                where=trial.reason,
                expected=f"the same way through forward for a batch of any size, or another one in batches of at most "
                f"{LARGEST_BATCH}, in which it is compared",
                got=f"another one for a batch of {batch}",
                fix=self._fix,
            )
        names = tuple(spec.name for spec in self.project.source().outputs)
        with taking(what_of(self.project), trial.sizes, ExportError):
            found = expected_of(self.model, inputs_at(self.project, sizes), names, (batch,))
        where = f", {shown_sizes(sizes)}" if sizes else ""
        return with_reason(found._replace(where=where, precision=self._precision), trial.reason, self._fix)

    def follow(self, point: Sizes) -> tuple[Condition, ...]:
        """Trace the network at some sizes, and return the conditions of its own code.

        Raises:
            ExportError: it takes no samples of these sizes, or torch cannot trace it there.
        """
        sizes, batch = self._apart(point)
        if point:
            with taking(what_of(self.project), point, ExportError):
                expected_of(self.model, inputs_at(self.project, sizes), (), (batch,))
        # A network may keep something of the sizes that it has run at, such as positions: a trace would keep it, too.
        typed, given = self.typed(), self._samples_of(sizes, batch)
        auto: Any = torch.export.Dim.AUTO
        dims = tuple(
            {place: auto(min=dim.min, max=dim.max) for place, dim in more.items()} | {0: auto(min=1)}
            for more in dims_of(self.axes, len(given))
        )
        try:
            return self._conditions(typed, given, _by_parameter(dims))
        except Exception as exc:  # torch.export raises almost any type
            raise out_of_memory(exc) or ExportError(
                "the network goes a way through forward that torch cannot trace",
                where=", ".join(part for part in (self._precision.value, shown_sizes(point)) if part),
                expected="the same way at each size, or others that torch.export can trace",
                got=one_line(exc),
                fix=self._fix,
            ) from exc

    def trace(self) -> nn.Module:
        """Trace the network at its samples' own size as a graph is traced, and return the trace without its checks.

        Raises:
            ExportError: torch cannot trace it.
        """
        given = self._samples_of((), self._samples)
        batch = torch.export.Dim("batch", min=1)
        dims = tuple({0: batch} | more for more in dims_of(self.axes, len(given)))
        typed = self.typed()
        try:
            with quiet(), _FX.patch(backed_size_oblivious=True):  # as the exporter to ONNX has it
                try:
                    program = _export(typed, given, _by_parameter(dims), strict=False)
                except Exception as exc:
                    if out_of_memory(exc):
                        raise
                    program = _export(typed, given, _by_parameter(dims), strict=True)
        except Exception as exc:  # torch.export raises almost any type
            raise out_of_memory(exc) or ExportError(
                "torch cannot trace the network", where=self._precision.value, got=one_line(exc)
            ) from exc
        return without_checks(program)

    def typed(self) -> Typed:
        """Return a network of its own in its type, with inputs and outputs in float32."""
        several = len(self.project.source().inputs) > 1
        return (TypedInputs if several else Typed)(restore_model(self.project), DTYPES[self._precision]).eval()

    def _samples_of(self, sizes: Sizes, batch: int) -> tuple[torch.Tensor, ...]:
        return tensors(torch_batch(probe_batch(inputs_at(self.project, sizes), batch)))

    def _apart(self, sizes: Sizes) -> tuple[Sizes, int]:
        """Return the sizes of the axes beside the batch, and the batch."""
        return tuple(item for item in sizes if item[0] != BATCH), dict(sizes).get(BATCH, self._samples)

    def _conditions(self, typed: Typed, given: tuple[torch.Tensor, ...], dims: dict[str, Any]) -> tuple[Condition, ...]:
        """Trace the network as torch's exporter to ONNX does: by running it, else by its bytecode."""
        try:
            with quiet(), noting_branches(answers=True) as asked:
                program = _export(typed, given, dims, strict=False)
        except Exception as exc:
            if out_of_memory(exc):
                raise
        else:
            return conditions_of(program, self.axes, asked).ways
        with quiet(), noting_branches() as asked:
            program = _export(typed, given, dims, strict=True)
        found = conditions_of(program, self.axes, asked)
        return (*found.ways, *found.checks)  # a trace of bytecode asks in torch's own code alone


def _export(
    typed: Typed, given: tuple[torch.Tensor, ...], dims: dict[str, Any], *, strict: bool
) -> torch.export.ExportedProgram:
    return torch.export.export(
        typed, given, dynamic_shapes=dims, strict=strict, prefer_deferred_runtime_asserts_over_guards=True
    )


def _by_parameter(dims: tuple[dict[int, Any], ...]) -> dict[str, Any]:
    """Return the dynamic axes of several inputs by the parameter of `Typed.forward`, or of `TypedInputs.forward`."""
    return {"inputs": dims} if len(dims) > 1 else {INPUT: dims[0]}


def with_reason(expected: Expected, reason: str, fix: str = _FIX) -> Expected:
    """Return expected outputs whose difference is told by a condition that does not hold; unchanged for none."""
    return expected._replace(cause=f"another way through forward: {reason}", fix=fix) if reason else expected


def trials_of(conditions: Conditions, restored: Restored, ranges: Ranges, known: Sequence[Sizes]) -> list[Trial]:
    """Return the sizes to compare at, each once.

    The network itself is traced beside: torch.fx, which folds batch-norms, may have gone another way than it, as may
    any trace behind `is True`, and a trace of bytecode tells nothing of the network's code.

    Args:
        conditions: those of the trace.
        restored: the network.
        ranges: the sizes that what is made of the trace must take.
        known: sizes that are compared in any case, which are left out.

    Raises:
        ExportError: there are too many ways or sizes, or the network cannot be traced at some.
    """
    follow = restored.follow
    found = list(other_ways((*conditions.ways, *follow(())), ranges, follow))
    found += [Trial(sizes, str(item)) for item in conditions.checks for sizes in where_broken(item, ranges)]
    found += [Trial(sizes, "") for sizes in drawn_sizes(ranges.axes)]
    others = {frozenset(sizes) for sizes in known}
    first = {frozenset(trial.sizes): trial for trial in reversed(found)}
    return [trial for trial in found if first[frozenset(trial.sizes)] is trial and frozenset(trial.sizes) not in others]


def require_narrow_ways(
    restored: Restored, ranges: Ranges, trace: Callable[[], nn.Module], known: Sequence[Condition] = ()
) -> None:
    """Refuse a network in a narrow type whose trace does not hold for all sizes, unless it computes the same there.

    The trace is compared on each other way through forward that the network's code may take in this type. Folded and
    translated as the graph or the module is, it holds by the comparison in FP32: there the network's rounding is small.

    Args:
        restored: the network in the type.
        ranges: the sizes that the trace must take.
        trace: traces the network in the type, not folded.
        known: conditions that another trace in the type holds under.

    Raises:
        ExportError: the trace computes something else at some size, or the ways cannot be followed.
    """
    trials = list(other_ways((*known, *restored.follow(())), ranges, restored.follow))
    if not trials:
        return
    run = trace()
    for wanted in in_groups(map(restored.expected, trials)):
        require_trace(run, wanted, "the network's trace")


def in_groups(wanted: Iterator[Expected]) -> Iterator[list[Expected]]:
    """Yield expected outputs in groups of bounded memory."""
    group: list[Expected] = []
    for expected in wanted:
        group.append(expected)
        if sum(output.nbytes for item in group for outputs in item.outputs for output in outputs) > _BYTES:
            yield group
            group = []
    if group:
        yield group
