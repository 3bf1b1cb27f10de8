"""Wrappers are opened, and modules that are no network in FP32 are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from model_artifacts.errors import SourceError
from model_artifacts.sessions.module_kinds import evaluate, layers_in_training, open_wrappers, require_network
from model_artifacts.sessions.torch_model import make_model
from tests.support import odd_networks

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WRAPPED = [
    odd_networks.compiled,
    odd_networks.compiled_in_place,
    odd_networks.compiled_forward,
    odd_networks.parallel,
    odd_networks.averaged,
    odd_networks.nested,
]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Make a network from one seed, in evaluation mode."""
    torch.manual_seed(4)
    return make().eval()


@pytest.mark.parametrize("make", WRAPPED)
def test_wrapped_networks_are_opened(make: Callable[[], nn.Module]) -> None:
    """The network inside has the plain one's names, weights and logits, and nothing in it is compiled."""
    plain = seeded(odd_networks.Plain)

    model = open_wrappers(seeded(make)).module

    assert type(model) is odd_networks.Plain
    assert list(model.state_dict()) == list(plain.state_dict())
    assert "forward" not in vars(model)
    with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(model(IMAGES), plain(IMAGES))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (odd_networks.compiled, "OptimizedModule around the network"),
        (odd_networks.compiled_in_place, "OptimizedModule around layer 'body', torch.compile around the network"),
        (odd_networks.parallel, "DataParallel around the network"),
        (odd_networks.Plain, ""),
        (odd_networks.Module, ""),
    ],
)
def test_wrappers_are_named(make: Callable[[], nn.Module], said: str) -> None:
    """The wrappers are listed with their places."""
    assert open_wrappers(make()).said == said


@pytest.mark.parametrize("make", WRAPPED)
def test_a_wrapped_checkpoint_still_fits(make: Callable[[], nn.Module]) -> None:
    """Weights that were saved from the wrapper are loaded into the network that was inside."""
    trained = seeded(make)
    model = open_wrappers(make()).module

    model.load_state_dict(trained.state_dict())

    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        assert torch.equal(model.eval()(IMAGES), trained(IMAGES))


def test_an_opened_checkpoint_fits_as_well() -> None:
    """Weights under the names of the opened network are loaded as they are, also below a layer named `module`."""
    trained = seeded(lambda: nn.DataParallel(odd_networks.Module()))
    state = open_wrappers(trained).module.state_dict()
    model = open_wrappers(nn.DataParallel(odd_networks.Module())).module

    model.load_state_dict(state)

    assert torch.equal(model.state_dict()["module.head.bias"], state["module.head.bias"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            odd_networks.lazy,
            r"(?s)has lazy layers.*where: +0\.weight, 0\.bias, 4\.weight.*call the network",
        ),
        (odd_networks.scripted, r"(?s)is a TorchScript module.*forward of Top.*state_dict"),
        (odd_networks.quantized, r"(?s)is quantised already.*where: +layer 'head' \(Linear\).*before its quantisation"),
    ],
)
def test_modules_that_are_no_network_in_fp32(make: Callable[[], nn.Module], message: str) -> None:
    """Each is refused with its layers and the remedy."""
    with pytest.raises(SourceError, match=message):
        require_network(make())


def test_a_module_without_evaluation_mode() -> None:
    """The module of an exported program raises an error of torch's own, which the message tells."""
    with pytest.raises(SourceError, match=r"(?s)cannot be put into evaluation mode.*NotImplementedError"):
        evaluate(odd_networks.exported())


def test_train_may_return_nothing() -> None:
    """A network whose `train` returns nothing is made like any other."""
    model = make_model("tests.support.odd_networks:NoneFromTrain")

    assert not any(module.training for module in model.modules())


def test_layers_in_training_are_named() -> None:
    """A layer that evaluation mode does not reach is named."""
    model = odd_networks.ForgottenTraining()
    model.eval()

    assert layers_in_training(model) == ("layer 'drop' (Dropout)",)
