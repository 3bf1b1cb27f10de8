"""A network's outputs: one row of logits for each image, in batches of any size; else a refusal that names the cause.

Everything behind this stage takes a classifier's output for logits: `predict` takes the largest, and callers apply a
softmax. An embedding gives one vector for each image, and the task `tensors` one tensor or several, with values of any
kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model_artifacts.errors import SourceError, listed, one_line
from model_artifacts.records import Task
from model_artifacts.sessions.arithmetic import call, tensors, torch_batch
from model_artifacts.sessions.factory_call import NUMBERED
from model_artifacts.sessions.feeds.batches import each, size_of
from model_artifacts.sessions.feeds.samples import Samples
from model_artifacts.sessions.preprocessing import to_input
from pipeline.stages.source.watching import LINEAR, last_operator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import nn

    from model_artifacts.records import Preprocessing
    from model_artifacts.sessions.arithmetic import Result

_SIZES = (1, 3)
"""The batch sizes to run: `squeeze()` drops the axis of a batch of one, and a `view` may hold the size of another."""
_VARIED = 6
"""The number of inputs that differ."""
_SUM_TOLERANCE = 1e-3
"""The largest distance of a row's sum from 1, for outputs that are probabilities. A softmax in FP16 keeps within it."""


def sample_shape(output: object, batch: int, task: Task = Task.CLASSIFICATION, where: str = "") -> tuple[int, ...]:
    """Return the shape of the output for one image: the number of its logits, the length of its vector, or any other.

    Args:
        output: the network's result.
        batch: the number of images that it was given.
        task: the task of the model.
        where: the name of the output, of several.

    Raises:
        SourceError: the result is no tensor (batch, classes) of floating-point values; for tensors, of any shape.
    """
    if isinstance(output, torch.Tensor):
        shape = tuple(output.shape)
        if _is_a_row_each(output, batch, task):
            return shape[1:]
        got = f"shape {shape} for {_images(batch)}"
        if not output.is_floating_point():
            got += f", of {str(output.dtype).removeprefix('torch.')}"
        fix = _fix_of_shape(shape, batch, task)
        if not output.is_floating_point():
            fix = f"return the {_NAMES[task]} in floating point, without an `argmax` or a rounding"
    else:
        names = tensors_of(output)
        got = type(output).__name__ + (f" of {listed([_shown(*item) for item in names.items()])}" if names else "")
        fix = (
            f"wrap the network in a module whose `forward` returns one tensor, of {_NAMES[task]} alone, "
            "such as `self.net(image)[0]` or `self.net(image).logits`"
        )
        if where:
            fix = "return tensors alone, or None in the place of what is no tensor"
        elif len(names) > 1:
            fix += "; or set `model.task: tensors`, which takes several outputs and judges each apart"
    what = "one tensor" if task.takes_several else _NAMES[task]
    raise SourceError(f"the model does not return {what}", where=where, expected=_EXPECTED[task], got=got, fix=fix)


def output_name(output: object, batch: int, task: Task = Task.CLASSIFICATION) -> str | None:
    """Return the name of the output in a mapping or a dataclass that holds nothing else: `logits` of a classifier.

    Args:
        output: the network's result, such as a `ModelOutput` of transformers.
        batch: the number of images that it was given.
        task: the task of the model; the vector of an embedding may have any name.
    """
    found = tensors_of(output)
    if len(found) != 1:
        return None
    ((name, tensor),) = found.items()
    if not isinstance(tensor, torch.Tensor) or (task is Task.CLASSIFICATION and name != _LOGITS):
        return None
    if isinstance(output, (tuple, list)) and not task.takes_several:
        return None
    if isinstance(output, Mapping) and name not in output:  # a key that is no text
        return None
    if task.keeps_name and not is_graph_name(name):
        return None
    return name if _is_a_row_each(tensor, batch, task) else None


def is_graph_name(name: str) -> bool:
    """Return true for a name of an output that every runtime and server takes, and that the input does not have."""
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None and name != "image"


