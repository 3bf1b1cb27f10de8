"""The torch model of the source stage: number of classes, last linear layer, torchvision's weights.

Importing this module imports torch.
"""

from __future__ import annotations

import socket
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlparse

import torch
from torch import nn

from model_artifacts.errors import SourceError, one_line
from model_artifacts.records import Task
from model_artifacts.sessions.arithmetic import call, torch_batch
from model_artifacts.sessions.factory_call import LogitsOf, LogitsOfSeveral, OutputsOf, OutputsOfSeveral, entries_of
from model_artifacts.sessions.feeds.samples import Samples
from pipeline.stages.source.outputs import is_graph_name, output_name, sample_shape, shapes_of

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

    from model_artifacts.sessions.arithmetic import Result


def output_shapes(
    model: nn.Module,
    inputs: tuple[int, int, int] | Samples,
    task: Task = Task.CLASSIFICATION,
    names: tuple[str, ...] = (),
) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each output for one image: the number of logits, the vector's length, or any other.

    Args:
        model: the network, in FP32 and evaluation mode.
        inputs: (channels, height, width) of an image, or samples of the inputs.
        task: the task of the model.
        names: the names of several outputs.

    Raises:
        SourceError: the model does not take these inputs, or returns no values for each image.
    """
    try:
        with torch.inference_mode():
            output = call(model, _two(inputs))
    except Exception as exc:
        if isinstance(inputs, Samples):
            raise SourceError(
                "the model does not take the arrays of `data.tensors`",
                expected="arrays for the inputs of `forward`, with an axis of samples in front",
                got=one_line(exc),
            ) from exc
        raise SourceError(
            "the model does not take a batch of images",
            expected=f"one input (batch, {', '.join(map(str, inputs))})",
            got=one_line(exc),
            fix="write `preprocessing` for images of another size, where one mean makes them greyscale; "
            "several inputs, and inputs that are no images, are `data: {tensors: FILE.npz}`",
        ) from exc
    return shapes_of(output, 2, task, names)


class Output(NamedTuple):
    """A network that returns a tensor or a tuple, with their names in the output of the factory's own network."""

    model: nn.Module
    logits: str | None = None
    """None if the factory's network returns a tensor itself, or several."""
    names: tuple[str, ...] = ()
    """The names of several outputs."""


def take_logits(model: nn.Module, inputs: tuple[int, int, int] | Samples, task: Task = Task.CLASSIFICATION) -> Output:
    """Return a network whose output is a tensor, or a tuple of several for a task that takes them.

    The factory's own network may return them in a mapping, a dataclass or a sequence.

    Args:
        model: the network, in FP32 and evaluation mode.
        inputs: (channels, height, width) of an image, or samples of the inputs.
        task: the task of the model. The mapping of a classifier must call the tensor `logits`.

    Raises:
        SourceError: one of several outputs is no tensor of each image, or has a name that no graph takes.
    """
    try:
        with torch.inference_mode():
            output = call(model, _two(inputs))
    except Exception:  # noqa: BLE001 - `output_shapes` runs it again, and reports any type of error
        return Output(model)
    several = isinstance(inputs, Samples) and len(inputs.names) > 1
    if name := output_name(output, 2, task):
        return Output((LogitsOfSeveral if several else LogitsOf)(model, name), name)
    if task.takes_several and (names := output_names(output, 2)):
        return Output((OutputsOfSeveral if several else OutputsOf)(model, names), names=names)
    return Output(model)


def _two(inputs: tuple[int, int, int] | Samples) -> Result:
    return torch_batch(inputs.batch(2)) if isinstance(inputs, Samples) else torch.zeros(2, *inputs)


def output_names(output: object, batch: int) -> tuple[str, ...]:
    """Return the names of several outputs, nested or not: keys, attributes, or places as in `output_0`, `output_1`.

    Args:
        output: the network's result for the task `tensors` or `detection`.
        batch: the number of images that it was given.

    Returns:
        the names in the network's order; () for a tensor, and for what holds one entry or none.

    Raises:
        SourceError: an entry is no tensor of each image, or has a name that no graph takes.
    """
    entries = entries_of(output)
    if len(entries) < 2:  # noqa: PLR2004 - several
        return ()
    names = [name for name, _ in entries]
    for place, (name, value) in enumerate(entries):
        if not is_graph_name(name) or names.count(name) > 1:
            raise SourceError(
                "the model returns an output whose name no graph and no server takes",
                where=f"output {name!r}",
                expected="a letter, then letters, digits and `_`; not the input's name, `image`; each name once",
                got=f"{names.count(name)} of that name" if names.count(name) > 1 else repr(name),
                fix="give it such a key or attribute, or return a tuple: `output_0`, `output_1`, …",
            )
        sample_shape(value, batch, Task.TENSORS, f"output {name!r}")
        if same := next((other for other, earlier in entries[:place] if earlier is value), None):
            raise SourceError(
                "the model returns the same tensor twice",
                where=f"outputs {same!r} and {name!r}",
                expected="another tensor for each output",
                got="one tensor under two names, which a graph does not tell apart",
                fix="return it once",
            )
    return tuple(names)


class Head(NamedTuple):
    """The last linear layer, with its name in the model."""

    name: str
    layer: nn.Linear


def find_head(model: nn.Module) -> Head:
    """Return the last linear layer, in the order of `named_modules`.

    Raises:
        SourceError: the model has no linear layer.
    """
    layers = [Head(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise SourceError(
            "the sample model needs a network that ends in torch.nn.Linear",
            got=f"{type(model).__name__}, without one",
            fix="set `model.weights` in pipeline.yaml to a .pth or .safetensors file, or to `factory`",
        )
    return layers[-1]


def cached_file(weights: WeightsEnum) -> Path:
    """Return the path of these weights in torch's hub cache; the file may be absent."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name


def fetch(weights: WeightsEnum, silence_seconds: float) -> Path:
    """Return the weights' file from torch's hub cache; download it first if it is absent.

    Args:
        weights: torchvision's entry.
        silence_seconds: the socket's timeout: the longest pause of the server.

    Raises:
        SourceError: the download fails.
    """
    file = cached_file(weights)
    if file.is_file():
        return file
    digest = file.stem.rpartition("-")[2]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(silence_seconds)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(file), hash_prefix=digest, progress=False)
    except (OSError, HTTPException, RuntimeError) as exc:
        raise SourceError(
            f"{weights} cannot be downloaded",
            got=one_line(exc),
            fix=f"put the file at {file}, or set `model.weights` in pipeline.yaml to a file, `sample` or `auto`",
        ) from exc
    finally:
        socket.setdefaulttimeout(before)
    return file
