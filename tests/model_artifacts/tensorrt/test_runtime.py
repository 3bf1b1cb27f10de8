"""Errors of execution contexts, told apart by what the library said."""

from __future__ import annotations

import json
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.errors import KernelsError, RunError
from model_artifacts.records import BatchRange, EngineFlavour, KernelSpecialization
from model_artifacts.tensorrt.flavour import BuildLog, Flavour
from model_artifacts.tensorrt.runtime import ExecutionContext, LoadedEngine, load_engine, no_context

if TYPE_CHECKING:
    from tests.support.fake_cuda import FakeRuntime


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


SHAPES = {"image": (64, 3, 4, 4), "top5": (64, 4), "logits": (64, 10)}
TYPES = {"image": "DataType.UINT8", "top5": "DataType.INT64", "logits": "DataType.FLOAT"}


class Library:
    """An engine for 64 images as the library shows it, which makes a number of contexts."""

    num_io_tensors, num_optimization_profiles, device_memory_size = len(SHAPES), 1, 1000

    def __init__(self, most: int = 2) -> None:
        self.most = most
        self.made: list[LibraryContext] = []

    def get_tensor_name(self, index: int) -> str:
        """Return a tensor's name."""
        return [*SHAPES][index]

    def get_tensor_mode(self, name: str) -> str:
        """Tell an input from an output."""
        return "in" if name == "image" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return SHAPES[name]

    def get_tensor_dtype(self, name: str) -> str:
        """Return a tensor's type."""
        return TYPES[name]

    def get_tensor_profile_shape(self, name: str, _: int) -> list[tuple[int, ...]]:
        """Return the same shape three times: the engine takes no other."""
        return [SHAPES[name]] * 3

    def create_execution_context(self) -> LibraryContext | None:
        """Make a context, unless there is no room for another one."""
        if len(self.made) == self.most:
            return None
        self.made.append(LibraryContext())
        return self.made[-1]


class LibraryContext:
    """A context that keeps what it is told."""

    active_optimization_profile = 0

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Keep it."""
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        """Keep it."""
        self.addresses[name] = pointer
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return SHAPES[name]


def flavour_of(library: Library) -> Flavour:
    """Return a flavour that loads this engine."""
    module: Any = SimpleNamespace(
        ILogger=type("ILogger", (), {"__init__": lambda _: None}),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: library),
        TensorIOMode=SimpleNamespace(INPUT="in"),
    )
    return Flavour(EngineFlavour.TENSORRT, "10.6", module)


@pytest.mark.usefixtures("gpu")
def test_an_engine_in_parts_is_one_of_the_whole_batch() -> None:
    """Each part has its own rows of every input and output, in bytes of its own type."""
    library = Library()
    with load_engine(flavour_of(library), b"", parts=2) as engine:
        assert engine.batches == BatchRange(min=128, opt=128, max=128)
        assert {spec.name: spec.shape for spec in (*engine.inputs, *engine.outputs)} == {
            name: (128, *shape[1:]) for name, shape in SHAPES.items()
        }
        assert engine.activation_bytes == 2000
        with engine.context(0) as context:
            context.set_input_shape("image", (128, 3, 4, 4))
            for name in SHAPES:
                context.set_address(name, 4096)
                assert context.shape(name) == (128, *SHAPES[name][1:])
            first, second = library.made
            assert first.shapes == second.shapes == {"image": SHAPES["image"]}
            assert {*first.addresses.values()} == {4096}
            sizes = {"image": 64 * 3 * 4 * 4, "top5": 64 * 4 * 8, "logits": 64 * 10 * 4}
            assert second.addresses == {name: 4096 + size for name, size in sizes.items()}


def test_no_part_stays_in_the_gpus_memory_if_there_is_no_room_for_all(gpu: FakeRuntime) -> None:
    """A caller may try another artifact, and the error must not keep the first part."""
    library = Library(most=1)
    with load_engine(flavour_of(library), b"", parts=2) as engine:
        with pytest.raises(RunError, match="too little free memory") as caught:
            engine.context(0).__enter__()
        first = weakref.ref(library.made.pop())
        assert first() is None
        assert "2,000 bytes" in str(caught.value)
    assert gpu.idle


def test_an_engine_of_other_sizes_is_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that says so was changed: its parts would lie at addresses that the library takes for no tensor."""
    monkeypatch.setitem(SHAPES, "logits", (16, 10))
    with pytest.raises(RunError, match=r"(?s)cannot be a part.*a part of logits has 640 bytes"):
        load_engine(flavour_of(Library()), b"", parts=2).__enter__()
