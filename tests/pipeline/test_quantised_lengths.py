"""Graphs in eight bits and in bfloat16 take texts of every length, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import model_artifacts
from model_artifacts.records import Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from tests.support.texts import LONGEST, arrays_of, configuration, write_texts

if TYPE_CHECKING:
    from model_artifacts.records import ManifestEntry

INT8_CPU = "tiny/cpu-x86_64/onnxruntime-int8-cpu"
INT8, BF16 = "tiny/cpu-x86_64/onnxruntime-int8", "tiny/cpu-x86_64/onnx-reference-bf16"
"""What stands in for TensorRT's kernels on a CPU: it is never deployed, and sees the longest texts alone."""
ENGINE = "tiny/rtx-sm80+/bf16-b1-2-4-sequence4-12-24-ws16MiB"
BUILT = {INT8_CPU, INT8, BF16, ENGINE}
MARGIN = 0.3
"""Wider than what eight bits lose in the worst entry of this network's tags: 0.23 was measured, at four tokens."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tagger whose quantised files are validated, and whose bfloat16 engine is built ahead of time."""
    folder = tmp_path_factory.mktemp("quantised")
    text = configuration(write_texts(folder), "Tags", "tensors").replace("[fp32, fp16]", "[fp32, bf16, int8]")
    (folder / "pipeline.yaml").write_text(f"{text}gates: {{margin: {MARGIN}}}\n")
    project = Project.load(folder / "pipeline.yaml", STAGES)
    for step in project.schedule.steps:
        of_variant = step.stage in {"build", "validate"} and step.subject in BUILT
        if step.stage in {"source", "data", "export", "quantize", "rounding"} or of_variant:
            assert main([step.stage, step.subject, "--config", str(project.config_file)]) == 0, step
    assert main(["manifest", "tiny", "--config", str(project.config_file)]) == 0
    return project


def entry_of(project: Project, name: str) -> ManifestEntry:
    """Return the manifest's entry of a variant."""
    return next(entry for entry in project.manifest().artifacts if entry.id == name)


@pytest.mark.parametrize("name", sorted(BUILT))
def test_every_graph_and_engine_has_the_axis(project: Project, name: str) -> None:
    """Quantisation keeps the names of the axes, and so does an engine that is built of such a graph."""
    entry = entry_of(project, name)
    assert [spec.shape for spec in entry.inputs] == [("batch", "sequence")] * 2
    assert entry.outputs[0].shape == ("batch", "sequence", 16)
    assert entry.status is (Status.DEPLOYABLE if name == INT8_CPU else Status.BUILT), entry.reason


def test_eight_bits_are_judged_at_every_length(project: Project) -> None:
    """By the rounding of the quantised graph at that length, and by the margin."""
    checks = {check.metric: check for check in entry_of(project, INT8_CPU).checks}
    for length in (4, 12, 15):
        for batch in (1, 32):
            where = f"at sequence {length} in batches of {batch}"
            assert checks[f"relative L2 {where}"].passed
            assert checks[f"largest relative L2 of a part {where}"].passed


def test_eight_bits_tag_every_length(project: Project) -> None:
    """A loaded model lies as near the network as its margin allows, also at lengths that no check has seen."""
    network, arrays = restore_model(project), arrays_of()
    with model_artifacts.load(project.paths.root, model_artifacts.Requirements(precision="int8")) as model:
        assert model.entry.id == INT8_CPU
        for length in (4, 7, 13, LONGEST):
            batch = {name: np.ascontiguousarray(array[:16, :length]) for name, array in arrays.items()}
            with torch.no_grad():
                wanted = network(*map(torch.from_numpy, batch.values())).numpy()
            found = model(batch)
            assert found.shape == (16, length, 16)
            assert 0 < np.linalg.norm(found - wanted) < MARGIN * np.linalg.norm(wanted)
