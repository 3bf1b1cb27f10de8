"""The torch model: factories, checkpoints, heads, strict FP32 and the folding of batch-norms."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from model_artifacts.errors import ArtifactError, RecordError, SourceError
from model_artifacts.sessions.torch_model import (
    fold_batch_norms,
    import_factory,
    load_state,
    make_model,
    read_checkpoint,
    replace_head,
    strict_fp32,
)
from pipeline.planning.project import Project
from pipeline.stages.common.model import restore_model
from pipeline.stages.source.network import cached_file, count_classes, fetch, find_head, imagenet_weights
from tests.support import factories, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torchvision.models import WeightsEnum

SHAPE = (3, 32, 32)
STATE = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}

any_bytes = st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda data: b"\x80\x02" + data))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def resnet18(hub: Path) -> WeightsEnum:
    """Torchvision's entry for ResNet18, with nothing downloaded."""
    assert not hub.exists()
    weights = imagenet_weights("torchvision.models:resnet18")
    assert weights is not None
    return weights


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
        return float((fold_batch_norms(model).model(batch) - before).abs().max() / before.abs().max())


# Factories


def test_factory_is_imported() -> None:
    """`package.module:function` names a function."""
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


def test_classes_are_counted() -> None:
    """The number of classes is that of the logits."""
    assert count_classes(factories.three_classes().eval(), SHAPE) == 3


def test_model_with_another_input() -> None:
    """A model that cannot take the images says what it was given and why it failed."""
    with pytest.raises(SourceError, match=r"(?s)one input \(batch, 3, 32, 32\).*expected input\[2, 3, 32, 32\]"):
        count_classes(factories.greyscale().eval(), SHAPE)


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (nn.Conv2d(3, 10, 3), r"shape \(2, 10, 30, 30\)"),
        (nn.Flatten(0), r"shape \(6144,\)"),
        (nn.Sequential(nn.Flatten(), nn.Unflatten(0, (1, 2)), nn.Flatten(0, 1), nn.Unflatten(1, (1, 3072))), "shape"),
        (factories.TwoOutputs(), "tuple"),
    ],
)
def test_model_without_logits(model: nn.Module, got: str) -> None:
    """A model that does not give (batch, classes) is refused with what it gives."""
    with pytest.raises(SourceError, match=rf"(?s)does not return logits.*one output \(batch, classes\).*got: +{got}"):
        count_classes(model, SHAPE)


def test_head_is_the_last_linear_layer() -> None:
    """The head is found by its name in the model."""
    assert find_head(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.ReLU())).name == "1"


def test_model_without_a_head() -> None:
    """A model without a linear layer is told what to use instead of the sample."""
    with pytest.raises(SourceError, match=r"(?s)ends in torch.nn.Linear.*Conv2d.*name `model.weights`"):
        find_head(factories.feature_map())


def test_head_is_replaced() -> None:
    """A new head has the old one's inputs and as many outputs as asked for."""
    model = nn.ModuleDict({"inner": nn.Sequential(nn.ReLU(), nn.Linear(5, 7))})

    replace_head(model, "inner.1", 10)

    assert tuple(model.state_dict()["inner.1.weight"].shape) == (10, 5)


def test_head_of_another_kind() -> None:
    """What is not a linear layer is not replaced."""
    with pytest.raises(SourceError, match=r"'0' is no torch.nn.Linear"):
        replace_head(nn.Sequential(nn.ReLU()), "0", 10)


# Checkpoints


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 7},
        lambda state: {"model": state},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 7},
    ],
    ids=["bare", "state_dict", "model", "both", "module.", "state_dict+module."],
)
def test_checkpoint_is_unwrapped(tmp_path: Path, wrap: Callable[[object], object], suffix: str) -> None:
    """A state dict is found under the usual keys, and DataParallel's prefix is taken off."""
    file = tmp_path / f"weights{suffix}"
    torch.save(wrap(STATE), file)

    state = read_checkpoint(file)

    assert state.keys() == STATE.keys()
    assert torch.equal(state["weight"], STATE["weight"])


