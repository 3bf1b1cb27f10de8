"""Project and arithmetic → everything that its artifacts are held against, the user's own metric included."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, listed, one_line
from model_artifacts.records import PLAIN, OutputForm, Task
from pipeline.config.quantization import Placement
from pipeline.config.tasks import require_tolerances
from pipeline.planning.plan import QDQ, STRICT_FP32
from pipeline.stages.common.rows import as_shown, lifted, spans_of
from pipeline.stages.validate.gates import judge_layers
from pipeline.stages.validate.judgement import Yardstick, case_of
from pipeline.stages.validate.outputs import labelled
from pipeline.stages.validate.reference import judge_reference
from pipeline.stages.validate.tasks.registry import deserving_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from model_artifacts.records import GateCheck, Io, Variant
    from pipeline.config.settings import Gate
    from pipeline.planning.plan import Arithmetic
    from pipeline.planning.project import Project
    from pipeline.stages.common.rows import Span
    from pipeline.stages.validate.detections import Detector

    Logits = npt.NDArray[np.float32]


def is_spared_by_proposal(project: Project, variant: Variant) -> bool:
    """Return True if a graph with proposed Q/DQ pairs quantises too few layers for its name, whatever runs it.

    False where that cannot be told: on a machine that has the record of the graph, and not its file, or no onnx.
    """
    if variant.graph not in QDQ or project.config.quantization.placement is Placement.AUTO:
        return False
    record = project.onnx(variant.graph)
    path = project.file(record.file)
    if not path.is_file() or importlib.util.find_spec("onnx") is None:
        return False
    import onnx  # noqa: PLC0415 - hosts that run engines may have none

    from pipeline.adapters.onnx_graph import layer_shares  # noqa: PLC0415 - the same

    shares = layer_shares(onnx.load(path))
    checks = judge_layers(variant.precision, shares, left_out=record.left_layers, outputs=len(record.outputs))
    return not all(check.passed for check in checks)


def function_of(name: str, what: str = "metric") -> Callable[..., object]:
    """Import a function of the user's own.

    Args:
        name: `package.module:function`.
        what: what it is, as messages name it.

    Raises:
        RunError: it cannot be imported, or is no function.
    """
    module, _, path = name.partition(":")
    expected = "package.module:function, to be imported from the folder that the pipeline runs in"
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as exc:  # the module's own code raises any type
        raise RunError(f"the {what} {name} cannot be imported", expected=expected, got=one_line(exc)) from exc
    if not callable(found):
        raise RunError(f"the {what} {name} is no function", expected=expected, got=type(found).__name__)
    function: Callable[..., object] = found
    return function


def tolerance_of(tolerance: tuple[float, ...], outputs: Sequence[str], name: str) -> tuple[float, ...]:
    """Return the tolerance of one output of a model of tensors.

    Args:
        tolerance: one for all outputs, or one for each.
        outputs: the names of several outputs, in the network's order.
        name: the output's name; empty for the one output of a model.

    Raises:
        RunError: there are others than one, or one for each.
    """
    require_tolerances(tolerance, len(outputs) or 1, "outputs")
    return (tolerance[outputs.index(name)],) if len(tolerance) > 1 else tolerance


def yardstick_for(project: Project, arithmetic: Arithmetic, span: Span, io: Io = PLAIN) -> Yardstick:
    """Return what one output of an arithmetic's artifacts is held against, beside the reference.

    Args:
        project: source, data and rounding must have run.
        arithmetic: the graph and the precision.
        span: the output.
        io: the artifacts' input and output. Bounds are of what they show of the logits.

    Raises:
        RecordError: a record is missing.
        RunError: the tolerances are not those of the numbers or outputs; the metric cannot be imported, or is for
            several outputs.
    """
    gates, rounding = project.config.gates, project.rounding(arithmetic)
    emulated = np.load(project.file(rounding.logits))[:, span.columns] if rounding.logits else None
    own, share = rounding.of(span.name).in_output(io.answer)
    gate = _in_output(gates.of(arithmetic.precision), share)
    if emulated is not None and io.output is not OutputForm.LOGITS:
        reference = np.load(project.file(project.data().reference))[: len(emulated)]
        emulated = lifted(as_shown(emulated, io), reference)
    model = project.config.model
    tolerance = model.tolerance
    if model.task is Task.REGRESSION:
        require_tolerances(tolerance, project.source().classes)
    elif tolerance:
        tolerance = tolerance_of(tolerance, project.source().output_names, span.name)
    if model.metric and span.name:
        raise RunError(
            "`model.metric` scores one output, and the network has several",
            expected="one tensor for each image",
            got=f"outputs {listed(list(project.source().output_names))}",
            fix="join them in the network's `forward`, or remove the metric",
        )
    return Yardstick(
        gates,
        gate,
        own,
        emulated,
        task=model.task,
        sample_shape=span.shape,
        names=project.data().class_names,
        threshold=model.threshold,
        tolerance=tolerance,
        metric=function_of(model.metric.function) if model.metric else None,
        metric_name=model.metric.function if model.metric else "",
        least=model.metric.least if model.metric else 0.0,
        share=share,
    )


def _in_output(gate: Gate, share: float) -> Gate:
    """Return a gate whose bound on the cosine of all logits holds for the shown share of their norm.

    An error of the relative size e takes e² / 2 from a cosine.
    """
    if gate.cosine is None or share == 1:
        return gate
    return gate.model_copy(update={"cosine": 1 - (1 - gate.cosine) * share**2})


def reference_checks(
    project: Project, reference: Logits, labels: npt.NDArray[Any] | None, detector: Detector | None
) -> tuple[GateCheck, ...]:
    """Judge the FP32 reference: is it worth a comparison?

    Args:
        project: the rounding of strict FP32 must be known.
        reference: its rows of all samples.
        labels: the labels of all samples; None without.
        detector: the step to detections; None for other tasks.
    """
    task = project.config.model.task
    checks: tuple[GateCheck, ...] = ()
    repeatable = project.rounding(STRICT_FP32).repeatable
    for span in spans_of(project.source()):
        own = reference[:, span.columns]
        deserved = judge_reference(own, labels, repeatable=repeatable, task=task)
        case = case_of(own, own, labels, yardstick_for(project, STRICT_FP32, span))
        if deserving := deserving_of(case, task):
            deserved += deserving(case)
        checks += labelled(deserved, span)
    if detector and all(check.passed for check in checks):
        checks += detector.deserving(reference, labels)
    return checks
