"""A user's ONNX file as the FP32 reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from model_artifacts.errors import SourceError
from pipeline.adapters.onnx_network import OnnxNetwork
from tests.support.onnx_models import CLASSES, SIZE, make

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def saved(folder: Path, batch: int | str) -> Path:
    """Write a model."""
    file = folder / f"own-{batch}.onnx"
    onnx.save(make(batch=batch, opset=17), file)
    return file


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_fixed_batch_is_filled(tmp_path: Path, batch: int) -> None:
    """Five images in batches of any size give what they give together."""
    expected = OnnxNetwork(saved(tmp_path, "batch"))(IMAGES)
    found = OnnxNetwork(saved(tmp_path, batch), batch)(IMAGES)
    assert found.shape == (5, CLASSES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_images_may_lie_in_channels_last(tmp_path: Path) -> None:
    """The data stage tries both layouts."""
    network = OnnxNetwork(saved(tmp_path, "batch"))
    turned = IMAGES.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(turned), network(IMAGES), rtol=0, atol=0)


def test_a_file_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    """The error is ONNX Runtime's own."""
    file = tmp_path / "own.onnx"
    model = make()
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, file)
    with pytest.raises(SourceError, match=r"(?s)cannot load the ONNX file.*Unheard"):
        OnnxNetwork(file)