def test_safetensors_are_read(tmp_path: Path) -> None:
    """A .safetensors file is a checkpoint as well."""
    save_file({f"module.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "weights.safetensors")

    state = read_checkpoint(tmp_path / "weights.safetensors")

    assert torch.equal(state["weight"], STATE["weight"])


def test_missing_checkpoint(tmp_path: Path) -> None:
    """A weights file that is not there is named."""
    with pytest.raises(SourceError, match=r"(?s)does not exist.*gone\.pth"):
        read_checkpoint(tmp_path / "gone.pth")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_truncated_checkpoint(tmp_path: Path, name: str, share: float) -> None:
    """A weights file that ends early is damaged, wherever it ends."""
    file = tmp_path / name
    if name.endswith("pth"):
        torch.save(STATE, file)
    else:
        save_file(STATE, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])

    with pytest.raises(SourceError, match=rf"(?s)damaged, or not a checkpoint.*{name}"):
        read_checkpoint(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=any_bytes)
def test_any_other_file_is_no_checkpoint(tmp_path: Path, data: bytes) -> None:
    """Whatever bytes a file holds, reading it as a checkpoint ends in a source error."""
    file = tmp_path / "weights.pth"
    file.write_bytes(data)

    with pytest.raises(SourceError):
        read_checkpoint(file)


@pytest.mark.parametrize("data", [b"0", b"\x80\x02.", b"h\x01", b"U\x05ab", b"J\x00"])
def test_broken_pickles_are_no_checkpoints(tmp_path: Path, data: bytes) -> None:
    """Files that trip torch's unpickler itself (IndexError, struct.error) are source errors too."""
    file = tmp_path / "weights.pth"
    file.write_bytes(data)

    with pytest.raises(SourceError, match="damaged, or not a checkpoint"):
        read_checkpoint(file)


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], {"epoch": 7}, {"state_dict": {"a": 1}}])
def test_checkpoint_without_a_state_dict(tmp_path: Path, content: object) -> None:
    """A file that torch can read, but that holds something else, is refused."""
    torch.save(content, tmp_path / "weights.pth")

    with pytest.raises(SourceError, match="holds no state dict"):
        read_checkpoint(tmp_path / "weights.pth")


def test_checkpoint_with_numbers_for_names(tmp_path: Path) -> None:
    """A dictionary whose keys are no names is no state dict."""
    torch.save({0: torch.ones(2)}, tmp_path / "weights.pth")

    with pytest.raises(SourceError, match="holds no state dict"):
        read_checkpoint(tmp_path / "weights.pth")


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_checkpoint_runs_nothing(tmp_path: Path, zipped: bool) -> None:  # noqa: FBT001
    """A pickle that would run a command is refused, and the command does not run."""
    marker, file = tmp_path / "marker", tmp_path / "weights.pth"
    torch.save({"weight": Payload(marker)}, file, _use_new_zipfile_serialization=zipped)

    with pytest.raises(SourceError, match="not a checkpoint that is safe to load"):
        read_checkpoint(file)

    assert not marker.exists()


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


def test_weights_that_do_not_fit_change_nothing() -> None:
    """A model keeps its own weights where the new ones do not fit."""
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()

    with pytest.raises(SourceError):
        load_state(model, {"weight": STATE["weight"]}, "here")

    assert torch.equal(model.weight, before)


# torchvision's weights


@pytest.mark.parametrize("spec", ["tests.support.tiny_model:make", "torch.nn:Linear", "torchvision.models:get_model"])
def test_other_factories_have_no_imagenet_weights(spec: str) -> None:
    """Only torchvision's own models have ImageNet weights."""
    assert imagenet_weights(spec) is None


def test_cached_weights_are_not_downloaded(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in torch's cache is taken as it is."""
    file = cached_file(resnet18)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)

    assert fetch(resnet18, 1.0) == file


def test_weights_are_downloaded(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download goes into torch's cache, is checked against the digest in its name, and may be silent so long."""
    asked: list[tuple[str, str | None, float | None]] = []

    def download(url: str, target: str, hash_prefix: str | None = None, *, progress: bool = True) -> None:
        assert not progress
        asked.append((url, hash_prefix, socket.getdefaulttimeout()))
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)

    file = fetch(resnet18, 2.5)

    assert file.read_bytes() == b"weights"
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", "f37072fd", 2.5)]


@pytest.mark.parametrize(
    "error",
    [URLError("unreachable"), TimeoutError("silent"), RuntimeError('invalid hash value (expected "f3", got "00")')],
)
def test_failed_download(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A download that fails says why, and where a file fetched by hand may be put."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", _raiser(error))

    with pytest.raises(SourceError, match=r"(?s)cannot be downloaded.*put the file at .*resnet18-f37072fd\.pth"):
        fetch(resnet18, 1.0)