def _is_a_row_each(tensor: torch.Tensor, batch: int, task: Task) -> bool:
    """Return true for floating-point values of each image: (batch, values), or for tensors of any shape."""
    least, most = _AXES.get(task, (2, 2))
    return (
        least <= tensor.ndim <= most and tensor.shape[0] == batch and tensor.numel() > 0 and tensor.is_floating_point()
    )


def tensors_of(output: object) -> dict[str, object]:
    """Return the entries of a mapping, a dataclass or a sequence that are there; none for any other object."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items() if value is not None}
    if is_dataclass(output) and not isinstance(output, type):
        values = {item.name: getattr(output, item.name) for item in fields(output)}
        return {name: value for name, value in values.items() if value is not None}
    if isinstance(output, (tuple, list)):
        fields_of = getattr(output, "_fields", [f"{NUMBERED}{place}" for place in range(len(output))])
        return {name: value for name, value in zip(fields_of, output, strict=True) if value is not None}
    return {}


def _shown(name: str, value: object) -> str:
    shape = f" {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f" ({type(value).__name__})"
    return name + shape


_LOGITS = "logits"
"""The name of the logits in the outputs of transformers' image classifiers."""
_KEEP_THE_BATCH = "keep the axis of the batch: `flatten(1)` for `squeeze()`, `image.shape[0]` for a size in a `view`"
_SAME_NUMBER = (
    "a detector that returns a list of detections for each image must return all boxes and scores, (batch, boxes, …), "
    "as they are before the NMS, which `model.task: detection` does"
)
_AXES = {Task.TENSORS: (2, 99), Task.DETECTION: (2, 99), Task.SEGMENTATION: (4, 4)}
"""The least and the most axes of an output, where it is no row of values: the batch is the first."""
_NAMES = {
    Task.CLASSIFICATION: "logits",
    Task.EMBEDDING: "vectors",
    Task.TENSORS: "values",
    Task.SEGMENTATION: "maps of logits",
    Task.MULTILABEL: "logits",
    Task.REGRESSION: "numbers",
    Task.DETECTION: "boxes and scores",
}
_EXPECTED = {
    Task.CLASSIFICATION: "one output (batch, classes) of floating-point values",
    Task.EMBEDDING: "one output (batch, length) of floating-point values",
    Task.TENSORS: "one output (batch, …) of floating-point values",
    Task.SEGMENTATION: "one output (batch, classes, height, width) of floating-point values",
    Task.MULTILABEL: "one output (batch, classes) of floating-point values",
    Task.REGRESSION: "one output (batch, numbers) of floating-point values",
    Task.DETECTION: "raw boxes and scores in floating point, the same number for each image: (batch, …) each",
}


def _fix_of_shape(shape: Sequence[int], batch: int, task: Task) -> str:
    if task in {Task.TENSORS, Task.MULTILABEL, Task.REGRESSION} and len(shape) == 1 and shape[0] == batch:
        return "give each image's number an axis of its own: return `output.unsqueeze(1)`"
    if len(shape) > 2 and shape[0] == batch and set(shape[2:]) == {1}:  # noqa: PLR2004 - batch and classes
        name = _NAMES[task]
        return f"flatten the output: return `{name}.flatten(1)`, or make `torch.nn.Sequential(network, nn.Flatten(1))`"
    if len(shape) < 2 and batch == 1:  # noqa: PLR2004 - the same
        return "write `flatten(1)` or `squeeze(dim)` for `squeeze()`, which drops the axis of a batch of one image"
    if len(shape) == 1 and task is Task.CLASSIFICATION:
        return _TWO_LOGITS
    if len(shape) == 2 and shape[1] == batch:  # noqa: PLR2004 - the same
        return f"put the axis of the batch first: return `{_NAMES[task]}.t()` if its axes are (…, batch)"
    if task is Task.SEGMENTATION and len(shape) > 1 and shape[0] == batch:
        return "return maps of logits, one a class; for answers without a place set `model.task: classification`"
    if task.takes_several and shape and shape[0] != batch:
        return f"{_SAME_NUMBER}; {_KEEP_THE_BATCH}"
    if len(shape) == 2 or task.takes_several:  # noqa: PLR2004 - the same
        return _KEEP_THE_BATCH
    return f"return a row of {_NAMES[task]} for each image; {_other_task(shape)}"


