"""A checkpoint of any kind → the state dict in it that fits a model, without running code from the file.

A file may hold several state dicts, such as raw and averaged weights, at any depth and with any prefix before their
names. One is taken only if it alone fits, or if the configuration names it. Importing this module imports torch.
"""

from __future__ import annotations

import argparse
import datetime as dt
import pathlib
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from model_artifacts.errors import SourceError, listed, one_line
from model_artifacts.sessions.torch_model import misfit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from torch import nn

_DEPTH = 6
"""Levels of mappings and lists that are searched for state dicts."""
_COMPILED = "_orig_mod."
"""The name that torch.compile puts before the names of a module that it wraps, at any depth."""
_COUNTER = "num_batches_tracked"
"""The last part of the name of a batch-norm's counter, which only training reads."""
_EXTRA = "_extra_state"
"""The last part of the name of a module's own state, which need not be a tensor."""
_OTHER_TYPE = "of another type"
_APART = "with other values for one weight that the model has under both names"
_TRIED = 4
"""Prefixes that are tried for each state dict, the likeliest ones first."""

_SCALARS = (np.bool_, np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32)
_DATA: list[Any] = [
    argparse.Namespace,
    defaultdict,
    list,
    dict,
    set,
    dt.datetime,
    dt.timedelta,
    pathlib.PosixPath,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in _SCALARS),
    *(
        (getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")  # type: ignore[attr-defined]  # noqa: SLF001 - pickles name it so
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ),
]
"""Types beside tensors that training scripts save, and that hold data alone."""


class StateDict(NamedTuple):
    """A mapping in a checkpoint that holds tensors."""

    key: str
    """The keys that lead to it, joined by dots; empty for the whole file."""
    state: OrderedDict[str, Any]
    """Its tensors, and the extra state of modules, by name."""


class Fit(NamedTuple):
    """A state dict that fits a model."""

    key: str
    """The keys and the prefix that lead to it, joined by dots; empty if the file is the state dict."""
    state: OrderedDict[str, Any]
    """Its entries under the model's names."""
    beside: tuple[str, ...]
    """Names in the same mapping that lack the prefix, and are left out."""


def load_checkpoint(model: nn.Module, file: Path, key: str | None = None) -> Fit:
    """Load the state dict of a file that fits a model.

    Args:
        model: the network, which takes the weights.
        file: a .safetensors file, or one of torch.save.
        key: the keys that lead to the state dict, joined by dots; None takes the only one that fits.

    Raises:
        SourceError: the file cannot be read, or no state dict in it fits, or several do.
    """
    found = list(_state_dicts(read_checkpoint(file)))
    if not found:
        raise SourceError(
            "the weights file holds no state dict",
            where=str(file),
            expected="a mapping of names to tensors, at any depth",
            fix="save one: torch.save(model.state_dict(), 'weights.pth')",
        )
    views = [view for item in found for view in _views(model, item)]
    if key is not None:
        views = [view for view in views if _leads_to(key, view.key)]
    refusals = [_refusal(model, view) for view in views]
    fits = [view for view, refusal in zip(views, refusals, strict=True) if not refusal]
    fits = [view for view in fits if view.key == key] or fits
    if not fits:
        raise _no_fit(model, file, key, found, [*zip(views, refusals, strict=True)])
    if any(not _equal(fits[0].state, other.state) for other in fits[1:]):
        raise _several(file, [view.key for view in fits])
    model.load_state_dict(fits[0].state, strict=False)  # `_refusal` has seen that only counters are missing
    model.eval()  # the layers, too, that a module has made anew for weights of its older version
    return fits[0]


def _several(file: Path, keys: list[str]) -> SourceError:
    """Return the error for a file of which several state dicts fit, with the line to write for each of them."""
    lines = [f"`model: {{weights: {{file: {file}, key: {key!r}}}}}`" for key in keys]
    return SourceError(
        "several state dicts in the weights file fit the model, and they differ",
        where=str(file),
        expected="the weights that the accuracy of the training was measured with",
        got=f"the keys {_quoted(keys)}",
        fix=listed(["write one of these lines into pipeline.yaml:", *lines], separator=f"\n{'':12}"),
    )


def read_checkpoint(file: Path) -> object:
    """Return the content of a .safetensors file, or of one of torch.save, without running code from it.

    Raises:
        SourceError: the file is missing or damaged, or holds more than data.
    """
    expected = "a state dict saved by torch.save or safetensors"
    if not file.is_file():
        inside = sorted(path.name for path in file.iterdir()) if file.is_dir() else []
        got = f"a folder with {listed(inside) or 'nothing in it'}" if file.is_dir() else ""
        what = "the weights file is a folder" if file.is_dir() else "the weights file does not exist"
        raise SourceError(what, where=str(file), expected=expected, got=got)
    if _is_torchscript(file):
        read = f"torch.jit.load('{file.name}', map_location='cpu').state_dict()"
        raise _holds_code(file, expected, "a TorchScript program", read)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals(_DATA):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as exc:  # for bytes that are no checkpoint, torch's reader raises almost any type
        if types := _types_with_code(file):
            whole = any(name.startswith("torch.nn.modules") for name in types)
            read = f"torch.load('{file.name}', map_location='cpu', weights_only=False)"
            read += ".state_dict()" if whole else "['state_dict']"
            got = f"{'a whole model' if whole else 'objects'} of the types {listed(types)}"
            raise _holds_code(file, expected, got, read) from exc
        other = _other_content(file)
        raise SourceError(
            "the weights file is damaged, or not a checkpoint that is safe to load",
            where=str(file),
            expected=expected,
            got=other.name if other else one_line(exc),
            fix=other.fix if other else "",
        ) from exc


