"""The section `rewrites`, as it is written and as it is refused."""

from __future__ import annotations

import pytest

from pipeline.config.graphs.rewrites import RewritesConfig
from tests.support.configs import MATRIX, Problems
from tests.support.plans import config_of


def test_no_rewrite_is_the_default() -> None:
    """`auto` says the same."""
    assert config_of().rewrites.chosen == {}
    assert config_of(rewrites={"product": "auto", "channels": "auto"}).rewrites == RewritesConfig()


@pytest.mark.parametrize("product", ["convolution", "pooled"])
def test_rewrites_are_read_back_as_they_are_written(product: str) -> None:
    """`doit tune` writes them."""
    settings = config_of(rewrites={"product": product, "channels": 4}).rewrites
    assert settings.chosen == {"product": product, "channels": 4}
    assert RewritesConfig.model_validate(settings.model_dump(mode="json")) == settings
    assert RewritesConfig().model_dump(mode="json") == {"product": "auto", "channels": "auto"}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("product: gemm", "rewrites.product: expected auto, convolution or pooled, got 'gemm'"),
        ("product: true", "rewrites.product: expected auto, convolution or pooled, got true"),
        ("channels: 5", "rewrites.channels: expected auto, 4, 8, 16 or 32, got 5"),
        ("channels: true", "rewrites.channels: expected auto, 4, 8, 16 or 32, got true"),
        ("chanels: 4", "unknown key 'rewrites.chanels'; did you mean 'channels'?"),
    ],
    ids=["other form", "flag", "other number", "flag for a number", "typo"],
)
def test_another_value_is_refused_with_its_place(problems: Problems, text: str, refusal: str) -> None:
    """The message says what is expected."""
    (problem,) = problems(f"{MATRIX}rewrites: {{{text}}}\n")
    assert problem.startswith("3:")
    assert problem.endswith(refusal)
