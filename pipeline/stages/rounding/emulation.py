"""A network's logits as a precision would compute them, emulated in FP32 on the processor.

Tensors are rounded where the precision stores them, and sums where its kernels round them:

* fp16 and bf16: the weights, and the result of every operator.
* tf32: the inputs of convolutions and matrix products, to 10 bits of mantissa.
* fp16, a second time, with the sums of its fastest kernels (`…_f16f16_f16f16_f16_…`): after every 16 products, which is
  what an MMA instruction adds at once (NVIDIA, PTX ISA 8.7, `mma.m16n8k16`).
* fp32: the same sums of 16, not rounded. They show what another order of summation changes.

The rest is not emulated: fused operators, which round less often; Winograd and other transforms, which round more; the
order of a kernel's own sums; the sums of grouped convolutions. So an honest artifact may lie on either side of the
emulation, and a bound is a multiple of it.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from model_artifacts.records import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Round = Callable[[torch.Tensor], torch.Tensor]

STEP = 16
"""Products that an MMA instruction of 16-bit types adds at once."""
_BLOCK = 1 << 17
"""Numbers of a result that are computed at once: 512 kB of FP32, half of a processor's second cache or less."""
_SUMS = "results of operators, sums of 16 products"
RUNS: dict[Precision, tuple[tuple[str, bool], ...]] = {
    Precision.FP32: (("sums of 16 products, in another order", True),),
    Precision.TF32: (("inputs of products", False),),
    Precision.FP16: (("results of operators", False), (_SUMS, True)),
    Precision.BF16: (("results of operators", False),),
}
"""The emulations of each precision: a name, and whether its sums are rounded, too."""
_TYPES = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
"""The types that tensors are stored in; those of other precisions are FP32."""
_TF32_LOST_BITS = 13
"""FP32 has 23 bits of mantissa, TF32 has 10."""

_aten = torch.ops.aten
_PRODUCTS = {_aten.convolution.default, _aten.addmm.default, _aten.mm.default, _aten.bmm.default}


@contextmanager
def emulating(precision: Precision, *, sums: bool = False) -> Iterator[None]:
    """Let every operator on FP32 tensors round as a precision does.

        with emulating(Precision.FP16, sums=True):
            logits = model(images)

    Attention runs as products and a softmax: torch's fused operators for it would round only their result.

    Args:
        precision: fp32, tf32, fp16 or bf16.
        sums: True rounds the sums of convolutions and matrix products after every 16 products, too.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # that of nn.MultiheadAttention and nn.TransformerEncoder
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Emulation(precision, sums=sums):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Round to the nearest TF32 number, ties to even."""
    bits = tensor.contiguous().view(torch.int32)
    half = (1 << (_TF32_LOST_BITS - 1)) - 1
    nearest = bits + half + ((bits >> _TF32_LOST_BITS) & 1)
    rounded = (nearest & ~((1 << _TF32_LOST_BITS) - 1)).view(torch.float32)
    return torch.where(tensor.isfinite(), rounded, tensor)


def _to(dtype: torch.dtype) -> Round:
    return lambda tensor: tensor.to(dtype).float()


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def rounding_of(precision: Precision) -> tuple[Round, Round]:
    """Return the rounding of a precision's stored tensors, and that of the operands of its products."""
    dtype = _TYPES.get(precision)
    stored = _to(dtype) if dtype else _same
    return stored, _to_tf32 if precision is Precision.TF32 else stored


