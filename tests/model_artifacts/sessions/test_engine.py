"""The fit of engines to hosts, and their batches, as far as they show without a GPU."""

from __future__ import annotations

from contextlib import ExitStack
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import BatchRange, BuiltFor, EngineFlavour, Gpu, TensorSpec
from model_artifacts.sessions.engine import Engine, Session, check_fits
from model_artifacts.tensorrt.flavour import Flavour
from tests.support.hosts import H100, L4

TRT = Flavour(EngineFlavour.TENSORRT, "10.15.1.29", ModuleType("tensorrt"))
RTX = Flavour(EngineFlavour.TENSORRT_RTX, "1.4.0.76", ModuleType("tensorrt_rtx"))
A100 = Gpu(index=0, uuid="GPU-a", name="NVIDIA A100", compute_capability=80, memory_bytes=2**35)
T4 = Gpu(index=0, uuid="GPU-t", name="Tesla T4", compute_capability=75, memory_bytes=2**34)
H200 = H100.model_copy(update={"name": "NVIDIA H200"})
"""Of the same compute capability as an H100."""

TUNED = BuiltFor(flavour=TRT.name, version=TRT.version, gpu=H100.name, compute_capabilities=(90,))
PORTABLE = BuiltFor(flavour=RTX.name, version=RTX.version, gpu=None, compute_capabilities=(80, 86, 89, 120))
BATCHES = BatchRange(min=2, opt=4, max=8)


def refusal(built_for: BuiltFor, flavour: Flavour, gpu: Gpu) -> list[str]:
    """Return the lines of the error for an engine that does not fit."""
    with pytest.raises(RunError) as caught:
        check_fits(built_for, flavour, gpu)
    return str(caught.value).splitlines()


def changed(built_for: BuiltFor, **values: object) -> BuiltFor:
    """Return the same with other values."""
    return built_for.model_copy(update=values)


# What fits.


@pytest.mark.parametrize(
    ("built_for", "flavour", "gpu"),
    [
        (TUNED, TRT, H100),
        (PORTABLE, RTX, A100),
        (PORTABLE, RTX, H100),
        (changed(TUNED, version="10.0.0", version_compatible=True), TRT, H100),
        (changed(TUNED, hardware_compatibility="same_compute_capability"), TRT, H200),
        (changed(TUNED, hardware_compatibility="ampere_plus"), TRT, L4),
        (changed(TUNED, hardware_compatibility="ampere_plus"), TRT, A100),
    ],
    ids=["its own", "portable", "later SM", "version", "same SM", "Ada", "Ampere"],
)
def test_engine_fits(built_for: BuiltFor, flavour: Flavour, gpu: Gpu) -> None:
    """An engine runs on the GPU that it was built on, and on those that it is compatible with."""
    check_fits(built_for, flavour, gpu)  # does not raise


# What does not.


def test_other_flavour_is_named_with_its_version() -> None:
    """TensorRT does not run TensorRT-RTX's engines."""
    assert refusal(PORTABLE, TRT, H100) == [
        "the engine is for another TensorRT",
        "  expected: tensorrt 10.15.1.29",
        "  got:      tensorrt_rtx 1.4.0.76",
        "  fix:      build it here (`doit`), or take the artifact of this host's target",
    ]


def test_other_version_is_named() -> None:
    """An engine of another version does not load, and both versions are told."""
    lines = refusal(changed(TUNED, version="10.14.1"), TRT, H100)
    assert lines[1:3] == ["  expected: tensorrt 10.15.1.29", "  got:      tensorrt 10.14.1"]


def test_version_compatible_engine_is_refused_by_an_earlier_version() -> None:
    """Compatibility looks forward."""
    assert refusal(changed(TUNED, version="10.16.0", version_compatible=True), TRT, H100)[1:3] == [
        "  expected: tensorrt 10.15.1.29",
        "  got:      tensorrt 10.16.0",
    ]


def test_version_compatible_engine_is_still_of_its_flavour() -> None:
    """Compatibility with later versions is not compatibility with another library."""
    assert refusal(changed(TUNED, version_compatible=True), RTX, H100)[0] == "the engine is for another TensorRT"


@pytest.mark.parametrize("hardware_compatibility", ["none", "same_compute_capability"])
def test_other_gpu_is_named_with_its_compute_capability(hardware_compatibility: str) -> None:
    """An engine that was tuned on one type is refused on another, and both are told."""
    lines = refusal(changed(TUNED, hardware_compatibility=hardware_compatibility), TRT, L4)
    assert lines[:3] == [
        "the engine is for another GPU",
        "  expected: NVIDIA L4 (SM 89)",
        "  got:      NVIDIA H100 80GB HBM3 (SM 90)",
    ]


