"""Modules and recipes, with a stand-in for the compiler; see `tests.support.torch_tensorrt_stub`."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model_artifacts.errors import BuildError, UnsupportedError
from model_artifacts.host.environment import installed_torch_tensorrt
from model_artifacts.records import (
    Backend,
    BatchRange,
    EngineFlavour,
    Key,
    Layout,
    Precision,
    Setting,
    TensorSpec,
    Tool,
    Variant,
)
from model_artifacts.sessions import torch_tensorrt_runtime
from model_artifacts.sessions.module import ModuleSession, open_session
from model_artifacts.sessions.torch_model import DTYPES, Typed, assemble, in_layout
from pipeline.adapters import torch_tensorrt_builder
from pipeline.config.settings import ModuleFormat
from pipeline.planning.freshness import is_current
from pipeline.planning.paths import Paths
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.build import module as torchtrt
from pipeline.stages.build.stage import build_variant
from pipeline.stages.common.modules import load_module
from pipeline.stages.validate.stage import validate_variant
from tests.support.factories import Branches
from tests.support.hosts import H100, host
from tests.support.logits import images, reference
from tests.support.modules import IMAGES
from tests.support.torch_tensorrt_stub import Library, use, weights_in_channels_last

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import nn

    from model_artifacts.records import Gpu
    from model_artifacts.sessions.module import Loaded
    from pipeline.records import AccuracyReport

    Judged = Callable[..., AccuracyReport]


@pytest.fixture
def project(built: Project) -> Project:
    """The finished tiny project, planned for a host with an H100."""
    both = built.config.torch_tensorrt.model_copy(update={"formats": tuple(ModuleFormat)})
    return Project(Plan(built.config.model_copy(update={"torch_tensorrt": both}), host(H100)), built.paths, STAGES)


def variant_of(project: Project, backend: Backend, precision: Precision = Precision.FP16) -> Variant:
    """Return the first variant of a kind: batch 1, the smallest workspace."""
    return next(item for item in project.plan.variants if (item.backend, item.precision) == (backend, precision))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Torch-TensorRT's stand-in, and a CPU that is taken for a GPU."""
    found = Library()
    use(found, monkeypatch)
    return found


@pytest.mark.parametrize("backend", [Backend.DYNAMO, Backend.DYNAMO_AOTI])
def test_a_module_is_saved_with_its_contents(
    project: Project, library: Library, tmp_path: Path, backend: Backend
) -> None:
    """A module that is compiled ahead of time is a file, and its record lists its contents."""
    made = torchtrt._make(project, variant_of(project, backend), H100, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").stat().st_size > 0
    assert (made.contents.segments, made.contents.torch_operators) == (1, ())
    assert library.saved_as == ["aot_inductor" if backend is Backend.DYNAMO_AOTI else "exported_program"]


def test_a_module_in_time_is_compiled_for_every_size_of_its_profile(
    project: Project, library: Library, tmp_path: Path
) -> None:
    """The build compiles a just-in-time module for the smallest, the best and the largest batch."""
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
    """An exception of Torch-TensorRT's just-in-time compilation is the build's error."""
    use(Library(fails="out of workspace"), monkeypatch)
    with pytest.raises(BuildError, match="cannot compile the model for batches of 1") as caught:
        torchtrt._make(project, variant_of(project, Backend.TORCH_COMPILE), H100, tmp_path / "recipe.json")
    assert "out of workspace" in str(caught.value)


NO_ENGINE = "deserialize_cuda_engine(): incompatible function arguments. The following argument types are supported:"
"""What Torch-TensorRT fails with where its builder gave no engine."""


@pytest.mark.parametrize("backend", [Backend.DYNAMO, Backend.TORCH_COMPILE])
@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("no tactics to implement it within workspace limit", "the workspace is too small: 16,777,216 bytes"),
        ("Exceeded mem budget of 16777216. Need 33554432", "raise `workspaces` in pipeline.yaml to at least 32MiB"),
        ("", "TensorRT's builder returned no engine, and no reason"),
        ("Unsupported SM", "incompatible function arguments.*; Unsupported SM"),
    ],
)
def test_a_builder_without_an_engine_says_why(  # noqa: PLR0913 - two fixtures more than is usual
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: Backend, says: str, expected: str
) -> None:
    """The error has TensorRT's message, not the later exception of Torch-TensorRT."""
    use(Library(fails=NO_ENGINE, says=says), monkeypatch)
    with pytest.raises(BuildError, match=expected):
        torchtrt._make(project, variant_of(project, backend), H100, tmp_path / "file")


