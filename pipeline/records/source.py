"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from pydantic import PositiveInt

from model_artifacts.records import Count, FileRecord, Preprocessing, StageRecord, TensorSpec, WeightsOrigin


class SourceRecord(StageRecord):
    """The model as the rest of the pipeline takes it: `<model>/source/source.json`."""

    model: str
    factory: str
    origin: WeightsOrigin
    origin_detail: str
    weights: FileRecord
    parameters: Count
    classes: PositiveInt
    class_names: tuple[str, ...] | None
    replaced_head: str | None
    """The name of the final linear layer, where the sample model has one of its own."""
    preprocessing: Preprocessing

    @property
    def input(self) -> TensorSpec:
        """What the model takes."""
        shape = ("batch", *self.preprocessing.input_shape)
        return TensorSpec(name="image", shape=shape, dtype="float32", layout="NCHW")

    @property
    def output(self) -> TensorSpec:
        """What the model gives."""
        return TensorSpec(name="logits", shape=("batch", self.classes), dtype="float32", layout="NC")

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The weights."""
        return (self.weights,)
