"""FP32 ONNX + calibration batches → int8 or fp8 QDQ ONNX, in a process of its own (`<model>/onnx/int8*.onnx`, …).

ONNX Runtime calibrates and places the Q/DQ pairs. What TensorRT takes is then derived from its result: scales are
rounded to fp16 first and weights quantised with the rounded ones, so that fp16 and FP32 forms hold the same numbers.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from model_artifacts.errors import ArtifactError, QuantizeError, one_line
from model_artifacts.host.environment import now, tools
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import refuse_newer, write_record
from model_artifacts.records import Graph, Precision
from model_artifacts.sessions.preprocessing import to_input
from pipeline.adapters import onnx_graph
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import OnnxRecord
from pipeline.stages.common.console import megabytes, say_casts
from pipeline.stages.quantize.rewriting import (
    QUANTIZED_OPERATORS,
    QUANTIZED_TYPES,
    carry_skips_in_int8,
    leave,
    put_pairs_on_weights,
    quantized_layers,
    replace_node,
    requantize,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

    import numpy.typing as npt

    from model_artifacts.records import Preprocessing
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import TensorCast

    Weights = dict[str, npt.NDArray[np.float32]]


_BATCH = 16

PERCENTILE = 99.995
"""The share of activations inside the range that int8 is calibrated to for TensorRT.

On all 997 held-out digits of the sample model, relative L2 and top-1 agreement of the graph with FP32 around what is
quantised: 99.99 % 0.076, 0.984; 99.995 % 0.071, 0.986; 99.999 % 0.073, 0.981. With the first convolution and the global
pooling in floating point (99.99 %) 0.070, 0.989. With the last layer quantised, too, an earlier graph's agreement was
0.5 points lower. FP16 instead of FP32 is no worse by itself: it moves some activations into the next step of int8,
either way.

fp8 is calibrated to the plain maximum: E4M3 is as fine near zero whatever the range, so that clipping gains nothing.
Relative L2 0.191 (an earlier sample model), with 99.99 % 0.209; three bits of mantissa make it twice int8's (the
weights alone 0.139).

