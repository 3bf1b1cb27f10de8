"""FP32 graph + images → the graph with calibrated Q/DQ pairs, as ONNX Runtime's quantiser writes it."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from model_artifacts.errors import QuantizeError
from model_artifacts.records import Graph, Precision
from pipeline.config.quantization import Placement, RangeMethod
from pipeline.planning.steps import Step
from pipeline.records import PlacedPair
from pipeline.stages.quantize.calibration import TAKES_RANGES, Calibration, Reader, kept_ranges
from pipeline.stages.quantize.groups import left_by, members
from pipeline.stages.quantize.histograms import range_of
from pipeline.stages.quantize.placement import AUTO, proposed_settings, quantizer_settings, without_fp8_kernels
from pipeline.stages.quantize.rewriting import QUANTIZED_OPERATORS, quantized_inputs
from pipeline.stages.quantize.rules import PERCENTILE, rule_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

    import onnx

    from pipeline.config.quantization import QuantizationConfig, RangeRule
    from pipeline.planning.project import Project
    from pipeline.stages.quantize.calibration import Images, Kept, Ranges

_FITTED = {RangeMethod.ENTROPY, RangeMethod.MSE}
"""Rules that look at the images again, once the ends of the activations are known."""


def takes(rule: RangeRule) -> bool:
    """Return whether the installed ONNX Runtime can quantise by a rule."""
    return TAKES_RANGES or rule.method not in _FITTED


def proposed_pairs(
    project: Project, graph: Graph, fp32: onnx.ModelProto, settings: QuantizationConfig
) -> tuple[PlacedPair, ...]:
    """Return the pairs of TensorRT's graph that Model Optimizer has proposed, and those of groups that are added.

    Args:
        project: the project, whose `propose` stage must have run if the settings ask for its pairs.
        graph: the graph to make.
        fp32: the FP32 graph.
        settings: those of the configuration.

    Returns:
        the pairs; none if the graph has this project's own places.

    Raises:
        QuantizeError: the proposal is of another FP32 graph.
        RecordError: there is no proposal, or its record is damaged.
    """
    if graph.for_x86 or settings.placement is Placement.AUTO:
        return ()
    base = Graph(graph.precision.value)
    record = project.proposal(base)
    known, digest = {node.name: node for node in fp32.graph.node}, project.onnx(Graph.FP32).structure_sha256
    strange = [pair.node for pair in record.pairs if not _is_of(pair, known.get(pair.node))]
    if record.structure_sha256 != digest or strange:
        raise QuantizeError(
            "the proposal of Model Optimizer is of another FP32 graph",
            where=str(project.paths.proposal(base)),
            expected=f"pairs of the graph with the structure {digest[:12]}…",
            got=f"{record.structure_sha256[:12]}…{f', with a node {strange[0]}' if strange else ''}",
            fix=f"run `{project.command(Step('propose', f'{project.plan.model}/{base.value}'))}`",
        )
    nodes = [known[name] for group, placed in settings.placed.items() if placed for name in members(fp32, group)]
    added = [
        PlacedPair(node=node.name, kind=node.op_type, input=place, tensor=name)
        for node in nodes
        for place, name in enumerate(node.input[:2])
    ]
    return tuple(dict.fromkeys((*record.pairs, *added)))


def _is_of(pair: PlacedPair, node: onnx.NodeProto | None) -> bool:
    """Return whether a node of the FP32 graph reads a pair's tensor at its place."""
    return (
        node is not None and node.op_type == pair.kind and [*node.input][pair.input : pair.input + 1] == [pair.tensor]
    )


