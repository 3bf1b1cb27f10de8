"""Means and standard deviations that blind a network are refused with the line to write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError
from pipeline.config.loading import load_config
from tests.support.configs import MATRIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.config.settings import Config

    Problems = Callable[[str], list[str]]

START = "preprocessing: {resize: 32, crop: 32, interpolation: bilinear, "
IMAGENET = "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]"
LONGEST = 160
"""Characters of a line of a message: those of a fix with three means, three stds and a range."""
CAFFE = "mean: [0.408, 0.459, 0.485], std: [0.003922, 0.003922, 0.003922]"


def written(statistics: str) -> str:
    """Return a configuration with these statistics."""
    return f"{MATRIX}{START}{statistics}}}\n"


@pytest.mark.parametrize(
    ("statistics", "advice"),
    [
        (
            "mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375]",
            "write mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]",
        ),
        ("mean: [0], std: [255]", "write mean: [0], std: [1]"),
        ("mean: [127.5], std: [127.5]", "write mean: [0.5], std: [0.5]"),
        (
            "mean: [123.675, 116.28, 103.53], std: [0.229, 0.224, 0.225]",
            "write mean: [0.485, 0.456, 0.406], std: [0.229",
        ),
        ("mean: [0.485, 0.456, 0.406], std: [58.395, 57.12, 57.375]", "std: [0.229, 0.224, 0.225]"),
        (
            "mean: [104, 117, 124], std: [1, 1, 1]",
            "write mean: [0.4078, 0.4588, 0.4863], std: [0.003922, 0.003922, 0.003922], input_range: [-124, 151]",
        ),
        ("mean: [-1], std: [2]", "if this network was trained on such inputs, write input_range: [0.5, 1]"),
    ],
)
def test_units_of_0_to_255_are_refused(problems: Problems, statistics: str, advice: str) -> None:
    """Statistics that no values from 0 to 1 have are refused at their place, with those of 0 to 1 to write."""
    (found,) = problems(written(statistics))
    assert found.startswith("3:70: `preprocessing`: pixels are scaled to 0 to 1 first")
    assert advice in found
    assert [line.split(":")[0].strip() for line in found.splitlines()[1:]] == ["expected", "got", "fix"]
    assert max(map(len, found.splitlines())) <= LONGEST


def test_inputs_far_out_of_range_are_refused(problems: Problems) -> None:
    """A std that was divided by 255 once too often makes huge inputs."""
    (found,) = problems(written("mean: [0.5, 0.5, 0.5], std: [0.001, 0.001, 0.001]"))
    assert "`preprocessing.std`: normalised inputs reach beyond ±10\n" in found
    assert "std [0.001, 0.001, 0.001]: inputs from -500 to 500\n" in found
    assert found.endswith("write input_range: [-500, 500]")


@pytest.mark.parametrize(
    "statistics",
    [
        IMAGENET,
        "mean: [0], std: [1]",
        "mean: [0.1307], std: [0.3081]",
        "mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711]",
        "mean: [0.43, 0.411, 0.296], std: [0.213, 0.156, 0.143]",
        f"{CAFFE}, order: bgr, input_range: [-123.7, 151]",
        "mean: [0.5], std: [0.001], input_range: [-500, 500]",
        "mean: [-1], std: [2], input_range: [0.5, 1]",
        "mean: [0.406, 0.456, 0.485], std: [0.225, 0.224, 0.229], order: rgb",
        "mean: [0.406, 0.456, 0.485], std: [0.225, 0.224, 0.229], order: bgr",
    ],
)
def test_statistics_that_libraries_use_are_taken(load: Callable[[str], Config], statistics: str) -> None:
    """torchvision's, timm's and MNIST's need no further line; Caffe's have it."""
    assert load(written(statistics)).preprocessing is not None


def test_stated_range_must_be_the_range(problems: Problems) -> None:
    """A range that mean and std do not give hides nothing."""
    text = written("mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375], input_range: [-2.2, 2.7]")
    (found,) = problems(text)
    assert "`preprocessing.input_range` is not the range" in found
    assert found.endswith("expected [-2.118, -1.787], got [-2.2, 2.7]")


def test_mean_of_imagenet_in_reverse_is_refused(problems: Problems) -> None:
    """A mean with blue first shows a network that takes blue first, or a mistake."""
    (found,) = problems(written("mean: [0.406, 0.456, 0.485], std: [0.225, 0.224, 0.229]"))
    assert "fix:      write mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]\n" in found
    assert "or:       order: bgr if the network takes blue first, order: rgb" in found


@pytest.mark.parametrize(
    ("sizes", "refused"),
    [
        ("resize: 100000, crop: 224", ["3:25: `preprocessing.resize`: expected at most 16384 pixels, got 100000"]),
        (
            "resize: [224, 20000], crop: [224, 224], fit: squash",
            ["3:25: `preprocessing.resize`: expected at most 16384"],
        ),
        ("resize: 16384, crop: 16384", []),
    ],
)
def test_side_that_no_memory_holds_is_refused(
    write_config: Callable[[str], Path], sizes: str, refused: list[str]
) -> None:
    """A slip of some digits ends here, and not when the memory does."""
    file = write_config(f"{MATRIX}preprocessing: {{{sizes}, interpolation: bilinear, {IMAGENET}}}\n")
    if not refused:
        assert load_config(file).preprocessing is not None
        return
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    (found,) = caught.value.problems
    assert found.removeprefix(f"{file}:").startswith(refused[0])
