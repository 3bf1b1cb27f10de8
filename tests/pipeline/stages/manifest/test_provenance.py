"""Checkouts of an artifact: those of all records between the weights and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.record_files import write_record
from model_artifacts.records import GitState, Graph
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.manifest.provenance import Provenance
from tests.conftest import COMMIT

if TYPE_CHECKING:
    from pathlib import Path

INT8 = "tiny/cpu-x86_64/onnxruntime-int8"
FP32 = "tiny/cpu-x86_64/onnxruntime-fp32"
EARLY, LATE = GitState(commit="a" * 40, dirty=False), GitState(commit="d" * 40, dirty=True)


def test_each_checkout_is_named_once_in_the_order_of_the_steps(copied: Path) -> None:
    """The weights' checkout comes first, the verdict's last; a quantised graph has that of its FP32 graph, too."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    int8 = project.plan.variant(INT8)
    assert Provenance(project).commits(int8) == (COMMIT,)
    fp32 = project.onnx(Graph.FP32)
    write_record(project.paths.onnx_record(Graph.FP32), fp32.model_copy(update={"git": EARLY}))
    write_record(project.paths.accuracy(int8), project.accuracy(int8).model_copy(update={"git": LATE}))
    found = Provenance(project)
    assert found.commits(int8) == (COMMIT, EARLY, LATE)
    assert found.commits(project.plan.variant(FP32)) == (COMMIT, EARLY)


def test_an_unknown_checkout_leaves_none(copied: Path) -> None:
    """A record that knows no checkout, a missing and an edited one leave the whole artifact without commits."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    int8, source = project.plan.variant(INT8), project.source()
    write_record(project.paths.source, source.model_copy(update={"git": None}))
    assert Provenance(project).commits(int8) == ()
    write_record(project.paths.source, source)
    assert Provenance(project).commits(int8) == (COMMIT,)
    text = project.paths.data.read_text()
    project.paths.data.write_text(text.replace("c" * 40, "e" * 40))
    assert Provenance(project).commits(int8) == ()
    project.paths.data.unlink()
    assert Provenance(project).commits(int8) == ()
