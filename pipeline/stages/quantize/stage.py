"""FP32 ONNX + calibration images → int8 or fp8 QDQ ONNX, in a process of its own (`<model>/onnx/int8*.onnx`, …).

ONNX Runtime calibrates and places the Q/DQ pairs; `rewriting` then derives TensorRT's graphs from its result.
"""

from __future__ import annotations

import contextlib
import difflib
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import onnx
from onnx import TensorProto, numpy_helper

from model_artifacts.errors import ArtifactError, CrashedError, KilledError, OverdueError, QuantizeError, storage_errors
from model_artifacts.host.environment import now, tools
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.host.terminal import size_phrase
from model_artifacts.records import Graph, Precision
from pipeline.adapters import onnx_graph
from pipeline.adapters.onnx_casts import Narrowed, cast
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import OnnxRecord
from pipeline.stages.common.console import say_casts
from pipeline.stages.quantize.bias_correction import centre_outputs, correct_biases, input_means, output_shifts
from pipeline.stages.quantize.calibrated import Calibrated
from pipeline.stages.quantize.calibration import Images, Kept, kept_arrays
from pipeline.stages.quantize.groups import left_by, members
from pipeline.stages.quantize.heads import half_heads
from pipeline.stages.quantize.placement import left_by_proposal, left_for_kernels, outer_layers
from pipeline.stages.quantize.placing import check_placed, place_pairs, proposed_pairs
from pipeline.stages.quantize.rewriting import (
    QUANTIZED_OPERATORS,
    QUANTIZED_TYPES,
    carry_skips_in_int8,
    keep_pairs,
    leave,
    leave_idle,
    leave_outputs,
    put_pairs_on_weights,
    quantized_nodes,
    requantize,
)
from pipeline.stages.quantize.spec import means_key, ranges_key
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from pipeline.config.quantization import QuantizationConfig
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import PlacedPair, TensorCast
    from pipeline.stages.quantize.bias_correction import Means

    Weights = dict[str, npt.NDArray[np.float32]]


OPSET = 19
"""First opset whose QuantizeLinear takes float16 and gives float8 (ONNX's operator changelog)."""

_OPSET_OF_TENSORRT_8_6 = 17
"""Last opset that TensorRT 8.6's parser reads (onnx-tensorrt 8.6-GA, docs/operators.md)."""


class _Forms(NamedTuple):
    """The written forms of one quantised graph."""

    model: onnx.ModelProto
    casts: tuple[TensorCast, ...] = ()
    """Lost values of the cast to FP16; empty for graphs in FP32 around the quantised layers."""
    opset17: onnx.ModelProto | None = None
    """The form for TensorRT 8.6; None if there is none."""
    left: tuple[str, ...] = ()
    """Nodes without Q/DQ pairs for the groups of the configuration; not those that stay by themselves."""


def _images(project: Project) -> Images:
    data = project.data()
    return Images(project.pixels(data.calibration), data.preprocessing)


def make_quantized(project: Project, graph: Graph) -> OnnxRecord:
    """Quantise the FP32 graph: weights symmetric, activations as TensorRT or x86 requires.

    Args:
        project: the export of FP32 and the data stage must have run.
        graph: int8 or fp8 for TensorRT, or int8 for x86.

    Raises:
        QuantizeError: the graph cannot be quantised, or `leave_unquantized` does not fit it.
        RecordError: a record of the export or of the data stage is missing or damaged.
        StorageError: the results cannot be written.
        NewerRecordError: a newer version of this project wrote the present record.
    """
    refuse_newer(project.paths.onnx_record(graph))
    key = key_of(project, Step("quantize", f"{project.plan.model}/{graph.value}"))  # before the inputs can change
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
        left_layers=_left_layers(forms, graph, left),
        opset17=describe_file(path17, project.paths.root) if forms.opset17 else None,
    )
    return project.write(project.paths.onnx_record(graph), record)


