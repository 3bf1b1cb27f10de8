"""Torch's arithmetic for FP32: strict or fast, never as a model's own code sets it.

Importing this module imports torch.
"""

from __future__ import annotations

import logging
import math
import random
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model_artifacts.sessions.feeds.batches import values_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from model_artifacts.sessions.feeds.batches import Batch

    Result = torch.Tensor | tuple[torch.Tensor, ...]

log = logging.getLogger(__name__)

_DEVICES = ("cpu", "cuda")
_TINY = 1e-12
"""The least size of logits, for those that are all zero."""


def call(model: nn.Module, batch: Result) -> Any:  # noqa: ANN401 - what a module returns
    """Call a module on copies of a batch's tensors, because some networks change their input in place.

    Args:
        model: the module.
        batch: the tensor of the one input, or a tuple of several in the module's order.
    """
    return model(*(tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors(batch)))


def torch_batch(batch: Batch) -> Result:
    """Return a batch of numpy's arrays as tensors of their own: one, or a tuple of several."""
    found = tuple(torch.from_numpy(np.array(array, order="C")) for array in values_of(batch))
    return found if isinstance(batch, dict) else found[0]


def tensors(result: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401 - what a module returns
    """Return the outputs of a module that returns a tensor, or a tuple or list of several."""
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def relative_l2(found: Result, expected: Result) -> float:
    """Return ‖found - expected‖ / ‖expected‖ in FP64, of several outputs the largest: no norm holds two of them.

    It is infinite for another shape or number of outputs, or where a value is not a number.
    """
    pairs = tensors(found), tensors(expected)
    if len(pairs[0]) != len(pairs[1]):
        return math.inf
    return max(_relative_l2(*pair) for pair in zip(*pairs, strict=True))


def _relative_l2(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    distance = float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(_TINY))
    return math.inf if math.isnan(distance) else distance


@contextmanager
def strict_fp32() -> Iterator[None]:
    """Run without gradients, and with matrix products and convolutions in full FP32, never TF32."""
    with _arithmetic("highest", tf32=False):
        yield


@contextmanager
def fastest() -> Iterator[None]:
    """Run without gradients, with TF32 allowed for FP32, and with cuDNN's algorithms chosen by trial."""
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with _arithmetic("high", tf32=True):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _arithmetic(precision: str, *, tf32: bool) -> Iterator[None]:
    with _restored():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
        with torch.inference_mode():
            yield


@contextmanager
def kept_arithmetic(code: str) -> Iterator[None]:
    """Undo what a block of somebody else's code changes in torch's arithmetic, and log the names of these settings.

    A training script may allow TF32, another default type or autocast when it is imported. The pipeline sets the
    arithmetic that each precision needs, and measures no other.

    Args:
        code: the name of that code, for the log.
    """
    before = settings()
    with _restored():
        yield
        after = settings()
    changed = [f"{name}: {value}" for name, value in after.items() if value != before.get(name)]
    if changed:
        log.info("%s sets torch's arithmetic (%s); the pipeline uses its own settings", code, ", ".join(changed))


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Undo what a block draws from the random generators of Python, numpy and torch, or seeds them with.

    A recipe's model is made by its factory, for which torch is seeded.
    """
    started = _cuda_started()
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - the application's own generator
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if started else ()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002 - the same
        if not started and _cuda_started():
            torch.cuda.manual_seed_all(torch.initial_seed())  # as a CUDA that starts later is seeded


def _cuda_started() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch's own


def settings() -> dict[str, str]:
    """Return torch's settings of the arithmetic in FP32, by their names."""
    found = {"torch.set_float32_matmul_precision": _matmul_precision() or "mixed"}
    found |= {name: str(getattr(place, "fp32_precision", "none")) for name, place in _PLACES.items()}
    found["torch.backends.cudnn.allow_tf32"] = str(_cudnn_tf32())
    found["torch.set_default_dtype"] = str(torch.get_default_dtype())
    return found | {f"torch.set_autocast_enabled({device!r})": str(_autocasts(device)) for device in _DEVICES}


_PLACES: dict[str, Any] = {
    "torch.backends.fp32_precision": torch.backends,
    "torch.backends.cuda.matmul.fp32_precision": torch.backends.cuda.matmul,
    "torch.backends.cudnn.fp32_precision": torch.backends.cudnn,
    "torch.backends.cudnn.conv.fp32_precision": getattr(torch.backends.cudnn, "conv", None),
    "torch.backends.cudnn.rnn.fp32_precision": getattr(torch.backends.cudnn, "rnn", None),
    "torch.backends.mkldnn.fp32_precision": torch.backends.mkldnn,
    "torch.backends.mkldnn.matmul.fp32_precision": getattr(torch.backends.mkldnn, "matmul", None),
    "torch.backends.mkldnn.conv.fp32_precision": getattr(torch.backends.mkldnn, "conv", None),
    "torch.backends.mkldnn.rnn.fp32_precision": getattr(torch.backends.mkldnn, "rnn", None),
}
"""The places of `fp32_precision`, which torch has since 2.9."""


@contextmanager
def _restored() -> Iterator[None]:
    """Restore all settings at the end of a block: the older ones first, because they write the newer ones, too."""
    precision, tf32, dtype = _matmul_precision(), _cudnn_tf32(), torch.get_default_dtype()
    places = {name: place.fp32_precision for name, place in _PLACES.items() if hasattr(place, "fp32_precision")}
    autocasts = {device: _autocasts(device) for device in _DEVICES}
    try:
        yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        if tf32 is not None:
            torch.backends.cudnn.allow_tf32 = tf32
        for name, value in places.items():
            if _PLACES[name].fp32_precision != value:
                _PLACES[name].fp32_precision = value
        torch.set_default_dtype(dtype)
        for device, enabled in autocasts.items():
            torch.set_autocast_enabled(device, enabled)


def _matmul_precision() -> str | None:
    """Return the precision of matrix products; None if the newer settings contradict the older one."""
    with suppress(RuntimeError):  # torch raises where the two are mixed
        return torch.get_float32_matmul_precision()
    return None


def _cudnn_tf32() -> bool | None:
    """Return true if cuDNN may use TF32; None if the newer settings contradict the older one."""
    with suppress(RuntimeError):  # the same
        return bool(torch.backends.cudnn.allow_tf32)
    return None


def _autocasts(device: str) -> bool:
    return bool(torch.is_autocast_enabled(device))
