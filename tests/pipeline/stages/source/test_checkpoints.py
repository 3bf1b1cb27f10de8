"""Checkpoints of every kind: the state dict that fits a model, and the refusals."""

from __future__ import annotations

import argparse
import collections
import gzip
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import nn

from model_artifacts.errors import SourceError
from pipeline.stages.source.checkpoints import load_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    State = dict[str, torch.Tensor]

STATE = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}
AVERAGE = {name: tensor + 0.5 for name, tensor in STATE.items()}

any_bytes = st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda data: b"\x80\x02" + data))


def linear() -> nn.Linear:
    """Return a model of other weights than those of the checkpoints."""
    return nn.Linear(4, 3)


def network() -> nn.Module:
    """Return a model with a batch-norm, whose weights are random."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def prefixed(prefix: str, state: State) -> State:
    """Return a state dict with a prefix before its names."""
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(folder: Path, content: object) -> Path:
    """Return a file with this content."""
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state, "epoch": 7}, "state_dict"),
        (lambda state: {"model": state}, "model"),
        (lambda state: {"state_dict": {"model": state}}, "state_dict.model"),
        (lambda state: prefixed("module.", state), "module"),
        (lambda state: {"state_dict": prefixed("module.", state), "epoch": 7}, "state_dict.module"),
        (lambda state: {"state_dict": prefixed("model.", state), "pytorch-lightning_version": "2"}, "state_dict.model"),
        (lambda state: {"model": prefixed("_orig_mod.", state)}, "model"),
        (lambda state: prefixed("module._orig_mod.", state), "module"),
        (lambda state: prefixed("_orig_mod.module.", state), "module"),
        (lambda state: prefixed("a.long.way.", state), "a.long.way"),
        (lambda state: {"epoch": 7, "trainer": [{"net": state}]}, "trainer.0.net"),
        (lambda state: {"net": state, "optimizer": {"state": {0: {"momentum_buffer": state["weight"]}}}}, "net"),
        (lambda state: {**prefixed("module.", state), "n_averaged": torch.tensor(7)}, "module"),
        (lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)}, "model"),
        (lambda state: {"model": state, "best": np.float64(91.2), "curve": np.ones(3)}, "model"),
        (lambda state: {"model": state, "history": collections.defaultdict(list)}, "model"),
        (lambda state: {"model": {name: tensor.half() for name, tensor in state.items()}}, "model"),
        (lambda state: {"model": state, "model_ema": dict(state)}, "model"),
    ],
)
def test_state_dict_is_found(tmp_path: Path, wrap: Callable[[State], object], key: str) -> None:
    """A state dict is found wherever training scripts put it, and whatever they put beside it."""
    model = linear()

    fit = load_checkpoint(model, saved(tmp_path, wrap(STATE)))

    assert fit.key == key
    assert torch.equal(model.weight, STATE["weight"])
    assert torch.equal(model.bias, STATE["bias"])


def test_safetensors_are_read(tmp_path: Path) -> None:
    """A .safetensors file is a checkpoint as well."""
    save_file(prefixed("module.", STATE), tmp_path / "weights.safetensors")
    model = linear()

    load_checkpoint(model, tmp_path / "weights.safetensors")

    assert torch.equal(model.weight, STATE["weight"])


def test_what_lies_beside_the_prefix_is_named(tmp_path: Path) -> None:
    """Entries that are not the model's are left out, and named."""
    content = {"state_dict": {**prefixed("net.", STATE), "criterion.weight": torch.ones(10)}}

    fit = load_checkpoint(linear(), saved(tmp_path, content))

    assert (fit.key, fit.beside) == ("state_dict.net", ("criterion.weight",))


WITH_AVERAGE = [
    {"model": STATE, "model_ema": {**prefixed("module.", AVERAGE), "n_averaged": torch.tensor(7)}},
    {"model": STATE, "model_ema": AVERAGE},
    {"state_dict": {**prefixed("model.", STATE), **prefixed("model_ema.", AVERAGE)}},
]


