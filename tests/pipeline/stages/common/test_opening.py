"""Artifacts that run: every runner gives the logits of the same model."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.errors import ArtifactError, RunError, UnsupportedError
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import Backend, Graph, Setting
from pipeline.config.benchmark import Baseline
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.opening import _weights, file_of, gpu_of, open_runner, open_serialized
from pipeline.stages.common.samples import to_batch
from tests.support.hosts import H100, host

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from pipeline.records import Artifact

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
    batch: npt.NDArray[np.float32] = to_batch(project.pixels(data.validation)[:size], data.preprocessing)
    return batch


def run(project: Project, found: Artifact, size: int = 3) -> npt.NDArray[np.float32]:
    """Run an artifact on the first validation images."""
    with open_runner(project, found) as runner:
        logits: npt.NDArray[np.float32] = runner(batch_of(project, size))
        return logits


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
    project = Project.load(copied / "pipeline.yaml", STAGES)
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
    project = Project.load(copied / "pipeline.yaml", STAGES)
    found = artifact(project, f"{CPU}/eager-fp32")
    if content is None:
        project.paths.weights.unlink()
    else:
        project.paths.weights.write_bytes(content)

    with pytest.raises(ArtifactError, match=r"weights\.safetensors"), open_runner(project, found):
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
    """An artifact for a GPU is unsupported on a host without a driver."""
    monkeypatch.setattr("model_artifacts.host.environment.missing_driver", lambda: "no NVIDIA driver found")

    with (
        pytest.raises(UnsupportedError, match="no NVIDIA driver found"),
        open_runner(built, artifact(built, variant_id)),
    ):
        pass


def test_gpu_artifact_with_a_driver_and_no_gpu(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver alone runs nothing."""
    monkeypatch.setattr("model_artifacts.host.environment.missing_driver", lambda: None)

    with (
        pytest.raises(UnsupportedError, match="CUDA shows no GPU"),
        open_runner(built, artifact(built, "tiny/rtx-sm80+/fp16-b1-ws16MiB")),
    ):
        pass


def test_module_without_torch(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are unsupported on a host without torch, and engines are not concerned."""
    monkeypatch.setattr("model_artifacts.sessions.opening.installed", lambda module: module != "torch")

    with (
        pytest.raises(UnsupportedError, match="torch is not installed here"),
        open_runner(built, artifact(built, "tiny/cpu-x86_64/eager-fp32")),
    ):
        pass


def test_onnxruntime_without_cuda(built: Project) -> None:
    """On a GPU, an ONNX Runtime that has no CUDA provider is unsupported, and does not run on the CPU instead."""
    project = Project(Plan(built.config, host(H100)), built.paths, STAGES)
    variant = project.plan.variant("tiny/sm90-h100-80gb-hbm3-torch2.11/onnxruntime-fp16")
    on_cpu = artifact(built, "tiny/cpu-x86_64/onnxruntime-fp16")

    with (
        pytest.raises(UnsupportedError, match="CUDAExecutionProvider"),
        open_runner(project, on_cpu.model_copy(update={"variant": variant})),
    ):
        pass


def test_onnxruntimes_tensorrt_without_tensorrt(built: Project) -> None:
    """The TensorRT provider does not fall back to another: without it or TensorRT, the baseline is unsupported."""
    config = built.config.model_copy(
        update={"benchmark": built.config.benchmark.model_copy(update={"baselines": (Baseline.ONNXRUNTIME_TENSORRT,)})}
    )
    project = Project(Plan(config, host(H100)), built.paths, STAGES)
    variant = next(item for item in project.plan.variants if item.backend is Backend.ONNXRUNTIME_TENSORRT)
    found = artifact(built, f"{CPU}/onnxruntime-fp16").model_copy(update={"variant": variant})

    file = file_of(project, found)
    assert file.provider is not None
    assert file.provider.inputs == found.inputs
    assert found.file is not None
    assert file.provider.cache.name == found.file.sha256[:16]
    with (
        pytest.raises(UnsupportedError, match=r"TensorrtExecutionProvider|tensorrt is not installed"),
        open_runner(project, found),
    ):
        pass


def test_damaged_weights(copied: Path) -> None:
    """Weights of another digest are refused before torch reads them."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    weights = project.file(project.source().weights)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    with (
        pytest.raises(RunError, match="is damaged"),
        open_runner(project, artifact(project, "tiny/cpu-x86_64/eager-fp32")),
    ):
        pass


