"""How modules and recipes are made; the compiler itself stands in for Torch-TensorRT, see `tests.torchtrt_stub`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from pipeline import torchtrt, torchtrt_adapter
from pipeline.environment import torch_tensorrt
from pipeline.errors import BuildError, UnsupportedError
from pipeline.plan import Plan
from pipeline.project import Project
from pipeline.records import Backend, Key, Precision, Variant
from tests.hosts import H100, host
from tests.torchtrt_stub import Library

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(built: Project) -> Project:
    """The finished tiny project, planned for a host with an H100."""
    return Project(Plan(built.config, host(H100)), built.paths)


def variant_of(project: Project, backend: Backend, precision: Precision = Precision.FP16) -> Variant:
    """Return the first variant of a kind: batch 1, the smallest workspace."""
    return next(item for item in project.plan.variants if (item.backend, item.precision) == (backend, precision))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Torch-TensorRT's stand-in, and a CPU that is taken for a GPU."""
    found = Library()
    use(found, monkeypatch)
    return found


def use(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a stand-in compile on the CPU."""
    torch.compiler.reset()
    monkeypatch.setattr(torchtrt_adapter, "load_library", lambda: library)
    monkeypatch.setattr(torchtrt_adapter, "device_of", lambda _: torch.device("cpu"))
    monkeypatch.setattr("pipeline.torchtrt.cuda.use", lambda _: None)


@pytest.mark.parametrize("backend", [Backend.DYNAMO, Backend.DYNAMO_AOTI])
def test_a_module_is_saved_with_its_contents(
    project: Project, library: Library, tmp_path: Path, backend: Backend
) -> None:
    """What is made ahead of time is a file, and the record says what is in it."""
    made = torchtrt._make(project, variant_of(project, backend), H100, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").stat().st_size > 0
    assert (made.contents.segments, made.contents.torch_operators) == (1, ())
    assert library.saved_as == ["aot_inductor" if backend is Backend.DYNAMO_AOTI else "exported_program"]


def test_a_module_in_time_is_compiled_for_every_size_of_its_profile(
    project: Project, library: Library, tmp_path: Path
) -> None:
    """What is compiled just in time is compiled now, too, for the smallest, the best and the largest batch."""
    variant = next(item for item in project.plan.variants if item.name == "torch_compile-fp16-b1-2-4-ws16MiB")
    made = torchtrt._make(project, variant, H100, tmp_path / "recipe.json")
    assert len(library.seen) == 3
    assert made.contents.segments == 1
    assert not (tmp_path / "recipe.json").exists()


def test_the_workspace_reaches_the_compiler(project: Project, library: Library, tmp_path: Path) -> None:
    """Each cell of the matrix compiles with its own workspace."""
    torchtrt._make(project, variant_of(project, Backend.DYNAMO), H100, tmp_path / "model.pt2")
    assert library.seen[0]["workspace_size"] == 16 * 2**20


def test_what_stays_in_pytorch_is_recorded(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A module that is not all TensorRT says so."""
    use(Library(stays=True), monkeypatch)
    made = torchtrt._make(project, variant_of(project, Backend.DYNAMO), H100, tmp_path / "model.pt2")
    assert made.contents.torch_operators == ("aten.relu.default",)


@pytest.mark.parametrize("backend", [Backend.DYNAMO, Backend.TORCH_COMPILE])
def test_a_module_that_is_all_pytorch_fails(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: Backend
) -> None:
    """Falling back to PyTorch in silence is no success."""
    use(Library(engines=False), monkeypatch)
    with pytest.raises(BuildError, match="nothing of the model became a TensorRT engine") as caught:
        torchtrt._make(project, variant_of(project, backend), H100, tmp_path / "file")
    assert "min_block_size" in str(caught.value)
    assert "conv" in str(caught.value)


def test_a_failure_in_time_fails_the_build(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Torch-TensorRT raises while it compiles just in time is the build's error."""
    use(Library(fails="out of workspace"), monkeypatch)
    with pytest.raises(BuildError, match="cannot compile the model for batches of 1") as caught:
        torchtrt._make(project, variant_of(project, Backend.TORCH_COMPILE), H100, tmp_path / "recipe.json")
    assert "out of workspace" in str(caught.value)


def test_a_recipe_says_all_that_it_takes(project: Project) -> None:
    """Weights by digest, the factory, sizes, settings and versions: nothing else is needed to make the module again."""
    variant = variant_of(project, Backend.TORCH_COMPILE)
    recipe = torchtrt.recipe_of(project, variant, ())
    source = project.source()
    assert (recipe.weights, recipe.factory, recipe.classes) == (source.weights, source.factory, 10)
    assert (recipe.input_shape, recipe.warm_up) == ((3, 32, 32), (1,))
    assert recipe.libraries == torchtrt_adapter.libraries()


def test_a_host_without_a_gpu_makes_nothing(built: Project) -> None:
    """The reason is the missing GPU."""
    variant = variant_of(built, Backend.DYNAMO)
    with pytest.raises(UnsupportedError):
        torchtrt.make_module(built, variant, Key(fields=()))


def test_versions_that_do_not_belong_together_make_nothing(built: Project) -> None:
    """They are told apart before anything is compiled."""
    project = Project(Plan(built.config, host(H100, torch="2.99.0")), built.paths)
    with pytest.raises(UnsupportedError, match="do not belong together") as caught:
        torchtrt.make_module(project, variant_of(project, Backend.DYNAMO), Key(fields=()))
    assert f"got:      {torch_tensorrt().name} {torch_tensorrt().version} beside torch 2.99.0" in str(caught.value)


def test_each_variant_keeps_its_engines_apart(project: Project) -> None:
    """The library's engine cache does not tell workspaces apart, so that no two variants share a folder."""
    on = project.config.model_copy(
        update={"torch_tensorrt": project.config.torch_tensorrt.model_copy(update={"engine_cache": True})}
    )
    cached = Project(Plan(on, project.plan.host), project.paths)
    modules = [item for item in cached.plan.variants if item.backend.is_torch_tensorrt]
    folders = [torchtrt.request_of(cached, item, H100).engine_cache for item in modules]
    assert len(set(folders)) == len(modules) > 1
    assert torchtrt.request_of(project, modules[0], H100).engine_cache is None
