"""Staleness keys: the inputs of every result, and no others."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import RecordError
from model_artifacts.host.environment import installed_torch_tensorrt, version
from model_artifacts.records import Graph, Tool
from pipeline.config.tensorrt import HardwareCompatibility, TacticSource, TensorRTConfig, TilingOptimizationLevel
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import key_of, make_key
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from tests.support.facts import replace_fact
from tests.support.hosts import H100, L4, RTX, TRT10, TRT86, host
from tests.support.staleness import rewrite, stale

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import Gpu, Host

    Change = Callable[[str], str]


ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"


@pytest.mark.parametrize(
    ("package", "stages"),
    [
        ("torch", {"source", "data", "export", "rounding", "build", "validate", "benchmark"}),
        ("torchvision", {"source"}),
        ("scikit-learn", {"source"}),
        ("pillow", {"data"}),
        ("onnx", {"export", "quantize", "validate"}),
        ("onnxscript", {"export"}),
        ("onnxruntime-gpu", {"quantize", "rounding", "validate", "benchmark"}),
    ],
)
def test_a_new_version_of_a_library_is_of_the_stages_that_use_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch, package: str, stages: set[str]
) -> None:
    """No stage is run again for a library that it does not use."""
    real = version
    replace_fact(monkeypatch, "version", lambda name: "9.9" if name == package else real(name))
    found = stale(copied)
    assert {name.partition(":")[0] for name in found} == stages
    if package.startswith("onnx"):
        runner = "onnxruntime-" if package == "onnxruntime-gpu" else "onnx-reference-"
        assert all(runner in name for name in found if name.startswith("validate:"))
    if package == "torch":
        assert all("/eager-" in name for name in found if name.startswith("validate:"))
        assert not any("rtx" in name or "onnxruntime" in name for name in found if name.startswith("build:"))


# What else goes into a result.


def fields_of(project: Project) -> dict[Step, dict[str, str]]:
    """Return the keys of the steps whose inputs are there, field by field."""
    found = {}
    for step in project.schedule.steps:
        if step.stage != "manifest":
            with contextlib.suppress(RecordError):
                found[step] = {field.name: field.value for field in key_of(project, step).fields}
    return found


def with_config(part: str, **update: object) -> Callable[[Project, pytest.MonkeyPatch], Project]:
    """Return a change of settings in one part of the configuration."""

    def change(project: Project, _: pytest.MonkeyPatch) -> Project:
        changed = getattr(project.config, part).model_copy(update=update)
        config = project.config.model_copy(update={part: changed})
        return Project(Plan(config, project.plan.host), project.paths, STAGES)

    return change


def with_data(name: str) -> Callable[[Project, pytest.MonkeyPatch], Project]:
    """Return a change of one file of the data."""

    def change(project: Project, patch: pytest.MonkeyPatch) -> Project:
        data = project.data()
        other = data.reference.model_copy(update={"sha256": "0" * 64})
        patch.setattr(Project, "data", lambda _: data.model_copy(update={name: other}))
        return project

    return change


def with_host(**update: object) -> Callable[[Project, pytest.MonkeyPatch], Project]:
    """Return a change of the host."""
    return lambda project, _: Project(
        Plan(project.config, project.plan.host.model_copy(update=update)), project.paths, STAGES
    )


def with_patch(name: str, value: object) -> Callable[[Project, pytest.MonkeyPatch], Project]:
    """Return a change of a fact of this machine that keys read."""

    def change(project: Project, patch: pytest.MonkeyPatch) -> Project:
        replace_fact(patch, name, lambda: value)
        return project

    return change


INPUTS = {
    "Torch-TensorRT": (
        with_patch("installed_torch_tensorrt", Tool(name="torch-tensorrt-rtx", version="9")),
        {("torch_tensorrt", "build")},
    ),
    "TensorRT's CUDA": (with_host(cuda_majors=(12, 13)), {("cuda_major", "build")}),
    "Torch-TensorRT's CUDA": (with_host(cuda_majors=(13, 12)), {("tensorrt", "build")}),
    "the threads": (with_patch("threads", 99), {("threads", "benchmark")}),
    "the labels": (with_data("labels"), {("labels", "validate")}),
    "the reference's logits": (with_data("reference"), {("reference", "rounding"), ("reference", "validate")}),
    "the validation images": (with_data("validation"), {("validation", "rounding"), ("validation", "validate")}),
    "proof": (with_config("gates", require_proof=True), {("require_proof", "validate")}),
    "the margin": (with_config("gates", margin=0.02), {("margin", "validate")}),
    "the multiple of the rounding": (with_config("gates", rounding=3.0), {("multiple", "validate")}),
    "the worth of the reference": (
        with_config("gates", require_reference=False),
        {("require_reference", "validate")},
    ),
    "the evaluator's samples": (
        with_config("validation", reference_evaluator_samples=3),
        {("samples", "validate")},
    ),
    "a stand-in's samples": (with_config("validation", stand_in_samples=3), {("samples", "validate")}),
    "how long a validation may take": (with_config("validation", timeout_seconds=3.0), set()),
    "hardware compatibility": (
        with_config("tensorrt", hardware_compatibility=HardwareCompatibility.AMPERE_PLUS),
        {("settings", "build")},
    ),
    "tactic sources": (with_config("tensorrt", tactic_sources=(TacticSource.CUDNN,)), {("settings", "build")}),
    "the timed batches": (
        with_config("benchmark", batches=(1,)),
        {("batches", "benchmark"), ("settings", "benchmark")},
    ),
}


@pytest.mark.parametrize("name", INPUTS)
def test_what_goes_into_a_result_is_in_its_key(built: Project, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Another value of one input changes the fields that are of it, in the stages that use it, and nothing else."""
    change, fields = INPUTS[name]
    there = host(H100, flavours=(TRT10, RTX)).model_copy(update={"cuda_majors": (13, 13)})
    project = Project(Plan(built.config, there), built.paths, STAGES)
    before = fields_of(project)
    after = fields_of(change(project, monkeypatch))
    assert before.keys() == after.keys()
    moved = {
        (field, step.stage) for step in before for field in before[step] if before[step][field] != after[step][field]
    }
    assert moved == fields


