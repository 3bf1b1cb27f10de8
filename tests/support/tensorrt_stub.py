"""TensorRT's genuine bindings with stand-in objects: a call that the bindings would refuse is refused.

The bindings import on stub libraries, without a GPU: enumerations, data types and the classes to derive from are the
genuine ones. What TensorRT's factories would make is a stand-in, which has the attributes that the genuine class has,
and takes the arguments that the genuine signatures say. One flavour a process: each registers the same types.
"""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MADE = ("Builder", "OnnxParser", "OnnxParserRefitter", "Refitter", "Runtime")
"""The classes whose constructors need the real libraries."""

_SIGNATURE = re.compile(r"^(?:\d+\. )?\w*\((?P<parameters>.*)\) -> (?P<returns>.+)$", re.MULTILINE)

_PLAIN: dict[str, Callable[[object], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "buffer": lambda value: isinstance(value, (bytes, bytearray, memoryview)),
    "int": lambda value: hasattr(value, "__index__"),
    "list": lambda value: isinstance(value, list),
    "str": lambda value: isinstance(value, str),
    "tuple": lambda value: isinstance(value, tuple),
}
_NEWER_NAMES = {
    "typing.SupportsInt": "int",
    "typing_extensions.Buffer": "buffer",
    "collections.abc.Buffer": "buffer",  # from Python 3.12
}
_DEFAULTS: dict[str, object] = {"None": None, "bool": True, "int": 0, "str": ""}
"""What a stand-in returns where nothing else was said, by the type in the signature."""


class ContractError(TypeError):
    """A call that the genuine binding would refuse."""


def signatures(docstring: str | None) -> list[inspect.Signature]:
    """Return the signatures in pybind's docstring of a method, one for each overload."""
    found = _SIGNATURE.finditer(docstring or "")
    return [inspect.Signature(list(_parameters(one["parameters"])), return_annotation=one["returns"]) for one in found]


def _parameters(text: str) -> Iterator[inspect.Parameter]:
    for part in _split(text):
        declared, _, default = part.partition(" = ")
        name, _, annotation = declared.partition(": ")
        yield inspect.Parameter(
            name,
            # pybind calls a parameter without a name arg0, arg1 …, and takes no such keyword
            inspect.Parameter.POSITIONAL_ONLY
            if re.fullmatch(r"arg\d+", name)
            else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=default or inspect.Parameter.empty,
            annotation=annotation,
        )


def _split(text: str) -> Iterator[str]:
    """Split at the commas that no bracket encloses."""
    depth, begun = 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and not depth:
            yield text[begun:index].strip()
            begun = index + 1
    if text[begun:].strip():
        yield text[begun:].strip()


class Library(ModuleType):
    """A genuine module whose factories return stand-ins, in the place of TensorRT."""

    def __init__(self, genuine: ModuleType, answers: Callable[[Library], Mapping[str, Any]]) -> None:
        """Wrap a module; the answers are values, or functions of a call's arguments, by `Class.member`."""
        super().__init__("tensorrt")
        self.genuine = genuine
        self.calls: list[str] = []
        self.answers = dict(answers(self))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.genuine, name)
        return (lambda *args, **kwargs: self._make(found, args, kwargs)) if name in _MADE else found

    def _make(self, genuine: Any, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Standin:
        made = Standin(genuine, self)
        self.call(f"{genuine.__name__}.__init__", genuine.__init__.__doc__, (made, *args), kwargs)
        return made

    def call(self, name: str, docstring: str | None, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """Hold a call against the genuine signatures, note it, and answer.

        Raises:
            ContractError: no overload takes these arguments.
        """
        problems: list[str] = []
        for signature in signatures(docstring):
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as exc:
                problems.append(str(exc))
                continue
            given = bound.arguments
            wrong = [
                f"{key} is {_shown(value)}, no {signature.parameters[key].annotation}"
                for key, value in given.items()
                if not self._fits(value, signature.parameters[key].annotation)
            ]
            if not wrong:
                rest = list(given.values())[1:]
                self.calls.append(f"{name}({', '.join(map(_shown, rest))})")
                return self.answer(name, signature.return_annotation, rest)
            problems += wrong
        raise ContractError(f"{name}: {'; '.join(problems) or 'its signature is unknown'}")

    def answer(self, name: str, returns: str, args: list[object]) -> object:
        """Return the set answer of this member, or a value of the type that it returns."""
        if name in self.answers:
            said = self.answers[name]
            return said(*args) if callable(said) else said
        if returns in _DEFAULTS:
            return _DEFAULTS[returns]
        found = self._class(returns)
        if hasattr(found, "__members__"):
            raise ContractError(f"{name}: nothing was said that it returns")
        return Standin(found, self)

    def _fits(self, value: object, annotation: str) -> bool:
        plain = _NEWER_NAMES.get(annotation, annotation)
        if plain in _PLAIN:
            return _PLAIN[plain](value)
        found = self._class(annotation)
        if found is self.genuine.Dims and isinstance(value, (tuple, list)):
            return all(isinstance(size, int) for size in value)  # pybind converts these
        return issubclass(value.genuine_class, found) if isinstance(value, Standin) else isinstance(value, found)

    def _class(self, annotation: str) -> Any:
        """Return a class by its name in a docstring: `tensorrt.IBuilder`, or `nvinfer1::IEngineInspector` in C++."""
        name = re.split(r"\.|::", annotation)[-1]
        for known in (name, name.removeprefix("I")):
            if inspect.isclass(found := getattr(self.genuine, known, None)):
                return found
        raise ContractError(f"{annotation} is none of the types that the contract knows")


class Standin:
    """An object of a genuine class, as far as its attributes and its methods' signatures go."""

    genuine_class: Any

    def __init__(self, genuine: Any, library: Library, **values: object) -> None:
        """Stand in for an object of a class; the values are those of its properties, where they matter."""
        self.__dict__.update(genuine_class=genuine, _library=library, _values=values)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.genuine_class, name)
        full = f"{self.genuine_class.__name__}.{name}"
        if not isinstance(member, property):
            return lambda *args, **kwargs: self._library.call(full, member.__doc__, (self, *args), kwargs)
        if name in self._values:
            return self._values[name]
        (signature,) = signatures(inspect.getdoc(member.fget))
        return self._library.answer(full, signature.return_annotation, [])

    def __setattr__(self, name: str, value: object) -> None:
        member = getattr(self.genuine_class, name)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(f"{self.genuine_class.__name__}.{name} cannot be set")
        full = f"{self.genuine_class.__name__}.{name}.set"
        if self._library.call(full, member.fset.__doc__, (self, value), {}) is not False:  # some setters return a bool
            self._values[name] = value

    def __bytes__(self) -> bytes:
        if self.genuine_class is not self._library.genuine.IHostMemory:
            raise ContractError(f"{self.genuine_class.__name__} holds no bytes")
        return b"host memory"


def _shown(value: object) -> str:
    if isinstance(value, Standin):
        return str(value.genuine_class.__name__)
    plain = isinstance(value, (int, str, bytes, tuple, list))
    return repr(value) if plain else str(value) if hasattr(type(value), "__members__") else type(value).__name__
