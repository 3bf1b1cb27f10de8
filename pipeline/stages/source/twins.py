"""The network once more, from other seeds and with the same weights: it must give the same logits.

If it does not, the factory draws something at random that the weights do not hold. Every process would then have
another network, and none of them the one that was trained. Importing this module imports torch.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from model_artifacts.errors import SourceError, listed
from model_artifacts.sessions import torch_model
from model_artifacts.sessions.arithmetic import call, relative_l2, strict_fp32, tensors, torch_batch
from model_artifacts.sessions.factory_call import unwrapped
from model_artifacts.sessions.feeds.samples import Samples
from model_artifacts.sessions.module_kinds import bake, bake_one, computed_weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from torch import nn

    from model_artifacts.sessions.arithmetic import Result
    from model_artifacts.sessions.factory_call import Assembly
    from model_artifacts.sessions.module_kinds import ComputedWeight
    from pipeline.config.settings import ModelConfig

log = logging.getLogger(__name__)

_OTHER_SEED = 271_828
_SAMPLES = 8
_SCALES = (0.3, 1.0, 3.0)
"""Standard deviations of the batches, so that no part of the network is saturated in all of them."""
_RELATIVE = 1e-4
"""The largest relative L2 distance of equal logits; both networks run the same operators in the same order."""
_OURS = ("pipeline", "model_artifacts", "__main__")


def check_twin(model: nn.Module, assembly: Assembly, inputs: tuple[int, int, int] | Samples) -> None:
    """Build the network again from other seeds, give it the same weights, and compare the logits.

    Args:
        model: the network with its weights.
        assembly: the way in which it was built.
        inputs: (channels, height, width) of an image, or samples of the inputs.

    Raises:
        SourceError: the logits differ; the message names the tensors and numbers that differ and are no weights.
    """
    twin = _assembled(assembly, model)
    bake(twin)
    apart = _apart(model, twin, inputs) if not computed_weights(model) else _baked_apart(model, twin, inputs)
    if apart <= _RELATIVE or _apart(model, model, inputs) > 0:
        return  # a network that differs from itself is refused as a reference
    if computed_weights(model):
        twin = _assembled(assembly, model)
        _refuse_if_baking_moves(model, twin, inputs, apart)
    names = list(_unsaved(model, twin))
    found = f"{listed(names)}: other values in each call" if names else "no attribute of a module differs"
    raise SourceError(
        "the network computes with values that its weights do not hold, and that the factory draws at random",
        where=assembly.factory,
        expected="the same logits from every call of the factory, given the same weights",
        got=f"{found}; logits {apart:.2g} apart (relative L2)",
        fix="keep them in the state dict (a parameter, or a persistent buffer) and save the weights of the training "
        "again; or set them as in the training, from a fixed seed in the factory",
    )


class Drawn(NamedTuple):
    """The weights of a factory's network, by their origin."""

    random: tuple[str, ...]
    """Weights that have other values after a call with another seed."""
    loaded: tuple[str, ...]
    """Weights that are the same then, and are no constants: something loads or computes them."""


def drawn_weights(model: nn.Module, assembly: Assembly) -> Drawn:
    """Call the factory once more as it is written, from another seed, and tell random weights from loaded ones.

    Args:
        model: the network as the factory made it.
        assembly: the way in which it was built.
    """
    with _other_seeds():
        other: nn.Module = torch_model.make_model(assembly.factory, None, _OTHER_SEED, assembly.arguments)
    theirs = dict(other.named_parameters())
    own = dict(unwrapped(model).named_parameters())
    random = tuple(name for name in own if name in theirs and not torch.equal(own[name], theirs[name]))
    same = (name for name in own if name in theirs and name not in random)
    return Drawn(random, tuple(name for name in same if own[name].min() != own[name].max()))


def _assembled(assembly: Assembly, model: nn.Module) -> nn.Module:
    """Return the network of other seeds with a model's weights, as `assemble` does but for the last step."""
    twin = _make(assembly)
    torch_model.load_state(twin, model.state_dict(), f"{assembly.factory}, called twice")
    twin.eval()
    return twin


def _apart(model: nn.Module, twin: nn.Module, inputs: tuple[int, int, int] | Samples) -> float:
    scales = (1.0,) if isinstance(inputs, Samples) else _SCALES
    return max(_difference(model, twin, scale, inputs) for scale in scales)


def _refuse_if_baking_moves(
    model: nn.Module, twin: nn.Module, inputs: tuple[int, int, int] | Samples, apart: float
) -> None:
    """Raise an error if the twin gives the model's logits only as long as its computed weights are not baked."""
    if _apart(model, twin, inputs) > _RELATIVE:
        return
    weights = computed_weights(twin)
    moving = [weight.place for weight in weights if _moves(weight, model, twin, inputs)][:1]
    raise SourceError(
        "the network computes a weight anew in every call, and not from its weights alone",
        where=listed(moving or [weight.place for weight in weights]),
        expected="the same logits with this weight computed once: engines and graphs hold plain weights",
        got=f"logits {apart:.2g} apart (relative L2)" if math.isfinite(apart) else "a forward that fails then",
        fix="remove the parametrisation in the factory, or let it compute from its own tensors alone",
    )


