"""Wrappers are opened, and modules that are no network in FP32 are refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from model_artifacts.errors import SourceError
from model_artifacts.sessions.module_kinds import (
    bake,
    computed_weights,
    evaluate,
    layers_in_training,
    open_wrappers,
    require_network,
)
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


COMPUTED = {
    odd_networks.weight_normed: ["weight of layer 'body.0' (Conv2d)"],
    odd_networks.spectrally_normed: ["weight of layer 'body.0' (Conv2d)"],
    odd_networks.pruned: ["weight of layer 'body.0' (Conv2d)", "bias of layer 'body.0' (Conv2d)"],
    odd_networks.parametrized: [
        "weight of layer 'body.0' (ParametrizedConv2d)",
        "running_var of layer 'body.1' (ParametrizedBatchNorm2d)",
        "weight of layer 'head' (ParametrizedLinear)",
    ],
}


@pytest.mark.parametrize("make", COMPUTED)
def test_computed_weights_are_named(make: Callable[[], nn.Module]) -> None:
    """Each of them is listed once, with its layer."""
    assert [weight.place for weight in computed_weights(make())] == COMPUTED[make]


@pytest.mark.parametrize("make", COMPUTED)
def test_baked_weights_are_plain(make: Callable[[], nn.Module]) -> None:
    """The network has the names of one without parametrisations, the same logits, and nothing left to compute."""
    torch.manual_seed(5)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))  # as training does, so that no computed value is current
    model.eval()
    with torch.inference_mode():
        expected = model(IMAGES)

    bake(model)

    plain = odd_networks.Plain()
    assert sorted(model.state_dict()) == sorted(plain.state_dict())
    assert {*dict(model.named_parameters())} >= {*dict(plain.named_parameters())} - {"body.1.bias"}
    assert not computed_weights(model)
    assert not any(module._forward_pre_hooks for module in model.modules())  # noqa: SLF001 - torch has no other list
    with torch.inference_mode():
        assert torch.equal(model(IMAGES), expected)


def test_baked_weights_of_a_new_network_are_those_that_were_loaded() -> None:
    """A weight is computed from the loaded tensors, although the network has not run since."""
    trained, model = (seeded(odd_networks.weight_normed) for _ in range(2))
    with torch.no_grad():
        trained.get_parameter("body.0.weight_g").mul_(3)
    model.load_state_dict(trained.state_dict())

    bake(model)

    with torch.inference_mode():
        assert torch.equal(model(IMAGES), trained(IMAGES))


def test_a_shared_tensor_survives_the_baking() -> None:
    """The mask of one layer's bias leaves another layer's, which is the same tensor, as it is."""
    model = seeded(odd_networks.pruned)
    shared = model.get_parameter("body.1.bias").clone()

    bake(model)

    assert torch.equal(model.get_parameter("body.1.bias"), shared)
    assert int((model.get_parameter("body.0.bias") == 0).sum()) == 4


def test_a_weight_that_cannot_be_computed() -> None:
    """The layer and the error of its parametrisation are named."""

    class Fails(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError(f"by design, for {tuple(weight.shape)}")

    model = odd_networks.Plain()
    nn.utils.parametrize.register_parametrization(model.head, "weight", Fails(), unsafe=True)

    with pytest.raises(
        SourceError, match=r"(?s)weight of layer 'head'.*ZeroDivisionError: by design.*remove the param"
    ):
        bake(model)
