"""How Torch-TensorRT is asked, whichever version is there."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model_artifacts.errors import BuildError, RunError, UnsupportedError
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import (
    Backend,
    BatchRange,
    LayerShare,
    ModuleContents,
    OperatorCalls,
    Precision,
    Setting,
    Tool,
)
from model_artifacts.sessions.torch_tensorrt_runtime import (
    arguments_of,
    check_libraries,
    check_made_here,
    compile_in_time,
    contents_of,
    libraries,
    load,
    load_library,
    of_all_sizes,
    reason_of,
    unlimited_sizes,
)
from pipeline.adapters import torch_tensorrt_builder
from pipeline.adapters.torch_tensorrt_builder import compile_ahead, known_settings, options_of, save
from pipeline.config.settings import TorchTensorRTConfig
from tests.support.factories import Branches
from tests.support.hosts import module_request
from tests.support.torch_tensorrt_stub import LAYERS, Library

if TYPE_CHECKING:
    from pathlib import Path

ALL = frozenset(
    {"workspace_size", "min_block_size", "disable_tf32", "use_explicit_typing", "pass_through_build_failures"}
    | {"timing_cache_path", "optimization_level", "require_full_compilation"}
    | {"cache_built_engines", "reuse_cached_engines", "engine_cache_dir", "immutable_weights"}
)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let modules run where there is no GPU."""
    monkeypatch.setattr(torch_tensorrt_builder, "device_of", lambda _: torch.device("cpu"))


def values(settings: tuple[Setting, ...]) -> dict[str, str]:
    """Return the applied settings' values."""
    return {setting.name: setting.value for setting in settings if setting.applied}


def network() -> nn.Module:
    """Return a small network for 32x32 images."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


def test_defaults_are_said_in_full(tmp_path: Path) -> None:
    """A version that knows everything gets the request's values, and the record has them but for paths."""
    options = options_of(module_request(tmp_path), ALL, tunes=True)
    assert options.arguments == {
        "workspace_size": 2**24,
        "min_block_size": 5,
        "disable_tf32": False,
        "use_explicit_typing": True,
        "pass_through_build_failures": True,
        "timing_cache_path": str(tmp_path / "timings.bin"),
    }
    assert values(options.settings) == {
        "workspace_size": "16777216",
        "min_block_size": "5",
        "disable_tf32": "off",
        "use_explicit_typing": "on",
        "pass_through_build_failures": "on",
    }


@pytest.mark.parametrize(
    ("precision", "disabled"), [(Precision.FP32, True), (Precision.TF32, False), (Precision.BF16, False)]
)
def test_tf32_is_off_for_strict_fp32_only(tmp_path: Path, precision: Precision, *, disabled: bool) -> None:
    """Strict FP32 is the only precision that TF32 would falsify."""
    assert (
        options_of(module_request(tmp_path, precision=precision), ALL, tunes=True).arguments["disable_tf32"] is disabled
    )


def test_an_engine_cache_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """The cache is asked for only where it is on, and then lies in the variant's own folder."""
    on = options_of(module_request(tmp_path, settings=TorchTensorRTConfig(engine_cache=True)), ALL, tunes=True)
    assert on.arguments["engine_cache_dir"] == str(tmp_path / "engines")
    assert (on.arguments["cache_built_engines"], on.arguments["reuse_cached_engines"]) == (True, True)
    assert on.arguments["immutable_weights"] is False  # or the library keeps nothing, and says so in a warning
    assert "cache_built_engines" not in options_of(module_request(tmp_path), ALL, tunes=True).arguments


def test_what_a_version_lacks_is_not_passed_and_is_recorded(tmp_path: Path) -> None:
    """A setting that the version does not have is left out of the call, and the record says why."""
    settings = TorchTensorRTConfig(optimization_level=4)
    options = options_of(module_request(tmp_path, settings=settings), ALL - {"optimization_level"}, tunes=True)
    assert "optimization_level" not in options.arguments
    assert (
        Setting(name="optimization_level", value="4", applied=False, note="this version has no such setting")
        in options.settings
    )


@pytest.mark.parametrize(
    ("precision", "refused"),
    [(Precision.FP32, {"disable_tf32", "optimization_level"}), (Precision.FP16, {"optimization_level"})],
)
def test_what_tensorrt_rtx_ignores_is_recorded(tmp_path: Path, precision: Precision, refused: set[str]) -> None:
    """As for plain engines: TensorRT-RTX multiplies FP32 in TF32, and has no levels, whatever it is told."""
    request = module_request(tmp_path, precision=precision, settings=TorchTensorRTConfig(optimization_level=4))
    options = options_of(request, ALL, tunes=False)
    assert {setting.name for setting in options.settings if not setting.applied} == refused
    assert not refused & set(options.arguments)
    assert all("TensorRT-RTX" in setting.note for setting in options.settings if not setting.applied)


