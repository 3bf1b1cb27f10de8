"""Record of the step from a detector's raw outputs to boxes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, SerializerFunctionWrapHandler, StrictBool, model_serializer, model_validator

from model_artifacts.records.base import Record, without_defaults

_Share = Annotated[float, Field(ge=0, lt=1)]


class BoxFormat(str, Enum):
    """Meaning of a box's four numbers."""

    XYXY = "xyxy"
    """Left, top, right, bottom."""
    CXCYWH = "cxcywh"
    """The centre, the width and the height."""


class BoxUnits(str, Enum):
    """Unit of a box's numbers."""

    PIXELS = "pixels"
    """Pixels of the network's input."""
    NORMALISED = "normalised"
    """Shares of the input's width and height, from 0 to 1."""


class Activation(str, Enum):
    """Step from the network's numbers to scores from 0 to 1."""

    NONE = "none"
    """The numbers are scores already."""
    SIGMOID = "sigmoid"
    """The sigmoid of each class's own logit, as of RetinaNet."""
    SOFTMAX = "softmax"
    """The softmax over all classes, of which the first is the background and no answer, as of SSD."""


class BoxAxis(str, Enum):
    """Order of an output's axes, after the batch."""

    FIRST = "first"
    """(boxes, numbers): the numbers of a box lie side by side."""
    LAST = "last"
    """(numbers, boxes): channels first, as convolutions give them."""


class Decoding(Record):
    """Step from a detector's raw outputs to boxes with scores and classes, as `model.decoding` names it.

    Each class of a box whose score lies above the threshold is a candidate. Boxes are cut to the image. Of candidates
    of one class that overlap, the one with the highest score stays (greedy non-maximum suppression, as
    `torchvision.ops.batched_nms` and ONNX's NonMaxSuppression do it).
    """

    boxes: str | None = None
    """Name of the output with boxes, (boxes, 4) for an image. None takes both from one output, (4 + classes, boxes)."""
    scores: str | None = None
    """Name of the output with scores, (boxes, classes) for an image."""
    box_axis: BoxAxis | None = None
    """Place of the boxes' axis in all outputs. None is `first` for two outputs, and `last` for one. The JSON leaves out
    None."""
    objectness: StrictBool = False
    """True if the first score of a box is that of any object, by which the others are multiplied, as of YOLOv5. In one
    output it is the fifth number of a box. The JSON leaves out the default."""
    format: BoxFormat = BoxFormat.CXCYWH
    """Meaning of a box's four numbers."""
    units: BoxUnits = BoxUnits.PIXELS
    """Unit of these numbers."""
    activation: Activation = Activation.NONE
    """Step from the network's numbers to scores."""
    score_threshold: _Share = 0.05
    """Score above which a box is a detection."""
    iou_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Intersection over union with a better box of its class, above which a box is none of its own."""
    most: Annotated[int, Field(strict=True, ge=1, le=1000)] = 100
    """Largest number of detections of an image: those with the highest scores."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Decoding:
        if (self.boxes is None) != (self.scores is None):
            raise ValueError("expected `boxes` and `scores`, or neither of them for one output of both")
        if self.boxes is not None and self.boxes == self.scores:
            raise ValueError(f"expected two outputs, got {self.boxes!r} for `boxes` and `scores`")
        if self.objectness and self.activation is Activation.SOFTMAX:
            raise ValueError("expected `objectness` without `activation: softmax`, whose background says the same")
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"box_axis", "objectness"})

    @property
    def boxes_last(self) -> bool:
        """True if the outputs are (numbers, boxes) for an image."""
        return self.boxes is None if self.box_axis is None else self.box_axis is BoxAxis.LAST
