"""Batch-norms folded by a run of the network: the layers and batch-norms that it calls, and the tensors they share.

torch.fx needs a trace, and gives none of a network that branches on values, shapes or types. A run has no such limits.
Importing this module imports torch.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model_artifacts.sessions.arithmetic import call, strict_fp32
from model_artifacts.sessions.feeds.batches import each

if TYPE_CHECKING:
    from collections.abc import Callable

    from model_artifacts.sessions.arithmetic import Result

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_READS_VALUES = {"item", "_local_scalar_dense", "equal", "is_nonzero"}
"""Operators of torch that give Python's numbers, on which a network may branch."""


def fold_watched(copied: Callable[[], nn.Module], images: Result) -> nn.Module:
    """Return a copy of a network with each batch-norm folded into the layer whose result it alone reads, as runs show.

    Layers and batch-norms that are called more than once, have hooks, or are of a class derived from torch's stay. The
    caller compares the logits: a run does not see results that the network puts by. Every run has a copy of its own,
    because some networks keep tensors of their first call, which a cast would not reach.

    Args:
        copied: makes a copy that may be changed, in FP32 and in evaluation mode. Its tensors are not written to.
        images: float32 (images, channels, height, width), more than one; or the tensors of several inputs.

    Raises:
        ValueError: the network may take another way for other images, past one of these layers.
    """
    several, single = (_watched(copied(), batch) for batch in (images, each(images, lambda tensor: tensor[:1])))
    if several.way != single.way:
        raise ValueError("its operators depend on the batch size")
    if read := sorted({operator for operator in several.way if operator.split(".")[1] in _READS_VALUES}):
        raise ValueError(f"its operators may depend on the values of tensors, which {', '.join(read)} reads")
    model = copied()
    modules = dict(model.named_modules())
    replaced = {id(modules[norm]) for layer, norm in several.pairs() if _fold(modules[layer], modules[norm])}
    for parent in list(modules.values()):
        for name, child in parent.named_children():
            if id(child) in replaced:
                setattr(parent, name, nn.Identity())
    return model


def count_batch_norms(model: nn.Module) -> int:
    """Return the number of batch-norms of a model."""
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())  # noqa: SLF001


def _watched(model: nn.Module, images: Result) -> _Watch:
    """Run a copy of a network, and note the layers and batch-norms that it calls."""
    watch = _Watch({module: name for name, module in model.named_modules()})
    for module in model.modules():
        if _is_plain(module, _LAYERS):
            module.register_forward_hook(watch.layer_was_called)
        elif _is_plain(module, _NORMS):
            module.register_forward_pre_hook(watch.norm_is_called)
    with strict_fp32(), watch:
        call(model, images)
    return watch


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return True for a module of just these classes, whose call is that of its class."""
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)  # noqa: SLF001 - torch has no other list of them
    return type(module) in kinds and not changed


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is untyped
    """Notes which layer made the input of each batch-norm, and how many operators read each layer's result."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._names = names
        self.way: list[str] = []
        """The operators of the run, in order."""
        self._results: dict[int, tuple[weakref.ref[torch.Tensor], nn.Module]] = {}
        """Layers by the identity of their result, as long as it lives: activations are not kept."""
        self._pairs: list[tuple[nn.Module, nn.Module]] = []
        self._calls: Counter[nn.Module] = Counter()
        self._readers: Counter[nn.Module] = Counter()

    def layer_was_called(self, layer: nn.Module, _: object, result: torch.Tensor) -> None:
        """Note the result of a layer."""
        self._calls[layer] += 1
        self._results[id(result)] = (weakref.ref(result), layer)

    def norm_is_called(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note the layer in front of a batch-norm."""
        self._calls[norm] += 1
        layer = self._made(inputs[0]) if inputs else None
        # A Linear's outputs are the channels of a batch-norm only without further axes.
        if layer is not None and not (isinstance(layer, nn.Linear) and inputs[0].ndim > len("NC")):
            self._pairs.append((layer, norm))

    def _made(self, value: object) -> nn.Module | None:
        found = self._results.get(id(value))
        return found[1] if found is not None and found[0]() is value else None

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's signature
        types: Any,  # noqa: ANN401 - the same
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - the same
        del types
        self.way.append(str(func))
        for value in tree_leaves((args, kwargs)):
            layer = self._made(value)
            if layer is not None:
                self._readers[layer] += 1
        return func(*args, **(kwargs or {}))

    def pairs(self) -> list[tuple[str, str]]:
        """Return the names of layers and batch-norms that were called once, in a row, with no other reader."""
        once = {module for module, calls in self._calls.items() if calls == 1}
        return [
            (self._names[layer], self._names[norm])
            for layer, norm in self._pairs
            if layer in once and norm in once and self._readers[layer] == 1
        ]


def _fold(layer: Any, norm: Any) -> bool:  # noqa: ANN401 - one of `_LAYERS`, and one of `_NORMS`
    """Give the layer new tensors that hold the batch-norm's, if that is possible in FP32."""
    transposed = isinstance(layer, _TRANSPOSED)
    if norm.training or norm.running_mean is None or layer.weight.dtype is not torch.float32:
        return False
    if transposed and layer.groups > 1:  # torch scales the channels of one group alone
        return False
    if isinstance(layer, nn.Linear):
        fused: Any = fuse_linear_bn_eval(layer, norm)
    else:
        fused = fuse_conv_bn_eval(layer, norm, transposed)
    layer.weight, layer.bias = fused.weight, fused.bias
    return True


class Operands(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class is untyped
    """Notes the identities of all parameters that operators take."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self.weights: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's signature
        types: Any,  # noqa: ANN401 - the same
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - the same
        del types
        self.weights |= {id(item) for item in tree_leaves((args, kwargs)) if isinstance(item, nn.Parameter)}
        return func(*args, **(kwargs or {}))
