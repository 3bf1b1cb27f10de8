"""Factories, checkpoints, strict FP32 and the folding of batch-norms."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from model_artifacts.errors import SourceError, StorageError
from model_artifacts.sessions.torch_model import (
    fold_batch_norms,
    import_factory,
    in_layout,
    load_state,
    make_model,
    read_weights,
    replace_head,
    save_weights,
)
from tests.support import factories, odd_networks, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


SHAPE = (3, 32, 32)
STATE = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}


def randomized(model: nn.Module) -> nn.Module:
    """Give every batch-norm of a model statistics that matter."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()


def folding_error(model: nn.Module) -> float:
    """Return by how much folding changes a model's logits, relative to the largest."""
    torch.manual_seed(2)
    batch = torch.randn(4, *SHAPE)
    with torch.inference_mode():
        before = model(batch)
        return float((fold_batch_norms(model, SHAPE).model(batch) - before).abs().max() / before.abs().max())


# Factories


def test_factory_is_imported() -> None:
    """`package.module:function` is imported as that function."""
    assert import_factory("tests.support.tiny_model:make") is tiny_model.make


@pytest.mark.parametrize(
    ("spec", "got"),
    [
        ("tests.nowhere:make", "ModuleNotFoundError: No module named 'tests.nowhere'"),
        ("tests.support.tiny_model:mkae", "AttributeError: module 'tests.support.tiny_model' has no attribute 'mkae'"),
    ],
)
def test_factory_cannot_be_imported(spec: str, got: str) -> None:
    """A factory that is not there is named, with Python's reason and the setting to change."""
    with pytest.raises(SourceError, match=rf"(?s){spec}.*{got}.*`model.factory` in pipeline.yaml"):
        import_factory(spec)


def test_factory_whose_module_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that fails while it is imported is a source error, not a crash."""
    (tmp_path / "broken_factory_module.py").write_text("raise ZeroDivisionError('by design')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(SourceError, match="ZeroDivisionError: by design"):
        import_factory("broken_factory_module:make")


def test_factory_is_not_callable() -> None:
    """A name that is no function is refused with its type."""
    with pytest.raises(SourceError, match=r"(?s)NOT_CALLABLE' is not callable.*got: +int"):
        make_model("tests.support.factories:NOT_CALLABLE")


def test_factory_fails() -> None:
    """A factory's own error is passed on."""
    with pytest.raises(
        SourceError, match=r"(?s)'tests.support.factories:fails' failed.*FileNotFoundError: backbone.bin"
    ):
        make_model("tests.support.factories:fails")


def test_factory_needs_arguments() -> None:
    """A factory that cannot be called without arguments is an error that names the argument."""
    with pytest.raises(SourceError, match="missing 1 required positional argument: 'width'"):
        make_model("tests.support.factories:needs_an_argument")


def test_factory_returns_no_module() -> None:
    """A factory that returns something else than a module is refused."""
    with pytest.raises(SourceError, match=r"(?s)returns no module.*torch.nn.Module.*got: +int"):
        make_model("tests.support.factories:number")


def test_factory_is_seeded() -> None:
    """Random weights are the same ones every time, whatever ran before."""
    first = make_model("tests.support.tiny_model:make").state_dict()
    torch.manual_seed(99)
    second = make_model("tests.support.tiny_model:make").state_dict()

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_model_is_in_evaluation_mode() -> None:
    """A model comes ready for inference."""
    assert not make_model("tests.support.tiny_model:make").training


# What a model takes and gives


def test_head_is_replaced() -> None:
    """A new head has the old one's inputs and as many outputs as asked for."""
    model = nn.ModuleDict({"inner": nn.Sequential(nn.ReLU(), nn.Linear(5, 7))})

    replace_head(model, "inner.1", 10)

    assert tuple(model.state_dict()["inner.1.weight"].shape) == (10, 5)


def test_head_of_another_kind() -> None:
    """A head that is not a linear layer is not replaced."""
    with pytest.raises(SourceError, match=r"'0' is not a torch.nn.Linear any more"):
        replace_head(nn.Sequential(nn.ReLU()), "0", 10)


# Weights


def test_packed_weights_come_back(tmp_path: Path) -> None:
    """A model's weights are read as they were packed, with the versions that its modules' own migrations ask for."""
    model = tiny_model.make()
    file = tmp_path / "weights.safetensors"
    save_weights(model, file)

    state = read_weights(file)

    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert vars(state) == vars(model.state_dict())  # torch keeps the versions beside the tensors


