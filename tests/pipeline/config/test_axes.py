"""Dynamic axes in `profiles`: what is taken, what is refused, and the sizes that artifacts are checked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError
from model_artifacts.records import AxisRange, BatchRange
from pipeline.config.axes import (
    InputAxes,
    axes_of_all,
    checked_sizes,
    input_axes,
    label_axes,
    named_inputs,
    own_sizes,
    shown_sizes,
)
from pipeline.config.loading import load_config
from pipeline.planning.keys import make_key
from pipeline.records import tensor_spec
from tests.support.plans import config_of, engines_of, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEIGHT = {"min": 160, "opt": 224, "max": 320}
WIDTH = {"min": 128, "opt": 224, "max": 512}
TAGS = "data: {tensors: a.npz, labels: tags, axes: {words: [height], tags: [AXIS]}}"


def axis(name: str, low: int, best: int, high: int) -> AxisRange:
    """Return an axis."""
    return AxisRange(name=name, min=low, opt=best, max=high)


def test_a_profile_has_a_batch_and_other_axes() -> None:
    """The batch is a size or a range; the name of a variant tells every range."""
    config = config_of(profiles=[1, {"batch": 8, "height": HEIGHT}, {"batch": {"min": 1, "opt": 2, "max": 4}}])
    first, second, third = config.profiles
    assert (first.axes, third.axes) == ((), ())
    assert second == BatchRange(min=8, opt=8, max=8, axes=(axis("height", 160, 224, 320),))
    names = [variant.name for variant in engines_of(plan_of(profiles=[1, {"batch": 8, "height": HEIGHT}]))]
    assert names == ["fp32-b1-ws1GiB", "fp32-b8-height160-224-320-ws1GiB"]


def test_a_profile_without_axes_keeps_its_keys() -> None:
    """The record of a batch range says nothing of axes that it does not have, and so no key changes."""
    plain = BatchRange(min=1, opt=2, max=4)
    assert plain.model_dump(mode="json") == {"min": 1, "opt": 2, "max": 4}
    (written,) = config_of(profiles=[{"batch": {"min": 1, "opt": 2, "max": 4}}]).profiles
    assert make_key(profile=written) == make_key(profile=plain)


def test_all_profiles_together_take_the_sizes_of_each() -> None:
    """An ONNX file takes whatever one of the profiles takes; height comes before width, as in NCHW."""
    found = axes_of_all([(axis("width", 8, 16, 32),), (), (axis("width", 4, 8, 20), axis("height", 2, 3, 4))])
    assert found == (axis("height", 2, 3, 4), axis("width", 4, 16, 32))


def test_every_end_of_every_axis_is_checked() -> None:
    """Also one between, and each axis at one end while the others are at the other one."""
    found = checked_sizes((axis("height", 24, 32, 48), axis("width", 24, 40, 64)))
    pairs = [(sizes[0][1], sizes[1][1]) for sizes in found]
    assert pairs == [(24, 24), (32, 40), (48, 64), (37, 45), (24, 64), (48, 24)]
    assert checked_sizes(()) == ()
    assert checked_sizes((axis("width", 7, 7, 8),)) == ((("width", 7),), (("width", 8),))
    assert shown_sizes(found[1]) == "height 32, width 40"


def test_sizes_that_only_all_profiles_together_take_are_checked() -> None:
    """One profile has heights and the other widths, so that an ONNX file takes images that neither of them takes."""
    high, wide = {"min": 24, "opt": 32, "max": 40}, {"min": 24, "opt": 32, "max": 48}
    config = config_of(profiles=[{"batch": 1, "height": high}, {"batch": 1, "width": wide}])
    assert {*checked_sizes(config.axes)} <= {*config.checked_sizes}
    assert (("height", 40), ("width", 48)) in config.checked_sizes
    assert (("height", 40),) in config.checked_sizes, "an engine of the first profile has one axis"
    alone = config_of(profiles=[1, {"batch": 1, "height": high, "width": wide}])
    assert alone.checked_sizes == checked_sizes(alone.axes), "one profile keeps its keys"


def test_labels_name_their_axes_beside_the_inputs() -> None:
    """An array that follows is an input or the labels by its name; an input's axes are known without the labels'."""
    axes = {"tokens": ["sequence"], "tags": ["sequence", None]}
    config = config_of(
        model={"factory": "a:b", "task": "tensors", "metric": "a:b"},
        data={"tensors": "a.npz", "labels": "tags", "axes": axes},
        profiles=[{"batch": 8, "sequence": {"min": 8, "opt": 64, "max": 128}}],
    )
    assert label_axes(config.data) == ("sequence", None)
    assert [item.input for item in input_axes(config.data)] == ["tokens"]
    assert label_axes(config.data.model_copy(update={"labels": None})) == ()


def test_arrays_name_their_axes() -> None:
    """A profile takes these names; a name that no profile has a range for keeps its size, and so does null."""
    lengths = {"min": 8, "opt": 64, "max": 128}
    config = config_of(
        model={"factory": "a:b", "task": "tensors"},
        data={"tensors": "a.npz", "axes": {"tokens": ["sequence"], "frames": [None, "sequence", None]}},
        profiles=[1, {"batch": 8, "sequence": lengths}],
    )
    assert config.data.axes == (
        InputAxes(input="tokens", axes=("sequence",)),
        InputAxes(input="frames", axes=(None, "sequence", None)),
    )
    specs = (tensor_spec("tokens", (128,), "int64"), tensor_spec("frames", (3, 128, 9)))
    named = named_inputs(specs, config.data.axes, config.axes)
    assert [spec.shape for spec in named] == [("batch", "sequence"), ("batch", 3, "sequence", 9)]
    assert own_sizes(specs, named) == {"sequence": 128}
    assert named_inputs(specs, config.data.axes, ()) == specs, "nothing is dynamic without a range"
    assert [profile.label for profile in config.profiles] == ["b1", "b8-sequence8-64-128"]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ("[sequence]", r"expected the names of the axes of each input, such as {tokens: \[sequence\]}, got"),
        ("{tokens: sequence}", ".tokens: expected a list with the name of each axis behind the sample, got 'sequence'"),
        ("{tokens: []}", ".tokens: expected a list"),
        ("{tokens: [8]}", r".tokens\[0\]: expected letters, digits and `_`, or null for a fixed axis, got 8"),
        ("{tokens: ['a-b']}", r".tokens\[0\]: expected letters, digits and `_`"),
        ("{tokens: [batch]}", r".tokens\[0\]: expected the axes behind the sample, got `batch`"),
    ],
    ids=["a list", "a text", "an empty list", "a number", "a dash", "the batch"],
)
def test_a_wrong_name_of_an_axis_is_refused(write_config: Callable[[str], Path], axes: str, said: str) -> None:
    """Each mistake has its line, what was expected, and what was written. `test_problems` has the columns."""
    file = write_config(f"workspaces: [1GiB]\nprofiles: [1]\ndata:\n  tensors: a.npz\n  axes: {axes}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(file)
    assert f"{file}:5:" in str(caught.value)


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("{batch: 8, height: 224}", "height: expected {min, opt, max}, got 224"),
        ("{batch: 8, height: {min: 1, max: 2}}", "missing key 'profiles[0].height.opt'"),
        ("{batch: 8, height: {min: 0, opt: 1, max: 2}}", "height.min: expected at least 1, got 0"),
        ("{batch: 8, height: {min: 3, opt: 2, max: 4}}", "height: expected min ≤ opt ≤ max"),
        ("{batch: 8, height: {min: 3, opt: 3, max: 3}}", "height: expected min < max, got 3 for both"),
        ("{min: 1, opt: 1, max: 1, height: {min: 1, opt: 2, max: 3}}", "expected the batch beside height"),
        ("{batch: 0, height: {min: 1, opt: 2, max: 3}}", "expected a batch of at least 1"),
        ("{batch: 1, depth: {min: 1, opt: 2, max: 3}}", "images have no axis 'depth'; expected height or width"),
    ],
    ids=["a number", "no opt", "zero", "no order", "one size", "no batch", "batch of zero", "unknown axis"],
)
def test_a_wrong_axis_is_refused(write_config: Callable[[str], Path], profile: str, said: str) -> None:
    """Each mistake has its line, what was expected, and what was written. `test_problems` has the columns."""
    file = write_config(f"workspaces: [1GiB]\nprofiles:\n  - {profile}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert f"{file}:3:" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "model: {task: tensors, factory: 'a:b'}\ndata: {tensors: a.npz}",
            r"yaml:4:31: `profiles\[0\]`: no input has the axis 'height'; name it, such as `data: {axes: {tokens: ",
        ),
        (
            "model: {task: tensors, factory: 'a:b'}\ndata: {tensors: a.npz, axes: {words: [sequence]}}",
            "no input has the axis 'height'; `data.axes` names sequence",
        ),
        (
            "model: {task: tensors, factory: 'a:b'}\ndata: {tensors: a.npz, axes: {words: [height, sequence]}}",
            "yaml:2:47: `data.axes.words`: no profile has a range for 'sequence'; write one, such as",
        ),
        (
            f"model: {{task: tensors, factory: 'a:b', metric: 'a:b'}}\n{TAGS.replace('AXIS', 'sequence')}",
            r"yaml:2:\d+: `data.axes.tags`: no input has the axis 'sequence', which the labels follow",
        ),
        (
            f"model: {{task: regression, tolerance: 1, factory: 'a:b'}}\n{TAGS.replace('AXIS', 'height')}",
            "`data.axes.tags`: labels of `task: regression` have one size; remove it",
        ),
        ("data: {axes: {words: [height]}}", "`data.axes` names axes of `data.tensors`; those of images are height and"),
    ],
    ids=["no names", "another name", "no range", "labels", "labels of rows", "images"],
)
def test_an_axis_without_names_or_range_is_refused(write_config: Callable[[str], Path], more: str, said: str) -> None:
    """Maps follow the image, and the axes of arrays need names and ranges."""
    text = f"{more}\nworkspaces: [1GiB]\nprofiles: [{{batch: 1, height: {{min: 8, opt: 16, max: 32}}}}]\n"
    with pytest.raises(ConfigError, match=said):
        load_config(write_config(text))