def _other_task(shape: Sequence[int]) -> str:
    """Return the task that an output of three axes or more looks like."""
    if len(shape) == 4:  # noqa: PLR2004 - batch, classes, height and width
        segments = "for a class of each pixel set `model.task: segmentation`"
        return f"{segments}, for other maps `model.task: tensors`"
    if len(shape) == 3 and min(shape[1:]) >= _LEAST_BOX:  # noqa: PLR2004 - batch, boxes and their numbers
        return "boxes with scores, as a detector gives, are `model.task: detection`; other numbers `tensors`"
    return "for maps, boxes or numbers set `model.task: tensors`"


_MOST_MASKED = 255
"""Values of a mask in 8 bits, without the one that is not judged."""
_LEAST_BOX = 5
"""The fewest numbers of a box: four of its place, and a score."""
_TWO_LOGITS = (
    "return two logits, `torch.stack([torch.zeros_like(z), z], 1)` for the one logit z of each image, before any "
    "sigmoid: then class 1 is the answer where z > 0, and their softmax is the sigmoid of z"
)


def shapes_of(
    output: object, batch: int, task: Task = Task.CLASSIFICATION, names: Sequence[str] = ()
) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each output for one image, as `sample_shape` does for one.

    Args:
        output: the network's result: a tensor, or a tuple of those that `names` lists.
        batch: the number of images that it was given.
        task: the task of the model.
        names: the names of several outputs.

    Raises:
        SourceError: an output is no tensor of floating-point values for each image.
    """
    if not names:
        return (sample_shape(output, batch, task),)
    pairs = zip(names, tensors(output), strict=True)
    return tuple(sample_shape(value, batch, task, f"output {name!r}") for name, value in pairs)


def check_outputs(
    model: nn.Module, spec: Preprocessing | Samples, task: Task = Task.CLASSIFICATION, names: Sequence[str] = ()
) -> None:
    """Check that a model returns two logits or more for each image, in batches of one and of several images.

    Args:
        model: the network, in FP32 and evaluation mode.
        spec: the preprocessing, whose means and deviations give inputs as images do; or samples of the inputs.
        task: the task of the model.
        names: the names of several outputs.

    Raises:
        SourceError: it fails with another batch size; returns one logit, or probabilities instead of logits. An
            embedding may return any values, but vectors of one number.
    """
    images = _inputs(spec)
    found = [shapes_of(_run(model, each(images, itemgetter(slice(size)))), size, task, names) for size in _SIZES]
    for name, shapes in zip(names or [""], zip(*found, strict=True), strict=True):
        if len(set(shapes)) > 1:
            raise SourceError(
                "the shape of the output depends on the batch",
                where=f"output {name!r}" if name else "",
                expected=f"{shapes[0]} for each image, in a batch of any size",
                got=f"{shapes[-1]} in a batch of {_SIZES[-1]}",
                fix="return as many values for each image, whatever it shows",
            )
    for size, (shape, *_) in zip(_SIZES, found, strict=True):
        classes = math.prod(shape)
        if task.takes_several or task in {Task.MULTILABEL, Task.REGRESSION}:
            continue
        if task is Task.SEGMENTATION:
            _require_maps(shape)
            continue
        if classes == 1 and task is Task.EMBEDDING:
            raise SourceError(
                "the model returns vectors of one number, whose cosines are all 1 or -1",
                expected="vectors of two numbers or more",
                got=f"shape ({size}, 1) for {_images(size)}",
                fix="return the features before the last layer",
            )
        if classes == 1:
            raise SourceError(
                "the model returns one logit for each image, and the class with the largest of one logit says nothing",
                expected="two classes or more",
                got=f"shape ({size}, 1) for {_images(size)}",
                fix=_TWO_LOGITS,
            )
    output = _run(model, images)
    shapes_of(output, size_of(images), task, names)
    if task.has_classes and not task.takes_several:  # a detector may give scores: its decoding says so
        rows = output.movedim(1, -1).flatten(0, -2) if task is Task.SEGMENTATION else output
        _refuse_probabilities(rows.double().numpy(), lambda: last_operator(model, images))


def _require_maps(shape: Sequence[int]) -> None:
    """Raise an error for a map of one class, or of more than a mask in 8 bits can name."""
    one = shape[0] == 1
    if one or shape[0] > _MOST_MASKED:
        raise SourceError(
            "the model does not return a map for each class",
            expected=f"2 to {_MOST_MASKED} classes on the axis behind the batch",
            got=f"shape (batch, {', '.join(map(str, shape))})",
            fix="return two maps, `torch.cat([torch.zeros_like(z), z], 1)` for the one map z, before any sigmoid"
            if one
            else "return the maps as (batch, classes, height, width)",
        )


def _run(model: nn.Module, images: Result) -> Any:  # noqa: ANN401 - anything that the user's network returns
    try:
        with torch.inference_mode():
            return call(model, images)  # some networks normalise their input in place
    except Exception as exc:  # the network's own code raises any type
        size = size_of(images)
        raise SourceError(
            f"the model does not take a batch of {_images(size)}",
            expected="a batch of any size, because artifacts are run with one image and with many",
            got=one_line(exc),
            fix=_KEEP_THE_BATCH,
        ) from exc


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _inputs(spec: Preprocessing | Samples) -> Result:
    """Return six images that differ, or as many samples."""
    if isinstance(spec, Samples):
        return torch_batch(spec.batch(_VARIED))
    return torch.from_numpy(to_input(_pictures(*spec.input_shape), spec))


def _pictures(channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return six images that differ: noise, dark noise, bright noise, black, white and a ramp.

    Returns:
        uint8 (6, height, width, channels).
    """
    noise = np.random.default_rng(0).integers(0, 256, (3, height, width, channels))
    noise[1] //= 4
    noise[2] = 255 - noise[2] // 4
    flat = np.zeros((2, height, width, channels), dtype=np.int64)
    flat[1] = 255
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, None, :, None], (1, height, width, channels))
    pictures: npt.NDArray[np.uint8] = np.concatenate([noise, flat, ramp.astype(np.int64)]).astype(np.uint8)
    return pictures