def test_shared_and_turned_weights_come_back(tmp_path: Path) -> None:
    """Tensors that share memory, parts of a tensor and other orders of axes are each written whole."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(2, 3, 3))
    in_layout(model, torch.channels_last)
    model[1].weight = model[0].weight
    model.register_buffer("part", torch.arange(12.0)[3:5])
    model.register_buffer("turned", torch.arange(6.0).reshape(2, 3).t())

    save_weights(model, tmp_path / "weights.safetensors")

    state = read_weights(tmp_path / "weights.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_that_cannot_be_written(tmp_path: Path) -> None:
    """The file is named."""
    with pytest.raises(StorageError, match=r"writing \S*nowhere/weights.safetensors failed"):
        save_weights(tiny_model.make(), tmp_path / "nowhere" / "weights.safetensors")


class Stateful(nn.Linear):
    """Keeps a value of its own in the state dict."""

    def __init__(self, value: object) -> None:
        super().__init__(4, 3)
        self.value = value

    def get_extra_state(self) -> object:
        """Return the value."""
        return self.value

    def set_extra_state(self, state: object) -> None:
        """Take the value."""
        self.value = state


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    """A layer whose own state is no tensor is named."""
    with pytest.raises(SourceError, match=r"(?s)something else than tensors.*_extra_state \(dict\)"):
        save_weights(Stateful({"version": 2}), tmp_path / "weights.safetensors")


def test_state_that_is_a_tensor_comes_back(tmp_path: Path) -> None:
    """A layer's own state that is a tensor is kept with the weights."""
    file = tmp_path / "weights.safetensors"
    save_weights(Stateful(torch.arange(3)), file)
    model = Stateful(None)

    load_state(model, read_weights(file), "here")

    assert isinstance(model.value, torch.Tensor)
    assert model.value.tolist() == [0, 1, 2]


def test_a_misfit_beside_state_that_is_no_tensor_is_named() -> None:
    """Weights that do not fit are listed although the layer's own state is no tensor."""
    with pytest.raises(SourceError, match=r"1 misshapen: bias: expected \(3,\), got \(5,\)"):
        load_state(Stateful({}), {**STATE, "bias": torch.ones(5), "_extra_state": {}}, "here")  # type: ignore[dict-item]  # as torch writes them


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_weights(tmp_path: Path, share: float) -> None:
    """A file of weights that ends early is damaged, wherever it ends."""
    file = tmp_path / "weights.safetensors"
    save_weights(tiny_model.make(), file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])

    with pytest.raises(SourceError, match=r"(?s)missing or damaged.*weights\.safetensors"):
        read_weights(file)


def test_weights_are_loaded() -> None:
    """Weights that fit replace the model's own."""
    model = nn.Linear(4, 3)

    load_state(model, STATE, "here")

    assert torch.equal(model.weight, STATE["weight"])


@pytest.mark.parametrize(
    ("state", "got"),
    [
        ({"weight": STATE["weight"]}, "1 missing: bias"),
        ({**STATE, "scale": torch.ones(1)}, "1 extra: scale"),
        ({**STATE, "bias": torch.ones(5)}, r"1 misshapen: bias: expected \(3,\), got \(5,\)"),
        (
            {"weight": torch.ones(1), "scale": torch.ones(1)},
            r"1 missing: bias; 1 extra: scale; 1 misshapen: weight: expected \(3, 4\), got \(1,\)",
        ),
        ({**STATE, **{f"x{number}": torch.ones(1) for number in range(7)}}, "7 extra: x0, x1, x2, x3, x4 and 2 more"),
    ],
    ids=["missing", "extra", "misshapen", "all", "many"],
)
def test_weights_that_do_not_fit(state: dict[str, torch.Tensor], got: str) -> None:
    """Names that are missing or too many and shapes that differ are all listed."""
    with pytest.raises(SourceError, match=rf"(?s)do not fit the model.*where: +here.*got: +{got}$"):
        load_state(nn.Linear(4, 3), state, "here")


def test_a_modules_own_migration_runs() -> None:
    """A batch-norm whose weights are older than its counter takes them, as torch does."""
    model = nn.BatchNorm2d(3)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items() if name != "num_batches_tracked"}

    load_state(model, state, "here")

    assert torch.equal(model.weight, torch.full((3,), 2.0))


