"""Proposals of a stand-in for Model Optimizer, on record, and the failures that leave none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import QuantizeError
from model_artifacts.records import Graph
from pipeline.cli.main import main
from pipeline.planning.freshness import is_current
from pipeline.planning.steps import Step
from pipeline.stages.propose.model_optimizer import VARIABLE
from pipeline.stages.propose.stage import propose
from tests.support.model_optimizer import interpreter, placed_by_it

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project

NO_ONNX = """
from pathlib import Path


def quantize(source, mode, data, calibration_eps, output_path):
    Path(output_path).write_bytes(b"no graph")
"""


@pytest.fixture
def project(built_folder: Path, tmp_path: Path) -> Project:
    """The tiny project with Model Optimizer's places in its configuration."""
    return placed_by_it(built_folder, tmp_path / "project")


def test_a_proposal_is_on_record(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds until the FP32 graph has another structure, whatever interpreter this host has."""
    monkeypatch.setenv(VARIABLE, str(interpreter(tmp_path / "env")))
    assert main(["propose", "tiny/int8", "--config", str(project.config_file)]) == 0
    assert capsys.readouterr().out == "Model Optimizer 0.47.0: 5 Q/DQ pairs in front of 3 nodes\n"
    monkeypatch.delenv(VARIABLE)
    step = Step("propose", "tiny/int8")
    assert is_current(project, step)
    record = project.proposal(Graph.INT8)
    assert record.model_optimizer == "0.47.0"
    assert [(pair.kind, pair.input) for pair in record.pairs] == [
        ("Conv", 0),
        ("Conv", 1),
        ("Conv", 0),
        ("Conv", 1),
        ("AveragePool", 0),
    ]
    fp32 = project.onnx(Graph.FP32)
    other = fp32.model_copy(update={"canonical_sha256": "0" * 64})
    project.write(project.paths.onnx_record(Graph.FP32), other)  # other weights
    assert is_current(project, step)
    project.write(project.paths.onnx_record(Graph.FP32), fp32.model_copy(update={"structure_sha256": "0" * 64}))
    assert not is_current(project, step)


@pytest.mark.parametrize(
    ("body", "message"),
    [(NO_ONNX, "the ONNX file of Model Optimizer 0.47.0 cannot be read"), ("quantize = None", "cannot quantise")],
    ids=["no ONNX", "no function"],
)
def test_a_failure_leaves_nothing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    """Neither a record nor a file."""
    monkeypatch.setenv(VARIABLE, str(interpreter(tmp_path / "env", body)))
    before = sorted(project.paths.folder.rglob("*"))
    with pytest.raises(QuantizeError, match=message):
        propose(project, Graph.INT8)
    assert sorted(project.paths.folder.rglob("*")) == before
