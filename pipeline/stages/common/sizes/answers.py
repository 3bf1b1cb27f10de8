"""Answers of Python's own to what the network's code asks of a size beside its truth: its text and its type.

A trace answers such questions in another way than a run does: the text of a size is a symbol's name, `s53`; its type is
no `int`; and `torch.compiler.is_compiling()` is true. What a network does behind them in a run is in no trace then.
"""

from __future__ import annotations

import builtins
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from pipeline.stages.common.sizes.asking import asker_of, is_own, line_of, makes_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Note = Callable[[Any, float, str], None]

_PYTHON = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}
"""The types that a run has for those of a trace."""
_TRACED = (FakeTensor, FunctionalTensor)
"""The types of a trace's tensors. Its weights are parameters, as in a run."""
_TENSOR = torch.Tensor()
_TEXTS = ("__repr__", "__str__", "__format__")
_TRACING = ("is_compiling", "is_dynamo_compiling", "is_exporting")
"""torch's functions that tell whether code is traced, which a run answers with no."""


@contextmanager
def answering(note: Note) -> Iterator[None]:
    """Answer the network's own code in a trace as a run would, and note each text of a size that is no message.

    The code of torch, and of other tools, is answered as before. `isinstance` and `type` are names that code looks up
    in its module: the modules of the network's code get others. No hash is answered: einops counts on its TypeError.

    Args:
        note: takes the node of a size, its value in the trace, and the line that asks for its text.
    """
    with ExitStack() as stack:
        for kind in _PYTHON:
            for name in _TEXTS:
                stack.enter_context(mock.patch.object(kind, name, _text(getattr(kind, name), note)))
            stack.enter_context(mock.patch.object(kind, "__getattribute__", _attribute(note)))
        replaced = {id(builtins.isinstance): _isinstance, id(builtins.type): _Type}
        for name in _TRACING:
            function = getattr(torch.compiler, name)
            other = _untraced(function)
            replaced[id(function)] = other
            stack.enter_context(mock.patch.object(torch.compiler, name, other))
        for module in list(sys.modules.values()):
            if is_own(getattr(module, "__file__", None) or "<none>"):
                names = vars(module)
                others = {name: replaced[id(value)] for name, value in names.items() if id(value) in replaced}
                given = {"isinstance": _isinstance, "type": _Type}
                absent = {name: value for name, value in given.items() if name not in names}
                stack.enter_context(_given(names, others | absent))
        yield


@contextmanager
def _given(names: dict[str, Any], others: dict[str, Any]) -> Iterator[None]:
    """Give a module some names. It keeps what its own code sets meanwhile, which `mock.patch.dict` would undo."""
    before = {name: names[name] for name in others if name in names}
    names.update(others)
    try:
        yield
    finally:
        for name, value in others.items():
            if names.get(name) is not value:
                continue
            if name in before:
                names[name] = before[name]
            else:
                del names[name]


def _text(make: Callable[..., str], note: Note) -> Callable[..., str]:
    """Return a method that makes the text of a size's value for the network's own code."""

    def made(self: Any, *spec: str) -> str:  # noqa: ANN401 - a size, a real number or a truth of a trace
        frame = sys._getframe(1)  # noqa: SLF001 - a documented function
        value, asker = getattr(self.node, "hint", None), asker_of(frame)
        if value is None or asker is None:
            return make(self, *spec)
        if not (asker is frame and makes_message(frame)):
            note(self.node, value, line_of(asker))
        return format(value, *spec)

    return made


def _attribute(note: Note) -> Callable[[Any, str], Any]:
    """Return a method that gives the network's own code the type of a run, and what a number of Python has alone.

    Such are `size.__class__`, which `case int():` asks for, too, and `size.bit_count()`.
    """

    def found(self: Any, name: str) -> Any:  # noqa: ANN401 - as above
        kind = type(self)
        if name != "__class__" and hasattr(kind, name):
            return object.__getattribute__(self, name)
        frame = sys._getframe(1)  # noqa: SLF001 - as above
        if not is_own(frame.f_code.co_filename):
            return object.__getattribute__(self, name)
        if name == "__class__":
            return _PYTHON[kind]
        node = object.__getattribute__(self, "__dict__").get("node")
        value = getattr(node, "hint", None)
        if value is None or not hasattr(value, name):
            return object.__getattribute__(self, name)
        note(node, value, line_of(frame))
        return getattr(value, name)

    return found


def _plain(value: object) -> object:
    """Return a value that has the type which a run has for one of a trace."""
    if (kind := _PYTHON.get(type(value))) is not None:
        return kind()
    if isinstance(value, _TRACED) and not isinstance(value, torch.nn.Parameter):
        return _TENSOR
    return value


def _isinstance(value: object, kinds: Any) -> bool:  # noqa: ANN401 - a type, a tuple or a union of some
    return isinstance(_plain(value), kinds)


class _TypeOfTypes(type):
    """The class of `_Type`, which is called and asked as `type` is."""

    def __call__(cls, *given: Any, **more: Any) -> Any:  # noqa: ANN401 - the signature of `type`
        return type(_plain(given[0])) if len(given) == 1 and not more else type(*given, **more)

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, type)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, type)

    def __getattr__(cls, name: str) -> Any:  # noqa: ANN401 - what `type` has
        return getattr(type, name)


class _Type(metaclass=_TypeOfTypes):
    """Stands for `type` in the network's own code."""


def _untraced(function: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that tells the network's own code that it is not traced."""

    def answer() -> bool:
        return not is_own(sys._getframe(1).f_code.co_filename) and function()  # noqa: SLF001 - as above

    return answer
