"""What each result depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.atomic import read_record, write_record
from pipeline.plan import Stage, Step
from pipeline.project import Project
from pipeline.records import Artifact, Outcome
from pipeline.staleness import is_current, key_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[str], str]

SOURCE = "source:tiny"
DATA = "data:tiny"
ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"


def stale(folder: Path) -> set[str]:
    """Return the steps that have something to do, but for the manifest."""
    project = Project.load(folder / "pipeline.yaml")
    steps = [step for step in project.plan.steps if step.stage is not Stage.MANIFEST]
    return {f"{step.stage.value}:{step.subject}" for step in steps if not is_current(project, step)}


def rewrite(folder: Path, change: Change) -> None:
    """Change the configuration's text."""
    file = folder / "pipeline.yaml"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before


def test_after_a_run_nothing_is_stale(copied: Path) -> None:
    """A finished project is current, manifest included, also where its folder was moved to."""
    assert stale(copied) == set()
    project = Project.load(copied / "pipeline.yaml")
    assert is_current(project, Step(Stage.MANIFEST, "tiny"))


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
    project = Project.load(copied / "pipeline.yaml")
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
    rewrite(copied, lambda text: text.replace("rounds: 2", "rounds: 3"))
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
    assert Project.load(copied / "pipeline.yaml").paths.root.joinpath("tiny", "rtx-sm80+").is_dir()


def test_the_factorys_code_is_in_the_source(copied: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Editing the file that the model's factory lies in makes the source stale."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "tiny_model.py").write_text("def make(): ...\n")
    assert SOURCE in stale(copied)


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_a_damaged_engine_is_noticed(copied: Path, damage: str) -> None:
    """A deleted, truncated or bit-flipped engine makes its build stale, and that of the variant that shares it."""
    project = Project.load(copied / "pipeline.yaml")
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


def test_an_edited_record_is_noticed(copied: Path) -> None:
    """A record that is not a valid record any more makes its step stale."""
    project = Project.load(copied / "pipeline.yaml")
    project.paths.data.write_text("{}")
    assert DATA in stale(copied)


def test_failures_are_not_cached(copied: Path) -> None:
    """A build that failed is tried again although nothing has changed."""
    project = Project.load(copied / "pipeline.yaml")
    path = project.paths.artifact(project.plan.variant(ENGINE))
    record = read_record(path, Artifact)
    write_record(path, record.model_copy(update={"outcome": Outcome.FAILED, "reason": "out of memory"}))
    assert f"build:{ENGINE}" in stale(copied)


def test_skipped_builds_have_nothing_to_validate(copied: Path) -> None:
    """A variant that was skipped on purpose needs no validation record to be current."""
    project = Project.load(copied / "pipeline.yaml")
    variant = project.plan.variant("tiny/gpu/dynamo-fp16-b1-ws16MiB")
    project.paths.accuracy(variant).unlink(missing_ok=True)
    assert is_current(project, Step(Stage.VALIDATE, variant.id))


def test_a_checkpoints_content_is_in_the_source(copied: Path, tmp_path: Path) -> None:
    """A checkpoint of the same name with other bytes makes the source stale."""
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"one")
    rewrite(copied, lambda text: text.replace("weights: sample", f"weights: {checkpoint}"))
    step = Step(Stage.SOURCE, "tiny")
    before = key_of(Project.load(copied / "pipeline.yaml"), step)
    checkpoint.write_bytes(b"two")
    assert key_of(Project.load(copied / "pipeline.yaml"), step) != before


def test_an_image_folders_files_are_in_the_data(copied: Path, tmp_path: Path) -> None:
    """A new image in the folder makes the data stale."""
    images = tmp_path / "images"
    (images / "0").mkdir(parents=True)
    rewrite(copied, lambda text: text.replace("data: {", f"data: {{images: {images}, "))
    step = Step(Stage.DATA, "tiny")
    before = key_of(Project.load(copied / "pipeline.yaml"), step)
    (images / "0" / "new.png").write_bytes(b"x")
    assert key_of(Project.load(copied / "pipeline.yaml"), step) != before


def test_the_driver_is_in_no_key_of_what_needs_none(built: Project) -> None:
    """Keys of CPU variants and of engines built ahead of time say nothing of a driver."""
    for variant_id in ("tiny/cpu-x86_64/onnxruntime-fp16", ENGINE):
        names = [field.name for field in key_of(built, Step(Stage.BUILD, variant_id)).fields]
        assert "driver" not in names
