"""torchvision's own way from a factory and the name of its weights to a network. Importing this module imports torch.

torchvision's builders do more for their weights than load them. `inception_v3` scales its input again, `densenet121`
renames layers, and `vit_h_14` takes larger images. So a network with torchvision's weights is always built by them.
"""

from __future__ import annotations

import copy
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from torch import nn

from model_artifacts.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from torchvision.models import WeightsEnum


def entries_of(factory: Callable[..., nn.Module]) -> type[WeightsEnum] | None:
    """Return all weights that torchvision has for a factory; None if the factory is not one of torchvision's."""
    from torchvision.models import get_model_weights  # noqa: PLC0415 - takes a second, and few models need it

    try:
        entries: type[WeightsEnum] = get_model_weights(factory)
    except ValueError:
        return None
    return entries


def entry_of(factory: Callable[..., nn.Module], name: str) -> WeightsEnum:
    """Return torchvision's weights of a name.

    Args:
        factory: a function that builds a network.
        name: the name of its weights, such as IMAGENET1K_V1 or DEFAULT.

    Raises:
        SourceError: torchvision has none of this name for the factory; the message lists those that it has.
    """
    entries = entries_of(factory)
    called = f"{factory.__module__}:{getattr(factory, '__qualname__', type(factory).__name__)}"
    if entries is None:
        raise SourceError(
            f"torchvision has no {name} weights for {called}",
            expected="one of torchvision's factories, such as torchvision.models:resnet18",
            fix="set `model.weights` in pipeline.yaml to a file, `factory` or `sample`",
        )
    if name not in entries.__members__:
        raise SourceError(
            f"torchvision has no {name} weights for {called}",
            expected=f"one of {', '.join(entries.__members__) or 'none, for it has no weights at all'}",
            fix="set `model.weights` in pipeline.yaml to one of these, to a file, `factory` or `sample`",
        )
    return entries.__members__[name]


def build(
    factory: Callable[..., nn.Module],
    entry: WeightsEnum,
    state: Mapping[str, torch.Tensor] | None = None,
    arguments: Mapping[str, object] | None = None,
) -> nn.Module:
    """Call a factory with its weights' entry, as torchvision's users do, but without a download.

    Args:
        factory: one of torchvision's functions.
        entry: the weights, which choose the network's settings.
        state: the contents of the weights' file, which torchvision migrates and loads. None loads nothing, for weights
            that follow.
        arguments: further arguments of the function.
    """
    with _from_memory(entry, state):
        return factory(weights=entry, progress=False, **(arguments or {}))


@contextmanager
def _from_memory(entry: WeightsEnum, state: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
    """Give this thread's builders a state dict in place of a download; without one, they keep their own weights."""
    thread = threading.get_ident()
    download, load = entry.get_state_dict, nn.Module.load_state_dict

    def get_state_dict(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torchvision's own signature
        if threading.get_ident() != thread:
            return download(*args, **kwargs)
        return {} if state is None else copy.copy(state)  # whose names a builder may change

    def load_state_dict(model: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's own signature
        return None if state is None and threading.get_ident() == thread else load(model, *args, **kwargs)

    with (
        patch.object(entry, "get_state_dict", get_state_dict),
        patch.object(nn.Module, "load_state_dict", load_state_dict),
    ):
        yield
