"""Floors of layers, and layers in another type than was asked."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from model_artifacts.records import Key, Precision
from pipeline.records import LayerProfile, LayerTime, Outcome
from pipeline.stages.report.floors import Peak
from pipeline.tune.explain import floors_of, strangers_of

PEAK = Peak(fp16_flops=1e12, bandwidth=1e12)


def layer(name: str, microseconds: float, precision: Precision | None, weights: int = 0, shape: str = "") -> LayerTime:
    """Return a layer."""
    return LayerTime(
        name=name, kind="conv", precision=precision, weights=weights, shape=shape, median_us=microseconds, share=0.1
    )


def profile_of(*layers: LayerTime) -> LayerProfile:
    """Return a profile of layers."""
    return LayerProfile(
        key=Key(fields=()),
        built_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        variant_id="m/gpu/int8-b1",
        outcome=Outcome.DONE,
        batch=2,
        layers=layers,
    )


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Precision.INT8, 36.864), (Precision.FP16, 73.728), (Precision.TF32, 147.456)],
    ids=["int8", "fp16", "tf32"],
)
def test_a_convolution_is_bound_by_its_arithmetic(precision: Precision, expected: float) -> None:
    """64 channels from 64 with 3 × 3 weights, two images of 20 × 25: weights × places × 2 FLOPs at the type's peak."""
    (found,) = floors_of(profile_of(layer("c", 200.0, precision, 64 * 64 * 9, "2x64x20x25")), PEAK)
    assert found.bound == "arithmetic"
    assert found.floor_us == pytest.approx(expected)
    assert found.left_us == pytest.approx(200.0 - expected)


def test_a_layer_without_weights_is_bound_by_its_bytes() -> None:
    """A sum of half-precision values writes two bytes for each."""
    (found,) = floors_of(profile_of(layer("add", 5.0, Precision.FP16, shape="1x1000x1000")), PEAK)
    assert found.bound == "bytes"
    assert [found.floor_us, found.left_us] == pytest.approx([2.0, 3.0])


def test_a_layer_of_unknown_shape_and_type_has_no_floor() -> None:
    """All of its time may be left."""
    (found,) = floors_of(profile_of(layer("?", 5.0, None)), PEAK)
    assert (found.floor_us, found.left_us) == (0.0, 5.0)


def test_the_layer_with_most_time_above_its_floor_comes_first() -> None:
    """Not the slowest one, if that is at its floor."""
    near = layer("near", 3.0, Precision.FP16, shape="1x1000x1000")
    far = layer("far", 2.9, Precision.FP16)
    assert [item.layer.name for item in floors_of(profile_of(near, far), PEAK)] == ["far", "near"]


def test_layers_in_another_type_than_asked_are_named() -> None:
    """In an int8 engine those in fp16; layers without weights, or of an unknown type, are not judged."""
    layers = (
        layer("first", 3.0, Precision.FP16, 100),
        layer("second", 2.0, Precision.INT8, 100),
        layer("pool", 1.0, Precision.FP16),
        layer("unknown", 1.0, None, 100),
    )
    assert [item.name for item in strangers_of(profile_of(*layers), Precision.INT8)] == ["first"]
    assert strangers_of(profile_of(*layers), Precision.FP16) == []
