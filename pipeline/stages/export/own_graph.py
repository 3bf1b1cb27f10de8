"""A model that is an ONNX file → its graphs: upgraded, with a dynamic batch, batch-norms folded in FP32, then cast."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import onnx
from onnx.inliner import inline_local_functions, inline_selected_functions
from onnxscript import ir

from model_artifacts.errors import ExportError, one_line
from model_artifacts.records import Graph
from pipeline.adapters import onnx_graph, onnx_rewrites
from pipeline.adapters.onnx_casts import Narrowed, cast
from pipeline.adapters.onnx_graph import reason_of
from pipeline.stages.export.agreement import require_agreement
from pipeline.stages.export.axes import require_free
from pipeline.stages.export.graph import NOT_CONVERTIBLE, WITHOUT_BF16, Exported, optimize

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import TensorSpec
    from pipeline.records import SourceRecord
    from pipeline.stages.common.sizes.expected import Expected

log = logging.getLogger(__name__)

FLOOR = 1e-6
"""The root mean square of a difference that counts as none: sums of numbers near 1 round by 1e-7, and a detector's
probabilities on images that show nothing are no larger."""
_LEAST_FOR_BATCH = 15
"""The first operator set whose `Shape` gives a part of a shape, which `let_batch_vary` needs."""
_ANY_BATCH = "export it with a dynamic first axis (torch.onnx.export: `dynamic_axes` or `dynamic_shapes`)"


def require_dynamic(file: Path, source: SourceRecord, inputs: tuple[TensorSpec, ...]) -> None:
    """Refuse an ONNX file that fixes an axis which is to be dynamic, and warn that nothing else is its reference there.

    Args:
        file: the file that the stage `source` has stored.
        source: its record.
        inputs: the inputs with the names of their dynamic axes.

    Raises:
        ExportError: it does.
    """
    require_free(onnx.load(file).graph, inputs, source.origin_detail)
    log.warning(
        "WARNING: at other sizes %s is compared with its own run alone: a size that it kept from its export stays "
        "unseen there",
        source.origin_detail,
    )


def make_fp32(
    file: Path,
    source: SourceRecord,
    opset: int,
    inputs: tuple[TensorSpec, ...] = (),
    ends: tuple[tuple[int | str, ...], ...] = (),
) -> Exported:
    """Return the FP32 graph of an ONNX file, with a dynamic batch axis and the samples' own size of all others.

    Args:
        file: the file that the stage `source` has stored.
        source: its record.
        opset: the operator set. The graph keeps a newer one if an operator has no older form, and an older one if an
            operator has no newer form.
        inputs: the inputs with the names of their other dynamic axes; none without such axes.
        ends: the axes of each output behind the batch, some with the names of such axes; the same.

    Raises:
        ExportError: the graph is not valid in its operator set.
    """
    model = onnx.load(file)
    if model.functions:
        model = inline_local_functions(model)
    model = onnx_rewrites.lift_constants(model)
    inputs = inputs or source.inputs
    shapes = [spec.shape[1:] for spec in inputs]
    outputs = [*ends] or [spec.shape[1:] for spec in source.outputs]
    batch = source.onnx.batch if source.onnx else None
    onnx_rewrites.set_shapes(model.graph, shapes, outputs, batch)
    before = onnx_graph.opset_of(model)
    if before < opset:
        _convert(model, opset, "an older parser may read it, and fewer operators are known in it")
    if batch is not None and onnx_graph.opset_of(model) >= _LEAST_FOR_BATCH:
        changed = onnx_rewrites.let_batch_vary(model, batch)
        log.info("the batch of %d becomes dynamic: %d constant shapes take it from their input", batch, changed)
    onnx_rewrites.set_shapes(model.graph, shapes, outputs)
    loaded = ir.from_proto(model)
    batch_norms = optimize(loaded, folds_batch_norms=True)
    made = ir.to_proto(loaded)
    onnx_graph.forget_origin(made)
    onnx_rewrites.count_no_padding(made.graph)
    _check(made, Graph.FP32)
    if onnx_graph.opset_of(made) > opset:
        _convert(made, opset, "TensorRT 8.6 cannot read it")
    if (after := onnx_graph.opset_of(made)) != before:
        log.info("operator set %d became %d", before, after)
    onnx_graph.use_oldest_ir(made)
    return Exported(made, batch_norms)


def _convert(model: onnx.ModelProto, opset: int, otherwise: str) -> None:
    try:
        onnx_graph.convert(model, opset)
    except NOT_CONVERTIBLE as exc:
        log.info("the graph stays at opset %d; %s: %s", onnx_graph.opset_of(model), otherwise, reason_of(exc))


def narrow(exported: Exported, graph: Graph, opset: int) -> Narrowed:
    """Return the FP32 graph in fp16 or bf16.

    Raises:
        ExportError: an operator has no form in bfloat16's operator set, or the result is not valid.
    """
    model = exported.model
    if graph is not Graph.BF16:
        narrowed = cast(model, onnx.TensorProto.FLOAT16)
    else:
        if onnx_graph.opset_of(model) < opset:
            try:
                onnx_graph.convert(model, opset)
            except NOT_CONVERTIBLE as exc:
                raise ExportError(
                    "the ONNX graph cannot be upgraded to the operator set that has bfloat16",
                    where=graph.value,
                    expected=f"opset {opset}",
                    got=f"opset {onnx_graph.opset_of(model)}: {reason_of(exc)}",
                    fix="take bf16 out of `precisions`, or export the network in a newer opset",
                ) from exc
        wide, casts = cast(model, onnx.TensorProto.BFLOAT16)
        narrowed = Narrowed(inline_selected_functions(wide, WITHOUT_BF16, inline_schema_functions=True), casts)
    _check(narrowed.model, graph)
    onnx_graph.use_oldest_ir(narrowed.model)
    return narrowed


def _check(model: onnx.ModelProto, graph: Graph) -> None:
    try:
        onnx_graph.check(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(
            f"the ONNX file's graph is not valid in {graph.value}",
            where=graph.value,
            got=one_line(exc),
            fix="export the network again, in opset 17 or later; or leave this precision out of `precisions`",
        ) from exc


def require_same(file: Path, expected: Expected, source: SourceRecord, rerun: str) -> None:
    """Refuse an FP32 graph that computes something else than the ONNX file, in a batch of one or of several.

    Args:
        file: the graph.
        expected: the outputs of the stored file, whose batches are its own.
        source: the record of that file.
        rerun: the command that repeats the export.

    Raises:
        ExportError: ONNX Runtime cannot run the graph, or its outputs differ.
    """
    try:
        require_agreement(file, [expected._replace(cause="")], rerun, FLOOR)
    except ExportError as exc:
        if source.onnx and source.onnx.batch is not None:
            raise ExportError(
                "the ONNX file's batch cannot be made dynamic",
                where=f"{source.origin_detail}, made for batches of {source.onnx.batch}",
                expected=f"the same outputs for an image in a batch of 1 and of 3{expected.where}",
                got=f"{exc.what}: {exc.got.rstrip('; ')}",
                fix=_ANY_BATCH,
            ) from exc
        raise ExportError(
            "the upgraded and folded graph computes something else than the ONNX file",
            where=f"{source.origin_detail}{expected.where}",
            got=f"{exc.what}: {exc.got.rstrip('; ')}",
            fix="export the network in opset 17 or later, with its batch-norms folded",
        ) from exc
