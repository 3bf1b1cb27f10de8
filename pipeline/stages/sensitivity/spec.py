"""The stage `sensitivity`: the accuracy that each quantised node costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.factory_code import code_of, imported_code_of
from model_artifacts.records import Graph, Task
from pipeline.planning.keys import make_key
from pipeline.planning.spec import WHOLE_QDQ, StageSpec
from pipeline.records import Sensitivity
from pipeline.stages.quantize.spec import quantize_key

if TYPE_CHECKING:
    from model_artifacts.records import Key
    from pipeline.config.settings import ModelConfig
    from pipeline.planning.project import Project

VERSION = 5
"""Raise it when the same graph and images give another table. Since 2 it ranks all nodes that read quantised tensors,
judges on other images than it calibrates with, and keeps a reserve to the gate. Since 3 it judges as the task does.
Since 4 biases are corrected, as in the graphs that are built. Since 5 int8's outputs are centred, as in those."""


def sensitivity_key(project: Project, graph: Graph) -> Key:
    """Return the key of a table of sensitivities."""
    return make_key(
        sensitivity=VERSION,
        quantized=quantize_key(project, graph).digest,
        gate=project.config.gates.of(graph.precision),
        margin=project.config.gates.margin,
        **_answers(project.config.model),
    )


def _answers(model: ModelConfig) -> dict[str, object]:
    """Return the settings that decide which answers are lost, of tasks that have any."""
    if model.task is Task.MULTILABEL:
        return {"threshold": model.threshold}
    if model.task is Task.DETECTION:
        function = model.postprocess
        code = [code_of(function), imported_code_of(function)] if function else []
        return {"decoding": model.decoding, "postprocess": function, "code": code}
    return {"tolerance": model.tolerance} if model.tolerance else {}


SPEC = StageSpec(
    name="sensitivity",
    sentence="On demand: each node's sensitivity to int8 or fp8, and the nodes to leave in FP16 to pass the gate.",
    subjects=WHOLE_QDQ,
    version=VERSION,
    record=Sensitivity,
    records=lambda paths, _plan, graph: (paths.sensitivity(graph),),
    key=sensitivity_key,
    run="pipeline.stages.sensitivity.stage:run",
    requires=lambda schedule, _graph: (*schedule.of("data"), schedule.plan.graph_step(Graph.FP32)),
    on_demand=True,
    prints_a_table=True,
)
