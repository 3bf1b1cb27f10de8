"""How torch's modules run, on the CPU; what needs a GPU is in tests/gpu."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model_artifacts.errors import RunError
from model_artifacts.host.factory_code import code_of
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Backend, BatchRange, FileRecord, Key, Layout, Precision, Recipe, Variant
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.module import Loaded, model_of, open_session
from model_artifacts.sessions.torch_model import make_model
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import Artifact, Outcome
from pipeline.stages.build import module as torchtrt
from pipeline.stages.common.modules import load_module
from tests.support.factories import Branches
from tests.support.hosts import H100, host
from tests.support.logits import FP16, distance, images, reference
from tests.support.torch_tensorrt_stub import Library, use

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def project(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the finished tiny project, planned for an H100 that is the CPU, with Torch-TensorRT's stand-in."""
    use(Library(), monkeypatch)
    found = Project.load(copied / "pipeline.yaml")
    return Project(Plan(found.config, host(H100)), found.paths)


def named(project: Project, name: str) -> Variant:
    """Return the variant of this name."""
    return next(item for item in project.plan.variants if item.name == name and "torch" in item.target)


def artifact_of(project: Project, variant: Variant, path: Path, **more: Any) -> Artifact:
    """Return the record of a file that a build made."""
    record = FileRecord(path=path.relative_to(project.paths.root).as_posix(), bytes=1, sha256="0" * 64)
    return Artifact(
        key=Key(fields=()),
        built_at=project.source().built_at,
        variant=variant,
        outcome=Outcome.DONE,
        file=record,
        **more,
    )


def made(project: Project, name: str) -> Artifact:
    """Build a Torch-TensorRT variant as `make_module` does, but in this process."""
    variant = named(project, name)
    in_time = variant.backend is Backend.TORCH_COMPILE
    path = project.paths.recipe(variant) if in_time else project.paths.module(variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = torchtrt._make(project, variant, H100, path)
    if in_time:
        write_record(path, torchtrt.recipe_of(project, variant, result.settings))
    return artifact_of(project, variant, path, module=result.contents)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("eager-fp32", 1e-5),
        ("eager-fp16", FP16),
        ("eager-fp16-channels_last", FP16),
        ("dynamo-fp16-b1-2-4-ws16MiB", FP16),
        ("torch_compile-fp16-b1-2-4-ws16MiB", FP16),
        ("torch_compile-fp32-b1-2-4-ws16MiB", 1e-5),
    ],
)
@pytest.mark.parametrize("layout", list(Layout))
def test_every_module_gives_the_references_logits(project: Project, name: str, bound: float, layout: Layout) -> None:
    """Loaded from its file or made from its recipe, it gives the reference's logits, however the images lie."""
    variant = named(project, name)
    path = project.file(project.source().weights)
    artifact = made(project, name) if variant.backend.is_torch_tensorrt else artifact_of(project, variant, path)
    module = load_module(project, artifact, H100)
    with open_session(module, variant, (3, 32, 32), None) as run:
        for size in (4, 1, 3):
            assert distance(run(images(project, size), layout), reference(project, size)) < bound


def test_weights_are_contiguous_whatever_the_factory_gave(project: Project) -> None:
    """A recipe's weights never lie in channels_last, which gave wrong numbers without a warning."""
    recipe = torchtrt.recipe_of(project, named(project, "torch_compile-fp16-b1-ws16MiB"), ())
    factory = "tests.support.factories:in_channels_last"
    given = [tensor for tensor in make_model(factory).parameters() if tensor.ndim == 4]
    assert not all(tensor.is_contiguous() for tensor in given)
    model = model_of(project.paths.root, recipe.model_copy(update={"factory": factory, "code": code_of(factory)}))
    weights = [tensor for tensor in model.parameters() if tensor.ndim == 4]
    assert weights
    assert all(tensor.is_contiguous() for tensor in weights)
    assert {tensor.dtype for tensor in weights} == {torch.float16}