All by ONNX Runtime 1.31.1 without its optimisation WeightBiasQuantization, which quantises biases that are kept in
floating point on purpose, and garbles fp8 graphs (relative L2 1.45). onnx.reference 1.23.2 confirms fp8 (0.202 on 8
images), but takes 10 s an image.
"""

OPSET = 19
"""The first whose QuantizeLinear takes float16 and gives float8 (ONNX's operator changelog)."""

_OPSET_OF_TENSORRT_8_6 = 17
"""The last that its parser reads (onnx-tensorrt 8.6-GA, docs/operators.md)."""


class _Forms(NamedTuple):
    """What is written of one quantised graph."""

    model: onnx.ModelProto
    casts: tuple[TensorCast, ...] = ()
    opset17: onnx.ModelProto | None = None


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    def __init__(self, pixels: npt.NDArray[np.uint8], spec: Preprocessing, name: str) -> None:
        self._batches: Iterator[dict[str, npt.NDArray[np.float32]]] = (
            {name: to_input(pixels[start : start + _BATCH], spec)} for start in range(0, len(pixels), _BATCH)
        )

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return next(self._batches, None)


def make_quantized(project: Project, graph: Graph) -> OnnxRecord:
    """Quantise the FP32 graph: weights symmetric and per channel, activations as the graph's consumer wants them.

    Args:
        project: the export of FP32 and the data stage must have run.
        graph: one of the TensorRT-ready forms, int8 or fp8, or the int8 that x86 accelerates.

    Raises:
        QuantizeError: the graph cannot be quantised.
        StorageError: the results cannot be written.
    """
    refuse_newer(project.paths.onnx_record(graph))
    key = key_of(project, Step("quantize", f"{project.plan.model}/{graph.value}"))  # before the work
    source, calibration = project.onnx(Graph.FP32), project.data().calibration
    left = project.config.leave_unquantized.of(graph)
    path, path17 = project.paths.onnx(graph), project.paths.onnx_opset17(graph)
    forms = _write_forms(project, graph, path, path17)
    record = OnnxRecord(
        key=key,
        built_at=now(),
        toolchain=tools("onnx", "onnxruntime-gpu"),
        graph=graph,
        file=describe_file(path, project.paths.root),
        canonical_sha256=onnx_graph.canonical_digest(forms.model),
        structure_sha256=onnx_graph.structure_digest(forms.model),
        opset=onnx_graph.opset_of(forms.model),
        inputs=onnx_graph.tensor_specs(list(forms.model.graph.input)),
        outputs=onnx_graph.tensor_specs(list(forms.model.graph.output)),
        folded_batch_norms=source.folded_batch_norms,
        casts=forms.casts,
        calibration_sha256=calibration.sha256,
        left_unquantized=left,
        opset17=describe_file(path17, project.paths.root) if forms.opset17 else None,
    )
    write_record(project.paths.onnx_record(graph), record)
    return record


def _write_forms(project: Project, graph: Graph, path: Path, path17: Path) -> _Forms:
    """Quantise, and write either every file or none."""
    with _translated():
        fp32 = _fp32(project)
        with contextlib.ExitStack() as files:
            temporary = files.enter_context(replacing(path))
            forms = _forms(project, graph, fp32, temporary)
            _save(forms.model, temporary)
            if forms.opset17:
                _save(forms.opset17, files.enter_context(replacing(path17)))
    return forms


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except Exception as exc:  # onnx, protobuf and onnxruntime raise types of their own, without a common public base
        raise QuantizeError("the graph cannot be quantised", got=one_line(exc)) from exc


def _fp32(project: Project) -> onnx.ModelProto:
    return onnx.load(project.file(project.onnx(Graph.FP32).file))  # its path would have the quantiser write beside it


def _save(model: onnx.ModelProto, file: Path) -> None:
    onnx.save(model, file)
    onnx_graph.check(file)


def _weights(model: onnx.ModelProto) -> Weights:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _forms(project: Project, graph: Graph, fp32: onnx.ModelProto, scratch: Path) -> _Forms:
    """Return what to write of a graph; `scratch` is a file that the quantiser may write to."""
    left, weights, kind = project.config.leave_unquantized.of(graph), _weights(fp32), QUANTIZED_TYPES[graph.precision]
    if graph.for_x86:
        # Its pairs stand for activations, too: what reads from before them would miss those.
        kept = _outer_layers(fp32, graph)
        layers = tuple(
            node for node in fp32.graph.node if node.op_type in QUANTIZED_OPERATORS and node.name not in kept
        )
        _check_layers(left, layers, graph)
        return _Forms(_placed(project, graph, fp32, scratch, left))
    placed = _placed(project, graph, fp32, scratch)
    if left:
        _check_layers(left, quantized_layers(placed), graph)
        placed = leave(placed, weights, left)
    model, casts = _to_fp16(requantize(onnx_graph.to_opset(placed, OPSET), weights, kind))
    if graph.precision is Precision.FP8 or onnx_graph.opset_of(placed) > _OPSET_OF_TENSORRT_8_6:
        return _Forms(model, casts)
    return _Forms(model, casts, put_pairs_on_weights(requantize(placed, weights, kind)))


def _placed(
    project: Project, graph: Graph, fp32: onnx.ModelProto, scratch: Path, left: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """Return the graph with calibrated Q/DQ pairs, FP32 around, everything quantised but what is left for x86."""
    data, settings = project.data(), _settings(graph, fp32)
    settings["nodes_to_exclude"] += left
    reader = _Calibration(project.pixels(data.calibration), data.preprocessing, fp32.graph.input[0].name)
    with _quiet():
        quantize_static(
            fp32,
            str(scratch),
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            **settings,
        )
    placed = onnx.load(scratch)
    if not graph.for_x86:
        carry_skips_in_int8(placed)
    return placed


class Calibrated(NamedTuple):
    """A quantised graph as TensorRT takes it, but for FP32 instead of FP16, and the weights that it was made of."""

    model: onnx.ModelProto
    weights: Weights

    def leaving(self, names: Collection[str]) -> onnx.ModelProto:
        """Return the graph with these layers in floating point."""
        return leave(self.model, self.weights, names)

    def quantizing(self, name: str) -> onnx.ModelProto:
        """Return the graph with everything but one layer in floating point."""
        others = [node.name for node in self.model.graph.node if node.name != name]
        return leave(self.model, self.weights, others)


def calibrate(project: Project, graph: Graph) -> Calibrated:
    """Calibrate once, for any choice of layers.

    Raises:
        QuantizeError: the graph cannot be quantised.
    """
    with _translated(), tempfile.TemporaryDirectory() as folder:
        fp32 = _fp32(project)
        weights = _weights(fp32)  # before the quantiser moves them out of it
        placed = onnx_graph.to_opset(_placed(project, graph, fp32, Path(folder) / "placed.onnx"), OPSET)
        return Calibrated(requantize(placed, weights, QUANTIZED_TYPES[graph.precision]), weights)


def _check_layers(left: Collection[str], layers: tuple[onnx.NodeProto, ...], graph: Graph) -> None:
    known = [node.name for node in layers]
    for name in left:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            raise QuantizeError(
                f"leave_unquantized.{graph.precision.value} names {name!r}, which is no quantised layer of the graph",
                expected=f"one of {', '.join(close or known[:3])}{'' if close else ', …'}",
                fix=f"`doit sensitivity:MODEL/{graph.precision.value}` lists them all",
            )
    if len(left) == len(known):
        raise QuantizeError(
            f"leave_unquantized.{graph.precision.value} names every layer: nothing would be {graph.precision.value}",
            fix="name fewer, or take fp16",
        )


def _to_fp16(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[TensorCast, ...]]:
    """Return the graph with FP16 instead of FP32, its input and output aside, and what that does to its weights."""
    wide = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    converted = OnnxModel(convert_float_to_float16(model, keep_io_types=True, op_block_list=[]))
    converted.topological_sort(is_deterministic=True)
    smallest_normal = float(np.finfo(np.float16).smallest_normal)
    casts = []
    for tensor in converted.model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and wide[tensor.name].dtype == np.float32:
            with np.errstate(over="ignore"):
                narrow = wide[tensor.name].astype(np.float16)
            replace_node(tensor, narrow)  # as torch casts: the converter lets nothing become zero or infinite
            casts.append(onnx_graph.count_cast(tensor.name, wide[tensor.name], narrow, smallest_normal))
    return converted.model, tuple(casts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser, which advises on the root logger what the export has already done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)


def _settings(graph: Graph, model: onnx.ModelProto) -> dict[str, Any]:
    """Return what differs between the graphs, as the quantiser's keyword arguments.

    TensorRT takes symmetric values only, no quantised bias, and wants Q/DQ in front of convolutions and matrix products
    rather than behind every operator (its documentation, "Recommended QDQ layer placements"). In int8 the first
    convolution and the global pooling are quantised, too: what is largest, the first convolution's output, is then
    written once, in int8, instead of in FP16 and once more by a kernel that only quantises (95 of 746 us on an H100
    with TensorRT 8.6, batch 64); and the last sum, which pooling reads, ends in int8 as every other does. x86
    multiplies uint8 by int8, with every operator quantised; weights have seven bits, because processors without VNNI
    add two products in 16 bits, which eight bits overflow (ONNX Runtime's quantiser says so of `reduce_range`): an
    artifact must give its numbers on every processor that may run it.
    """
    if graph.for_x86:
        return {
            "activation_type": QuantType.QUInt8,
            "calibrate_method": CalibrationMethod.MinMax,
            "nodes_to_exclude": _outer_layers(model, graph),
            "extra_options": {"ActivationSymmetric": False, "WeightSymmetric": True},
            "reduce_range": True,
        }
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    known = [node.name for node in sums if {made_by.get(name) for name in node.input} != {"Conv"}]
    means = [node.name for node in model.graph.node if node.op_type == "ReduceMean" and not _pools(model, node)]
    kinds = ["Conv", "Gemm", "MatMul", "Add"]
    if graph.precision is not Precision.FP8:
        kinds += ["GlobalAveragePool", "ReduceMean"]
    return {
        "activation_type": QuantType.QInt8,
        "calibrate_method": (
            CalibrationMethod.MinMax if graph.precision is Precision.FP8 else CalibrationMethod.Percentile
        ),
        "op_types_to_quantize": kinds,
        # Where a sum's skip connection is a convolution's input, too, that is where its pair comes from.
        "nodes_to_exclude": [*_outer_layers(model, graph), *known, *means],
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": kinds,
            "CalibPercentile": PERCENTILE,
        },
    }


def _outer_layers(model: onnx.ModelProto, graph: Graph) -> list[str]:
    """Return the names of the layers that stay in floating point, unless those are all.

    The last product gives the logits, of which eight bits make ties; fp8's three bits of mantissa are too few for the
    image itself, which the first convolution reads.
    """
    layers = [node for node in model.graph.node if node.op_type in QUANTIZED_OPERATORS]
    outer = [node.name for node in layers if node.op_type != "Conv"][-1:]
    if graph.precision is Precision.FP8:
        outer += [node.name for node in layers if node.op_type == "Conv"][:1]
    return outer if len(layers) > len(outer) else []


def _pools(model: onnx.ModelProto, mean: onnx.NodeProto) -> bool:
    """Whether a mean is over the height and width of NCHW; until opset 17 its axes are an attribute."""
    given = [attribute.ints for attribute in mean.attribute if attribute.name == "axes"]
    given += [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in mean.input[1:]]
    return any({int(axis) % len("NCHW") for axis in axes} == {2, 3} for axes in given)


def run(project: Project, graph: Graph, console: Console) -> int:
    """Quantise a graph, and print its size and what the cast loses."""
    record = make_quantized(project, graph)
    also = ", and one of opset 17" if record.opset17 else ""
    console.say(f"{megabytes(record.file.bytes)}, opset {record.opset}{also}")
    say_casts(console, record.casts)
    return 0
