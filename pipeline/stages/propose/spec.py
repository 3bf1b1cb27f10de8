"""The stage `propose`: places of Q/DQ pairs by NVIDIA's Model Optimizer, for `quantization.placement`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import Graph
from pipeline.planning.keys import make_key
from pipeline.planning.spec import WHOLE_QDQ, StageSpec
from pipeline.records import Proposal

if TYPE_CHECKING:
    from model_artifacts.records import Key
    from pipeline.planning.project import Project

VERSION = 1
"""Raise it when the same ONNX file of Model Optimizer gives other pairs, or it is called in another way."""


def proposal_key(project: Project, graph: Graph) -> Key:
    """Return the key of a proposal: the FP32 graph without its weights, on which the places do not depend.

    The version of Model Optimizer is in the record, and not here: a host without it takes the record of another host.
    """
    return make_key(propose=VERSION, graph=graph, fp32=project.onnx(Graph.FP32).structure_sha256)


SPEC = StageSpec(
    name="propose",
    sentence="On demand: where Model Optimizer puts Q/DQ pairs, for `quantization: {placement: model_optimizer}`.",
    subjects=WHOLE_QDQ,
    version=VERSION,
    record=Proposal,
    records=lambda paths, _plan, graph: (paths.proposal(graph),),
    key=proposal_key,
    run="pipeline.stages.propose.stage:run",
    requires=lambda schedule, _graph: (*schedule.of("data"), schedule.plan.graph_step(Graph.FP32)),
    on_demand=True,
)
