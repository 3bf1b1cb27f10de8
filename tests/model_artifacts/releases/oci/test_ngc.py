"""NVIDIA's containers for engines."""

from __future__ import annotations

import re

from model_artifacts.records import EngineFlavour
from model_artifacts.releases.oci.ngc import UNKNOWN, triton_image
from tests.conftest import REPOSITORY


def test_an_engine_has_the_image_with_its_own_tensorrt() -> None:
    """No other: one that is not known is `unknown`, and Triton runs no engine of TensorRT-RTX."""
    assert triton_image(EngineFlavour.TENSORRT, "10.15.1.29") == "nvcr.io/nvidia/tritonserver:26.02-py3"
    assert triton_image(EngineFlavour.TENSORRT, "10.15.1.30") == UNKNOWN
    assert triton_image(EngineFlavour.TENSORRT, "absent") == UNKNOWN
    assert triton_image(EngineFlavour.TENSORRT_RTX, "10.15.1.29").startswith("none")


def test_the_page_has_the_same_images() -> None:
    """docs/kubernetes.md names each version once, with the image that its engines name."""
    page = (REPOSITORY / "docs/kubernetes.md").read_text()
    rows = dict(re.findall(r"\| (10[.\d]+) \| `(nvcr\.io/nvidia/tritonserver:[\d.]+-py3)` \|", page))
    assert len(rows) >= 10
    assert {version: triton_image(EngineFlavour.TENSORRT, version) for version in rows} == rows