# Folding


def test_folding_counts() -> None:
    """Every batch-norm behind a convolution is folded, and counted."""
    assert fold_batch_norms(tiny_model.make(), SHAPE).batch_norms == 2


def test_folding_changes_no_numbers() -> None:
    """A folded model gives the same logits, to a hundred-thousandth."""
    assert folding_error(randomized(tiny_model.make())) < 1e-5


def test_folding_leaves_the_original_alone() -> None:
    """The model that was folded still has its batch-norms."""
    model = tiny_model.make()

    fold_batch_norms(model, SHAPE)

    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 2


def test_batch_norm_on_its_own_stays() -> None:
    """A batch-norm with no convolution before it is not folded, and not counted."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 10))

    assert fold_batch_norms(model, SHAPE).batch_norms == 0


def test_untraceable_model_is_left_as_it_is() -> None:
    """A model that torch.fx cannot trace comes back as it was."""
    model = factories.DataDependent()

    assert fold_batch_norms(model, SHAPE) == (model, 0)


def test_a_network_without_batch_norms_says_nothing_of_them(caplog: pytest.LogCaptureFixture) -> None:
    """It lacks nothing if torch.fx cannot trace it; with a batch-norm it does."""

    class Branching(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            values = images if images.sum() > 0 else -images
            for layer in self.layers:
                values = layer(values)
            return values

    with caplog.at_level("INFO"):
        fold_batch_norms(Branching(nn.Flatten(), nn.Linear(3072, 10)).eval(), SHAPE)
    assert "batch-norms" not in caplog.text
    with caplog.at_level("INFO"):
        fold_batch_norms(Branching(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 10)).eval(), SHAPE)
    assert "batch-norms are not folded by torch.fx: TraceError" in caplog.text


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (odd_networks.layer_hook, r"forward hooks that a trace misses: layer 'body.0' \(Conv2d\)"),
        (odd_networks.closing_layer, r"a forward that was set on the instance: layer 'head' \(Linear\)"),
    ],
)
def test_a_trace_that_differs_is_not_used(
    make: Callable[[], nn.Module], cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A network whose trace computes something else stays as it is, and the log names the cause."""
    torch.manual_seed(3)
    model = randomized(make())

    with caplog.at_level("INFO"):
        folded = fold_batch_norms(model, SHAPE)

    assert folded == (model, 0)
    assert re.search(f"batch-norms are not folded by torch.fx: {cause}", caplog.text)


@pytest.mark.parametrize("make", [odd_networks.root_hook, odd_networks.patched_forward, odd_networks.KnowsTensors])
def test_a_run_folds_where_the_trace_differs(make: Callable[[], nn.Module]) -> None:
    """A network whose trace computes something else is folded by a run, which changes no numbers."""
    torch.manual_seed(3)
    model = randomized(make())

    assert fold_batch_norms(model, SHAPE).batch_norms == 1
    assert folding_error(model) < 1e-5


def test_a_hook_that_only_watches_does_not_prevent_folding() -> None:
    """A hook that changes nothing leaves the trace right."""
    model = randomized(odd_networks.Plain())
    model.register_forward_hook(lambda *_: None)

    assert fold_batch_norms(model, SHAPE).batch_norms == 1


def test_a_train_that_returns_nothing_does_not_prevent_folding() -> None:
    """A network whose own `train` returns None is folded."""
    assert fold_batch_norms(odd_networks.NoneFromTrain(), SHAPE).batch_norms == 1


@pytest.mark.parametrize("make", [factories.SharedConvolution, factories.recurrent])
def test_folding_shared_convolutions_changes_no_numbers(make: Callable[[], nn.Module]) -> None:
    """A convolution that is called twice is not folded with two batch-norms, one on top of the other."""
    assert folding_error(randomized(make())) < 1e-5


def test_a_shared_activation_does_not_prevent_folding() -> None:
    """ResNet18 calls each block's ReLU twice; all 20 of its batch-norms are folded all the same."""
    model = make_model("torchvision.models:resnet18")

    assert fold_batch_norms(model, (3, 64, 64)).batch_norms == 20


def test_wrappers_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A network that is made twice in a process says once that it was wrapped."""
    with caplog.at_level("INFO"):
        for _ in range(2):
            make_model("tests.support.odd_networks:averaged")

    assert sum("which is taken out of it: AveragedModel around the network" in line for line in caplog.messages) == 1
