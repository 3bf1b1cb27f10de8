"""torchvision's weights by name, and its builders without a download."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, mnasnet0_5, resnet18

from model_artifacts.errors import SourceError
from model_artifacts.sessions.torchvision_models import build, entries_of, entry_of
from tests.support import tiny_model


def test_entries() -> None:
    """Torchvision's factories have entries; others have none."""
    assert entries_of(resnet18) is ResNet18_Weights
    assert entries_of(tiny_model.make) is None


def test_entry_by_name() -> None:
    """`DEFAULT` is a name like any other."""
    assert entry_of(resnet18, "DEFAULT") is ResNet18_Weights.IMAGENET1K_V1


def test_a_name_that_is_not_there() -> None:
    """The names that are there, or the kind of factory that has some, are in the message."""
    with pytest.raises(SourceError, match=r"no IMAGENET1K_V9 weights(.|\n)*IMAGENET1K_V1, DEFAULT"):
        entry_of(resnet18, "IMAGENET1K_V9")
    with pytest.raises(SourceError, match=r"for tests.support.tiny_model:make(.|\n)*one of torchvision's factories"):
        entry_of(tiny_model.make, "DEFAULT")


def test_the_state_is_loaded() -> None:
    """A builder loads the given state dict in place of a download, and leaves it as it was."""
    entry = entry_of(mnasnet0_5, "DEFAULT")
    state = mnasnet0_5().state_dict()
    names = list(state)

    model = build(mnasnet0_5, entry, state)

    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert list(state) == names


def test_other_threads_load_as_ever() -> None:
    """While a builder runs without weights, other threads load theirs, and afterwards everybody does."""
    linear = nn.Linear(1, 1)

    def factory(**_: object) -> nn.Module:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(linear.load_state_dict, {"weight": torch.tensor([[7.0]]), "bias": torch.tensor([7.0])}).result()
        own = nn.Linear(1, 1)
        own.load_state_dict({})  # as torchvision would load the empty download
        return own

    build(factory, entry_of(mnasnet0_5, "DEFAULT"))

    assert linear.weight.item() == 7.0
    with pytest.raises(RuntimeError, match="Missing key"):
        linear.load_state_dict({})
