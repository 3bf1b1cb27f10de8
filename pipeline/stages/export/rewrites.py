"""Exported graph → the same with the rewrites of the configuration, or the reason why it has none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import ExportError
from pipeline.adapters.rewrites.channels import padded
from pipeline.adapters.rewrites.pools import with_pools
from pipeline.adapters.rewrites.products import as_convolutions

if TYPE_CHECKING:
    import onnx

    from pipeline.adapters.rewrites.common import Rewritten
    from pipeline.config.graphs.rewrites import RewritesConfig

_LACKS = {
    "convolution": "no product of a global pool's output by constants stands last in front of an output",
    "pooled": "no product by constants of the mean over an image, whose height and width are known and do not vary, "
    "stands last in front of an output",
    "channels": "no first convolution of an image reads fewer channels",
}
"""The reason of each rewrite that leaves a graph as it is: by the form of a product, or by the setting."""


def lack(name: str, value: int | str) -> str:
    """Return the reason of a rewrite, which `rewrite` takes, that leaves a graph as it is."""
    return _LACKS[str(value) if name == "product" else name]


def rewrite(model: onnx.ModelProto, name: str, value: int | str) -> Rewritten:
    """Return a graph with one rewrite.

    Args:
        model: the graph; it is not changed.
        name: a setting of `rewrites`.
        value: its value.
    """
    if name == "channels":
        return padded(model, int(value))
    return with_pools(model) if value == "pooled" else as_convolutions(model)


def rewritten(model: onnx.ModelProto, settings: RewritesConfig) -> onnx.ModelProto:
    """Return a graph with all rewrites of the configuration; the graph itself if there is none.

    Raises:
        ExportError: the graph has nothing to rewrite for one of them.
    """
    for name, value in settings.chosen.items():
        found = rewrite(model, name, value)
        if not found.nodes:
            raise ExportError(
                f"rewrites.{name}: {lack(name, value)}, so that the graph would stay as it is",
                expected="auto",
                got=str(value),
                fix=f"remove `{name}` from `rewrites`",
            )
        model = found.model
    return model
