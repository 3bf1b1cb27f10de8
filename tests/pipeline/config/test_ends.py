"""The inputs and outputs of pipeline.yaml: what is taken, and what is refused with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import ImageInput, Io, OutputForm
from pipeline.config.loading import load_config
from tests.support.configs import MATRIX

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.configs import Problems


def test_each_entry_is_an_input_with_an_output(tmp_path: Path) -> None:
    """What an entry leaves out is the network's own."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(MATRIX + "io: [{}, {input: uint8, output: top5}, {output: probabilities}]\n")
    assert [item.io for item in load_config(file).io] == [
        Io(),
        Io(input=ImageInput.UINT8, output=OutputForm.TOP, top=5),
        Io(output=OutputForm.PROBABILITIES),
    ]


def test_without_the_key_there_is_the_network_s_own(tmp_path: Path) -> None:
    """Nothing changes for a configuration without `io`."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(MATRIX)
    assert [item.io.is_plain for item in load_config(file).io] == [True]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("io: []", "3:5: io: expected at least one entry, got []", id="empty"),
        pytest.param(
            "io: [{input: int8}]",
            "3:14: io[0].input: expected 'float32', 'float16' or 'uint8', got 'int8'; did you mean 'uint8'?",
            id="input",
        ),
        pytest.param(
            "io: [{output: top0}]",
            "3:15: io[0].output: expected logits, probabilities, or top1 to top1000, got 'top0'",
            id="top0",
        ),
        pytest.param("io: [{outputs: top5}]", "3:7: unknown key 'io[0].outputs'; did you mean 'output'?", id="key"),
        pytest.param("io: [{}, {input: float32}]", "3:10: `io` lists the same entry twice", id="twice"),
        pytest.param(
            "io: [{input: uint8}]\ntensorrt: {strip_plan: true}",
            "3:6: `io[0]`: `tensorrt.strip_plan` takes weights from the graph that has the network's own",
            id="strip-plan",
        ),
    ],
)
def test_mistakes_have_their_place(problems: Problems, text: str, problem: str) -> None:
    """Each message has line and column, what was expected, and what to do."""
    (found,) = problems(MATRIX + text + "\n")
    assert found.startswith(problem)


@pytest.mark.parametrize("task", ["embedding", "segmentation", "multilabel"])
def test_classes_are_those_of_a_classification(problems: Problems, tmp_path: Path, task: str) -> None:
    """Another task has no class for each image; its input may be pixels."""
    model = f"model: {{task: {task}, weights: factory}}\n"
    (found,) = problems(MATRIX + model + "io: [{input: uint8, output: top5}]\n")
    assert found.startswith("4:29: `io[0].output: top5` is of `task: classification`")
    assert f"got `task: {task}`" in found
    file = tmp_path / "pipeline.yaml"
    file.write_text(MATRIX + model + "io: [{input: uint8}]\n")
    assert [item.io.input for item in load_config(file).io] == [ImageInput.UINT8]
