"""The stage `data`: calibration and validation images, and the logits of the FP32 reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from pipeline.config.axes import named_inputs, own_sizes, ranges_without
from pipeline.planning.keys import code_version, file_digest, folder_digest, make_key, name_fields
from pipeline.planning.spec import MODEL, StageSpec
from pipeline.records import DataRecord

if TYPE_CHECKING:
    from model_artifacts.records import Key
    from pipeline.planning.project import Project

VERSION = 2
"""Raise it when the same source and settings give other images or other logits.

2 refuses images of more than 8 bits without levels, numbers folders by their numbers, and records class names.
"""


SIZES_VERSION = 1
"""Raise it when the same images are resized in another way."""


def data_key(project: Project, _model: str) -> Key:
    """Return the key of the images and of the reference's logits."""
    source = project.source()
    data = project.config.data
    return make_key(
        model=source.key.digest,
        weights=source.weights.sha256,
        preprocessing=source.preprocessing,
        images=data.images,
        folder=folder_digest(project, data.images) if data.tensors is None else None,
        classes=data.classes,
        class_file=file_digest(project, data.classes) if isinstance(data.classes, str) else None,
        calibration=data.calibration,
        validation=data.validation,
        **_label_fields(project),
        **({"tensors": file_digest(project, data.tensors)} if data.tensors is not None else {}),
        pillow=version("pillow"),
        torch=version("torch"),
        **({"onnxruntime": version("onnxruntime-gpu")} if source.onnx else {}),
        **_size_fields(project),
        **code_version(VERSION),
    )


def _size_fields(project: Project) -> dict[str, object]:
    """Return the fields of dynamic axes beside the batch: the ranges that are refused, and the sizes to store.

    Another batch, and another profile with the same ranges or with none, changes neither.
    """
    config = project.config
    if not config.axes:
        return {}
    specs = project.source().inputs
    own = own_sizes(specs, named_inputs(specs, config.data.axes, config.axes))
    ranges = ranges_without([profile.axes for profile in config.profiles], own, ends=config.data.tensors is not None)
    refused = [axis.model_dump(mode="json") for _, axis in ranges]
    return {"axes": [SIZES_VERSION, refused, config.checked_sizes], **name_fields(project)}


def _label_fields(project: Project) -> dict[str, object]:
    """Return the fields of labels that lie beside the images, or among the arrays."""
    data, model = project.config.data, project.config.model
    fields: dict[str, object] = {}
    if model.decoding is not None:  # it tells the number of the classes
        fields["decoding"] = [model.decoding.boxes, model.decoding.scores, model.decoding.activation.value]
        other = model.decoding.model_dump(mode="json", include={"box_axis", "objectness"})
        fields |= {"decoded_numbers": other} if other else {}
    if data.masks is not None:
        fields |= {"masks": data.masks, "mask_folder": folder_digest(project, data.masks)}
    if data.labels is not None:
        fields |= {"labels": data.labels}
        fields |= {"label_file": file_digest(project, data.labels)} if data.tensors is None else {}
    return fields


SPEC = StageSpec(
    name="data",
    sentence="Calibration and validation images, and the FP32 reference's logits.",
    subjects=MODEL,
    version=VERSION,
    record=DataRecord,
    records=lambda paths, _plan, _model: (paths.data,),
    files=lambda paths, plan, _model: (
        paths.calibration,
        paths.validation,
        paths.labels,
        paths.sample_names,
        paths.reference,
        paths.references,
        *(
            path
            for sizes in plan.config.checked_sizes
            for path in (paths.sized_validation(sizes), paths.sized_reference(sizes))
        ),
    ),
    key=data_key,
    run="pipeline.stages.data.stage:run",
    seconds=10,
    requires=lambda schedule, _model: schedule.of("source"),
    needs_torch=True,
    maker_fields=frozenset(
        {"folder", "tensors", "class_file", "mask_folder", "label_file", "pillow", "torch", "onnxruntime"}
    ),
)
