"""Model → ONNX in FP32, FP16 and BF16 (`<model>/onnx/`): fold batch-norms in FP32, cast, export.

A model that is an ONNX file is upgraded instead, gets a dynamic batch, and is folded and cast as a graph.
"""

from __future__ import annotations

import gc
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from model_artifacts.errors import ExportError
from model_artifacts.host.environment import now, tools
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.host.terminal import size_phrase
from model_artifacts.records import Graph, Task
from model_artifacts.sessions.torch_model import DTYPES, Typed, TypedInputs, fold_batch_norms
from pipeline.adapters import onnx_graph, onnx_rewrites
from pipeline.config.axes import shown_sizes
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import OnnxRecord, TensorCast
from pipeline.stages.common.console import say_casts
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.probe import inputs_at, inputs_of, shape_of, taking
from pipeline.stages.common.sizes.axes import Axes
from pipeline.stages.common.sizes.conditions import Conditions
from pipeline.stages.common.sizes.expected import expected_of
from pipeline.stages.common.sizes.following import at_each_size, named_axes, require_following
from pipeline.stages.common.sizes.search import reason_at
from pipeline.stages.common.sizes.ways import with_reason
from pipeline.stages.common.tensors.axes import dynamic_inputs, require_axes, what_of
from pipeline.stages.export.agreement import require_agreement
from pipeline.stages.export.axes import name_outputs
from pipeline.stages.export.graph import to_onnx
from pipeline.stages.export.own_graph import make_fp32, narrow, require_dynamic, require_same
from pipeline.stages.export.rewrites import rewritten
from pipeline.stages.export.ways import require_every_way

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from torch import nn

    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.stages.common.sizes.expected import Expected

OPSETS = {Graph.FP32: 17, Graph.FP16: 17, Graph.BF16: 22}
"""Opset of each graph.

17 is the last that TensorRT 8.6's parser reads (onnx-tensorrt 8.6-GA, docs/operators.md); all later runtimes read it,
too. Operators take bfloat16 from 22 on.
"""

_EXTERNAL_DATA_BYTES = 2**31 - 2**20
"""Most bytes of weights in one file: a protobuf message ends at 2 GiB, and larger weights need a file beside it."""

_CAST_VALUES = 2**22
"""Number of values whose cast is counted at once."""


def make_onnx(project: Project, model: nn.Module, graph: Graph) -> OnnxRecord:
    """Export the model in one precision, with a dynamic batch axis.

    Args:
        project: the source stage must have run.
        model: the restored model, in FP32, which has run at no size; it may be cast.
        graph: the precision.

    Raises:
        ExportError: torch cannot trace the model, its batch size or a dynamic axis is fixed, the result is not valid
            ONNX or computes something else than the model, the weights are too large for one file, or the graph has
            nothing for a rewrite of the configuration.
        ConfigError: the inputs have no such dynamic axes, or a range does not fit the samples' own size.
        RecordError: the source's record is missing or damaged.
        StorageError: the results cannot be written.
        NewerRecordError: a newer version of this project wrote the present record.
    """
    refuse_newer(project.paths.onnx_record(graph))
    step = Step("export", f"{project.plan.model}/{graph.value}")
    key = key_of(project, step)  # before the inputs can change
    source = project.source()
    require_axes(project, source.inputs)
    if source.onnx and project.config.axes:
        require_dynamic(project.file(source.weights), source, dynamic_inputs(project))
    outputs = tuple(spec.name for spec in source.outputs)
    expected, axes = _outputs(project, graph, outputs)
    make = partial(_of_file, ends=axes) if source.onnx else _of_network
    exported, casts, batch_norms, conditions = make(project, model, graph)
    if axes:
        name_outputs(exported.graph, axes)
    exported = rewritten(exported, project.config.rewrites)  # before it is compared with the network
    del model
    gc.collect()  # the exporter's program refers to itself
    path = project.paths.onnx(graph)
    with replacing(path) as temporary:
        onnx_graph.save(exported, temporary)
        _require_right(project, graph, temporary, expected, conditions)
    record = OnnxRecord(
        key=key,
        built_at=now(),
        toolchain=tools("torch", "onnx", "onnxscript"),
        graph=graph,
        file=describe_file(path, project.paths.root),
        canonical_sha256=onnx_graph.canonical_digest(exported),
        structure_sha256=onnx_graph.structure_digest(exported),
        opset=onnx_graph.opset_of(exported),
        inputs=onnx_graph.tensor_specs(list(exported.graph.input)),
        outputs=onnx_graph.tensor_specs(list(exported.graph.output)),
        folded_batch_norms=batch_norms,
        casts=casts,
    )
    return project.write(project.paths.onnx_record(graph), record)


