"""Artifacts are opened in one place, whichever backend runs them."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from model_artifacts.errors import RunError, UnsupportedError
from model_artifacts.host import cuda
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import Backend, BatchRange, BuiltFor, EngineFlavour, Precision, Variant
from model_artifacts.sessions import engine as engine_sessions
from model_artifacts.sessions.arithmetic import settings
from model_artifacts.sessions.engine import Engine
from model_artifacts.sessions.module import Loaded
from model_artifacts.sessions.opening import (
    ArtifactFile,
    ModuleFacts,
    open_artifact,
    open_engine_file,
    open_module_file,
    package_of,
)
from pipeline.records import tensor_spec
from tests.support.fake_cuda import FakeEngine, FakeRuntime
from tests.support.hosts import H100

if TYPE_CHECKING:
    from collections.abc import Iterator

FIX = "pull the artifact again"


def artifact(path: Path, backend: Backend, *, module: bool = False) -> ArtifactFile:
    """Return a file of a backend, as a deployment has it."""
    variant = Variant(model="m", target="cpu", backend=backend, precision=Precision.FP32)
    inputs = (tensor_spec("image", (3, 2, 2)),)
    facts = ModuleFacts(None, "package.module:function", inputs, path.parent) if module else None
    return ArtifactFile(
        id=f"m/cpu/{backend.value}",
        variant=variant,
        path=path,
        gpu=None,
        fix=FIX,
        record=describe_file(path, path.parent),
        module=facts,
    )


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """An ONNX graph that doubles its input, float32 (batch, 2)."""
    shape = ["batch", 2]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "logits")]
    twos = helper.make_tensor("twos", TensorProto.FLOAT, [2], [2.0, 2.0])
    node = helper.make_node("Mul", ["image", "twos"], ["logits"])
    body = helper.make_graph([node], "double", ends[:1], ends[1:], [twos])
    path = tmp_path / "double.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.ONNX_REFERENCE])
def test_a_graph_is_run(graph: Path, backend: Backend) -> None:
    """Both runtimes of ONNX files give float32 logits, and name the artifact that refuses a batch."""
    with open_artifact(artifact(graph, backend)) as run:
        np.testing.assert_array_equal(run(np.ones((3, 2), np.float32)), np.full((3, 2), 2, np.float32))
        with pytest.raises(RunError, match=rf"m/cpu/{backend.value} cannot run a batch float32 \(1, 3\)"):
            run(np.ones((1, 3), np.float32))


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.ONNX_REFERENCE])
def test_a_graph_of_several_inputs_takes_them_all(graph: Path, backend: Backend) -> None:
    """A batch of one array leaves the other input empty; it is no result."""
    model = onnx.load(graph)
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 2]))
    onnx.save(model, graph)
    with open_artifact(artifact(graph, backend)) as run:
        with pytest.raises(RunError, match=r"(?s)cannot run a batch float32.*other inputs than the batch"):
            run(np.ones((3, 2), np.float32))
        batch = {"more": np.ones((3, 2), np.float32), "image": np.ones((3, 2), np.float32)}
        np.testing.assert_array_equal(run(batch), np.full((3, 2), 2, np.float32))


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.ONNX_REFERENCE])
def test_inputs_of_one_name_have_one_size(graph: Path, backend: Backend) -> None:
    """The runtimes take any; no artifact was validated with such, and `load` refuses them, too."""
    model = onnx.load(graph)
    del model.graph.input[:]
    for name in ("image", "more"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length"]))
    onnx.save(model, graph)
    with open_artifact(artifact(graph, backend)) as run:
        run({"image": np.ones((3, 2), np.float32), "more": np.ones((3, 2), np.float32)})
        with pytest.raises(RunError, match=r"(?s)different sizes of the axis 'length'.*2 of 'image', 3 of 'more'"):
            run({"image": np.ones((3, 2), np.float32), "more": np.ones((3, 3), np.float32)})


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.ONNX_REFERENCE])
def test_every_output_of_a_graph_is_given_by_its_name(graph: Path, backend: Backend) -> None:
    """No output is dropped, and each has its own name, in the graph's order."""
    model = onnx.load(graph)
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["batch", 2]))
    model.graph.node.append(helper.make_node("Neg", ["image"], ["more"]))
    onnx.save(model, graph)
    with open_artifact(artifact(graph, backend)) as run:
        found = run(np.ones((3, 2), np.float32))
    assert [*found] == ["logits", "more"]
    np.testing.assert_array_equal(found["logits"], np.full((3, 2), 2, np.float32))
    np.testing.assert_array_equal(found["more"], np.full((3, 2), -1, np.float32))


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.ONNX_REFERENCE, Backend.TORCH_COMPILE])
def test_a_damaged_file_names_the_remedy_of_whoever_opens_it(graph: Path, backend: Backend) -> None:
    """A file of another digest is refused before a library reads it; the remedy is the deployment's own."""
    file = artifact(graph, backend, module=True)
    graph.write_bytes(b"damaged")

    with pytest.raises(RunError, match=rf"(?s)is damaged.*fix: +{FIX}"), open_artifact(file):
        pass


