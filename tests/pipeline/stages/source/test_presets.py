"""The preprocessing of timm's configurations, and the range of inputs that weights were trained on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from model_artifacts.errors import SourceError
from model_artifacts.records import Argument, ChannelOrder, Fit, Interpolation, Offset, Preprocessing, Task
from model_artifacts.sessions.preprocessing import to_input, to_pixels
from pipeline.stages.source.presets import (
    hub_classes,
    hub_model_of,
    hub_preprocessing,
    own_preprocessing,
    require_problem,
    require_range_of,
    timm_classes,
    timm_preprocessing,
)
from tests.support.hub_networks import IMAGENET, LEVIT, VIT, HubClassifier, Pooled

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from pydantic import JsonValue

CLIP = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"}


def with_cfg(cfg: object) -> nn.Module:
    """Return a model with a `pretrained_cfg`, as timm's have it."""
    model = nn.Identity()
    model.pretrained_cfg = cfg  # type: ignore[assignment]  # torch types every attribute as a tensor or a module
    return model


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        ({"input_size": (3, 224, 224), "crop_pct": 0.875}, (256, 224, Fit.SQUASH, Interpolation.BICUBIC)),
        ({"input_size": (3, 224, 224), "crop_pct": None}, (256, 224, Fit.SQUASH, Interpolation.BICUBIC)),
        ({"input_size": (3, 288, 288), "crop_pct": 0.95}, (303, 288, Fit.SQUASH, Interpolation.BICUBIC)),
        (
            {"input_size": (3, 224, 224), "crop_pct": 1.0, "crop_mode": "squash"},
            ((224, 224), 224, Fit.SQUASH, Interpolation.BICUBIC),
        ),
        (
            {"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "border"},
            ((248, 248), 224, Fit.BORDER, Interpolation.BICUBIC),
        ),
        (
            {"input_size": (3, 192, 256), "crop_pct": 1.0},
            ((192, 256), (192, 256), Fit.COVER, Interpolation.BILINEAR),
        ),
        (
            {"input_size": (3, 224, 224), "crop_pct": 1.0, "interpolation": None},
            (224, 224, Fit.SQUASH, Interpolation.BICUBIC),
        ),
    ],
)
def test_timms_configurations(cfg: dict[str, object], expected: tuple[object, ...]) -> None:
    """Each crop mode of timm has its resize, its crop, its fit and its filter, from a mapping or an object."""
    for found in (
        timm_preprocessing(with_cfg(CLIP | cfg)),
        timm_preprocessing(with_cfg(SimpleNamespace(**CLIP | cfg))),
    ):
        assert found is not None
        assert (found.resize, found.crop, found.fit, found.interpolation) == expected
        assert found.mean == (0.5, 0.5, 0.5)


def test_other_models_have_none() -> None:
    """A model without `pretrained_cfg`, or with an empty one, leaves the preprocessing to the default."""
    assert timm_preprocessing(nn.Identity()) is None
    assert timm_preprocessing(with_cfg({})) is None


@pytest.mark.parametrize(
    "cfg",
    [
        {"input_size": 3},
        {"input_size": (3, 8, 8)},
        CLIP | {"input_size": (3, 8, 8.5)},
        CLIP | {"input_size": (3, 8, 8), "interpolation": "random"},
    ],
)
def test_configuration_that_is_not_timms(cfg: dict[str, object]) -> None:
    """An attribute of this name with other contents is refused with the setting to write."""
    with pytest.raises(SourceError, match=r"(?s)pretrained_cfg.*write `preprocessing`"):
        timm_preprocessing(with_cfg(cfg))


# Networks of Hugging Face

CROP = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ((32, 32), (32, 32), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5))),
        ({"size": 24, "resample": 3}, ((24, 24), (24, 24), Interpolation.BICUBIC, ChannelOrder.RGB, (0.5, 0.5, 0.5))),
        (
            {
                "image_processor_type": "DeiTImageProcessor",
                "do_center_crop": True,
                "crop_size": {"height": 28, "width": 28},
            },
            ((32, 32), (28, 28), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5)),
        ),
        (
            {
                "image_processor_type": "MobileViTImageProcessorFast",
                "size": {"shortest_edge": 288},
                "do_center_crop": True,
                "crop_size": {"height": 256, "width": 256},
                "do_flip_channel_order": True,
                "do_normalize": None,
            },
            (288, (256, 256), Interpolation.BILINEAR, ChannelOrder.BGR, (0.0, 0.0, 0.0)),
        ),
        (
            {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 224}, **CROP},
            (256, (28, 28), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5)),
        ),
        (
            {"image_processor_type": "LevitImageProcessorFast", **CROP},
            ((32, 32), (28, 28), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5)),
        ),
        (
            {
                "image_processor_type": "PoolFormerImageProcessor",
                "size": {"shortest_edge": 224},
                "crop_pct": 0.9,
                **CROP,
            },
            (248, (28, 28), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5)),
        ),
        (
            {"image_processor_type": "PoolFormerImageProcessorPil", "crop_pct": 0.9, **CROP},
            (35, (28, 28), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5)),
        ),
        (
            {
                "image_processor_type": "PoolFormerImageProcessor",
                "size": {"height": 36, "width": 45},
                "crop_pct": 0.9,
                **CROP,
            },
            ((40, 50), (28, 28), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5)),
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
            (256, (224, 224), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5)),
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.875},
            ((384, 384), (384, 384), Interpolation.BILINEAR, ChannelOrder.RGB, (0.5, 0.5, 0.5)),
        ),
    ],
)
def test_image_processors(change: dict[str, object], expected: tuple[object, ...]) -> None:
    """The steps of each processor are those that transformers itself takes, compared with it on pictures (5.24)."""
    found = hub_preprocessing(VIT | change)

    assert (found.resize, found.crop, found.interpolation, found.order, found.mean) == expected


PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIP": {"size": {"shortest_edge": 37}, "crop_size": {"height": 24, "width": 31}},
    "MobileNetV2": {"size": {"shortest_edge": 40}, "crop_size": {"height": 33, "width": 33}},
    "ConvNext": {"size": {"shortest_edge": 30}, "crop_pct": 0.875},
    "PoolFormer": {"size": {"shortest_edge": 33}, "crop_size": {"height": 31, "width": 31}, "crop_pct": 0.9},
    "ViT": {"size": {"height": 35, "width": 36}},
    "Bit": {"size": {"height": 38, "width": 41}, "crop_size": {"height": 35, "width": 34}},
}


@pytest.mark.parametrize("name", PROCESSORS)
@settings(deadline=None, max_examples=25)
@given(width=st.integers(20, 120), height=st.integers(20, 120))
def test_pictures_of_any_size_equal_transformers_own(name: str, width: int, height: int) -> None:
    """Its processor and the preprocessing taken over from it give the same inputs: the same crop, above all."""
    transformers = pytest.importorskip("transformers", reason="its own processors, where they are installed")
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**PROCESSORS[name])
    spec = hub_preprocessing(processor.to_dict())
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)

    expected = processor(image, return_tensors="np")["pixel_values"]
    found = to_input(to_pixels(image, spec)[None], spec)

    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, Offset.DOWN),
        ({"size": {"height": 35, "width": 32}, "do_center_crop": True, "crop_size": 32}, Offset.DOWN),
        ({"size": {"height": 36, "width": 33}, "do_center_crop": True, "crop_size": 32}, Offset.EVEN),
        ({}, Offset.EVEN),
    ],
    ids=["short-side", "three-pixels", "others", "no-crop"],
)
def test_the_crop_of_a_processor_has_its_offset(change: dict[str, object], expected: Offset) -> None:
    """Unless both offsets are the same for every picture, so that records of such processors hold."""
    found = hub_preprocessing(VIT | {"image_processor_type": "CLIPImageProcessor"} | change)
    assert found.offset is expected


@pytest.mark.parametrize(
    "change",
    [
        {"image_processor_type": "PerceiverImageProcessor"},
        {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 32}},
        {"image_processor_type": "EfficientNetImageProcessor", "image_std": None, "include_top": True},
        {"do_resize": False},
        {"rescale_offset": True},
        {"do_pad": True},
        {"size": {"shortest_edge": 224}},
        {"size": {"longest_edge": 224}},
        {"resample": 9},
        {"image_mean": None},
        {"do_center_crop": True},
        {"do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
    ],
)
def test_processors_that_do_more_are_refused(change: dict[str, object]) -> None:
    """Steps that a preprocessing does not hold, or that are missing, are refused with the setting to write."""
    with pytest.raises(
        SourceError, match=r"(?s)preprocessor_config\.json cannot be taken over.*preprocessing: {resize: "
    ):
        hub_preprocessing(VIT | change)


EFFICIENTNET = VIT | {
    "image_processor_type": "EfficientNetImageProcessor",
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.479, 0.473, 0.474),
    "include_top": True,
    "rescale_offset": False,
    "resample": 0,
}
"""The settings of google/efficientnet-b0's, for small images."""
SCALES = {
    "efficientnet": (EFFICIENTNET, lambda x, mean, std: (x / 255 - mean) / std / std),
    "efficientnet, centred": (
        EFFICIENTNET | {"rescale_offset": True, "rescale_factor": 1 / 127.5},
        lambda x, mean, std: (x / 127.5 - 1 - mean) / std / std,
    ),
    "efficientnet, no head": (
        EFFICIENTNET | {"include_top": False, "do_normalize": False, "rescale_offset": True},
        lambda x, _mean, _std: x / 255 - 1,
    ),
    "wide": (VIT | {"rescale_factor": 1 / 127.5}, lambda x, mean, std: (x / 127.5 - mean) / std),
    "bytes": (VIT | {"do_rescale": False, "image_mean": 127.0, "image_std": 64.0}, lambda x, _m, _s: (x - 127) / 64),
    "digits": (VIT | {"rescale_factor": 0.00392156862745}, lambda x, mean, std: (x / 255 - mean) / std),
}


