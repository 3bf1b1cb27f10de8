"""Records of a model's preprocessing, inputs, outputs and weights."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from model_artifacts.records.base import Record, Whole, without_defaults


class Interpolation(str, Enum):
    """Filter for resizing an image (Pillow's filter of the same name)."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    HAMMING = "hamming"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Fit(str, Enum):
    """Way to bring an image to a height and a width that are both given."""

    SQUASH = "squash"
    """Exactly this size, as by torchvision's `Resize((height, width))` and timm's crop mode `squash`."""
    COVER = "cover"
    """At least this size, with the image's proportions (timm's crop mode `center` of a rectangle)."""
    BORDER = "border"
    """At most this size, with the image's proportions. The mean's colour fills the crop (timm's crop mode `border`)."""


class Offset(str, Enum):
    """Place of a centre crop that leaves an odd number of pixels, so that its exact offset ends in a half."""

    EVEN = "even"
    """The nearest even offset, as by torchvision's `CenterCrop` and timm."""
    DOWN = "down"
    """The smaller offset, as by the image processors of transformers."""

    def of(self, spare: int) -> int:
        """Return the offset of a crop that leaves this many pixels."""
        return spare // 2 if self is Offset.DOWN else round(spare / 2)


class ChannelOrder(str, Enum):
    """Order of the network's input channels. `mean` and `std` are in this order, too."""

    RGB = "rgb"
    """Red, green, blue."""
    BGR = "bgr"
    """Blue, green, red, as of networks from Caffe or OpenCV."""


class Orientation(str, Enum):
    """Treatment of the orientation that a camera notes in EXIF."""

    STORED = "stored"
    """Pixels as they lie in the file, as by torchvision's `ImageFolder`."""
    EXIF = "exif"
    """Pixels turned upright, as programs show them."""


class Transparency(str, Enum):
    """Treatment of transparent pixels."""

    DROPPED = "dropped"
    """The colours beneath the transparency, as by torchvision's `ImageFolder`. Many are black."""
    WHITE = "white"
    """The image on white."""
    BLACK = "black"
    """The image on black."""


def _check_size(value: object) -> object:
    """Return a size in pixels: a whole number, or height and width.

    Raises:
        ValueError: the value is neither.
    """
    sides = value if isinstance(value, (list, tuple)) and len(value) == _SIDES else [value]
    if any(type(side) is not int or side < 1 for side in sides):
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise ValueError(f"expected a whole number of pixels above 0, or [height, width], got {shown}")
    return value


_SIDES = 2
Size = Annotated[Whole | tuple[Whole, Whole], BeforeValidator(_check_size)]
"""A number of pixels, or height and width."""
Interval = tuple[Annotated[float, Field(strict=True)], Annotated[float, Field(strict=True)]]
"""The least and the largest value."""


class Preprocessing(Record):
    """Steps from an image file to the network's input: resize, centre crop, scale to [0, 1], normalise.

    The input is float32 in NCHW order. One mean makes it greyscale, three make it a colour image, four one with its
    transparency as a channel. A field that has its default is left out of the JSON, unless every record has the field.
    """

    resize: Size
    """Length of the short side after resizing in pixels, or height and width, which `fit` explains."""
    crop: Size
    """Side of the square crop in pixels, or its height and width; at most `resize`."""
    interpolation: Interpolation
    """Filter of the resize."""
    mean: tuple[Annotated[float, Field(strict=True)], ...]
    """Mean of each channel, subtracted after scaling to [0, 1]."""
    std: tuple[Annotated[float, Field(strict=True)], ...]
    """Standard deviation of each channel, the divisor after that."""
    fit: Fit = Fit.SQUASH
    """Way to the height and width of `resize`."""
    offset: Offset = Offset.EVEN
    """Place of the crop where the exact centre lies between two pixels."""
    order: ChannelOrder = ChannelOrder.RGB
    """Order of the input's channels, of `mean` and of `std`."""
    orientation: Orientation = Orientation.STORED
    """Treatment of the orientation in EXIF."""
    transparency: Transparency = Transparency.DROPPED
    """Treatment of transparent pixels."""
    levels: Interval | None = None
    """Values of 16-bit, 32-bit and float pixels that become 0 and 1; None refuses such images."""
    input_range: Interval | None = None
    """Least and largest normalised input, stated by the user because it is out of the ordinary; None if it is not."""

    @model_validator(mode="after")
    def _consistent(self) -> Preprocessing:
        if len(self.mean) not in {1, 3, 4} or len(self.mean) != len(self.std):
            raise ValueError(
                "expected one mean and one std (greyscale), three of each (RGB) or four (RGBA), "
                f"got {len(self.mean)} and {len(self.std)}; other channels are arrays of `data.tensors`"
            )
        if min(self.std) <= 0:
            raise ValueError(f"expected every std above 0, got {list(self.std)}")
        if self.channels == 1 and self.order is not ChannelOrder.RGB:
            raise ValueError("expected `order` only with three means, got one mean; remove `order`")
        if self.channels == len("RGBA") and self.transparency is not Transparency.DROPPED:
            raise ValueError("expected no `transparency` with four means, of which one is its own; remove it")
        for name, pair in (("levels", self.levels), ("input_range", self.input_range)):
            if pair and pair[0] >= pair[1]:
                raise ValueError(f"expected `{name}` in ascending order, got {list(pair)}")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Preprocessing:
        square = isinstance(self.resize, int)
        if square and self.fit is not Fit.SQUASH:
            raise ValueError(f"expected `fit` with a height and a width, such as resize: {[self.resize] * 2}")
        height, width = _sides(self.resize)
        if self.height <= height and self.width <= width:
            return self
        crop = list(self.crop) if isinstance(self.crop, tuple) else self.crop
        resize = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        fix = "; write the `resize` and the `crop` of the training"
        if square and self.height != self.width:
            sides = f"[{max(self.height, height)}, {max(self.width, height)}]"
            fix = f"; write resize: {sides} to squash, with fit: cover to keep the proportions"
        raise ValueError(f"expected crop ≤ resize, got crop {crop}, resize {resize}{fix}")

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), _LATER)

    @property
    def channels(self) -> int:
        """Number of channels: 1 for greyscale, 3 for colour, 4 for colour with transparency."""
        return len(self.mean)

    @property
    def height(self) -> int:
        """Height of the input in pixels."""
        return _sides(self.crop)[0]

    @property
    def width(self) -> int:
        """Width of the input in pixels."""
        return _sides(self.crop)[1]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (channels, height, width)."""
        return (self.channels, self.height, self.width)

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the largest value that an input can have, over all channels."""
        pairs = list(zip(self.mean, self.std, strict=True))
        return min(-mean / std for mean, std in pairs), max((1 - mean) / std for mean, std in pairs)


