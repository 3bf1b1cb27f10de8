"""Loading and running modules of Torch-TensorRT, whose part a stand-in plays."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import fx, nn

from model_artifacts.errors import RunError, UnsupportedError
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import Backend, LayerShare, ModuleContents, OperatorCalls, Precision, Setting, Tool
from model_artifacts.sessions import torch_tensorrt_runtime
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
    tracing,
)
from pipeline.adapters import torch_tensorrt_builder
from pipeline.adapters.torch_tensorrt_builder import compile_ahead
from tests.support.factories import Branches
from tests.support.hosts import module_request
from tests.support.torch_tensorrt_stub import LAYERS, Library, network

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let modules run where there is no GPU."""
    monkeypatch.setattr(torch_tensorrt_builder, "device_of", lambda _: torch.device("cpu"))


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
    """The message names both versions, or the missing library."""
    with pytest.raises(UnsupportedError) as caught:
        check_libraries(torch_version, Tool(name="torch-tensorrt", version=library))
    assert all(word in str(caught.value) for word in words)


def test_a_module_of_these_versions_is_taken() -> None:
    """A module that was built with the installed versions loads."""
    check_made_here(libraries())


def test_a_module_that_does_not_say_its_tensorrt_is_taken() -> None:
    """Older records name no TensorRT and are accepted; a record with another TensorRT is refused."""
    *known, engines = libraries()
    assert engines.name == "tensorrt_rtx"
    check_made_here(tuple(known))
    with pytest.raises(RunError, match="other versions made the module"):
        check_made_here((*known, engines.model_copy(update={"version": "1.0"})))


def test_a_module_of_another_version_is_refused() -> None:
    """The message names the versions that made it and those that are here."""
    with pytest.raises(RunError, match="other versions made the module") as caught:
        check_made_here((Tool(name="torch", version="2.10.0"), Tool(name="torch-tensorrt", version="2.10.0")))
    assert "expected: torch 2.10.0, torch-tensorrt 2.10.0" in str(caught.value)
    assert f"got:      torch {torch.__version__.partition('+')[0]}" in str(caught.value)


@pytest.mark.skipif(missing_driver() is None, reason="there is a driver here")
def test_without_a_driver_the_library_is_not_even_imported() -> None:
    """Its import fails there; the reason is the driver's absence."""
    with pytest.raises(UnsupportedError, match="driver"):
        load_library()


@pytest.mark.parametrize(("given", "level"), [(logging.NOTSET, logging.ERROR), (logging.DEBUG, logging.DEBUG)])
def test_an_import_leaves_the_applications_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: int, level: int
) -> None:
    """Filters of warnings, the threshold of all loggers and a level that was set are as before the import."""
    (tmp_path / "torch_tensorrt.py").write_text(
        "import logging, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "logging.getLogger('torch_tensorrt').setLevel(logging.INFO)\n"
    )
    logger = logging.getLogger("torch_tensorrt")
    monkeypatch.setattr(logger, "level", given)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    monkeypatch.setattr(torch_tensorrt_runtime, "missing_driver", lambda: None)
    monkeypatch.setattr(torch_tensorrt_runtime, "check_libraries", lambda *_: None)
    before = list(warnings.filters), logging.root.manager.disable
    load_library()
    monkeypatch.delitem(sys.modules, "torch_tensorrt")
    assert (list(warnings.filters), logging.root.manager.disable) == before
    assert logger.level == level


def test_in_time_a_graph_that_breaks_is_no_silent_eager() -> None:
    """A model that torch would split into two graphs is an error that names the line of the model."""
    torch.compiler.reset()
    library = Library()
    compiled = compile_in_time(library, Branches(), {}, lambda _: None)
    with torch.inference_mode(), pytest.raises(RuntimeError) as caught:
        compiled(torch.rand(1, 3, 32, 32))
    assert "Data-dependent branching" in reason_of(caught.value)
    assert f"factories.py:{Branches.forward.__code__.co_firstlineno + 2}, in forward" in reason_of(caught.value)
    assert library.seen == []


def test_a_file_that_is_no_module_is_a_clear_error(tmp_path: Path) -> None:
    """A file of unknown bytes is refused with its name."""
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
    """A model that is one engine has no operators left in PyTorch."""
    assert contents_of(compile_ahead(Library(), network(), module_request(tmp_path)).module).torch_operators == ()


class LoadedEngine:
    """Torch's view of an engine in a file."""

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
    """A model without an engine lists all of its operators."""
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
    with torch.inference_mode(), tracing(constant_weights=False):
        run_ten_graphs(compile_in_time(library, network(), {}, lambda _: None))
    assert len(library.seen) == 10


@pytest.mark.parametrize("constant", [True, False], ids=["constants", "inputs"])
def test_in_time_weights_are_constants_or_inputs(constant: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """TensorRT arranges constant weights once, and inputs anew in every run."""
    torch.compiler.reset()
    found: list[nn.Module] = []
    model = network()
    with torch.inference_mode(), tracing(constant_weights=constant):
        compile_in_time(Library(), model, {}, found.append)(torch.rand(2, 3, 32, 32))
    (part,) = found
    assert isinstance(part, fx.GraphModule)
    inputs = [node for node in part.graph.nodes if node.op == "placeholder"]
    assert len(inputs) == (1 if constant else 1 + len(list(model.parameters())))


def test_in_time_too_many_sizes_are_no_silent_eager() -> None:
    """Exceeding torch's limit of recompilations is an error, not an eager run."""
    torch.compiler.reset()
    compiled = compile_in_time(Library(), network(), {}, lambda _: None)
    with torch.inference_mode(), pytest.raises(Exception, match="fullgraph=True"):
        run_ten_graphs(compiled)


def contents(segments: int, operators: tuple[str, ...], **layers: int) -> ModuleContents:
    """Return the contents of a module that was compiled for one batch size."""
    shares = tuple(
        LayerShare(precision=Precision(name), layers=count, examples=(name,)) for name, count in layers.items()
    )
    return ModuleContents(segments=segments, torch_operators=operators, layers=shares, libraries=())


def test_a_record_is_of_all_sizes() -> None:
    """The record has every operator left to PyTorch and every other type, of all sizes, counted once."""
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
    """An error of the library reaches the caller."""
    torch.compiler.reset()
    compiled = compile_in_time(Library(fails="no engine"), network(), {}, lambda _: None)
    with torch.inference_mode(), pytest.raises(Exception, match="no engine"):
        compiled(torch.rand(1, 3, 32, 32))