def test_only_the_weights_of_a_baseline_lie_in_channels_last(project: Project) -> None:
    """The baseline that users compare with has them, and says so in its name."""
    path = project.file(project.source().weights)
    module = load_module(project, artifact_of(project, named(project, "eager-fp16-channels_last"), path), H100)
    weights = [tensor for tensor in module.module.parameters() if tensor.ndim == 4]
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in weights)


def test_a_recipe_of_other_weights_is_refused(project: Project) -> None:
    """Both digests are named, and nothing of the file is used."""
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    weights = project.file(project.source().weights)
    shutil.copy(weights, weights.with_suffix(".old"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match="holds other weights than the recipe was made for") as caught:
        load_module(project, artifact, H100)
    assert project.source().weights.sha256 in str(caught.value)


def test_a_recipe_of_other_code_is_refused_before_it_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that fit another network of the same shapes would give its numbers: both digests are named."""
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    monkeypatch.setattr("model_artifacts.sessions.module.code_of", lambda _: "1.2.3")
    monkeypatch.setattr("model_artifacts.sessions.module.assemble", None)
    with pytest.raises(RunError, match="is not what the recipe was made with") as caught:
        load_module(project, artifact, H100)
    assert "got:      1.2.3" in str(caught.value)
    assert f"expected: {sha256_of(Path('tests/support/tiny_model.py'))}" in str(caught.value)


def test_a_recipe_of_other_versions_is_refused(project: Project) -> None:
    """What the recipe says made it counts, too, whatever the record beside it says."""
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    assert artifact.file is not None
    path = project.file(artifact.file)
    recipe = read_record(path, Recipe)
    write_record(path, recipe.model_copy(update={"libraries": recipe.libraries[:1]}))
    with pytest.raises(RunError, match="made by other versions"):
        load_module(project, artifact, H100)


def test_a_recipe_is_compiled_once_its_session_is_open(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """No caller waits for the compiler at a batch size that the recipe names; what was made here can be told."""
    artifact = made(project, "torch_compile-fp16-b1-2-4-ws16MiB")
    library = Library()
    use(library, monkeypatch)
    with open_session(load_module(project, artifact, H100), artifact.variant, (3, 32, 32), None) as run:
        assert len(library.seen) == 3
        run(images(project, 4))
        contents = run.contents()
    assert len(library.seen) == 3
    assert contents is not None
    assert (contents.segments, contents.torch_operators) == (1, ())


def test_a_saved_module_tells_its_engines_once_loaded(project: Project) -> None:
    """What a fresh process gets out of the file is what is told, not what the build had in memory."""
    artifact = made(project, "dynamo-fp16-b1-ws16MiB")
    with open_session(load_module(project, artifact, H100), artifact.variant, (3, 32, 32), None) as run:
        contents = run.contents()
    assert contents is not None
    assert contents.segments == 1


def test_a_recipe_is_made_again_without_the_hosts_timings(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's default is one file in /tmp that every user of the host reads and writes."""
    library = Library()
    use(library, monkeypatch)
    artifact = made(project, "torch_compile-fp16-b1-ws16MiB")
    with open_session(load_module(project, artifact, H100), artifact.variant, (3, 32, 32), None) as run:
        run(images(project, 1))
    assert library.seen[-1]["timing_cache_path"] == os.devnull


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"factory": "os:mkdir"}, r"(?s)calls another function.*tests\.tiny_model:make.*os:mkdir"),
        (
            lambda recipe: {"weights": recipe.weights.model_copy(update={"path": "../elsewhere"})},
            r"names a file outside its folder: \.\./elsewhere",
        ),
    ],
)
def test_a_recipe_leads_nowhere_else(
    project: Project, change: Callable[[Recipe], dict[str, object]], message: str
) -> None:
    """Neither to another function than the model's, nor out of the folder."""
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
    with pytest.raises(RunError, match="made by other versions"):
        load_module(project, artifact.model_copy(update={"module": older}), H100)


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda batch: batch.astype(np.float64), "float64"),
        (lambda batch: batch[:, :, :16], "(2, 3, 16, 32)"),
        (lambda batch: np.concatenate([batch] * 3), "(6, 3, 32, 32)"),
        (lambda batch: batch[:0], "(0, 3, 32, 32)"),
        (lambda batch: batch.transpose(0, 1, 3, 2), "strides"),
    ],
)
def test_what_a_module_does_not_take_is_refused(project: Project, change: Any, got: str) -> None:
    """A wrong type, shape, batch or layout is refused with what was expected and got; the session goes on."""
    artifact = made(project, "dynamo-fp16-b1-2-4-ws16MiB")
    with open_session(load_module(project, artifact, H100), artifact.variant, (3, 32, 32), None) as run:
        with pytest.raises(RunError, match="takes other batches") as caught:
            run(change(images(project, 2)))
        assert got in str(caught.value)
        assert "expected: float32 (1 to 4, 3, 32, 32), contiguous" in str(caught.value)
        assert distance(run(images(project, 2)), reference(project, 2)) < FP16


