"""Errors of execution contexts, told apart by what the library said."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from model_artifacts.errors import KernelsError
from model_artifacts.records import BatchRange, EngineFlavour, KernelSpecialization
from model_artifacts.tensorrt.flavour import BuildLog, Flavour
from model_artifacts.tensorrt.runtime import ExecutionContext, LoadedEngine, no_context


def log_of(*errors: str) -> BuildLog:
    """Return a log with these errors behind ordinary messages, which speak of memory."""
    log = BuildLog()
    log.add("INFO", "[MemUsageChange] TensorRT-managed allocation in IExecutionContext creation: CPU +0, GPU +11")
    log.add("WARNING", "nothing of importance")
    for error in errors:
        log.add("ERROR", error)
    return log


@pytest.mark.parametrize(
    "errors",
    [
        (),
        ("[defaultAllocator.cpp::allocate] Cuda Runtime (out of memory)",),
        ("Requested amount of GPU memory (11698176 bytes) could not be allocated.",),
    ],
)
def test_a_lack_of_memory_names_what_is_needed(errors: tuple[str, ...]) -> None:
    """It is the cause if the library says so, and the likely one if it says nothing."""
    found = str(no_context(log_of(*errors), 11_698_176))
    assert found.startswith("the GPU has too little free memory for an execution context")
    assert "11,698,176 bytes" in found


def test_another_cause_is_the_librarys_own_words() -> None:
    """A graph that cuDNN could not compile is no lack of memory, and no number of bytes would help."""
    found = str(no_context(log_of("[myelinGraph] could not compile a cuDNN graph"), 11_698_176))
    assert found.startswith("the library cannot create an execution context")
    assert "could not compile a cuDNN graph" in found
    assert "bytes" not in found


class Cache:
    """A runtime cache that takes the kernels of this GPU alone."""

    def __init__(self, log: BuildLog) -> None:
        self._log = log

    def deserialize(self, kernels: bytes) -> bool:
        """Take kernels; the library logs why not."""
        if kernels != b"of this GPU":
            self._log.add("ERROR", "the runtime cache is of SM 120")
        return kernels == b"of this GPU"


@pytest.mark.parametrize(
    ("kernels", "refused"), [(None, False), (b"of this GPU", False), (b"of another GPU", True)], ids=str
)
def test_kernels_of_another_gpu_are_an_error_of_their_own(kernels: bytes | None, *, refused: bool) -> None:
    """A deployment tells it from all other errors, and compiles anew; no context is created with such kernels."""
    log = BuildLog()
    taken: list[Cache] = []
    config = SimpleNamespace(create_runtime_cache=lambda: Cache(log), set_runtime_cache=taken.append)
    strategies = SimpleNamespace(EAGER="eager", LAZY="lazy")
    module: Any = SimpleNamespace(
        IRuntimeConfig=SimpleNamespace(create_runtime_cache=None), DynamicShapesKernelSpecializationStrategy=strategies
    )
    context = SimpleNamespace(active_optimization_profile=0)
    library = SimpleNamespace(create_runtime_config=lambda: config, create_execution_context=lambda _: context)
    engine = LoadedEngine(
        flavour=Flavour(EngineFlavour.TENSORRT_RTX, "1.4", module),
        inputs=(),
        outputs=(),
        batches=BatchRange(min=1, opt=1, max=1),
        activation_bytes=0,
        streams_weights=False,
        _engine=library,
        _log=log,
    )
    if refused:
        with pytest.raises(
            KernelsError, match=r"(?s)runtime cache cannot be used.*got: +the runtime cache is of SM 120"
        ):
            engine.context(0, kernels).__enter__()
        assert taken == []
        return
    with engine.context(0, kernels, KernelSpecialization.LAZY):
        assert len(taken) == 1
        assert config.dynamic_shapes_kernel_specialization_strategy == "lazy"


@pytest.mark.parametrize(("size", "names"), [(None, ["of a context"]), (1, ["a"]), (8, ["a [profile 1]", "b"])])
def test_layers_of_several_profiles_are_read_without_a_context(size: int | None, names: list[str]) -> None:
    """With one, TensorRT 10.6 ends the process. Without one, the inspector shows those of all profiles."""
    given = SimpleNamespace(set_input_shape=lambda *_: True)

    class Inspector:
        execution_context: object = None

        def get_engine_information(self, _: object) -> str:
            shown = ["a", "a [profile 1]", "b"] if self.execution_context is None else ["of a context"]
            return json.dumps({"Layers": [{"Name": name, "LayerType": "gemm"} for name in shown]})

    given.engine = SimpleNamespace(create_engine_inspector=Inspector)
    other = SimpleNamespace(engine=given.engine, set_input_shape=given.set_input_shape)
    flavour: Any = SimpleNamespace(module=SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="json")))
    contexts = {1: given} if size is None else {1: given, 8: other}
    opened = ExecutionContext(flavour, contexts, None, None, BuildLog())
    opened.set_input_shape("image", (size or 1, 3, 8, 8))
    assert [layer.name for layer in opened.layers()] == names
