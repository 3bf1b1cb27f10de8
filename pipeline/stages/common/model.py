"""The project's model with its weights. Importing this module imports torch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from model_artifacts.errors import one_line
from model_artifacts.sessions.arithmetic import relative_l2
from model_artifacts.sessions.factory_call import assembly_of
from model_artifacts.sessions.torch_model import assemble, in_layout

if TYPE_CHECKING:
    from torch import nn

    from model_artifacts.sessions.arithmetic import Result
    from pipeline.planning.project import Project

log = logging.getLogger(__name__)

_SAME = 1e-4
"""The largest relative L2 distance between two memory layouts. FP32's rounding makes about 1e-6."""


def restore_model(project: Project) -> nn.Module:
    """Return the model with the weights of the source stage, in evaluation mode.

    A model that is an ONNX file is run by ONNX Runtime, and cannot be exported, cast or compiled by torch.

    Raises:
        RecordError: the source stage has not run.
        SourceError: the factory has changed since the source stage ran.
    """
    source = project.source()
    if source.onnx:
        from pipeline.adapters.onnx_network import OnnxNetwork  # noqa: PLC0415 - networks of torch need no onnxruntime

        return OnnxNetwork(project.file(source.weights), source.onnx.batch)
    assembly = assembly_of(source, takes_several=len(source.inputs) > 1)
    return assemble(assembly, project.file(source.weights))


def put_in_fastest_layout(model: nn.Module, images: Result) -> torch.memory_format:
    """Put a model's weights into channels_last if it gives the same logits then; it is a third faster on a CPU.

    Other inputs than images leave them as they are. A `view` behind a convolution fails in that layout, and code that
    reads strides may compute something else. Do not call this in inference mode, which would leave weights that cannot
    be used outside of it.

    Args:
        model: the network, in evaluation mode, on the CPU.
        images: some images (samples, channels, height, width) to try.

    Returns:
        the layout, channels_last or contiguous.
    """
    if isinstance(images, tuple) or images.ndim != len("NCHW"):
        return torch.contiguous_format
    with torch.no_grad():
        expected = model(images.clone())
        try:
            in_layout(model, torch.channels_last)
            found = model(images.contiguous(memory_format=torch.channels_last).clone())
        except Exception as exc:  # noqa: BLE001 - the model's own code raises any type
            reason = one_line(exc)
        else:
            reason = "" if relative_l2(found, expected) <= _SAME else "it gives other logits there"
    if not reason:
        return torch.channels_last
    log.info("the network runs with contiguous weights, because not in channels_last: %s", reason)
    in_layout(model, torch.contiguous_format)
    return torch.contiguous_format
