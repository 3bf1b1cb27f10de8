"""Arrays of other libraries, as far as they show without a GPU: protocols, strides and refusals."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.errors import RunError
from model_artifacts.host.cuda import DeviceArray
from model_artifacts.host.gpu_arrays import _from_dlpack, _from_interface, _require_contiguous, on_gpu

STREAM: Any = SimpleNamespace(handle=None)
"""No stream; what is not in a GPU's memory waits for none."""

_SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, np.float32), torch.zeros(3), torch.zeros(3, device="meta"), [1, 2], None, b"x"],
    ids=["numpy", "torch", "meta", "list", "None", "b"],
)
def test_what_lies_in_the_hosts_memory_is_not_on_the_gpu(array: object) -> None:
    """Arrays of numpy and torch's tensors on a processor are not on a GPU, nor are objects without an interface."""
    assert not on_gpu(array)


def test_what_says_that_it_is_on_the_gpu_is() -> None:
    """Either protocol is enough."""
    by_dlpack = SimpleNamespace(__dlpack_device__=lambda: (2, 0))
    assert on_gpu(DeviceArray(0, (1,), np.dtype("float32")))
    assert on_gpu(by_dlpack)


# Strides.


@given(_SHAPES)
def test_dense_strides_are_contiguous(shape: tuple[int, ...]) -> None:
    """Numbers that lie one after another are contiguous, whatever the shape."""
    _require_contiguous(shape, tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))  # does not raise


def test_no_strides_are_contiguous() -> None:
    """Both protocols leave strides out where there is nothing to say."""
    _require_contiguous((2, 3), None)  # does not raise


def test_axis_of_length_1_may_have_any_stride() -> None:
    """Nothing is ever stepped along it."""
    _require_contiguous((1, 3), (99, 1))  # does not raise


@pytest.mark.parametrize("strides", [(3, 1, 1), (0, 0, 0), (-7, 5, 9)])
def test_array_without_elements_may_have_any_strides(strides: tuple[int, ...]) -> None:
    """Nothing of an empty array is ever read."""
    _require_contiguous((2, 0, 3), strides)  # does not raise


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [((2, 3), (1, 2), "(3, 1)"), ((2, 3), (6, 2), "(3, 1)"), ((4,), (0,), "(1,)"), ((4,), (-1,), "(1,)")],
    ids=["transposed", "every second", "broadcast", "reversed"],
)
def test_other_strides_are_refused(shape: tuple[int, ...], strides: tuple[int, ...], dense: str) -> None:
    """A view that is not dense is refused with the strides that it has and should have."""
    with pytest.raises(RunError) as caught:
        _require_contiguous(shape, strides)
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        "the array is not contiguous",
        f"  expected: strides {dense} (in elements)",
        f"  got:      {strides}",
    ]


# Other libraries' arrays, read where they lie: here, in the host's memory.


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8", "int32", "int64", "bool"])
def test_dlpack_is_read_where_it_lies(dtype: str) -> None:
    """Address, shape and type are the tensor's own, and nothing is copied."""
    tensor = torch.zeros(2, 3, dtype=getattr(torch, dtype))
    array = _from_dlpack(tensor, STREAM)
    assert (array.pointer, array.shape, array.dtype) == (tensor.data_ptr(), (2, 3), np.dtype(dtype))


def test_dlpack_of_a_slice_begins_at_the_slice() -> None:
    """A part of a tensor is read from where the part begins."""
    tensor = torch.zeros(4, 3)
    assert _from_dlpack(tensor[2:], STREAM).pointer == tensor.data_ptr() + 2 * 3 * 4


def test_dlpack_keeps_its_owner() -> None:
    """The tensor stays for as long as the array does."""
    array = _from_dlpack(torch.zeros(2), STREAM)
    assert isinstance(array.keeps, tuple)
    assert isinstance(array.keeps[0], torch.Tensor)


def test_dlpack_that_is_not_contiguous_is_refused() -> None:
    """A transposed tensor is not read as if it were not."""
    with pytest.raises(RunError, match=r"(?s)not contiguous.*`\.contiguous\(\)`"):
        _from_dlpack(torch.zeros(2, 3).T, STREAM)


def test_dlpack_that_its_owner_refuses_is_one_message() -> None:
    """A tensor that torch does not hand over, as one that requires a gradient, is refused in torch's words."""
    with pytest.raises(
        RunError, match=r"(?s)the array cannot be read through DLPack\n +got: +BufferError: .*gradient.*"
    ):
        _from_dlpack(torch.zeros(2, requires_grad=True), STREAM)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_type_that_is_none_of_ours_is_refused(dtype: torch.dtype) -> None:
    """A type that is neither a number nor a truth value of numpy's is refused with DLPack's code for it."""
    with pytest.raises(RunError, match=r"numpy has no type for the array\n +got: +DLPack type code \d+"):
        _from_dlpack(torch.zeros(2, dtype=dtype), STREAM)


def _interface(**changes: object) -> SimpleNamespace:
    facts = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "strides": None, "stream": None, "version": 3}
    return SimpleNamespace(__cuda_array_interface__=facts | changes)


@pytest.mark.parametrize("strides", [None, (12, 4)])
def test_interface_is_read(strides: tuple[int, ...] | None) -> None:
    """Address, shape and type are those that the interface tells; dense strides may be written out."""
    owner = _interface(strides=strides)
    assert _from_interface(owner, STREAM) == DeviceArray(4096, (2, 3), np.dtype("float32"), owner)


def test_interface_that_is_not_contiguous_is_refused() -> None:
    """Strides, which this protocol gives in bytes, are told in elements."""
    with pytest.raises(RunError, match=r"got: +\(1, 2\)"):
        _from_interface(_interface(strides=(4, 8)), STREAM)
