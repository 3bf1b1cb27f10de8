"""Sessions of ONNX Runtime's TensorRT provider run a whole graph in TensorRT, or fail."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from model_artifacts.errors import RunError, UnsupportedError
from model_artifacts.records import Backend, BatchRange, Graph, Precision, TensorSpec, Variant, Workspace
from model_artifacts.sessions.onnx import ProviderFacts, mute, onnx_session, provider_options, tensorrt_session
from tests.support.hosts import H100

if TYPE_CHECKING:
    from pathlib import Path

PROVIDER = "TensorrtExecutionProvider"
IMAGE = TensorSpec(name="image", dtype="float32", shape=("batch", 3, 224, 224), layout="NCHW")


def variant(precision: Precision) -> Variant:
    """Return a variant of the provider."""
    return Variant(
        model="m",
        target="t",
        backend=Backend.ONNXRUNTIME_TENSORRT,
        precision=precision,
        graph=Graph(precision.value),
        profile=BatchRange(min=1, opt=8, max=64),
        workspace=Workspace(bytes=2**30, label="1GiB"),
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A TensorRT and an onnxruntime that starts the `providers` of this dictionary, and keeps its arguments there."""
    calls: dict[str, Any] = {"providers": [PROVIDER, "CPUExecutionProvider"]}

    def session(file: str, options: onnxruntime.SessionOptions, **arguments: Any) -> SimpleNamespace:
        calls["file"], calls["options"], calls["arguments"] = file, options, arguments
        return SimpleNamespace(get_providers=lambda: calls["providers"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr("model_artifacts.tensorrt.flavour.load_flavour", lambda _name: SimpleNamespace(version="10.6"))
    return calls


@pytest.mark.parametrize(("precision", "int8"), [(Precision.FP16, "False"), (Precision.INT8, "True")])
def test_options_are_those_of_an_engine(tmp_path: Path, precision: Precision, int8: str) -> None:
    """The provider builds for the variant's batch range and workspace."""
    options = provider_options(variant(precision), H100, (IMAGE,), tmp_path)

    assert options["trt_profile_min_shapes"] == "image:1x3x224x224"
    assert options["trt_profile_opt_shapes"] == "image:8x3x224x224"
    assert options["trt_profile_max_shapes"] == "image:64x3x224x224"
    assert options["trt_max_workspace_size"] == str(2**30)
    assert (options["trt_fp16_enable"], options["trt_int8_enable"]) == ("True", int8)


def test_no_node_may_run_elsewhere(started: dict[str, Any], tmp_path: Path) -> None:
    """The session has no second provider, and ONNX Runtime may not choose one itself."""
    tensorrt_session(tmp_path / "fp16.onnx", variant(Precision.FP16), H100, ProviderFacts((IMAGE,), tmp_path / "cache"))

    assert [name for name, _ in started["arguments"]["providers"]] == [PROVIDER]
    assert started["arguments"]["enable_fallback"] == 0
    assert started["options"].get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    assert (tmp_path / "cache" / "10.6").is_dir()


def test_a_session_without_the_provider_is_refused(started: dict[str, Any], tmp_path: Path) -> None:
    """A session that started on the CPU alone is an error, never timed as TensorRT."""
    started["providers"] = ["CPUExecutionProvider"]

    with pytest.raises(RunError, match="does not start"):
        tensorrt_session(tmp_path / "fp16.onnx", variant(Precision.FP16), H100, ProviderFacts((IMAGE,), tmp_path))


def test_a_graph_that_is_not_taken_whole_is_refused(
    started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's own error is kept."""

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("nodes are assigned to the default CPU EP")

    assert started
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(RunError, match="default CPU EP"):
        tensorrt_session(tmp_path / "fp16.onnx", variant(Precision.FP16), H100, ProviderFacts((IMAGE,), tmp_path))


def test_a_host_without_gpu_or_provider_is_unsupported(
    started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The missing part is named."""
    facts = ProviderFacts((IMAGE,), tmp_path)
    assert started
    with pytest.raises(UnsupportedError):
        tensorrt_session(tmp_path / "fp16.onnx", variant(Precision.FP16), None, facts)
    monkeypatch.setattr(onnxruntime, "get_available_providers", list)
    with pytest.raises(UnsupportedError, match=f"has no {PROVIDER}"):
        tensorrt_session(tmp_path / "fp16.onnx", variant(Precision.FP16), H100, facts)


@pytest.mark.parametrize(
    ("graph", "left_out"),
    [
        (Graph.FP32, []),
        (Graph.FP16, ["NchwcTransformer"]),
        (Graph.INT8_CPU, []),
        (Graph.INT8, ["WeightBiasQuantization"]),
    ],
)
def test_optimisations_that_are_left_out(
    graph: Graph, left_out: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimisation that crashes on FP16 transformers is left out of FP16 graphs, and of no others."""
    calls: list[list[str]] = []
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *_, disabled_optimizers, **__: calls.append(disabled_optimizers)
    )

    onnx_session(tmp_path / "graph.onnx", graph, None)

    assert calls == [left_out]


def test_a_session_on_a_gpu_leaves_the_log_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold of ONNX Runtime's log belongs to the application; only the build's own processes mute it."""
    levels: list[int] = []
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    opened = SimpleNamespace(get_providers=lambda: providers)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: opened)
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", levels.append)

    assert onnx_session(tmp_path / "graph.onnx", Graph.FP32, H100) is opened
    assert levels == []
    mute()
    assert levels == [4]