def place_pairs(  # noqa: PLR0913 - a calibration's inputs, and its one result
    images: Images,
    graph: Graph,
    fp32: onnx.ModelProto,
    scratch: Path,
    left: tuple[str, ...] = (),
    kept: Kept | None = None,
    *,
    settings: QuantizationConfig = AUTO,
    pairs: Collection[PlacedPair] = (),
) -> None:
    """Write the FP32 graph with calibrated Q/DQ pairs.

    Args:
        images: the calibration images.
        graph: the graph to make.
        fp32: the FP32 graph; the quantiser moves its weights out of it.
        scratch: the file to write.
        left: nodes of x86's graph that stay in FP32.
        kept: the ranges of these images that other graphs have left, or will take; None for neither.
        settings: those of the configuration.
        pairs: the pairs of TensorRT's graph that were proposed; empty for this project's own places.

    Raises:
        QuantizeError: the installed ONNX Runtime cannot take ranges by this rule; or the groups that the settings leave
            out are not in the graph, or are all of its layers; or those that they add have no kernels.
    """
    arguments = proposed_settings(graph, fp32, settings, pairs) if pairs else quantizer_settings(graph, fp32, settings)
    groups = left_by(settings, fp32)
    # In TensorRT's graph these would read the pairs in front of their neighbours: theirs are taken away afterwards.
    arguments["nodes_to_exclude"] += [*left, *(groups if graph.for_x86 else ())]
    _check_layers(graph, fp32, {*arguments["nodes_to_exclude"], *groups}, settings)
    _check_added(graph, fp32, settings)
    rule = rule_of(settings, graph)
    reader = Reader(images.batches(), [value.name for value in fp32.graph.input])
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        if TAKES_RANGES:
            file = arguments["calibration_cache_path"] = Path(folder) / "ranges.json"
            calibration = Calibration(fp32, rule.percentile or PERCENTILE, file.parent)
            _write_ranges(images, graph, calibration, rule, arguments, kept)
        elif not takes(rule):
            raise QuantizeError(
                f"quantization.calibration: {rule.text} needs an ONNX Runtime whose quantiser takes ranges",
                expected="the onnxruntime-gpu for Python 3.11 or later",
                fix="use such a Python; or write max or a percentile",
            )
        quantize_static(
            fp32,
            str(scratch),
            reader,
            quant_format=QuantFormat.QDQ,
            weight_type=QuantType.QInt8,
            **arguments,
        )


def check_placed(model: onnx.ModelProto, pairs: Collection[PlacedPair]) -> None:
    """Refuse proposed pairs that ONNX Runtime's quantiser has not placed, such as on integers.

    Args:
        model: the QDQ graph.
        pairs: the pairs.

    Raises:
        QuantizeError: some are not there.
    """
    found = quantized_inputs(model)
    lacking = [pair for pair in pairs if (pair.node, pair.input) not in found]
    if lacking:
        first = lacking[0]
        raise QuantizeError(
            "ONNX Runtime's quantiser does not place the proposed Q/DQ pairs",
            where=f"input {first.input} of {first.node} ({first.kind})",
            expected=f"{len(pairs)} pairs",
            got=f"{len(lacking)} of them are missing",
            fix="leave `quantization.placement` at auto",
        )


def _check_layers(graph: Graph, fp32: onnx.ModelProto, excluded: set[str], settings: QuantizationConfig) -> None:
    """Refuse settings that leave out every layer.

    Raises:
        QuantizeError: they do.
    """
    groups = [group for group, placed in settings.placed.items() if not placed]
    layers = {node.name for node in fp32.graph.node if node.op_type in QUANTIZED_OPERATORS}
    if groups and layers <= excluded:
        raise QuantizeError(
            f"`quantization` leaves out every layer; none would be {graph.precision.value}",
            got=", ".join(f"{group}: false" for group in groups),
            fix="leave out fewer groups, or use fp16",
        )


def _check_added(graph: Graph, fp32: onnx.ModelProto, settings: QuantizationConfig) -> None:
    """Refuse settings that add layers for which there are no kernels.

    Raises:
        QuantizeError: they do.
    """
    without = {*without_fp8_kernels(fp32)} if graph.precision is Precision.FP8 else set[str]()
    for group, placed in settings.placed.items():
        names = members(fp32, group) if placed else []
        if names and without.issuperset(names):
            raise QuantizeError(
                f"quantization.{group}: TensorRT has no fp8 kernels for {', '.join(names)}",
                expected="auto",
                got="true",
                fix=f"remove `{group}` from `quantization`",
            )


def _write_ranges(  # noqa: PLR0913 - a calibration's inputs, and where its result goes
    images: Images,
    graph: Graph,
    calibration: Calibration,
    rule: RangeRule,
    arguments: dict[str, Any],
    kept: Kept | None,
) -> None:
    """Write the ranges of the activations for the quantiser: those that another graph has left, or from the images."""
    kind, file = arguments["calibrate_method"], arguments["calibration_cache_path"]
    names = calibration.names(arguments.get("op_types_to_quantize"))
    ranges = kept_ranges(kept.key, kept.file) if kept else None
    if ranges is None or not names <= ranges.of(kind).keys():
        ranges = _ranges(images, graph, calibration, rule, names)
        if kept:
            ranges.keep(kept.key, kept.file)
    ranges.write(kind, names, file)


def _ranges(images: Images, graph: Graph, calibration: Calibration, rule: RangeRule, names: set[str]) -> Ranges:
    """Return the ranges by a rule: from one pass over the images, or from two."""
    ranges = calibration.run(images, names if rule.method is RangeMethod.PERCENTILE else ())
    if rule.method not in _FITTED:
        return ranges
    found = calibration.histograms(images, {name: ranges.extremes[name] for name in names & ranges.extremes.keys()})
    return ranges._replace(clipped={name: range_of(item, rule.method, graph) for name, item in found.items()})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser, whose advice on the root logger the export has already followed."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
