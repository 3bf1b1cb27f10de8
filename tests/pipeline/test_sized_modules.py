"""Torch-TensorRT modules of several sizes and lengths, by the compiler's stand-in: built, judged at each, and run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

from model_artifacts.errors import RunError
from model_artifacts.records import Backend, Layout, Precision
from model_artifacts.sessions.arithmetic import tensors
from model_artifacts.sessions.module import ModuleSession, open_session
from model_artifacts.sessions.torch_model import ready_to_compile
from pipeline.cli.main import main
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.build.spec import SPEC
from pipeline.stages.build.stage import build_variant
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.modules import load_module
from pipeline.stages.common.sizes.following import at_each_size
from pipeline.stages.validate.stage import validate_variant
from tests.support import segments, texts
from tests.support.hosts import H100, host
from tests.support.logits import distance
from tests.support.modules import TORCH as TARGET
from tests.support.torch_tensorrt_stub import Library, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import Gpu, TensorSpec, Variant
    from model_artifacts.sessions.module import Loaded
    from pipeline.records import Artifact

RANGES = "height: {min: 24, opt: 32, max: 48}, width: {min: 24, opt: 40, max: 64}"
OF_FP16 = 2e-2
"""More than the rounding of FP16 makes in these networks, and less than any fault of a size: relative L2."""


def _maps(folder: Path) -> str:
    segments.write_images(folder, 40)
    profiles = f"profiles: [1, {{batch: {{min: 1, opt: 2, max: 4}}, {RANGES}}}]"
    return re.sub(r"profiles: .*", profiles, segments.configuration(folder)).replace("validation: 40", "validation: 24")


def _tags(folder: Path) -> str:
    return texts.configuration(texts.write_texts(folder), "Tags", "tensors")


class Kind(NamedTuple):
    """A kind of model, the shapes of its module's inputs and output, and sizes that are judged and that lie between."""

    text: Callable[[Path], str]
    inputs: tuple[tuple[int | str, ...], ...]
    output: tuple[int | str, ...]
    judged: tuple[str, ...]
    between: tuple[tuple[int, ...], ...]
    outside: tuple[tuple[int, ...], ...]
    takes: str


KINDS = {
    "maps": Kind(
        _maps,
        (("batch", 3, "height", "width"),),
        ("batch", 3, "height", "width"),
        tuple(
            f"at height {height}, width {width}"
            for height, width in ((24, 24), (32, 40), (48, 64), (37, 45), (24, 64), (48, 24))
        ),
        ((33, 41), (25, 63), (47, 24)),
        ((23, 40), (32, 65)),
        r"float32 \(1 to 4, 3, height 24 to 48, width 24 to 64\), contiguous",
    ),
    "tags": Kind(
        _tags,
        (("batch", "sequence"), ("batch", "sequence")),
        ("batch", "sequence", 16),
        tuple(f"at sequence {length}" for length in (4, 12, 15)),
        ((5,), (23,), (20,)),
        ((3,), (25,)),
        r"tokens: int64 \(1 to 4, sequence 4 to 24\); mask: float32 \(1 to 4, sequence 4 to 24\), contiguous",
    ),
}


class Made(NamedTuple):
    """A project of a kind on an H100 that is the CPU, with its data."""

    project: Project
    kind: str

    def variant(self, backend: Backend = Backend.DYNAMO, precision: Precision = Precision.FP16) -> Variant:
        """Return the variant of several sizes."""
        return next(
            item
            for item in self.project.plan.variants
            if (item.backend, item.precision) == (backend, precision) and item.profile and item.profile.axes
        )

    def batch(self, sizes: tuple[int, ...], count: int = 3) -> Any:
        """Return seeded inputs of a size: images, or texts with their masks."""
        rng = np.random.default_rng(sizes[0])
        if self.kind == "maps":
            return rng.normal(size=(count, 3, *sizes)).astype(np.float32)
        mask = np.ones((count, *sizes), np.float32)
        mask[:, -1] = 0
        return {"tokens": rng.integers(1, texts.WORDS, (count, *sizes)), "mask": mask}

    def truth(self, batch: Any) -> npt.NDArray[np.float32]:
        """Return the output of the network itself."""
        arrays = batch.values() if isinstance(batch, dict) else [batch]
        with torch.no_grad():
            (found,) = tensors(restore_model(self.project)(*map(torch.from_numpy, arrays)))
        return np.asarray(found.numpy(), np.float32)