def test_torch_compile_cannot_require_full_compilation(tmp_path: Path) -> None:
    """The library ignores it there; here the record says so."""
    request = module_request(
        tmp_path, mode=Backend.TORCH_COMPILE, settings=TorchTensorRTConfig(require_full_compilation=True)
    )
    options = options_of(request, ALL, tunes=True)
    (setting,) = (item for item in options.settings if item.name == "require_full_compilation")
    assert (setting.applied, "leaves to PyTorch" in setting.note) == (False, True)
    assert "require_full_compilation" not in options.arguments


@given(
    st.builds(
        TorchTensorRTConfig,
        min_block_size=st.integers(1, 10**6),
        optimization_level=st.none() | st.integers(0, 5),
        require_full_compilation=st.booleans(),
        engine_cache=st.booleans(),
    ),
    st.sampled_from([Backend.DYNAMO, Backend.TORCH_COMPILE]),
    st.sampled_from([Precision.FP32, Precision.TF32, Precision.FP16]),
)
def test_a_record_gives_back_what_was_passed(
    tmp_path_factory: pytest.TempPathFactory, settings: TorchTensorRTConfig, mode: Backend, precision: Precision
) -> None:
    """A recipe's settings stand for the arguments of the build, but for its caches: neither timings nor engines."""
    request = module_request(tmp_path_factory.getbasetemp(), mode=mode, precision=precision, settings=settings)
    options = options_of(request, ALL, tunes=True)
    caches = {"cache_built_engines", "reuse_cached_engines", "engine_cache_dir"}
    passed = {name: value for name, value in options.arguments.items() if name not in caches}
    assert arguments_of(options.settings) == {**passed, "timing_cache_path": os.devnull}


def test_a_setting_that_means_nothing_is_refused() -> None:
    """A recipe that was edited is not guessed at."""
    strange = (Setting(name="workspace_size", value="a lot", applied=True),)
    with pytest.raises(RunError, match="cannot be read") as caught:
        arguments_of(strange)
    assert "a lot" in str(caught.value)


def test_versions_that_belong_together_pass() -> None:
    """A patch release or a local build of torch is the same torch."""
    check_libraries("2.11.0+cu130", Tool(name="torch-tensorrt-rtx", version="2.11.1"))


@pytest.mark.parametrize(
    ("torch_version", "library", "words"),
    [
        ("2.12.0", "2.11.0", ["expected: torch-tensorrt 2.12", "got:      torch-tensorrt 2.11.0 beside torch 2.12.0"]),
        ("absent", "2.11.0", ["torch is not installed here"]),
        ("2.11.0", "absent", ["Torch-TensorRT is not installed here"]),
    ],
)
def test_versions_that_do_not_are_refused(torch_version: str, library: str, words: list[str]) -> None:
    """The message names both versions, or what is missing."""
    with pytest.raises(UnsupportedError) as caught:
        check_libraries(torch_version, Tool(name="torch-tensorrt", version=library))
    assert all(word in str(caught.value) for word in words)


def test_a_module_of_these_versions_is_taken() -> None:
    """What was made here can be loaded here."""
    check_made_here(libraries())


def test_a_module_that_does_not_say_its_tensorrt_is_taken() -> None:
    """As older records do not; one that names another TensorRT than the one that is here is refused."""
    *known, engines = libraries()
    assert engines.name == "tensorrt_rtx"
    check_made_here(tuple(known))
    with pytest.raises(RunError, match="made by other versions"):
        check_made_here((*known, engines.model_copy(update={"version": "1.0"})))


def test_a_module_of_another_version_is_refused() -> None:
    """The message names the versions that made it and those that are here."""
    with pytest.raises(RunError, match="made by other versions") as caught:
        check_made_here((Tool(name="torch", version="2.10.0"), Tool(name="torch-tensorrt", version="2.10.0")))
    assert "expected: torch 2.10.0, torch-tensorrt 2.10.0" in str(caught.value)
    assert f"got:      torch {torch.__version__.partition('+')[0]}" in str(caught.value)


@pytest.mark.skipif(missing_driver() is None, reason="there is a driver here")
def test_without_a_driver_the_library_is_not_even_imported() -> None:
    """Its import fails there; the reason is the driver's absence."""
    with pytest.raises(UnsupportedError, match="driver"):
        load_library()


def test_settings_are_read_from_the_version_that_is_there() -> None:
    """Fields of its settings and parameters of its compiler count; the catch-all does not."""
    known = known_settings(Library())
    assert {"workspace_size", "use_explicit_typing", "device"} <= known
    assert not known & {"kwargs", "optimization_level"}


