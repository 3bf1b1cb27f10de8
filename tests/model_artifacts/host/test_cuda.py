"""GPU memory, as far as it shows without a GPU: arrays, and messages of failed calls."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from cuda.bindings import runtime
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.errors import RetryableError, RunError
from model_artifacts.host import cuda
from model_artifacts.host.cuda import DeviceArray
from tests.support.fake_cuda import FakeRuntime
from tests.support.hosts import H100

_SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


# Calls.


@pytest.mark.parametrize(("values", "given_back"), [((), None), ((3,), 3), ((3, 4), (3, 4))])
def test_call_that_succeeded_gives_its_values(values: tuple[int, ...], given_back: object) -> None:
    """Nothing, one value or several, without the status before them."""
    assert cuda.check((runtime.cudaError_t.cudaSuccess, *values)) == given_back


def test_call_that_failed_says_it_in_cudas_words() -> None:
    """An error has CUDA's name for it, and its description."""
    with pytest.raises(RunError) as caught:
        cuda.check((runtime.cudaError_t.cudaErrorInvalidValue,))
    assert str(caught.value) == "a CUDA call failed\n  got:      cudaErrorInvalidValue: invalid argument"


@pytest.mark.parametrize(("driver", "got"), [(12080, "a driver for CUDA 12.8"), (0, "no driver")])
def test_driver_that_is_too_old_is_told_what_is_needed(monkeypatch: pytest.MonkeyPatch, driver: int, got: str) -> None:
    """The message has the present driver, the expected generation of CUDA, and the advice to update the driver."""
    success = runtime.cudaError_t.cudaSuccess
    monkeypatch.setattr(runtime, "cudaDriverGetVersion", lambda: (success, driver))
    monkeypatch.setattr(runtime, "cudaRuntimeGetVersion", lambda: (success, 13040))
    with pytest.raises(RetryableError) as caught:
        cuda.check((runtime.cudaError_t.cudaErrorInsufficientDriver,))
    assert str(caught.value).splitlines() == [
        "the NVIDIA driver is too old",
        "  expected: a driver for CUDA 13",
        f"  got:      {got}",
        "  fix:      update the driver",
    ]


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (12080, "12.8"), (11060, "11.6"), (13040, "13.4")])
def test_cudas_number_is_a_version(number: int, text: str) -> None:
    """13000 is 13.0."""
    assert cuda.cuda_version(number) == text


# Arrays.


@given(_SHAPES, st.sampled_from(["float32", "float16", "uint8", "int64"]))
def test_size_is_that_of_numpys_array(shape: tuple[int, ...], dtype: str) -> None:
    """An array on the GPU has as many bytes as numpy's of the same shape and type."""
    assert DeviceArray(0, shape, np.dtype(dtype)).bytes == np.zeros(shape, dtype).nbytes


def test_interface_is_version_3_and_contiguous() -> None:
    """The interface has the fields that torch, CuPy and Numba read: shape, type, address, and write access."""
    array = DeviceArray(4096, (2, 3), np.dtype("float32"))
    assert array.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (4096, False),
        "strides": None,
        "version": 3,
    }


def test_download_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array on the GPU is copied into the host's memory."""
    monkeypatch.setattr(cuda, "runtime", FakeRuntime())
    memory = cuda.Memory(24)
    array = memory.array((2, 3), np.dtype("float32"))
    cuda.copy_to_gpu(array, np.arange(6, dtype=np.float32).reshape(2, 3), SimpleNamespace(handle=1))  # type: ignore[arg-type]  # a stream
    copy = cuda.downloaded(array)
    memory.close()
    assert copy.tolist() == [[0, 1, 2], [3, 4, 5]]


# The current GPU.


@pytest.mark.parametrize(("before", "calls"), [(0, [0]), (2, [0, 2])])
def test_current_gpu_is_the_one_of_before(monkeypatch: pytest.MonkeyPatch, before: int, calls: list[int]) -> None:
    """A block has its GPU; afterwards the thread has its own again, also after an error."""
    fake = FakeRuntime()
    fake.current = before
    monkeypatch.setattr(cuda, "runtime", fake)
    with suppress(KeyError), cuda.using(H100):
        assert fake.current == H100.index
        raise KeyError
    assert (fake.current, fake.chosen) == (before, calls)