@pytest.mark.parametrize("content", WITH_AVERAGE)
def test_raw_and_averaged_weights_are_not_chosen_from(tmp_path: Path, content: object) -> None:
    """With two state dicts that fit and differ, both keys are named, each with the line that chooses it."""
    file = saved(tmp_path, content)

    with pytest.raises(SourceError, match=r"(?s)they differ.*got: +the keys '.*model', '.*model_ema.*'") as caught:
        load_checkpoint(linear(), file)

    lines = [line.strip(" `") for line in str(caught.value).splitlines() if "{weights:" in line]
    keys = [yaml.safe_load(line)["model"]["weights"] for line in lines]
    assert [item["file"] for item in keys] == [str(file)] * 2
    for item, want in zip(keys, (STATE, AVERAGE), strict=True):
        model = linear()
        load_checkpoint(model, file, item["key"])
        assert torch.equal(model.weight, want["weight"])


@pytest.mark.parametrize("content", WITH_AVERAGE)
@pytest.mark.parametrize(("key", "want"), [("model", STATE), ("model_ema", AVERAGE)])
def test_a_key_chooses(tmp_path: Path, content: dict[str, Any], key: str, want: State) -> None:
    """The configured key takes one of several state dicts, in front of the rest of its prefix."""
    model = linear()

    load_checkpoint(model, saved(tmp_path, content), f"state_dict.{key}" if "state_dict" in content else key)

    assert torch.equal(model.weight, want["weight"])


