"""Several models in one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError, UsageError
from pipeline.config.loading import argument_error, load_config, load_configs, placed_error
from tests.support.configs import MATRIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.configs import Problems

TWO = """\
models:
  - model: {name: first, weights: sample}
  - model: {name: second, weights: sample}
    data: {calibration: 16}
    gates: {margin: 0.02}
data: {calibration: 32, validation: 50}
"""


def test_each_model_has_the_shared_sections_and_its_own(write_config: Callable[[str], Path]) -> None:
    """A section of an entry replaces the shared one as a whole."""
    first, second = load_configs(write_config(TWO + MATRIX))
    assert [config.model.name for config in (first, second)] == ["first", "second"]
    assert [config.data.calibration for config in (first, second)] == [32, 16]
    assert [config.data.validation for config in (first, second)] == [50, 500]
    assert [config.gates.margin for config in (first, second)] == [0.01, 0.02]
    assert first.profiles == second.profiles


def test_a_model_among_others_has_the_settings_that_it_has_alone(write_config: Callable[[str], Path]) -> None:
    """So its keys are the same, and nothing is built again."""
    first, _ = load_configs(write_config(TWO + MATRIX))
    alone = "model: {name: first, weights: sample}\ndata: {calibration: 32, validation: 50}\n"
    assert load_config(write_config(alone + MATRIX)) == first
    (only,) = load_configs(write_config(f"models: [{{model: {{name: first, weights: sample}}}}]\n{MATRIX}"))
    assert only == load_config(write_config(f"model: {{name: first, weights: sample}}\n{MATRIX}"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("models: 3\n", ["1:9: models: expected a list with an entry for each model, such as [{model: {"]),
        ("models: []\n", ["1:9: models: expected a list with an entry for each model"]),
        ("models: [a]\n", ["1:10: models[0]: expected a mapping with `model`, got 'a'"]),
        ("models: [{}]\n", ["1:10: missing key 'models[0].model.name', the model's folder"]),
        ("models: [{model: {weights: sample}}]\n", ["1:18: missing key 'models[0].model.name'"]),
        (
            "models: [{model: {name: a}}, {model: {name: a}}]\n",
            ["1:45: models[1].model.name: a is the name of models[0], too; give it another"],
        ),
        (
            "models: [{model: {name: a}, precisions: [fp32]}]\n",
            ["1:29: key 'models[0].precisions' is shared by all models; write it beside `models`"],
        ),
        ("models: [{modle: {}, model: {name: a}}]\n", ["1:11: unknown key 'models[0].modle'; did you mean 'model'?"]),
        ("models: [{model: {name: a}, x: 1}]\n", ["1:29: unknown key 'models[0].x'; known keys: model, preprocess"]),
        ("models: [{model: {name: a}}]\nmodel: {name: b}\n", ["2:1: `model` stands beside `models`"]),
        (
            "models: [{model: {name: a}, data: {validation: 0}}]\ndata: {validation: 9}\n",
            ["1:48: models[0].data.validation: expected at least 1, got 0", "2:1: `data` has no effect"],
        ),
        (
            "models: [{model: {name: a}}, {model: {name: b}}]\nrelease: {manifest: a.json}\n",
            ["2:1: `release` is the released build of one model"],
        ),
        (
            "models: [{model: {name: a}}, {model: {name: b}}]\ndata: {validation: 0}\n",
            ["2:20: data.validation: expected at least 1, got 0"],
        ),
        (
            "models: [{model: {name: a, arguments: {token: x}}}]\n",
            ["1:47: `model.arguments.token` would be written to records"],
        ),
        (
            "models:\n- model: {name: a}\n- model: {name: b, onnx: b.onnx, factory: 'a:b'}\n",
            ["3:26: `model.onnx`: nothing in an ONNX file", "3:43: `model.factory`: the network"],
        ),
        (
            "models: [{model: {name: a}, data: {calibration: 010}}]\n",
            ["1:49: expected a number in decimal digits, got 010"],
        ),
    ],
    ids=[
        "number", "empty", "text", "nothing", "unnamed", "twice", "shared", "mistyped", "unknown", "beside", "own",
        "released", "once", "arguments", "across", "octal",
    ],
)  # fmt: skip
def test_mistakes_are_placed_in_the_file(problems: Problems, text: str, found: list[str]) -> None:
    """Each has the line and the column of the entry, and what several models share is reported once."""
    said = problems(text + MATRIX)
    assert len(said) == len(found), said
    for expected, got in zip(found, said, strict=True):
        assert got.startswith(expected)


def test_what_the_files_show_is_placed_as_well(write_config: Callable[[str], Path]) -> None:
    """Problems that a stage finds are placed at the setting of its model."""
    file = write_config(TWO + MATRIX)
    for model, place in (("first", "6:21"), ("second", "4:25")):
        (problem,) = placed_error(file, model, [(("data", "calibration"), "wrong")]).problems
        assert problem == f"{file}:{place}: wrong"
    (problem,) = argument_error(file, "second", [("", "wrong")]).problems
    assert problem == f"{file}:3:12: wrong"


def test_one_model_is_not_chosen_among_several(write_config: Callable[[str], Path]) -> None:
    """Who wants a single model is told the names."""
    file = write_config(TWO + MATRIX)
    with pytest.raises(UsageError, match=r"(?s)has several models.*first, second.*fix:.*--config FILE"):
        load_config(file)
    with pytest.raises(ConfigError):
        load_configs(write_config("models: [{model: {name: a}}]\n"))  # without a matrix
