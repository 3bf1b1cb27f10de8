"""Edits of records by hand: each is noticed, and the step of the record is made again."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.deployment.loading import read_manifest, resolve
from model_artifacts.errors import RecordError, ReleaseError
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Manifest, StageRecord
from pipeline.planning.freshness import current_records, freshness_of
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.manifest.stage import make_manifest
from pipeline.stages.release.stage import make_release
from tests.support.doit_runs import doit, ran

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.parts import Part

_VALUE = re.compile(r"[0-9]|true|false|null")
_MOST = 1000
"""The number of edits of one record; of a longer one every n-th value is edited."""
ONNX, FP16 = "tiny/cpu-x86_64/onnxruntime-int8-cpu", "tiny/cpu-x86_64/onnxruntime-fp16"


def places(text: str, most: int) -> list[re.Match[str]]:
    """Return the digits and constants of a text, at most so many."""
    found = list(_VALUE.finditer(text))
    return found[:: -(-len(found) // most)]


def edited_at(place: re.Match[str]) -> str:
    """Return the text with another digit or another constant in one place."""
    new = {"true": "false", "false": "true", "null": "true"}.get(place[0]) or str(9 - int(place[0]))
    return place.string[: place.start()] + new + place.string[place.end() :]


def records(project: Project) -> dict[Path, type[StageRecord]]:
    """Return the records of all steps that a build has run, with their kinds."""
    return {
        path: spec.record
        for spec in project.stages
        for subject in spec.subjects.named(project.plan).values()
        for path in spec.records(project.paths, project.plan, subject)
        if path.is_file()
    }


def test_every_edit_of_every_record_is_noticed(built: Project, tmp_path: Path, part: Part) -> None:
    """No digit and no constant of any record can be another one, those of its time and its digest included."""
    kinds = records(built)
    assert {kind.__name__ for kind in kinds.values()} >= {
        "SourceRecord",
        "DataRecord",
        "OnnxRecord",
        "Rounding",
        "Artifact",
        "AccuracyReport",
        "BenchmarkReport",
        "Manifest",
        "ReportRecord",
    }
    for path, kind in kinds.items():
        copy = tmp_path / path.name
        most, few = (_MOST, 60) if kind is Manifest else (300, 20)
        for place in part.of(places(path.read_text(encoding="utf-8"), most), few):
            copy.write_text(edited_at(place), encoding="utf-8")
            with pytest.raises(RecordError, match="it was changed after it was written"):
                read_record(copy, kind)


def test_every_step_of_an_edited_record_is_made_again(copied: Path) -> None:
    """The step is stale for that reason, its record is none of the manifest's, and sound again it is current."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    there, edited = records(project), set()
    for step in project.schedule.steps:
        spec, subject = project.schedule.spec(step.stage), project.schedule.subject(step)
        if spec.needs_build and project.artifact(subject).outcome is Outcome.SKIPPED:
            continue  # nobody reads a verdict on what was not built
        for path in set(spec.records(project.paths, project.plan, subject)) & there.keys():
            sound = path.read_bytes()
            (place,) = places(path.read_text(encoding="utf-8"), 1)
            path.write_text(edited_at(place), encoding="utf-8")
            (reason,) = freshness_of(project, step).reasons
            assert reason == f"{path} is not a valid {spec.record.__name__}: it was changed after it was written"
            assert step.stage in edited or path not in current_records(project)
            path.write_bytes(sound)
            edited.add(step.stage)
    assert edited == {spec.name for spec in STAGES if not spec.on_demand}
    assert all(freshness_of(project, step).is_current for step in project.schedule.steps)


def test_a_verdict_edited_by_hand_is_not_deployed(copied: Path) -> None:
    """A failed check that is edited to a passed one leaves the variant without a verdict until it is judged again."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    path = project.paths.accuracy(project.plan.variant(ONNX))
    path.write_text(path.read_text().replace('"passed": true', '"passed": false', 1))
    (item,) = (entry for entry in make_manifest(project).artifacts if entry.id == ONNX)
    assert (item.status.value, item.accuracy, item.checks) == ("failed", None, ())
    assert item.reason.startswith("not validated")


@pytest.mark.parametrize("name", ["artifact.json", "accuracy.json", "benchmark.json"])
def test_a_record_of_another_variant_is_not_believed(copied: Path, name: str) -> None:
    """A record that was copied from a better variant's folder is refused; latencies of one target share their key."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    own, better = (project.paths.root / variant / name for variant in (ONNX, FP16))
    shutil.copy(better, own)
    stage = {"artifact.json": "build", "accuracy.json": "validate", "benchmark.json": "benchmark"}[name]
    step = Step(stage, ONNX if stage != "benchmark" else "tiny/cpu-x86_64")
    assert f"{own} is the record of {FP16}" in freshness_of(project, step).reasons
    (item,) = (entry for entry in make_manifest(project).artifacts if entry.id == ONNX)
    read = {"artifact.json": item.file, "accuracy.json": item.accuracy, "benchmark.json": item.timings or None}
    assert read[name] is None


def test_an_edited_manifest_is_neither_resolved_nor_released(copied: Path) -> None:
    """What deployments read is checked, too."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    text = project.paths.manifest.read_text()
    project.paths.manifest.write_text(text.replace('"status": "rejected"', '"status": "deployable"'))
    if project.paths.manifest.read_text() == text:
        project.paths.manifest.write_text(text.replace('"built_at": "20', '"built_at": "19', 1))
    for read in (read_manifest, resolve):
        with pytest.raises(RecordError, match=r"(?s)manifest\.json .* it was changed after.*run that again"):
            read(project.paths.root)
    with pytest.raises(ReleaseError, match=r"the manifest is not up to date: .* it was changed after"):
        make_release(project)


def test_doit_makes_the_step_of_an_edited_record_again(finished: Path) -> None:
    """`doit` validates again what the record was edited of, and the verdict is that of the gate."""
    path = finished / "artifacts" / ONNX / "accuracy.json"
    sound = path.read_text()
    path.write_text(re.sub(r'"top1": 0\.\d', '"top1": 0.1', sound))
    assert path.read_text() != sound
    done = doit(finished, f"validate:{ONNX}")
    assert done.returncode == 0, done.stderr
    assert ran(done.stdout) == {f"validate:{ONNX}"}
    top1 = re.compile(r'"top1": .*')
    assert top1.findall(path.read_text()) == top1.findall(sound)
