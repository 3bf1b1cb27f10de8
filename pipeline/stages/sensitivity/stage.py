"""A quantised graph → each node's sensitivity to quantisation, and a proposal of nodes to leave unquantised."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.host.environment import now, tools
from model_artifacts.host.progress import Bars
from model_artifacts.records import Precision, Task
from model_artifacts.sessions.onnx import run_stand_in
from pipeline.config.tasks import require_tolerances
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import LayerSensitivity, Sensitivity
from pipeline.stages.common.rows import rows_of, spans_of
from pipeline.stages.common.samples import to_batch
from pipeline.stages.quantize.bias_correction import Centre
from pipeline.stages.quantize.calibration import Images
from pipeline.stages.quantize.rewriting import QUANTIZED_OPERATORS, quantized_nodes
from pipeline.stages.quantize.stage import calibrate
from pipeline.stages.sensitivity.judging import Judged, Meaning, judge, keeps
from pipeline.stages.sensitivity.table import print_sensitivity
from pipeline.stages.validate.detections import detector_of
from pipeline.stages.validate.yardsticks import tolerance_of
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import onnx

    from model_artifacts.records import Graph
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console

    Logits = npt.NDArray[np.float32]
    Pixels = npt.NDArray[np.uint8]

_BATCH = 16


def measure_sensitivity(project: Project, graph: Graph, timeout_seconds: float = math.inf) -> Sensitivity:
    """Quantise one node at a time, then leave the most sensitive ones in floating point until the gate passes.

    A node is all that reads quantised tensors: a layer, a sum, a pool. ONNX Runtime runs the graphs on the CPU. Half of
    the calibration images give the ranges, and the other half judges. The reference is the same graph with nothing
    quantised. Validation images are not used, because they must not influence the graph.

    Args:
        project: the export of FP32 and the data stage must have run.
        graph: int8 or fp8 for TensorRT, with all layers quantised.
        timeout_seconds: the time limit.

    Raises:
        QuantizeError: the graph cannot be quantised.
        RunError: a graph cannot be run.
        CrashedError: the process that runs the graphs died, or took too long.
        RecordError: a record of the export or of the data stage is missing or damaged.
        StorageError: the record cannot be written.
    """
    step = Step("sensitivity", f"{project.plan.model}/{graph.value}")
    rerun = project.command(step)
    found = run_isolated(_measure, project, graph, rerun=rerun, timeout_seconds=timeout_seconds)
    gates, task = project.config.gates, project.config.model.task
    record = Sensitivity(
        key=key_of(project, step),
        built_at=now(),
        toolchain=tools("onnx", "onnxruntime-gpu"),
        graph=graph,
        samples=found.samples,
        calibration_sha256=project.data().calibration.sha256,
        task=task,
        layers=found.layers,
        plain=found.plain.accuracy,
        plain_loss=found.plain.loss,
        proposal=found.proposal,
        proposed=found.proposed.accuracy,
        proposed_loss=found.proposed.loss,
        kept=keeps(found.proposed, gates.of(graph.precision), gates.margin, task),
        calibrated_on=found.calibrated_on,
    )
    return project.write(project.paths.sensitivity(graph), record)


class _Found(NamedTuple):
    """The results of the process that runs the graphs."""

    samples: int
    calibrated_on: int
    layers: tuple[LayerSensitivity, ...]
    """The most sensitive first."""
    plain: Judged
    """With all nodes quantised."""
    proposal: tuple[str, ...]
    proposed: Judged


def _measure(project: Project, graph: Graph) -> _Found:
    """Run the graphs in ONNX Runtime, in a process that may crash."""
    data = project.data()
    ranging, judged = halves(np.asarray(project.pixels(data.calibration)))
    judging = to_batch(judged, data.preprocessing)
    given = Images(ranging, data.preprocessing)
    calibrated = calibrate(project, graph, given)
    nodes = {node.name: node for node in quantized_nodes(calibrated.model)}
    whole = calibrated.leaving([node.name for node in calibrated.model.graph.node])
    meaning = meaning_of(project)
    reference = run_graph(whole, judging, meaning)
    # As `make_quantized` centres, by the images that give the ranges.
    centre = Centre.of(whole, given) if graph.precision is Precision.INT8 else None

    def judged_of(model: onnx.ModelProto) -> Judged:
        return judge(run_graph(centre.centred(model) if centre else model, judging, meaning), reference, meaning)

    with Bars() as bars:
        report = bars.reporting("nodes quantised one at a time")
        layers = []
        for done, name in enumerate(nodes, start=1):
            layers.append(_sensitivity(whole, name, judged_of(calibrated.quantizing(name))))
            report(done, len(nodes))
    layers.sort(key=lambda layer: -layer.distance)
    plain, gates = judged_of(calibrated.leaving(())), project.config.gates
    gate = gates.of(graph.precision)
    ranked = tuple(layer.name for layer in layers)
    multiplies = frozenset(name for name, node in nodes.items() if node.op_type in QUANTIZED_OPERATORS)
    proposal, proposed = propose(
        Ranked(ranked, multiplies),
        plain,
        lambda left: judged_of(calibrated.leaving(left)),
        lambda judged: keeps(judged, gate, gates.margin, meaning.task),
    )
    return _Found(len(judged), len(ranging), tuple(layers), plain, proposal, proposed)


def meaning_of(project: Project) -> Meaning:
    """Return what decides which of the model's answers are lost."""
    model, source = project.config.model, project.source()
    spans, tolerance = spans_of(source), model.tolerance
    if model.task is Task.REGRESSION:
        require_tolerances(tolerance, source.classes)
    elif tolerance:
        tolerance = tuple(found for span in spans for found in tolerance_of(tolerance, source.output_names, span.name))
    detector = detector_of(project) if model.task is Task.DETECTION else None
    return Meaning(model.task, spans, model.threshold, tolerance, detector)