@pytest.mark.parametrize("profile", [BatchRange(min=2, opt=2, max=2), BatchRange(min=1, opt=2, max=4)], ids=str)
def test_a_saved_module_computes_what_the_model_does(tmp_path: Path, profile: BatchRange) -> None:
    """Compiled, saved and loaded, it gives the model's logits for every batch size that it is for."""
    library, model, request = Library(), network(), module_request(tmp_path, profile=profile)
    compiled = compile_ahead(library, model, request)
    save(library, compiled.module, request, tmp_path / "model.pt2")
    loaded = load(library, Backend.DYNAMO, tmp_path / "model.pt2", None)
    for size in profile.sizes:
        images = torch.rand(size, 3, 32, 32)
        assert torch.allclose(loaded(images), model(images), atol=1e-6)
    assert (library.saved_as, library.seen[0]["workspace_size"]) == (["exported_program"], 2**24)


def test_a_package_is_asked_for_by_its_format(tmp_path: Path) -> None:
    """The same module as an AOTInductor package is another format of the same call."""
    library, request = Library(), module_request(tmp_path, mode=Backend.DYNAMO_AOTI)
    save(library, compile_ahead(library, network(), request).module, request, tmp_path / "model.pt2")
    assert library.saved_as == ["aot_inductor"]


def test_a_model_that_does_not_trace_is_a_clear_error(tmp_path: Path) -> None:
    """Control flow that depends on values is named as what torch does not take."""
    with pytest.raises(BuildError, match="torch cannot trace the model") as caught:
        compile_ahead(Library(), Branches(), module_request(tmp_path))
    assert "no control flow that depends on the values of tensors" in str(caught.value)


def test_in_time_a_graph_that_breaks_is_no_silent_eager() -> None:
    """What torch would run as two graphs with Python between them is an error, which says where in the model."""
    torch.compiler.reset()
    library = Library()
    compiled = compile_in_time(library, Branches(), {}, lambda _: None)
    with torch.inference_mode(), pytest.raises(RuntimeError) as caught:
        compiled(torch.rand(1, 3, 32, 32))
    assert "Data-dependent branching" in reason_of(caught.value)
    assert f"factories.py:{Branches.forward.__code__.co_firstlineno + 2}, in forward" in reason_of(caught.value)
    assert library.seen == []


def test_what_the_library_raises_is_a_clear_error(tmp_path: Path) -> None:
    """The library's own words are in the message."""
    with pytest.raises(BuildError, match="cannot compile the model") as caught:
        compile_ahead(Library(fails="no converter for aten.foo"), network(), module_request(tmp_path))
    assert "no converter for aten.foo" in str(caught.value)


def test_a_file_that_is_no_module_is_a_clear_error(tmp_path: Path) -> None:
    """Bytes that torch does not know are refused with their file's name."""
    (tmp_path / "model.pt2").write_bytes(b"no module")
    with pytest.raises(RunError, match=r"torch cannot load .*model\.pt2"):
        load(Library(), Backend.DYNAMO, tmp_path / "model.pt2", None)


def test_contents_count_engines_and_what_stayed(tmp_path: Path) -> None:
    """An operator behind the engine is named; the engine's layers are counted by type."""
    compiled = compile_ahead(Library(stays=True), network(), module_request(tmp_path)).module
    contents = contents_of(compiled)
    assert (contents.segments, contents.torch_operators) == (1, ("aten.relu.default",))
    assert contents.layers == (LayerShare(precision=Precision.FP16, layers=1, examples=("conv",)),)
    assert contents.libraries == libraries()


def test_contents_of_what_is_all_engine(tmp_path: Path) -> None:
    """Where everything became an engine, nothing is left to name."""
    assert contents_of(compile_ahead(Library(), network(), module_request(tmp_path)).module).torch_operators == ()


class LoadedEngine:
    """What torch reads of an engine in a file."""

    def get_engine_layer_info(self) -> str:
        """Return the inspector's JSON."""
        return json.dumps(LAYERS)


def execute_engine(images: list[Any], engine: LoadedEngine) -> list[Any]:
    """Stand for the operator of this name."""
    del engine
    return images


def test_contents_of_what_was_loaded() -> None:
    """In a file an engine is an object that an operator runs: it is counted, and tells its layers."""
    root, graph = nn.Module(), torch.fx.Graph()
    root.engine = LoadedEngine()  # type: ignore[assignment]  # as torch keeps its own objects
    given = graph.placeholder("images")
    run = graph.call_function(execute_engine, ([given], graph.get_attr("engine")))
    once = graph.call_function(torch.ops.aten.relu.default, (run,))
    graph.output(graph.call_function(torch.ops.aten.relu.default, (once,)))
    found = contents_of(torch.fx.GraphModule(root, graph))
    assert (found.segments, found.torch_operators) == (1, ("aten.relu.default",))
    assert found.calls == (OperatorCalls(name="aten.relu.default", calls=2),)
    assert found.layers == (LayerShare(precision=Precision.FP16, layers=1, examples=("conv",)),)


