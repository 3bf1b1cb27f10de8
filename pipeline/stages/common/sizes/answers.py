"""Answers of Python's own to what the network's code asks of a size beside its truth: its text and its type.

A trace answers such questions in another way than a run does: the text of a size is a symbol's name, `s53`; its type is
no `int`; and `torch.compiler.is_compiling()` is true. What a network does behind them in a run is in no trace then.
"""

from __future__ import annotations

import builtins
import sys
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from pipeline.stages.common.sizes.asking import asker_of, is_own, line_of, makes_message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Note = Callable[[Any, float, str], None]

_PYTHON = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}
"""The types that a run has for those of a trace."""
_TRACED = (FakeTensor, FunctionalTensor)
"""The types of a trace's tensors. Its weights are parameters, as in a run."""
_TENSOR = torch.Tensor()
_TEXTS = ("__repr__", "__str__", "__format__")
_TRACING = ("is_compiling", "is_dynamo_compiling", "is_exporting")
"""torch's functions that tell whether code is traced, which a run answers with no."""
_TRACED_BY: dict[str, FunctionType] = {}
"""These functions as torch has them, by their name."""
_NAME = "the function's name"
"""The constant in the code of `_answer` that becomes a name."""


@contextmanager
def answering(note: Note) -> Iterator[None]:
    """Answer the network's own code in a trace as a run would, and note the texts of sizes that are no messages.

    The code of torch, and of other tools, is answered as before. `isinstance` and `type` are names that code looks up
    in its module: the modules of the network's code get others. A hash is noted, and raises as before: what is kept by
    a size of one trace would be found in the next.

    Args:
        note: takes the node of a size, its value in the trace, and the line that asks for its text.
    """
    with ExitStack() as stack:
        for kind in _PYTHON:
            for name in _TEXTS:
                stack.enter_context(mock.patch.object(kind, name, _text(getattr(kind, name), note)))
            stack.enter_context(mock.patch.object(kind, "__getattribute__", _attribute(note)))
        stack.enter_context(mock.patch.object(torch.SymInt, "__hash__", _hash(torch.SymInt.__hash__, note)))
        for name in _TRACING:
            stack.enter_context(_untraced(getattr(torch.compiler, name)))
        replaced = {id(builtins.isinstance): _isinstance, id(builtins.type): _TYPE}
        given = {"isinstance": _isinstance, "type": _TYPE}
        for module in list(sys.modules.values()):
            names = vars(module) if isinstance(module, ModuleType) else {}
            if is_own(str(names.get("__file__") or "<none>")):
                present = list(names.items())  # a thread beside may set others
                others = {name: replaced[id(value)] for name, value in present if id(value) in replaced}
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
        asker = asker_of(sys._getframe(1))  # noqa: SLF001 - as above; functools.singledispatch asks for the network
        if asker is None:
            return object.__getattribute__(self, name)
        if name == "__class__":
            return _PYTHON[kind]
        node = object.__getattribute__(self, "__dict__").get("node")
        value = getattr(node, "hint", None)
        if value is None or not hasattr(value, name):
            return object.__getattribute__(self, name)
        note(node, value, line_of(asker))
        return getattr(value, name)

    return found


def _hash(make: Callable[[Any], int], note: Note) -> Callable[[Any], int]:
    """Return a method that notes each hash that the network's own code asks for; code may catch its TypeError."""

    def made(self: Any) -> int:  # noqa: ANN401 - as above
        frame = sys._getframe(1)  # noqa: SLF001 - as above
        value = getattr(self.node, "hint", None)
        if value is not None and is_own(frame.f_code.co_filename):
            note(self.node, value, line_of(frame))
        return make(self)

    return made


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
    """The class of `_TYPE`, which is called and asked as `type` is; a class that derives from it is as ever."""

    def __call__(cls, *given: Any, **more: Any) -> Any:  # noqa: ANN401 - the signature of `type`
        if cls is not _TYPE:
            return super().__call__(*given, **more)
        if len(given) != 1 or more:
            return type(*given, **more)
        kind = type(_plain(given[0]))
        return _TYPE if kind is type else kind  # `type(kind) is type`

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, type) if cls is _TYPE else super().__instancecheck__(value)

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, type) if cls is _TYPE else super().__subclasscheck__(kind)

    def __getitem__(cls, kind: Any) -> Any:  # noqa: ANN401 - an annotation
        return type[kind]

    def __or__(cls, other: Any) -> Any:  # noqa: ANN401 - an annotation
        return type | other


_TYPE = _TypeOfTypes("type", (type,), {"__module__": "builtins"})
"""Stands for `type` in the network's own code. Whatever else `type` has, such as `type.__new__`, is the same."""


@contextmanager
def _untraced(function: FunctionType) -> Iterator[None]:
    """Let a function tell the network's own code that it is not traced.

    Its code is exchanged: code holds the function under names of its own, and torch.dynamo knows it by its identity.
    """
    name, before = function.__name__, function.__code__
    _TRACED_BY.setdefault(name, FunctionType(before, function.__globals__))  # one trace may be within another
    constants = tuple(name if value == _NAME else value for value in _answer.__code__.co_consts)
    function.__code__ = _answer.__code__.replace(co_name=name, co_filename=before.co_filename, co_consts=constants)
    try:
        yield
    finally:
        function.__code__ = before


def _answer() -> bool:
    """Answer in the place of a function of torch, whose module has the globals. The name is put in for the constant."""
    from pipeline.stages.common.sizes.answers import is_traced  # noqa: PLC0415 - the globals are those of torch

    return is_traced("the function's name")


def is_traced(name: str) -> bool:
    """Return what a function of torch tells of its caller: nothing is traced, for the network's own code.

    Args:
        name: the function's name.
    """
    asker: FrameType | None = sys._getframe(1)  # noqa: SLF001 - a documented function
    while asker is not None and asker.f_code.co_name in _TRACING:
        asker = asker.f_back  # older names of these functions call them
    own = asker is not None and is_own(asker.f_code.co_filename)
    return not own and bool(_TRACED_BY[name]())
