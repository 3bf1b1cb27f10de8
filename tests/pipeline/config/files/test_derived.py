"""A configuration's YAML with other values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from model_artifacts.errors import ConfigError
from pipeline.config.files.derived import changed, plain_data, yaml_of
from pipeline.config.loading import load_config
from tests.support.configs import MATRIX

if TYPE_CHECKING:
    from pathlib import Path

TWO = "models: [{model: {name: a}}, {model: {name: b}}]\n"


def test_values_are_changed_at_any_depth_and_the_rest_stays() -> None:
    """The data that was given is left as it is."""
    data: dict[str, object] = {"tensorrt": {"refit": True}, "device": 0}
    found = changed(data, {"tensorrt.optimization_level": 5, "benchmark.batches": [1]})
    assert found == {
        "tensorrt": {"refit": True, "optimization_level": 5},
        "device": 0,
        "benchmark": {"batches": [1]},
    }
    assert data == {"tensorrt": {"refit": True}, "device": 0}


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("device", {"a": {"b": 1, "c": 2}}),
        ("a.b", {"a": {"c": 2}, "device": 0}),
        ("a.z", {"a": {"b": 1, "c": 2}, "device": 0}),
        ("none.z", {"a": {"b": 1, "c": 2}, "device": 0}),
    ],
    ids=["at the top", "inside", "missing inside", "missing section"],
)
def test_keys_are_left_out(place: str, expected: dict[str, object]) -> None:
    """One that is not there leaves everything as it is."""
    assert changed({"a": {"b": 1, "c": 2}, "device": 0}, {}, (place,)) == expected


def test_the_text_is_the_same_configuration(tmp_path: Path) -> None:
    """With comments above it."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(MATRIX + "data: {images: bücher}\n")
    data = plain_data(file)
    text = yaml_of(data, "first\nsecond")
    assert text.startswith("# first\n# second\n")
    assert yaml.safe_load(text) == data
    before = load_config(file)
    file.write_text(text)
    assert load_config(file) == before


def test_a_list_of_one_model_becomes_its_sections(tmp_path: Path) -> None:
    """So that changes of a section take effect, whether it stands in the entry or beside the list."""
    file = tmp_path / "pipeline.yaml"
    left = "leave_unquantized: {int8: [first]}"
    file.write_text(f"models:\n- model: {{name: m, weights: sample}}\n  {left}\n{MATRIX}")
    data = changed(plain_data(file), {"leave_unquantized.int8": ["a", "b"]}, ("release",))
    before, after = load_config(file), tmp_path / "tuned.yaml"
    after.write_text(yaml_of(data, "comment"))
    assert load_config(after).leave_unquantized.int8 == ("a", "b")
    assert load_config(after).model == before.model


@pytest.mark.parametrize(
    "text", ["- 1\n", "a: [\n", "a: 1\na: 2\n", TWO], ids=["a list", "no YAML", "a key twice", "two models"]
)
def test_other_files_are_refused_with_their_place(tmp_path: Path, text: str) -> None:
    """As `load_config` refuses them."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"pipeline.yaml:\d+:\d+"):
        plain_data(file)
