"""Settings of the quantiser: rules for ranges, as they are written and as they are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.quantization import QuantizationConfig, RangeMethod, RangeRule
from tests.support.configs import MATRIX, Problems
from tests.support.plans import config_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config.settings import Config

EXPECTED = "quantization.calibration: expected auto, max, entropy, mse, or a percentile such as 99.99%"


@pytest.mark.parametrize("text", ["auto", "max", "entropy", "mse"])
def test_a_method_is_one_word(text: str) -> None:
    """It has no value."""
    assert config_of(quantization={"calibration": text}).quantization.calibration == RangeRule(method=RangeMethod(text))


@given(st.floats(99, 99.99999))
def test_a_percentile_is_read_back_as_it_is_written(value: float) -> None:
    """`doit tune` writes the rules that it has tried."""
    text = RangeRule(method=RangeMethod.PERCENTILE, percentile=float(f"{value:.10g}")).text
    settings = QuantizationConfig.model_validate({"calibration": text})
    assert settings.calibration.text == text
    assert QuantizationConfig.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        ("minmax", f"{EXPECTED}, got 'minmax'"),
        ("percentile", f"{EXPECTED}, got 'percentile'"),
        ("99.99", f"{EXPECTED}, got 99.99"),
        ("{percentile: 99}", f"{EXPECTED}, got {{'percentile': 99}}"),
        ("100%", "expected a percentile from 99% to below 100%, got '100%'; write max for all values"),
        ("98.9%", "expected a percentile from 99% to below 100%, got '98.9%'"),
        (
            "99.999999999%",
            "expected a percentile from 99% to below 100%, got '99.999999999%'; write max for all values",
        ),
    ],
    ids=["other name", "no value", "no unit", "mapping", "all", "too few", "nearly all"],
)
def test_another_value_is_refused_with_its_place(problems: Problems, value: str, refusal: str) -> None:
    """The message says what is expected."""
    (problem,) = problems(f"{MATRIX}quantization: {{calibration: {value}}}\n")
    assert problem.startswith("3:29: ")
    assert problem.endswith(refusal)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("sums: true", "3:22: quantization.sums: expected auto or false, got true"),
        ("first: 1", "3:23: quantization.first: expected auto, true or false, got 1"),
        ("placement: theirs", "3:27: quantization.placement: expected 'auto' or 'model_optimizer', got 'theirs'"),
        ("head: float32", "3:22: quantization.head: expected auto or float16, got 'float32'"),
        ("pool: false", "3:16: unknown key 'quantization.pool'; did you mean 'pools'?"),
    ],
    ids=["never added", "number", "other proposer", "other type", "other name"],
)
def test_pairs_are_left_out_or_added(problems: Problems, text: str, refusal: str) -> None:
    """Each group is `auto` or `false`; the ends may be `true`."""
    assert problems(f"{MATRIX}quantization: {{{text}}}\n") == [refusal]


def test_groups_are_read_back_as_they_are_written() -> None:
    """`auto` is what the graph has by itself."""
    written = {"first": "auto", "last": True, "sums": False, "head": "float16", "placement": "model_optimizer"}
    settings = config_of(quantization=written).quantization
    assert settings.placed == {"last": True, "sums": False}
    assert QuantizationConfig.model_validate(settings.model_dump(mode="json")) == settings


def test_it_needs_a_quantised_precision(problems: Problems, load: Callable[[str], Config]) -> None:
    """Nothing would be calibrated; the defaults may stand there."""
    found = problems(MATRIX + "precisions: [fp16]\nquantization: {calibration: mse}\n")
    assert found == ["4:15: `quantization` needs int8 or fp8 in `precisions`; add one or remove it"]
    assert load(MATRIX + "precisions: [fp16]\nquantization: {calibration: auto}\n").quantization == QuantizationConfig()


def test_the_type_of_the_head_is_of_int8(problems: Problems) -> None:
    """fp8 has FP16 all around."""
    found = problems(MATRIX + "precisions: [fp16, fp8]\nquantization: {head: float16}\n")
    assert found == ["4:22: `quantization.head` needs int8 in `precisions`; add it or remove `head`"]
