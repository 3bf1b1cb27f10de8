"""Arguments of the model's factory: any YAML that JSON holds, each mistake where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Argument
from tests.support.configs import MATRIX, Problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config.settings import Config


def test_arguments_of_all_kinds(load: Callable[[str], Config]) -> None:
    """Text, numbers, booleans, null, lists and mappings arrive with their types and in their order."""
    text = (
        "model: {factory: 'timm:create_model', arguments: {a: x, b: 1, c: 1.5, d: true, e: null, f: [1, {g: [2]}]}}\n"
    )

    assert load(MATRIX + text).model.arguments == (
        Argument(name="a", value="x"),
        Argument(name="b", value=1),
        Argument(name="c", value=1.5),
        Argument(name="d", value=True),
        Argument(name="e", value=None),
        Argument(name="f", value=[1, {"g": [2]}]),
    )


def test_types_are_kept(load: Callable[[str], Config]) -> None:
    """A true is no 1, and 1.0 is no whole number: they are other arguments for the factory."""
    kinds = [
        type(item.value) for item in load(MATRIX + "model: {arguments: {a: true, b: 1, c: 1.0}}\n").model.arguments
    ]

    assert kinds == [bool, int, float]


def test_factory_with_a_method(load: Callable[[str], Config]) -> None:
    """A method of a class is a factory, too."""
    name = "transformers:AutoModelForImageClassification.from_pretrained"

    assert load(MATRIX + f"model: {{factory: '{name}'}}\n").model.factory == name


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("[1]", "3:20: model.arguments: expected a mapping of the factory's arguments, such as {num_classes: 10}"),
        ("{a-b: 1}", "3:26: `model.arguments`: expected the name of a parameter, got 'a-b'"),
        ("{class: 1}", "3:28: `model.arguments`: expected the name of a parameter, got 'class'"),
        ("{a: {b: [0, 2026-01-01]}}", "3:32: `model.arguments.a.b[1]`: expected text, a number, true, false or null"),
        ("{a: .inf}", "3:24: `model.arguments.a`: expected a finite number, got inf"),
        ("{a: [1, .nan]}", "3:28: `model.arguments.a[1]`: expected a finite number, got nan"),
        ("{a: !!binary aGk=}", "3:24: `model.arguments.a`: expected text, a number, true, false or null, got b'hi'"),
        ("{token: hf_abc}", "3:28: `model.arguments.token` would be written to records and to the manifest; remove it"),
        ("{weights: DEFAULT}", "3:30: `model.arguments.weights`: `model.weights` chooses torchvision's weights"),
    ],
)
def test_bad_arguments_are_told_their_place(problems: Problems, arguments: str, problem: str) -> None:
    """Each argument that cannot be passed on or recorded is reported alone, with its own line and column."""
    found = problems(MATRIX + f"model: {{arguments: {arguments}}}\n")

    assert len(found) == 1
    assert found[0].startswith(problem)


def test_a_secret_is_not_shown(problems: Problems) -> None:
    """The message about a token does not repeat it."""
    assert "hf_abc" not in "".join(problems(MATRIX + "model: {arguments: {token: hf_abc}}\n"))


def test_a_token_that_is_no_secret(load: Callable[[str], Config]) -> None:
    """`token: false` asks for no log-in, and passes."""
    config = load(MATRIX + "model: {factory: 'transformers:A.b', arguments: {token: false}}\n")

    assert config.model.arguments == (Argument(name="token", value=False),)