class Emulation(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is untyped
    """The mode of `emulating`."""

    def __init__(self, precision: Precision, *, sums: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._type = _TYPES.get(precision)
        self._stored, self._multiplied = rounding_of(precision)
        self._sums = sums

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's signature
        types: Any,  # noqa: ANN401 - the same
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operator, and round its operands and its result."""
        arguments = kwargs or {}
        if func in _PRODUCTS:
            args = tree_map_only(torch.Tensor, self._multiplied, args)
            found = self._summed(func, args) if self._sums else None
            result = func(*args, **arguments) if found is None else found
        else:
            result = func(*args, **arguments)
        aliases = [item.alias_info for item in func._schema.returns if item.alias_info is not None]  # noqa: SLF001 - there is no other way to tell a view
        if not aliases:
            return tree_map_only(torch.Tensor, self._rounded, result)
        if any(alias.is_write for alias in aliases):
            tree_map_only(torch.Tensor, self._round_in_place, result)
        return result  # a view stays one: a copy of it would lose what is written through it

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._stored(tensor) if tensor.dtype is torch.float32 else tensor

    def _round_in_place(self, tensor: torch.Tensor) -> None:
        if tensor.dtype is torch.float32:
            tensor.copy_(self._stored(tensor))

    def _summed(self, func: Any, args: tuple[Any, ...]) -> torch.Tensor | None:  # noqa: ANN401 - torch's operators are untyped
        """Return a product with rounded sums; None for one that is not emulated."""
        if func is _aten.convolution.default:
            return self._convolution(*args)
        if func is _aten.addmm.default:
            bias, left, right = args
            return self._stored(self._product(left, right) + bias)
        return self._product(*args)

    def _convolution(  # noqa: PLR0913, PLR0917 - aten's signature
        self,
        images: torch.Tensor,
        weights: torch.Tensor,
        bias: torch.Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,  # noqa: FBT001 - the same
        _output_padding: list[int],
        groups: int,
    ) -> torch.Tensor | None:
        """Convolve as a product of matrices whose shared axis is (height, width, channel), as in NHWC kernels."""
        if transposed or groups != 1 or images.ndim != 4:  # noqa: PLR2004 - NCHW
            return None
        outputs, channels, *kernel = weights.shape
        shape = (tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
        patches = functional.unfold(images, *shape)  # (batch, channels · places, positions)
        columns = patches.view(len(images), channels, -1, patches.shape[-1]).transpose(1, 2).flatten(1, 2)
        rows = weights.flatten(2).transpose(1, 2).flatten(1)  # (outputs, places · channels)
        total = self._product_in_blocks(rows, columns)
        if bias is not None:
            total = self._stored(total + bias[:, None])
        sizes = [
            (size + 2 * pad - gap * (length - 1) - 1) // step + 1
            for size, pad, gap, length, step in zip(images.shape[2:], padding, dilation, kernel, stride, strict=True)
        ]
        return total.view(len(images), outputs, *sizes)

    def _product_in_blocks(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Multiply a matrix with several, in blocks of the result that the processor's caches hold.

        The result is that of `_product` bit for bit: no sum goes across blocks.

        Args:
            left: FP32 (m, k).
            right: FP32 (batch, k, n).

        Returns:
            FP32 (batch, m, n).
        """
        batch, _, width = right.shape
        height = len(left)
        together = max(1, _BLOCK // (height * width))
        columns = max(STEP, _BLOCK // height)
        total = torch.empty(batch, height, width)
        for image in range(0, batch, together):
            for start in range(0, width, columns):
                block = right[image : image + together, :, start : start + columns]
                total[image : image + together, :, start : start + columns] = self._product(left, block)
        return total

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Multiply matrices, with a rounded sum after every 16 products.

        The next 16 products are added to the sum by the multiplication itself, which saves a pass over memory.

        Args:
            left: FP32 (m, k), or a batch of them as in `right`.
            right: FP32 (…, k, n).
        """
        batch = right.shape[:-2]
        lefts, rights = (
            tensor.expand(*batch, *tensor.shape[-2:]).reshape(math.prod(batch), *tensor.shape[-2:])
            for tensor in (left, right)
        )
        total = left.new_zeros(len(lefts), left.shape[-2], right.shape[-1])
        for start in range(0, left.shape[-1], STEP):
            total.baddbmm_(lefts[..., start : start + STEP], rights[:, start : start + STEP])
            if self._type:
                total.copy_(total.to(self._type))
        return total.view(*batch, *total.shape[-2:])
