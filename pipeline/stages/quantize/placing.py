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
from model_artifacts.records import Precision
from pipeline.config.quantization import RangeMethod
from pipeline.stages.quantize.calibration import TAKES_RANGES, Calibration, Reader, kept_ranges
from pipeline.stages.quantize.groups import left_by, members
from pipeline.stages.quantize.histograms import range_of
from pipeline.stages.quantize.placement import AUTO, quantizer_settings, without_fp8_kernels
from pipeline.stages.quantize.rewriting import QUANTIZED_OPERATORS
from pipeline.stages.quantize.rules import PERCENTILE, rule_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import onnx

    from model_artifacts.records import Graph
    from pipeline.config.quantization import QuantizationConfig, RangeRule
    from pipeline.stages.quantize.calibration import Images, Kept, Ranges

_FITTED = {RangeMethod.ENTROPY, RangeMethod.MSE}
"""Rules that look at the images again, once the ends of the activations are known."""


def takes(rule: RangeRule) -> bool:
    """Return whether the installed ONNX Runtime can quantise by a rule."""
    return TAKES_RANGES or rule.method not in _FITTED


def place_pairs(  # noqa: PLR0913 - a calibration's inputs, and its one result
    images: Images,
    graph: Graph,
    fp32: onnx.ModelProto,
    scratch: Path,
    left: tuple[str, ...] = (),
    kept: Kept | None = None,
    *,
    settings: QuantizationConfig = AUTO,
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

    Raises:
        QuantizeError: the installed ONNX Runtime cannot take ranges by this rule; or the groups that the settings leave
            out are not in the graph, or are all of its layers; or those that they add have no kernels.
    """
    arguments = quantizer_settings(graph, fp32, settings)
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
