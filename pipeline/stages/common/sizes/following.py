"""Outputs that follow the size of the input: their shapes at several sizes, and the names of their axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Task
from model_artifacts.sessions.arithmetic import call, strict_fp32, tensors, torch_batch
from pipeline.config.axes import FOLLOWING, PICTURE_AXES, own_sizes, shown_sizes
from pipeline.stages.common.probe import inputs_at, inputs_of, probe_batch, taking
from pipeline.stages.common.tensors.axes import dynamic_inputs, what_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from model_artifacts.errors import ArtifactError
    from model_artifacts.records import Preprocessing
    from model_artifacts.sessions.feeds.samples import Samples
    from pipeline.config.axes import Sizes
    from pipeline.planning.project import Project

Shape = tuple[int, ...]
"""The shape of an output for one sample, without the batch."""


class AtSize(NamedTuple):
    """The outputs of a network for samples of one size."""

    sizes: Sizes
    """The size of each dynamic axis of the inputs."""
    shapes: tuple[Shape, ...]
    """The shape of each output for one sample, in the network's order."""


def at_size(model: nn.Module, inputs: Preprocessing | Samples, sizes: Sizes) -> AtSize:
    """Run the network on one sample of a size, and return the shapes of its outputs.

    Args:
        model: the network, in FP32.
        inputs: the preprocessing with that size, or samples of it.
        sizes: the size of each dynamic axis.
    """
    with strict_fp32():
        outputs = tensors(call(model, torch_batch(probe_batch(inputs, 1))))
    return AtSize(sizes, tuple(tuple(out.shape[1:]) for out in outputs))


def at_each_size(
    project: Project, model: nn.Module, others: Sequence[Sizes], error: type[ArtifactError]
) -> tuple[AtSize, ...]:
    """Return the shapes of the outputs at the samples' own size, and at each of some others.

    Args:
        project: the source stage must have run.
        model: the network, in FP32.
        others: the other sizes.
        error: the type of the refusal.

    Raises:
        error: the network takes no samples of a size.
    """
    own = own_sizes(project.source().inputs, dynamic_inputs(project))
    found = [at_size(model, inputs_of(project), tuple(own.items()))]
    for sizes in others:
        with taking(what_of(project), sizes, error):
            found.append(at_size(model, inputs_at(project, sizes), tuple({**own, **dict(sizes)}.items())))
    return tuple(found)


def named_axes(found: Sequence[AtSize], names: Sequence[str]) -> tuple[tuple[int | str, ...], ...]:
    """Return the axes of each output: its one size, or the name of a dynamic axis. Pure.

    An axis that equals one of the input's at every size has that name, such as `height`. One that follows in another
    way, such as a quarter rounded up, is named after its output and its place, `logits_axis_2`: what follows it is a
    formula that neither ONNX nor Triton can hold.

    Args:
        found: the shapes at the network's own size, and at the others; as many axes at each.
        names: the outputs' names.
    """
    axes = []
    for number, name in enumerate(names):
        shapes = [(dict(item.sizes), item.shapes[number]) for item in found]
        axes.append(tuple(_named_axis(shapes, place, name) for place in range(len(shapes[0][1]))))
    return tuple(axes)


def _named_axis(shapes: Sequence[tuple[dict[str, int], Shape]], place: int, output: str) -> int | str:
    sizes = {shape[place] for _, shape in shapes}
    if len(sizes) == 1:
        return sizes.pop()
    for axis in shapes[0][0]:
        if all(own[axis] == shape[place] for own, shape in shapes):
            return axis
    return f"{output}_axis_{place + 1}"


def require_following(found: Sequence[AtSize], task: Task, error: type[ArtifactError], what: str = "images") -> None:
    """Refuse outputs that follow the size of the input in a way that their task has no meaning for.

    Args:
        found: the shapes at the network's own size, and at the others.
        task: the model's task.
        error: the type of the refusal.
        what: `images` or `samples`.

    Raises:
        error: the outputs have other axes at another size; a task of rows has outputs that follow; the maps of a
            segmentation do not follow, so that their places are not those of the image.
    """
    own = found[0]
    may_follow = task in FOLLOWING
    for item in found[1:]:
        alike = [len(shape) for shape in item.shapes] == [len(shape) for shape in own.shapes]
        if not alike or (not may_follow and item.shapes != own.shapes):
            raise error(
                f"the network gives other outputs for {what} of {shown_sizes(item.sizes)}",
                expected=f"{_shown(own.shapes)}, as for {what} of their own size",
                got=_shown(item.shapes),
                fix="write the batch alone in `profiles`: such outputs are judged at one size",
            )
    if task is Task.SEGMENTATION:
        _require_maps(found, error)


def _require_maps(found: Sequence[AtSize], error: type[ArtifactError]) -> None:
    """Refuse maps whose height does not grow with the image's height alone, or so their width; or other classes."""
    for place, axis in enumerate(("classes", *PICTURE_AXES)):
        known: dict[int, int] = {}
        for item in found:
            size, places = dict(item.sizes).get(axis, 1), item.shapes[0][place]
            if known.setdefault(size, places) != places:
                raise _astray(found, axis, error)
        ordered = [places for _, places in sorted(known.items())]
        if ordered != sorted(ordered) or (len(ordered) > 1 and ordered[0] == ordered[-1]):
            raise _astray(found, axis, error)


def _astray(found: Sequence[AtSize], axis: str, error: type[ArtifactError]) -> ArtifactError:
    return error(
        f"the {axis} of the network's maps {'change with' if axis == 'classes' else 'does not follow'} the image",
        expected="maps (classes, height, width) that grow with their image",
        got="; ".join(f"{_shown(item.shapes)} for {shown_sizes(item.sizes)}" for item in found),
        fix="resize the maps to the input's own size, `size=image.shape[-2:]`, and not to a constant; or write the "
        "batch alone in `profiles`",
    )


def _shown(shapes: Sequence[Shape]) -> str:
    return " and ".join(f"({', '.join(map(str, shape))})" for shape in shapes)
