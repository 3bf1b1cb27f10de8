"""The section `quantization`: ranges of activations in int8 and fp8 graphs, and the places of Q/DQ pairs."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, field_serializer

from model_artifacts.records import Record
from pipeline.config.values import in_yaml

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST = 99.0
"""The smallest percentile. The values that may lie outside are kept in memory until all have come: 140 MB, a hundredth
of ResNet18's activations on 512 images."""
_EXPECTED = "auto, max, entropy, mse, or a percentile such as 99.99%"


class RangeMethod(str, Enum):
    """The way from an activation's values on the calibration images to its range."""

    AUTO = "auto"
    """The one of the graph: 99.995% for TensorRT's int8, max for fp8 and for x86."""
    MAX = "max"
    """The smallest and the largest value."""
    PERCENTILE = "percentile"
    """A share of the absolute values inside the range."""
    ENTROPY = "entropy"
    """The range whose eight-bit histogram diverges least from the values'."""
    MSE = "mse"
    """The range with the least squared error of the quantised values."""


class Placement(str, Enum):
    """The proposer of the places of Q/DQ pairs in TensorRT's int8 and fp8 graphs."""

    AUTO = "auto"
    """This project: in front of what TensorRT's kernels fuse."""
    MODEL_OPTIMIZER = "model_optimizer"
    """NVIDIA's Model Optimizer, by the records that `doit propose` has made."""


class RangeRule(Record):
    """A method with its value, which pipeline.yaml writes as one word: `entropy`, `99.99%`."""

    method: RangeMethod = RangeMethod.AUTO
    percentile: float | None = None
    """The percentage of absolute values inside the range, of `percentile`."""

    @property
    def text(self) -> str:
        """The rule as pipeline.yaml writes it."""
        return self.method.value if self.percentile is None else f"{self.percentile:.10g}%"


def parse_rule(value: object) -> object:
    """Return a rule from its text.

    Raises:
        ValueError: it is no method and no percentile, or a percentile outside its bounds.
    """
    if isinstance(value, RangeRule):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if text in {method.value for method in RangeMethod} - {RangeMethod.PERCENTILE.value}:
        return {"method": text}
    if not re.fullmatch(r"\d+(\.\d+)?\s*%", text):
        raise ValueError(f"expected {_EXPECTED}, got {in_yaml(value)}")
    percentile = float(f"{float(text.removesuffix('%')):.10g}")  # as `text` writes it
    if not _LEAST <= percentile < 100:  # noqa: PLR2004 - per cent
        rest = "; write max for all values" if percentile == 100 else ""  # noqa: PLR2004 - the same
        raise ValueError(f"expected a percentile from 99% to below 100%, got {in_yaml(value)}{rest}")
    return {"method": RangeMethod.PERCENTILE, "percentile": percentile}


def _pairs_of(*, both: bool) -> Callable[[object], object]:
    """Return a validator for a group: `auto` is None, and only groups that a graph may leave out take `true`."""
    expected = "auto, true or false" if both else "auto or false"

    def validate(value: object) -> object:
        if value is None or value == "auto":
            return None
        if value is False or (both and value is True):
            return value
        raise ValueError(f"expected {expected}, got {in_yaml(value)}")

    return validate


def _parse_head(value: object) -> object:
    """Return the type of a head; None for `auto`.

    Raises:
        ValueError: it is none.
    """
    if value is None or value == "auto":
        return None
    if value == "float16":
        return value
    raise ValueError(f"expected auto or float16, got {in_yaml(value)}")


_End = Annotated[bool | None, BeforeValidator(_pairs_of(both=True))]
_Inner = Annotated[bool | None, BeforeValidator(_pairs_of(both=False))]
GROUPS = ("first", "last", "sums", "pools", "concats")
"""Groups of nodes that get Q/DQ pairs or not, together."""


class QuantizationConfig(Record):
    """The quantiser's settings, for int8 and fp8 alike."""

    calibration: Annotated[RangeRule, BeforeValidator(parse_rule)] = RangeRule()
    """The rule for the ranges of activations."""

    placement: Placement = Placement.AUTO
    """The proposer of the places of Q/DQ pairs in TensorRT's graphs. Ranges, weights and biases are ours with both."""
    first: _End = None
    """Q/DQ pairs of the first layer. None, written `auto`, leaves it out in fp8 alone."""
    last: _End = None
    """Those of the last layer in front of each output. None leaves out products, whose eight-bit logits tie."""
    sums: _Inner = None
    """Those of sums of two activations. None places what kernels fuse; false leaves them out."""
    pools: _Inner = None
    """Those of pools and of means over height and width."""
    concats: _Inner = None
    """Those of concatenations, which x86's graphs have."""
    head: Annotated[Literal["float16"] | None, BeforeValidator(_parse_head)] = None
    """The type of the last products in floating point, and of the pools in front of them, in TensorRT's plain int8
    graph. None is FP32, as of all layers around those in int8."""

    def of(self, group: str) -> bool | None:
        """Return the setting of one of `GROUPS`; None is `auto`."""
        found: bool | None = getattr(self, group)
        return found

    @property
    def placed(self) -> dict[str, bool]:
        """The groups whose pairs are placed or left out by the configuration."""
        return {group: found for group in GROUPS if (found := self.of(group)) is not None}

    @field_serializer("calibration")
    def _as_written(self, rule: RangeRule) -> str:
        return rule.text

    @field_serializer(*GROUPS, "head")
    def _or_auto(self, value: bool | str | None) -> bool | str:  # noqa: FBT001 - pydantic's signature
        return "auto" if value is None else value