def halves(images: Pixels) -> tuple[Pixels, Pixels]:
    """Return every second image, and the others: those that give the ranges, and those that judge.

    A single image does both.
    """
    return images[::2], images[1::2] if len(images) > 1 else images


class Ranked(NamedTuple):
    """The nodes of a quantised graph, by their sensitivity."""

    names: tuple[str, ...]
    """All names, the most sensitive first."""
    layers: frozenset[str]
    """Names of convolutions and matrix products. One of them must stay quantised."""


def propose(
    ranked: Ranked,
    plain: Judged,
    judged_of: Callable[[tuple[str, ...]], Judged],
    keeps_gate: Callable[[Judged], bool],
) -> tuple[tuple[str, ...], Judged]:
    """Return the fewest of the most sensitive nodes that must stay in floating point for the gate to pass.

    Args:
        ranked: the nodes.
        plain: the graph with all nodes quantised.
        judged_of: the nodes left in floating point → the graph with the others quantised.
        keeps_gate: the rule.

    Returns:
        the nodes and the resulting graph; all nodes up to the last layer if none passes the gate.
    """
    left: tuple[str, ...] = ()
    judged = plain
    while not keeps_gate(judged) and ranked.layers.intersection(ranked.names[len(left) + 1 :]):
        left = ranked.names[: len(left) + 1]
        judged = judged_of(left)
    return left, judged


def run_graph(model: onnx.ModelProto, images: Batch, meaning: Meaning) -> Logits:
    """Run a graph on the CPU; return float32 (samples, values of all outputs)."""
    outputs = run_stand_in(model.SerializeToString(), images, _BATCH)
    return rows_of(outputs, meaning.spans, "the quantised graph")


def _sensitivity(whole: onnx.ModelProto, name: str, judged: Judged) -> LayerSensitivity:
    (node,) = (item for item in whole.graph.node if item.name == name)
    sizes = [math.prod(tensor.dims) for tensor in whole.graph.initializer if tensor.name in node.input[1:2]]
    return LayerSensitivity(
        name=name,
        kind=node.op_type,
        weights=sum(sizes),
        distance=judged.distance,
        cosine=judged.accuracy.cosine,
        loss=judged.loss,
    )


def run(project: Project, graph: Graph, _console: Console) -> int:
    """Measure the sensitivities of a graph, and print them as a table."""
    print_sensitivity(measure_sensitivity(project, graph), sys.stdout)
    return 0
