"""A quantised graph → each layer's sensitivity to quantisation, and a proposal of layers to leave unquantised."""

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
from pipeline.stages.quantize.rewriting import quantized_layers
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

_BATCH = 16


def measure_sensitivity(project: Project, graph: Graph) -> Sensitivity:
    """Quantise one layer at a time, then leave the most sensitive ones in floating point until the gate passes.

    ONNX Runtime runs the graphs on the CPU with the calibration images. The reference is the same graph with no layer
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
    )
    return project.write(project.paths.sensitivity(graph), record)


class _Found(NamedTuple):
    """The results of the process that runs the graphs."""

    samples: int
    layers: tuple[LayerSensitivity, ...]
    """The most sensitive first."""
    plain: Accuracy
    """The accuracy with all layers quantised."""
    proposal: tuple[str, ...]
    proposed: Accuracy


def _measure(project: Project, graph: Graph) -> _Found:
    """Run the graphs in ONNX Runtime, in a process that may crash."""
    data = project.data()
    images = to_input(np.asarray(project.pixels(data.calibration)), data.preprocessing)
    calibrated = calibrate(project, graph)
    names = [node.name for node in quantized_layers(calibrated.model)]
    whole = calibrated.leaving([node.name for node in calibrated.model.graph.node])
    reference = _run(whole, images)

    def accuracy_of(model: onnx.ModelProto) -> Accuracy:
        return measure(_run(model, images), reference, None)

    with Bars() as bars:
        report = bars.reporting("layers quantised one at a time")
        layers = []
        for done, name in enumerate(names, start=1):
            layers.append(_sensitivity(whole, name, accuracy_of(calibrated.quantizing(name))))
            report(done, len(names))
    layers.sort(key=lambda layer: -layer.relative_l2)
    plain, gates = accuracy_of(calibrated.model), project.config.gates
    gate = gates.of(graph.precision)
    ranked = tuple(layer.name for layer in layers)
    proposal, proposed = propose(ranked, plain, lambda left: accuracy_of(calibrated.leaving(left)), gate, gates.margin)
    return _Found(len(images), tuple(layers), plain, proposal, proposed)


def propose(
    ranked: tuple[str, ...],
    plain: Accuracy,
    accuracy_of: Callable[[tuple[str, ...]], Accuracy],
    gate: Gate,
    margin: float,
) -> tuple[tuple[str, ...], Accuracy]:
    """Return the fewest of the most sensitive layers that must stay in floating point for the gate to pass.

    Args:
        ranked: the names of the layers, the most sensitive first.
        plain: the accuracy with all layers quantised.
        accuracy_of: the layers left in floating point → the accuracy with the others quantised.
        gate: the precision's gate.
        margin: the largest acceptable drop of the top-1 accuracy.

    Returns:
        the layers and the resulting accuracy; all layers but the least sensitive if none passes the gate.
    """
    left: tuple[str, ...] = ()
    accuracy = plain
    while not keeps(accuracy, gate, margin) and len(left) + 1 < len(ranked):
        left = ranked[: len(left) + 1]
        accuracy = accuracy_of(left)
    return left, accuracy


def keeps(accuracy: Accuracy, gate: Gate, margin: float) -> bool:
    """Return True if an accuracy passes a gate.

    Without a bound in the gate, twice the margin of answers may differ, because as many are won as are lost by chance.
    """
    agreement = 1 - 2 * margin if gate.top1_agreement is None else gate.top1_agreement
    return (
        accuracy.finite
        and (accuracy.top1_agreement or 0.0) >= agreement
        and (gate.relative_l2 is None or accuracy.relative_l2 <= gate.relative_l2)
        and (gate.cosine is None or accuracy.cosine >= gate.cosine)
    )


def _run(model: onnx.ModelProto, images: Logits) -> Logits:
    return run_stand_in(model.SerializeToString(), images, _BATCH)


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
