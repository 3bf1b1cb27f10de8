"""A quantised graph → each node's sensitivity to quantisation, and a proposal of nodes to leave unquantised."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import UnsupportedError
from model_artifacts.host.environment import now, tools
from model_artifacts.host.progress import Bars
from model_artifacts.records import Task
from model_artifacts.sessions.onnx import run_stand_in
from model_artifacts.sessions.preprocessing import to_input
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import LayerSensitivity, Sensitivity
from pipeline.stages.quantize.calibration import Images
from pipeline.stages.quantize.rewriting import QUANTIZED_OPERATORS, quantized_nodes
from pipeline.stages.quantize.stage import calibrate
from pipeline.stages.sensitivity.table import print_sensitivity
from pipeline.stages.validate.metrics import measure
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import onnx

    from model_artifacts.records import Accuracy, Graph
    from pipeline.config.settings import Gate
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console

    Logits = npt.NDArray[np.float32]
    Pixels = npt.NDArray[np.uint8]

_BATCH = 16
_SHARE = 0.8
"""The share of what a gate allows that a proposal may take: a choice. The validation has other images, and a library
rounds at other places."""


def measure_sensitivity(project: Project, graph: Graph) -> Sensitivity:
    """Quantise one node at a time, then leave the most sensitive ones in floating point until the gate passes.

    A node is all that reads quantised tensors: a layer, a sum, a pool. ONNX Runtime runs the graphs on the CPU. Half of
    the calibration images give the ranges, and the other half judges. The reference is the same graph with nothing
    quantised. Validation images are not used, because they must not influence the graph.

    Args:
        project: the export of FP32 and the data stage must have run.
        graph: int8 or fp8 for TensorRT, with all layers quantised.

    Raises:
        UnsupportedError: the model is an embedding.
        QuantizeError: the graph cannot be quantised.
        RunError: a graph cannot be run.
        CrashedError: the process that runs the graphs died.
        RecordError: a record of the export or of the data stage is missing or damaged.
        StorageError: the record cannot be written.
    """
    step = Step("sensitivity", f"{project.plan.model}/{graph.value}")
    if project.config.model.task is not Task.CLASSIFICATION:
        raise UnsupportedError(
            "layers are ranked by the answers of a classifier",
            got=f"`model.task: {project.config.model.task.value}`",
            fix="name layers in `leave_unquantized` by hand",
        )
    found = run_isolated(_measure, project, graph, rerun=project.command(step))
    gates = project.config.gates
    record = Sensitivity(
        key=key_of(project, step),
        built_at=now(),
        toolchain=tools("onnx", "onnxruntime-gpu"),
        graph=graph,
        samples=found.samples,
        calibration_sha256=project.data().calibration.sha256,
        layers=found.layers,
        plain=found.plain,
        proposal=found.proposal,
        proposed=found.proposed,
        kept=keeps(found.proposed, gates.of(graph.precision), gates.margin),
        calibrated_on=found.calibrated_on,
    )
    return project.write(project.paths.sensitivity(graph), record)


class _Found(NamedTuple):
    """The results of the process that runs the graphs."""

    samples: int
    calibrated_on: int
    layers: tuple[LayerSensitivity, ...]
    """The most sensitive first."""
    plain: Accuracy
    """The accuracy with all layers quantised."""
    proposal: tuple[str, ...]
    proposed: Accuracy


def _measure(project: Project, graph: Graph) -> _Found:
    """Run the graphs in ONNX Runtime, in a process that may crash."""
    data = project.data()
    ranging, judged = halves(np.asarray(project.pixels(data.calibration)))
    judging = to_input(judged, data.preprocessing)
    calibrated = calibrate(project, graph, Images(ranging, data.preprocessing))
    nodes = {node.name: node for node in quantized_nodes(calibrated.model)}
    whole = calibrated.leaving([node.name for node in calibrated.model.graph.node])
    reference = _run(whole, judging)

    def accuracy_of(model: onnx.ModelProto) -> Accuracy:
        return measure(_run(model, judging), reference, None)

    with Bars() as bars:
        report = bars.reporting("nodes quantised one at a time")
        layers = []
        for done, name in enumerate(nodes, start=1):
            layers.append(_sensitivity(whole, name, accuracy_of(calibrated.quantizing(name))))
            report(done, len(nodes))
    layers.sort(key=lambda layer: -layer.relative_l2)
    plain, gates = accuracy_of(calibrated.model), project.config.gates
    gate = gates.of(graph.precision)
    ranked = tuple(layer.name for layer in layers)
    multiplies = frozenset(name for name, node in nodes.items() if node.op_type in QUANTIZED_OPERATORS)
    proposal, proposed = propose(
        Ranked(ranked, multiplies), plain, lambda left: accuracy_of(calibrated.leaving(left)), gate, gates.margin
    )
    return _Found(len(judging), len(ranging), tuple(layers), plain, proposal, proposed)


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
    plain: Accuracy,
    accuracy_of: Callable[[tuple[str, ...]], Accuracy],
    gate: Gate,
    margin: float,
) -> tuple[tuple[str, ...], Accuracy]:
    """Return the fewest of the most sensitive nodes that must stay in floating point for the gate to pass.

    Args:
        ranked: the nodes.
        plain: the accuracy with all nodes quantised.
        accuracy_of: the nodes left in floating point → the accuracy with the others quantised.
        gate: the precision's gate.
        margin: the largest acceptable drop of the top-1 accuracy.

    Returns:
        the nodes and the resulting accuracy; all nodes up to the last layer if none passes the gate.
    """
    left: tuple[str, ...] = ()
    accuracy = plain
    while not keeps(accuracy, gate, margin) and ranked.layers.intersection(ranked.names[len(left) + 1 :]):
        left = ranked.names[: len(left) + 1]
        accuracy = accuracy_of(left)
    return left, accuracy


def keeps(accuracy: Accuracy, gate: Gate, margin: float) -> bool:
    """Return True if an accuracy passes a gate with some reserve.

    Without a bound in the gate, twice the margin of answers may differ, because as many are won as are lost by chance.
    """
    agreement = 1 - 2 * margin if gate.top1_agreement is None else gate.top1_agreement
    return (
        accuracy.finite
        and 1 - (accuracy.top1_agreement or 0.0) <= _SHARE * (1 - agreement)
        and (gate.relative_l2 is None or accuracy.relative_l2 <= _SHARE * gate.relative_l2)
        and (gate.cosine is None or 1 - accuracy.cosine <= _SHARE * (1 - gate.cosine))
    )


def _run(model: onnx.ModelProto, images: Logits) -> Logits:
    logits: Logits = run_stand_in(model.SerializeToString(), images, _BATCH)
    return logits


def _sensitivity(whole: onnx.ModelProto, name: str, accuracy: Accuracy) -> LayerSensitivity:
    (node,) = (item for item in whole.graph.node if item.name == name)
    sizes = [math.prod(tensor.dims) for tensor in whole.graph.initializer if tensor.name in node.input[1:2]]
    return LayerSensitivity(
        name=name,
        kind=node.op_type,
        weights=sum(sizes),
        relative_l2=accuracy.relative_l2,
        cosine=accuracy.cosine,
        top1_agreement=accuracy.top1_agreement or 0.0,
    )


def run(project: Project, graph: Graph, _console: Console) -> int:
    """Measure the sensitivities of a graph, and print them as a table."""
    print_sensitivity(measure_sensitivity(project, graph), sys.stdout)
    return 0
