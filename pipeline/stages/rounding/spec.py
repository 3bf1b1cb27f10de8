"""The stage `rounding`: the distance that each precision's own rounding makes in this network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from model_artifacts.records import Graph, OutputForm, Task
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.keys import make_key
from pipeline.planning.spec import ARITHMETIC, StageSpec
from pipeline.records import Rounding

if TYPE_CHECKING:
    from model_artifacts.records import Io, Key
    from pipeline.planning.plan import Arithmetic
    from pipeline.planning.project import Project
    from pipeline.planning.schedule import Schedule
    from pipeline.planning.steps import Step

VERSION = 6
"""Raise it when the same network and images give another distance. Since 3 a trace that computes something else than
the network is not used. Since 4 weights that torch computes in every call are baked first. Since 5 a run folds the
batch-norms that torch.fx leaves. Since 6 the record has a lower quantile, and what few samples leave open."""
_TASKS = {Task.SEGMENTATION, Task.MULTILABEL}
"""Tasks whose answers have a noise of their own."""
_PARTS = 2
"""The same as VERSION for tasks with parts alone. Since 2 the quantile of a part holds for all parts together."""
_FILES = 1
"""The same for graphs of models that are ONNX files. 1 keeps sizes exact."""
_SHOWN = 1
"""The same for outputs that are no logits."""
SAMPLES = 64
"""Validation samples of an emulation: a choice. The quantile is of resampled sets of them."""


def rounding_key(project: Project, arithmetic: Arithmetic) -> Key:
    """Return the key of a precision's rounding."""
    data, task = project.data(), project.config.model.task
    of_file = project.source().onnx is not None
    quantized = arithmetic.precision in QUANTIZED_PRECISIONS
    return make_key(
        rounding=VERSION,
        precision=arithmetic.precision,
        onnx=project.onnx(_graph(arithmetic)).canonical_sha256 if quantized or of_file else None,
        source=None if quantized else project.source().key.digest,
        weights=None if quantized else project.source().weights.sha256,
        validation=data.validation.sha256,
        reference=data.reference.sha256,
        preprocessing=data.preprocessing,
        **({"sizes": [item.model_dump(mode="json") for item in data.sizes]} if data.sizes else {}),
        torch=None if quantized else version("torch"),
        onnxruntime=version("onnxruntime-gpu") if quantized or of_file else None,
        **({"task": task.value} if task in _TASKS else {}),
        **({"parts": _PARTS} if task.has_parts else {}),
        **({"files": _FILES} if of_file and not quantized else {}),
        **({"shown": [_SHOWN, *shown]} if (shown := sorted({io.answer for io in shown_outputs(project)})) else {}),
    )


def shown_outputs(project: Project) -> tuple[Io, ...]:
    """Return an input and output for each output of the configuration that is no logits."""
    found = {item.io.answer: item.io for item in project.config.io if item.io.output is not OutputForm.LOGITS}
    return tuple(found.values())


def _graph(arithmetic: Arithmetic) -> Graph:
    """Return the graph whose nodes are emulated: the quantised one, or the FP32 graph of a model from an ONNX file."""
    return arithmetic.graph if arithmetic.precision in QUANTIZED_PRECISIONS else Graph.FP32


def _requires(schedule: Schedule, arithmetic: Arithmetic) -> tuple[Step, ...]:
    graphs = [arithmetic.graph] if arithmetic.precision in QUANTIZED_PRECISIONS else []
    if schedule.plan.config.model.onnx is not None and not graphs:
        graphs = [Graph.FP32]
    return (*schedule.of("data"), *map(schedule.plan.graph_step, graphs))


SPEC = StageSpec(
    name="rounding",
    sentence="The distance from FP32 that each precision's own rounding makes, emulated: the measure of the gates.",
    subjects=ARITHMETIC,
    version=VERSION,
    record=Rounding,
    records=lambda paths, _plan, arithmetic: (paths.rounding(arithmetic),),
    files=lambda paths, _plan, arithmetic: (paths.rounding_logits(arithmetic),),
    key=rounding_key,
    run="pipeline.stages.rounding.stage:run",
    seconds=20,
    requires=_requires,
    is_shared=lambda _plan, _arithmetic: True,
    needs_torch=True,
    maker_fields=frozenset({"torch", "onnxruntime"}),
)
