"""Engines on disk: which file an artifact has, and when two variants share one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import BuildError, CrashedError, RunError, UnsupportedError
from model_artifacts.host.environment import missing_driver, now
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import write_record
from model_artifacts.records import (
    Backend,
    BuiltFor,
    EngineFlavour,
    EngineMemory,
    Graph,
    Key,
    KeyField,
    Precision,
    Setting,
    Variant,
)
from pipeline.adapters.tensorrt_builder import BuiltEngine, EngineRequest
from pipeline.planning.keys import key_of
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Artifact, Outcome
from pipeline.stages import STAGES
from pipeline.stages.build.engine import can_be_refitted, make_engine
from tests.support.hosts import H100, TRT10, host

if TYPE_CHECKING:
    from pathlib import Path

SMALL, LARGE = "tiny/rtx-sm80+/fp16-b1-ws16MiB", "tiny/rtx-sm80+/fp16-b1-ws32MiB"


@pytest.fixture
def project(copied: Path) -> Project:
    """A finished project to build in again."""
    return Project.load(copied / "pipeline.yaml", STAGES)


def build(project: Project, variant_id: str) -> Artifact:
    """Build a variant's engine, without a record."""
    variant = project.plan.variant(variant_id)
    return make_engine(project, variant, key_of(project, Step("build", variant_id)))


def of(project: Project, variant_id: str) -> tuple[Variant, Artifact]:
    """Return a variant and its record."""
    variant = project.plan.variant(variant_id)
    return variant, project.artifact(variant)


def test_engine_lies_in_its_variants_folder(project: Project) -> None:
    """The engine with the smallest workspace has a file of its own, with the recorded digest."""
    artifact = build(project, SMALL)

    path = project.paths.engine(artifact.variant)
    assert artifact.file is not None
    assert (project.file(artifact.file), artifact.file.sha256) == (path, sha256_of(path))
    assert artifact.same_as is None


def test_log_lies_beside_the_engine(project: Project) -> None:
    """The builder's log is kept, and the record has its digest."""
    artifact = build(project, SMALL)

    assert artifact.log is not None
    assert "Total Weights Memory" in project.file(artifact.log).read_text()


def test_record_is_complete(project: Project) -> None:
    """An artifact's record has the engine's inputs and outputs, its memory and its settings."""
    artifact = build(project, SMALL)

    assert artifact.outcome is Outcome.DONE
    assert [spec.shape[1:] for spec in (*artifact.inputs, *artifact.outputs)] == [(3, 32, 32), (10,)]
    assert artifact.memory is not None
    assert {setting.name for setting in artifact.settings} >= {"workspace_bytes", "profile", "compute_capabilities"}
    assert any(tool.name == "tensorrt_rtx" and tool.version != "absent" for tool in artifact.toolchain)


def test_larger_workspace_shares_the_engine(built: Project) -> None:
    """A larger workspace that gives the same engine shares the smaller one's file and has none of its own."""
    _, small = of(built, SMALL)
    variant, large = of(built, LARGE)

    assert (large.file, large.same_as) == (small.file, SMALL)
    assert not built.paths.engine(variant).exists()


def test_sharing_removes_the_earlier_file(project: Project) -> None:
    """An engine of an earlier build does not stay beside an artifact that shares another's."""
    variant, _ = of(project, LARGE)
    project.paths.engine(variant).write_bytes(b"earlier")

    assert build(project, LARGE).same_as == SMALL
    assert not project.paths.engine(variant).exists()


def test_missing_twin_is_not_shared(project: Project) -> None:
    """An engine is stored if the file of its twin is gone."""
    variant, small = of(project, SMALL)
    project.paths.engine(variant).unlink()

    artifact = build(project, LARGE)

    assert artifact.same_as is None
    assert artifact.file != small.file


def test_changed_twin_is_not_shared(project: Project) -> None:
    """An engine is stored if the file of its twin has changed since the build."""
    variant, _ = of(project, SMALL)
    path = project.paths.engine(variant)
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    assert build(project, LARGE).same_as is None


def test_twin_without_a_record_is_not_shared(project: Project) -> None:
    """An engine is stored if the other build has no record."""
    variant, _ = of(project, SMALL)
    project.paths.artifact(variant).unlink()

    assert build(project, LARGE).same_as is None


