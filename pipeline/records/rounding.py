"""Record of the rounding stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from model_artifacts.records import FileRecord, Graph, Precision, Record, StageRecord, without_defaults
from pipeline.records.data import AxisSize

Distance = Annotated[float, Field(ge=0)]


class RoundingRun(Record):
    """One emulation of a precision."""

    name: str
    """Places of the rounding, such as `results of operators, sums of 16 products`."""
    relative_l2: Distance | None
    """Relative L2 distance to the FP32 reference over all samples, of several outputs the largest; None if a logit is
    not finite."""


class OutputRounding(Record):
    """Distance that a precision's own rounding makes in one of several outputs. See `Rounding` for the fields."""

    name: str
    """Name of the output."""
    relative_l2_high: Distance | None
    """As that of `Rounding`, for this output alone."""
    sample_l2_high: Distance | None
    """As that of `Rounding`, for this output alone."""
    relative_l2_low: Distance | None = None
    """As that of `Rounding`, for this output alone."""
    part_l2_high: tuple[Distance, ...] = ()
    """As that of `Rounding`, for this output alone."""
    part_l2_redrawn: tuple[Distance, ...] = ()
    """As that of `Rounding`, for this output alone."""
    part_sizes: tuple[Distance, ...] = ()
    """As that of `Rounding`, for this output alone."""


class ShownRounding(Record):
    """Distance that a precision's own rounding makes in the logits that an artifact shows as probabilities.

    It is measured as that of logits, after what is shown was put on the scale of the reference's logits.
    """

    output: str
    """Output, such as `top5`."""
    relative_l2_high: Distance | None
    """As that of `Rounding`, in the logits that are shown, as a share of the norm of all."""
    relative_l2_low: Distance | None
    """As that of `Rounding`, for this output alone."""
    sample_l2_high: Distance | None
    """As that of `Rounding`, for this output alone."""
    share: Distance
    """Share of the logits' norm that is shown. Bounds on the distance of all logits are smaller by it."""


class SizedRounding(Record):
    """Distance that a precision's own rounding makes for images of another size. See `Rounding` for the fields."""

    axes: tuple[AxisSize, ...]
    """Sizes of the images."""
    relative_l2_high: Distance | None
    """As that of `Rounding`, at this size alone."""
    relative_l2_low: Distance | None
    """As that of `Rounding`, at this size alone."""
    sample_l2_high: Distance | None
    """As that of `Rounding`, at this size alone."""
    margin_noise: Distance | None
    """As that of `Rounding`, at this size alone."""
    part_l2_high: tuple[Distance, ...] = ()
    """As that of `Rounding`, at this size alone."""
    part_l2_redrawn: tuple[Distance, ...] = ()
    """As that of `Rounding`, at this size alone."""
    part_sizes: tuple[Distance, ...] = ()
    """As that of `Rounding`, at this size alone."""
    outputs: tuple[OutputRounding, ...] = ()
    """As that of `Rounding`, at this size alone."""
    trouble: str = ""
    """As that of `Rounding`, at this size alone."""


class Rounding(StageRecord):
    """Distance that a precision's own rounding makes in a network: `<model>/rounding/<graph or tf32>.json`.

    Source of the bounds that tell a faithful artifact from a faulty one.
    """

    graph: Graph
    """Graph whose weights and quantisation are emulated."""
    precision: Precision
    """Precision of the arithmetic. TF32 runs the FP32 graph."""
    emulator: str
    """Library that emulated it, with its version."""
    samples: PositiveInt
    """Number of validation samples, the first ones."""
    runs: tuple[RoundingRun, ...]
    """Emulations, which differ in the places of the rounding; none if there was trouble."""
    relative_l2_high: Distance | None
    """Upper 97.5 % quantile of the relative L2 distance over resampled samples, of the run with the largest. None if a
    logit is not finite: an activation lies beyond the precision's range. Of several outputs the largest."""
    relative_l2_low: Distance | None = None
    """Lower 2.5 % quantile of the same, divided by what else few samples leave open: an honest artifact has a quarter
    of it or more. Of the run with the smallest, of several outputs of the one with the largest distance."""
    sample_l2_high: Distance | None
    """Largest distance of a sample, divided by the root mean square of the reference's norms. Of several outputs the
    largest."""
    margin_noise: Distance | None
    """Change of the difference between the two largest logits of a sample, of a segmentation's pixel, as its 99 %
    quantile; of several labels the change of a logit. None for tasks without such answers."""
    trouble: str = ""
    """Reason why it could not be emulated; empty if it was. All distances are None then."""
    repeatable: bool = True
    """True if the FP32 network gives the same logits for a batch twice. Only the record of FP32 looks."""
    logits: FileRecord | None = None
    """Emulated logits, float32 (samples, classes), or flattened tensors (samples, values), those of several outputs
    side by side. Quantised graphs have them: their artifacts are compared with the emulation, too."""

    part_l2_high: tuple[Distance, ...] = ()
    """The same quantile of each part of an output of the task `tensors`, of the run with the largest."""
    part_l2_redrawn: tuple[Distance, ...] = ()
    """Distance of each part that the same rounding, drawn anew, stays within. It is large for a part whose distance few
    samples make."""
    part_sizes: tuple[Distance, ...] = ()
    """Root mean square of the norm of each part in the reference, over the same samples."""
    outputs: tuple[OutputRounding, ...] = ()
    """Distances of each output, of a model with several. The JSON of one output leaves it out."""
    shown: tuple[ShownRounding, ...] = ()
    """Distances in the outputs of `io` that are no logits. The JSON leaves it out without such."""

    sizes: tuple[SizedRounding, ...] = ()
    """Distances at the sizes that dynamic axes are checked at. The JSON leaves it out without such axes."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        later = {"part_l2_high", "part_l2_redrawn", "part_sizes", "outputs", "shown", "sizes"}
        return without_defaults(self, serialize(self), later)

    def of(self, output: str) -> Rounding:
        """Return the record of one output alone; of a model with one output, this record."""
        for item in self.outputs:
            if item.name == output:
                own = {name: value for name, value in item if name != "name"}
                return self.model_copy(update={**own, "outputs": ()})
        return self

    def at(self, axes: tuple[AxisSize, ...]) -> Rounding:
        """Return the record of images of another size; one without any distance if that was not emulated."""
        unknown = SizedRounding(
            axes=axes,
            relative_l2_high=None,
            relative_l2_low=None,
            sample_l2_high=None,
            margin_noise=None,
            trouble="it was not emulated at this size",
        )
        item = next((item for item in self.sizes if item.axes == axes), unknown)
        own = {name: value for name, value in item if name != "axes"}
        return self.model_copy(update={**own, "logits": None, "shown": (), "sizes": ()})

    def in_output(self, answer: str) -> tuple[Rounding, float]:
        """Return the record of what an output shows, and the share of the logits' norm in it.

        Args:
            answer: the output, such as `top5`; of logits the record is this one.
        """
        for item in self.shown:
            if item.output == answer:
                names = ("relative_l2_high", "relative_l2_low", "sample_l2_high")
                return self.model_copy(update={name: getattr(item, name) for name in names}), item.share
        return self, 1.0

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The emulated logits, if they are kept."""
        return (self.logits,) if self.logits else ()
