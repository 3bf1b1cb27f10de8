"""Artifacts that run: every runner gives the logits of the same model."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.errors import PipelineError, RunError, UnsupportedError
from pipeline.preprocessing import to_input
from pipeline.project import Project
from pipeline.records import Artifact, Backend, Graph
from pipeline.runners import open_runner

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

CPU = "tiny/cpu-x86_64"


def artifact(project: Project, variant_id: str) -> Artifact:
    """Return a variant's record."""
    return project.artifact(project.plan.variant(variant_id))


def reference_artifact(project: Project, graph: Graph) -> Artifact:
    """Return the artifact of a graph as the reference evaluator runs it."""
    found = artifact(project, f"{CPU}/onnxruntime-{graph.value}")
    variant = found.variant.model_copy(update={"backend": Backend.ONNX_REFERENCE})
    return found.model_copy(update={"variant": variant})


def batch_of(project: Project, size: int) -> npt.NDArray[np.float32]:
    """Return the first validation images as a batch."""
    data = project.data()
    return to_input(project.pixels(data.validation)[:size], data.preprocessing)


def run(project: Project, found: Artifact, size: int = 3) -> npt.NDArray[np.float32]:
    """Run an artifact on the first validation images."""
    with open_runner(project, found) as runner:
        return runner(batch_of(project, size))


def stored(project: Project, size: int = 3) -> npt.NDArray[np.float32]:
    """Return the reference's logits of the first validation images."""
    logits: npt.NDArray[np.float32] = np.load(project.file(project.data().reference))[:size]
    return logits


def test_eager_gives_the_reference(built: Project) -> None:
    """The eager model gives the logits that the data stage stored."""
    np.testing.assert_allclose(run(built, artifact(built, f"{CPU}/eager-fp32")), stored(built), atol=1e-5)


def test_onnxruntime_agrees_with_eager(built: Project) -> None:
    """ONNX Runtime gives the eager model's logits in FP32."""
    eager = run(built, artifact(built, f"{CPU}/eager-fp32"))

    np.testing.assert_allclose(run(built, artifact(built, f"{CPU}/onnxruntime-fp32")), eager, atol=1e-4)


def test_reference_evaluator_agrees_with_onnxruntime(built: Project) -> None:
    """The reference evaluator gives ONNX Runtime's logits of the same FP32 graph."""
    runtime = run(built, artifact(built, f"{CPU}/onnxruntime-fp32"))

    np.testing.assert_allclose(run(built, reference_artifact(built, Graph.FP32)), runtime, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("onnxruntime-fp16", 5e-3),
        ("onnx-reference-bf16", 3e-2),
        ("onnxruntime-int8", 0.12),
        ("onnxruntime-int8-cpu", 0.12),
    ],
)
def test_narrower_types_stay_close(built: Project, name: str, bound: float) -> None:
    """Narrower types give the reference's logits within their gate's relative error."""
    logits, reference = run(built, artifact(built, f"{CPU}/{name}")), stored(built)

    assert np.linalg.norm(logits - reference) <= bound * np.linalg.norm(reference)


@pytest.mark.parametrize(
    "name", ["eager-fp32", "onnxruntime-fp32", "onnxruntime-fp16", "onnxruntime-int8", "onnx-reference-bf16"]
)
@pytest.mark.parametrize("size", [1, 4])
def test_runners_give_float32_logits(built: Project, name: str, size: int) -> None:
    """Every runner takes any batch and gives float32 (batch, classes)."""
    logits = run(built, artifact(built, f"{CPU}/{name}"), size)

    assert (logits.shape, logits.dtype) == ((size, 10), np.dtype(np.float32))


@pytest.mark.parametrize(("backend", "message"), [(False, "ONNX Runtime"), (True, "onnx.reference")])
@pytest.mark.parametrize("content", [b"no graph", b"", None], ids=["corrupt", "empty", "missing"])
def test_corrupt_graph(copied: Path, backend: bool, message: str, content: bytes | None) -> None:  # noqa: FBT001
    """A file that is no ONNX graph cannot be loaded, and is named."""
    project = Project.load(copied / "pipeline.yaml")
    found = reference_artifact(project, Graph.FP32) if backend else artifact(project, f"{CPU}/onnxruntime-fp32")
    file = project.paths.onnx(Graph.FP32)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

    with pytest.raises(RunError, match=rf"{message} cannot load .*fp32\.onnx"), open_runner(project, found):
        pass


@pytest.mark.parametrize("content", [b"no weights", None], ids=["corrupt", "missing"])
def test_corrupt_weights(copied: Path, content: bytes | None) -> None:
    """Weights that cannot be read are an error of the pipeline's own that names them."""
    project = Project.load(copied / "pipeline.yaml")
    found = artifact(project, f"{CPU}/eager-fp32")
    if content is None:
        project.paths.weights.unlink()
    else:
        project.paths.weights.write_bytes(content)

    with pytest.raises(PipelineError, match=r"weights\.safetensors"), open_runner(project, found):
        pass


@pytest.mark.parametrize("name", ["eager-fp32", "onnxruntime-fp32", "onnx-reference-bf16"])
def test_batch_that_does_not_fit(built: Project, name: str) -> None:
    """A batch of another shape is a run error, whatever runs it."""
    with open_runner(built, artifact(built, f"{CPU}/{name}")) as runner, pytest.raises(RunError):
        runner(np.zeros((1, 1, 32, 32), dtype=np.float32))


def test_artifact_without_a_file(built: Project) -> None:
    """An artifact that was not built cannot be opened, and its reason is passed on."""
    found = artifact(built, f"{CPU}/onnxruntime-fp32").model_copy(update={"file": None, "reason": "no space"})

    with pytest.raises(RunError, match="onnxruntime-fp32 has no file: no space"), open_runner(built, found):
        pass


@pytest.mark.parametrize("variant_id", ["tiny/rtx-sm80+/fp16-b1-ws16MiB", "tiny/gpu/dynamo-fp16-b1-ws16MiB"])
def test_gpu_artifact_without_a_driver(built: Project, monkeypatch: pytest.MonkeyPatch, variant_id: str) -> None:
    """What needs a GPU is unsupported where there is no driver."""
    monkeypatch.setattr("pipeline.runners.missing_driver", lambda: "no NVIDIA driver found")

    with (
        pytest.raises(UnsupportedError, match="no NVIDIA driver found"),
        open_runner(built, artifact(built, variant_id)),
    ):
        pass


def test_gpu_artifact_with_a_driver(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver, what does not run on a GPU yet says so."""
    monkeypatch.setattr("pipeline.runners.missing_driver", lambda: None)
    found = artifact(built, "tiny/rtx-sm80+/fp16-b1-ws16MiB")

    with (
        pytest.raises(UnsupportedError, match="does not run tensorrt artifacts on a GPU yet"),
        open_runner(built, found),
    ):
        pass


def test_graphs_run_without_torch(built: Project) -> None:
    """A deployment that runs an ONNX artifact imports no torch."""
    script = (
        "import sys; from pathlib import Path; from pipeline.project import Project\n"
        "from pipeline.runners import open_runner; import numpy\n"
        f"project = Project.load(Path({str(built.paths.root.parent / 'pipeline.yaml')!r}))\n"
        f"artifact = project.artifact(project.plan.variant('{CPU}/onnxruntime-fp32'))\n"
        "with open_runner(project, artifact) as run:\n"
        "    print(run(numpy.zeros((1, 3, 32, 32), 'float32')).shape, 'torch' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603 - ours

    assert done.stdout.split("\n")[0] == "(1, 10) False"
