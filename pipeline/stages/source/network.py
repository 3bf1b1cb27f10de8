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
from model_artifacts.sessions.factory_call import LogitsOf
from pipeline.stages.source.outputs import output_name, sample_shape

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum


def output_shape(
    model: nn.Module, input_shape: tuple[int, int, int], task: Task = Task.CLASSIFICATION
) -> tuple[int, ...]:
    """Return the shape of the output that the model gives for one image: the number of logits, or the vector's length.

    Args:
        model: the network, in FP32 and evaluation mode.
        input_shape: (channels, height, width).
        task: the task of the model.

    Raises:
        SourceError: the model does not take a batch of images, or does not return (batch, classes).
    """
    expected = f"one input (batch, {', '.join(map(str, input_shape))}) and one output (batch, classes)"
    try:
        with torch.inference_mode():
            output = model(torch.zeros(2, *input_shape))
    except Exception as exc:
        raise SourceError("the model does not take a batch of images", expected=expected, got=one_line(exc)) from exc
    return sample_shape(output, 2, task)


class Output(NamedTuple):
    """A network that returns a tensor, and the name of that tensor in the output of the factory's own network."""

    model: nn.Module
    logits: str | None
    """None if the factory's network returns a tensor itself."""


def take_logits(model: nn.Module, input_shape: tuple[int, int, int], task: Task = Task.CLASSIFICATION) -> Output:
    """Return a network whose output is a tensor, if its own is a mapping or a dataclass of it alone.

    Args:
        model: the network, in FP32 and evaluation mode.
        input_shape: (channels, height, width).
        task: the task of the model. The mapping of a classifier must call the tensor `logits`.
    """
    try:
        with torch.inference_mode():
            output = model(torch.zeros(2, *input_shape))
    except Exception:  # noqa: BLE001 - `output_shape` runs it again, and reports any type of error
        return Output(model, None)
    name = output_name(output, 2, task)
    return Output(LogitsOf(model, name), name) if name else Output(model, None)


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
