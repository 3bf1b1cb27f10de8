"""The output of each stage, held to the version of its code.

A change of a stage's output makes results on disk wrong although their keys hold. Its `VERSION` must then be raised.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import onnx
import pytest

from model_artifacts.records import CPU_TARGET, Graph, Scenario, StageRecord
from pipeline.config.benchmark import LoadConfig
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.records import PixelDistance
from pipeline.stages import STAGES
from pipeline.stages.load.stage import load_variant
from pipeline.stages.pictures.stage import Shown, compare_answers
from pipeline.stages.profile.stage import profile_variant
from pipeline.stages.propose.model_optimizer import VARIABLE
from pipeline.stages.propose.stage import propose
from tests.support.model_optimizer import interpreter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


GOLDEN = {
    "source": (5, "6980c41cde5f2dbc"),
    "data": (2, "5bce21d9ee190907"),
    "export": (11, "facf2086c0dee39c"),
    "quantize": (9, "e955168a550620a0"),
    "rounding": (6, "65663d37bf182a76"),
    "build": (5, "39f60e5b2feb2e88"),
    "validate": (12, "c562b665697f986c"),
    "benchmark": (6, "816978a43b69bbb6"),
    "manifest": (6, "3db7446a1a7e41bf"),
    "report": (10, "10b1519987153e4e"),
    "load": (2, "a13868c157f94a4a"),
    "profile": (1, "5eaad1cb421bd89b"),
    "sensitivity": (5, "858a4d057ce1c22b"),
    "propose": (1, "92f690b9f39241fb"),
    "pictures": (1, "aa49e431d3f6f38c"),
}
"""The version and the digest of the output, by stage."""

_ELSEWHERE = {"key", "built_at", "toolchain", "device", "noise", "host", "git", "milestones", "passed"} | {
    "worst_class",
    "disturbed_by",
    "kept",
    "proposal",
}
"""Fields that another machine, or another run, fills differently."""
_FIXED = {
    "batch",
    "opset",
    "min",
    "opt",
    "max",
    "classes",
    "folded_batch_norms",
    "schema_version",
    "id",
    "name",
    "label",
}
"""Numbers and names that are equal on every machine."""


@pytest.mark.parametrize("stage", [spec.name for spec in STAGES])
def test_another_output_takes_another_version(stage: str, copied: Path) -> None:
    """The output of the tiny project is the recorded one, or the version of the stage's code was raised."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    version = project.schedule.spec(stage).version
    digest = hashlib.sha256("\n".join(_output(project, stage)).encode()).hexdigest()[:16]
    assert GOLDEN.get(stage) == (version, digest), (
        f"the output of `{stage}` is not the recorded one: if results on disk are wrong now, raise VERSION in "
        f"pipeline/stages/{stage}/spec.py; then record ({version}, {digest!r}) here"
    )


def _output(project: Project, stage: str) -> Iterator[str]:
    """Yield the output of a stage for the CPU as lines, with everything measured left out."""
    spec = project.schedule.spec(stage)
    own = {"profile": _profile, "load": _load, "pictures": _checks_of_pictures, "propose": _places}
    if stage in own:
        yield from own[stage](project)
        return
    if stage == "sensitivity":
        spec.load()(project, Graph.INT8, _Silent())
    if stage == "report":
        yield from _headings(project.paths.report)
        return
    for step in project.schedule.of(stage):
        if spec.subjects.target(project.schedule.subject(step)) not in {None, CPU_TARGET}:
            continue
        for record in project.records(step):
            assert isinstance(record, StageRecord), record
            yield f"{step.name} {json.dumps(_skeleton(record.model_dump(mode='json')), sort_keys=True)}"
    if stage in {"export", "quantize"}:
        for graph in spec.subjects.named(project.plan).values():
            yield from _structure(project.paths.onnx(graph))


def _profile(project: Project) -> list[str]:
    """Return the layers of ONNX Runtime's profile, in no order of time."""
    variant = project.plan.variant("tiny/cpu-x86_64/onnxruntime-fp32")
    profile = profile_variant(project, variant)
    assert profile.layers, profile.reason
    return sorted(f"{layer.name} {layer.kind} {layer.precision} {layer.shape}" for layer in profile.layers)


def _load(project: Project) -> list[str]:
    """Return the results of an artifact under load, which any machine has: without a bound, in one context."""
    scenarios = (Scenario.SINGLE_STREAM, Scenario.OFFLINE)
    short = LoadConfig(scenarios=scenarios, contexts=(1,), batches=(2,), min_duration_seconds=0.1)
    config = project.config.model_copy(update={"load": short})
    brief = Project(Plan(config, project.plan.host), project.paths, STAGES, project.config_file)
    report = load_variant(brief, brief.plan.variant("tiny/cpu-x86_64/onnxruntime-fp32"))
    assert report.load is not None, report.reason
    return [json.dumps(_skeleton(item.model_dump(mode="json")), sort_keys=True) for item in report.load.results]


def _places(project: Project) -> list[str]:
    """Return the places of a stand-in for Model Optimizer."""
    python = interpreter(project.paths.root.parent / "env")
    with mock.patch.dict("os.environ", {VARIABLE: str(python)}):
        return [pair.to_json() for pair in propose(project, Graph.INT8).pairs]


def _checks_of_pictures(project: Project) -> Iterator[str]:
    """Yield the checks of the reference's own logits, as those of pictures that a GPU decoded."""
    variant = project.plan.variant("tiny/cpu-x86_64/onnxruntime-fp32")
    logits = np.load(project.file(project.data().reference))
    for check in compare_answers(project, variant, Shown(logits, PixelDistance(mean=0.0, largest=0))).checks:
        yield f"{check.metric} {check.question.value}"


def _headings(page: Path) -> list[str]:
    """Return the headings of the columns, in their order."""
    text = re.sub(r"<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [found[1] for found in re.findall(r"<(th|dt)\b[^>]*>(.*?)</\1>", text, flags=re.DOTALL)]


def _structure(file: Path) -> Iterator[str]:
    """Yield the nodes and tensors of an ONNX file without the values of its weights."""
    graph = onnx.load(str(file)).graph
    for node in graph.node:
        attributes = sorted(
            f"{item.name}={onnx.helper.get_attribute_value(item)}" for item in node.attribute if not item.HasField("t")
        )
        yield f"{node.op_type} {[*node.input]} {[*node.output]} {attributes}"
    for tensor in graph.initializer:
        yield f"{tensor.name} {[*tensor.dims]} {tensor.data_type}"


def _skeleton(value: Any, name: str = "") -> Any:
    """Return a record's JSON without the values that another run or another machine fills differently."""
    if isinstance(value, dict):
        return {key: _skeleton(item, key) for key, item in value.items() if not _is_measured(key)}
    if isinstance(value, list):
        return [_skeleton(item, name) for item in value if not (isinstance(item, dict) and _on_gpu(item))]
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and name not in _FIXED):
        return "number"
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "number", value) if isinstance(value, str) and name not in _FIXED else value


def _is_measured(name: str) -> bool:
    return name in _ELSEWHERE or name.endswith("sha256")


def _on_gpu(entry: dict[str, Any]) -> bool:
    """Return whether an entry of the manifest is of a target that depends on the host's GPU."""
    return bool(entry.get("target", CPU_TARGET) != CPU_TARGET)


class _Silent:
    """A console that shows nothing."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def error(self, text: str) -> None:
        """Drop the line."""