def test_twin_of_another_graph_is_not_shared(project: Project) -> None:
    """An engine is stored if the other engine has another graph, with other weights."""
    record = project.onnx(Graph.FP16)
    other = record.model_copy(update={"canonical_sha256": "0" * 64})
    write_record(project.paths.onnx_record(Graph.FP16), other)

    assert build(project, LARGE).same_as is None


def test_other_engine_is_not_shared(project: Project) -> None:
    """An engine is stored if the other engine does other work."""
    variant, small = of(project, SMALL)
    write_record(project.paths.artifact(variant), small.model_copy(update={"layers_sha256": "0" * 64}))

    assert build(project, LARGE).same_as is None


def test_failed_twin_is_not_shared(project: Project) -> None:
    """A build that failed has nothing to share."""
    variant, small = of(project, SMALL)
    write_record(project.paths.artifact(variant), small.model_copy(update={"outcome": Outcome.FAILED}))

    assert build(project, LARGE).same_as is None


def test_failed_build_keeps_its_log(project: Project) -> None:
    """The builder's log is written before the error is raised."""
    project.paths.onnx(Graph.FP16).write_bytes(b"no graph")
    variant, _ = of(project, SMALL)
    project.paths.build_log(variant).unlink()

    with pytest.raises(BuildError, match="cannot read the ONNX graph"):
        build(project, SMALL)

    assert "ERROR" in project.paths.build_log(variant).read_text()


