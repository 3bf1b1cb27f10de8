"""Precisions emulated in FP32, operator by operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from model_artifacts.records import Precision
from pipeline.stages.rounding.emulation import emulating


def emulated(module: nn.Module, images: torch.Tensor, precision: Precision, *, sums: bool = False) -> torch.Tensor:
    """Return a module's result as a precision would compute it."""
    with emulating(precision, sums=sums):
        result: torch.Tensor = module(images)
    return result


@pytest.mark.parametrize(("precision", "dtype"), [(Precision.FP16, torch.float16), (Precision.BF16, torch.bfloat16)])
def test_stored_tensors_hold_values_of_the_type(precision: Precision, dtype: torch.dtype) -> None:
    """Every result is a number of the type."""
    torch.manual_seed(0)
    found = emulated(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.rand(2, 3, 9, 9), precision)
    assert torch.equal(found, found.to(dtype).float())


def test_what_overflows_in_the_type_overflows_here() -> None:
    """FP16 ends at 65,504."""
    big = nn.Linear(1, 1)
    nn.init.constant_(big.weight, 300.0)
    nn.init.zeros_(big.bias)
    images = torch.tensor([[300.0]])
    assert torch.isinf(emulated(big, images, Precision.FP16)).all()
    assert torch.isfinite(emulated(big, images, Precision.BF16)).all()


def test_tf32_rounds_the_operands_of_products_alone() -> None:
    """1 + 2⁻¹⁰ is a TF32 number, 1 + 2⁻¹² rounds to 1; a sum keeps FP32."""
    fine, coarse = 1 + 2.0**-10, 1 + 2.0**-12
    image, one = torch.tensor([[fine, coarse]]), torch.eye(2)
    with emulating(Precision.TF32):
        product, total = image @ one, image + 0.0
    assert product.tolist() == [[fine, 1.0]]
    assert total.tolist() == image.tolist()


def test_tf32_rounds_ties_to_even_and_keeps_what_is_not_finite() -> None:
    """Halfway between two numbers lies 1 + 2⁻¹¹: it goes to 1, and 1 + 3 · 2⁻¹¹ goes up."""
    image = torch.tensor([[1 + 2.0**-11], [1 + 3 * 2.0**-11], [float("inf")], [-(1 + 2.0**-12)]])
    with emulating(Precision.TF32):
        found = image @ torch.ones(1, 1)
    assert found.flatten().tolist() == [1.0, 1 + 2.0**-9, float("inf"), -1.0]


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Conv2d(20, 4, (3, 1), padding=(1, 0), dilation=(2, 1), bias=False),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.ConvTranspose2d(4, 3, 3, stride=2),
        nn.Conv2d(33, 2, 1),
    ],
    ids=str,
)
def test_summed_convolutions_are_convolutions(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Without rounding, sums of 16 give what torch gives, for every stride, padding, dilation and group."""
    torch.manual_seed(0)
    images = torch.rand(2, convolution.in_channels, 11, 9)
    with torch.no_grad():
        want = convolution(images)
    torch.testing.assert_close(emulated(convolution, images, Precision.FP32, sums=True), want, rtol=1e-5, atol=1e-6)


def test_summed_products_are_products() -> None:
    """Linear layers and batched products give what torch gives."""
    torch.manual_seed(0)
    linear, images = nn.Linear(37, 5), torch.rand(4, 37)
    with torch.no_grad():
        want, square = linear(images), images[None] @ images.T[None]
        with emulating(Precision.FP32, sums=True):
            torch.testing.assert_close(linear(images), want)
            torch.testing.assert_close(images[None] @ images.T[None], square)


def test_sums_are_rounded_after_every_16_products() -> None:
    """2048 + 1 is no FP16 number: added one step of 16 at a time, ones behind 2048 are lost, but 16 at once are not."""
    terms = torch.ones(1, 16 * 3)
    terms[0, :16] = 128.0  # 2,048 after the first step
    with emulating(Precision.FP16, sums=True):
        whole = terms @ torch.ones(48, 1)
    assert whole.item() == 2048 + 32
    terms[0, 17:32] = 0
    terms[0, 33:48] = 0
    with emulating(Precision.FP16, sums=True):
        lost = terms @ torch.ones(48, 1)
    with emulating(Precision.FP16):
        kept = terms @ torch.ones(48, 1)
    assert (lost.item(), kept.item()) == (2048, 2050)


@pytest.mark.parametrize("size", [0, 5, 16, 37, 64])
@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)], ids=str)
def test_each_step_of_16_is_rounded_as_a_loop_in_numpy_does(batch: tuple[int, ...], size: int) -> None:
    """The values are integers, so that the order of a step's own sum changes nothing. Some sums become infinite."""
    random = np.random.default_rng(size)
    left = random.integers(-60, 60, (*batch, 4, size)).astype(np.float32)
    right = random.integers(-60, 60, (*batch, size, 3)).astype(np.float32)
    left[..., :1, :], right[..., :1] = 60, 60
    total = np.zeros((*batch, 4, 3), np.float16)
    for start in range(0, size, 16):
        part = left[..., start : start + 16] @ right[..., start : start + 16, :]
        with np.errstate(over="ignore"):
            total = (part + total.astype(np.float32)).astype(np.float16)
    with emulating(Precision.FP16, sums=True):
        found = torch.from_numpy(left) @ torch.from_numpy(right)
    assert torch.equal(found, torch.from_numpy(total).float())
    assert np.isinf(total).any() == (size > 20 and 0 not in batch)


def test_what_is_written_through_a_view_arrives() -> None:
    """A part of a tensor may be written, and is rounded where it lies."""
    images = torch.ones(2, 4)
    with emulating(Precision.FP16):
        images[:, 1:3] *= 2 + 2.0**-12
        images[0].add_(4096.5)
    assert images.tolist() == [[4096, 4100, 4100, 4096], [1, 2, 2, 1]]


def test_operators_in_place_are_rounded_in_place() -> None:
    """Whoever keeps the tensor sees the rounded values, too."""
    images = torch.full((1, 3), 1 + 2.0**-12)
    with emulating(Precision.FP16):
        functional.relu(images, inplace=True)
    assert images.tolist() == [[1, 1, 1]]


def test_integers_and_booleans_pass_unchanged() -> None:
    """Indices and masks are not rounded."""
    with emulating(Precision.FP16):
        indices = torch.arange(70_000)[-1:] + 1
        mask = functional.relu(torch.tensor([-1.0, 1.0])) > 0
    assert indices.item() == 70_000
    assert mask.tolist() == [False, True]


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_emulated_product_by_product(*, fused: bool) -> None:
    """Torch's fused operators would round their result alone, so that TF32 would look like FP32."""
    torch.manual_seed(0)
    if fused:
        layer: nn.Module = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
        tokens = torch.rand(2, 9, 32)
        with torch.no_grad():
            want = layer(tokens)
        found = emulated(layer, tokens, Precision.TF32)
    else:
        query = torch.randn(2, 4, 9, 8)
        want = functional.scaled_dot_product_attention(query, query, query)
        with emulating(Precision.TF32):
            found = functional.scaled_dot_product_attention(query, query, query)
    distance = float((found - want).norm() / want.norm())
    assert 1e-5 < distance < 1e-2


def test_what_was_set_is_set_again() -> None:
    """The fast path is the user's after an emulation, also if it failed."""
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError), emulating(Precision.FP16):
        raise ZeroDivisionError
    assert torch.backends.mha.get_fastpath_enabled() is before
