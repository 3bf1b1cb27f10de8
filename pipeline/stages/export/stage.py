"""Model → ONNX in FP32, FP16 and BF16 (`<model>/onnx/`): fold batch-norms in FP32, cast, export."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import onnx
import torch
from torch import nn

from model_artifacts.errors import ExportError, one_line
from model_artifacts.host.environment import now, tools
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import refuse_newer, write_record
from model_artifacts.records import Graph
from model_artifacts.sessions.torch_model import DTYPES, Typed, count_batch_norms, fold_batch_norms
from pipeline.adapters import onnx_graph
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import OnnxRecord, TensorCast
from pipeline.stages.common.console import megabytes, say_casts
from pipeline.stages.common.model import restore_model

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Preprocessing
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console

INPUT, OUTPUT = "image", "logits"
"""Names of the graph's input and output."""

OPSETS = {Graph.FP32: 17, Graph.FP16: 17, Graph.BF16: 22}
"""Opset of each graph.

17 is the last that TensorRT 8.6's parser reads (onnx-tensorrt 8.6-GA, docs/operators.md); all later runtimes read it,
too. Operators take bfloat16 from 22 on.
"""

_EXPORTER_OPSET = 18
"""Oldest opset that torch's exporter writes; older ones are converted from it."""

_EXTERNAL_DATA_BYTES = 2**31 - 2**20
"""Most bytes of weights in one file: a protobuf message ends at 2 GiB, and larger weights need a file beside it."""


_NOT_CONVERTIBLE = (
    onnx.version_converter.ConvertError,
    RuntimeError,  # the converter's own assertions
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)

log = logging.getLogger(__name__)


def make_onnx(project: Project, model: nn.Module, graph: Graph) -> OnnxRecord:
    """Export the model in one precision, with a dynamic batch axis.

    Args:
        project: the source stage must have run.
        model: the restored model, in FP32.
        graph: the precision.

    Raises:
        ExportError: torch cannot trace the model, its batch size is fixed, the result is not valid ONNX, or the weights
            are too large for one file.
        RecordError: the source's record is missing or damaged.
        StorageError: the results cannot be written.
        NewerRecordError: a newer version of this project wrote the present record.
    """
    refuse_newer(project.paths.onnx_record(graph))
    key = key_of(project, Step("export", f"{project.plan.model}/{graph.value}"))  # before the inputs can change
    folded = fold_batch_norms(model)
    dtype = DTYPES[graph.precision]
    casts = count_casts(folded.model, dtype)
    typed = Typed(copy.deepcopy(folded.model), dtype).eval()
    path = project.paths.onnx(graph)
    with replacing(path) as temporary:
        exported = _export(typed, project.source().preprocessing, OPSETS[graph], temporary)
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
        folded_batch_norms=folded.batch_norms,
        casts=casts,
    )
    write_record(project.paths.onnx_record(graph), record)
    return record


def count_casts(model: nn.Module, dtype: torch.dtype) -> tuple[TensorCast, ...]:
    """Count the values that a cast to `dtype` turns into zero, infinity or a subnormal number.

    Returns:
        one record for each floating-point tensor; empty for FP32.
    """
    if dtype is torch.float32:
        return ()
    smallest_normal = torch.finfo(dtype).smallest_normal
    return tuple(
        # numpy knows no bfloat16, and float64 holds every value of every type
        onnx_graph.count_cast(name, tensor.double().numpy(), tensor.to(dtype).double().numpy(), smallest_normal)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    )


def _export(model: nn.Module, spec: Preprocessing, opset: int, path: Path) -> onnx.ModelProto:
    weights_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if weights_bytes > _EXTERNAL_DATA_BYTES:
        raise ExportError(
            "the model is too large for one ONNX file",
            expected="weights of at most 2 GiB",
            got=f"{weights_bytes:,} bytes",
        )
    for noisy in ("torch.onnx", "torch.fx.experimental.symbolic_shapes"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # deprecations inside torch and onnxscript, of no use to users
            program = torch.onnx.export(
                model,
                (torch.zeros(2, *spec.input_shape),),
                dynamo=True,
                opset_version=max(opset, _EXPORTER_OPSET),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: batch}},
                # Not with batch-norms left: the exporter's folding of them leaves float32 weights in a bf16 graph.
                optimize=count_batch_norms(model) == 0,
                verbose=False,
            )
    except Exception as exc:
        reason = next((line for line in str(exc.__cause__ or exc).splitlines() if line.strip()), type(exc).__name__)
        raise ExportError(
            "torch cannot export the model to ONNX",
            expected="a model that torch.export can trace: no control flow that depends on the values of tensors",
            got=reason[:300],
        ) from exc
    if program is None:
        raise ExportError("torch's exporter returned nothing")
    program.save(str(path), external_data=False)
    try:
        onnx_graph.check(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError("the exported graph is not valid ONNX", got=one_line(exc)) from exc
    exported = onnx.load(path)
    graph = exported.graph
    if not all(value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)):
        raise ExportError(
            "the model runs with one batch size only",
            expected="a batch of any size as the first axis of input and output",
            got=f"a fixed batch of {graph.input[0].type.tensor_type.shape.dim[0].dim_value} images",
        )
    lowered = _lowered(exported, opset)
    onnx_graph.forget_origin(lowered)
    onnx.save(lowered, path)
    return lowered


def _lowered(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model in `opset`, or unchanged if the converter fails: only TensorRT 8.6 needs the older opset."""
    if onnx_graph.opset_of(model) <= opset:
        return model
    try:
        return onnx_graph.to_opset(model, opset)
    except _NOT_CONVERTIBLE as exc:
        log.info(
            "the graph stays at opset %d, which TensorRT 8.6 cannot read: %s", onnx_graph.opset_of(model), one_line(exc)
        )
        return model


def run(project: Project, graph: Graph, console: Console) -> int:
    """Export a graph, and print its size and the losses of the cast."""
    record = make_onnx(project, restore_model(project), graph)
    size = megabytes(record.file.bytes)
    console.say(f"{size}, opset {record.opset}, {record.folded_batch_norms} batch-norms folded")
    say_casts(console, record.casts)
    return 0
