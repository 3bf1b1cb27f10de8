"""The stage `validate`: each artifact against the FP32 reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from model_artifacts.host.factory_code import code_of, imported_code_of
from model_artifacts.records import CPU_TARGET, Backend, Precision, Task
from pipeline.config.axes import checked_sizes, label_axes
from pipeline.config.quantization import Placement
from pipeline.planning.freshness import failed_or_lacked_before
from pipeline.planning.keys import build_identity, driver_presence, gpu_type, installed_for, make_key
from pipeline.planning.plan import STRICT_FP32, TF32, Arithmetic, arithmetic_of
from pipeline.planning.spec import VARIANT, Input, StageSpec
from pipeline.planning.steps import Step
from pipeline.records import AccuracyReport
from pipeline.stages.common import inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import Key, Variant
    from pipeline.config.settings import ModelConfig
    from pipeline.planning.project import Project
    from pipeline.planning.schedule import Schedule
    from pipeline.records import SizedSamples

VERSION = 12
"""Raise it when the same artifact and data are judged in another way.

2 judges rows, every batch size, and extreme images. 3 counts products of one quantised operand as floating point.
4 looks for engines in a module after it is loaded. 5 judges the distance by the precision's own rounding of the
network, the loss by a margin, and the reference itself. 7 judges a part of the samples by what they disprove, and
TensorRT's graphs on a processor by a part. 8 runs torch_compile with contiguous images alone.
9 allows twice as much for the worst sample of a quantised graph. 10 asks for less rounding that a type must show, where
few samples make it. 11 allows twice as much for the worst sample in bf16, too.
12 rejects a precision that leaves nothing of the outputs.
"""


TASKS_VERSION = 5
"""The same for the tasks without classes alone. 2 holds parts to the margin at every batch size.
3 allows a part of a quantised graph the multiple of its rounding beside the emulated one. 4 allows it twice as much.
5 widens the bound of a part whose distance few samples make, and divides by a part's usual size."""

DETECTION_VERSION = 2
"""The same for detections alone. 2 lets int8 and fp8 lie 1.2 times as far from the emulated graph."""

SIZES_VERSION = 2
"""The same for images in other sizes, of artifacts with dynamic axes beside the batch. Since 2 a reason tells of the
worst size alone."""

PARTS_VERSION = 1
"""The same for those of variants that run a part of the samples. 1 judges them at every size, too."""

PROFILES_VERSION = 1
"""The same for engines with several profiles. 1 records the largest loss of all profiles."""

ENDS_VERSION = 1
"""The same for artifacts with another input or output than the network's own."""

EVALUATOR_VERSION = 2
"""Raise it when onnx's reference evaluator is given other operators. Since 2 a global mean is summed in FP32."""


def accuracy_key(project: Project, variant: Variant) -> Key:
    """Return the key of a variant's accuracy."""
    artifact = project.artifact(variant)
    data = project.data()
    has = installed_for(project, variant.target)
    return make_key(
        judge=VERSION,
        artifact=build_identity(artifact),
        reference=data.reference.sha256,
        validation=data.validation.sha256,
        labels=data.labels.sha256 if data.labels else None,
        **({"classes": data.class_names} if project.config.data.classes else {}),
        preprocessing=data.preprocessing,
        **_size_fields(project, variant),
        **({"profiles": PROFILES_VERSION} if variant.profile and variant.profile.tuned else {}),
        **_task_fields(project.config.model),
        **_proposal_fields(project, variant),
        **({} if variant.io.is_plain else {"io": [variant.io.model_dump(mode="json"), ENDS_VERSION]}),
        gate=project.config.gates.of(variant.precision),
        # An fp32 engine may turn out to multiply in TF32.
        tf32_gate=project.config.gates.tf32 if variant.precision is Precision.FP32 else None,
        multiple=project.config.gates.rounding,
        margin=project.config.gates.margin,
        require_proof=project.config.gates.require_proof,
        require_reference=project.config.gates.require_reference,
        rounding={item.name: project.rounding(item).key.digest for item in judging_arithmetics(variant)},
        batches=project.config.timed_batches if variant.backend is Backend.INDUCTOR else None,
        samples=limit_of_samples(project, variant),
        onnx=version("onnx") if variant.backend is Backend.ONNX_REFERENCE else None,
        **({"evaluator": EVALUATOR_VERSION} if variant.backend is Backend.ONNX_REFERENCE else {}),
        onnxruntime=has.onnxruntime if variant.backend.is_onnxruntime else None,
        torch=has.torch if variant.backend in {Backend.EAGER, Backend.INDUCTOR} else None,
        driver=driver_presence(project, variant),
        gpu=gpu_type(project.plan.gpu(variant.target)),
    )


