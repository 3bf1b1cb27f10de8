"""TensorRT-RTX, for real: it builds engines without a GPU."""

from __future__ import annotations

import importlib
import re
import threading
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.errors import BuildError, UnsupportedError
from pipeline.records import EngineMemory, Graph, Profile, TensorSpec
from pipeline.trt_adapter import (
    BuildLog,
    BuiltEngine,
    EngineRequest,
    Flavour,
    _failure,
    _layers_digest,
    _logged,
    build_engine,
    int8_convolutions,
    load_flavour,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.project import Project

MIB = 2**20
RANGE = Profile(min=1, opt=2, max=4)
LARGE = Profile(min=256, opt=256, max=256)


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    """The installed TensorRT-RTX."""
    return load_flavour()


def request_of(
    project: Project,
    graph: Graph = Graph.FP32,
    profile: Profile = RANGE,
    workspace_bytes: int = 16 * MIB,
    compute_capabilities: tuple[int, ...] = (80, 86, 89, 120),
) -> EngineRequest:
    """Return a request to build one of the tiny model's graphs."""
    return EngineRequest(project.file(project.onnx(graph).file), profile, workspace_bytes, compute_capabilities)


def build(flavour: Flavour, request: EngineRequest) -> BuiltEngine:
    """Build an engine."""
    return build_engine(flavour, request, BuildLog())


def test_flavour_knows_its_version(flavour: Flavour) -> None:
    """The flavour names itself and its full version."""
    assert flavour.name == "tensorrt_rtx"
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", flavour.version)


def test_flavour_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorRT-RTX the message says what to install."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(UnsupportedError, match=r"(?s)not installed.*dependency group `rtx`"):
        load_flavour()


@pytest.mark.parametrize("graph", [Graph.FP32, Graph.FP16, Graph.BF16])
def test_engine_is_built(built: Project, flavour: Flavour, graph: Graph) -> None:
    """Every precision gives an engine that takes and gives float32, with a dynamic batch."""
    engine = build(flavour, request_of(built, graph))

    assert engine.inputs == (TensorSpec(name="image", shape=("batch", 3, 32, 32), dtype="float32", layout="NCHW"),)
    assert engine.outputs == (TensorSpec(name="logits", shape=("batch", 10), dtype="float32", layout="NC"),)


def test_engine_says_what_memory_it_needs(built: Project, flavour: Flavour) -> None:
    """The weights that the builder reports are those of the model, and half as many bytes in half precision."""
    wide = build(flavour, request_of(built, Graph.FP32)).memory
    narrow = build(flavour, request_of(built, Graph.FP16)).memory

    assert wide.weights_bytes >= 4 * (864 + 18432 + 10240)
    assert narrow.weights_bytes < 0.6 * wide.weights_bytes


def test_larger_batches_need_more_memory(built: Project, flavour: Flavour) -> None:
    """The memory for activations grows with the profile's largest batch."""
    small = build(flavour, request_of(built, profile=RANGE))
    large = build(flavour, request_of(built, profile=LARGE, workspace_bytes=64 * MIB))

    assert large.memory.activation_bytes > small.memory.activation_bytes


def test_settings_are_recorded(built: Project, flavour: Flavour) -> None:
    """Every setting of the request is in the result, as applied."""
    engine = build(flavour, request_of(built))

    assert {setting.name: setting.value for setting in engine.settings if setting.applied} == {
        "workspace_bytes": str(16 * MIB),
        "profile": "b1-2-4",
        "profiling_verbosity": "detailed",
        "compute_capabilities": "80, 86, 89, 120",
    }


def test_build_says_nothing_on_the_terminal(
    built: Project, flavour: Flavour, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the builder says, its native code included, goes into the log."""
    build(flavour, request_of(built))

    assert capfd.readouterr() == ("", "")


def test_failed_build_says_nothing_on_the_terminal(
    built: Project, flavour: Flavour, capfd: pytest.CaptureFixture[str]
) -> None:
    """A build that fails is silent on the terminal as well."""
    with pytest.raises(BuildError):
        build(flavour, request_of(built, workspace_bytes=1))

    assert capfd.readouterr() == ("", "")


def test_log_is_filled(built: Project, flavour: Flavour) -> None:
    """The builder's log holds its memory statistics, severity first."""
    log = BuildLog()

    build_engine(flavour, request_of(built), log)

    assert re.search(r"^[A-Z]+ +.*Total Weights Memory: \d+ bytes", log.text(), re.MULTILINE)


# What makes two engines the same


def test_other_workspace_gives_the_same_layers(built: Project, flavour: Flavour) -> None:
    """Engines that differ in their workspace do the same work, though their bytes differ."""
    small, large = (build(flavour, request_of(built, workspace_bytes=size * MIB)) for size in (16, 32))

    assert small.layers_sha256 == large.layers_sha256
    assert small.plan != large.plan


def test_other_profile_gives_other_layers(built: Project, flavour: Flavour) -> None:
    """Engines for other batch sizes are other engines."""
    profiles = [Profile(min=batch, opt=batch, max=batch) for batch in (1, 2, 4)] + [RANGE]

    assert len({build(flavour, request_of(built, profile=profile)).layers_sha256 for profile in profiles}) == 4


def test_other_precision_gives_other_layers(built: Project, flavour: Flavour) -> None:
    """Engines of other precisions are other engines."""
    graphs = (Graph.FP32, Graph.FP16, Graph.BF16)

    assert len({build(flavour, request_of(built, graph)).layers_sha256 for graph in graphs}) == 3


def test_plan_without_kernels_is_compared_as_it_is() -> None:
    """Where a plan names no kernels, every byte of it counts."""
    memory = EngineMemory(activation_bytes=1, weights_bytes=1)

    assert _layers_digest(b"plan 1", memory) != _layers_digest(b"plan 2", memory)


def test_memory_is_part_of_the_layers() -> None:
    """Engines that need other memory are other engines, even with the same kernels."""
    first, second = (EngineMemory(activation_bytes=size, weights_bytes=1) for size in (1, 2))

    assert _layers_digest(b"fqn=conv", first) != _layers_digest(b"fqn=conv", second)


# What can go wrong


def test_too_small_workspace_says_what_is_needed(built: Project, flavour: Flavour) -> None:
    """An engine that needs more than its workspace is an error with the size that it needs, and that size is enough."""
    with pytest.raises(BuildError, match="the workspace is too small: 16,777,216 bytes") as caught:
        build(flavour, request_of(built, profile=LARGE))

    needed = re.search(r"needs ([\d,]+)", str(caught.value))
    assert needed
    assert build(flavour, request_of(built, profile=LARGE, workspace_bytes=int(needed[1].replace(",", "")))).plan


def test_too_small_workspace_says_what_to_write(built: Project, flavour: Flavour) -> None:
    """The size to put into the configuration is enough, too."""
    with pytest.raises(BuildError) as caught:
        build(flavour, request_of(built, profile=LARGE))

    advice = re.search(r"`workspaces` in pipeline.yaml at least (\d+)MiB", str(caught.value))
    assert advice
    assert build(flavour, request_of(built, profile=LARGE, workspace_bytes=int(advice[1]) * MIB)).plan


@pytest.mark.parametrize("workspace_bytes", [1, 64 * 1024, 4 * MIB])
def test_far_too_small_workspace(built: Project, flavour: Flavour, workspace_bytes: int) -> None:
    """A workspace in which no kernel runs at all (no tactics within the limit) is said to be too small as well."""
    with pytest.raises(BuildError, match=r"(?s)workspace is too small.*`workspaces` in pipeline.yaml"):
        build(flavour, request_of(built, workspace_bytes=workspace_bytes))


def test_unknown_compute_capability(built: Project, flavour: Flavour) -> None:
    """A GPU generation that the flavour does not know is refused, with those that it knows."""
    with pytest.raises(UnsupportedError, match=r"(?s)cannot build for SM 90.*SM120.*SM80"):
        build(flavour, request_of(built, compute_capabilities=(80, 90)))


@pytest.mark.parametrize("content", [b"no graph", b"\x08\x0a\x12"])
def test_unreadable_graph(tmp_path: Path, flavour: Flavour, content: bytes) -> None:
    """A file that is no ONNX graph is an error with the parser's reason."""
    (tmp_path / "bad.onnx").write_bytes(content)

    with pytest.raises(BuildError, match=r"(?s)cannot read the ONNX graph.*got: +\S"):
        build(flavour, EngineRequest(tmp_path / "bad.onnx", RANGE, MIB, (80,)))


def test_missing_graph(tmp_path: Path, flavour: Flavour) -> None:
    """A file that is not there is named."""
    with pytest.raises(BuildError, match=r"gone\.onnx"):
        build(flavour, EngineRequest(tmp_path / "gone.onnx", RANGE, MIB, (80,)))


def test_graph_with_an_unknown_operator(tmp_path: Path, flavour: Flavour) -> None:
    """An operator that TensorRT does not know is named."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("image", "logits")]
    node = helper.make_node("Mystery", ["image"], ["logits"], domain="nobody")
    graph = helper.make_graph([node], "graph", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "a.onnx")

    with pytest.raises(BuildError, match=r"(?s)cannot read the ONNX graph.*Mystery"):
        build(flavour, EngineRequest(tmp_path / "a.onnx", RANGE, MIB, (80,)))


def test_empty_graph(tmp_path: Path, flavour: Flavour) -> None:
    """A graph with nothing in it gives no engine, and the builder's error is passed on."""
    (tmp_path / "empty.onnx").write_bytes(b"")

    with pytest.raises(BuildError, match=r"(?s)the builder gave no engine.*at least one output"):
        build(flavour, EngineRequest(tmp_path / "empty.onnx", RANGE, MIB, (80,)))


def test_failure_without_an_error(tmp_path: Path) -> None:
    """A builder that fails in silence is said to have."""
    error = _failure(BuildLog(), EngineRequest(tmp_path, RANGE, MIB, (80,)))

    assert "no error in its log" in str(error)


def test_memory_that_is_not_reported() -> None:
    """A builder that does not say what memory an engine needs is an error, not a zero."""
    with pytest.raises(BuildError, match=r"did not say what memory"):
        _logged(BuildLog(), r"Total Weights Memory: (\d+) bytes")


def test_int8_probe(flavour: Flavour, capfd: pytest.CaptureFixture[str]) -> None:
    """Version 1.4 cannot build int8 convolutions: the probe says so, and nothing on the terminal."""
    assert flavour.version.startswith("1.4.")

    assert int8_convolutions(flavour) == f"tensorrt_rtx {flavour.version} cannot build int8 convolutions"
    assert capfd.readouterr() == ("", "")


def test_int8_probe_agrees_with_a_real_build(built: Project, flavour: Flavour) -> None:
    """What the probe refuses cannot be built: the tiny model's int8 graph gives no engine."""
    assert int8_convolutions(flavour) is not None

    with pytest.raises(BuildError, match="the builder gave no engine"):
        build(flavour, request_of(built, Graph.INT8, workspace_bytes=64 * MIB))


# The log


def test_log_from_many_threads() -> None:
    """No line is lost or mixed with another where many threads write."""
    log = BuildLog()
    start = threading.Barrier(8)

    def write(name: int) -> None:
        start.wait()
        for number in range(500):
            log.add("INFO", f"{name} {number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = log.text().splitlines()
    for name in range(8):
        own = [line.split()[-1] for line in lines if line.split()[1] == str(name)]
        assert own == [str(number) for number in range(500)]


def test_log_tells_errors_from_the_rest() -> None:
    """Errors are the builder's own and its internal ones."""
    log = BuildLog()
    for severity in ("INFO", "ERROR", "WARNING", "INTERNAL_ERROR"):
        log.add(severity, severity.lower())

    assert log.errors() == ["error", "internal_error"]


def test_log_finds_the_last_match() -> None:
    """A search gives the last line that matches."""
    log = BuildLog()
    for number in (1, 2):
        log.add("INFO", f"need {number} bytes")

    found = log.search(r"need (\d)")

    assert found
    assert found[1] == "2"


def test_log_finds_nothing() -> None:
    """A search without a match gives nothing."""
    assert BuildLog().search("anything") is None
