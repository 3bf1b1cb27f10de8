"""A network with torchvision's weights, built by torchvision; and files that turn out to be torchvision's.

Importing this module imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import torch
from torch.utils._pytree import tree_leaves

from model_artifacts.errors import SourceError, one_line
from model_artifacts.host.hashes import sha256_of
from model_artifacts.records import Interpolation, Preprocessing, call_of
from model_artifacts.sessions import torch_model, torchvision_models
from model_artifacts.sessions.arithmetic import relative_l2, strict_fp32
from model_artifacts.sessions.factory_call import named
from pipeline.stages.source.checkpoints import read_checkpoint

if TYPE_CHECKING:
    from torch import nn
    from torchvision.models import WeightsEnum

    from model_artifacts.records import Argument

_RELATIVE = 1e-4
"""The largest relative L2 distance of equal logits."""

USUAL = "IMAGENET1K_V1"
"""The name of torchvision's weights that `auto` takes."""


def usual_entry(spec: str) -> WeightsEnum | None:
    """Return the weights that `auto` takes for a factory; None if torchvision has no weights for it.

    Raises:
        SourceError: torchvision has weights for the factory, but only under other names.
    """
    factory = torch_model.import_factory(spec)
    return torchvision_models.entry_of(factory, USUAL) if torchvision_models.entries_of(factory) else None


def entry_of_file(spec: str, file: Path) -> WeightsEnum | None:
    """Return torchvision's weights that a file holds, by its name or by the digest that torchvision names; or None.

    Args:
        spec: the factory, "module:function".
        file: a file of weights.
    """
    entries = torchvision_models.entries_of(torch_model.import_factory(spec))
    if entries is None or not file.is_file():
        return None
    digest = sha256_of(file)
    for entry in entries:
        name = Path(urlparse(entry.url).path)
        if file.name == name.name or digest.startswith(name.stem.rpartition("-")[2]):
            return entry
    return None


def require_arguments(spec: str, entry: WeightsEnum, arguments: tuple[Argument, ...]) -> None:
    """Refuse arguments that torchvision does not take together with its weights, such as another number of classes.

    Args:
        spec: the factory, "module:function".
        entry: torchvision's weights.
        arguments: the factory's arguments.

    Raises:
        SourceError: torchvision refuses the call.
    """
    if not arguments:
        return
    try:
        with torch.device("meta"):  # no values, and so no time
            torchvision_models.build(torch_model.import_factory(spec), entry, arguments=named(arguments))
    except Exception as exc:  # torchvision raises ValueError, and the network's own code almost any type
        raise SourceError(
            f"{entry} does not fit the arguments of {spec}",
            where=call_of(spec, arguments),
            expected="arguments that keep the network of these weights",
            got=one_line(exc),
            fix="set `model.weights` in pipeline.yaml to a file, `factory` or `sample`, or take the argument out",
        ) from exc


def usual_preprocessing(spec: str) -> Preprocessing | None:
    """Return the preprocessing of the weights that `auto` takes for a factory of torchvision's; None for others."""
    entries = torchvision_models.entries_of(torch_model.import_factory(spec))
    entry = entries.__members__.get(USUAL) if entries else None
    return preprocessing_of(entry) if entry else None


def load(spec: str, entry: WeightsEnum, file: Path, arguments: tuple[Argument, ...] = ()) -> nn.Module:
    """Return torchvision's network with its weights, in evaluation mode.

    torchvision itself renames and loads what the file holds, and chooses the settings that the weights need.

    Args:
        spec: the factory, "module:function".
        entry: torchvision's weights.
        file: the file of these weights.
        arguments: further arguments of the factory.

    Raises:
        SourceError: the file is damaged, or holds other weights.
    """
    state = read_checkpoint(file)
    fix = f"delete {file} for another download, or set `model.weights` in pipeline.yaml to other weights"
    if not isinstance(state, dict):
        raise SourceError(f"{file.name} does not hold {entry}", where=str(file), got=type(state).__name__, fix=fix)
    try:
        model = torchvision_models.build(torch_model.import_factory(spec), entry, state, named(arguments))
    except Exception as exc:  # torch raises RuntimeError, torchvision's own migrations almost any type
        raise SourceError(f"{file.name} does not hold {entry}", where=str(file), got=one_line(exc), fix=fix) from exc
    return model.eval().float().cpu()


