"""ONNX files of networks for images of any size, as torch's two exporters write them; and a graph of computed sizes."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from tests.support.segments import Segmenter

if TYPE_CHECKING:
    from pathlib import Path

GROWTH = 1.1
"""The growth of the maps between two layers: a number that float16 holds none of, so that 50 × 1.1 becomes 54.97."""


class Skipping(Segmenter):
    """The segmenter with a pooled path beside its image, whose maps are resized three times, last to the image's size.

    The sizes are computed: twice those of the pooled maps, padded to the image's; 1.1 times these; and the image's own.
    """

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # a file has no dictionary
        """Return maps of logits (batch, 3, height, width)."""
        maps = super().forward(image)["out"]
        pooled = functional.interpolate(functional.max_pool2d(maps, 2), scale_factor=2.0, mode="nearest")
        height, width = maps.shape[2] - pooled.shape[2], maps.shape[3] - pooled.shape[3]
        both = maps + functional.pad(pooled, (0, width, 0, height))
        sizes = [torch.as_tensor(size * GROWTH).floor().int() for size in image.shape[2:]]
        larger = functional.interpolate(both, size=sizes, mode="bilinear", align_corners=False)  # type: ignore[arg-type]  # a trace takes tensors
        return functional.interpolate(larger, size=image.shape[2:], mode="bilinear", align_corners=False)


class Pair(nn.Module):
    """The outputs of a detector of `sized_detectors`, in a row."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes (batch, cells, 4) and logits (batch, cells, 2)."""
        outputs = self.detector(image)
        return outputs["boxes"], outputs["scores"]


class Features(nn.Module):
    """A pyramid of two levels: the maps of the coarse one are resized to those of the fine one, and added."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return maps (batch, ⌈height / 2⌉ · ⌈width / 2⌉, 16), a row for each place."""
        fine = self.fine(image).relu()
        coarse = functional.interpolate(self.coarse(fine), size=fine.shape[2:], mode="bilinear", align_corners=False)
        rows: torch.Tensor = (fine + coarse).flatten(2).transpose(1, 2)
        return rows


def write_onnx(network: nn.Module, file: Path, outputs: list[str], size: int, *, traced: bool) -> None:
    """Export a network of images with free axes for batch, height and width.

    Args:
        network: the network.
        file: the ONNX file.
        outputs: the names of its outputs.
        size: the height and width of the images that it is exported with.
        traced: True for torch's exporter of traces, whose sizes are computed node by node; False for the newer one.
    """
    images = (torch.rand(2, 3, size, size),)
    exported = partial(torch.onnx.export, network.eval(), images, file, input_names=["image"], output_names=outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own, on what they will change
        if traced:
            exported(dynamo=False, dynamic_axes={"image": {0: "n", 2: "h", 3: "w"}}, opset_version=17)
        else:
            exported(dynamo=True, dynamic_shapes=[dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)])


def grown(opset: int, *, by_scales: bool) -> onnx.ModelProto:
    """Return a graph that resizes its image to 1.1 times the height and the width, and multiplies it with this factor.

    Args:
        opset: the operator set.
        by_scales: True for factors of the sizes, False for the whole sizes.
    """
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "factor"], ["product"]),
        helper.make_node("Div", ["product", "wide"], ["scales"])
        if by_scales
        else helper.make_node("Cast", ["product"], ["sizes"], to=TensorProto.INT64),
        helper.make_node("Resize", ["image", "", *(["scales"] if by_scales else ["", "sizes"])], ["resized"]),
        helper.make_node("Mul", ["resized", "height"], ["taller"]),
        helper.make_node("Gather", ["product", "two"], ["height_of_all"]),
        helper.make_node("Add", ["taller", "height_of_all"], ["out"]),
    ]
    weights = {"factor": np.array([1, 1, 1.1, 1.1], np.float32), "height": np.array(1.1, np.float32)}
    graph = helper.make_graph(
        nodes,
        "grown",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, "grown_h", "grown_w"])],
        [numpy_helper.from_array(array, name) for name, array in (weights | {"two": np.array(2)}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