def test_int8_is_unsupported(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """An int8 engine is refused with the flavour's reason, and messages of native code stay off the terminal."""
    with pytest.raises(UnsupportedError, match="cannot build int8 convolutions for SM 80, 86, 89, 120"):
        build(project, "tiny/rtx-sm80+/int8-b1-ws16MiB")

    assert capfd.readouterr() == ("", "")


def test_engine_says_what_it_runs_on(project: Project) -> None:
    """A portable engine's record names the flavour, its version and the GPU generations, and no GPU."""
    built_for = build(project, SMALL).built_for

    assert built_for is not None
    assert (built_for.flavour, built_for.gpu) == (EngineFlavour.TENSORRT_RTX, None)
    assert built_for.compute_capabilities == (80, 86, 89, 120)


def test_builder_that_takes_too_long_is_stopped(project: Project) -> None:
    """A build has its configured time and no more, and its log is kept."""
    limit = project.config.tensorrt.model_copy(update={"build_timeout_seconds": 0.01})
    config = project.config.model_copy(update={"tensorrt": limit})
    hurried = Project(Plan(config, project.plan.host), project.paths, STAGES)

    with pytest.raises(
        CrashedError, match=r"(?s)no result within the limit of 0\.01 s.*python -m pipeline build " + re.escape(SMALL)
    ):
        build(hurried, SMALL)

    assert project.paths.build_log(project.plan.variant(SMALL)).is_file()


def test_builder_that_dies_costs_its_own_process_only(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder that crashes is an error that names the signal, and its log keeps the messages before it."""
    module = "import os, sys\nsys.stderr.write('about to die\\n')\nsys.stderr.flush()\nos.abort()\n"
    (tmp_path / "tensorrt_rtx.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))  # the builder's process inherits it

    with pytest.raises(CrashedError, match="SIGABRT"):
        build(project, SMALL)

    assert "about to die" in project.paths.build_log(project.plan.variant(SMALL)).read_text()


def test_tensorrt_needs_a_gpu(project: Project) -> None:
    """A flavour that tunes builds nothing where there is no GPU, and says so before it is imported."""
    flavour = project.config.tensorrt.model_copy(update={"flavour": EngineFlavour.TENSORRT})
    config = project.config.model_copy(update={"tensorrt": flavour})
    other = Project(Plan(config, host(flavours=(TRT10,))), project.paths, STAGES)

    with pytest.raises(UnsupportedError, match=missing_driver() or "CUDA shows no GPU"):
        build(other, "tiny/trt10.15/fp16-b1-ws16MiB")


def test_variant_that_is_no_engine(project: Project) -> None:
    """A variant without a profile is no engine."""
    with pytest.raises(BuildError, match="tiny/cpu-x86_64/onnxruntime-fp32 is no engine"):
        build(project, "tiny/cpu-x86_64/onnxruntime-fp32")


# Other weights for the same graph.

TUNED = "tiny/sm90-h100-80gb-hbm3-trt10.15/fp16-b1-ws16MiB"
SAME = "0" * 64


@pytest.fixture
def tuned(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project of a host with an H100 and TensorRT 10, with engines that can be refitted; none is built yet."""
    settings = project.config.tensorrt.model_copy(update={"flavour": EngineFlavour.TENSORRT, "refit": True})
    config = project.config.model_copy(update={"tensorrt": settings})
    monkeypatch.setattr("pipeline.stages.build.engine._build", _built)
    monkeypatch.setattr("pipeline.stages.build.engine._refit", _refitted)
    return Project(Plan(config, host(H100, flavours=(TRT10,))), project.paths, STAGES)


def _built(_: EngineFlavour, request: EngineRequest, __: Path) -> BuiltEngine:
    """Stand in for TensorRT's builder, which takes a GPU; this runs in a process of its own."""
    assert request.gpu is not None
    return BuiltEngine(
        plan=b"built",
        memory=EngineMemory(activation_bytes=1, weights_bytes=2),
        layers_sha256=SAME,
        inputs=(),
        outputs=(),
        settings=(Setting(name="refit", value="on", applied=True),),
        built_for=BuiltFor(
            flavour=EngineFlavour.TENSORRT, version=TRT10.version, gpu=H100.name, compute_capabilities=(90,)
        ),
        timing_cache=b"",
        seconds=1.0,
    )


def _timed(name: EngineFlavour, request: EngineRequest, timings: Path) -> BuiltEngine:
    """Stand in for a builder that adds its numbers of iterations and of the attempt to the timings that it finds."""
    found = timings.read_bytes() if timings.is_file() else b""
    times = found + b"%d/%d " % (request.settings.avg_timing_iterations or 1, request.settings.attempt)
    return replace(_built(name, request, timings), timing_cache=times)


def _refitted(_: EngineFlavour, request: EngineRequest, path: Path) -> bytes:
    """Stand in for TensorRT's refitter."""
    return path.read_bytes() + b" and refitted from " + request.onnx.name.encode()


def _refused(_: EngineFlavour, __: EngineRequest, ___: Path) -> bytes:
    raise RunError("the engine cannot be refitted")


def retrained(project: Project, **changes: str) -> None:
    """Give a graph other weights, or another structure."""
    record = project.onnx(Graph.FP16)
    other = record.model_copy(update={"canonical_sha256": "1" * 64, **changes})
    write_record(project.paths.onnx_record(Graph.FP16), other)


def built_once(project: Project) -> Artifact:
    """Build an engine with its record."""
    artifact = build(project, TUNED)
    write_record(project.paths.artifact(artifact.variant), artifact)
    return artifact


def test_other_weights_are_put_into_the_engine(tuned: Project) -> None:
    """A refit times no tactics, and the record names the new weights."""
    first = built_once(tuned)
    assert first.file is not None
    retrained(tuned)
    artifact = build(tuned, TUNED)
    assert artifact.file is not None
    assert tuned.file(artifact.file).read_bytes() == b"built and refitted from fp16.onnx"
    assert [setting.value for setting in artifact.settings if setting.name == "refitted"] == [
        f"from {first.file.sha256[:12]}"
    ]
    assert artifact.key == key_of(tuned, Step("build", TUNED))
    assert (artifact.layers_sha256, artifact.memory) == (first.layers_sha256, first.memory)


def test_refitted_engines_are_refitted_again(tuned: Project) -> None:
    """The record has the time of the last refit."""
    built_once(tuned)
    retrained(tuned)
    second = built_once(tuned)
    retrained(tuned, canonical_sha256="2" * 64)
    third = build(tuned, TUNED)
    assert second.file is not None
    assert [setting.value for setting in third.settings if setting.name == "refitted"] == [
        f"from {second.file.sha256[:12]}"
    ]


def test_an_engine_that_refuses_is_built_again(
    tuned: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason why an engine cannot be refitted is printed."""
    built_once(tuned)
    retrained(tuned)
    monkeypatch.setattr("pipeline.stages.build.engine._refit", _refused)
    caplog.set_level("INFO", "pipeline")
    artifact = build(tuned, TUNED)
    assert artifact.file is not None
    assert tuned.file(artifact.file).read_bytes() == b"built"
    assert "is built again, because the engine cannot be refitted" in caplog.text


def test_a_damaged_engine_is_built_again(tuned: Project) -> None:
    """A damaged engine is never refitted."""
    first = built_once(tuned)
    assert first.file is not None
    tuned.file(first.file).write_bytes(b"damaged")
    retrained(tuned)
    artifact = build(tuned, TUNED)
    assert artifact.file is not None
    assert tuned.file(artifact.file).read_bytes() == b"built"


def test_another_structure_is_built_again(tuned: Project) -> None:
    """Weights are not enough there."""
    built_once(tuned)
    retrained(tuned, structure_sha256="3" * 64)
    artifact = build(tuned, TUNED)
    assert "refitted" not in {setting.name for setting in artifact.settings}


def test_timings_of_other_iterations_or_attempts_are_not_taken(tuned: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with another number of either times tactics itself; its times serve only builds with both numbers."""
    monkeypatch.setattr("pipeline.stages.build.engine._build", _timed)
    for iterations, attempt in ((None, 1), (8, 1), (1, 1), (8, 1), (None, 2), (8, 2), (1, 2), (None, 3)):
        values = {"avg_timing_iterations": iterations, "attempt": attempt}
        config = tuned.config.model_copy(update={"tensorrt": tuned.config.tensorrt.model_copy(update=values)})
        build(Project(replace(tuned.plan, config=config), tuned.paths, STAGES), TUNED)
    files = sorted((tuned.paths.root / "timing-cache").glob("tensorrt-*.bin"))
    assert {path.stem.partition("hbm3")[2]: path.read_bytes() for path in files} == {
        "": b"1/1 1/1 ",
        "-avg8": b"8/1 8/1 ",
        "-attempt2": b"1/2 1/2 ",
        "-avg8-attempt2": b"8/2 ",
        "-attempt3": b"1/3 ",
    }


def former(**changes: object) -> Artifact:
    """Return an engine that can be refitted, but for these changes."""
    key = Key(fields=(KeyField(name="onnx", value="old"), KeyField(name="workspace", value="16MiB")))
    plain = Artifact(
        key=key,
        built_at=now(),
        variant=Variant(
            model="m", target="t", backend=Backend.TENSORRT, precision=Precision.FP16, graph=Graph.FP16, profile=None
        ),
        outcome=Outcome.DONE,
        structure_sha256=SAME,
        settings=(Setting(name="refit", value="on", applied=True),),
        built_for=BuiltFor(flavour=EngineFlavour.TENSORRT, version="10", gpu=H100.name, compute_capabilities=(90,)),
    )
    return plain.model_copy(update=changes)


NEW = Key(fields=(KeyField(name="onnx", value="new"), KeyField(name="workspace", value="16MiB")))
LARGER = Key(fields=(KeyField(name="onnx", value="new"), KeyField(name="workspace", value="32MiB")))


@pytest.mark.parametrize(
    ("artifact", "key", "can"),
    [
        (former(), NEW, True),
        (former(), LARGER, False),
        (former(key=NEW), NEW, False),
        (former(structure_sha256="1" * 64), NEW, False),
        (former(structure_sha256=None), NEW, False),
        (former(outcome=Outcome.FAILED), NEW, False),
        (former(same_as="another"), NEW, False),
        (former(settings=()), NEW, False),
        (former(settings=(Setting(name="refit", value="on", applied=False, note="no GPU"),)), NEW, False),
        (former(settings=(*former().settings, Setting(name="strip_plan", value="on", applied=True))), NEW, False),
        (former(built_for=None), NEW, False),
        (
            former(
                built_for=BuiltFor(
                    flavour=EngineFlavour.TENSORRT_RTX, version="1.4", gpu=H100.name, compute_capabilities=(90,)
                )
            ),
            NEW,
            False,
        ),
        (former(variant=former().variant.model_copy(update={"graph": Graph.INT8})), NEW, False),
    ],
)
def test_only_other_weights_for_a_refittable_engine_are_refitted(artifact: Artifact, key: Key, *, can: bool) -> None:
    """Everything else is built."""
    assert can_be_refitted(artifact, key, SAME) is can
