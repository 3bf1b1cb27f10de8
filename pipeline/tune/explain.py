"""Profile → each layer's time beside its own floor, and the kernels in another type than was asked. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Precision

if TYPE_CHECKING:
    from pipeline.records import LayerProfile, LayerTime
    from pipeline.stages.report.floors import Peak

_RATE = {
    Precision.INT8: 2.0,
    Precision.FP8: 2.0,
    Precision.FP16: 1.0,
    Precision.BF16: 1.0,
    Precision.TF32: 0.5,
    Precision.FP32: 0.5,
}
"""The peak arithmetic of a type as a multiple of dense FP16's on tensor cores, from NVIDIA's datasheets of Ampere to
Blackwell. FP32 has TF32's, which it can only be slower than: the floor stays a floor."""
_BYTES = {
    Precision.INT8: 1,
    Precision.FP8: 1,
    Precision.FP16: 2,
    Precision.BF16: 2,
    Precision.TF32: 4,
    Precision.FP32: 4,
}
_AS_ASKED = {
    Precision.INT8: {Precision.INT8},
    Precision.FP8: {Precision.FP8},
    Precision.FP16: {Precision.FP16, Precision.INT8, Precision.FP8},
    Precision.BF16: {Precision.BF16},
    Precision.TF32: {Precision.TF32, Precision.FP32},
    Precision.FP32: {Precision.FP32, Precision.TF32},
}


class LayerFloor(NamedTuple):
    """A layer's time and its lower bound."""

    layer: LayerTime
    floor_us: float
    """The larger of the bounds: arithmetic at the peak of its type, and bytes at the bandwidth."""
    bound: str
    """The bound that counts: `arithmetic` or `bytes`."""

    @property
    def left_us(self) -> float:
        """The time above the floor: the most that a better kernel could save."""
        return max(0.0, self.layer.median_us - self.floor_us)


def floors_of(profile: LayerProfile, peak: Peak) -> list[LayerFloor]:
    """Return the floors of a profile's layers, those first that have most time above theirs.

    Args:
        profile: the profile; a layer with weights and a shape has arithmetic, all others have bytes alone.
        peak: the GPU's peak rates.
    """
    found = [_floor(layer, peak) for layer in profile.layers]
    return sorted(found, key=lambda item: -item.left_us)


def _floor(layer: LayerTime, peak: Peak) -> LayerFloor:
    """Return a layer's floor. Its inputs' sizes are unknown: the bytes are those of its weights and its first output.

    The multiply-adds of a convolution or a product are its weights × the output's values of one channel: with g groups
    the weights hold 1/g of the input's channels, and so does the arithmetic.
    """
    sizes = [int(part) for part in layer.shape.split("x") if part.isdecimal()]
    values = math.prod(sizes) if sizes else 0
    channels = sizes[1] if len(sizes) > 1 else 1
    macs = layer.weights * (values // max(channels, 1))
    kind = layer.precision or Precision.FP16
    moved = (values + layer.weights) * _BYTES[kind]
    arithmetic = 2 * macs / (peak.fp16_flops * _RATE[kind]) * 1e6
    bandwidth = moved / peak.bandwidth * 1e6
    return LayerFloor(layer, max(arithmetic, bandwidth), "arithmetic" if arithmetic > bandwidth else "bytes")


def strangers_of(profile: LayerProfile, asked: Precision) -> list[LayerTime]:
    """Return the layers with weights that multiply in another type than was asked, the slowest first."""
    return [
        layer
        for layer in profile.layers
        if layer.weights and layer.precision is not None and layer.precision not in _AS_ASKED[asked]
    ]
