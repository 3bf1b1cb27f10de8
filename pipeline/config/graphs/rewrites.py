"""The section `rewrites`: other forms of parts of the network's ONNX graphs, for which there may be faster kernels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, field_serializer

from model_artifacts.records import Record
from pipeline.config.values import in_yaml

_CHANNELS = (4, 8, 16, 32)
"""Numbers of channels that kernels of tensor cores read at once, by their type and format."""


def _parse_channels(value: object) -> object:
    """Return a number of channels; None for `auto`.

    Raises:
        ValueError: it is none of them.
    """
    if value is None or value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value in _CHANNELS:
        return value
    raise ValueError(f"expected auto, {', '.join(map(str, _CHANNELS[:-1]))} or {_CHANNELS[-1]}, got {in_yaml(value)}")


def _parse_product(value: object) -> object:
    """Return the form of a product; None for `auto`.

    Raises:
        ValueError: it is none.
    """
    if value is None or value == "auto":
        return None
    if value in {"convolution", "pooled"}:
        return value
    raise ValueError(f"expected auto, convolution or pooled, got {in_yaml(value)}")


class RewritesConfig(Record):
    """The rewrites of the exported graphs. None, written `auto`, leaves a part as the exporter writes it."""

    product: Annotated[Literal["convolution", "pooled"] | None, BeforeValidator(_parse_product)] = None
    """The last products behind a global pool as convolutions: of 1 by 1, or as large as the image, with the pool."""
    channels: Annotated[Literal[4, 8, 16, 32] | None, BeforeValidator(_parse_channels)] = None
    """The input channels of the first convolutions, with zeros behind the image's own."""

    @property
    def chosen(self) -> dict[str, int | str]:
        """The rewrites that are not `auto`, by their names."""
        found = {"product": self.product, "channels": self.channels}
        return {name: value for name, value in found.items() if value is not None}

    @field_serializer("product", "channels")
    def _or_auto(self, value: int | str | None) -> int | str:
        return "auto" if value is None else value
