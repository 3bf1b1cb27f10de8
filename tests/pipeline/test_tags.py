"""A network that tags the tokens of texts: its output follows their length, and is proven at every one."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import model_artifacts
from model_artifacts.errors import ConfigError
from model_artifacts.records import Graph, Question, Status
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.build.stage import build_variant
from pipeline.stages.common.model import restore_model
from pipeline.stages.data.stage import make_data
from pipeline.stages.source.stage import make_source
from pipeline.stages.validate.stage import validate_variant
from tests.support.small_projects import graph_of, project_of, with_graph_of
from tests.support.tasks import FP16
from tests.support.texts import LONGEST, WORDS, Tags, arrays_of, configuration, write_texts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import ManifestEntry

ENGINE = "tiny/rtx-sm80+/fp16-b1-2-4-sequence4-12-24-ws16MiB"
FIXED_ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
OTHERS = (4, 12, 15)
"""The lengths that are checked beside the texts' own: the smallest, the best, and an odd one between."""


def made(project: Project) -> Project:
    """Return a project whose FP16 file is validated, and whose FP16 engines are built ahead of time."""
    for step in project.schedule.steps:
        of_variant = step.stage in {"build", "validate"} and step.subject in {FP16, ENGINE, FIXED_ENGINE}
        if step.stage in {"source", "data", "export", "rounding"} or of_variant:
            assert main([step.stage, step.subject, "--config", str(project.config_file)]) == 0, step
    assert main(["manifest", "tiny", "--config", str(project.config_file)]) == 0
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tagger of torch."""
    folder = tmp_path_factory.mktemp("tags")
    return made(project_of(folder, configuration(write_texts(folder), "Tags", "tensors")))


@pytest.fixture(scope="module")
def of_file(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same network as an ONNX file whose axes have names of their own, as another exporter gives them."""
    folder = tmp_path_factory.mktemp("file")
    model = onnx.load(project.paths.onnx(Graph.FP32))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_param = "s77"
    onnx.save(model, folder / "own.onnx")
    text = configuration(write_texts(folder), "Tags", "tensors").replace(
        'factory: "tests.support.texts:Tags", weights: factory', f'onnx: "{folder / "own.onnx"}"'
    )
    return made(project_of(folder, text))


def entry_of(project: Project, name: str) -> ManifestEntry:
    """Return the manifest's entry of a variant."""
    return next(entry for entry in project.manifest().artifacts if entry.id == name)


def texts(count: int, length: int) -> dict[str, npt.NDArray[np.generic]]:
    """Return texts of a length, the last place of which is empty."""
    mask = np.ones((count, length), np.float32)
    mask[:, -1] = 0
    return {"tokens": np.random.default_rng(length).integers(1, WORDS, (count, length)), "mask": mask}


@pytest.mark.parametrize("name", [FP16, ENGINE])
@pytest.mark.parametrize("origin", ["project", "of_file"], ids=["torch", "ONNX file"])
def test_tags_have_the_axis_of_their_texts(request: pytest.FixtureRequest, origin: str, name: str) -> None:
    """An ONNX file and an engine of the range name it alike; an engine of one length has its number."""
    own: Project = request.getfixturevalue(origin)
    assert entry_of(own, name).outputs[0].shape == ("batch", "sequence", 16)
    assert entry_of(own, FIXED_ENGINE).outputs[0].shape == (1, LONGEST, 16)
    (given,) = onnx.load(own.paths.onnx(Graph.FP16)).graph.output
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["batch", "sequence", 16]


