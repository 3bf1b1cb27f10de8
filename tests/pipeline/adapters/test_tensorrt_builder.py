"""Building engines with the TensorRT that is installed."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper

from model_artifacts.errors import BuildError
from model_artifacts.records import BatchRange, BuiltFor, EngineFlavour, EngineMemory, Graph, Precision, TensorSpec
from model_artifacts.tensorrt.flavour import BuildLog, Flavour, load_flavour
from pipeline.adapters.tensorrt_builder import _failure, _layers_digest, _measure, build_engine, unsupported
from tests.support.engine_requests import MIB, RANGE, build, request_for, request_of
from tests.support.hosts import H100

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project


LARGE = BatchRange(min=256, opt=256, max=256)


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    """The installed TensorRT-RTX."""
    return load_flavour(EngineFlavour.TENSORRT_RTX)


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

    assert wide.weights_bytes is not None
    assert narrow.weights_bytes is not None
    assert wide.weights_bytes >= 4 * (864 + 18432 + 10240)
    assert narrow.weights_bytes < 0.6 * wide.weights_bytes


def test_larger_batches_need_more_memory(built: Project, flavour: Flavour) -> None:
    """The memory for activations grows with the profile's largest batch."""
    small = build(flavour, request_of(built, profile=RANGE))
    large = build(flavour, request_of(built, profile=LARGE, workspace_bytes=64 * MIB))

    assert large.memory.activation_bytes > small.memory.activation_bytes


def test_engine_says_what_it_runs_on(built: Project, flavour: Flavour) -> None:
    """An engine that was built ahead of time names its generations and no GPU."""
    assert build(flavour, request_of(built, compute_capabilities=(80, 120))).built_for == BuiltFor(
        flavour=EngineFlavour.TENSORRT_RTX, version=flavour.version, gpu=None, compute_capabilities=(80, 120)
    )


class _Phases:
    """The phases that a builder reports."""

    def __init__(self) -> None:
        self.phases: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.finished: list[str] = []

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Keep it."""
        del parent
        self.phases[phase] = steps

    def step(self, phase: str, done: int) -> None:
        """Keep it."""
        self.done[phase] = done

    def finish(self, phase: str) -> None:
        """Keep it."""
        self.finished.append(phase)


def test_progress_is_told_of_the_builders_phases(built: Project, flavour: Flavour) -> None:
    """Every phase that begins ends, and no step is past its phase's number of steps."""
    seen = _Phases()

    build_engine(flavour, request_of(built), BuildLog(), seen)

    assert seen.phases
    assert set(seen.finished) == set(seen.phases)
    assert all(done <= seen.phases[phase] for phase, done in seen.done.items())


def test_build_says_nothing_on_the_terminal(
    built: Project, flavour: Flavour, capfd: pytest.CaptureFixture[str]
) -> None:
    """The builder's output, that of native code included, goes into the log."""
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
    profiles = [BatchRange(min=batch, opt=batch, max=batch) for batch in (1, 2, 4)] + [RANGE]

    assert len({build(flavour, request_of(built, profile=profile)).layers_sha256 for profile in profiles}) == 4


def test_other_precision_gives_other_layers(built: Project, flavour: Flavour) -> None:
    """Engines of other precisions are other engines."""
    graphs = (Graph.FP32, Graph.FP16, Graph.BF16)

    assert len({build(flavour, request_of(built, graph)).layers_sha256 for graph in graphs}) == 3


def test_plan_without_kernels_is_compared_as_it_is() -> None:
    """The digest of a plan without names of kernels covers every byte."""
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

    advice = re.search(r"`workspaces` in pipeline.yaml to at least (\d+)MiB", str(caught.value))
    assert advice
    assert build(flavour, request_of(built, profile=LARGE, workspace_bytes=int(advice[1]) * MIB)).plan


@pytest.mark.parametrize("workspace_bytes", [1, 64 * 1024, 4 * MIB])
def test_far_too_small_workspace(built: Project, flavour: Flavour, workspace_bytes: int) -> None:
    """A workspace in which no kernel runs at all (no tactics within the limit) is said to be too small as well."""
    with pytest.raises(BuildError, match=r"(?s)workspace is too small.*`workspaces` in pipeline.yaml"):
        build(flavour, request_of(built, workspace_bytes=workspace_bytes))


@pytest.mark.parametrize("content", [b"no graph", b"\x08\x0a\x12"])
def test_unreadable_graph(tmp_path: Path, flavour: Flavour, content: bytes) -> None:
    """A file that is no ONNX graph is an error with the parser's reason."""
    (tmp_path / "bad.onnx").write_bytes(content)

    with pytest.raises(BuildError, match=r"(?s)cannot read the ONNX graph.*got: +\S"):
        build(flavour, request_for(tmp_path / "bad.onnx"))