def test_contents_of_what_is_all_torch(tmp_path: Path) -> None:
    """Where nothing became an engine, every operator of the model is named."""
    contents = contents_of(compile_ahead(Library(engines=False), network(), module_request(tmp_path)).module)
    assert contents.segments == 0
    assert "aten.conv2d.default" in contents.torch_operators


def test_in_time_each_batch_size_is_compiled_once() -> None:
    """A batch of another size is compiled for itself; one of a known size is not compiled again."""
    torch.compiler.reset()
    library, model, seen = Library(), network(), list[Any]()
    compiled = compile_in_time(library, model, {"min_block_size": 3}, seen.append)
    for size in (1, 2, 1, 2):
        images = torch.rand(size, 3, 32, 32)
        with torch.inference_mode():
            assert torch.allclose(compiled(images), model(images), atol=1e-6)
    assert (len(seen), library.seen) == (2, [{"min_block_size": 3}] * 2)


def run_ten_graphs(model: nn.Module) -> None:
    """Run five batch sizes in two layouts."""
    for size in range(1, 6):
        images = torch.rand(size, 3, 32, 32)
        for form in (torch.contiguous_format, torch.channels_last):
            model(images.to(memory_format=form))


def test_in_time_as_many_sizes_are_compiled_as_there_are() -> None:
    """Torch's default would run everything after the eighth graph without the library."""
    torch.compiler.reset()
    library = Library()
    with torch.inference_mode(), unlimited_sizes():
        run_ten_graphs(compile_in_time(library, network(), {}, lambda _: None))
    assert len(library.seen) == 10


def test_in_time_too_many_sizes_are_no_silent_eager() -> None:
    """Whoever forgets to raise torch's limit gets an error, not a model that runs without the library."""
    torch.compiler.reset()
    compiled = compile_in_time(Library(), network(), {}, lambda _: None)
    with torch.inference_mode(), pytest.raises(Exception, match="fullgraph=True"):
        run_ten_graphs(compiled)


def contents(segments: int, operators: tuple[str, ...], **layers: int) -> ModuleContents:
    """Return what was compiled for one batch size."""
    shares = tuple(
        LayerShare(precision=Precision(name), layers=count, examples=(name,)) for name, count in layers.items()
    )
    return ModuleContents(segments=segments, torch_operators=operators, layers=shares, libraries=())


def test_a_record_is_of_all_sizes() -> None:
    """What any of them left to PyTorch or computed in another type is in it, and nothing is counted twice."""
    found = of_all_sizes([contents(1, ("a",), fp16=20), contents(2, (), fp16=19, fp32=1), contents(1, ("b",), fp16=20)])
    assert found == contents(2, ("a", "b"), fp16=20, fp32=1)


def test_calls_are_those_of_the_size_with_most() -> None:
    """Compiled once for each size, an operator that is called twice in each is called twice."""
    first = contents(1, ("a", "b")).model_copy(update={"calls": calls(a=1, b=2)})
    second = contents(1, ("a", "b")).model_copy(update={"calls": calls(a=3, b=2)})
    assert of_all_sizes([first, second]).calls == calls(a=3, b=2)


def calls(**times: int) -> tuple[OperatorCalls, ...]:
    """Return how often operators are called."""
    return tuple(OperatorCalls(name=name, calls=count) for name, count in times.items())


def test_a_size_without_an_engine_is_none_at_all() -> None:
    """One batch size that is all PyTorch is not hidden by the others."""
    assert of_all_sizes([contents(1, ("a", "b")), contents(0, ("c",))]).segments == 0


def test_in_time_a_failure_is_no_silent_eager() -> None:
    """What the library raises reaches the caller."""
    torch.compiler.reset()
    compiled = compile_in_time(Library(fails="no engine"), network(), {}, lambda _: None)
    with torch.inference_mode(), pytest.raises(Exception, match="no engine"):
        compiled(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("mode", "name", "version", "refused"),
    [
        (Backend.DYNAMO_AOTI, "torch-tensorrt-rtx", "2.11.0", True),
        (Backend.DYNAMO_AOTI, "torch-tensorrt-rtx", "2.12.0", False),
        (Backend.DYNAMO_AOTI, "torch-tensorrt", "2.11.0", False),
        (Backend.DYNAMO, "torch-tensorrt-rtx", "2.11.0", False),
    ],
)
def test_format_that_a_version_cannot_load_is_not_made(
    mode: Backend,
    name: str,
    version: str,
    refused: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    """A package that crashes every process is no artifact; other versions are tried."""
    said = pytest.raises(UnsupportedError, match="crashes every process that loads it") if refused else nullcontext()
    with said:
        torch_tensorrt_builder.check_format(mode, Tool(name=name, version=version))
