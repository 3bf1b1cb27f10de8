"""The slugs of GPUs."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hosts import H100


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "sm90-h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 4090", "sm90-geforce-rtx-4090"),
        ("Tesla T4", "sm90-tesla-t4"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "sm90-a100-sxm4-40gb-mig-1g-5gb"),
        ("Graphics/Device (test)", "sm90-graphics-device-test"),
    ],
)
def test_gpus_slug_is_its_type_as_a_folder_may_be_called(name: str, slug: str) -> None:
    """A slug begins with the compute capability, and leaves the maker's name out."""
    assert H100.model_copy(update={"name": name}).slug == slug


@given(st.text(max_size=30))
@settings(deadline=None)
def test_any_gpus_slug_fits_a_folders_name(name: str) -> None:
    """A slug has only small letters, digits and single hyphens."""
    assert re.fullmatch(r"sm90-([a-z0-9]+(-[a-z0-9]+)*)?", H100.model_copy(update={"name": name}).slug)