@pytest.mark.parametrize("origin", ["project", "of_file"], ids=["torch", "ONNX file"])
def test_tags_are_judged_at_every_length(request: pytest.FixtureRequest, origin: str) -> None:
    """Each has the distances of the whole and of its worst part, against an answer of that length."""
    own: Project = request.getfixturevalue(origin)
    entry = entry_of(own, FP16)
    assert entry.status is Status.DEPLOYABLE, entry.reason
    judged = {check.metric: check.question for check in entry.checks if " at sequence " in check.metric}
    for length in OTHERS:
        for batch in (1, 32):
            where = f"at sequence {length} in batches of {batch}"
            assert judged[f"relative L2 {where}"] is Question.FAITHFUL
            assert judged[f"largest relative L2 of a part {where}"] is Question.GOOD_ENOUGH
    assert [item.shapes for item in own.data().sizes] == [((length, 16),) for length in OTHERS]


@pytest.mark.parametrize("origin", ["project", "of_file"], ids=["torch", "ONNX file"])
def test_a_loaded_model_gives_a_tag_for_each_token(
    request: pytest.FixtureRequest, project: Project, origin: str
) -> None:
    """They are those of the network, also at lengths that no check has seen."""
    network, own = restore_model(project), request.getfixturevalue(origin)
    with model_artifacts.load(own.paths.root) as model:
        for length in (4, 7, 13, LONGEST):
            batch = texts(2, length)
            with torch.no_grad():
                wanted = network(*map(torch.from_numpy, batch.values()))
            found = model(batch)
            assert found.shape == (2, length, 16)
            np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)


def copied(project: Project, folder: Path) -> Project:
    """Return a copy of a project."""
    shutil.copytree(project.config_file.parent, folder)
    return Project.load(folder / "pipeline.yaml", STAGES)


def test_tags_of_the_traced_length_are_rejected(project: Project, tmp_path: Path) -> None:
    """A graph that fills its tags up to the length of its trace is right there, and has no answer of another length."""
    broken = copied(project, tmp_path / "broken")
    model = onnx.load(broken.paths.onnx(Graph.FP16))
    (output,) = model.graph.output
    model.graph.node[-1].output[0] = "followed"
    ends = {"surplus": [0, 0, 0, 0, LONGEST, 0], "start": [0], "stop": [LONGEST], "axis": [1]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in ends.items())
    model.graph.node.append(helper.make_node("Pad", ["followed", "surplus"], ["filled"]))
    model.graph.node.append(helper.make_node("Slice", ["filled", "start", "stop", "axis"], [output.name]))
    output.type.tensor_type.shape.dim[1].dim_value = LONGEST
    onnx.checker.check_model(model)
    onnx.save(model, broken.paths.onnx(Graph.FP16))
    report = validate_variant(broken, broken.plan.variant(FP16))
    assert (report.outcome, report.passed) == (Outcome.FAILED, False)
    assert "at sequence 4, has another shape of its output" in report.reason
    assert "(4, 16)" in report.reason
    output.type.tensor_type.shape.dim[1].dim_param = "sequence"  # it claims to follow
    onnx.save(model, broken.paths.onnx(Graph.FP16))
    artifact = build_variant(broken, broken.plan.variant(ENGINE))
    assert artifact.outcome is Outcome.FAILED
    assert "one size of an output that follows" in artifact.reason


def test_tags_that_are_right_at_the_longest_length_only_are_rejected(project: Project, tmp_path: Path) -> None:
    """Their number is right at every length, and their values at the traced one alone."""
    twin = configuration(write_texts(tmp_path), "TagsFromEnd", "tensors")
    broken = with_graph_of(project, tmp_path, twin, Graph.FP16)
    report = validate_variant(broken, broken.plan.variant(FP16))
    assert report.outcome is Outcome.DONE
    failed = [check.metric for check in report.checks if not check.passed]
    assert {length for length in OTHERS if any(f" at sequence {length} " in metric for metric in failed)} == {*OTHERS}
    assert all(" at sequence " in metric for metric in failed), "at the texts' own length it is right"