@pytest.mark.parametrize(("settings", "formula"), SCALES.values(), ids=SCALES)
def test_scales_and_offsets_are_taken_over(
    settings: dict[str, Any], formula: Callable[..., npt.NDArray[np.float64]]
) -> None:
    """The mean and the std from 0 to 1 give what the processor's own steps give, for every value of a pixel."""
    spec = hub_preprocessing(settings | {"size": {"height": 1, "width": 256}})
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    mean, std = np.asarray(settings["image_mean"]), np.asarray(settings["image_std"])
    found = to_input(pixels[None, None], spec)[0, :, 0].T
    np.testing.assert_allclose(found, formula(pixels.astype(np.float64), mean, std), rtol=1e-5, atol=1e-5)


def test_a_scale_of_many_digits_is_the_usual_one() -> None:
    """1/255 as JSON writes it leaves the mean and the std as they are written."""
    spec = hub_preprocessing(VIT | {"rescale_factor": 0.00392156862745098})
    assert (spec.mean, spec.std) == ((0.5,) * 3, (0.5,) * 3)


def test_origin_of_a_network() -> None:
    """A network of transformers says where it came from; others do not, nor one that was made from a configuration."""
    assert hub_model_of(HubClassifier("mapping", origin="folder")) == ("folder", None)
    assert hub_model_of(HubClassifier("mapping")) is None
    assert hub_model_of(nn.Identity()) is None


def test_names_of_classes() -> None:
    """Names come from `id2label` in the order of the logits; placeholders are none."""
    model = HubClassifier("mapping")
    assert hub_classes(model) == ("cat", "dog", "fox")

    model.config.id2label = {"1": "dog", "0": "cat"}
    assert hub_classes(model) == ("cat", "dog")
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    assert hub_classes(model) is None
    model.config.id2label = {1: "cat", 2: "dog"}
    assert hub_classes(model) is None
    assert hub_classes(nn.Identity()) is None
    assert timm_classes(with_cfg({"label_names": ["cat", "dog"]})) == ("cat", "dog")
    assert timm_classes(with_cfg({})) is None


@pytest.mark.parametrize("size", [48, [48, 32]])
def test_another_size_than_timms_is_refused(size: JsonValue) -> None:
    """Timm's configuration keeps its size when a network is made for another, so its preprocessing would be wrong."""
    model, arguments = Pooled(3, LEVIT), (Argument(name="img_size", value=size),)

    with pytest.raises(SourceError, match=r"(?s)`img_size` is another size.*32×32.*48"):
        own_preprocessing(model, arguments)
    assert own_preprocessing(model, (Argument(name="img_size", value=32), Argument(name="depth", value=48))) is not None


def normalised(mean: float, std: float, **more: object) -> Preprocessing:
    """Return ImageNet's preprocessing with other statistics."""
    return IMAGENET.model_copy(update={"mean": (mean,) * 3, "std": (std,) * 3, **more})


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), (0.48, 0.27), (0.449, 0.226)])
def test_other_statistics_of_the_same_range_are_taken(mean: float, std: float) -> None:
    """CLIP's statistics, or a grey mean, keep the inputs where the weights expect them."""
    require_range_of(IMAGENET, normalised(mean, std))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (0.0, 0.2), (0.5, 0.05), (0.0, 1 / 255)])
def test_inputs_out_of_the_weights_range_are_refused(mean: float, std: float) -> None:
    """Inputs that fill a part of the trained range, or lie beside it, need a line that says so."""
    written = normalised(mean, std)
    with pytest.raises(SourceError, match=r"(?s)other inputs than.*from -2\.118 to 2\.64.*input_range: \["):
        require_range_of(IMAGENET, written)
    require_range_of(IMAGENET, written.model_copy(update={"input_range": written.reach}))


def test_a_model_of_several_labels_is_no_classification() -> None:
    """Transformers says what a model was trained for, and the message has the task to write."""
    model = nn.Identity()
    for problem in (None, "single_label_classification", "multi_label_classification"):
        model.config = SimpleNamespace(problem_type=problem)  # type: ignore[assignment]  # as transformers has it
        require_problem(model, Task.MULTILABEL)
        if problem != "multi_label_classification":
            require_problem(model, Task.CLASSIFICATION)
    with pytest.raises(SourceError, match=r"(?s)`model.task: multilabel`.*got: +`task: classification`"):
        require_problem(model, Task.CLASSIFICATION)
    require_problem(nn.Identity(), Task.CLASSIFICATION)
