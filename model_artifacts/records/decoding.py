"""Record of the step from a detector's raw outputs to boxes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, model_validator

from model_artifacts.records.base import Record

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
        return self