@pytest.fixture(scope="module", params=[*KINDS])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A project of each kind with its data and its rounding."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "pipeline.yaml").write_text(KINDS[request.param].text(folder))
    found = Project.load(folder / "pipeline.yaml", STAGES)
    for step in found.schedule.steps:
        if step.stage in {"source", "data", "rounding"}:
            assert main([step.stage, step.subject, "--config", str(found.config_file)]) == 0, step
    return Made(Project(Plan(found.config, host(H100)), found.paths, STAGES), request.param)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have builds and validations run in this process, by the compiler's stand-in and on the CPU."""

    def here(function: Callable[..., object], *arguments: object, log: Path | None = None, **_: object) -> object:
        if log is not None:
            log.write_text("the compiler's words")
        return function(*arguments)

    def on_the_cpu(module: Loaded, variant: Variant, inputs: tuple[TensorSpec, ...], _: Gpu) -> object:
        return open_session(module, variant, inputs, None)

    use(Library(), monkeypatch)
    monkeypatch.setattr("pipeline.stages.build.module.run_isolated", here)
    monkeypatch.setattr("pipeline.stages.validate.stage.run_isolated", here)
    monkeypatch.setattr("model_artifacts.sessions.module.open_session", on_the_cpu)
    monkeypatch.setattr("model_artifacts.host.cuda.use", lambda _: None)


def built(made: Made) -> Artifact:
    """Build the FP16 module of several sizes."""
    artifact = build_variant(made.project, made.variant())
    assert artifact.outcome is Outcome.DONE, artifact.reason
    return artifact


def test_a_module_records_the_range_of_each_axis(made: Made) -> None:
    """Its inputs have the ranges of its profile, and its outputs the names of the axes that follow."""
    artifact, kind = built(made), KINDS[made.kind]
    assert tuple(spec.shape for spec in artifact.inputs) == kind.inputs
    profile = artifact.variant.profile
    assert profile is not None
    assert {spec.ranges for spec in artifact.inputs} == {profile.axes}
    assert [spec.shape for spec in artifact.outputs] == [kind.output]


