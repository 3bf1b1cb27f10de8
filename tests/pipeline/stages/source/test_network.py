"""Network inspection and torchvision's weights: classes, heads, downloads."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import pytest
import torch
from torch import nn

from model_artifacts.errors import SourceError
from pipeline.stages.source.network import cached_file, fetch, find_head, output_shapes
from pipeline.stages.source.torchvision_weights import usual_entry
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchvision.models import WeightsEnum


SHAPE = (3, 32, 32)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def resnet18(hub: Path) -> WeightsEnum:
    """Torchvision's entry for ResNet18, with nothing downloaded."""
    assert not hub.exists()
    weights = usual_entry("torchvision.models:resnet18")
    assert weights is not None
    return weights


# What a model takes and gives


def test_classes_are_counted() -> None:
    """The number of classes is that of the logits."""
    assert output_shapes(factories.three_classes().eval(), SHAPE) == ((3,),)


def test_model_with_another_input() -> None:
    """A model that cannot take the images is refused with their shape and its error."""
    with pytest.raises(SourceError, match=r"(?s)one input \(batch, 3, 32, 32\).*expected input\[2, 3, 32, 32\]"):
        output_shapes(factories.greyscale().eval(), SHAPE)


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (nn.Conv2d(3, 10, 3), r"shape \(2, 10, 30, 30\)"),
        (nn.Flatten(0), r"shape \(6144,\)"),
        (nn.Sequential(nn.Flatten(), nn.Unflatten(0, (1, 2)), nn.Flatten(0, 1), nn.Unflatten(1, (1, 3072))), "shape"),
        (factories.TwoOutputs(), "tuple"),
    ],
)
def test_model_without_logits(model: nn.Module, got: str) -> None:
    """A model whose output is not (batch, classes) is refused with the shape of its output."""
    with pytest.raises(SourceError, match=rf"(?s)does not return logits.*one output \(batch, classes\).*got: +{got}"):
        output_shapes(model, SHAPE)


def test_head_is_the_last_linear_layer() -> None:
    """The head is found by its name in the model."""
    assert find_head(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.ReLU())).name == "1"


def test_model_without_a_head() -> None:
    """A model without a linear layer is refused with the alternatives to the sample weights."""
    with pytest.raises(SourceError, match=r"(?s)ends in torch.nn.Linear.*Conv2d.*set `model.weights`"):
        find_head(factories.feature_map())


# torchvision's weights


def test_cached_weights_are_not_downloaded(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in torch's cache is taken as it is."""
    file = cached_file(resnet18)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)

    assert fetch(resnet18, 1.0) == file


def test_weights_are_downloaded(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download goes into torch's cache, is checked against the digest in its name, and may be silent so long."""
    asked: list[tuple[str, str | None, float | None]] = []

    def download(url: str, target: str, hash_prefix: str | None = None, *, progress: bool = True) -> None:
        assert not progress
        asked.append((url, hash_prefix, socket.getdefaulttimeout()))
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)

    file = fetch(resnet18, 2.5)

    assert file.read_bytes() == b"weights"
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd", 2.5)]


@pytest.mark.parametrize(
    "error",
    [URLError("unreachable"), TimeoutError("silent"), RuntimeError('invalid hash value (expected "f3", got "00")')],
)
def test_failed_download(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A download that fails says why, and where a file fetched by hand may be put."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", _raiser(error))

    with pytest.raises(SourceError, match=r"(?s)cannot be downloaded.*put the file at .*resnet18-f37072fd\.pth"):
        fetch(resnet18, 1.0)


def test_timeout_is_restored(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's default timeout is restored, also after a failed download."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", _raiser(URLError("unreachable")))
    before = socket.getdefaulttimeout()

    with pytest.raises(SourceError):
        fetch(resnet18, 1.0)

    assert socket.getdefaulttimeout() == before


def test_connection_that_breaks_off(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that ends in the middle (http.client's errors are no OSErrors) is a failed download."""
    from http.client import IncompleteRead  # noqa: PLC0415 - for this test alone

    monkeypatch.setattr(torch.hub, "download_url_to_file", _raiser(IncompleteRead(b"half")))

    with pytest.raises(SourceError, match="cannot be downloaded"):
        fetch(resnet18, 1.0)


def test_cache_that_cannot_be_made(resnet18: WeightsEnum, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be made (a read-only home) is a failed download."""
    hub.write_text("a file where the folder should be")
    monkeypatch.setattr(torch.hub, "download_url_to_file", _raiser(URLError("unreachable")))

    with pytest.raises(SourceError, match="cannot be downloaded"):
        fetch(resnet18, 1.0)


def _raiser(error: Exception) -> Callable[..., None]:
    def download(*_: object, **__: object) -> None:
        raise error

    return download
