"""Kinds of modules that a factory may return: wrappers to open, computed weights to bake, and kinds to refuse.

Importing this module imports torch.
"""

from __future__ import annotations

import sys
import types
import warnings
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from model_artifacts.errors import SourceError, listed, one_line

_QUANTIZED = ("torch.ao.nn.", "torch.ao.quantization.", "torch.nn.quantized", "torch.nn.intrinsic", "torchao.")
"""Beginnings of the names of the modules whose classes quantise."""

_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
"""Hooks of torch that compute a weight before forward."""


class Wrapper(NamedTuple):
    """A wrapper that was opened: its prefix in the names of a state dict, and its kind."""

    prefix: str
    kind: str


class Opened(NamedTuple):
    """A network without its wrappers."""

    module: nn.Module
    wrappers: tuple[Wrapper, ...]

    @property
    def said(self) -> str:
        """The wrappers as text, such as `OptimizedModule around the network`; empty without one."""
        places = (f"{kind} around {_place(prefix)}" for prefix, kind in self.wrappers)
        return ", ".join(dict.fromkeys(places))


def _place(prefix: str) -> str:
    path = prefix.rstrip(".").rpartition(".")[0]
    return f"layer {path!r}" if path else "the network"


def open_wrappers(model: nn.Module) -> Opened:
    """Take a network, and every layer, out of what torch.compile and parallel training made of it.

    A compiled network would be measured as the eager one, and nothing in it would fold. `OptimizedModule`,
    `DataParallel`, `DistributedDataParallel` and `AveragedModel` are opened, and compiled methods are made plain again.
    Checkpoints that were saved from the wrapper can still be loaded: their names are changed on the way.

    Args:
        model: the network; its layers are replaced in place.
    """
    wrappers: list[Wrapper] = []
    while (inner := _inner(model)) is not None:
        wrappers.append(_wrapper(model, ""))
        model = inner
    _open_layers(model, "", wrappers, set())
    for name, module in model.named_modules():
        if _make_plain(module):
            wrappers.append(Wrapper(f"{name}." if name else "", "torch.compile"))
    if wrappers:
        renamed = tuple(wrapper.prefix for wrapper in wrappers if wrapper.kind != "torch.compile")
        model.register_load_state_dict_pre_hook(  # type: ignore[no-untyped-call]  # torch's own
            partial(_rename, renamed)
        )
    return Opened(model, tuple(wrappers))


def _open_layers(parent: nn.Module, path: str, wrappers: list[Wrapper], seen: set[int]) -> None:
    if id(parent) in seen:
        return
    seen.add(id(parent))
    for name, child in list(parent.named_children()):
        opened = child
        while (inner := _inner(opened)) is not None:
            wrappers.append(_wrapper(opened, f"{path}{name}."))
            opened = inner
        if opened is not child:
            setattr(parent, name, opened)
        _open_layers(opened, f"{path}{name}.", wrappers, seen)


