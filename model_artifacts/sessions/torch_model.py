"""The torch model: its factory, weights, head, casts and folds. Importing this module imports torch."""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections import OrderedDict
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse

from model_artifacts.errors import SourceError, StorageError, listed, one_line
from model_artifacts.records import Precision, call_of
from model_artifacts.sessions import torchvision_models
from model_artifacts.sessions.arithmetic import call, relative_l2, strict_fp32
from model_artifacts.sessions.factory_call import (
    LogitsOf,
    LogitsOfSeveral,
    OutputsOf,
    OutputsOfSeveral,
    find_factory,
    named,
    running_factory,
    without_weights,
)
from model_artifacts.sessions.feeds.samples import Samples
from model_artifacts.sessions.folding.probes import probes_of
from model_artifacts.sessions.folding.watching import Operands, count_batch_norms, fold_watched
from model_artifacts.sessions.module_kinds import bake, evaluate, open_wrappers, require_network, untraced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from model_artifacts.records import Argument
    from model_artifacts.sessions.arithmetic import Result
    from model_artifacts.sessions.factory_call import Assembly

    Factory = Callable[..., nn.Module]


log = logging.getLogger(__name__)

SEED = 0
"""The seed of every call of a factory, so that random weights are the same each time."""


def import_factory(spec: str) -> Factory:
    """Return the callable that `package.module:function` or `package.module:Class.method` names.

    Raises:
        SourceError: it cannot be imported, or is not callable, or belongs to a package that makes no networks.
    """
    return find_factory(spec)


_VERSIONS = "versions"
"""The entry in a file of weights that holds the version of each module's own format, as JSON."""


def make_model(
    spec: str, torchvision_weights: str | None = None, seed: int = SEED, arguments: tuple[Argument, ...] = ()
) -> nn.Module:
    """Call a factory, seeded, with its arguments, and open the wrappers of what it returns.

    For torchvision's weights the network gets the settings that these need.

    Args:
        spec: `package.module:function`.
        torchvision_weights: the name of torchvision's weights that are loaded into the network later; None for others.
        seed: the seed of torch's generators.
        arguments: the factory's arguments.

    Returns:
        the module in evaluation mode, in float32, on the CPU.

    Raises:
        SourceError: the factory fails, or does not return a network in floating point.
    """
    factory = import_factory(spec)
    entry = torchvision_models.entry_of(factory, torchvision_weights) if torchvision_weights else None
    torch.manual_seed(seed)
    with running_factory(spec, f"the model's factory {spec!r} failed", call=call_of(spec, arguments)):
        given = named(arguments)
        model = torchvision_models.build(factory, entry, arguments=given) if entry else factory(**given)
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"the model's factory {spec!r} returns no module", expected="torch.nn.Module", got=type(model).__name__
        )
    opened = open_wrappers(model)
    if opened.wrappers:
        _say_opened(spec, opened.said)
    require_network(opened.module)
    evaluate(opened.module)
    return opened.module


@cache
def _say_opened(spec: str, wrappers: str) -> None:
    """Log the wrappers that were opened, once in a process: steps make a network several times."""
    log.info("%s returns a wrapped network, which is taken out of it: %s", spec, wrappers)


def replace_head(model: nn.Module, name: str, classes: int) -> nn.Linear:
    """Replace the head with a fresh linear layer of `classes` outputs, and return it.

    Raises:
        SourceError: the model has no such linear layer.
    """
    parent_name, _, attribute = name.rpartition(".")
    old = dict(model.named_modules()).get(name)
    if not isinstance(old, nn.Linear):
        raise SourceError(
            f"the model's layer {name!r} is not a torch.nn.Linear any more",
            got=type(old).__name__ if old else "no such layer",
            fix="the factory has changed: run `doit` to make the source again",
        )
    head = nn.Linear(old.in_features, classes)
    setattr(model.get_submodule(parent_name), attribute, head)
    return head


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], origin: str) -> None:
    """Load a whole state dict, as torch does: modules may rename entries of older versions, or add them.

    Raises:
        SourceError: some weights are missing, superfluous or of another shape; the message lists them.
    """
    try:
        model.load_state_dict(state)
    except Exception as exc:  # torch raises RuntimeError, and a module's own code for older versions almost any type
        got = misfit(model, state) or one_line(exc)
        raise SourceError("the weights do not fit the model", where=origin, got=got) from exc


