"""Artifacts are opened in one place, whichever backend runs them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_artifacts.errors import RunError, UnsupportedError
from model_artifacts.host.hashes import describe_file
from model_artifacts.records import Backend, Precision, Variant
from model_artifacts.sessions.opening import (
    ArtifactFile,
    ModuleFacts,
    open_artifact,
    open_engine_file,
    open_module_file,
    package_of,
)

if TYPE_CHECKING:
    from pathlib import Path

FIX = "pull the artifact again"


def artifact(path: Path, backend: Backend, *, module: bool = False) -> ArtifactFile:
    """Return a file of a backend, as a deployment has it."""
    variant = Variant(model="m", target="cpu", backend=backend, precision=Precision.FP32)
    facts = ModuleFacts(None, "package.module:function", (3, 2, 2), path.parent) if module else None
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
        with pytest.raises(RunError, match=rf"m/cpu/{backend.value} cannot run a batch \(1, 3\)"):
            run(np.ones((1, 3), np.float32))


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