def preprocessing_of(entry: WeightsEnum) -> Preprocessing:
    """Return the preprocessing that torchvision gives its weights.

    Raises:
        SourceError: the weights are not those of an image classifier.
    """
    try:
        transforms = entry.transforms()
        return Preprocessing(
            resize=transforms.resize_size[0],
            crop=transforms.crop_size[0],
            interpolation=Interpolation(transforms.interpolation.value),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        )
    except (AttributeError, TypeError, ValueError) as exc:  # presets of detectors, segmentation and video have others
        raise SourceError(
            f"{entry} are not the weights of an image classifier",
            expected="torchvision's ImageClassification preset",
            got=one_line(exc),
            fix="set `model.factory` in pipeline.yaml to a classifier",
        ) from exc


def check_settings(
    spec: str, model: nn.Module, input_shape: tuple[int, ...], file: Path, arguments: tuple[Argument, ...] = ()
) -> None:
    """Refuse a checkpoint if torchvision's factory makes either of two networks for its names.

    `inception_v3` scales its input again if, and only if, it is given torchvision's weights. A network that was trained
    from those scales it, one that was trained from nothing does not, and the checkpoints look alike.

    Args:
        spec: the factory, "module:function".
        model: the factory's network with the checkpoint's weights.
        input_shape: (channels, height, width).
        file: the checkpoint.
        arguments: further arguments of the factory; a setting that is written there is no question.

    Raises:
        SourceError: both networks take the checkpoint, and compute different logits.
    """
    factory = torch_model.import_factory(spec)
    for entry in torchvision_models.entries_of(factory) or ():
        with torch.device("meta"):  # no values, and so no time
            plain, theirs = factory(), torchvision_models.build(factory, entry)
        written = {argument.name for argument in arguments}
        settings = {place: pair for place, pair in _differences(plain, theirs).items() if place[1] not in written}
        if settings and not _computes_the_same(model, _with_settings(model, settings), input_shape):
            alone = {place: {place: pair} for place, pair in settings.items()}
            moving = {
                place: settings[place]
                for place, one in alone.items()
                if not _computes_the_same(model, _with_settings(model, one), input_shape)
            }
            settings = moving or settings
            raise SourceError(
                f"{spec} makes another network with torchvision's weights than without, and the checkpoint fits both",
                where=str(file),
                expected="an argument that says which of the two was trained",
                got=f"{_shown(settings)}, as without torchvision's weights",
                fix=f"write the setting of the training in pipeline.yaml, `arguments: {{{_lines(settings)}}}` or the "
                "other value",
            )


_Settings = dict[tuple[str, str], tuple[object, object]]
"""(path of a module, attribute) → its value without torchvision's weights, and with them."""


def _differences(model: nn.Module, other: nn.Module) -> _Settings:
    """Return the plain attributes in which a model differs from another one."""
    theirs = {path: vars(module) for path, module in other.named_modules()}
    return {
        (path, name): (value, theirs[path].get(name))
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not name.startswith("_")
        if path in theirs and theirs[path].get(name) != value
    }


def _shown(settings: _Settings) -> str:
    return ", ".join(f"{path}.{name}={own}" if path else f"{name}={own}" for (path, name), (own, _) in settings.items())


def _lines(settings: _Settings) -> str:
    return ", ".join(f"{name}: {str(other).lower()}" for (_, name), (_, other) in settings.items())


def _with_settings(model: nn.Module, settings: _Settings) -> nn.Module:
    """Return a copy of a model, with the same weights, that has torchvision's settings."""
    other = torch_model.share_weights(model)
    modules = dict(other.named_modules())
    for (path, name), (_, value) in settings.items():
        if path in modules:
            setattr(modules[path], name, value)
    return other


def _computes_the_same(model: nn.Module, other: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Return whether a model and one of other settings compute the same; one that cannot run counts so.

    Settings of another size show in the shapes of the checkpoint, which then fits one of the two alone.
    """
    batch = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(torch_model.SEED))
    try:
        with strict_fp32():
            logits, others = (
                tuple(output.nan_to_num() for output in tree_leaves(network(batch)) if isinstance(output, torch.Tensor))
                for network in (model, other)
            )
    except Exception:  # noqa: BLE001 - the network's own code raises any type
        return True
    return relative_l2(others, logits) <= _RELATIVE