def test_runtime_that_is_not_installed(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact whose runtime is not there is unsupported, and the runtime is named."""
    monkeypatch.setattr("model_artifacts.sessions.opening.installed", lambda module: module != "onnxruntime")

    with (
        pytest.raises(UnsupportedError, match="onnxruntime is not installed here"),
        open_runner(built, artifact(built, f"{CPU}/onnxruntime-fp32")),
    ):
        pass


# Engines, as far as a host without a GPU can open one.


ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"


def test_engine_without_a_gpu_is_unsupported(built: Project) -> None:
    """An engine is loaded nowhere but into a GPU's memory."""
    project = Project(Plan(built.config, host()), built.paths, STAGES)

    with (
        pytest.raises(UnsupportedError, match=missing_driver() or "CUDA shows no GPU"),
        open_serialized(project, artifact(built, ENGINE)),
    ):
        pass


def test_gpu_of_an_artifact_is_its_targets(built: Project) -> None:
    """A portable engine runs on the GPU that the configuration names."""
    project = Project(Plan(built.config, host(H100)), built.paths, STAGES)

    assert gpu_of(project, artifact(built, ENGINE)) == H100


def test_engine_that_does_not_say_what_it_runs_on(built: Project) -> None:
    """An engine of which nothing is known is not tried."""
    project = Project(Plan(built.config, host(H100)), built.paths, STAGES)
    unknown = artifact(built, ENGINE).model_copy(update={"built_for": None})

    with pytest.raises(RunError, match="does not record which TensorRT and GPU"), open_serialized(project, unknown):
        pass


def test_damaged_engine_is_not_loaded(copied: Path) -> None:
    """An engine with a flipped bit is refused before any library sees it, with both digests and the command."""
    found = Project.load(copied / "pipeline.yaml", STAGES)
    project = Project(Plan(found.config, host(H100)), found.paths, STAGES)
    engine = artifact(project, ENGINE)
    assert engine.file is not None
    path = project.file(engine.file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(RunError) as caught, open_serialized(project, engine):
        pass

    assert str(caught.value).splitlines() == [
        f"{path} is damaged, or is not the recorded file",
        f"  expected: SHA-256 {engine.file.sha256}",
        f"  got:      SHA-256 {hashlib.sha256(data).hexdigest()}",
        f"  fix:      run `python -m pipeline build {ENGINE}`",
    ]


def test_engine_for_a_version_that_is_not_here_is_not_loaded(built: Project) -> None:
    """A whole engine of another version is refused by its record, before the library reads it."""
    project = Project(Plan(built.config, host(H100)), built.paths, STAGES)
    engine = artifact(built, ENGINE)
    assert engine.built_for is not None
    older = engine.model_copy(update={"built_for": engine.built_for.model_copy(update={"version": "1.0.0.0"})})

    with (
        pytest.raises(RunError, match=r"(?s)for another TensorRT.*got: +tensorrt_rtx 1\.0\.0\.0"),
        open_serialized(project, older),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ((), False),
        ((Setting(name="strip_plan", value="on", applied=False),), False),
        ((Setting(name="strip_plan", value="on", applied=True),), True),
    ],
)
def test_stripped_engine_takes_its_weights_from_the_graph(
    built: Project, settings: tuple[Setting, ...], *, weights: bool
) -> None:
    """An engine that was really built without its weights is given the ONNX file that has them."""
    engine = artifact(built, ENGINE).model_copy(update={"settings": settings})

    assert _weights(built, engine) == (built.paths.onnx(Graph.FP16) if weights else None)


def test_graphs_run_without_torch(built: Project) -> None:
    """A deployment that runs an ONNX artifact imports no torch."""
    script = (
        "import sys; from pathlib import Path; from pipeline.planning.project import Project\n"
        "from pipeline.stages.common.opening import open_runner; import numpy\n"
        f"project = Project.load(Path({str(built.paths.root.parent / 'pipeline.yaml')!r}), stages=())\n"
        f"artifact = project.artifact(project.plan.variant('{CPU}/onnxruntime-fp32'))\n"
        "with open_runner(project, artifact) as run:\n"
        "    print(run(numpy.zeros((1, 3, 32, 32), 'float32')).shape, 'torch' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603 - ours

    assert done.stdout.split("\n")[0] == "(1, 10) False"