def misfit(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """Return the names in which a state dict differs from a model's, by kind; empty if names and shapes are equal."""
    own = model.state_dict()
    misshapen = [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(state[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if _is_tensor(own[name]) and _is_tensor(state[name]) and own[name].shape != state[name].shape
    ]
    kinds = (
        ("missing", sorted(own.keys() - state.keys())),
        ("extra", sorted(state.keys() - own.keys())),
        ("misshapen", misshapen),
    )
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names)


def save_weights(model: nn.Module, file: Path) -> None:
    """Write a model's state dict to a safetensors file, with the versions of its modules' formats.

    Only tensors that share memory or lie in another order are copied on the way.

    Raises:
        SourceError: a module's `get_extra_state` returns something else than a tensor.
        StorageError: the file cannot be written.
    """
    state = model.state_dict()
    if others := [f"{name} ({type(value).__name__})" for name, value in state.items() if not _is_tensor(value)]:
        raise SourceError(
            "the model's state dict holds something else than tensors, which a file of weights cannot hold",
            where=listed(others),
            expected="tensors",
            fix="let `get_extra_state` of that layer return a tensor, or take the method out of its class",
        )
    versions = {name: data["version"] for name, data in _metadata(state).items() if "version" in data}
    try:
        save_file(_apart(state), file, {_VERSIONS: json.dumps(versions, sort_keys=True)})
    except SafetensorError as exc:  # also for a full disk
        raise StorageError(f"writing {file} failed", got=one_line(exc), fix="free some disk space") from exc


def _apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of which each has its memory to itself and lies in order, as safetensors asks for."""
    found, taken = {}, set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in taken
        found[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
        taken.add(storage.data_ptr())
    return found


def _is_tensor(value: object) -> bool:
    """Return true for a tensor: a module's own state may be anything, against the types of torch's state dicts."""
    return isinstance(value, torch.Tensor)


def read_weights(file: Path) -> OrderedDict[str, torch.Tensor]:
    """Read the state dict that `save_weights` has written.

    Raises:
        SourceError: the file is missing or damaged.
    """
    try:
        with safe_open(file, "pt") as content:
            state = OrderedDict((name, content.get_tensor(name)) for name in content.keys())  # noqa: SIM118 - no mapping
            packed = (content.metadata() or {}).get(_VERSIONS)
    except Exception as exc:  # safetensors' own type, OSError, and others for damaged headers
        raise SourceError("the file of weights is missing or damaged", where=str(file), got=one_line(exc)) from exc
    if packed is not None:
        metadata = {name: {"version": version} for name, version in json.loads(packed).items()}
        state._metadata = metadata  # type: ignore[attr-defined]  # noqa: SLF001 - the place where torch looks for it
    return state


def _metadata(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Return the versions of modules' formats, which torch keeps beside a state dict."""
    return getattr(state, "_metadata", {})


def make(assembly: Assembly, seed: int = SEED) -> nn.Module:
    """Return a factory's network without its weights, in evaluation mode. Weights are not downloaded for it.

    Raises:
        SourceError: the factory fails, or the network has no layer of the head's name.
    """
    arguments = without_weights(assembly.factory, assembly.arguments)
    model = make_model(assembly.factory, assembly.torchvision_weights, seed, arguments)
    if assembly.logits:
        model = (LogitsOfSeveral if assembly.takes_several else LogitsOf)(model, assembly.logits)
    if assembly.output_names:
        model = (OutputsOfSeveral if assembly.takes_several else OutputsOf)(model, assembly.output_names)
    if assembly.replaced_head:
        replace_head(model, assembly.replaced_head, assembly.classes)
    return model


def assemble(assembly: Assembly, weights: Path) -> nn.Module:
    """Return a factory's model with a file of `save_weights`, in evaluation mode; computed weights are baked.

    Raises:
        SourceError: the weights do not fit the factory's model, or one of them cannot be computed.
    """
    model = make(assembly)
    load_state(model, read_weights(weights), str(weights))
    model.eval()  # not its result: a `train` of the model's own may return nothing
    bake(model)
    return model


DTYPES = {
    Precision.FP32: torch.float32,
    Precision.TF32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
"""The type that a module is cast to, by the precision to compute in."""


class Typed(nn.Module):
    """A module with float32 input and outputs, whichever type it computes in, so that all are called the same way."""

    def __init__(self, body: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.body = body.to(dtype)
        self.dtype = dtype

    def forward(self, image: torch.Tensor) -> Result:
        """Return float32 (batch, classes), or a tuple of several outputs."""
        return self._wide(self.body(self._narrow(image)))

    def _narrow(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor  # ids of tokens stay what they are

    @staticmethod
    def _wide(found: Any) -> Result:  # noqa: ANN401 - what a network returns
        return tuple(output.float() for output in found) if isinstance(found, tuple) else found.float()


class TypedInputs(Typed):
    """The same for a network of several inputs."""

    def forward(self, *inputs: torch.Tensor) -> Result:
        """Return the output, or a tuple of several."""
        return self._wide(self.body(*map(self._narrow, inputs)))


def in_layout(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Put a model's weights into a memory layout, in place, and return it."""
    move: Any = model.to  # the stubs of torch 2.11 lack the keyword
    move(memory_format=layout)
    return model


_FOLDED = 1e-4
"""The largest relative L2 by which folding may move logits: ten times the floor of the gates' bounds
(`pipeline/stages/validate/gates.py`). FP32's rounding moves those of deep networks by 1e-6 to 1e-5."""


class Folded(NamedTuple):
    """A model with its batch-norms folded into the layers before them, and the number of folded ones."""

    model: nn.Module
    batch_norms: int


def fold_batch_norms(model: nn.Module, inputs: tuple[int, int, int] | Samples) -> Folded:
    """Fold batch-norms in FP32, before any cast, if the logits stay the same.

    torch.fx folds those of its trace, and a run of the network those that it leaves. torch.fx is not used for networks
    that it cannot trace, that call a layer with weights more than once, or whose trace computes something else. For a
    layer that is called twice, it folds the batch-norm after one call into all calls. A trace misses hooks of the
    network and a forward of the instance. A network is returned unchanged if nothing can be folded. A function that
    was set on a layer keeps calling the original's weights, which a cast of the copy does not reach.

    Args:
        model: the network, in FP32 and in evaluation mode.
        inputs: (channels, height, width) of one image, or samples of the inputs.
    """
    images = probes_of(inputs)
    best = Folded(model, 0)
    for name, fold in (("torch.fx", _fold_trace), ("a run", lambda copied: fold_watched(copied, images))):
        left = count_batch_norms(best.model)
        say = log.info if left else log.debug  # nothing is lost of a network without them
        if fold is not _fold_trace and not left:
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.eval()  # not its result: a `train` of the model's own may return nothing
                folded = fold(partial(share_weights, best.model))
                moved = _moved(folded, model, images)
        except Exception as exc:  # noqa: BLE001 - fx raises any type that the model's own code raises on a proxy
            say("batch-norms are not folded by %s: %s", name, one_line(exc))
            continue
        if moved > _FOLDED:
            say("batch-norms are not folded by %s: %s (logits %.2g apart)", name, untraced(model), moved)
        elif fold is _fold_trace or count_batch_norms(folded) < left:
            best = Folded(folded, best.batch_norms + left - count_batch_norms(folded))
    return best


def _fold_trace(copied: Callable[[], nn.Module]) -> nn.Module:
    """Return a network as torch.fx folds it.

    Args:
        copied: makes a copy that may be changed.

    Raises:
        ValueError: it calls a layer with weights more than once.
    """
    model = copied()
    traced = symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    weighted = [name for name in calls if any(True for _ in traced.get_submodule(name).parameters())]
    if len(weighted) != len(set(weighted)):
        raise ValueError("it calls a layer with weights more than once")
    return fuse(model, inplace=True).eval()  # it replaces layers, and writes no tensor


def _moved(folded: nn.Module, model: nn.Module, images: Result) -> float:
    """Return the relative L2 by which folding moves the logits of a few images.

    It is infinite if a logit is not a number, or if the folded network computes with the original's weights.
    """
    with strict_fp32():
        expected = call(share_weights(model), images)
        copied = share_weights(folded)
        with Operands() as operands:
            found = call(copied, images)
    if operands.weights - {id(parameter) for parameter in copied.parameters()}:
        return math.inf
    return relative_l2(found, expected)


def share_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters and buffers share their memory with the original's.

    A cast of the copy, or a new tensor in it, leaves the original as it is. Writing into a tensor changes both.
    """
    attributes = [value for module in model.modules() for value in vars(module).values()]
    tensors = [value for value in attributes if isinstance(value, torch.Tensor)]  # torch copies no computed ones
    shared: dict[int, object] = {id(tensor): tensor.detach() for tensor in (*tensors, *model.buffers())}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, shared)


def ready_to_compile(model: nn.Module, precision: Precision, inputs: tuple[int, int, int] | Samples) -> nn.Module:
    """Return a model in Torch-TensorRT's form: batch-norms folded, cast, contiguous weights, float32 in and out.

    With weights in channels_last the backend torch_compile gave wrong numbers, without a warning (relative errors up to
    1.8 at a batch of 64, torch-tensorrt-rtx 2.11). Contiguous weights avoid that.
    """
    kind = TypedInputs if isinstance(inputs, Samples) and len(inputs.names) > 1 else Typed
    typed = kind(fold_batch_norms(model, inputs).model, DTYPES[precision]).eval().requires_grad_(requires_grad=False)
    return in_layout(typed, torch.contiguous_format)
