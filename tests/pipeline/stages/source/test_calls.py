"""The call of a factory against its signature."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError
from pipeline.config.loading import load_config
from pipeline.stages.source.calls import call_problems, require_call
from tests.support import factories, hub_networks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HERE = "tests.support.hub_networks"


def refused(write_config: Callable[[str], Path], model: str) -> list[str]:
    """Return the problems of a model's call, each from its line on."""
    file = write_config(factories.configuration(more=" ").partition("\n")[2] + f"model: {model}\n")
    with pytest.raises(ConfigError) as caught:
        require_call(file, load_config(file).model)
    return [problem.removeprefix(f"{file}:") for problem in caught.value.problems]


def test_unknown_argument(write_config: Callable[[str], Path]) -> None:
    """An argument that the factory lacks is reported at its key, with all that it takes and the closest."""
    found = refused(write_config, f"{{factory: '{HERE}:needs', arguments: {{classes: 3, widht: 1}}}}")

    line, column, text = found[0].split(":", 2)
    assert (line, column) == ("6", "78")
    assert text == (
        f" `model.arguments`: {HERE}:needs has no parameter 'widht'; it takes classes, width; did you mean 'width'?"
    )


def test_missing_argument(write_config: Callable[[str], Path]) -> None:
    """An argument that is missing is named, with all that the factory takes."""
    (found,) = refused(write_config, f"{{factory: '{HERE}:needs'}}")

    assert f"{HERE}:needs needs classes; it takes classes, width; write them, such as {{classes: …}}" in found


def test_arguments_for_a_factory_without_any(write_config: Callable[[str], Path]) -> None:
    """A factory that takes nothing gets nothing."""
    (found,) = refused(write_config, f"{{factory: '{HERE}:plain', arguments: {{num_classes: 3}}}}")

    assert "has no parameter 'num_classes'; it takes no arguments; remove it" in found


def test_misspelt_argument_of_a_factory_that_takes_all() -> None:
    """A factory with `**kwargs` takes any name, but what it needs is missed, and the misspelt name is pointed at."""
    ((name, text),) = call_problems("timm:create_model", hub_networks.create_model, ("model_nam", "num_classes"))

    assert name == "model_nam"
    assert "needs model_name; it takes model_name, num_classes, pretrained; is 'model_nam' meant to be it?" in text


def test_parameters_without_names() -> None:
    """A parameter that takes no name cannot be written in YAML."""
    ((_, text),) = call_problems("a:b", hub_networks.by_place, ())

    assert "takes classes by place alone" in text


def test_factories_that_fit() -> None:
    """A call that fits has no problem; neither has one of a function without a signature."""
    assert list(call_problems("a:b", hub_networks.needs, ("classes",))) == []
    assert (
        list(call_problems("a:b", hub_networks.HubClassifier.from_pretrained, ("pretrained_model_name_or_path",))) == []
    )
    assert list(call_problems("a:b", math.hypot, ("x",))) == []