def test_an_unknown_key(tmp_path: Path) -> None:
    """A key that leads to nothing is named beside the keys of the file."""
    with pytest.raises(SourceError, match=r"(?s)no key 'ema'.*'model', 'model_ema'"):
        load_checkpoint(linear(), saved(tmp_path, {"model": STATE, "model_ema": AVERAGE}), "ema")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: (tensor * 100).to(torch.int8),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
        lambda tensor: tensor.to(torch.int64),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda tensor: tensor > 0,
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to_sparse(),
    ],
    ids=["int8", "float8", "int64", "quantised", "bool", "complex", "sparse"],
)
@pytest.mark.filterwarnings("ignore")
def test_numbers_of_another_kind_are_refused(tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Values that stand for other numbers than floating-point weights are not converted."""
    content = {"weight": change(STATE["weight"]), "bias": STATE["bias"]}

    with pytest.raises(SourceError, match=r"(?s)1 of another type: weight: expected float32, got .*quantised"):
        load_checkpoint(linear(), saved(tmp_path, content))


@pytest.mark.parametrize("value", [0.5, float("inf")])
def test_fractions_under_an_integers_name_are_refused(tmp_path: Path, value: float) -> None:
    """An index that would be rounded is refused; a whole one, as `.half()` of a whole state dict leaves, is taken."""
    model = linear()
    model.register_buffer("index", torch.zeros(2, dtype=torch.int64))

    with pytest.raises(SourceError, match=r"index: expected int64, got float32"):
        load_checkpoint(model, saved(tmp_path, {**STATE, "index": torch.full((2,), value)}))
    load_checkpoint(model, saved(tmp_path, {**STATE, "index": torch.full((2,), 3.0)}))

    assert model.state_dict()["index"].tolist() == [3, 3]


def test_counters_of_batch_norms_may_be_missing(tmp_path: Path) -> None:
    """Checkpoints older than the counters, and those without them, are taken: only training counts."""
    torch.manual_seed(1)
    state = network().state_dict()
    model = network()

    load_checkpoint(model, saved(tmp_path, {name: state[name] for name in state if "num_batches" not in name}))

    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


def tied(scale: float = 1.0) -> nn.Sequential:
    """Return a network whose two layers share a weight."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    nn.init.constant_(first.weight, scale)
    second.weight = first.weight
    return nn.Sequential(first, second)


def test_a_shared_weight_is_given_by_one_of_its_names(tmp_path: Path) -> None:
    """The library safetensors saves it once; another missing weight is still refused."""
    trained = tied(2.0)
    save_model(trained, str(tmp_path / "weights.safetensors"))
    model = tied()
    load_checkpoint(model, tmp_path / "weights.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    state = {name: tensor for name, tensor in trained.state_dict().items() if name != "1.bias"}
    with pytest.raises(SourceError, match=r"1 missing: 1\.bias"):
        load_checkpoint(tied(), saved(tmp_path, state))


def test_two_values_for_a_shared_weight_are_refused(tmp_path: Path) -> None:
    """The model would keep one of them: another network than the one that was trained."""
    trained = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(SourceError, match=r"one weight that the model has under both names: 0\.weight and 1\.weight"):
        load_checkpoint(tied(), saved(tmp_path, trained.state_dict()))


def test_a_modules_own_migration_runs(tmp_path: Path) -> None:
    """Names are compared after the modules have renamed those of their older versions, behind any prefix."""

    class Renamed(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            if metadata.get("version") == 1:
                state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    state: Any = collections.OrderedDict({"module.kernel": STATE["weight"], "module.bias": STATE["bias"]})
    state._metadata = {"": {"version": 1}, "module": {"version": 1}}  # noqa: SLF001 - the place where torch looks for it
    model = Renamed(4, 3)

    load_checkpoint(model, saved(tmp_path, {"state_dict": state}))

    assert torch.equal(model.weight, STATE["weight"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {**STATE, "bias": torch.ones(7)}}, r"weights.pth, key model.*bias: expected \(3,\), got \(7,\)"),
        ({"model": {"weight": STATE["weight"]}}, "1 missing: bias"),
        ({"model": {**STATE, "scale": torch.ones(2)}}, "1 extra: scale"),
        ({"g": {"a": torch.ones(1)}, "d": STATE | {"x": torch.ones(1)}}, "1 extra: x.*one of 'd', 'g'"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, content: object, message: str) -> None:
    """The state dict that comes closest is compared, and the keys of all others are listed."""
    with pytest.raises(SourceError, match=rf"(?s)do not fit the model.*{message}"):
        load_checkpoint(linear(), saved(tmp_path, content))


@pytest.mark.filterwarnings("ignore")
def test_whole_model_and_torchscript(tmp_path: Path) -> None:
    """Files that hold code are refused with the line that saves their weights alone."""
    with pytest.raises(SourceError, match=r"(?s)run its code.*whole model.*torch\.save\(torch\.load\('weights\.pth'"):
        load_checkpoint(linear(), saved(tmp_path, linear()))
    program: Any = torch.jit.trace  # untyped
    program(linear(), torch.zeros(1, 4)).save(tmp_path / "program.pt")
    with pytest.raises(SourceError, match=r"(?s)TorchScript.*torch\.save\(torch\.jit\.load\('program\.pt'"):
        load_checkpoint(linear(), tmp_path / "program.pt")


def test_missing_checkpoint(tmp_path: Path) -> None:
    """A weights file that is not there is named."""
    with pytest.raises(SourceError, match=r"(?s)does not exist.*gone\.pth"):
        read_checkpoint(tmp_path / "gone.pth")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    """The files in the folder are named."""
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(SourceError, match=r"is a folder[\s\S]*got: +a folder with model\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS.*\n.*`git lfs pull`"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page\n.*download"),
        (b'{"weight_map": {"weight": "model-00001-of-00002.safetensors"}}', "text\n.*name the file"),
        (gzip.compress(b"\x80\x02", mtime=0), "gzip\n.*gunzip"),
    ],
)
def test_other_content_under_the_name_of_a_checkpoint(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Something that downloads leave in place of the weights is named, with the remedy."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_checkpoint(tmp_path / name)


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
    """Reading arbitrary bytes as a checkpoint is a source error."""
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


@pytest.mark.parametrize(
    "content", [torch.ones(2), [torch.ones(2)], {"epoch": 7}, {"state_dict": {"a": 1}}, {0: torch.ones(2)}]
)
def test_checkpoint_without_a_state_dict(tmp_path: Path, content: object) -> None:
    """A file that torch can read, but that maps no names to tensors, is refused."""
    with pytest.raises(SourceError, match="holds no state dict"):
        load_checkpoint(linear(), saved(tmp_path, content))


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

    with pytest.raises(SourceError, match=r"would run its code|not a checkpoint that is safe to load"):
        read_checkpoint(file)

    assert not marker.exists()
