"""Torch-TensorRT modules of several sizes: a trace that is right at each, and the axes of inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model_artifacts.errors import BuildError, ExportError
from model_artifacts.records import Precision
from model_artifacts.sessions.torch_model import DTYPES, ready_to_compile
from pipeline.adapters import torch_tensorrt_builder
from pipeline.config.axes import checked_sizes, named_inputs
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.probe import inputs_of, shape_of
from pipeline.stages.common.sizes.axes import Axes, require_free_axes
from pipeline.stages.common.sizes.conditions import conditions_of, noting_branches, quiet
from pipeline.stages.common.sizes.following import at_each_size, named_axes, require_following
from pipeline.stages.common.sizes.search import Ranges, Trial, reason_at
from pipeline.stages.common.sizes.traces import require_trace, without_checks
from pipeline.stages.common.sizes.ways import Restored, in_groups, require_narrow_ways, trials_of
from pipeline.stages.common.tensors.axes import require_axes, what_of

if TYPE_CHECKING:
    from torch import nn

    from model_artifacts.records import TensorSpec, Variant
    from pipeline.adapters.torch_tensorrt_builder import ModuleRequest
    from pipeline.planning.project import Project

_SAMPLES = 2
"""The batch at other sizes, if the module takes it."""
_FIX = "take the branch on the size out of forward, or narrow the range in `profiles` so that the network goes one way"


def inputs_with_ranges(project: Project, variant: Variant) -> tuple[TensorSpec, ...]:
    """Return the inputs of a module, with the names and the ranges of its profile's axes. Others keep their size.

    Raises:
        ConfigError: the inputs have no such axes, or a range does not fit the samples' own size.
    """
    specs = project.source().inputs
    axes = variant.profile.axes if variant.profile else ()
    if not axes:
        return specs
    require_axes(project, specs)
    return tuple(spec.with_ranges(axes) for spec in named_inputs(specs, project.config.data.axes, axes))


def outputs_with_axes(project: Project, request: ModuleRequest) -> tuple[TensorSpec, ...]:
    """Return the outputs of a module, with the names of the axes that follow its inputs.

    The network is restored for it: one that keeps something of the sizes it has run at would be traced another way.

    Args:
        project: the source stage must have run.
        request: the module.

    Raises:
        BuildError: the network takes no samples of some size, or its outputs follow them as its task does not allow.
    """
    source = project.source()
    if not request.has_axes:
        return source.outputs
    found = at_each_size(project, restore_model(project), checked_sizes(request.profile.axes), BuildError)
    require_following(found, source.task, BuildError, what_of(project))
    shapes = named_axes(found, [spec.name for spec in source.outputs])
    return tuple(
        spec.model_copy(update={"shape": (spec.shape[0], *shape)})
        for spec, shape in zip(source.outputs, shapes, strict=True)
    )


def require_every_way(project: Project, request: ModuleRequest) -> None:
    """Refuse a module whose trace does not hold for all of its sizes, unless it computes the same there.

    An engine has one way through forward, and Torch-TensorRT drops the checks of a trace. The trace is made in FP32 on
    the processor as the module's own will be made, and compared with the network: at the sizes that the gates will
    judge, on each other way that the network's code may take, where a condition of torch's own does not hold, and at
    sizes that are drawn. A module in another precision is compared, too, on the other ways that it takes there.

    Args:
        project: the source stage must have run.
        request: the module, with a range of batches or of other axes.

    Raises:
        BuildError: torch cannot trace the network; the trace computes something else at some size, or fails there; or
            its ways cannot be followed.
    """
    try:
        _require_every_way(project, request)
    except ExportError as exc:
        raise BuildError(str(exc)) from exc


def _require_every_way(project: Project, request: ModuleRequest) -> None:
    profile = request.profile
    twin = ready_to_compile(restore_model(project), Precision.FP32, shape_of(inputs_of(project)))
    with quiet(), noting_branches() as asked:
        program = torch_tensorrt_builder.trace(twin, request, torch.device("cpu"))
    axes = Axes(request.inputs, profile.axes)
    require_free_axes(program, axes)
    conditions = conditions_of(program, axes, asked)
    samples = max(profile.min, min(_SAMPLES, profile.max))
    restored = Restored(project, axes, samples, _FIX)
    judged = ((), *checked_sizes(profile.axes))
    ranges = Ranges(profile.axes, profile.max, profile.min)
    trials = [Trial(sizes, reason_at(conditions.ways, sizes)) for sizes in judged]
    trials += trials_of(conditions, restored, ranges, judged)
    run = without_checks(program)
    for wanted in in_groups(map(restored.expected, trials)):
        require_trace(run, wanted, "the module's trace")
    if DTYPES[request.precision] is not torch.float32:
        narrow = Restored(project, axes, samples, _FIX, request.precision)

        def traced() -> nn.Module:
            with quiet():
                return without_checks(torch_tensorrt_builder.trace(narrow.typed(), request, torch.device("cpu")))

        require_narrow_ways(narrow, ranges, traced)
