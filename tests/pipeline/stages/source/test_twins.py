"""The network once more from other seeds: what the weights do not hold must not be drawn at random."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from model_artifacts.errors import SourceError
from model_artifacts.sessions.factory_call import Assembly
from model_artifacts.sessions.torch_model import make_model
from pipeline.stages.source.twins import check_twin
from tests.support import odd_networks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = (3, 8, 8)
IMPORT = f"import {__name__} as tests\n"


class Projected(nn.Module):
    """Multiplies the image's means by a matrix before the head."""

    def __init__(self, values: object, *, keep: str = "buffer") -> None:
        super().__init__()
        projection = torch.as_tensor(values, dtype=torch.float32)
        if keep == "list":
            self.projections: Any = [projection]
        elif keep == "attribute":
            self.projections = projection
        else:
            self.register_buffer("projections", projection, persistent=keep == "state")
        self.head = nn.Linear(3, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        kept = self.projections
        matrix = kept[0] if isinstance(kept, list) else kept
        logits: torch.Tensor = self.head(image.mean((2, 3)) @ matrix)
        return logits


def by_torch() -> nn.Module:
    """Draw from torch's generator."""
    return Projected(torch.randn(3, 3))


def by_legacy_numpy() -> nn.Module:
    """Draw from numpy's global generator."""
    return Projected(np.random.normal(size=(3, 3)))  # noqa: NPY002 - what old code does


def by_numpy() -> nn.Module:
    """Draw from a generator that nobody seeds."""
    return Projected(np.random.default_rng().normal(size=(3, 3)))


def by_python() -> nn.Module:
    """Draw from Python's generator."""
    return Projected([[random.random() for _ in range(3)] for _ in range(3)])  # noqa: S311 - no secret


def in_a_list() -> nn.Module:
    """Keep the tensor in a list."""
    return Projected(torch.randn(3, 3), keep="list")


def in_an_attribute() -> nn.Module:
    """Keep the tensor as a plain attribute."""
    return Projected(torch.randn(3, 3), keep="attribute")


def in_the_state() -> nn.Module:
    """Keep the tensor in the state dict."""
    return Projected(torch.randn(3, 3), keep="state")


def seeded() -> nn.Module:
    """Draw from a generator of a fixed seed."""
    return Projected(np.random.default_rng(7).normal(size=(3, 3)))


class Named(nn.Linear):
    """Draws a name for itself, and nothing that it computes with."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        return super().forward(image.mean((2, 3)))


def with_a_number() -> nn.Module:
    """Draw a number that no logit depends on."""
    model = Named(3, 5)
    model.number = random.random()  # type: ignore[assignment]  # noqa: S311 - no secret
    return model


def noisy() -> nn.Module:
    """Return a network that draws in every call."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5), Noise())


class Noise(nn.Module):
    """Adds noise of an unseeded generator."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits with noise."""
        return logits + torch.as_tensor(np.random.default_rng().normal(size=logits.shape), dtype=logits.dtype)


def check(factory: str) -> None:
    """Check the twin of a factory's network."""
    check_twin(make_model(factory), Assembly(factory, None, None, 5), SHAPE)


def here(make: Callable[[], nn.Module]) -> str:
    """Return a factory as `module:function`."""
    return f"{make.__module__}:{make.__name__}"


COMPUTED = [
    odd_networks.weight_normed,
    odd_networks.spectrally_normed,
    odd_networks.pruned,
    odd_networks.parametrized,
]


@pytest.mark.parametrize("make", COMPUTED)
def test_weights_that_are_computed_from_weights_pass(make: Callable[[], nn.Module]) -> None:
    """Parametrisations of torch compute the same once and for all, and the network keeps its own."""
    model = make_model(here(make))
    names = list(model.state_dict())

    check_twin(model, Assembly(here(make), None, None, 10), SHAPE)

    assert list(model.state_dict()) == names


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (odd_networks.FromTheImage, r"(?s)where: +weight of layer 'head' \(.*Linear\)\n.*logits [\d.e+-]+ apart"),
        (odd_networks.LooksAtItsParts, r"(?s)where: +weight of layer 'head' \(.*Linear\)\n.*a forward that fails"),
    ],
)
def test_weights_that_cannot_be_baked_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    """A weight that depends on the images, or that forward does without, is named; one beside it is not."""
    with pytest.raises(SourceError, match=message):
        check(here(make))


@pytest.mark.parametrize("make", [by_torch, by_legacy_numpy, by_numpy, by_python, in_a_list, in_an_attribute])
def test_values_outside_the_weights_are_refused(make: Callable[[], nn.Module]) -> None:
    """Tensors that are drawn at random, and that no state dict holds, are named, whichever generator drew them."""
    with pytest.raises(SourceError, match=r"(?s)draws at random.*projections: other values.*state dict"):
        check(here(make))


@pytest.mark.parametrize("make", [in_the_state, seeded, with_a_number, noisy])
def test_networks_that_pass(make: Callable[[], nn.Module]) -> None:
    """Weights, fixed seeds, numbers that nothing depends on, and noise in forward are not the factory's chance."""
    check(here(make))


def test_values_drawn_at_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that draws when it is imported draws anew in every process, and is found out."""
    code = "import numpy\nvalues = numpy.random.default_rng().normal(size=(3, 3))\n"
    (tmp_path / "drawing_module.py").write_text(f"{code}def make(): return tests.Projected(values)\n{IMPORT}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SourceError, match="projections: other values"):
        check("drawing_module:make")

    assert "drawing_module" in sys.modules


def test_a_module_that_can_be_imported_once_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that registers something, and fails the second time, is not imported again."""
    code = "import sys\nassert not hasattr(sys, 'once'), 'twice'\nsys.once = 1\n"
    (tmp_path / "registering_module.py").write_text(f"{code}def make(): return tests.seeded()\n{IMPORT}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    check("registering_module:make")

    del sys.once  # type: ignore[attr-defined]  # what the module left


def test_generators_are_left_as_they_were() -> None:
    """The comparison draws from no generator of the process."""
    check(here(seeded))
    before = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))  # noqa: NPY002 - the state itself
    model = make_model(here(seeded))
    torch.set_rng_state(before[0])
    check_twin(model, Assembly(here(seeded), None, None, 5), SHAPE)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()) == before[2]  # noqa: NPY002 - the same
