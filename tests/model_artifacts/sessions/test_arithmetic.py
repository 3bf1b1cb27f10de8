"""Strict FP32, and settings that somebody else's code changes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from model_artifacts.sessions.arithmetic import kept_arithmetic, relative_l2, settings, strict_fp32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


ONES = torch.ones(2, 8)


@pytest.mark.parametrize(
    ("found", "expected", "distance"),
    [
        (ONES, ONES, 0.0),
        (1.5 * ONES, ONES, 0.5),
        (ONES[:1], ONES, torch.inf),
        (torch.nan * ONES, ONES, torch.inf),
        (torch.inf * ONES, torch.inf * ONES, torch.inf),
        (3e38 * ONES, 2e38 * ONES, 0.5),
        (0 * ONES, 0 * ONES, 0.0),
    ],
    ids=["equal", "half as much again", "another shape", "not a number", "infinite", "large", "zero"],
)
def test_distance(found: torch.Tensor, expected: torch.Tensor, distance: float) -> None:
    """The distance is a share of the expected logits; nothing is near to a wrong shape or to a NaN."""
    assert relative_l2(found, expected) == pytest.approx(distance)


@pytest.fixture
def shortcuts() -> Iterator[None]:
    """A process that allows TF32."""
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = cudnn


@pytest.mark.usefixtures("shortcuts")
def test_strict_fp32_allows_no_shortcut() -> None:
    """Inside, neither matrix products nor convolutions may use TF32, and nothing is recorded for gradients."""
    with strict_fp32():
        inside = (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.is_inference_mode_enabled(),
        )

    assert inside == ("highest", False, True)


@pytest.mark.usefixtures("shortcuts")
def test_strict_fp32_restores_settings() -> None:
    """The settings are restored afterwards, also after an error."""
    with pytest.raises(KeyError), strict_fp32():
        raise KeyError

    after = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_inference_mode_enabled())
    assert after == ("high", True, False)


def _autocast() -> None:
    torch.set_autocast_enabled("cpu", True)  # noqa: FBT003 - torch's signature


def _conv_in_bf16() -> None:
    torch.backends.mkldnn.conv.fp32_precision = "bf16"  # type: ignore[attr-defined]  # absent in torch's stubs


def _all_in_tf32() -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]  # the same


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: torch.set_float32_matmul_precision("medium"), "torch.set_float32_matmul_precision: medium"),
        (lambda: torch.set_default_dtype(torch.float16), "torch.set_default_dtype: torch.float16"),
        (_conv_in_bf16, "torch.backends.mkldnn.conv.fp32_precision: bf16"),
        (_all_in_tf32, "torch.backends.fp32_precision: tf32"),
        (_autocast, "torch.set_autocast_enabled('cpu'): True"),
    ],
)
def test_changed_settings_are_undone_and_named(
    change: Callable[[], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Code that changes torch's arithmetic leaves it as it was, and the log names what it changed."""
    caplog.set_level(logging.INFO, logger="model_artifacts")
    before = settings()

    with kept_arithmetic("the factory"):
        change()

    assert settings() == before
    assert f"the factory sets torch's arithmetic ({name}" in caplog.text


def test_settings_that_contradict_each_other_are_restored() -> None:
    """Strict FP32 works in a program that mixes torch's older and newer settings, which torch refuses to read."""
    before = settings()
    with kept_arithmetic("a test"):
        _all_in_tf32()
        with strict_fp32():
            inside = torch.get_float32_matmul_precision()
        assert inside == "highest"

    assert settings() == before