_LATER = ("fit", "offset", "order", "orientation", "transparency", "levels", "input_range")
"""Fields that the first records do not have."""


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a size."""
    return (size, size) if isinstance(size, int) else size


class ImageInput(str, Enum):
    """The images that an artifact takes."""

    FLOAT32 = "float32"
    """Normalised, (batch, channels, height, width)."""
    FLOAT16 = "float16"
    """The same values in half precision."""
    UINT8 = "uint8"
    """Pixels as decoded, resized and cropped, (batch, height, width, channels). The artifact normalises them."""


class OutputForm(str, Enum):
    """The answer that an artifact gives for an image."""

    LOGITS = "logits"
    """The network's own outputs."""
    PROBABILITIES = "probabilities"
    """The softmax of the logits."""
    TOP = "top"
    """The largest probabilities, and the indices of their classes."""


class Io(Record):
    """An artifact's input and output. The default is the network's own: normalised float32 images, and its outputs."""

    input: ImageInput = ImageInput.FLOAT32
    """The images that it takes."""
    output: OutputForm = OutputForm.LOGITS
    """The answer that it gives."""
    top: Whole | None = None
    """The number of classes in the answer; None for all."""

    @model_validator(mode="after")
    def _consistent(self) -> Io:
        if (self.output is OutputForm.TOP) != (self.top is not None):
            raise ValueError(f"expected `top` with the output top alone, got {self.output.value} with {self.top}")
        return self

    @property
    def answer(self) -> str:
        """The output as pipeline.yaml and requirements write it: `logits`, `probabilities`, `top5`."""
        return f"{self.output.value}{self.top or ''}"

    @property
    def is_plain(self) -> bool:
        """True for the network's own input and output."""
        return self == PLAIN

    @property
    def words(self) -> tuple[str, ...]:
        """The differences from the network's own, for names of variants: () or (uint8, top5)."""
        return tuple(
            word
            for word, plain in ((self.input.value, PLAIN.input.value), (self.answer, PLAIN.answer))
            if word != plain
        )