def _require_right(
    project: Project, graph: Graph, file: Path, expected: tuple[Expected, ...], conditions: Conditions
) -> None:
    """Compare a graph with the network, or a user's own graph with what it was made of.

    Args:
        project: the source stage must have run.
        graph: the precision.
        file: the graph.
        expected: the network's outputs, to compare those of the FP32 graph with.
        conditions: those that the trace of the network holds under.

    Raises:
        ExportError: the graph computes something else.
    """
    source, command = project.source(), project.command(Step("export", f"{project.plan.model}/{graph.value}"))
    if source.onnx:
        for wanted in expected:
            require_same(file, wanted, source, command)
        return
    if expected:
        reasons = [reason_at(conditions.ways, sizes) for sizes in ((), *project.config.checked_sizes)]
        given = [with_reason(item, reason) for item, reason in zip(expected, reasons, strict=True)]
        require_agreement(file, given, command)

    def remake(model: nn.Module) -> onnx.ModelProto:
        return rewritten(_of_network(project, model, Graph.FP32).model, project.config.rewrites)

    require_every_way(project, conditions, graph, file, remake)


def _outputs(
    project: Project, graph: Graph, outputs: tuple[str, ...]
) -> tuple[tuple[Expected, ...], tuple[tuple[int | str, ...], ...]]:
    """Return what the network gives, for the FP32 graph alone, and the axes of its outputs; none without dynamic axes.

    The network is restored for it: one that keeps something of the sizes it has run at would be traced another way.

    Raises:
        ExportError: the network takes no samples of a size, or its outputs follow them as its task does not allow.
    """
    compares, has_axes = graph is Graph.FP32, bool(project.config.axes)
    if not compares and not has_axes:
        return (), ()
    network = restore_model(project)
    expected = _expected(project, network, outputs) if compares else ()
    return expected, _axes_of_outputs(project, network, outputs) if has_axes else ()


def _expected(project: Project, model: nn.Module, outputs: tuple[str, ...]) -> tuple[Expected, ...]:
    """Return what the network gives: for samples of their own size, and of each that the dynamic axes are checked at.

    Raises:
        ExportError: the network takes no samples of such a size.
    """
    found = [expected_of(model, inputs_of(project), outputs)]
    for sizes in project.config.checked_sizes:
        with taking(what_of(project), sizes, ExportError):
            wanted = expected_of(model, inputs_at(project, sizes), outputs)
        found.append(wanted._replace(where=f", {shown_sizes(sizes)}"))
    return tuple(found)


def _axes_of_outputs(project: Project, model: nn.Module, outputs: tuple[str, ...]) -> tuple[tuple[int | str, ...], ...]:
    """Return the axes of each output as samples of all checked sizes show them.

    Raises:
        ExportError: the network takes no samples of a size, or its outputs follow them as its task does not allow.
    """
    source = project.source()
    found = at_each_size(project, model, project.config.checked_sizes, ExportError)
    require_following(found, source.task, ExportError, what_of(project))
    return named_axes(found, outputs)


class _Made(NamedTuple):
    """A graph that was made."""

    model: onnx.ModelProto
    casts: tuple[TensorCast, ...]
    batch_norms: int
    """Number of batch-norms that were folded."""
    conditions: Conditions = Conditions()
    """The conditions on sizes of torch's trace."""