def test_timeout_is_restored(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's default timeout is what it was, after a failed download too."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", _raiser(URLError("unreachable")))
    before = socket.getdefaulttimeout()

    with pytest.raises(SourceError):
        fetch(resnet18, 1.0)

    assert socket.getdefaulttimeout() == before


def test_connection_that_breaks_off(resnet18: WeightsEnum, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that ends in the middle (http.client's errors are no OSErrors) is a failed download."""
    from http.client import IncompleteRead  # noqa: PLC0415 - for this test alone

    monkeypatch.setattr(torch.hub, "download_url_to_file", _raiser(IncompleteRead(b"half")))

    with pytest.raises(SourceError, match="cannot be downloaded"):
        fetch(resnet18, 1.0)


def test_cache_that_cannot_be_made(resnet18: WeightsEnum, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder that cannot be made (a read-only home) is a failed download."""
    hub.write_text("a file where the folder should be")
    monkeypatch.setattr(torch.hub, "download_url_to_file", _raiser(URLError("unreachable")))

    with pytest.raises(SourceError, match="cannot be downloaded"):
        fetch(resnet18, 1.0)


def _raiser(error: Exception) -> Callable[..., None]:
    def download(*_: object, **__: object) -> None:
        raise error

    return download


# Restoring


def test_model_is_restored(built: Project) -> None:
    """The restored model has the fitted head and the stored weights."""
    model = restore_model(built)

    stored = read_checkpoint(built.paths.weights)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_nothing_to_restore(write_config: Callable[[str], Path]) -> None:
    """Without the source stage's record the command that makes it is named."""
    project = Project.load(write_config(factories.configuration()))

    with pytest.raises(RecordError, match="python -m pipeline source tiny"):
        restore_model(project)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"x" + data[1:]], ids=["cut", "changed"])
def test_damaged_weights_are_not_restored(copied: Path, damage: Callable[[bytes], bytes]) -> None:
    """Stored weights that are damaged are an error of the pipeline's own, not of the library's."""
    project = Project.load(copied / "pipeline.yaml")
    project.paths.weights.write_bytes(damage(project.paths.weights.read_bytes()))

    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        restore_model(project)


def test_removed_weights_are_not_restored(copied: Path) -> None:
    """Stored weights that were removed are an error of the pipeline's own."""
    project = Project.load(copied / "pipeline.yaml")
    project.paths.weights.unlink()

    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        restore_model(project)


@pytest.mark.parametrize("factory", ["three_classes", "feature_map"])
def test_factory_that_has_changed(copied: Path, monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    """A factory that gives another network now is a source error: the stored weights do not fit it."""
    monkeypatch.setattr(tiny_model, "make", getattr(factories, factory))

    with pytest.raises(SourceError):
        restore_model(Project.load(copied / "pipeline.yaml"))


# Strict FP32


@pytest.fixture
def shortcuts() -> Iterator[None]:
    """A process that allows TF32."""
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = cudnn


@pytest.mark.usefixtures("shortcuts")
def test_strict_fp32_allows_no_shortcut() -> None:
    """Inside, neither matrix products nor convolutions may use TF32, and nothing is recorded for gradients."""
    with strict_fp32():
        inside = (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.is_inference_mode_enabled(),
        )

    assert inside == ("highest", False, True)


@pytest.mark.usefixtures("shortcuts")
def test_strict_fp32_restores_settings() -> None:
    """Afterwards the settings are what they were, after an error too."""
    with pytest.raises(KeyError), strict_fp32():
        raise KeyError

    after = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.is_inference_mode_enabled())
    assert after == ("high", True, False)


# Folding


def test_folding_counts() -> None:
    """Every batch-norm behind a convolution is folded, and counted."""
    assert fold_batch_norms(tiny_model.make()).batch_norms == 2


def test_folding_changes_no_numbers() -> None:
    """A folded model gives the same logits, to a hundred-thousandth."""
    assert folding_error(randomized(tiny_model.make())) < 1e-5


def test_folding_leaves_the_original_alone() -> None:
    """The model that was folded still has its batch-norms."""
    model = tiny_model.make()

    fold_batch_norms(model)

    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 2


def test_batch_norm_on_its_own_stays() -> None:
    """A batch-norm with no convolution before it is not folded, and not counted."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 10))

    assert fold_batch_norms(model).batch_norms == 0


def test_untraceable_model_is_left_as_it_is() -> None:
    """A model that torch.fx cannot trace comes back as it was."""
    model = factories.DataDependent()

    assert fold_batch_norms(model) == (model, 0)


@pytest.mark.parametrize("make", [factories.SharedConvolution, factories.recurrent])
def test_folding_shared_convolutions_changes_no_numbers(make: Callable[[], nn.Module]) -> None:
    """A convolution that is called twice is not folded with two batch-norms, one on top of the other."""
    assert folding_error(randomized(make())) < 1e-5


def test_a_shared_activation_does_not_prevent_folding() -> None:
    """ResNet18 calls each block's ReLU twice; all 20 of its batch-norms are folded all the same."""
    model = make_model("torchvision.models:resnet18")

    assert fold_batch_norms(model).batch_norms == 20