def _left_layers(forms: _Forms, graph: Graph, left: Collection[str]) -> int:
    """Return the number of layers in floating point for the configuration, or for want of kernels."""
    model = forms.model
    names = {*left, *forms.left, *left_for_kernels(graph, model)}
    return sum(node.op_type in QUANTIZED_OPERATORS for node in model.graph.node if node.name in names)


def _write_forms(project: Project, graph: Graph, path: Path, path17: Path) -> _Forms:
    """Quantise the graph, and write all of its files or none."""
    with _translated():
        fp32 = fp32_of(project)
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
        raise QuantizeError("the graph cannot be quantised", got=onnx_graph.reason_of(exc)) from exc


def fp32_of(project: Project) -> onnx.ModelProto:
    """Return the FP32 graph that the export has written."""
    return onnx.load(project.file(project.onnx(Graph.FP32).file))  # by its path, the quantiser would write beside it


def _save(model: onnx.ModelProto, file: Path) -> None:
    onnx_graph.use_oldest_ir(model)
    onnx_graph.check(model)
    onnx_graph.save(model, file)


def _weights(model: onnx.ModelProto) -> Weights:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _forms(project: Project, graph: Graph, fp32: onnx.ModelProto, scratch: Path) -> _Forms:
    """Return the forms of a graph; `scratch` is a file for the quantiser to write to."""
    left, weights, kind = project.config.leave_unquantized.of(graph), _weights(fp32), QUANTIZED_TYPES[graph.precision]
    settings = project.config.quantization
    groups, pairs = left_by(settings, fp32), proposed_pairs(project, graph, fp32, settings)
    if settings.head and graph is Graph.INT8 and not outer_layers(fp32, graph, settings):
        raise _no_head(settings)  # before the calibration
    unproposed = left_by_proposal(graph, fp32, settings, pairs)
    newly = tuple(name for name in groups if name not in outer_layers(fp32, graph))
    newly += unproposed if graph.is_mixed else ()  # a plain name promises that most layers are quantised
    if graph.for_x86:
        # Its Q/DQ pairs replace activations, too, so that a node reading in front of a pair would miss its activation.
        kept = {*outer_layers(fp32, graph, settings), *groups}
        _check_left(project, left, [node for node in fp32.graph.node if node.name not in kept], graph)
        _place_apart(project, graph, scratch, left)
        return _Forms(centre_outputs(onnx.load(scratch), _shifts(project, graph, scratch)), left=newly)
    means = _place_apart(project, graph, scratch)
    placed = _placed(graph, scratch, weights, groups, pairs)
    whole = quantized_nodes(_placed(graph, scratch, weights, pairs=pairs)) if groups else ()
    spared = {*groups} & {node.name for node in whole} or unproposed
    if left:
        _check_left(project, left, quantized_nodes(placed), graph)
        placed = leave(placed, weights, left)
        placed = placed if pairs else leave_idle(placed, weights)
    wide = requantize(onnx_graph.to_opset(placed, OPSET), weights, kind)
    if graph.precision is Precision.FP8:
        return _Forms(*_to_fp16(correct_biases(put_pairs_on_weights(wide), weights, means)), left=newly)
    with storage_errors(f"writing {scratch}"):
        onnx_graph.save(correct_biases(wide, weights, means), scratch)
    centre_outputs(wide, shifts := _shifts(project, graph, scratch))
    # Layers between int8 layers are fused with them. FP32 around gives TensorRT 10 more such fusions than FP16, and a
    # layer in floating point is faster in FP16.
    model, casts = _to_fp16(wide) if graph.is_mixed or spared else _with_head(wide, graph, fp32, settings)
    if onnx_graph.opset_of(placed) > _OPSET_OF_TENSORRT_8_6:
        return _Forms(model, casts, left=newly)
    old = centre_outputs(correct_biases(requantize(placed, weights, kind), weights, means), shifts)
    return _Forms(model, casts, put_pairs_on_weights(old), newly)