class _Content(NamedTuple):
    """Something that people have under the name of a checkpoint."""

    begins: bytes
    name: str
    fix: str


_CONTENTS = (
    _Content(b"version https://git-lfs", "a pointer of Git LFS in place of the file", "run `git lfs pull` there"),
    _Content(b"<", "a web page", "download the file itself: its address leads to a page about it, or to a login"),
    _Content(b"{", "text", "name the file of the weights; this one describes or lists it"),
    _Content(b"\x1f\x8b", "a file that is compressed by gzip", "run `gunzip` on it"),
)


def _other_content(file: Path) -> _Content | None:
    """Return the known kind of content that a file has in place of weights; None if it is no such kind."""
    begin = b""
    with suppress(OSError), file.open("rb") as stream:  # the reader's own error says it
        begin = stream.read(64).lstrip().lower()
    return next((content for content in _CONTENTS if begin.startswith(content.begins)), None)


def _holds_code(file: Path, expected: str, got: str, read: str) -> SourceError:
    """Return the error for a file that runs code when it is read, with the line that saves its weights alone."""
    line = f"import torch; torch.save({read}, 'weights.pth')"
    return SourceError(
        "the weights file holds more than data: to read it would run its code",
        where=str(file),
        expected=expected,
        got=got,
        fix=f'if you trust the file, save its weights alone and name that file: python -c "{line}"',
    )


def _types_with_code(file: Path) -> list[str]:
    """Return the types in a file of torch.save that are not known to hold data alone; none for a damaged file."""
    try:
        with torch.serialization.safe_globals(_DATA):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(file)))
    except Exception:  # noqa: BLE001 - a damaged file raises almost any type
        return []


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _state_dicts(value: object, key: str = "", depth: int = _DEPTH) -> Iterator[StateDict]:
    """Yield every mapping that holds tensors, the outer ones first."""
    inner: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        state = OrderedDict(
            (name, item) for name, item in value.items() if isinstance(name, str) and _is_state(name, item)
        )
        if any(isinstance(item, torch.Tensor) for item in state.values()):
            _set_versions(state, _versions(value, ""))
            yield StateDict(key, state)
        inner = [(str(name), item) for name, item in value.items() if name not in state]
    elif isinstance(value, (list, tuple)):
        inner = [(str(index), item) for index, item in enumerate(value)]
    if depth:
        for name, item in inner:
            yield from _state_dicts(item, f"{key}.{name}" if key else name, depth - 1)


def _is_state(name: str, item: object) -> bool:
    return isinstance(item, torch.Tensor) or name.rpartition(".")[2] == _EXTRA


def _views(model: nn.Module, found: StateDict) -> Iterator[Fit]:
    """Yield a state dict without each of the prefixes that it may have, the likeliest ones first.

    Mappings with far fewer entries than the model has parameters, such as those of an optimizer, have none.
    """
    if len(found.state) * 4 < sum(1 for _ in model.parameters()):
        return
    names = {name.replace(_COMPILED, ""): name for name in found.state}
    if len(names) < len(found.state):  # one module is there as compiled and as it was
        names = {name: name for name in found.state}
    counts = {"": 0}
    for name in names:
        for prefix in _prefixes(name, model.state_dict().keys()):
            counts[prefix] = counts.get(prefix, 0) + 1
    for prefix in sorted(counts, key=lambda item: (-counts[item], len(item)))[:_TRIED]:
        kept = [(name, written) for name, written in names.items() if name.startswith(prefix)]
        state = OrderedDict((name.removeprefix(prefix), found.state[written]) for name, written in kept)
        _set_versions(state, _versions(found.state, prefix))
        key = ".".join(part for part in (found.key, prefix[:-1]) if part)
        yield Fit(key, state, tuple(sorted(names.keys() - dict(kept).keys())))


def _prefixes(name: str, own: Collection[str]) -> Iterator[str]:
    """Yield the beginnings of a name, each with its dot, whose rest is the name of a weight of the model."""
    parts = name.split(".")
    for index in range(len(parts)):
        if ".".join(parts[index:]) in own:
            yield "".join(f"{part}." for part in parts[:index])