def test_a_module_without_its_libraries_is_refused(graph: Path) -> None:
    """A Torch-TensorRT module whose record names no libraries cannot be trusted to load."""
    file = artifact(graph, Backend.DYNAMO, module=True)

    with pytest.raises(RunError, match=rf"(?s)does not record the libraries.*fix: +{FIX}"), open_module_file(file):
        pass


def test_a_file_that_is_no_module_is_not_opened_as_one(graph: Path) -> None:
    """A torch module needs its model's facts."""
    with pytest.raises(RunError, match="is not a torch module"), open_module_file(artifact(graph, Backend.EAGER)):
        pass


def test_an_engine_needs_a_gpu(graph: Path) -> None:
    """An engine is not opened on the CPU."""
    with pytest.raises(UnsupportedError, match="needs a GPU"), open_engine_file(artifact(graph, Backend.TENSORRT)):
        pass


@pytest.mark.parametrize("backend", Backend)
def test_every_backend_but_the_engines_has_a_package(backend: Backend) -> None:
    """An engine's package depends on its flavour; every other backend has one of its own."""
    assert (package_of(backend) is None) == (backend is Backend.TENSORRT)


def test_an_onnxruntime_that_does_not_start_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wheels over each other may leave a module that cannot be imported: no traceback, but the remedy."""
    (tmp_path / "site/onnxruntime").mkdir(parents=True)
    (tmp_path / "site/onnxruntime/__init__.py").write_text("raise ImportError('undefined symbol: x')\n")
    (tmp_path / "graph.onnx").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    file = artifact(tmp_path / "graph.onnx", Backend.ONNXRUNTIME)
    told = r"(?s)does not start.*undefined symbol: x.*install one of them"
    with pytest.raises(UnsupportedError, match=told), open_artifact(file):
        pass


# The process of the application.


class Branching(torch.nn.Module):
    """Logits that tell the settings of torch in this thread, and that draw and seed random numbers."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the settings as numbers, after the first pixel of each image."""
        facts = [torch.is_inference_mode_enabled(), torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()]
        return torch.cat([image[:, 0, 0, :1], torch.tensor([facts] * len(image), dtype=torch.float32)], dim=1)


