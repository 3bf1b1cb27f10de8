"""Record of the data stage."""

from __future__ import annotations

from enum import Enum, IntEnum

from pydantic import PositiveInt, SerializerFunctionWrapHandler, model_serializer

from model_artifacts.records import FileRecord, Preprocessing, Record, Share, StageRecord, without_defaults


class ImagesOrigin(str, Enum):
    """Origin of the images."""

    DIGITS = "digits"
    """scikit-learn's digits."""
    PHOTOGRAPHS = "photographs"
    """Crops of scikit-learn's two photographs, without labels."""
    FOLDER = "folder"
    """A folder of image files."""
    TENSORS = "tensors"
    """A file with an array for each of the model's inputs."""


class BoxKind(IntEnum):
    """Kind of a detector's true box."""

    NONE = -1
    """No box: it fills up an image with fewer of them than others."""
    JUDGED = 0
    """A box to find."""
    CROWD = 1
    """A crowd, as COCO means it: any number of detections inside of it are neither right nor wrong."""
    IGNORED = 2
    """A box that may be found or not."""


class AxisSize(Record):
    """An axis and its size."""

    name: str
    """Name of the axis, such as `height`."""
    size: PositiveInt
    """Its size."""


class SizedSamples(Record):
    """Validation samples of another size than their own, with the FP32 reference's logits of them."""

    axes: tuple[AxisSize, ...]
    """The sizes."""
    samples: PositiveInt
    """Number of samples: the first ones of the validation set."""
    pixels: FileRecord
    """Pixels, resized from those of the validation set (Pillow, bilinear), npy; of a model of tensors the beginnings of
    its arrays, with a field for each input."""
    reference: FileRecord
    """Logits of the FP32 reference for these samples, npy."""
    shapes: tuple[tuple[PositiveInt, ...], ...] = ()
    """Shape of each output for a sample of this size, where outputs follow it. The JSON leaves it out for others."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"shapes"})

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """The sizes by the names of their axes, as the configuration has them."""
        return tuple((axis.name, axis.size) for axis in self.axes)


class DataRecord(StageRecord):
    """Calibration and validation images, and the FP32 reference's logits: `<model>/data/data.json`.

    Pixels are uint8 in NHWC order, after resize and crop and before normalisation. Samples of a model of tensors are an
    array (samples,) with a field for each input, in its own type. Logits are float32 of shape
    (samples, classes), other outputs flattened. Each of several outputs has its own array, of its own shape.
    """

    origin: ImagesOrigin
    """Origin of the images."""
    origin_detail: str
    """Description of that origin, such as the folder."""
    preprocessing: Preprocessing | None
    """Steps from an image file to the input; None for a model of tensors."""
    calibration: FileRecord
    """Pixels or samples for calibration, npy."""
    calibration_samples: PositiveInt
    """Number of images for calibration."""
    validation: FileRecord
    """Pixels or samples for validation, npy."""
    validation_samples: PositiveInt
    """Number of images for validation."""
    labels: FileRecord | None
    """Truth of the validation images, npy; None without labels. Class indices (samples,); of a segmentation masks
    (samples, height, width), of several labels zeros and ones (samples, classes), of a regression numbers. Of a
    detector boxes (samples, boxes, 6): left, top, right and bottom in pixels of the network's input, the class, and
    the `BoxKind`."""
    reference: FileRecord
    """Logits of the FP32 reference for the validation images, npy; of several outputs npz, with an array by the name
    of each."""
    reference_top1: Share | None
    """The reference's share of correct answers; None without labels."""
    unreadable: tuple[str, ...]
    """Image files that could not be read and were left out."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of the logits, or of a regression's numbers: those of `data.classes`, else of
    the labels' table or the weights'; None if unknown."""
    names: FileRecord | None = None
    """JSON list of the validation images' paths in their folder; None for other origins."""

    sizes: tuple[SizedSamples, ...] = ()
    """Samples at the sizes that dynamic axes are checked at. The JSON leaves it out without such axes."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"sizes"})

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Pixels, labels and names as far as they exist, and the reference's logits."""
        optional = tuple(file for file in (self.labels, self.names) if file)
        sized = (file for item in self.sizes for file in (item.pixels, item.reference))
        return (self.calibration, self.validation, *optional, self.reference, *sized)