PLAIN = Io()
"""The network's own input and output."""


class Task(str, Enum):
    """Task of a model: the meaning of its output, and the metric by which artifacts are good enough."""

    CLASSIFICATION = "classification"
    """A row of logits for each image. The class with the largest one is the answer."""
    EMBEDDING = "embedding"
    """A vector for each image, compared with others by their cosine."""
    TENSORS = "tensors"
    """A tensor for each image or several: maps, boxes and scores, or numbers. The user's own code gives them a meaning,
    so that their distances alone are judged, for each output and each part of it."""
    SEGMENTATION = "segmentation"
    """A map of logits for each image, (classes, height, width). The class with the largest one is a pixel's answer."""
    MULTILABEL = "multilabel"
    """A row of logits for each image, one a class. Each class whose sigmoid reaches a threshold is an answer."""
    REGRESSION = "regression"
    """A row of numbers for each image. Each is right within a tolerance."""
    DETECTION = "detection"
    """Raw boxes and scores for each image, in one output or several, which a documented step decodes to detections."""

    @property
    def output(self) -> str:
        """Name of the model's output, unless the network gives it one."""
        names = {Task.EMBEDDING: "embedding", Task.REGRESSION: "values"}
        names |= dict.fromkeys((Task.TENSORS, Task.DETECTION), "output_0")
        return names.get(self, "logits")

    @property
    def keeps_name(self) -> bool:
        """True if the output keeps the name that the network's own mapping gives it."""
        return self in {Task.TENSORS, Task.SEGMENTATION, Task.REGRESSION, Task.DETECTION}

    @property
    def takes_several(self) -> bool:
        """True if the network may give several outputs, of any shape."""
        return self in {Task.TENSORS, Task.DETECTION}

    @property
    def has_parts(self) -> bool:
        """True if each part of the output is held to a bound of its own."""
        return self not in {Task.CLASSIFICATION, Task.EMBEDDING}

    @property
    def has_answers(self) -> bool:
        """True if `predict` says what the output means."""
        return self not in {Task.EMBEDDING, Task.TENSORS}

    @property
    def has_classes(self) -> bool:
        """True if the output answers with classes."""
        return self in {Task.CLASSIFICATION, Task.SEGMENTATION, Task.MULTILABEL, Task.DETECTION}


class WeightsOrigin(str, Enum):
    """Origin of a model's weights."""

    IMAGENET1K_V1 = "IMAGENET1K_V1"
    """torchvision's weights of this name."""
    TORCHVISION = "torchvision"
    """torchvision's weights of another name, which the description gives."""
    CHECKPOINT = "checkpoint"
    """A file with a state dict."""
    FACTORY = "factory"
    """The weights that the factory itself returns."""
    SAMPLE = "sample"
    """The sample model: a seeded backbone with a head fitted on digits."""
    ONNX = "onnx"
    """An ONNX file, which is the model itself."""
