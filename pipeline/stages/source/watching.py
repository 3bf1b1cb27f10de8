"""A network's forward, watched: all that keeps it from being a reference, each with its layer."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from model_artifacts.errors import one_line
from model_artifacts.sessions.arithmetic import call, settings
from model_artifacts.sessions.module_kinds import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from torch import nn

    from model_artifacts.sessions.arithmetic import Result

_COMPILER = "torch._dynamo.eval_frame"
"""The module of torch whose functions stand for compiled ones; they close over their compiler's `callback`."""
_SCRIPTED: tuple[Any, ...] = (torch.jit.ScriptFunction, torch._C.ScriptMethod)  # noqa: SLF001 - the latter has no public name
_TORCH = Path(torch.__file__).parent
_FP32_BYTES = 4


class Finding(NamedTuple):
    """Something that forward does, and the layer that does it."""

    what: str
    layer: str


class Watched(NamedTuple):
    """Everything that was seen in one call of a network."""

    lowered: tuple[Finding, ...]
    """Steps that compute with fewer bits than FP32 has, or that allow it."""
    random: tuple[Finding, ...]
    """Operators that draw random numbers."""
    failure: str
    """The error that the network raised; empty if it ran."""
    compiled: tuple[Finding, ...] = ()
    """Calls of functions that torch.compile, torch.jit.script or torch.jit.trace made."""
    foreign: tuple[Finding, ...] = ()
    """Operators that compute with weights which are not among the network's own."""


def watch(model: nn.Module, images: Result) -> Watched:
    """Run a network once, operator by operator, and note what lowers its precision, is drawn, compiled or not its own.

    Args:
        model: the network, in FP32, on the CPU.
        images: float32 (batch, channels, height, width), or the tensors of several inputs; it gets copies.
    """
    layers = _Layers(model)
    seen = _Seen(layers, model)
    failure = ""
    with ExitStack() as stack:
        stack.enter_context(layers.followed())
        stack.enter_context(_autocasts_noted(seen))
        stack.enter_context(_scripts_noted(seen))
        stack.enter_context(_compiled_noted(seen))
        stack.enter_context(torch.inference_mode(mode=False))  # there, a dropout in evaluation mode counts as random
        stack.enter_context(torch.no_grad())
        stack.enter_context(seen)
        try:
            call(model, images)
        except Exception as exc:  # noqa: BLE001 - the model's own code raises any type
            failure = one_line(exc)
        seen.look_at_settings()  # a change behind the last operator acts on the next call
    lowered, random, compiled, foreign = (
        tuple(dict.fromkeys(found)) for found in (seen.lowered, seen.random, seen.compiled, seen.foreign)
    )
    return Watched(lowered, random, failure, compiled, foreign)