def _proposal_fields(project: Project, variant: Variant) -> dict[str, object]:
    """Return the field of a graph with proposed Q/DQ pairs: how many layers its gate does not count."""
    if project.config.quantization.placement is Placement.AUTO or not (variant.graph and variant.graph.for_tensorrt):
        return {}
    return {"left_layers": project.onnx(variant.graph).left_layers}


def _size_fields(project: Project, variant: Variant) -> dict[str, object]:
    """Return the fields of images in other sizes, at which an artifact with dynamic axes is judged."""
    sized = [item.model_dump(mode="json") for item in sizes_of(project, variant)]
    if not sized:
        return {}
    part = {} if limit_of_samples(project, variant) is None else {"sized_part": PARTS_VERSION}
    names = {"label_axes": names} if (names := label_axes(project.config.data)) else {}
    return {"sizes": [SIZES_VERSION, sized], **part, **names}


def sizes_of(project: Project, variant: Variant) -> tuple[SizedSamples, ...]:
    """Return the images in other sizes that a variant is judged at: those of its profile, or all of them.

    An artifact without a profile takes every size in the ranges of all profiles together. So does a graph that shows
    on a processor what TensorRT's will compute, in int8, fp8 or bf16. A baseline, which serves for comparison of speed,
    sees the network's own size alone. So does a recipe of torch_compile, which is made for it.
    """
    shows_numerics = variant.backend is Backend.ONNX_REFERENCE
    if variant.backend is Backend.TORCH_COMPILE or (variant.backend.is_baseline and not shows_numerics):
        return ()
    wanted = checked_sizes(variant.profile.axes) if variant.profile else project.config.checked_sizes
    return tuple(item for item in project.data().sizes if item.sizes in wanted)


def _task_fields(model: ModelConfig) -> dict[str, object]:
    """Return the fields of the key that a classification has not."""
    if model.task is Task.CLASSIFICATION:
        return {}
    fields: dict[str, object] = {"task": model.task.value, "task_judge": TASKS_VERSION}
    if model.task is Task.MULTILABEL:
        fields["threshold"] = model.threshold
    if model.task is Task.DETECTION:
        fields |= {"decoding": model.decoding, "boxes_judge": DETECTION_VERSION, "pycocotools": version("pycocotools")}
    if model.postprocess is not None:
        fields |= {"postprocess": model.postprocess, "postprocess_code": _code_of(model.postprocess)}
    if model.tolerance:
        fields["tolerance"] = model.tolerance
    if model.metric is not None:
        name = model.metric.function
        fields |= {"metric": model.metric, "metric_code": _code_of(name)}
    return fields


def _code_of(function: str) -> list[object]:
    """Return the digests of a function of the user's own, and of what it imports."""
    return [code_of(function), imported_code_of(function)]


def limit_of_samples(project: Project, variant: Variant) -> int | None:
    """Return the most samples that a variant which is never deployed is run on; None for all others, which run all."""
    settings = project.config.validation
    if variant.backend is Backend.ONNX_REFERENCE:
        return settings.reference_evaluator_samples
    return settings.stand_in_samples if variant.stands_in else None


def judging_arithmetics(variant: Variant) -> tuple[Arithmetic, ...]:
    """Return the arithmetics whose rounding a variant is judged by: FP32's tells whether it multiplied in TF32."""
    own = arithmetic_of(variant)
    return STRICT_FP32, TF32 if own == STRICT_FP32 else own


def _requires(schedule: Schedule, variant: Variant) -> tuple[Step, ...]:
    rounding = map(schedule.plan.rounding_step, judging_arithmetics(variant))
    return (*schedule.of("data"), *rounding, Step("build", variant.id))


def _inputs(project: Project, variant: Variant) -> Iterator[Input]:
    yield from inputs.to_run(project, variant)
    for arithmetic in judging_arithmetics(variant):
        record = project.rounding(arithmetic)
        yield Input(project.paths.rounding(arithmetic), record.files)
    for smaller in project.plan.family(variant):
        yield from inputs.artifact_if_whole(project, smaller)
        yield from inputs.accuracy_if_whole(project, smaller)


SPEC = StageSpec(
    name="validate",
    sentence="Every artifact against the FP32 reference, judged by its precision's gate.",
    subjects=VARIANT,
    version=VERSION,
    record=AccuracyReport,
    records=lambda paths, _plan, variant: (paths.accuracy(variant),),
    key=accuracy_key,
    run="pipeline.stages.validate.stage:run",
    seconds=15,
    requires=_requires,
    follows=lambda schedule, variant: schedule.smaller("validate", variant),  # equal engines have equal accuracy
    inputs=_inputs,
    retried=failed_or_lacked_before,
    lacks_hardware=lambda plan, variant: variant.target != CPU_TARGET and plan.gpu(variant.target) is None,
    in_manifest=True,
    needs_build=True,
)