def _refuse_probabilities(output: npt.NDArray[np.float64], last_operator: Callable[[], str]) -> None:
    """Raise an error if the outputs are probabilities instead of logits.

    Their distances have other sizes than those of logits, FP16 rounds many of them to 0 or 1, where the largest is
    decided by its place, and a caller's softmax makes them nearly equal. Logarithms of probabilities are logits.

    Args:
        output: (images, classes).
        last_operator: returns the name of the operator that gave the output its values.

    Raises:
        SourceError: each value lies between 0 and 1, and each row adds up to 1, or the last operator is no linear one;
            or the rows are shares of another total, such as per cent.
    """
    total = _total(output)
    if total is None and not ((output >= 0) & (output <= 1)).all():
        return
    operator = last_operator()
    adds_up = total is not None
    if total != 1 and operator in LINEAR:
        return
    last = f"; the last operator is {operator}" if operator else ""
    sums = f"; each row adds up to {total:.4g}" if adds_up else ""
    raise SourceError(
        "the model returns probabilities instead of logits"
        if adds_up
        else "the model returns values that its last operator holds between 0 and 1, instead of logits",
        expected="logits: the last layer's values, before a softmax or a sigmoid",
        got=f"{output.min():.3g} to {output.max():.3g} for {len(output)} images that differ{sums}{last}",
        fix=(
            "leave that operator out of `forward`, or put `torch.nn.Identity()` in its place in the factory; "
            "where probabilities are wanted, apply it to the logits of the artifact"
        ),
    )


def _total(output: npt.NDArray[np.float64]) -> float | None:
    """Return the number that the values of each image add up to; None if they are negative, or no shares of a number.

    Logits that hardly depend on the image add up to nearly the same, too. So the values must move more than their sums.

    Args:
        output: (images, classes).
    """
    if (output < 0).any():
        return None
    sums = output.sum(axis=1)
    if (np.abs(sums - 1) <= _SUM_TOLERANCE).all():
        return 1
    apart, moves = np.ptp(sums), np.ptp(output, axis=0).max()
    return float(sums.mean()) if apart < _SUM_TOLERANCE * moves else None