class _Layers:
    """The layer that runs at present."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []

    @property
    def now(self) -> str:
        return self._stack[-1] if self._stack else "the network itself"

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow all calls of modules."""
        enter = register_module_forward_pre_hook(lambda module, _: self._stack.append(self._name(module)))
        leave = register_module_forward_hook(lambda *_: self._leave(), always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def _name(self, module: nn.Module) -> str:
        name = self._names.get(id(module))
        return f"layer {type(module).__name__!r} outside of the network" if name is None else place_of(name, module)

    def _leave(self) -> None:
        if self._stack:
            self._stack.pop()


class _Seen(TorchDispatchMode):
    """Notes on every operator."""

    def __init__(self, layers: _Layers, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class is untyped
        self._layers = layers
        self._own = {id(parameter) for parameter in model.parameters()}
        self._settings = settings()
        self.lowered: list[Finding] = []
        self.random: list[Finding] = []
        self.compiled: list[Finding] = []
        self.foreign: list[Finding] = []

    def note(self, what: str) -> None:
        """Note something that lowers the precision."""
        self.lowered.append(Finding(what, self._layers.now))

    def note_compiled(self, name: str, maker: str, frame: FrameType | None) -> None:
        """Note a call of a compiled function, and the line outside of torch that calls it."""
        while frame and Path(frame.f_code.co_filename).is_relative_to(_TORCH):
            frame = frame.f_back
        line = f", called at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""
        self.compiled.append(Finding(f"{name!r} of {maker}{line}", self._layers.now))

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's signature
        types: Any,  # noqa: ANN401 - the same
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - the same
        """Run an operator, and look at its operands, its result and the settings that it runs with."""
        del types
        result = func(*args, **(kwargs or {}))
        tensors = [item for item in tree_leaves((args, kwargs, result)) if isinstance(item, torch.Tensor)]
        narrow = sorted({str(tensor.dtype) for tensor in tensors if _is_narrow(tensor)})
        if narrow:
            self.note(f"{func} computes with {' and '.join(narrow)}")
        if func.namespace.startswith("quantized") or "fake_quant" in func.__name__:
            self.note(f"{func} quantises")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.nn.Parameter) and id(tensor) not in self._own:
                self.foreign.append(Finding(f"{func} takes a weight of shape {tuple(tensor.shape)}", self._layers.now))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random.append(Finding(str(func), self._layers.now))
        self.look_at_settings()
        return result

    def look_at_settings(self) -> None:
        """Note the settings that have changed since the last look."""
        now = settings()
        for name, value in now.items():
            if value != self._settings[name]:
                self.note(f"{name} is set to {value}, from {self._settings[name]}")
        self._settings = now


def _is_narrow(tensor: torch.Tensor) -> bool:
    dtype = tensor.dtype
    if dtype.is_complex:
        return dtype.itemsize < 2 * _FP32_BYTES
    return (dtype.is_floating_point and dtype.itemsize < _FP32_BYTES) or tensor.is_quantized


@contextmanager
def _autocasts_noted(seen: _Seen) -> Iterator[None]:
    """Note every autocast that is entered, also one for a GPU, which has no effect on the CPU."""
    make: Any = torch.autocast.__init__
    enter: Any = torch.autocast.__enter__
    asked: set[int] = set()

    def made(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as torch's
        given = dict(zip(("dtype", "enabled", "cache_enabled"), args, strict=False)) | kwargs
        asked.discard(id(self))
        if given.get("enabled", True):
            asked.add(id(self))  # torch switches it off itself where there is no such device
        make(self, device_type, *args, **kwargs)

    def entered(self: torch.autocast) -> Any:  # noqa: ANN401 - as torch's
        if id(self) in asked or self._enabled:
            seen.note(f"torch.autocast({self.device!r}, dtype={self.fast_dtype}) is entered")
        return enter(self)

    torch.autocast.__init__ = made  # type: ignore[method-assign]  # for one call of the network
    torch.autocast.__enter__ = entered  # type: ignore[method-assign]  # the same
    try:
        yield
    finally:
        torch.autocast.__init__ = make  # type: ignore[method-assign]  # the same
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]  # the same


@contextmanager
def _scripts_noted(seen: _Seen) -> Iterator[None]:
    """Note every call of a function or method in TorchScript."""
    calls = [(kind, kind.__call__) for kind in _SCRIPTED]
    for kind, plain in calls:
        kind.__call__ = _noting(seen, plain)
    try:
        yield
    finally:
        for kind, plain in calls:
            kind.__call__ = plain


def _noting(seen: _Seen, plain: Any) -> Any:  # noqa: ANN401 - a method of torch's C++ types
    @wraps(plain)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the same
        seen.note_compiled(self.name, "torch.jit", sys._getframe(1))  # noqa: SLF001 - Python's own way to a caller
        return plain(self, *args, **kwargs)

    return noted


@contextmanager
def _compiled_noted(seen: _Seen) -> Iterator[None]:
    """Note every call of a function that torch.compile made."""
    before = sys.getprofile()

    def look(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or frame.f_globals.get("__name__") != _COMPILER:
            return
        if "callback" in frame.f_code.co_freevars:
            function = frame.f_locals.get("fn")
            name = getattr(function, "__qualname__", type(function).__name__)
            seen.note_compiled(name, "torch.compile", frame.f_back)

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


_MOVING = frozenset(
    {"view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "squeeze", "unsqueeze", "select", "slice"}
    | {"t", "transpose", "permute", "expand", "clone", "contiguous", "detach", "alias", "_to_copy", "to", "index"}
    | {"dropout", "feature_dropout"}
)
"""Operators that move values without a change; in evaluation a dropout does nothing."""
_JOINING = frozenset({"cat", "concat", "stack"})
_SCALING = frozenset({"mul", "mul_", "div", "div_"})
_CONSTANT = frozenset({"zeros", "zeros_like", "new_zeros", "full", "full_like", "ones", "ones_like"})
LINEAR = frozenset(
    {"linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "_trilinear", "einsum"}
    | {"convolution", "conv2d", "_convolution", "mkldnn_convolution", "mkldnn_linear"}
    | {"add", "add_", "sub", "sub_", "mean", "sum", "native_batch_norm", "_native_batch_norm_legit_no_training"}
    | {"adaptive_avg_pool2d", "_adaptive_avg_pool2d", "avg_pool2d"}
)
"""Operators whose results lie between 0 and 1 by chance alone."""


def last_operator(model: nn.Module, images: Result) -> str:
    """Return the name of the operator that gave a model's output its values; empty if it cannot be told."""
    operators = _Operators()
    try:
        with torch.inference_mode(), operators:
            output = call(model, images)
    except Exception:  # noqa: BLE001 - compiled code may refuse to be watched; then the values alone decide
        return ""
    return operators.made_by(output)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """A note for each tensor of the operator that computed its values, without those that move, join or scale them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self._operators = WeakTensorKeyDictionary()

    def made_by(self, tensor: object) -> str:
        known = isinstance(tensor, torch.Tensor) and tensor in self._operators
        return str(self._operators[tensor]) if known else ""

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own
        types: Any,  # noqa: ANN401 - the same
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - the same
        del types
        result = func(*args, **(kwargs or {}))
        operator = self._behind(str(func.overloadpacket.__name__), args)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._operators[tensor] = operator
        return result

    def _behind(self, name: str, args: tuple[Any, ...]) -> str:
        """Return the operator behind one that moves, joins or scales values; for any other, the operator itself."""
        if name in _JOINING:
            parts = [self.made_by(part) for part in args[0]]
            return next((part for part in parts if part not in LINEAR | _CONSTANT), parts[-1])
        scales = name in _SCALING and not (isinstance(args[1], torch.Tensor) and args[1].numel() > 1)
        return self.made_by(args[0]) if scales or name in _MOVING else name