def test_a_module_is_of_the_tensorrt_that_it_is_built_with(built: Project) -> None:
    """Another version of that one, and not of the other, makes compiled modules stale, and no baseline."""
    rtx, newer = (host(H100, flavours=(TRT10, Tool(name="tensorrt_rtx", version=number))) for number in ("1.4", "1.5"))
    before, after = (fields_of(Project(Plan(built.config, there), built.paths, STAGES)) for there in (rtx, newer))
    changed = {step.subject.rpartition("/")[2] for step in before if before[step] != after[step]}
    assert installed_torch_tensorrt().name == "torch-tensorrt-rtx"
    assert changed == {item.name for item in Plan(built.config, rtx).variants if item.backend.is_torch_tensorrt}


def test_another_processor_is_measured_again_and_nothing_else(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor makes only the CPU's benchmark stale."""
    replace_fact(monkeypatch, "processor", lambda: "another")
    assert stale(copied) == {"benchmark:tiny/cpu-x86_64"}


def test_another_driver_is_measured_again_and_nothing_else(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of builds and validations say whether there is a driver; only benchmarks and profiles say which."""
    project = Project(Plan(built.config, host(H100)), built.paths, STAGES)
    target = "tiny/sm90-h100-80gb-hbm3-torch2.11"
    steps = {
        "build": Step("build", f"{target}/eager-fp32"),
        "benchmark": Step("benchmark", target),
        "engines": Step("benchmark", "tiny/rtx-sm80+"),
    }
    replace_fact(monkeypatch, "missing_driver", lambda: "")
    found = []
    for driver in ("580", "590"):
        replace_fact(monkeypatch, "driver_version", lambda driver=driver: driver)
        found.append({name: key_of(project, step) for name, step in steps.items()})
    assert [name for name in steps if found[0][name] != found[1][name]] == ["benchmark", "engines"]


def test_a_checkpoints_content_is_in_the_source(copied: Path, tmp_path: Path) -> None:
    """A checkpoint of the same name with other bytes makes the source stale."""
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"one")
    rewrite(copied, lambda text: text.replace("weights: sample", f"weights: {checkpoint}"))
    step = Step("source", "tiny")
    before = key_of(Project.load(copied / "pipeline.yaml", STAGES), step)
    checkpoint.write_bytes(b"two")
    assert key_of(Project.load(copied / "pipeline.yaml", STAGES), step) != before


def test_an_image_folders_files_are_in_the_data(copied: Path, tmp_path: Path) -> None:
    """A new image in the folder makes the data stale."""
    images = tmp_path / "images"
    (images / "0").mkdir(parents=True)
    rewrite(copied, lambda text: text.replace("data: {", f"data: {{images: {images}, "))
    step = Step("data", "tiny")
    before = key_of(Project.load(copied / "pipeline.yaml", STAGES), step)
    (images / "0" / "new.png").write_bytes(b"x")
    assert key_of(Project.load(copied / "pipeline.yaml", STAGES), step) != before


def test_the_driver_is_in_no_key_of_what_needs_none(built: Project) -> None:
    """Keys of CPU variants and of engines built ahead of time say nothing of a driver."""
    for variant_id in ("tiny/cpu-x86_64/onnxruntime-fp16", ENGINE):
        names = [field.name for field in key_of(built, Step("build", variant_id)).fields]
        assert "driver" not in names


# What an engine depends on.


def engine_fields(project: Project, there: Host, **settings: object) -> dict[str, str]:
    """Return the fields of the key of the first FP16 engine on some host, by name."""
    return graph_fields(Graph.FP16, project, there, settings)


def graph_fields(graph: Graph, project: Project, there: Host, settings: dict[str, object]) -> dict[str, str]:
    """Return the fields of the key of a graph's first engine on some host, by name."""
    tensorrt = project.config.tensorrt.model_copy(update=settings)
    plan = Plan(project.config.model_copy(update={"tensorrt": tensorrt}), there)
    variant = next(item for item in plan.variants if item.graph is graph and item.profile)
    key = key_of(Project(plan, project.paths, STAGES), Step("build", variant.id))
    return {field.name: field.value for field in key.fields}


def differences(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """Return the names of the fields that differ, but for the variant's own name."""
    return {name for name in one if one[name] != other[name]} - {"variant"}


@pytest.mark.parametrize(
    ("there", "names"),
    [
        (host(L4, flavours=(TRT10,)), {"gpu"}),
        (host(H100, flavours=(TRT86,)), {"flavour_version"}),
        (host(H100.model_copy(update={"uuid": "GPU-2", "index": 0}), flavours=(TRT10,)), set()),
    ],
    ids=["another type", "another version", "another one of the type"],
)
def test_tuned_engine_depends_on_gpu_and_version(built: Project, there: Host, names: set[str]) -> None:
    """Another type of GPU or another version builds anew; another GPU of the type does not."""
    before = engine_fields(built, host(H100, flavours=(TRT10,)))
    assert differences(before, engine_fields(built, there)) == names


@pytest.mark.parametrize("gpus", [(), (H100,), (L4.model_copy(update={"index": 0}),)])
def test_portable_engine_depends_on_no_gpu(built: Project, gpus: tuple[Gpu, ...]) -> None:
    """An engine that is built ahead of time has the same key on every host."""
    assert differences(engine_fields(built, host()), engine_fields(built, host(*gpus))) == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimization_level", 5),
        ("refit", True),
        ("strip_plan", True),
        ("version_compatible", True),
        ("max_num_tactics", 8),
        ("avg_timing_iterations", 8),
        ("batch_parts", 2),
        ("attempt", 2),
        ("tiling_optimization_level", TilingOptimizationLevel.FULL),
        ("l2_limit_for_tiling", 2**20),
        ("max_aux_streams", 0),
        ("sparse_weights", True),
        ("strict_nans", True),
        ("weight_streaming", True),
        ("build_route", "-a=off"),
    ],
)
def test_engine_depends_on_what_changes_it(built: Project, name: str, value: object) -> None:
    """A setting of the builder builds anew."""
    there = host(H100, flavours=(TRT10,))
    changed = differences(engine_fields(built, there), engine_fields(built, there, **{name: value}))
    assert changed - {"weights_apart"} == {"settings"}


def test_later_settings_are_in_no_key_with_their_defaults() -> None:
    """The settings in the key of an engine are those of release 0.1.0, unless a later one is used."""
    assert make_key(settings=TensorRTConfig().key_settings).fields[-1].value == (
        '{"build_timeout_seconds":3600.0,"compute_capabilities":[80,86,89,120],"flavour":null,'
        '"hardware_compatibility":"none","kernel_specialization":"eager","optimization_level":null,"refit":false,'
        '"strip_plan":false,"tactic_sources":null,"timing_cache":true,"version_compatible":false}'
    )


@pytest.mark.parametrize("setting", ["refit", "strip_plan"])
def test_portable_engine_with_weights_apart_depends_on_a_gpu(built: Project, setting: str) -> None:
    """Settings that need a GPU at build time make the engine stale once the host has a GPU."""
    without = engine_fields(built, host(), **{setting: True})
    assert differences(without, engine_fields(built, host(H100), **{setting: True})) == {"weights_apart"}


def test_portable_quantized_engine_is_tried_again_with_a_gpu(built: Project) -> None:
    """TensorRT-RTX builds some quantised layers with a GPU alone, so that what was skipped without one is stale."""
    without, there = (graph_fields(Graph.INT8, built, where, {}) for where in (host(), host(H100)))
    assert there == {**without, "has_gpu": "true"}


@pytest.mark.parametrize(
    "setting",
    ["timing_cache: false", "kernel_specialization: lazy", "build_timeout_seconds: 7", "flavour: tensorrt_rtx"],
)
def test_setting_that_changes_no_engine_builds_nothing(copied: Path, setting: str) -> None:
    """Settings that do not change an engine leave builds and validations current."""
    rewrite(copied, lambda text: text + f"tensorrt: {{{setting}}}\n")
    assert {name for name in stale(copied) if not name.startswith("benchmark:")} == set()


def test_kernel_specialization_is_the_benchmarks(copied: Path) -> None:
    """The time of kernel compilation changes latencies, so the setting is in the benchmark's key."""
    rewrite(copied, lambda text: text + "tensorrt: {kernel_specialization: lazy}\n")
    assert "benchmark:tiny/rtx-sm80+" in stale(copied)


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"min_block_size": 1}, ["dynamo-fp16-b1-ws16MiB", "torch_compile-fp16-b1-ws16MiB"]),
        ({"optimization_level": 3}, ["dynamo-fp16-b1-ws16MiB", "torch_compile-fp16-b1-ws16MiB"]),
        ({"engine_cache": True}, ["dynamo-fp16-b1-ws16MiB", "torch_compile-fp16-b1-ws16MiB"]),
        ({"build_timeout_seconds": 5.0}, []),
    ],
    ids=str,
)
def test_how_modules_are_compiled_makes_modules_stale(
    built: Project, change: dict[str, object], stale: list[str]
) -> None:
    """A setting of Torch-TensorRT is in the keys of its modules, and in no other key."""
    settings = built.config.torch_tensorrt.model_copy(update=change)
    changed = Plan(built.config.model_copy(update={"torch_tensorrt": settings}), host(H100))
    before, after = Project(Plan(built.config, host(H100)), built.paths, STAGES), Project(changed, built.paths, STAGES)
    names = ("eager-fp16", "inductor-fp16", "dynamo-fp16-b1-ws16MiB", "torch_compile-fp16-b1-ws16MiB")
    ids = {name: f"tiny/sm90-h100-80gb-hbm3-torch2.11/{name}" for name in names} | {"engine": ENGINE}
    steps = {name: Step("build", variant_id) for name, variant_id in ids.items()}
    assert [name for name, step in steps.items() if key_of(before, step) != key_of(after, step)] == stale


def test_a_module_belongs_to_a_type_of_gpu(built: Project) -> None:
    """The key of a module, and of a baseline on a GPU, says which type it was made on; the CPU's baseline says none."""
    project = Project(Plan(built.config, host(H100)), built.paths, STAGES)
    target = "tiny/sm90-h100-80gb-hbm3-torch2.11"
    for variant_id, has in (
        (f"{target}/dynamo-fp16-b1-ws16MiB", True),
        (f"{target}/eager-fp32", True),
        ("tiny/cpu-x86_64/eager-fp32", False),
    ):
        names = {field.name for field in key_of(project, Step("build", variant_id)).fields}
        assert ("gpu" in names) is has


def test_a_graph_of_an_older_quantizer_is_made_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of the quantiser makes its graphs stale, and nothing else before they are made."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    monkeypatch.setattr("pipeline.stages.quantize.spec.VERSION", 99)
    stale = [step for step in project.schedule.steps if not is_current(project, step)]
    assert {step.stage for step in stale} == {"quantize"}
    assert {step.subject for step in stale} == {"tiny/int8", "tiny/int8-cpu"}
