"""Freshness of results: staleness, its reasons, and the reuse of results from elsewhere."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Graph, Key, KeyField, StageRecord, Task, WeightsOrigin
from pipeline.planning.freshness import changes, freshness_of, is_current, is_reused
from pipeline.planning.keys import key_of
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Artifact, Outcome
from pipeline.stages import STAGES
from pipeline.stages.source.network import output_shapes
from pipeline.stages.source.stage import make_source
from tests.support.facts import replace_fact
from tests.support.staleness import rewrite, stale

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    Change = Callable[[str], str]


SOURCE = "source:tiny"
DATA = "data:tiny"
ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"


def test_after_a_run_nothing_is_stale(copied: Path) -> None:
    """A finished project is current, manifest included, also where its folder was moved to."""
    assert stale(copied) == set()
    project = Project.load(copied / "pipeline.yaml", STAGES)
    assert is_current(project, Step("manifest", "tiny"))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "# a comment\n" + text,
        lambda text: "\n".join([*text.splitlines()[5:], *text.splitlines()[:5]]) + "\n",
        lambda text: text.replace("[fp32, fp16, bf16, int8]", "[int8, bf16, fp16, fp32]"),
        lambda text: text.replace("16MiB", "16 MiB").replace("16 MiB", "16MiB "),
    ],
    ids=["comment", "key order", "order of precisions", "spaces"],
)
def test_what_means_nothing_changes_nothing(copied: Path, change: Change) -> None:
    """Comments, key order and spelling of the configuration rebuild nothing."""
    rewrite(copied, change)
    assert stale(copied) == set()


def test_touching_files_changes_nothing(copied: Path) -> None:
    """A file with a new time and the old content is current."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.weights.touch()
    assert stale(copied) == set()


def test_preprocessing_is_in_the_source_and_below(copied: Path) -> None:
    """Another mean makes the source stale."""
    rewrite(copied, lambda text: text.replace("mean: [0.5,", "mean: [0.4,"))
    assert SOURCE in stale(copied)


def test_the_number_of_images_is_the_datas(copied: Path) -> None:
    """More calibration images make the data stale, and neither the source nor an exported graph."""
    rewrite(copied, lambda text: text.replace("calibration: 32", "calibration: 48"))
    assert stale(copied) == {DATA}


def test_a_gate_is_its_precisions(copied: Path) -> None:
    """A new gate for fp16 judges fp16 again, builds nothing, and leaves other precisions alone."""
    gate = "gates: {fp16: {cosine: 0.9, relative_l2: 0.1, top1_agreement: 0.9, top1_drop: 0.1}}\n"
    rewrite(copied, lambda text: text + gate)
    found = stale(copied)
    assert found
    assert all(name.startswith("validate:") and "fp16" in name for name in found)


def test_benchmark_settings_are_the_benchmarks(copied: Path) -> None:
    """More rounds repeat the benchmarks and nothing else."""
    rewrite(copied, lambda text: text.replace("rounds: 1", "rounds: 2"))
    assert stale(copied) == {f"benchmark:tiny/{target}" for target in ("cpu-x86_64", "rtx-sm80+", "gpu")}


def test_a_new_workspace_is_new_variants(copied: Path) -> None:
    """Another workspace builds its own variants and leaves those that are there."""
    rewrite(copied, lambda text: text.replace("[16MiB, 32MiB]", "[16MiB, 32MiB, 64MiB]"))
    built = {name for name in stale(copied) if name.startswith("build:")}
    assert built
    assert all("ws64MiB" in name for name in built)


def test_other_gpus_are_another_target(copied: Path) -> None:
    """Engines for other GPU generations are built beside those that are there."""
    rewrite(copied, lambda text: text + "tensorrt: {compute_capabilities: [89]}\n")
    built = {name for name in stale(copied) if name.startswith("build:")}
    assert built
    assert all("/rtx-sm89/" in name for name in built)
    assert Project.load(copied / "pipeline.yaml", STAGES).paths.root.joinpath("tiny", "rtx-sm80+").is_dir()


