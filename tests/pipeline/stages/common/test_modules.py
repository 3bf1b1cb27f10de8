"""Loading modules of a project: recipes and saved files, and refused ones."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from model_artifacts.errors import RunError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Argument, Recipe
from model_artifacts.sessions.module import open_session
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.modules import keep_tuned, load_module, tuned_here
from tests.support.factories import Branches
from tests.support.hosts import H100, host
from tests.support.logits import images
from tests.support.modules import IMAGES
from tests.support.parts import long_test
from tests.support.torch_modules import artifact_of, made, named
from tests.support.torch_tensorrt_stub import Library, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from pipeline.records import Artifact


@pytest.fixture
def project(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the finished tiny project, planned for an H100 that is the CPU, with Torch-TensorRT's stand-in."""
    use(Library(), monkeypatch)
    found = Project.load(copied / "pipeline.yaml", STAGES)
    return Project(Plan(found.config, host(H100)), found.paths, STAGES)


def test_only_the_weights_of_a_baseline_lie_in_channels_last(project: Project) -> None:
    """The baseline that users compare with has them, and says so in its name."""
    path = project.file(project.source().weights)
    module = load_module(project, artifact_of(project, named(project, "eager-fp16-channels_last"), path), H100)
    weights = [tensor for tensor in module.module.parameters() if tensor.ndim == 4]
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in weights)


def test_a_recipe_of_other_weights_is_refused(project: Project) -> None:
    """The message has both digests, and nothing of the file is used."""
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    weights = project.file(project.source().weights)
    shutil.copy(weights, weights.with_suffix(".old"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="does not hold the recipe's weights") as caught:
        load_module(project, artifact, H100)
    assert project.source().weights.sha256 in str(caught.value)


def test_a_recipe_of_other_code_is_refused_before_it_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that fit another network of the same shapes would give its numbers: both digests are named."""
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    monkeypatch.setattr("model_artifacts.sessions.torch_tensorrt_runtime.code_of", lambda _: "1.2.3")
    monkeypatch.setattr("model_artifacts.sessions.torch_tensorrt_runtime.assemble", None)
    with pytest.raises(RunError, match="has changed since the recipe was written") as caught:
        load_module(project, artifact, H100)
    assert "got:      1.2.3" in str(caught.value)
    assert f"expected: {sha256_of(Path('tests/support/tiny_model.py'))}" in str(caught.value)


def test_a_recipe_of_other_versions_is_refused(project: Project) -> None:
    """The versions in the recipe count, independent of the record beside it."""
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    assert artifact.file is not None
    path = project.file(artifact.file)
    recipe = read_record(path, Recipe)
    write_record(path, recipe.model_copy(update={"libraries": recipe.libraries[:1]}))
    with pytest.raises(RunError, match="other versions made the module"):
        load_module(project, artifact, H100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"factory": "os:mkdir"}, r"(?s)calls another function.*tests\.support\.tiny_model:make.*os:mkdir"),
        (
            lambda _: {"arguments": (Argument(name="width", value=9),)},
            r"(?s)or with other arguments.*expected: tests\.support\.tiny_model:make\n.*make\(width=9\)",
        ),
        (
            lambda recipe: {"weights": recipe.weights.model_copy(update={"path": "../elsewhere"})},
            r"names a file outside its folder: \.\./elsewhere",
        ),
    ],
)
def test_a_recipe_leads_nowhere_else(
    project: Project, change: Callable[[Recipe], dict[str, object]], message: str
) -> None:
    """A recipe with another function than the model's, or with a path outside the folder, is refused."""
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    path = project.paths.recipe(artifact.variant)
    recipe = read_record(path, Recipe)
    shutil.copy(project.file(recipe.weights), project.paths.root.parent / "elsewhere")
    write_record(path, recipe.model_copy(update=change(recipe)))
    with pytest.raises(RunError, match=message):
        load_module(project, artifact, H100)


def test_a_module_of_other_versions_is_refused_before_it_is_read(project: Project) -> None:
    """A .pt2 that another version wrote is not loaded."""
    artifact = made(project, "dynamo-fp16-b1-ws16MiB")
    assert artifact.module is not None
    older = artifact.module.model_copy(update={"libraries": artifact.module.libraries[:1]})
    with pytest.raises(RunError, match="other versions made the module"):
        load_module(project, artifact.model_copy(update={"module": older}), H100)


def test_inductor_takes_a_model_as_one_graph(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline that runs in Python between two graphs would be no torch.compile to compare with."""
    monkeypatch.setattr("pipeline.stages.common.modules.restore_model", lambda _: Branches())
    variant = named(project, "inductor-fp16")
    module = load_module(project, artifact_of(project, variant, project.file(project.source().weights)), H100)
    with (
        open_session(module, variant, IMAGES, None) as run,
        pytest.raises(RunError, match="cannot run a batch of 2") as caught,
    ):
        run(images(project, 2))
    assert "factories.py:" in str(caught.value)


def _run_inductor(told: Connection, project: Project, artifact: Artifact, *, afresh: bool) -> None:
    """Compile a small network on the CPU as a benchmark's process does; tell whether inductor tuned it."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.stages.common.modules.restore_model", lambda _: network)
        keep_tuned(project, artifact, afresh=afresh)
        module = load_module(project, artifact, None).module
        with torch.inference_mode():
            module(torch.ones(2, 3, 2, 2))
    told.send(tuned_here(artifact))


@long_test
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU")
def test_inductor_tunes_in_the_first_restart_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process loads the first one's kernels; a new first restart removes them."""
    artifact = artifact_of(project, named(project, "inductor-fp16"), project.file(project.source().weights))
    context = multiprocessing.get_context("spawn")
    tuned = []
    for afresh in (True, False):
        ours, theirs = context.Pipe()
        process = context.Process(target=_run_inductor, args=(theirs, project, artifact), kwargs={"afresh": afresh})
        process.start()
        theirs.close()
        tuned.append(ours.recv())
        process.join()
    assert tuned == [True, False]
    folder = project.paths.inductor_cache(artifact.variant)
    assert any(folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0
    assert project.paths.root not in folder.parents
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # given back after the test
    keep_tuned(project, artifact, afresh=True)
    assert not any(folder.iterdir())


def test_other_backends_keep_no_kernels(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only inductor's process has a cache of its own, and nothing else says that it was tuned."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    artifact = artifact_of(project, named(project, "eager-fp32"), project.file(project.source().weights))
    keep_tuned(project, artifact, afresh=True)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert not tuned_here(artifact)
