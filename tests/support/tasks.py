"""The configuration and the run of a small network of a task without classes: an embedding, or tensors."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import onnx
from onnx import helper, numpy_helper

from model_artifacts.cli.answers import Place, print_manifest
from model_artifacts.records import Graph
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.sensitivity.stage import measure_sensitivity

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import pytest

    from model_artifacts.records import Task
    from pipeline.records import Sensitivity

FP16, FP32 = "tiny/cpu-x86_64/onnxruntime-fp16", "tiny/cpu-x86_64/onnxruntime-fp32"
ENGINE = "tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB"


def configuration_of(factory: str, task: Task, data: str) -> str:
    """Return the configuration of a network; `data` is the value of that key."""
    return f"""\
model: {{name: tiny, factory: "{factory}", weights: factory, task: {task.value}}}
preprocessing: {{resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
precisions: [fp32, fp16]
profiles: [{{min: 1, opt: 2, max: 4}}]
workspaces: [16MiB]
benchmark: {{batches: [2], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2}}
data: {data}
"""


def made_in(folder: Path, text: str) -> Project:
    """Return a project whose ONNX files are validated, and whose FP16 engine is built ahead of time."""
    file = folder / "pipeline.yaml"
    file.write_text(text)
    project = Project.load(file, STAGES)
    wanted = {"source", "data", "export", "rounding"}
    for step in project.schedule.steps:
        if step.stage in wanted or (step.subject in {FP16, FP32, ENGINE} and step.stage in {"build", "validate"}):
            assert main([step.stage, step.subject, "--config", str(file)]) == 0, step
    for stage in ("manifest", "report"):
        assert main([stage, "tiny", "--config", str(file)]) == 0
    return project


def with_another_end(project: Project, folder: Path, operator: str, values: npt.NDArray[np.float32]) -> Project:
    """Return a copy of a project whose FP16 graph ends with one more operator on its output: a fault.

    Args:
        project: the project, of one output.
        folder: the folder of the copy.
        operator: the ONNX operator, such as `Mul`.
        values: its second operand.
    """
    shutil.copytree(project.config_file.parent, folder)
    broken = Project.load(folder / "pipeline.yaml", STAGES)
    path = broken.paths.onnx(Graph.FP16)
    model = onnx.load(path)
    (output,) = model.graph.output
    last = next(node for node in model.graph.node if output.name in node.output)
    last.output[0] = "right"
    model.graph.initializer.append(numpy_helper.from_array(values, "values"))
    model.graph.node.append(helper.make_node(operator, ["right", "values"], [output.name]))
    onnx.save(model, path)
    return broken


def sensitivity_of(project: Project) -> Sensitivity:
    """Return the sensitivity of a project's layers to int8, which its own configuration does not have."""
    file = project.config_file.with_name("int8.yaml")
    file.write_text(project.config_file.read_text().replace("[fp32, fp16]", "[fp32, int8]"))
    return measure_sensitivity(Project.load(file, STAGES), Graph.INT8)


def assert_shows_the_cosine(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that report and table have the mean cosine in the place of an agreement, and the report no top-1."""
    page = project.paths.report.read_text()
    assert "cosine 0.999" in page or "cosine 1.0" in page
    assert '<th class="number">top-1</th>' not in page
    assert '<th class="number">score</th>' in page
    print_manifest(project.manifest(), Place(project.paths.root, frozenset()), sys.stdout)
    table = capsys.readouterr().out
    assert "cosine" in table
    assert "agreement" not in table
