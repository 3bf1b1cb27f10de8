"""The stage `quantize`: ONNX files in int8 and fp8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from model_artifacts.records import Graph
from pipeline.planning.keys import make_key
from pipeline.planning.spec import QUANTIZED, StageSpec
from pipeline.records import OnnxRecord

if TYPE_CHECKING:
    from model_artifacts.records import Key
    from pipeline.planning.project import Project

VERSION = 8
"""Raise it when the same graph and images give another quantised graph.

2 has int8 in the first convolution. 3 keeps the ReLU before a layer that stays in FP32 for x86. 4 has seven bits in the
weights for x86. 5 leaves the last product in FP32 there. 6 has
FP32 around int8, and fp8 in the form that TensorRT 10 fuses, with corrected biases. 7 has the oldest IR version.
8 has no pairs on means that no kernel can end in int8 for, such as a squeeze-excite's.
"""


def quantize_key(project: Project, graph: Graph) -> Key:
    """Return the key of a quantised graph."""
    left = {"leave": project.config.leave_unquantized.of(graph)} if graph.is_mixed else {}
    return make_key(
        **left,
        graph=graph,
        quantizer=VERSION,
        fp32=project.onnx(Graph.FP32).canonical_sha256,
        calibration=project.data().calibration.sha256,
        preprocessing=project.data().preprocessing,
        onnx=version("onnx"),
        onnxruntime=version("onnxruntime-gpu"),
    )


SPEC = StageSpec(
    name="quantize",
    sentence="ONNX in int8 and fp8: calibrated QDQ for TensorRT, and int8 for this processor.",
    subjects=QUANTIZED,
    version=VERSION,
    record=OnnxRecord,
    records=lambda paths, _plan, graph: (paths.onnx_record(graph),),
    files=lambda paths, _plan, graph: (paths.onnx(graph), paths.onnx_opset17(graph)),
    key=quantize_key,
    run="pipeline.stages.quantize.stage:run",
    seconds=30,
    requires=lambda schedule, _graph: (*schedule.of("data"), schedule.plan.graph_step(Graph.FP32)),
    is_shared=lambda _plan, _graph: True,
    needs_torch=True,
    maker_fields=frozenset({"onnx", "onnxruntime"}),
)