def test_missing_graph(tmp_path: Path, flavour: Flavour) -> None:
    """A file that is not there is named."""
    with pytest.raises(BuildError, match=r"gone\.onnx"):
        build(flavour, request_for(tmp_path / "gone.onnx"))


def test_graph_with_an_unknown_operator(tmp_path: Path, flavour: Flavour) -> None:
    """An operator that TensorRT does not know is named."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("image", "logits")]
    node = helper.make_node("Mystery", ["image"], ["logits"], domain="nobody")
    graph = helper.make_graph([node], "graph", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "a.onnx")

    with pytest.raises(BuildError, match=r"(?s)cannot read the ONNX graph.*Mystery"):
        build(flavour, request_for(tmp_path / "a.onnx"))


def test_empty_graph(tmp_path: Path, flavour: Flavour) -> None:
    """A graph with nothing in it gives no engine, and the builder's error is passed on."""
    (tmp_path / "empty.onnx").write_bytes(b"")

    with pytest.raises(BuildError, match=r"(?s)the builder returned no engine.*at least one output"):
        build(flavour, request_for(tmp_path / "empty.onnx"))


def test_failure_without_an_error(tmp_path: Path) -> None:
    """A failure without an error in the log is reported as such."""
    error = _failure(BuildLog(), request_for(tmp_path))

    assert "no error in its log" in str(error)


def test_a_builder_that_cannot_be_created_is_explained(tmp_path: Path, flavour: Flavour) -> None:
    """The bindings raise a TypeError if the library returns no builder; the reason stands in its log."""

    def nothing(_: object) -> None:
        raise TypeError("factory function returned nullptr")

    broken = SimpleNamespace(**{**vars(flavour.module), "Builder": nothing})
    module: Any = broken
    with pytest.raises(BuildError, match=r"(?s)the builder cannot be created.*no error in its log"):
        build(Flavour(flavour.name, flavour.version, module), request_for(tmp_path))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("Exceeded mem budget of 1049576. Need 3146728", "raise `workspaces` in pipeline.yaml to at least 3MiB"),
        ("could not find any implementation within workspace limit", "some operation has no kernel that needs less"),
        ("Cuda Runtime (out of memory)", "the GPU ran out of memory while building"),
        ("OutOfMemory: no room", "the GPU ran out of memory while building"),
        ("something else", "got: +something else"),
    ],
)
def test_failure_says_what_the_log_says(tmp_path: Path, message: str, says: str) -> None:
    """Each reason that a builder's log gives becomes one that a person can act on."""
    log = BuildLog()
    log.add("ERROR", message)

    assert re.search(says, str(_failure(log, request_for(tmp_path))))


def test_memory_that_is_not_reported(flavour: Flavour) -> None:
    """A builder that reports no memory of an engine is an error, not a zero."""
    with pytest.raises(BuildError, match=r"did not report the memory"):
        _measure(flavour, b"plan", BuildLog(), RANGE)


def test_weights_that_are_not_reported_are_unknown(flavour: Flavour) -> None:
    """The size of the weights is unknown, and not zero, if the builder does not report it."""
    log = BuildLog()
    log.add("INFO", "Total Activation Memory: 1024 bytes")

    memory, _ = _measure(flavour, b"plan", log, RANGE)

    assert memory == EngineMemory(activation_bytes=1024, weights_bytes=None)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32, Precision.FP16, Precision.BF16])
def test_what_is_not_quantized_is_not_probed(tmp_path: Path, flavour: Flavour, precision: Precision) -> None:
    """Every precision in floating point counts as supported, without a probe."""
    assert unsupported(flavour, request_for(tmp_path, precision)) is None


@pytest.mark.parametrize(("precision", "needed"), [(Precision.TF32, 80), (Precision.BF16, 80), (Precision.FP8, 89)])
def test_gpu_that_lacks_the_hardware(tmp_path: Path, flavour: Flavour, precision: Precision, needed: int) -> None:
    """A type that the GPU cannot multiply in is refused with the needed and the present compute capability."""
    old = H100.model_copy(update={"name": "Tesla T4", "compute_capability": 75})
    request = replace(request_for(tmp_path, precision), compute_capabilities=(), gpu=old)

    expected = f"{precision.value} needs SM {needed} or later, and the Tesla T4 is SM 75"
    assert unsupported(flavour, request) == expected


def test_engine_for_other_gpus_is_built_on_any(tmp_path: Path, flavour: Flavour) -> None:
    """An engine that is built ahead of time does not depend on the GPU of the building host."""
    old = H100.model_copy(update={"compute_capability": 75})
    request = replace(request_for(tmp_path, Precision.BF16), gpu=old)

    assert unsupported(flavour, request) is None