def _inner(module: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper; None if it is no wrapper."""
    inner: Any = None
    if isinstance(module, _optimized()):
        inner = module._orig_mod  # noqa: SLF001 - torch has no other name for it
    elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        inner = module.module
    return inner if isinstance(inner, nn.Module) else None


def _optimized() -> tuple[type, ...]:
    """Return the class of torch.compile's modules; none if its module, which takes seconds, was never imported."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return (compiler.OptimizedModule,) if compiler else ()


def _wrapper(module: nn.Module, path: str) -> Wrapper:
    attribute = "_orig_mod" if isinstance(module, _optimized()) else "module"
    return Wrapper(f"{path}{attribute}.", next(cls.__name__ for cls in type(module).__mro__))


def _make_plain(module: nn.Module) -> bool:
    """Undo `module.compile()` and `torch.compile` of its forward, and return true if there was one."""
    called = module.__dict__.get("_compiled_call_impl") is not None
    if called:
        module._compiled_call_impl = None  # noqa: SLF001 - torch's own place of it
    forward = module.forward
    plain = getattr(forward, "_torchdynamo_orig_callable", None)
    if plain is None or getattr(forward, "_torchdynamo_disable", False):
        return called
    if getattr(plain, "__self__", None) is module and plain.__func__ is type(module).forward:
        del module.__dict__["forward"]
    else:
        module.forward = plain if hasattr(plain, "__self__") else types.MethodType(plain, module)
    return True


def _rename(
    prefixes: tuple[str, ...],
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: dict[str, Any],
    _strict: bool,  # noqa: FBT001 - torch's signature
    _missing: list[str],
    _unexpected: list[str],
    _errors: list[str],
) -> None:
    """Give the tensors of a state dict the names that they have without the wrappers."""
    if module.state_dict(prefix=prefix).keys() <= state.keys():
        return
    for wrapper in prefixes:
        path = wrapper.rstrip(".").rpartition(".")[0]
        start, kept = prefix + wrapper, f"{prefix}{path}." if path else prefix
        for name in [name for name in state if name.startswith(start)]:
            state[kept + name.removeprefix(start)] = state.pop(name)
        state.pop(f"{kept}n_averaged", None)  # the count of AveragedModel


def require_network(model: nn.Module) -> None:
    """Refuse a module that has no weights yet, or that is no network in floating point any more.

    Raises:
        SourceError: it is a TorchScript, exported or quantised module, or has lazy layers or sharded tensors.
    """
    modules = list(model.named_modules())
    if scripted := [place_of(name, module) for name, module in modules if isinstance(module, torch.jit.ScriptModule)]:
        raise SourceError(
            "the model is a TorchScript module, which torch can neither export nor cast",
            where=listed(scripted),
            expected="the nn.Module that it was made from",
            fix="let the factory return that module, with the weights of `torch.jit.load(…).state_dict()`",
        )
    if quantized := [place_of(name, module) for name, module in modules if _is_quantized(module)]:
        raise SourceError(
            "the model is quantised already, so that there is no FP32 network to compare with",
            where=listed(quantized),
            expected="the network in floating point; `precisions: [int8]` quantises it",
            fix="let the factory return the network before its quantisation",
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise SourceError(
            "the model has lazy layers, whose weights have no shape before the first call",
            where=listed(lazy),
            expected="weights with shapes",
            fix="call the network once in the factory, before it returns: `net(torch.zeros(2, 3, 224, 224))`",
        )
    if wrapped := [f"{name} ({type(tensor).__name__})" for name, tensor in tensors if _is_special(tensor)]:
        raise SourceError(
            "the model's weights are no plain tensors: they are sharded or quantised",
            where=listed(wrapped),
            expected="torch.nn.Parameter of float32 values",
            fix="let the factory return the network before `fully_shard` or `quantize_`, and load full weights",
        )


def _is_quantized(module: nn.Module) -> bool:
    return any(cls.__module__.startswith(_QUANTIZED) and "sparse" not in cls.__module__ for cls in type(module).__mro__)


def _is_special(tensor: torch.Tensor) -> bool:
    return tensor.is_quantized or is_traceable_wrapper_subclass(tensor)


def evaluate(model: nn.Module) -> None:
    """Put a module into evaluation mode, in float32, on the CPU; its own `train` need not return anything.

    Raises:
        SourceError: the module refuses.
    """
    try:
        model.eval()
        model.float()
        model.cpu()
    except Exception as exc:  # the module's own code may raise any type
        raise SourceError(
            "the model cannot be put into evaluation mode, in float32, on the CPU",
            where=type(model).__name__,
            expected="an nn.Module that takes `eval()`, `float()` and `cpu()`",
            got=one_line(exc),
            fix="let the factory return the nn.Module that it was made from",
        ) from exc


class ComputedWeight(NamedTuple):
    """A weight that torch computes from other tensors in every call."""

    path: str
    """The layer's name; empty for the network itself."""
    layer: nn.Module
    name: str
    """The weight's name in the layer."""

    @property
    def place(self) -> str:
        """The weight as messages name it, such as `weight of layer 'body.0' (Conv2d)`."""
        return f"{self.name} of {place_of(self.path, self.layer)}"


def computed_weights(model: nn.Module) -> tuple[ComputedWeight, ...]:
    """Return the weights behind `parametrize`, and behind the hooks of `weight_norm`, `spectral_norm` and `prune`."""
    return tuple(
        ComputedWeight(path, layer, name)
        for path, layer in model.named_modules()
        for name in (*(layer.parametrizations if parametrize.is_parametrized(layer) else ()), *_hooked_names(layer))
    )


def _hooked_names(layer: nn.Module) -> list[str]:
    hooks = layer._forward_pre_hooks.values()  # noqa: SLF001 - torch has no other list of them
    return [_name_of(hook) for hook in hooks if isinstance(hook, _HOOKS)]


def _name_of(hook: WeightNorm | SpectralNorm | prune.BasePruningMethod) -> str:
    return str(hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name)  # noqa: SLF001 - the same


def bake(model: nn.Module) -> None:
    """Replace each weight that torch computes in every call by a plain one with its present value, in place.

    A cast to FP16 would otherwise compute these weights in FP16, where some operators are missing. A graph would have
    no weights to fold or to quantise.

    Args:
        model: the network, with its weights and in evaluation mode.

    Raises:
        SourceError: a weight cannot be computed.
    """
    for weight in computed_weights(model):
        bake_one(weight)


def bake_one(weight: ComputedWeight) -> None:
    """Replace a weight by a plain one with its present value. Layers that share tensors with it stay as they are.

    Raises:
        SourceError: it cannot be computed.
    """
    layer, name = weight.layer, weight.name
    try:
        with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's deprecation of the older functions
            buffered = False
            if parametrize.is_parametrized(layer, name):
                value = getattr(layer, name).detach().clone()
                parts: Any = layer.parametrizations[name]  # type: ignore[index]  # a ModuleDict
                buffered = "original" in dict(parts.named_buffers(recurse=False))
                parametrize.remove_parametrizations(layer, name, leave_parametrized=not parts.is_tensor)
            else:
                value = _without_hook(layer, name)
            _set_plain(layer, name, value, buffered=buffered)
    except Exception as exc:  # a parametrisation is anybody's code
        raise SourceError(
            "a weight that the network computes from other tensors cannot be computed once and for all",
            where=weight.place,
            expected="a tensor that depends on weights alone",
            got=one_line(exc),
            fix="remove the parametrisation in the factory, after it has loaded the weights",
        ) from exc


def _without_hook(layer: nn.Module, name: str) -> torch.Tensor:
    """Return the weight that a hook computes, and remove the hook with the tensors that it computes from."""
    hooks = layer._forward_pre_hooks  # noqa: SLF001 - torch has no other list of them
    key = next(key for key, hook in hooks.items() if isinstance(hook, _HOOKS) and _name_of(hook) == name)
    hook = hooks[key]
    hook(layer, ())  # it sets the attribute
    value: torch.Tensor = getattr(layer, name).detach().clone()
    if isinstance(hook, WeightNorm):
        remove_weight_norm(layer, name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(layer, name)
    else:
        own = layer.get_parameter(f"{name}_orig")
        layer.register_parameter(f"{name}_orig", nn.Parameter(own.clone()))  # torch writes into it: it may be shared
        prune.remove(layer, name)  # type: ignore[no-untyped-call]  # torch's own
    return value


def _set_plain(layer: nn.Module, name: str, value: torch.Tensor, *, buffered: bool) -> None:
    delattr(layer, name)
    if buffered:
        layer.register_buffer(name, value)
    else:
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))


def layers_in_training(model: nn.Module) -> tuple[str, ...]:
    """Return the places of the layers without children that are in training mode."""
    return tuple(
        place_of(name, module)
        for name, module in model.named_modules()
        if module.training and not any(True for _ in module.children())
    )


def place_of(name: str, module: nn.Module) -> str:
    """Return a layer as messages name it, such as `layer 'body.0' (Conv2d)`; the empty name is the network's own."""
    return f"layer {name!r} ({type(module).__name__})" if name else f"forward of {type(module).__name__}"


def untraced(model: nn.Module) -> str:
    """Return the likely cause for which a trace of the network computes something else, as text.

    Tracers run the class's forward with stand-ins for tensors. They may miss hooks and a forward of the instance, and
    see a branch on types or modes from its other side.
    """
    layers = list(model.named_modules())
    hooked = [place_of(name, module) for name, module in layers if module._forward_hooks or module._forward_pre_hooks]  # noqa: SLF001 - torch has no other list of them
    patched = [place_of(name, module) for name, module in layers if "forward" in vars(module)]
    causes = [
        *([f"forward hooks that a trace misses: {listed(hooked)}"] if hooked else []),
        *([f"a forward that was set on the instance: {listed(patched)}"] if patched else []),
    ]
    return "; ".join(causes) or (
        f"{place_of('', model)} computes something else when it is traced: a branch on types (`type(x) is "
        "torch.Tensor`, `isinstance`), on `torch.compiler.is_exporting()` or the like, or on the batch size"
    )
