"""Networks with torchvision's weights: torchvision's own network, when it is made and when it is restored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torchvision.models import GoogLeNet, densenet121, googlenet, mnasnet0_5, resnet18

from model_artifacts.errors import SourceError
from model_artifacts.records import Preprocessing, WeightsOrigin
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.source.stage import make_source
from pipeline.stages.source.torchvision_weights import entry_of_file, preprocessing_of, usual_entry
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCH = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


def project_of(write_config: Callable[[str], Path], factory: str, weights: str) -> Project:
    """Return a project with one of torchvision's factories and these weights."""
    return Project.load(write_config(factories.configuration(f"torchvision.models:{factory}", weights=weights)), STAGES)


def logits(model: nn.Module) -> torch.Tensor:
    """Return a network's answer."""
    with torch.inference_mode():
        answer: torch.Tensor = model.eval()(BATCH)
    return answer


def inception_like() -> Any:
    """Return GoogLeNet's weights as torchvision's file holds them, with statistics that the input decides."""
    torch.manual_seed(1)
    model = GoogLeNet(init_weights=False, aux_logits=True, transform_input=True)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            norm.reset_running_stats()
    with torch.no_grad():
        model(BATCH)
    return model.state_dict()


@pytest.mark.part(2, of="networks at full size")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_cache", [True, False])
def test_settings_of_the_weights(
    write_config: Callable[[str], Path], hub: Path, tmp_path: Path, *, in_cache: bool
) -> None:
    """GoogLeNet scales its input again with torchvision's weights, also if their file is named in the configuration."""
    file = (hub if in_cache else tmp_path) / "googlenet-1378be20.pth"
    torch.save(inception_like(), file)
    project = project_of(write_config, "googlenet", "IMAGENET1K_V1" if in_cache else str(file))

    record = make_source(project)
    restored: Any = restore_model(project)

    torch.save(inception_like(), hub / file.name)
    assert (record.origin, record.torchvision_weights) == (WeightsOrigin.IMAGENET1K_V1, "IMAGENET1K_V1")
    assert restored.transform_input is True
    assert torch.equal(logits(restored), logits(googlenet(weights="IMAGENET1K_V1")))


@pytest.mark.filterwarnings("ignore")
def test_checkpoint_that_fits_two_networks(write_config: Callable[[str], Path], hub: Path, tmp_path: Path) -> None:
    """A checkpoint of one's own does not say whether the network scales its input, and is refused with the setting."""
    assert hub.is_dir()
    torch.save(inception_like(), tmp_path / "mine.pth")

    with pytest.raises(
        SourceError, match=r"(?s)another network.*mine\.pth.*transform_input=False.*arguments: {transform_input: true}"
    ):
        make_source(project_of(write_config, "googlenet", str(tmp_path / "mine.pth")))


@pytest.mark.part(2, of="networks at full size")
def test_names_of_old_files(write_config: Callable[[str], Path], hub: Path) -> None:
    """DenseNet's file names its layers as torchvision did in its first year; torchvision renames them."""
    model = densenet121()
    state = model.state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): state[name] for name in state}
    assert old.keys() != state.keys()
    torch.save({name: old[name] for name in old if "num_batches" not in name}, hub / "densenet121-a639ec97.pth")
    project = project_of(write_config, "densenet121", "auto")

    make_source(project)

    assert torch.equal(logits(restore_model(project)), logits(model))


@pytest.mark.filterwarnings("ignore:A new version of MNASNet")
def test_a_files_version_builds_another_network(write_config: Callable[[str], Path], tmp_path: Path) -> None:
    """A first version of MNASNet, which its own migration builds, is restored as such."""
    model = mnasnet0_5()
    first: Any = model.state_dict()
    first._metadata[""]["version"] = 1  # noqa: SLF001 - the place where torch looks for it
    with pytest.raises(RuntimeError):
        model.load_state_dict(first)  # the wrong weights, but the network is that of version 1 by now
    torch.save(model.state_dict(), tmp_path / "first.pth")
    project = project_of(write_config, "mnasnet0_5", str(tmp_path / "first.pth"))

    make_source(project)

    assert torch.equal(logits(restore_model(project)), logits(model))


def test_another_name_of_torchvisions(write_config: Callable[[str], Path], hub: Path) -> None:
    """`DEFAULT`, like every name of torchvision's, stands for the weights that torchvision gives it."""
    torch.manual_seed(1)
    torch.save(resnet18().state_dict(), hub / "resnet18-f37072fd.pth")

    record = make_source(project_of(write_config, "resnet18", "DEFAULT"))

    assert record.origin_detail == "torchvision ResNet18_Weights.IMAGENET1K_V1"


def test_names_that_torchvision_does_not_have(write_config: Callable[[str], Path]) -> None:
    """A name that is no weights' is refused with the names that there are."""
    with pytest.raises(SourceError, match=r"(?s)no imagenet weights.*expected: +one of IMAGENET1K_V1, DEFAULT"):
        make_source(project_of(write_config, "resnet18", "imagenet"))


@pytest.mark.parametrize("spec", ["tests.support.tiny_model:make", "torchvision.models:get_model"])
def test_other_factories_have_no_weights(spec: str, tmp_path: Path) -> None:
    """Only torchvision's own factories have its weights."""
    (tmp_path / "resnet18-f37072fd.pth").touch()
    assert usual_entry(spec) is None
    assert entry_of_file(spec, tmp_path / "resnet18-f37072fd.pth") is None


def test_preprocessing_of_the_second_version() -> None:
    """Weights of another name have the preprocessing that torchvision gives them."""
    from torchvision.models import ResNet50_Weights  # noqa: PLC0415 - for this test alone

    assert preprocessing_of(ResNet50_Weights.IMAGENET1K_V2) == Preprocessing(
        resize=232, crop=224, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


def test_weights_of_no_classifier() -> None:
    """Weights of a detector have no preprocessing of a classifier."""
    from torchvision.models.segmentation import FCN_ResNet50_Weights  # noqa: PLC0415 - for this test alone

    with pytest.raises(SourceError, match="not the weights of an image classifier"):
        preprocessing_of(FCN_ResNet50_Weights.DEFAULT)