def test_what_a_module_raises_is_a_clear_error(project: Project) -> None:
    """The model's own error is translated, with the size of the batch."""
    variant = named(project, "eager-fp32")
    with (
        open_session(Loaded(torch.nn.Linear(3, 3)), variant, (3, 32, 32), None) as run,
        pytest.raises(RunError, match="cannot run a batch of 2"),
    ):
        run(images(project, 2))


def test_a_session_compiles_every_size_and_layout(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's default of eight graphs for a module is no reason to run without Torch-TensorRT after the eighth."""
    library = Library()
    use(library, monkeypatch)
    profile = BatchRange(min=1, opt=2, max=5)
    variant = named(project, "torch_compile-fp32-b1-ws16MiB").model_copy(update={"profile": profile})
    module = torch_tensorrt_runtime.compile_in_time(library, torch.nn.Flatten(), {}, lambda _: None)
    with open_session(Loaded(module), variant, (3, 32, 32), None) as run:
        for size in range(1, 6):
            for layout in Layout:
                run(images(project, size), layout)
    assert len(library.seen) == 10


def test_inductor_takes_a_model_as_one_graph(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline that runs in Python between two graphs would be no torch.compile to compare with."""
    monkeypatch.setattr("pipeline.stages.common.modules.restore_model", lambda _: Branches())
    variant = named(project, "inductor-fp16")
    module = load_module(project, artifact_of(project, variant, project.file(project.source().weights)), H100)
    with (
        open_session(module, variant, (3, 32, 32), None) as run,
        pytest.raises(RunError, match="cannot run a batch of 2") as caught,
    ):
        run(images(project, 2))
    assert "factories.py:" in str(caught.value)


def test_a_session_on_the_cpu_has_no_stream(project: Project) -> None:
    """What is timed on a GPU cannot be timed here, and says so."""
    variant = named(project, "eager-fp32")
    with (
        open_session(Loaded(torch.nn.Identity()), variant, (3, 32, 32), None) as run,
        pytest.raises(RunError, match="no CUDA stream"),
    ):
        _ = run.stream


@pytest.mark.parametrize(("name", "tf32"), [("eager-fp32", False), ("eager-fp16", True)])
def test_only_strict_fp32_forbids_tf32(project: Project, name: str, *, tf32: bool) -> None:
    """Within a session TF32 is off for strict FP32 alone, no gradients are kept, and afterwards all is as before."""
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision())
    variant = named(project, name)
    with open_session(Loaded(torch.nn.Identity()), variant, (3, 32, 32), None):
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert (torch.get_float32_matmul_precision() == "high") is tf32
        assert torch.is_inference_mode_enabled()
    now = (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision())
    assert now == before
    assert variant.precision in {Precision.FP32, Precision.FP16}