def _with_head(wide: onnx.ModelProto, graph: Graph, fp32: onnx.ModelProto, settings: QuantizationConfig) -> Narrowed:
    """Return a graph in FP32 around int8 with its last products in the type of the configuration.

    Raises:
        QuantizeError: it has no such products in FP32.
    """
    if settings.head is None:
        return Narrowed(wide, ())
    if not (found := half_heads(wide, outer_layers(fp32, graph, settings), members(fp32, "pools"))).casts:
        raise _no_head(settings)
    return found


def _no_head(settings: QuantizationConfig) -> QuantizeError:
    return QuantizeError(
        "quantization.head: no last product of the graph is in FP32",
        expected="auto",
        got=str(settings.head),
        fix="remove `head` from `quantization`",
    )


def _place_apart(project: Project, graph: Graph, scratch: Path, left: tuple[str, ...] = ()) -> Means:
    """Place the pairs in a process of its own: there are graphs that end ONNX Runtime by a signal.

    Raises:
        QuantizeError: the graph cannot be quantised, or the process died.
        KilledError: something outside has ended the process.
        OverdueError: it took longer than the project allows.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _apart(project, graph, place, project, graph, scratch, left, Path(folder))


def _shifts(project: Project, graph: Graph, scratch: Path) -> Means:
    """Return the shifts of the outputs of a quantised graph in a file, with the errors of `_place_apart`."""
    return _apart(project, graph, measure_shifts, project, scratch)


def _apart(project: Project, graph: Graph, function: Callable[..., Means], *arguments: object) -> Means:
    rerun = project.command(Step("quantize", f"{project.plan.model}/{graph.value}"))
    try:
        return run_isolated(function, *arguments, timeout_seconds=project.run_seconds, rerun=rerun)
    except (KilledError, OverdueError):  # of the host and of the budget, not of the graph
        raise
    except CrashedError as exc:
        raise QuantizeError(
            "ONNX Runtime cannot calibrate the graph", where=graph.value, got=str(exc).replace("\n", ";")
        ) from exc


def measure_shifts(project: Project, scratch: Path) -> Means:
    """Return the mean error of the outputs of the quantised graph in `scratch` on calibration images."""
    with _translated():
        return output_shifts(onnx.load(scratch), fp32_of(project), _images(project))


def place(project: Project, graph: Graph, scratch: Path, left: tuple[str, ...], folder: Path) -> Means:
    """Write the FP32 graph with calibrated Q/DQ pairs to `scratch`; return the means of the inputs.

    Biases are corrected in x86's graph, which is complete, and not yet in TensorRT's.

    Args:
        project: as `make_quantized` takes it.
        graph: the graph to make.
        scratch: the file to write.
        left: nodes of x86's graph that stay in FP32.
        folder: the place of the quantiser's own files, which a crash leaves.
    """
    tempfile.tempdir = str(folder)
    with _translated(), storage_errors(f"writing {scratch}"):
        fp32 = fp32_of(project)
        # Before the quantiser moves the weights out of the graph.
        images = _images(project)
        means = kept_arrays(Kept(means_key(project), project.paths.means), partial(input_means, fp32, images))
        weights = _weights(fp32) if graph.for_x86 else {}
        kept = Kept(ranges_key(project, graph), project.paths.ranges)
        settings = project.config.quantization
        pairs = proposed_pairs(project, graph, fp32, settings)
        place_pairs(images, graph, fp32, scratch, left, kept, settings=settings, pairs=pairs)
        if graph.for_x86:
            onnx.save(correct_biases(onnx.load(scratch), weights, means), scratch)
        return means


def _placed(
    graph: Graph, scratch: Path, weights: Weights, left: Collection[str] = (), pairs: Collection[PlacedPair] = ()
) -> onnx.ModelProto:
    """Return TensorRT's graph as the quantiser has written it, with the pairs where TensorRT fuses them.

    Proposed pairs stand where they were proposed. The nodes in `left` get none.
    """
    placed = onnx.load(scratch)
    leave_outputs(placed)
    if pairs:
        placed = keep_pairs(placed, weights, {(pair.node, pair.input) for pair in pairs})
        check_placed(placed, pairs)
        return leave(placed, weights, left) if left else placed
    if graph.precision is Precision.INT8:
        carry_skips_in_int8(placed)
    return leave_idle(leave(placed, weights, left) if left else placed, weights)


def calibrate(project: Project, graph: Graph, images: Images, settings: QuantizationConfig | None = None) -> Calibrated:
    """Calibrate the graph once, for any choice of quantised nodes.

    Call it in a process that may crash: ONNX Runtime runs the graph.

    Args:
        project: the export of FP32 and the data stage must have run.
        graph: int8 or fp8 for TensorRT.
        images: the images that give the ranges.
        settings: those in place of the configuration's; None takes them.

    Raises:
        QuantizeError: the graph cannot be quantised.
        RecordError: a record of the export or of the data stage is missing or damaged.
    """
    with _translated(), tempfile.TemporaryDirectory() as folder:
        fp32 = fp32_of(project)
        weights, means = _weights(fp32), input_means(fp32, images)  # before the quantiser moves the weights out of it
        scratch, settings = Path(folder) / "placed.onnx", settings or project.config.quantization
        groups = left_by(settings, fp32)
        pairs = proposed_pairs(project, graph, fp32, settings)
        place_pairs(images, graph, fp32, scratch, settings=settings, pairs=pairs)
        placed = onnx_graph.to_opset(_placed(graph, scratch, weights, groups, pairs), OPSET)
        kind = QUANTIZED_TYPES[graph.precision]
        return Calibrated(requantize(placed, weights, kind), weights, means, is_proposed=bool(pairs))


def quantized_once(project: Project, graph: Graph, images: Images, settings: QuantizationConfig) -> onnx.ModelProto:
    """Return a quantised graph with corrected biases and all of its nodes, for a look at its outputs.

    Call it in a process that may crash: ONNX Runtime runs the graph.

    Args:
        project: the export of FP32 and the data stage must have run.
        graph: a quantised graph, for TensorRT or for x86.
        images: the images that give the ranges.
        settings: those in place of the configuration's.

    Raises:
        QuantizeError: the graph cannot be quantised.
        RecordError: a record of the export or of the data stage is missing or damaged.
    """
    if not graph.for_x86:
        return calibrate(project, graph, images, settings).leaving(())
    with _translated(), tempfile.TemporaryDirectory() as folder:
        fp32, scratch = fp32_of(project), Path(folder) / "placed.onnx"
        weights, means = _weights(fp32), input_means(fp32, images)
        place_pairs(images, graph, fp32, scratch, settings=settings)
        return correct_biases(onnx.load(scratch), weights, means)


def _check_left(project: Project, left: Collection[str], nodes: Sequence[onnx.NodeProto], graph: Graph) -> None:
    known = [node.name for node in nodes]
    for name in left:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            raise QuantizeError(
                f"leave_unquantized.{graph.precision.value} names {name!r}, which is no quantised node of the graph",
                expected=f"one of {', '.join(close or known[:3])}{'' if close else ', …'}",
                fix=f"see all of them with `{project.doit} sensitivity:{project.plan.model}/{graph.precision.value}`",
            )
    if all(node.name in left for node in nodes if node.op_type in QUANTIZED_OPERATORS):
        raise QuantizeError(
            f"leave_unquantized.{graph.precision.value} names every layer; none would be {graph.precision.value}",
            fix="name fewer layers, or use fp16",
        )


def _to_fp16(model: onnx.ModelProto) -> Narrowed:
    """Return the graph in FP16 with FP32 input and output, and the lost values of its weights."""
    exact = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}  # quantised again
    return cast(model, TensorProto.FLOAT16, exact)


def run(project: Project, graph: Graph, console: Console) -> int:
    """Quantise a graph, and print its size and the losses of the cast."""
    record = make_quantized(project, graph)
    second = ", and a form of opset 17" if record.opset17 else ""
    console.say(f"{size_phrase(record.file.bytes)}, opset {record.opset}{second}")
    say_casts(console, record.casts)
    return 0
