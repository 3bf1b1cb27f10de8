"""Rules for the ranges of activations, judged on calibration images without a build: which are worth one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.records import Precision
from pipeline.planning.steps import Step
from pipeline.stages.common.samples import to_batch
from pipeline.stages.quantize.bias_correction import Centre
from pipeline.stages.quantize.calibration import Images
from pipeline.stages.quantize.stage import fp32_of, quantized_once
from pipeline.stages.sensitivity.judging import judge, keeps
from pipeline.stages.sensitivity.stage import halves, meaning_of, run_graph
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_artifacts.records import Graph
    from pipeline.config.quantization import RangeRule
    from pipeline.planning.project import Project

_MOST_IMAGES = 128
"""The most calibration images, of which half give the ranges: a choice. It sorts rules out, and claims nothing."""


class JudgedRule(NamedTuple):
    """A quantised graph with the ranges by a rule, beside the graph in FP32."""

    rule: RangeRule
    kept: bool
    """True if these images keep the precision's own bounds."""
    loss: float
    """Share of other answers, as the sensitivities have it."""
    distance: float
    """Relative L2 distance of the outputs."""


def judge_rules(
    project: Project,
    graph: Graph,
    rules: Sequence[RangeRule],
    timeout_seconds: float = math.inf,
    keep: Callable[[Sequence[JudgedRule]], None] | None = None,
) -> list[JudgedRule]:
    """Quantise the graph by each rule, and judge it with ONNX Runtime on the CPU.

    Half of the images give the ranges, and the other half judges. Validation images are not used, because they must not
    influence the graph.

    Args:
        project: the export of FP32 and the data stage must have run.
        graph: a quantised graph, for TensorRT or for x86.
        rules: the rules.
        timeout_seconds: the time limit.
        keep: keeps the rules that are judged so far, after each; called in the process that judges.

    Raises:
        QuantizeError: the graph cannot be quantised.
        RunError: a graph cannot be run.
        CrashedError: the process that runs the graphs died, or took too long.
        RecordError: a record of the export or of the data stage is missing or damaged.
    """
    step = Step("sensitivity", f"{project.plan.model}/{graph.value}")
    rerun = project.command(step)
    return run_isolated(_judge, project, graph, tuple(rules), keep, rerun=rerun, timeout_seconds=timeout_seconds)


def _judge(
    project: Project,
    graph: Graph,
    rules: tuple[RangeRule, ...],
    keep: Callable[[Sequence[JudgedRule]], None] | None,
) -> list[JudgedRule]:
    """Run the graphs, in a process that may crash."""
    data, config = project.data(), project.config
    ranging, judged = halves(np.asarray(project.pixels(data.calibration)[:_MOST_IMAGES]))
    images, judging = Images(ranging, data.preprocessing), to_batch(judged, data.preprocessing)
    meaning = meaning_of(project)
    fp32 = fp32_of(project)
    reference = run_graph(fp32, judging, meaning)
    centre = Centre.of(fp32, images) if graph.precision is Precision.INT8 else None  # as `make_quantized` does
    gates, found = config.gates, []
    for rule in rules:
        settings = config.quantization.model_copy(update={"calibration": rule})
        model = quantized_once(project, graph, images, settings)
        result = judge(run_graph(centre.centred(model) if centre else model, judging, meaning), reference, meaning)
        kept = keeps(result, gates.of(graph.precision), gates.margin, meaning.task)
        found.append(JudgedRule(rule, kept, result.loss, result.distance))
        if keep is not None:
            keep(found)
    return found