def test_a_model_of_several_graphs_fails_in_time(
    project: Project, library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Control flow that depends on values fails as it does ahead of time, and the message has the model's line."""
    del library
    monkeypatch.setattr("pipeline.stages.build.module.restore_model", lambda _: Branches())
    with pytest.raises(BuildError, match="torch cannot trace the model") as caught:
        torchtrt._make(project, variant_of(project, Backend.TORCH_COMPILE), H100, tmp_path / "recipe.json")
    assert "factories.py:" in str(caught.value)


def test_a_recipe_says_all_that_it_takes(project: Project) -> None:
    """Weights by digest, the factory, sizes, settings and versions: nothing else is needed to make the module again."""
    variant = variant_of(project, Backend.TORCH_COMPILE)
    recipe = torchtrt.recipe_of(project, variant, ())
    source = project.source()
    assert (recipe.weights, recipe.factory, recipe.classes) == (source.weights, source.factory, 10)
    assert (recipe.input_shape, recipe.warm_up) == ((3, 32, 32), (1,))
    assert recipe.libraries == torch_tensorrt_runtime.libraries()


def test_a_host_without_a_gpu_makes_nothing(built: Project) -> None:
    """The reason is the missing GPU."""
    variant = variant_of(built, Backend.DYNAMO)
    with pytest.raises(UnsupportedError):
        torchtrt.make_module(built, variant, Key(fields=()))


def test_versions_that_do_not_belong_together_make_nothing(built: Project) -> None:
    """They are told apart before anything is compiled."""
    project = Project(Plan(built.config, host(H100, torch="2.99.0")), built.paths, STAGES)
    with pytest.raises(UnsupportedError, match="do not belong together") as caught:
        torchtrt.make_module(project, variant_of(project, Backend.DYNAMO), Key(fields=()))
    assert (
        f"got:      {installed_torch_tensorrt().name} {installed_torch_tensorrt().version} beside torch 2.99.0"
        in str(caught.value)
    )


def test_each_variant_keeps_its_engines_apart(project: Project) -> None:
    """The library's engine cache does not tell workspaces apart, so that no two variants share a folder."""
    on = project.config.model_copy(
        update={"torch_tensorrt": project.config.torch_tensorrt.model_copy(update={"engine_cache": True})}
    )
    cached = Project(Plan(on, project.plan.host), project.paths, STAGES)
    modules = [item for item in cached.plan.variants if item.backend.is_torch_tensorrt]
    folders = [torchtrt.request_of(cached, item, H100).engine_cache for item in modules]
    assert len(set(folders)) == len(modules) > 1
    assert torchtrt.request_of(project, modules[0], H100).engine_cache is None


def test_each_source_keeps_its_engines_apart(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with other strides and paddings is another source, and starts without cached engines."""
    settings = project.config.torch_tensorrt.model_copy(update={"engine_cache": True})
    cached = Project(
        Plan(project.config.model_copy(update={"torch_tensorrt": settings}), project.plan.host), project.paths, STAGES
    )
    variant, source = variant_of(cached, Backend.DYNAMO), cached.source()
    before = torchtrt.request_of(cached, variant, H100).engine_cache
    monkeypatch.setattr(Project, "source", lambda _: source.model_copy(update={"key": Key(fields=())}))
    after = torchtrt.request_of(cached, variant, H100).engine_cache
    assert before is not None
    assert after is not None
    assert (before.parent, before != after) == (after.parent, True)


@pytest.mark.parametrize(("fails", "left"), [("", b"old+"), ("out of workspace", b"old")])
def test_timings_are_kept_of_what_succeeded(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: str, left: bytes
) -> None:
    """The library writes its timing cache in place: it gets a copy, which counts once the build has succeeded."""
    cache = tmp_path / "timings.bin"
    cache.write_bytes(b"old")
    use(Library(fails=fails), monkeypatch)
    monkeypatch.setattr(torch_tensorrt_builder, "times_tactics", lambda: True)
    monkeypatch.setattr(Paths, "timing_cache", lambda *_: cache)
    with pytest.raises(BuildError) if fails else nullcontext():
        torchtrt._make(project, variant_of(project, Backend.DYNAMO), H100, tmp_path / "model.pt2")
    assert cache.read_bytes() == left


def test_modules_share_the_timings_of_engines(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """One TensorRT has one timing cache for a GPU: a kernel that an engine's build has timed is not timed again."""
    monkeypatch.setattr(torch_tensorrt_builder, "times_tactics", lambda: True)
    monkeypatch.setattr(torch_tensorrt_runtime, "installed_tensorrt", lambda: Tool(name="tensorrt", version="10.6.0"))
    request = torchtrt.request_of(project, variant_of(project, Backend.DYNAMO), H100)
    assert request.timing_cache == project.paths.timing_cache(EngineFlavour.TENSORRT, "10.6.0", H100)


def test_a_recipe_keeps_no_engines(project: Project) -> None:
    """The caches of a build are no part of how the module is made elsewhere."""
    names = ("cache_built_engines", "reuse_cached_engines", "immutable_weights")
    settings = tuple(Setting(name=name, value="on", applied=True) for name in names)
    recipe = torchtrt.recipe_of(project, variant_of(project, Backend.TORCH_COMPILE), settings)
    assert [setting.name for setting in recipe.settings] == ["immutable_weights"]


@pytest.fixture
def onsite(copied: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the tiny project on a host with an H100, whose builds run in this process."""
    del library

    def here(function: Callable[..., object], *arguments: object, log: Path, **_: object) -> object:
        log.write_text("the compiler's words")
        return function(*arguments)

    monkeypatch.setattr("pipeline.stages.build.module.run_isolated", here)
    found = Project.load(copied / "pipeline.yaml", STAGES)
    return Project(Plan(found.config, host(H100)), found.paths, STAGES)


@pytest.mark.parametrize(("backend", "file"), [(Backend.DYNAMO, "model.pt2"), (Backend.TORCH_COMPILE, "recipe.json")])
def test_what_was_built_is_recorded_and_opens(onsite: Project, backend: Backend, file: str) -> None:
    """The artifact vouches for its file and its log, and the file alone gives the reference's logits."""
    variant = variant_of(onsite, backend)
    build_variant(onsite, variant)

    artifact = onsite.artifact(variant)
    assert artifact.outcome is Outcome.DONE, artifact.reason
    assert artifact.file is not None
    assert artifact.file.path.endswith(f"{variant.name}/{file}")
    assert artifact.module is not None
    assert artifact.module.segments == 1
    assert {setting.name for setting in artifact.settings} >= {"workspace_size", "min_block_size"}
    assert onsite.paths.build_log(variant).read_text() == "the compiler's words"
    assert is_current(onsite, Step("build", variant.id))
    loaded = load_module(onsite, artifact, H100)
    with open_session(loaded, variant, IMAGES, None) as run:
        assert np.allclose(run(images(onsite, 1)), reference(onsite, 1), rtol=0.02, atol=0.02)


def test_a_build_that_fails_leaves_no_module(onsite: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed build removes the earlier module, keeps the log, and records the reason."""
    variant = variant_of(onsite, Backend.DYNAMO)
    build_variant(onsite, variant)
    use(Library(fails="no converter"), monkeypatch)

    artifact = build_variant(onsite, variant)

    assert (artifact.outcome, artifact.file) == (Outcome.FAILED, None)
    assert "no converter" in artifact.reason
    assert not onsite.paths.module(variant).exists()
    assert onsite.paths.build_log(variant).exists()


@pytest.fixture
def judged(onsite: Project, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """A function that builds a kind of module and validates it, all in this process and on the CPU."""

    def here(function: Callable[..., object], *arguments: object, **_: object) -> object:
        return function(*arguments)

    def on_the_cpu(module: Loaded, variant: Variant, inputs: tuple[TensorSpec, ...], _: Gpu) -> object:
        return open_session(module, variant, inputs, None)

    monkeypatch.setattr("pipeline.stages.validate.stage.run_isolated", here)
    monkeypatch.setattr("model_artifacts.sessions.module.open_session", on_the_cpu)
    monkeypatch.setattr("model_artifacts.host.cuda.use", lambda _: None)
    monkeypatch.setattr("model_artifacts.host.cuda.free_bytes", lambda: 2**30)

    def build_and_judge(backend: Backend, profile: BatchRange | None = None) -> AccuracyReport:
        config = onsite.config.model_copy(update={"profiles": (profile,)}) if profile else onsite.config
        project = Project(Plan(config, onsite.plan.host), onsite.paths, STAGES)
        variant = variant_of(project, backend)
        build_variant(project, variant)
        return validate_variant(project, variant)

    return build_and_judge


@pytest.mark.parametrize("backend", [Backend.DYNAMO, Backend.TORCH_COMPILE])
def test_a_module_is_judged_in_its_layouts(judged: Judged, backend: Backend) -> None:
    """The report has the gate's checks and the engines' precisions; of dynamo also a check of channels_last images."""
    report = judged(backend)
    assert report.outcome is Outcome.DONE, report.reason
    assert report.passed, report.reason
    metrics = {check.metric for check in report.checks}
    assert "executed precision" in metrics
    assert ("relative L2 of images in channels_last" in metrics) == (backend is Backend.DYNAMO)
    assert report.executed is Precision.FP16
    assert report.evaluator.startswith("torch 2.")


def test_a_module_without_engines_once_loaded_is_rejected(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module is judged by the engines that a fresh process loads, not by those of the build."""
    monkeypatch.setattr("model_artifacts.sessions.torch_tensorrt_runtime._SEGMENT", "no operator")
    report = judged(Backend.DYNAMO)
    assert report.outcome is Outcome.FAILED
    assert "has no TensorRT engine once it is loaded" in report.reason


@pytest.mark.parametrize(("tunes", "alone"), [(True, ["exclusive"]), (False, [])])
def test_what_times_tactics_when_it_is_loaded_has_the_gpu_to_itself(
    judged: Judged,
    monkeypatch: pytest.MonkeyPatch,
    tunes: bool,  # noqa: FBT001 - pytest passes it by name
    alone: list[str],
) -> None:
    """A recipe is compiled anew by every validation, which TensorRT does by timing."""
    held: list[str] = []

    @contextmanager
    def exclusive(_: Gpu) -> Iterator[None]:
        held.append("exclusive")
        yield

    monkeypatch.setattr("pipeline.stages.validate.stage.exclusive", exclusive)
    monkeypatch.setattr(torch_tensorrt_builder, "times_tactics", lambda: tunes)
    assert judged(Backend.TORCH_COMPILE).passed
    assert held == alone


def test_wrong_logits_in_channels_last_are_rejected(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is right with contiguous images only is rejected, and the check that failed says why."""
    call = ModuleSession.__call__

    def doubled(session: ModuleSession, batch: Any, layout: Layout = Layout.CONTIGUOUS) -> Any:
        logits = call(session, batch, layout)
        return 2 * logits if layout is Layout.CHANNELS_LAST else logits

    monkeypatch.setattr(ModuleSession, "__call__", doubled)
    report = judged(Backend.DYNAMO)
    failed = [check.metric for check in report.checks if not check.passed]
    assert failed == ["relative L2 of images in channels_last"]
    assert "channels_last" in report.reason


@pytest.fixture
def spoilt(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factory whose weights lie in channels_last, and a library that is wrong with such weights at a batch of 64."""
    del library  # which this one replaces
    use(Library(wrong=weights_in_channels_last), monkeypatch)
    for place in ("model_artifacts.sessions.torch_tensorrt_runtime.assemble", "pipeline.stages.common.model.assemble"):
        monkeypatch.setattr(place, lambda *given: in_layout(assemble(*given), torch.channels_last))


BATCH_64 = BatchRange(min=64, opt=64, max=64)


@pytest.mark.usefixtures("spoilt")
def test_weights_in_channels_last_never_reach_the_compiler(judged: Judged) -> None:
    """They gave wrong numbers at a batch of 64: whatever the factory gives, they are contiguous by construction."""
    report = judged(Backend.TORCH_COMPILE, BATCH_64)
    assert report.passed, report.reason


@pytest.mark.usefixtures("spoilt")
def test_weights_in_channels_last_would_be_caught_by_the_gate(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should they reach it all the same, the numbers are held against the reference, and rejected."""

    def as_they_are(model: nn.Module, precision: Precision, _: tuple[int, int, int]) -> nn.Module:
        return Typed(model, DTYPES[precision]).eval()

    monkeypatch.setattr("model_artifacts.sessions.torch_tensorrt_runtime.ready_to_compile", as_they_are)
    report = judged(Backend.TORCH_COMPILE, BATCH_64)
    failed = [check.metric for check in report.checks if not check.passed]
    assert "relative L2" in failed, report.reason
    assert "relative L2" in report.reason


def test_a_baseline_on_a_gpu_is_judged_by_what_it_computes(judged: Judged) -> None:
    """On a GPU, eager FP16 is no reference: it is run, and held to its gate."""
    report = judged(Backend.EAGER)
    assert report.passed, report.reason
    assert report.accuracy is not None
    assert 0 < report.accuracy.relative_l2 < 5e-3
    assert report.executed is None
