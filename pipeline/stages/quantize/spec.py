"""The stage `quantize`: ONNX files in int8 and fp8."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from model_artifacts.records import Graph, Precision
from pipeline.config.quantization import Placement
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.keys import make_key
from pipeline.planning.spec import QUANTIZED, StageSpec
from pipeline.records import OnnxRecord
from pipeline.stages.quantize.rules import default_rule, rule_of

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Key
    from pipeline.planning.paths import Paths
    from pipeline.planning.plan import Plan
    from pipeline.planning.project import Project
    from pipeline.planning.schedule import Schedule
    from pipeline.planning.steps import Step

VERSION = 9
"""Raise it when the same graph and images give another quantised graph.

2 has int8 in the first convolution. 3 keeps the ReLU before a layer that stays in FP32 for x86. 4 has seven bits in the
weights for x86. 5 leaves the last product in FP32 there. 6 has
FP32 around int8, and fp8 in the form that TensorRT 10 fuses, with corrected biases. 7 has the oldest IR version.
8 has no pairs on means that no kernel can end in int8 for, such as a squeeze-excite's. 9 corrects the biases of
int8, too, and centres its outputs.
"""


HEADS_VERSION = 1
"""Raise it when the same graph of several outputs gives another quantised graph.

1 leaves the last product of each output in floating point, and not that of one alone.
"""
FP8_VERSION = 1
"""Raise it when the same graph gives another one in fp8.

1 leaves convolutions without FP8 kernels in floating point.
"""
PAIRS_VERSION = 2
"""Raise it when the same groups of Q/DQ pairs give another graph.

2 has FP16 around int8 only if a node is left out that has pairs by itself.
"""
PLACEMENT_VERSION = 1
"""Raise it when the same proposed pairs give another graph."""
HEAD_VERSION = 1
"""Raise it when the same type of the head gives another graph."""
SIZES_VERSION = 1
"""Raise it when the same graph of computed sizes gives another quantised graph: that of an ONNX file, or of named axes.

1 keeps arithmetic on sizes in float32.
"""


def quantize_key(project: Project, graph: Graph) -> Key:
    """Return the key of a quantised graph."""
    left = {"leave": project.config.leave_unquantized.of(graph)} if graph.is_mixed else {}
    return make_key(
        **left,
        **_heads(project),
        **_fp8(graph),
        **_sizes(project),
        **_ranges(project, graph),
        **_pairs(project),
        **_proposal(project, graph),
        **_head(project, graph),
        graph=graph,
        quantizer=VERSION,
        fp32=project.onnx(Graph.FP32).canonical_sha256,
        calibration=project.data().calibration.sha256,
        preprocessing=project.data().preprocessing,
        onnx=version("onnx"),
        onnxruntime=version("onnxruntime-gpu"),
    )


def _heads(project: Project) -> dict[str, int]:
    """Return the field of a graph with several outputs."""
    return {"heads": HEADS_VERSION} if len(project.onnx(Graph.FP32).outputs) > 1 else {}


def _fp8(graph: Graph) -> dict[str, int]:
    """Return the field of a graph in fp8."""
    return {"fp8": FP8_VERSION} if graph.precision is Precision.FP8 else {}


def _sizes(project: Project) -> dict[str, int]:
    """Return the field of a graph that may compute sizes."""
    return {"sizes": SIZES_VERSION} if project.config.axes or project.config.model.onnx else {}


def _ranges(project: Project, graph: Graph) -> dict[str, str]:
    """Return the field of a rule for ranges that is not the graph's own."""
    rule = rule_of(project.config.quantization, graph)
    return {} if rule == default_rule(graph) else {"ranges": rule.text}


def _pairs(project: Project) -> dict[str, object]:
    """Return the field of the groups whose Q/DQ pairs the configuration places or leaves out."""
    placed = project.config.quantization.placed
    return {"pairs": {"version": PAIRS_VERSION, **placed}} if placed else {}


def _proposal(project: Project, graph: Graph) -> dict[str, object]:
    """Return the field of places that Model Optimizer has proposed: its version, and the pairs."""
    if graph.for_x86 or project.config.quantization.placement is Placement.AUTO:
        return {}
    record = project.proposal(Graph(graph.precision.value))
    text = "\n".join(pair.to_json() for pair in record.pairs)
    pairs = hashlib.sha256(text.encode()).hexdigest()
    return {"placement": {"version": PLACEMENT_VERSION, "model_optimizer": record.model_optimizer, "pairs": pairs}}


def _head(project: Project, graph: Graph) -> dict[str, object]:
    """Return the field of the type of the last products, which plain int8 alone chooses."""
    head = project.config.quantization.head
    return {"head": [HEAD_VERSION, head]} if head and graph is Graph.INT8 else {}


def ranges_key(project: Project, graph: Graph) -> Key:
    """Return the key of the ranges of the FP32 graph's activations.

    All quantised graphs share those of their own rules. Another rule's are those of one graph: squared errors are those
    of its numbers.
    """
    ranges = _ranges(project, graph)
    return make_key(**ranges, **({"graph": graph} if ranges else {}), **_activations(project))


def means_key(project: Project) -> Key:
    """Return the key of the mean inputs of the FP32 graph's convolutions, which all quantised graphs share."""
    return make_key(**_activations(project))


def _activations(project: Project) -> dict[str, object]:
    """Return the fields of the FP32 graph's activations."""
    return {
        "quantizer": VERSION,
        "fp32": project.onnx(Graph.FP32).file.sha256,
        "calibration": project.data().calibration.sha256,
        "preprocessing": project.data().preprocessing,
        "onnx": version("onnx"),
        "onnxruntime": version("onnxruntime-gpu"),
    }


def _follows(schedule: Schedule, graph: Graph) -> tuple[Step, ...]:
    """Return the step whose calibration gives the ranges of all graphs; none for that step itself."""
    first = next((item for item in (Graph.INT8, Graph.INT8_MIXED) if item in schedule.plan.graphs), graph)
    return () if first is graph else (schedule.plan.graph_step(first),)


def _files(paths: Paths, plan: Plan, graph: Graph) -> tuple[Path, ...]:
    """Return the places of a graph's files; what graphs share is not that of one that others outlive."""
    quantized = [item for item in plan.graphs if item.precision in QUANTIZED_PRECISIONS]
    own = (paths.onnx(graph), paths.onnx_opset17(graph))
    return own if quantized and graph not in quantized else (*own, paths.ranges, paths.means)


SPEC = StageSpec(
    name="quantize",
    sentence="ONNX in int8 and fp8: calibrated QDQ for TensorRT, and int8 for this processor.",
    subjects=QUANTIZED,
    version=VERSION,
    record=OnnxRecord,
    records=lambda paths, _plan, graph: (paths.onnx_record(graph),),
    files=_files,
    key=quantize_key,
    run="pipeline.stages.quantize.stage:run",
    seconds=30,
    requires=lambda schedule, _graph: (*schedule.of("data"), schedule.plan.graph_step(Graph.FP32)),
    is_shared=lambda _plan, _graph: True,
    follows=_follows,
    needs_torch=True,
    maker_fields=frozenset({"onnx", "onnxruntime"}),
)
