"""The section `quantization`: the rule for the ranges of activations in int8 and fp8 graphs."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated

from pydantic import BeforeValidator, field_serializer

from model_artifacts.records import Record
from pipeline.config.values import in_yaml

_LEAST = 50.0
"""The smallest percentile, exclusive: below it most values would be clipped."""
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
    percentile = float(text.removesuffix("%"))
    if not _LEAST < percentile < 100:  # noqa: PLR2004 - per cent
        rest = "; write max for all values" if percentile == 100 else ""  # noqa: PLR2004 - the same
        raise ValueError(f"expected a percentile above 50% and below 100%, got {in_yaml(value)}{rest}")
    return {"method": RangeMethod.PERCENTILE, "percentile": percentile}


class QuantizationConfig(Record):
    """The quantiser's settings, for int8 and fp8 alike."""

    calibration: Annotated[RangeRule, BeforeValidator(parse_rule)] = RangeRule()
    """The rule for the ranges of activations."""

    @field_serializer("calibration")
    def _as_written(self, rule: RangeRule) -> str:
        return rule.text
