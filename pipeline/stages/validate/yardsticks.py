"""Project and arithmetic → everything that its artifacts are held against, the user's own metric included."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, listed, one_line
from model_artifacts.records import Task
from pipeline.config.tasks import require_tolerances
from pipeline.stages.validate.judgement import Yardstick

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.planning.plan import Arithmetic
    from pipeline.planning.project import Project
    from pipeline.stages.common.rows import Span


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


def yardstick_for(project: Project, arithmetic: Arithmetic, span: Span) -> Yardstick:
    """Return what one output of an arithmetic's artifacts is held against, beside the reference.

    Args:
        project: source, data and rounding must have run.
        arithmetic: the graph and the precision.
        span: the output.

    Raises:
        RecordError: a record is missing.
        RunError: the tolerances are not those of the numbers or outputs; the metric cannot be imported, or is for
            several outputs.
    """
    gates, rounding = project.config.gates, project.rounding(arithmetic)
    emulated = np.load(project.file(rounding.logits))[:, span.columns] if rounding.logits else None
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
        gates.of(arithmetic.precision),
        rounding.of(span.name),
        emulated,
        task=model.task,
        sample_shape=span.shape,
        names=project.data().class_names,
        threshold=model.threshold,
        tolerance=tolerance,
        metric=function_of(model.metric.function) if model.metric else None,
        metric_name=model.metric.function if model.metric else "",
        least=model.metric.least if model.metric else 0.0,
    )