def test_same_compute_capability_is_not_enough_for_a_tuned_engine() -> None:
    """Another type of the same generation is another GPU, unless the engine was built to run there."""
    assert refusal(TUNED, TRT, H200)[0] == "the engine is for another GPU"


def test_ampere_plus_needs_ampere() -> None:
    """An engine for Ampere and later does not run on Turing."""
    assert refusal(changed(TUNED, hardware_compatibility="ampere_plus"), TRT, T4)[0] == "the engine is for another GPU"


def test_portable_engine_needs_its_first_generation() -> None:
    """An engine that was built ahead of time for SM 80 and later names its list, where a GPU is older."""
    assert refusal(PORTABLE, RTX, T4)[:3] == [
        "the engine is for another GPU",
        "  expected: Tesla T4 (SM 75)",
        "  got:      GPUs (SM 80, 86, 89, 120)",
    ]


# Batches, which are checked before anything is put on a GPU.


def loaded(batches: BatchRange = BATCHES) -> Any:
    """Return the facts of an absent engine: (2 to 8, 3, 4, 4) → (batch, 10)."""
    image = TensorSpec(name="image", shape=("batch", 3, 4, 4), dtype="float32", layout="NCHW")
    logits = TensorSpec(name="logits", shape=("batch", 10), dtype="float32", layout="NC")
    return SimpleNamespace(inputs=(image,), outputs=(logits,), batches=batches)


def session(batches: BatchRange = BATCHES) -> Session:
    """Return a session that has no buffers yet."""
    nothing: Any = None
    return Session(loaded(batches), nothing, nothing, cuda_graph=False)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 3, 4, 4), "float32"),
        ((9, 3, 4, 4), "float32"),
        ((0, 3, 4, 4), "float32"),
        ((2, 1, 4, 4), "float32"),
        ((2, 3, 4, 5), "float32"),
        ((3, 4, 4), "float32"),
        ((), "float32"),
        ((2, 3, 4, 4), "float64"),
        ((2, 3, 4, 4), "float16"),
        ((2, 3, 4, 4), "uint8"),
    ],
)
def test_batch_that_the_engine_does_not_take(shape: tuple[int, ...], dtype: str) -> None:
    """Another size, shape or type is refused with expected and got."""
    with pytest.raises(RunError) as caught:
        session()(np.zeros(shape, dtype))
    assert str(caught.value).splitlines()[:3] == [
        "the engine takes other batches",
        "  expected: float32 (2 to 8, 3, 4, 4), contiguous",
        f"  got:      {dtype} {shape}",
    ]


def test_fixed_batch_is_said_as_one_number() -> None:
    """An engine of one batch size says that size."""
    with pytest.raises(RunError, match=r"expected: float32 \(4, 3, 4, 4\), contiguous"):
        session(BatchRange(min=4, opt=4, max=4))(np.zeros((1, 3, 4, 4), np.float32))


def test_batch_that_is_not_contiguous() -> None:
    """A batch whose numbers do not lie one after another is refused with its strides, rather than copied in secret."""
    batch = np.zeros((2, 4, 4, 3), np.float32).transpose(0, 3, 1, 2)
    with pytest.raises(RunError, match=r"got: +float32 \(2, 3, 4, 4\) with strides \(192, 4, 48, 12\)"):
        session()(batch)


def test_upload_checks_the_batch() -> None:
    """An upload for timing is checked like a batch that runs."""
    with pytest.raises(RunError, match="the engine takes other batches"):
        session().upload(np.zeros((1, 3, 4, 4), np.float32))


def test_preparing_a_size_that_the_engine_does_not_take() -> None:
    """A size outside the profile is refused before the library sees it."""
    with pytest.raises(RunError, match=r"got: +float32 \(9, 3, 4, 4\)"):
        session()._shape_for(((9, 3, 4, 4),))  # noqa: SLF001 - `prepare` needs buffers


def test_session_without_buffers_has_nothing_to_give_back() -> None:
    """Closing a session that never got its memory does nothing."""
    with ExitStack() as stack:
        stack.callback(session().close)


def test_engine_tells_what_it_takes() -> None:
    """Input, output and batch range are those of the loaded engine."""
    engine = Engine(loaded(), H100)
    assert (engine.inputs[0].name, [item.name for item in engine.outputs], engine.batches) == (
        "image",
        ["logits"],
        BATCHES,
    )
