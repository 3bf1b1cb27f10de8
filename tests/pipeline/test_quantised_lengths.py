"""Graphs in eight bits and in bfloat16 take texts of every length, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import model_artifacts
from model_artifacts.records import Graph, Precision, Status
from pipeline.cli.main import main
from pipeline.planning.plan import Arithmetic
from pipeline.planning.project import Project
from pipeline.records import AxisSize
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.validate.stage import validate_variant
from tests.support.small_projects import with_graph_of
from tests.support.texts import LONGEST, arrays_of, configuration, write_texts

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import ManifestEntry

INT8_CPU = "tiny/cpu-x86_64/onnxruntime-int8-cpu"
INT8, BF16 = "tiny/cpu-x86_64/onnxruntime-int8", "tiny/cpu-x86_64/onnx-reference-bf16"
"""A stand-in for TensorRT's kernels on a CPU: it is never deployed, and runs a part of the texts."""
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


def test_a_bound_of_the_longest_texts_holds_for_no_shorter_ones(project: Project) -> None:
    """BF16 rounds four tokens further from FP32 than twenty-four: so each length has a bound of its own."""
    record = project.rounding(Arithmetic(Graph.BF16, Precision.BF16))
    shortest = record.at((AxisSize(name="sequence", size=4),)).relative_l2_high
    assert shortest is not None
    assert record.relative_l2_high is not None
    assert shortest > 1.1 * record.relative_l2_high


@pytest.mark.parametrize(
    ("name", "batches"), [(INT8_CPU, (1, 32)), (INT8, (16,)), (BF16, (8,))], ids=["for x86", "for TensorRT", "bf16"]
)
def test_a_narrow_graph_is_judged_at_every_length(project: Project, name: str, batches: tuple[int, ...]) -> None:
    """By the rounding of the precision at that length, and by the margin; what is slow runs a part, in one batch."""
    checks = {check.metric: check for check in entry_of(project, name).checks}
    for length in (4, 12, 15):
        for batch in batches:
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


def test_bf16_that_is_right_at_the_longest_length_only_is_rejected(project: Project, tmp_path: Path) -> None:
    """The evaluator shows on a processor what an engine of this graph would be rejected for."""
    twin = configuration(write_texts(tmp_path), "TagsFromEnd", "tensors").replace("fp16", "bf16")
    broken = with_graph_of(project, tmp_path, twin, Graph.BF16)
    report = validate_variant(broken, broken.plan.variant(BF16))
    failed = [check.metric for check in report.checks if not check.passed]
    for length in (4, 12, 15):
        assert any(f" at sequence {length} " in metric for metric in failed)
    assert all(" at sequence " in metric for metric in failed), "at the texts' own length it is right"