def test_a_network_that_ran_at_other_sizes_is_not_compiled(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have kept something of them, and its trace would not be the one that was compared with the network."""
    ran: list[object] = []
    compiled: list[object] = []

    def running(project: Project, model: Any, *rest: Any) -> Any:
        ran.append(model)
        return at_each_size(project, model, *rest)

    def compiling(model: Any, *rest: Any) -> Any:
        compiled.append(model)
        return ready_to_compile(model, *rest)

    monkeypatch.setattr("pipeline.stages.build.sizes.at_each_size", running)
    monkeypatch.setattr("pipeline.stages.build.module.ready_to_compile", compiling)
    built(made)
    assert len(ran) == len(compiled) == 1
    assert ran[0] is not compiled[0]


def test_a_module_is_judged_at_each_size(made: Made) -> None:
    """Each size has a check of its own, in the smallest and in the largest batch."""
    built(made)
    report = validate_variant(made.project, made.variant())
    assert report.outcome is Outcome.DONE, report.reason
    assert report.passed, report.reason
    judged = {check.metric for check in report.checks if check.metric.startswith("relative L2 at ")}
    wanted = {f"relative L2 {size} in batches of {batch}" for size in KINDS[made.kind].judged for batch in (1, 4)}
    assert judged >= wanted, judged


def test_a_module_that_is_wrong_at_one_size_is_rejected(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason has the size. At the samples' own size it is right."""
    built(made)
    call, smallest = ModuleSession.__call__, KINDS[made.kind].judged[0]
    sizes = tuple(map(int, re.findall(r"\d+", smallest)))

    def wrong(session: ModuleSession, batch: Any, **more: Any) -> Any:
        found = call(session, batch, **more)
        array = next(iter(batch.values())) if isinstance(batch, dict) else batch
        return 2 * found if array.shape[-len(sizes) :] == sizes else found

    monkeypatch.setattr(ModuleSession, "__call__", wrong)
    report = validate_variant(made.project, made.variant())
    assert not report.passed
    failed = [check.metric for check in report.checks if not check.passed]
    assert failed
    assert all(smallest in metric for metric in failed), failed
    assert smallest in report.reason


def test_an_opened_module_takes_the_sizes_between(made: Made) -> None:
    """In turns, in every batch, each gives its own outputs; and a size outside is refused with the ranges."""
    artifact, kind = built(made), KINDS[made.kind]
    loaded = load_module(made.project, artifact, H100)
    with open_session(loaded, artifact.variant, artifact.inputs, None) as run:
        for count in (3, 1, 4):
            for sizes in kind.between:
                batch = made.batch(sizes, count)
                found, truth = run(batch), made.truth(batch)
                assert isinstance(found, np.ndarray)
                assert found.shape == truth.shape
                assert distance(found, truth) < OF_FP16
        for sizes in kind.outside:
            with pytest.raises(RunError, match=f"(?s)takes other batches.*{kind.takes}"):
                run(made.batch(sizes))


def test_buffers_of_many_sizes_do_not_pile_up(made: Made) -> None:
    """A session frees those that it took first, and a size that comes back is right again."""
    artifact = built(made)
    loaded = load_module(made.project, artifact, H100)
    axis = artifact.inputs[0].ranges[0]
    rest = [item.opt for item in artifact.inputs[0].ranges[1:]]
    with open_session(loaded, artifact.variant, artifact.inputs, None) as run:
        for size in (*range(axis.min, axis.max + 1), axis.min):
            batch = made.batch((size, *rest), 2)
            assert distance(np.asarray(run(batch)), made.truth(batch)) < OF_FP16
        assert len(run._inputs) == 16  # noqa: SLF001 - a GPU's memory shows it as little as the CPU's


def test_a_recipe_is_skipped_with_the_reason(made: Made) -> None:
    """It would build an engine within a call, which no gate has seen."""
    artifact = build_variant(made.project, made.variant(Backend.TORCH_COMPILE))
    assert artifact.outcome is Outcome.SKIPPED
    says = "for each shape of a batch" if made.kind == "maps" else "a recipe of torch_compile describes images alone"
    assert says in artifact.reason
    assert "dynamo" in artifact.reason


@pytest.mark.parametrize("backend", [Backend.EAGER, Backend.DYNAMO])
def test_what_takes_one_size_is_judged_at_it_alone(made: Made, backend: Backend) -> None:
    """A baseline, and a module of a profile without axes: neither claims a range."""
    variants = [item for item in made.project.plan.variants if (item.backend, item.target) == (backend, TARGET)]
    variant = next(
        item
        for item in variants
        if item.precision is Precision.FP16 and item.layout is Layout.CONTIGUOUS
        if item.profile is None or not item.profile.axes
    )
    artifact = build_variant(made.project, variant)
    assert artifact.outcome is Outcome.DONE, artifact.reason
    assert (artifact.inputs, artifact.outputs) == (made.project.source().inputs, made.project.source().outputs)
    report = validate_variant(made.project, variant)
    assert report.passed, report.reason
    metrics = {check.metric for check in report.checks}
    assert not [metric for metric in metrics if " at height " in metric or " at sequence " in metric]
    assert ("relative L2 of images in channels_last" in metrics) == (made.kind == "maps")


def test_tensors_do_not_lie_in_channels_last(made: Made) -> None:
    """Eager FP16 in that layout is for images."""
    variant = next(
        item for item in made.project.plan.variants if item.layout is Layout.CHANNELS_LAST and item.target == TARGET
    )
    artifact = build_variant(made.project, variant)
    assert (artifact.outcome is Outcome.DONE) == (made.kind == "maps")
    assert ("only images lie in channels_last" in artifact.reason) == (made.kind == "tags")


def test_a_worker_of_a_farm_gets_the_samples(made: Made) -> None:
    """A build there compares the trace with the network on them, and names the axes of the outputs."""
    source = made.project.source()
    assert SPEC.inputs is not None
    files = [file for item in SPEC.inputs(made.project, made.variant()) for file in item.files]
    assert source.weights in files
    assert (source.samples in files) == (made.kind == "tags")
