"""Record of the source stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from model_artifacts.errors import UnsupportedError
from model_artifacts.records import (
    Argument,
    Count,
    FileRecord,
    Preprocessing,
    Record,
    Sha256,
    StageRecord,
    Task,
    TensorSpec,
    WeightsOrigin,
    without_defaults,
)


class ReadFile(Record):
    """A file that the model's factory read."""

    path: str
    """Path from the folder that the pipeline runs in; absolute for a file elsewhere."""
    sha256: Sha256
    """SHA-256 of the file's bytes."""


def tensor_spec(name: str, sample: tuple[int, ...], dtype: str = "float32") -> TensorSpec:
    """Return the spec of an input or output, given the shape of one sample."""
    shape = ("batch", *sample)
    return TensorSpec(name=name, shape=shape, dtype=dtype, layout="NCHW"[: len(shape)])


class OnnxSource(Record):
    """Facts about a model that is an ONNX file."""

    input: str
    """Name of the input, of several that of the first."""
    output: str | None
    """Name of the one output; None for several."""
    opset: PositiveInt
    """Version of ONNX's operator set in the user's file."""
    batch: PositiveInt | None
    """The one batch size that the user's file takes; None if it takes any."""
    widened: tuple[str, ...] = ()
    """Types that the user's file computes in, in place of float32. The JSON of a file in float32 leaves it out."""
    own_distance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Largest relative L2 distance of an output of this file's own run to its run in float32; None without both. The
    JSON leaves it out then."""
    uncompared: str = ""
    """Reason why a file in other types was not compared with its run in float32; empty if it was, and for a file in
    float32. The JSON leaves it out then."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"widened", "own_distance", "uncompared"})


class SourceRecord(StageRecord):
    """The model and its weights, for all later stages: `<model>/source/source.json`."""

    model: str
    """Name of the model in the configuration."""
    factory: str
    """The model's factory, `module:function`; empty for a model that is an ONNX file."""
    arguments: tuple[Argument, ...] = ()
    """Arguments that the factory is called with."""
    origin: WeightsOrigin
    """Origin of the weights."""
    origin_detail: str
    """Description of that origin, such as a file's name."""
    weights: FileRecord
    """The state dict as safetensors; of a model that is an ONNX file, that file with its external data taken in."""
    parameters: Count
    """Number of parameters."""
    classes: PositiveInt
    """Number of classes, which is the length of a row of logits; else the number of values for one image, of all
    outputs."""
    class_names: tuple[str, ...] | None
    """Names of the classes, in the order of the logits; None if unknown."""
    replaced_head: str | None
    """Name of the final linear layer, if the sample model has its own; else None."""
    torchvision_weights: str | None = None
    """Name of torchvision's weights, with whose settings the factory is called; None for others."""
    logits: str | None = None
    """Name of the one output in what the network returns, if that is a mapping or a dataclass; None for a tensor, and
    for several outputs."""
    awaited_file: str | None = None
    """Name of the file in torch's cache that `auto` could not download, and replaces the sample model with."""
    reads: tuple[ReadFile, ...] = ()
    """Files that the factory read, such as weights that it loads by itself."""
    preprocessing: Preprocessing | None
    """Steps from an image file to the input; None for a model of tensors."""
    task: Task = Task.CLASSIFICATION
    """Task of the model. The JSON of a classification leaves it out."""
    sample_shape: tuple[PositiveInt, ...] | None = None
    """Shape of the output for one image; None for a row of logits or a vector, whose length is `classes`, and for
    several outputs."""
    named_outputs: tuple[TensorSpec, ...] = ()
    """Outputs of a network that returns several, in its order. The JSON of one output leaves it out."""
    onnx: OnnxSource | None = None
    """Facts about the ONNX file; None for a network of torch."""
    named_inputs: tuple[TensorSpec, ...] = ()
    """Inputs of a model of tensors, in its order. The JSON of a model of images leaves it out."""
    samples: FileRecord | None = None
    """First samples of these inputs, npy with a field for each; None for a model of images."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), _LATER)

    @property
    def pictures(self) -> Preprocessing:
        """Steps from an image file to the input, of a model of images.

        Raises:
            UnsupportedError: the model takes tensors.
        """
        if self.preprocessing is None:
            raise UnsupportedError("the model takes the tensors of `data.tensors`, and no images")
        return self.preprocessing

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs: float32 images in NCHW order, or tensors of any type and shape."""
        if self.named_inputs:
            return self.named_inputs
        return (tensor_spec(self.onnx.input if self.onnx else "image", self.pictures.input_shape),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs: float32 logits (batch, classes), vectors (batch, length), or tensors of any shape."""
        if self.named_outputs:
            return self.named_outputs
        own = self.logits if self.task.keeps_name else None
        own = self.onnx.output if self.onnx else own
        return (tensor_spec(own or self.task.output, self.sample_shape or (self.classes,)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of several outputs; () for one."""
        return tuple(spec.name for spec in self.named_outputs)

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The file of weights, and of samples."""
        return (self.weights, self.samples) if self.samples else (self.weights,)


_LATER = ("task", "sample_shape", "named_outputs", "onnx", "named_inputs", "samples")
"""Fields that the first records do not have."""
