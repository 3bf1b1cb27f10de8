"""The preprocessing of timm's configurations, and the range of inputs that weights were trained on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from model_artifacts.errors import SourceError
from model_artifacts.records import Fit, Interpolation, Preprocessing
from pipeline.stages.source.presets import require_range_of, timm_preprocessing
from pipeline.stages.source.stage import IMAGENET

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
            {"input_size": (3, 224, 224), "crop_pct": 1.0, "interpolation": "random"},
            (224, 224, Fit.SQUASH, Interpolation.BILINEAR),
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


@pytest.mark.parametrize("cfg", [{"input_size": 3}, {"input_size": (3, 8, 8)}, CLIP | {"input_size": (3, 8, 8.5)}])
def test_configuration_that_is_not_timms(cfg: dict[str, object]) -> None:
    """An attribute of this name with other contents is refused with the setting to write."""
    with pytest.raises(SourceError, match=r"(?s)pretrained_cfg.*write `preprocessing`"):
        timm_preprocessing(with_cfg(cfg))


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