def process_settings() -> dict[str, object]:
    """Return everything of a process that a library may change for its application."""
    return {
        **settings(),
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        "cudnn.deterministic": torch.backends.cudnn.deterministic,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "dynamo": torch._dynamo.config.recompile_limit,  # noqa: SLF001 - no other name
        "torch": torch.get_rng_state().sum().item(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002 - the application's own
        "python": random.getstate()[1][-1],
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "filters": list(warnings.filters),
        "logging": (logging.root.level, logging.root.manager.disable, list(logging.root.handlers)),
        "arguments": list(sys.argv),
        "folder": Path.cwd(),
        "path": list(sys.path),
    }


def seeding() -> Loaded:
    """Return a module, as a factory makes it that seeds everything."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - an application's habit
    random.seed(0)
    return Loaded(Branching())


def test_a_module_leaves_its_process_as_it_found_it(graph: Path) -> None:
    """While a module is open, an application's own settings of torch and of the process are as before."""
    file = artifact(graph, Backend.EAGER, module=True)
    torch.manual_seed(7)
    before = process_settings()
    with open_artifact(file, seeding) as run:
        assert process_settings() == before
        assert run(np.ones((1, 3, 2, 2), np.float32)).tolist() == [[1, 1, 0, 0]]
        assert process_settings() == before
        assert torch.ones(1, requires_grad=True).sum().requires_grad
    assert process_settings() == before


@pytest.mark.parametrize("backend", [Backend.ONNXRUNTIME, Backend.ONNX_REFERENCE])
def test_a_graph_leaves_its_process_as_it_found_it(graph: Path, backend: Backend) -> None:
    """ONNX files change nothing of the process either."""
    before = process_settings()
    with open_artifact(artifact(graph, backend)) as run:
        run(np.ones((1, 2), np.float32))
        assert process_settings() == before
    assert process_settings() == before


def test_a_module_runs_alike_in_any_thread(graph: Path) -> None:
    """Two modules of different arithmetic, called from many threads, each run with their own, and none remains."""
    before = process_settings()
    strict = artifact(graph, Backend.EAGER, module=True)
    fast = replace(strict, variant=strict.variant.model_copy(update={"precision": Precision.TF32}))
    with (
        open_artifact(strict, lambda: Loaded(Branching())) as first,
        open_artifact(fast, lambda: Loaded(Branching())) as second,
        ThreadPoolExecutor(8) as pool,
    ):

        def facts(number: int) -> list[float]:
            image = np.full((1, 3, 2, 2), number, np.float32)
            return [float(value) for value in (first, second)[number % 2](image)[0]]

        assert list(pool.map(facts, range(60))) == [[number, 1, number % 2, 0] for number in range(60)]
    assert process_settings() == before


class Machine(NamedTuple):
    """A CUDA with memory in the host, and an engine's file for it."""

    cuda: FakeRuntime
    file: ArtifactFile


@pytest.fixture
def machine(graph: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Two GPUs, of which the second one runs an engine."""
    fake = FakeRuntime()
    loaded: Any = FakeEngine(fake, BatchRange(min=1, opt=4, max=4))
    gpu = H100.model_copy(update={"index": 1})

    @contextmanager
    def opened(*_: object) -> Iterator[Engine]:
        cuda.use(gpu)
        yield Engine(loaded, gpu)

    monkeypatch.setattr(cuda, "runtime", fake)
    monkeypatch.setattr(engine_sessions, "open_engine", opened)
    monkeypatch.setattr("model_artifacts.tensorrt.flavour.load_flavour", lambda _: None)
    made_for = BuiltFor(flavour=EngineFlavour.TENSORRT, version="10", compute_capabilities=(90,), gpu=gpu.name)
    return Machine(fake, replace(artifact(graph, Backend.TENSORRT), gpu=gpu, built_for=made_for))


def test_an_engine_leaves_the_current_gpu_alone(machine: Machine) -> None:
    """An engine on the second GPU runs in any thread, and the thread's current GPU stays the first."""
    batch = np.ones((2, 3, 4, 4), np.float32)
    with open_artifact(machine.file) as run, ThreadPoolExecutor(1) as pool:
        assert machine.cuda.current == 0
        expected = run(batch)
        np.testing.assert_array_equal(pool.submit(run, batch).result(), expected)
        assert machine.cuda.current == 0
        assert machine.cuda.chosen.count(1) >= 3
    assert machine.cuda.current == 0
    assert machine.cuda.idle


def test_an_engine_that_fails_to_open_leaves_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's memory and the current GPU are as before."""
    monkeypatch.setattr(machine.cuda, "total", 8)
    with pytest.raises(RunError, match="too little free memory"), open_artifact(machine.file):
        pass
    assert machine.cuda.current == 0
    assert machine.cuda.idle


def test_logits_of_an_array_on_the_gpu_are_in_the_hosts_memory(machine: Machine) -> None:
    """A batch that lies on the GPU gives the same array as one in the host's memory."""
    batch = np.ones((2, 3, 4, 4), np.float32)
    with open_artifact(machine.file) as run:
        memory = cuda.Memory(batch.nbytes)
        there = memory.array(batch.shape, batch.dtype)
        machine.cuda.cudaMemcpy(there.pointer, batch.ctypes.data, batch.nbytes, None)
        given: Any = there
        found = run(given)
        memory.close()
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, run(batch))


def test_onnx_runtime_leaves_the_current_gpu_alone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime chooses its GPU when it opens a file and at each run; the thread has its own again afterwards."""

    class Session:
        def __init__(self, *_: object, **__: object) -> None:
            machine.cuda.cudaSetDevice(1)

        def get_inputs(self) -> list[Any]:
            return [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1])]

        def get_outputs(self) -> list[Any]:
            return [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])]

        def run(self, _: list[str], feed: dict[str, Any]) -> list[Any]:
            machine.cuda.cudaSetDevice(1)
            return [feed["image"]]

    monkeypatch.setattr("model_artifacts.sessions.opening.onnx_session", Session)
    variant = machine.file.variant.model_copy(update={"backend": Backend.ONNXRUNTIME})
    with open_artifact(replace(machine.file, variant=variant)) as run:
        assert machine.cuda.current == 0
        assert run(np.ones((1, 2), np.float32)).tolist() == [[1, 1]]
        assert machine.cuda.current == 0
    assert machine.cuda.chosen == [1, 0, 1, 0]