def warn_of_random_weights(model: ModelConfig, drawn: Drawn) -> None:
    """Warn of weights that no training made, unless `weights: factory` asks for a network of them alone."""
    if not drawn.random or (model.weights.file == "factory" and not drawn.loaded):
        return
    count = f"{len(drawn.random)} of its weights" if drawn.loaded else "its weights"
    log.warning("WARNING: %s draws %s AT RANDOM: %s", model.factory, count, listed(drawn.random))
    log.warning("WARNING: no training made them; set `model.weights` to a file, or arguments that load them, such as")
    log.warning("WARNING: timm's `pretrained: true` with the classes of its weights. `factory` keeps random weights.")


def _moves(weight: ComputedWeight, model: nn.Module, twin: nn.Module, inputs: tuple[int, int, int] | Samples) -> bool:
    """Bake a weight of the twin, and return true if that changes its logits."""
    bake_one(weight)
    return _baked_apart(model, twin, inputs) > _RELATIVE


def _baked_apart(model: nn.Module, twin: nn.Module, inputs: tuple[int, int, int] | Samples) -> float:
    """Return the distance of a baked twin; infinity if its own code looks for the tensors that are gone."""
    try:
        return _apart(model, twin, inputs)
    except Exception:  # noqa: BLE001 - that code may raise any type
        return math.inf


def _make(assembly: Assembly) -> nn.Module:
    with _other_seeds():
        try:
            with _imported_anew():
                return torch_model.make(assembly, _OTHER_SEED)
        except SourceError:  # a module that is imported once only, such as one that registers an operator
            return torch_model.make(assembly, _OTHER_SEED)


def _difference(model: nn.Module, twin: nn.Module, scale: float, inputs: tuple[int, int, int] | Samples) -> float:
    """Return the relative L2 distance of two networks' logits; whatever they draw in forward is the same for both."""
    batch = _batch(scale, inputs)
    answers = []
    for network in (model, twin):
        with _other_seeds(), strict_fp32():
            torch.manual_seed(_OTHER_SEED)
            answers.append(tuple(output.nan_to_num() for output in tensors(call(network, batch))))
    one, other = answers
    return relative_l2(other, one)


def _batch(scale: float, inputs: tuple[int, int, int] | Samples) -> Result:
    """Return two images of noise, or samples as they are: others may be no input at all."""
    if isinstance(inputs, Samples):
        return torch_batch(inputs.batch(_SAMPLES))
    return scale * torch.randn(2, *inputs, generator=torch.Generator().manual_seed(_OTHER_SEED))


@contextmanager
def _other_seeds() -> Iterator[None]:
    """Seed the generators of Python and numpy, which the factory may draw from, and put them back afterwards."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the generator that factories use
    random.seed(_OTHER_SEED)
    np.random.seed(_OTHER_SEED)  # noqa: NPY002 - the same
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002 - the same


@contextmanager
def _imported_anew() -> Iterator[None]:
    """Import the project's own modules again, for they may draw at random when they are imported."""
    before = {name: module for name, module in sys.modules.items() if _is_own(name, module)}
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in [name for name, module in sys.modules.items() if _is_own(name, module)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_own(name: str, module: ModuleType) -> bool:
    """Return whether a module belongs to the folder that the pipeline runs in, and is not the pipeline's."""
    file = getattr(module, "__file__", None)
    if not file or name.partition(".")[0] in _OURS or "site-packages" in Path(file).parts:
        return False
    return Path(file).is_relative_to(Path.cwd()) and not Path(file).is_relative_to(sys.prefix)


def _unsaved(model: nn.Module, twin: nn.Module) -> Iterator[str]:
    """Yield the names of tensors, arrays and numbers in which two networks differ, and that no state dict holds."""
    saved = model.state_dict().keys()
    others = dict(twin.named_modules())
    for path, module in model.named_modules():
        theirs = vars(others[path]) if path in others else {}
        values = {**vars(module), **module._buffers}  # noqa: SLF001 - the buffers that are not saved are in no other list
        for name, value in values.items():
            full = f"{path}.{name}" if path else name
            mine = {**theirs, **theirs.get("_buffers", {})}.get(name)
            if full not in saved and not name.startswith("_") and _differ(value, mine):
                yield full


def _differ(one: Any, other: Any) -> bool:  # noqa: ANN401 - an attribute may be anything
    """Return whether two values hold other numbers; values that hold none are equal."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return not torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return not np.array_equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return any(_differ(mine, theirs) for mine, theirs in zip(one, other, strict=False))
    if isinstance(one, dict) and isinstance(other, dict):
        return any(_differ(one[name], other.get(name)) for name in one)
    return isinstance(one, (int, float, complex)) and one != other
