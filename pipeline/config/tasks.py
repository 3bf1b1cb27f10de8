"""The task of a model and the settings of others → problems, each with its place. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from model_artifacts.errors import RunError
from model_artifacts.records import Precision, Record, Task
from pipeline.config.values import Number, check_factory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config.settings import Config
    from pipeline.config.yaml_source import Location


class MetricConfig(Record):
    """The user's own measure of tensors. Text alone stands for `function`."""

    function: Annotated[str, AfterValidator(check_factory)]
    """`package.module:function`: outputs and truth → a score of each image from 0 to 1, of which more is better."""
    least: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """The least mean score of the FP32 network, below which nothing is deployable."""


def parse_metric(value: object) -> object:
    """Return the mapping of a metric; text is {function: text}."""
    return {"function": value} if isinstance(value, str) else value


TABLE_TASKS = (Task.MULTILABEL, Task.REGRESSION)
"""Tasks whose labels are a table of numbers."""
CLASSES = "classes"
"""The value of `data.labels` that takes the images' own classes: those of their folders, or the digits."""


def task_problems(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the settings that another task has, and those that this one lacks, as pairs of location and text."""
    yield from _tensor_problems(config) if config.data.tensors is not None else _label_problems(config)
    yield from _answer_problems(config)
    yield from _decoding_problems(config)
    if config.model.task is not Task.CLASSIFICATION:
        yield from _problems_without_top1(config)


def require_tolerances(tolerance: tuple[float, ...], count: int, what: str = "numbers") -> None:
    """Refuse tolerances that are not those of a regression's numbers, or of a model's outputs.

    Args:
        tolerance: `model.tolerance`.
        count: the network's numbers for each image, or its outputs.
        what: these, as messages name them.

    Raises:
        RunError: there are others than one, or one for each.
    """
    if len(tolerance) not in {1, count}:
        raise RunError(
            f"`model.tolerance` in pipeline.yaml is not that of the network's {what}",
            expected=f"one number for all, or {count}, one for each",
            got=str(len(tolerance)),
        )


def _tensor_problems(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the settings of images that a model of tensors has not, as pairs of location and text."""
    if config.preprocessing is not None:
        text = "`preprocessing` is of images, and `data.tensors` are the model's own inputs; remove one of them"
        yield ("preprocessing",), text
    for name in ("images", "masks"):
        if name in config.data.model_fields_set:
            yield ("data", name), f"`data.{name}` belongs to images, and `data.tensors` has none; remove one of them"
    if config.model.task in {Task.SEGMENTATION, Task.DETECTION}:
        text = f"`data.tensors`: `task: {config.model.task.value}` answers with places in images; remove one of them"
        yield ("data", "tensors"), text
    if config.data.labels is not None and config.model.task is Task.TENSORS and config.model.metric is None:
        text = "`data.labels`: `task: tensors` is judged by distances, unless `model.metric` takes them; remove it"
        yield ("data", "labels"), text
    if config.model.weights.file == "sample":
        yield ("model", "weights"), "`model.weights`: the sample model takes images, not `data.tensors`; name others"


def _answer_problems(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield a threshold or a tolerance of another task, and one that lacks."""
    model, task = config.model, config.model.task.value
    for name, owners, written in (
        ("threshold", (Task.MULTILABEL,), model.threshold != type(model)().threshold),
        ("tolerance", (Task.REGRESSION, Task.TENSORS, Task.DETECTION), bool(model.tolerance)),
        ("decoding", (Task.DETECTION,), model.decoding is not None),
        ("postprocess", (Task.DETECTION,), model.postprocess is not None),
    ):
        if written and model.task not in owners:
            named = " and ".join(f"`task: {owner.value}`" for owner in owners)
            yield ("model", name), f"`model.{name}` is for {named}, got `task: {task}`; remove one of them"
    if model.metric is not None and model.tolerance:
        text = "`model.tolerance` is of distances, which `model.metric` replaces; remove one of them"
        yield ("model", "tolerance"), text
    if model.metric is not None and model.task is not Task.TENSORS:
        text = f"`model.metric` is for `task: tensors`, got `task: {task}`, which has its own; remove one of them"
        yield ("model", "metric"), text
    if model.task is Task.REGRESSION and not model.tolerance:
        missing = "`model.task: regression` needs `model.tolerance`, the largest acceptable error of a number"
        yield ("model", "task"), f"{missing}: one for all, or a list with one for each, in their own units"


def _decoding_problems(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield a detector without a step that decodes its outputs, or with two."""
    model = config.model
    if model.decoding is not None and model.postprocess is not None:
        text = "`model.postprocess` decodes a detector's outputs in place of `model.decoding`; remove one of them"
        yield ("model", "postprocess"), text
    if model.task is Task.DETECTION and model.decoding is None and model.postprocess is None:
        example = "{boxes: boxes, scores: scores, format: xyxy, units: pixels, activation: sigmoid}"
        text = "`model.task: detection` needs `model.decoding`, the step from the network's outputs to boxes, such as"
        yield ("model", "task"), f"{text} {example}; or `model.postprocess`, a function of your own"


def _problems_without_top1(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the settings of classes and of top-1 that a model of another task has not."""
    model, task = config.model, config.model.task.value
    if model.weights.file == "sample":
        yield ("model", "weights"), f"`model.weights`: the sample model is a classifier, not for `{task}`; name others"
    if config.data.classes is not None and not model.task.has_classes:
        yield ("data", "classes"), f"`data.classes`: `model.task: {task}` has no classes; remove one of them"
    if model.task is Task.TENSORS and model.metric is None and config.gates.require_proof:
        text = "`gates.require_proof`: a distance is measured, and proven by no number of samples; remove it"
        yield ("gates", "require_proof"), text
    for precision in Precision:
        for name in ("top1_agreement", "top1_drop", "class_drop"):
            if getattr(config.gates.of(precision), name) is not None:
                gate = f"gates.{precision.value}"
                text = f"`{gate}.{name}`: `model.task: {task}` has no top-1; remove it, or set `{gate}.cosine`"
                yield ("gates", precision.value, name), text


def _label_problems(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield labels of another task, and labels of images that have no names."""
    data, task = config.data, config.model.task
    if data.masks is not None and task is not Task.SEGMENTATION:
        yield ("data", "masks"), f"`data.masks` are for `task: segmentation`, got `task: {task.value}`; remove them"
    takes_table = task in TABLE_TASKS or config.model.metric is not None
    takes_file = takes_table or task is Task.DETECTION
    if data.labels is not None and task is not Task.EMBEDDING and not takes_file:
        other = {
            Task.CLASSIFICATION: "; its classes are those of the images' folders",
            Task.SEGMENTATION: "; set `masks`",
        }
        text = f"`data.labels` is not for `task: {task.value}`{other.get(task, '')}; remove it"
        yield ("data", "labels"), text
    elif data.labels == CLASSES and takes_file:
        what = "COCO's JSON file" if task is Task.DETECTION else "a table"
        yield ("data", "labels"), f"`data.labels`: `task: {task.value}` needs the path of {what}, got {CLASSES}"
    elif data.labels not in {None, CLASSES} and task is Task.EMBEDDING:
        yield ("data", "labels"), f"`data.labels`: `task: embedding` takes {CLASSES} alone, got {data.labels!r}"
    for name in ("masks", "labels"):
        value = getattr(data, name)
        takes_digits = value == CLASSES and data.images == "digits"
        if value is not None and data.images in {"auto", "digits", "photographs"} and not takes_digits:
            text = f"`data.{name}` needs a folder of images in `data.images`, got {data.images}; set it"
            yield ("data", name), text