def _versions(state: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """Return the versions of modules' formats, which torch keeps beside a state dict, for names without a prefix."""
    found = {}
    for name, versions in getattr(state, "_metadata", {}).items():
        dotted = f"{name}.".replace(_COMPILED, "") if name else ""
        if dotted.startswith(prefix):
            found[dotted.removeprefix(prefix).removesuffix(".")] = versions
    return found


def _set_versions(state: OrderedDict[str, Any], versions: dict[str, Any]) -> None:
    if versions:
        state._metadata = versions  # type: ignore[attr-defined]  # noqa: SLF001 - the place where torch looks for it


def _refusal(model: nn.Module, view: Fit) -> str:
    """Load a state dict, and return the reason why it does not fit; empty if it does."""
    try:
        result = model.load_state_dict(view.state, strict=False)
    except Exception as exc:  # noqa: BLE001 - a module's own code for older versions raises almost any type
        other = _of_other_types(model, view.state.keys() & model.state_dict().keys(), view.state)
        return misfit(model, view.state) or other or " ".join(str(exc).split())
    groups = _shared(model)
    given = {name for names in groups if names & view.state.keys() for name in names}  # by one of their names
    missing = sorted(name for name in result.missing_keys if name.rpartition(".")[2] != _COUNTER and name not in given)
    apart = [" and ".join(sorted(names & view.state.keys())) for names in groups if _differ(names, view.state)]
    kinds = (("missing", missing), ("extra", sorted(result.unexpected_keys)), (_APART, sorted(apart)))
    found = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names]
    other = _of_other_types(model, view.state.keys() - set(result.unexpected_keys), view.state)
    return "; ".join([*found, *([other] if other else [])])


def _shared(model: nn.Module) -> list[set[str]]:
    """Return the names of each weight that a model has under several names, such as tied layers."""
    names = defaultdict(set)
    for name, value in model.state_dict(keep_vars=True).items():
        names[id(value)].add(name)
    return [found for found in names.values() if len(found) > 1]


def _differ(names: Collection[str], state: Mapping[str, Any]) -> bool:
    """Return whether a state dict gives several values for one weight, of which the model would keep the last."""
    values = [state[name] for name in names if name in state]
    return any(not _same(value, values[0]) for value in values[1:])


def _of_other_types(model: nn.Module, names: Collection[str], state: Mapping[str, Any]) -> str:
    """Return the tensors whose values torch converts to numbers that they do not stand for; empty if there is none."""
    own = model.state_dict()
    wrong = [
        f"{name}: expected {_type(own.get(name))}, got {_type(state[name])}"
        for name in sorted(names)
        if isinstance(state[name], torch.Tensor) and not _converts(name, state[name], own)
    ]
    return f"{len(wrong)} {_OTHER_TYPE}: {listed(wrong)}" if wrong else ""


def _type(value: object) -> str:
    """Return the name of a tensor's type, with its layout if that is not the usual one."""
    if not isinstance(value, torch.Tensor):
        return "a floating-point type"
    layout = "" if value.layout is torch.strided else f" in {value.layout}"
    return f"{value.dtype}{layout}".replace("torch.", "")


def _converts(name: str, tensor: torch.Tensor, own: Mapping[str, Any]) -> bool:
    """Return whether a tensor's values mean the same in the type of the model's own."""
    mine = own.get(name)
    if name.rpartition(".")[2] == _COUNTER:
        return True
    if tensor.is_quantized or tensor.layout is not torch.strided:
        return False
    if not isinstance(mine, torch.Tensor):  # an older name of a weight
        return tensor.numel() <= 1 or (tensor.is_floating_point() and tensor.element_size() > 1)
    if mine.is_complex() or tensor.is_complex():
        return mine.is_complex() and tensor.is_complex()
    if mine.is_floating_point():  # numbers of 8 bits need their scales
        return tensor.is_floating_point() and tensor.element_size() > 1
    return not tensor.is_floating_point() or bool((tensor == tensor.round()).all() and tensor.isfinite().all())


def _leads_to(key: str, full: str) -> bool:
    return not key or full == key or full.startswith(f"{key}.")


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two state dicts hold the same values under the same names."""
    return one.keys() == other.keys() and all(_same(item, other[name]) for name, item in one.items())


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401 - extra state may be anything
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def _no_fit(
    model: nn.Module, file: Path, key: str | None, found: list[StateDict], tried: list[tuple[Fit, str]]
) -> SourceError:
    """Return the error for a file of which no state dict fits, with the reason of the one that comes closest."""
    keys = [item.key for item in sorted(found, key=lambda item: -len(item.state))]
    if not tried:
        what = "the weights do not fit the model" if key is None else f"the weights file has no key {key!r}"
        return SourceError(what, where=str(file), got=f"the keys {_quoted(keys)}")
    own = model.state_dict().keys()
    closest, reason = max(tried, key=lambda item: len(own & item[0].state.keys()))
    other = "set `model.factory` in pipeline.yaml to a function that makes the network which was trained"
    if len(keys) > 1:
        other += f", or `model.weights.key` to the right one of {_quoted(keys)}"
    return SourceError(
        "the weights do not fit the model",
        where=f"{file}, key {closest.key}" if closest.key else str(file),
        got=reason,
        fix="save the weights before they are quantised; the build quantises them" if _OTHER_TYPE in reason else other,
    )


def _quoted(keys: list[str]) -> str:
    return listed([repr(key) for key in keys])