def agreement(rows: npt.NDArray[np.float32], truth: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return each text's share of tokens whose tag is the truth's."""
    wanted = truth if truth.ndim < rows.ndim else truth.argmax(-1)
    return np.asarray((rows.argmax(-1) == wanted).mean(1), dtype=np.float64)


def with_labels(folder: Path, axes: str, longest: int = LONGEST) -> Project:
    """Return the project of texts with the tags of a network that reads them in twice the precision.

    Args:
        folder: receives the texts.
        axes: the names of the axes.
        longest: the number of tags of a text.
    """
    torch.manual_seed(0)
    arrays = arrays_of()
    with torch.no_grad():
        tags = Tags().double().eval()(torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["mask"]).double())
    labels = tags.argmax(-1).numpy()[:, :longest]
    np.savez(folder / "texts.npz", tags=labels, **arrays)  # type: ignore[arg-type]  # no mapping of names
    text = configuration(folder / "texts.npz", "Tags", "tensors")
    text = text.replace("task: tensors", 'task: tensors, metric: "tests.pipeline.test_tags:agreement"')
    text = text.replace("data: {", "data: {labels: tags, ")
    return project_of(folder, re.sub(r"axes: {.*?}", f"axes: {{{axes}}}", text))


OF_INPUTS = "tokens: [sequence], mask: [sequence]"


def test_labels_without_names_are_refused(tmp_path: Path) -> None:
    """They have the longest length, and a metric would hold shorter tags against them. The message says what to do."""
    own = with_labels(tmp_path, OF_INPUTS)
    make_source(own)
    with pytest.raises(
        ConfigError, match=r"`data\.labels` have the samples' own size.*{axes: {tags: \[sequence\]}}"
    ) as caught:
        make_data(own, restore_model(own))
    assert f"{own.config_file}:6:" in str(caught.value)
    assert not own.paths.data.exists()


@pytest.mark.parametrize(
    ("names", "longest", "said"),
    [
        (
            "[sequence, null]",
            LONGEST,
            r"`data\.axes\.tags`: a label has the shape \(24,\); expected a name or null for",
        ),
        ("[sequence]", 20, r"`data\.axes\.tags`: a label has the shape \(20,\); expected 24 entries of 'sequence'"),
    ],
    ids=["two axes", "shorter"],
)
def test_names_that_do_not_fit_the_labels_are_refused(tmp_path: Path, names: str, longest: int, said: str) -> None:
    """Each message has the labels' own shape."""
    own = with_labels(tmp_path, f"{OF_INPUTS}, tags: {names}", longest)
    make_source(own)
    with pytest.raises(ConfigError, match=said):
        make_data(own, restore_model(own))


def test_labels_follow_their_texts(tmp_path: Path) -> None:
    """At each length the metric gets the beginnings of the tags; a graph of other tags loses by them there."""
    own = with_labels(tmp_path, f"{OF_INPUTS}, tags: [sequence]")
    for step in own.schedule.steps:
        of_variant = step.stage in {"build", "validate"} and step.subject == FP16
        of_rounding = step.stage == "rounding" and "tf32" not in step.subject
        if step.stage in {"source", "data", "export"} or of_rounding or of_variant:
            assert main([step.stage, step.subject, "--config", str(own.config_file)]) == 0, step
    report = own.accuracy(own.plan.variant(FP16))
    assert report.passed, report.reason
    assert report.accuracy is not None
    (score,) = report.accuracy.scores
    assert score.reference is not None
    assert score.reference > 0.99
    checks = {check.metric: check for check in report.checks}
    for length in OTHERS:
        found = [
            check for metric, check in checks.items() if metric.startswith("drop of ") and f" {length} in" in metric
        ]
        assert [check.question for check in found] == [Question.GOOD_ENOUGH] * 2
    other = tmp_path / "other"
    other.mkdir()
    twin = configuration(write_texts(other), "TagsFromEnd", "tensors")
    shutil.copyfile(graph_of(other, twin, Graph.FP16), own.paths.onnx(Graph.FP16))
    failed = [check.metric for check in validate_variant(own, own.plan.variant(FP16)).checks if not check.passed]
    assert any(metric.startswith("drop of ") and " at sequence 4 " in metric for metric in failed)