def _of_network(project: Project, model: nn.Module, graph: Graph) -> _Made:
    """Export a network of torch; it is cast in place."""
    source = project.source()
    inputs, outputs = shape_of(inputs_of(project)), tuple(spec.name for spec in source.outputs)
    folded = fold_batch_norms(model, inputs)
    dtype = DTYPES[graph.precision]
    _require_one_file(folded.model, dtype)
    casts = count_casts(folded.model, dtype)
    # Cast in place: a function that was set on a layer may call the weights of this very network.
    typed = (TypedInputs if len(source.inputs) > 1 else Typed)(folded.model, dtype).eval()
    axes = Axes(dynamic_inputs(project), project.config.axes)
    exported, more_folded, conditions = to_onnx(typed, inputs, OPSETS[graph], outputs, axes)
    if source.task is Task.DETECTION and onnx_rewrites.suppressing_nodes(exported):
        raise ExportError(
            "the network suppresses overlapping boxes itself, and rounding exchanges the rows of what is left",
            expected="a detector's raw boxes and scores, which `model.decoding` decodes in every deployment alike",
            got="NonMaxSuppression in the exported graph",
            fix="return what the network has in front of its suppression",
        )
    return _Made(exported, casts, folded.batch_norms + more_folded, conditions)


def _of_file(project: Project, _model: nn.Module, graph: Graph, ends: tuple[tuple[int | str, ...], ...] = ()) -> _Made:
    """Make the graph of a model that is an ONNX file, whose outputs have these axes if some follow the input."""
    source = project.source()
    wide = make_fp32(project.file(source.weights), source, OPSETS[Graph.FP32], dynamic_inputs(project), ends)
    if graph is Graph.FP32:
        return _Made(wide.model, (), wide.batch_norms)
    narrowed = narrow(wide, graph, OPSETS[graph])
    return _Made(narrowed.model, narrowed.casts, wide.batch_norms)


def count_casts(model: nn.Module, dtype: torch.dtype) -> tuple[TensorCast, ...]:
    """Count the values that a cast to `dtype` turns into zero, infinity or a subnormal number.

    Returns:
        one record for each floating-point tensor; empty for FP32.
    """
    if dtype is torch.float32:
        return ()
    smallest_normal = torch.finfo(dtype).smallest_normal
    return tuple(
        _count_cast(name, tensor, dtype, smallest_normal)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    )


def _count_cast(name: str, tensor: torch.Tensor, dtype: torch.dtype, smallest_normal: float) -> TensorCast:
    """Count the losses of one tensor, in parts: a copy of large weights in float64 would be twice their size."""
    parts = [
        # numpy knows no bfloat16, and float64 holds every value of every type
        onnx_graph.count_cast(name, part.double().numpy(), part.to(dtype).double().numpy(), smallest_normal)
        for part in torch.split(tensor.flatten(), _CAST_VALUES)
    ]
    return TensorCast(
        name=name,
        elements=tensor.numel(),
        underflow=sum(part.underflow for part in parts),
        subnormal=sum(part.subnormal for part in parts),
        overflow=sum(part.overflow for part in parts),
    )


def _require_one_file(model: nn.Module, dtype: torch.dtype) -> None:
    """Refuse weights that do not fit into one ONNX file.

    Raises:
        ExportError: they are too large.
    """
    size = sum(
        tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize
        for tensor in model.state_dict().values()
    )
    if size > _EXTERNAL_DATA_BYTES:
        raise ExportError(
            "the model is too large for one ONNX file",
            expected="weights of at most 2 GiB",
            got=f"{size:,} bytes",
        )


def run(project: Project, graph: Graph, console: Console) -> int:
    """Export a graph, and print its size and the losses of the cast."""
    record = make_onnx(project, restore_model(project), graph)
    size = size_phrase(record.file.bytes)
    console.say(f"{size}, opset {record.opset}, {record.folded_batch_norms} batch-norms folded")
    say_casts(console, record.casts)
    return 0
