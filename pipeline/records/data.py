"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from enum import Enum

from pydantic import PositiveInt

from model_artifacts.records import FileRecord, Preprocessing, Share, StageRecord


class ImagesOrigin(str, Enum):
    """Where the images came from."""

    DIGITS = "digits"
    PHOTOGRAPHS = "photographs"
    FOLDER = "folder"


class DataRecord(StageRecord):
    """Calibration and validation batches, and what the FP32 reference says of them: `<model>/data/data.json`.

    Pixels are uint8 NHWC after resize and crop, before normalisation; logits are float32 (samples, classes).
    """

    origin: ImagesOrigin
    origin_detail: str
    preprocessing: Preprocessing
    calibration: FileRecord
    calibration_samples: PositiveInt
    validation: FileRecord
    validation_samples: PositiveInt
    labels: FileRecord | None
    reference: FileRecord
    reference_top1: Share | None
    unreadable: tuple[str, ...]
    names: FileRecord | None = None
    """The validation samples' files, where they are of a folder: a JSON list of paths in it."""

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Pixels, labels and names where there are any, and the reference's logits."""
        optional = tuple(file for file in (self.labels, self.names) if file)
        return (self.calibration, self.validation, *optional, self.reference)