def test_the_factorys_code_is_in_the_source(copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Editing the file that the model's factory lies in makes the source stale."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests" / "support").mkdir(parents=True)
    (tmp_path / "tests" / "support" / "tiny_model.py").write_text("def make(): ...\n")
    assert SOURCE in stale(copied)


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_a_damaged_engine_is_noticed(copied: Path, damage: str) -> None:
    """A deleted, truncated or bit-flipped engine makes its build stale, and that of the variant that shares it."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    file = project.paths.engine(project.plan.variant(ENGINE))
    data = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(data[:-1])
    else:
        data[100] ^= 1
        file.write_bytes(data)
    assert {name for name in stale(copied) if name.startswith("build:")} == {f"build:{ENGINE}", f"build:{TWIN}"}


def records(project: Project, step: Step) -> list[tuple[Path, StageRecord]]:
    """Return the paths and the records of a step, without those that are missing."""
    spec, subject = project.schedule.spec(step.stage), project.schedule.subject(step)
    pairs = zip(spec.records(project.paths, project.plan, subject), project.records(step), strict=True)
    return [(path, record) for path, record in pairs if isinstance(record, StageRecord)]


def test_every_field_of_every_key_makes_its_step_stale_and_no_other(copied: Path) -> None:
    """Another value of any key field makes its step stale, and no step but those whose keys name that key."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    steps = [step for step in project.schedule.steps if step.stage not in {"manifest", "report"}]
    kinds = {}
    for step in steps:
        for path, record in records(project, step)[:1]:
            if freshness_of(project, step).since:  # but for what was skipped
                kinds[step.stage, tuple(field.name for field in record.key.fields)] = step, path, record
    assert {stage for stage, _ in kinds} == {step.stage for step in steps}
    for step, path, record in kinds.values():
        for number, field in enumerate(record.key.fields):
            other = field.model_copy(update={"value": '"another"'})
            fields = (*record.key.fields[:number], other, *record.key.fields[number + 1 :])
            write_record(path, record.model_copy(update={"key": Key(fields=fields)}))
            reasons = freshness_of(project, step).reasons
            assert len(reasons) == 1
            assert reasons[0].startswith(f"{field.name} changed")
        names = {item for item in steps if step.stage != "benchmark" and key_in(project, item, record.key.digest)}
        assert {item for item in steps if not is_current(project, item)} == {step} | names
        write_record(path, record)
    assert stale(copied) == set()


def keyed(**values: str) -> Key:
    """Return a key of these fields, as JSON."""
    return Key(fields=tuple(KeyField(name=name, value=value) for name, value in sorted(values.items())))


@pytest.mark.parametrize(
    ("before", "now", "reasons"),
    [
        (keyed(a="1"), keyed(a="2"), ("a changed: 1 → 2",)),
        (keyed(a="1"), keyed(b="1"), ("a changed: 1 → null", "b changed: null → 1")),
        (keyed(a='{"b":{"c":1}}'), keyed(a='{"b":{"c":2,"d":3}}'), ("a.b.c changed: 1 → 2", "a.b.d changed: null → 3")),
        (keyed(a='[["x",1],["y",2]]'), keyed(a='[["x",1],["y",3]]'), ("a.y changed: [2] → [3]",)),
        (keyed(a=f'"{"0" * 64}"'), keyed(a=f'"{"1" * 64}"'), ("a changed",)),
        (keyed(a=f'[["x","{"0" * 64}"]]'), keyed(a=f'[["y","{"0" * 64}"]]'), ("a.x is gone", "a.y is new")),
        (keyed(a=f'[["x","{"0" * 64}"]]'), keyed(), ("a.x is gone",)),
        (keyed(), keyed(a=f'[["x","{"0" * 64}"]]'), ("a.x is new",)),
        (keyed(a="[1,2]"), keyed(), ("a changed: [1, 2] → null",)),
        (keyed(a="no JSON"), keyed(a="1"), ('a changed: "no JSON" → 1',)),
        (
            keyed(a='{"a":1,"b":1,"c":1,"d":1,"e":1}'),
            keyed(a="{}"),
            (*(f"a.{x} changed: 1 → null" for x in "abc"), "2 more of a"),
        ),
    ],
)
def test_differences_of_keys_are_named(before: Key, now: Key, reasons: tuple[str, ...]) -> None:
    """Differences are named down to the setting, with values that are short enough to read."""
    assert changes(before, now) == reasons


@pytest.mark.parametrize("value", ["1.0", '[["x",1],["x",2]]', "garbage"])
def test_a_key_that_differs_makes_stale_whatever_is_told_of_it(copied: Path, value: str) -> None:
    """A key that differs only in the spelling of a value, or in an unnamed part, makes its step stale."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    record = project.data()
    fields = tuple(
        field.model_copy(update={"value": value}) if field.name == "calibration" else field
        for field in record.key.fields
    )
    write_record(project.paths.data, record.model_copy(update={"key": Key(fields=fields)}))
    assert freshness_of(project, Step("data", "tiny")).reasons


def test_a_difference_that_cannot_be_named_is_one(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for current because nothing could be said."""
    monkeypatch.setattr("pipeline.planning.freshness.changes", lambda *_: ())
    rewrite(copied, lambda text: text.replace("calibration: 32", "calibration: 48"))
    project = Project.load(copied / "pipeline.yaml", STAGES)
    assert freshness_of(project, Step("data", "tiny")).reasons == ("its key changed",)


def key_in(project: Project, step: Step, digest: str) -> bool:
    """Return whether the key on disk of a step's result has another result's key in it."""
    return any(digest in field.value for _, record in records(project, step) for field in record.key.fields)


@pytest.mark.parametrize(
    ("old", "new", "reason", "steps"),
    [
        ("resize: 32", "resize: 40", "preprocessing.resize changed: 32 → 40", {SOURCE}),
        ("crop: 32", "crop: 31", "preprocessing.crop changed: 32 → 31", {SOURCE}),
        ("bilinear", "nearest", 'preprocessing.interpolation changed: "bilinear" → "nearest"', {SOURCE}),
        ("std: [0.25,", "std: [0.5,", "preprocessing.std changed: [0.25, 0.25, 0.25] → [0.5, 0.25, 0.25]", {SOURCE}),
        ("weights: sample", "weights: factory", 'weights changed: "sample" → "factory"', {SOURCE}),
        ("validation: 100", "validation: 90", "validation changed: 100 → 90", {DATA}),
    ],
)
def test_a_setting_says_what_it_makes_stale(copied: Path, old: str, new: str, reason: str, steps: set[str]) -> None:
    """A changed setting makes its own step stale, and the reason has the setting's name and both values."""
    rewrite(copied, lambda text: text.replace(old, new))
    assert stale(copied) == steps
    project = Project.load(copied / "pipeline.yaml", STAGES)
    found = [freshness_of(project, step).reasons for step in project.schedule.steps]
    assert next(reasons for reasons in found if reasons) == (reason,)


# What else goes into a result.


def test_the_only_copy_of_a_file_may_move_with_its_folder(copied: Path, tmp_path: Path) -> None:
    """A checkout that was moved is current."""
    moved = tmp_path / "elsewhere with späces"
    copied.rename(moved)
    assert stale(moved) == set()


def test_an_edited_record_is_noticed(copied: Path) -> None:
    """A record that is not a valid record any more makes its step stale."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.data.write_text("{}")
    assert DATA in stale(copied)


def test_failures_are_not_cached(copied: Path) -> None:
    """A build that failed is tried again although nothing has changed."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    path = project.paths.artifact(project.plan.variant(ENGINE))
    record = read_record(path, Artifact)
    write_record(path, record.model_copy(update={"outcome": Outcome.FAILED, "reason": "out of memory"}))
    assert f"build:{ENGINE}" in stale(copied)


def test_what_a_host_may_have_by_now_is_tried_again(copied: Path) -> None:
    """A variant with a retryable skip is tried again, and its target is timed again after it runs."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    variant = project.plan.variant("tiny/cpu-x86_64/onnxruntime-fp16")
    validate, benchmark = Step("validate", variant.id), Step("benchmark", "tiny/cpu-x86_64")
    judged, lacking = project.accuracy(variant), {"outcome": Outcome.SKIPPED, "retryable": True}
    write_record(project.paths.benchmark(variant), project.benchmark(variant).model_copy(update=lacking))
    write_record(project.paths.accuracy(variant), judged.model_copy(update=lacking))
    assert freshness_of(project, validate).reasons == ("this host may have by now what it lacked",)
    assert is_current(project, benchmark)
    write_record(project.paths.accuracy(variant), judged)
    assert freshness_of(project, benchmark).reasons == (f"{variant.id} runs here by now",)


def test_a_key_is_of_what_was_there_before_the_work(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is replaced while the source is made leaves a source that is stale."""
    checkpoint = tmp_path / "weights.safetensors"
    shutil.copy(Project.load(copied / "pipeline.yaml", STAGES).paths.weights, checkpoint)
    rewrite(copied, lambda text: text.replace("weights: sample", f"weights: {checkpoint}"))
    project = Project.load(copied / "pipeline.yaml", STAGES)

    def replaced_meanwhile(
        model: nn.Module, shape: tuple[int, int, int], task: Task, names: tuple[str, ...]
    ) -> tuple[tuple[int, ...], ...]:
        checkpoint.write_bytes(b"other")
        return output_shapes(model, shape, task, names)

    monkeypatch.setattr("pipeline.stages.source.network.output_shapes", replaced_meanwhile)
    make_source(project)
    assert freshness_of(project, Step("source", "tiny")).reasons == ("checkpoint changed",)


def test_a_sample_model_gives_way_to_weights_that_came_later(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample model of `auto` is replaced after the weights appear in torch's cache."""
    rewrite(copied, lambda text: text.replace("weights: sample", "weights: auto"))
    project = Project.load(copied / "pipeline.yaml", STAGES)
    step = Step("source", "tiny")
    update = {"key": key_of(project, step), "origin": WeightsOrigin.SAMPLE, "awaited_file": "make-0123abcd.pth"}
    record = project.source().model_copy(update=update)
    write_record(project.paths.source, record)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert is_current(project, step)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/make-0123abcd.pth").touch()
    assert freshness_of(project, step).reasons == ("the weights that could not be downloaded are there by now",)
    write_record(project.paths.source, record.model_copy(update={"origin": WeightsOrigin.IMAGENET1K_V1}))
    assert is_current(project, step)


def test_skipped_builds_have_nothing_to_validate(copied: Path) -> None:
    """A variant that was skipped on purpose needs no validation record to be current."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    variant = project.plan.variant("tiny/gpu/dynamo-fp16-b1-ws16MiB")
    project.paths.accuracy(variant).unlink(missing_ok=True)
    assert is_current(project, Step("validate", variant.id))


# What a build host without torch is given.


GIVEN = ["source", "data", "export", "quantize", "rounding"]


@pytest.fixture
def _without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without torch, and with other versions of all tools."""
    monkeypatch.setattr("pipeline.planning.freshness.installed", lambda module: module != "torch")
    replace_fact(monkeypatch, "version", lambda _: "another")


def stale_of_the_given(folder: Path) -> set[str]:
    """Return the steps of the stages that need torch which have something to do."""
    return {name for name in stale(folder) if name.partition(":")[0] in GIVEN}


@pytest.mark.usefixtures("_without_torch")
def test_results_made_elsewhere_are_taken_as_given(copied: Path) -> None:
    """Other versions of the tools change nothing if the configuration and the digests match."""
    assert stale_of_the_given(copied) == set()


def test_results_made_elsewhere_are_made_again_where_they_can_be(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with torch finds results of another version of torch stale."""
    replace_fact(monkeypatch, "version", lambda _: "another")
    assert SOURCE in stale_of_the_given(copied)


@pytest.mark.usefixtures("_without_torch")
@pytest.mark.parametrize("damage", ["weights", "calibration", "reference", "fp16", "int8"])
def test_given_result_that_is_damaged_is_not_taken(copied: Path, damage: str) -> None:
    """A flipped bit in a file that was made elsewhere makes its step stale, and no step that does not own it."""
    paths = Project.load(copied / "pipeline.yaml", STAGES).paths
    owners = {
        "weights": (paths.weights, SOURCE),
        "calibration": (paths.calibration, DATA),
        "reference": (paths.reference, DATA),
        "fp16": (paths.onnx(Graph.FP16), "export:tiny/fp16"),
        "int8": (paths.onnx(Graph.INT8), "quantize:tiny/int8"),
    }
    file, owner = owners[damage]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert stale_of_the_given(copied) == {owner}


@pytest.mark.usefixtures("_without_torch")
@pytest.mark.parametrize(
    ("old", "new", "owner"),
    [
        ("mean: [0.5,", "mean: [0.4,", SOURCE),
        ("weights: sample", "weights: factory", SOURCE),
        ("tests.support.tiny_model:make", "tests.support.factories:three_classes", SOURCE),
        ("calibration: 32", "calibration: 48", DATA),
        ("data: {", "data: {images: photographs, ", DATA),
    ],
)
def test_given_result_of_another_configuration_is_not_taken(copied: Path, old: str, new: str, owner: str) -> None:
    """A reused result of other settings is stale."""
    rewrite(copied, lambda text: text.replace(old, new))
    assert owner in stale_of_the_given(copied)


@pytest.mark.usefixtures("_without_torch")
def test_given_result_that_is_missing_is_not_taken(copied: Path) -> None:
    """Nothing is taken for given that is not there."""
    Project.load(copied / "pipeline.yaml", STAGES).paths.onnx_record(Graph.FP16).unlink()
    assert stale_of_the_given(copied) == {"export:tiny/fp16"}


@pytest.mark.parametrize("stage", [spec.name for spec in STAGES])
def test_only_what_needs_torch_is_taken_as_given(monkeypatch: pytest.MonkeyPatch, stage: str, built: Project) -> None:
    """Builds, validations, benchmarks and the manifest are this host's own work."""
    monkeypatch.setattr("pipeline.planning.freshness.installed", lambda _: False)
    assert is_reused(built, Step(stage, "tiny")) is (stage in GIVEN)


@pytest.mark.parametrize("stage", [spec.name for spec in STAGES])
def test_nothing_is_taken_as_given_where_torch_is(stage: str, built: Project) -> None:
    """A host with torch makes everything itself."""
    assert not is_reused(built, Step(stage, "tiny"))
