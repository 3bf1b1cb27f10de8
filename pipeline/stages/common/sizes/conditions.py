"""Conditions on the sizes of inputs that a trace of torch was made under, as formulas of the axes' names.

torch's exporter to ONNX drops them: its graph has one way through forward, and takes every size.
"""

from __future__ import annotations

import io
import sys
import warnings
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.reference import TensorReferenceAnalysis
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from model_artifacts.errors import ExportError, one_line, out_of_memory
from pipeline.stages.common.sizes.answers import answering
from pipeline.stages.common.sizes.asking import line_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pipeline.stages.common.sizes.answers import Note
    from pipeline.stages.common.sizes.axes import Axes

BATCH = "batch"
"""The name of the batch axis; configurations cannot take it for another one."""

_SMALLEST = 2
"""torch takes each dynamic size for at least 2. That is no condition of the network's."""
_TOO_LARGE = 2**62
"""The least number that could wrap around: float64, which tells it, rounds what lies just below 2**63."""
_QUESTIONS = (
    (torch.SymBool, "__bool__"),
    (torch.SymBool, "__int__"),
    (torch.SymInt, "__int__"),
    (torch.SymInt, "__index__"),
    (torch.SymFloat, "__bool__"),
    (torch.SymFloat, "__float__"),
)
"""The classes and methods by which Python code asks for a truth or a number of Python's own, which a trace keeps."""
_COMPARISONS = [
    (kind, f"__{name}__") for kind in (torch.SymInt, torch.SymFloat) for name in ("eq", "ne", "lt", "le", "gt", "ge")
]
"""Those by which it compares: a truth that nobody asks for may decide, too, as in `(height == 20) is True`."""


class _Integers(TensorReferenceAnalysis):
    """Formulas of sizes at many sizes at once, with the operators that torch's class leaves out.

    Whole numbers of torch's wrap around at 2**63, and those of Python do not: what could wrap is refused.
    """

    @staticmethod
    def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _unwrapped(torch.add, a, b)

    @staticmethod
    def sub(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _unwrapped(torch.sub, a, b)

    @staticmethod
    def mul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _unwrapped(torch.mul, a, b)

    @staticmethod
    def pow_by_natural(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return _unwrapped(torch.pow, a, b)

    @staticmethod
    def trunc_to_int(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return _small(x.trunc()).to(dtype)

    @staticmethod
    def ceil_to_int(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return _small(x.ceil()).to(dtype)

    @staticmethod
    def floor_to_int(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return _small(x.floor()).to(dtype)

    @staticmethod
    def mod(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # torch's raises
        return torch.remainder(a, b)

    python_mod = mod

    @staticmethod
    def int_truediv(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.double() / b.double()

    @staticmethod
    def sqrt(a: torch.Tensor) -> torch.Tensor:
        return a.double().sqrt()


def _unwrapped(
    operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Return the result of an operation; refuse whole numbers that could wrap around, by the same in float64.

    Raises:
        OverflowError: a result is too large.
    """
    found = operation(a, b)
    if not found.is_floating_point():
        _small(operation(a.double(), b.double()))
    return found


def _small(numbers: torch.Tensor) -> torch.Tensor:
    """Return numbers, none of which is too large for a whole number of 64 bits.

    Raises:
        OverflowError: one is.
    """
    if bool((numbers.abs() >= _TOO_LARGE).any()):
        raise OverflowError(f"a number of {float(numbers.abs().max()):.3g} at some size")
    return numbers


@dataclass(frozen=True)
class Condition:
    """A formula of sizes, and its truth in a trace."""

    formula: Any
    """sympy's formula; its symbols have the names of axes."""
    holds: bool = True
    """The truth in the trace."""
    line: str = ""
    """The line of the network's code that asks: `model.py:12: if length != 20:`; empty for torch's own code."""

    def always(self, ranges: Mapping[str, range]) -> bool:
        """Return True if arithmetic of intervals shows that the truth is that of the trace at every size."""
        limits = {_symbol(name): ValueRanges(sizes[0], sizes[-1]) for name, sizes in ranges.items()}
        try:
            found = bound_sympy(self.formula, limits)
        except Exception:  # noqa: BLE001 - torch's own code raises almost any type; the sizes are then looked through
            return False
        return bool(found.is_singleton()) and bool(found.lower) == self.holds

    @property
    def names(self) -> frozenset[str]:
        """The names of the axes that it depends on."""
        return frozenset(symbol.name for symbol in self.formula.free_symbols)

    def at(self, sizes: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return where the truth is that of the trace.

        Args:
            sizes: int64 sizes of each axis, of shapes that broadcast to one.

        Returns:
            bool tensor of that shape, or of one that broadcasts to it.

        Raises:
            ExportError: the formula has a function that has no vector form, or a number that is too large for one.
        """
        try:
            found: torch.Tensor = sympy_interp(
                _Integers, {_symbol(name): sizes[name] for name in self.names}, self.formula
            )
        except Exception as exc:  # torch's own code raises almost any type
            raise out_of_memory(exc) or ExportError(
                "forward asks for a size by a formula that this project cannot look through",
                where=str(self),
                expected="arithmetic of whole numbers below 2**62, and roundings to whole numbers",
                got=f"{self.formula}: {one_line(exc)}",
                fix="write the condition with whole numbers, or take the branch on the size out of forward",
            ) from exc
        return found.bool() == self.holds

    def __str__(self) -> str:
        return self.line or str(self.formula if self.holds else sympy.Not(self.formula))


class Conditions(NamedTuple):
    """The conditions on sizes of a trace."""

    ways: tuple[Condition, ...] = ()
    """Those that the network's own code took its way by, and what the trace fixed on that way."""
    checks: tuple[Condition, ...] = ()
    """Those that torch took its way by, or keeps for another reason."""


class Asked(NamedTuple):
    """A truth of a size, or a number of one, that Python code took its way by."""

    formula: Any
    """The formula in the trace's own symbols."""
    holds: bool
    line: str
    """The line of the network's code."""
    shapes: object
    """torch's record of the trace's sizes, by which several tries are told apart."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the deprecations inside torch and onnxscript, which are of no use to users."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def noting_branches(*, answers: bool = False) -> Iterator[list[Asked]]:
    """Note each condition on sizes that code outside of torch asks for in a trace.

    torch keeps no line of code with its conditions, and none that its ranges decide: it takes each dynamic size for at
    least 2. `bool(condition)` is what every `if`, `while`, `and` and `in` of Python calls. `int(height * 0.5)` asks,
    too: code goes on with a number that the trace keeps. A comparison is noted with its truth at the sizes of the
    trace, whoever asks for it: `is True` and torch's `guard_or_false` do not ask as Python does.

    Args:
        answers: give such code a truth of Python's own for each comparison, as it has without a trace, and its texts
            and types of sizes. So a trace goes the network's way behind `is True`, too, and shows what the code asks
            there. A text that is no message is noted as a number that code takes from a size.
    """
    found: list[Asked] = []

    def note(node: Any, answer: float, line: str) -> None:  # noqa: ANN401 - torch's own class
        found.append(_asked(node.expr, answer, line, getattr(node, "shape_env", None)))

    truth_of = torch.SymBool.__bool__ if answers else None
    with ExitStack() as stack:
        for kind, name in _QUESTIONS:
            stack.enter_context(mock.patch.object(kind, name, _noting(getattr(kind, name), note)))
        for kind, name in _COMPARISONS:
            stack.enter_context(mock.patch.object(kind, name, _comparing(getattr(kind, name), note, truth_of)))
        if answers:
            stack.enter_context(answering(note))
        yield found


def _comparing(
    compare: Callable[[Any, Any], Any], note: Note, truth_of: Callable[[Any], bool] | None
) -> Callable[[Any, Any], Any]:
    def compared(self: Any, other: Any) -> Any:  # noqa: ANN401 - a truth, perhaps of Python's own
        truth = compare(self, other)
        node = getattr(truth, "node", None)
        formula, answer = getattr(node, "expr", None), getattr(node, "hint", None)
        frame = sys._getframe(1)  # noqa: SLF001 - a documented function
        if formula is None or answer is None or frame.f_code.co_filename.startswith("<"):
            return truth  # code that torch makes compares, too: its checks of ranges, and graphs of torch.fx
        if not (line := line_of(frame)):
            return truth
        note(node, bool(answer), line)
        return truth_of(truth) if truth_of else truth

    return compared


def _noting(ask: Callable[[Any], Any], note: Note) -> Callable[[Any], Any]:
    def noted(self: Any) -> Any:  # noqa: ANN401 - a number or a truth
        node = self.node
        formula = getattr(node, "expr", None)
        answer = ask(self)
        if formula is not None and (line := line_of(sys._getframe(1))):  # noqa: SLF001 - a documented function
            note(node, answer, line)
        return answer

    return noted


def _asked(formula: Any, answer: float, line: str, shapes: object) -> Asked:  # noqa: ANN401 - sympy has no types
    """Return what an answer tells of a formula: its truth, or the number that it is equal to or not."""
    if isinstance(formula, Boolean) and not formula.is_Symbol:  # sympy takes each symbol for a truth
        return Asked(formula, bool(answer), line, shapes)
    if isinstance(answer, bool):
        return Asked(sympy.Ne(formula, 0), answer, line, shapes)
    return Asked(sympy.Eq(formula, answer), True, line, shapes)  # noqa: FBT003 - a NamedTuple's field


def conditions_of(exported: torch.export.ExportedProgram | None, axes: Axes, asked: Sequence[Asked]) -> Conditions:
    """Return the conditions on sizes that a trace holds under.

    A condition on another number than a size is left out. torch refuses branches on the values of tensors; what it
    keeps of such numbers is checks, by which the network itself raises.

    Args:
        exported: torch's trace.
        axes: the dynamic axes beside the batch.
        asked: what `noting_branches` has noted.
    """
    program: Any = exported
    sizes = list(_sizes(program, axes))
    environment = next((size.node.shape_env for _, size in sizes if isinstance(size, torch.SymInt)), None)
    if environment is None:
        return Conditions(ways=tuple(_equal(name, sympy.Integer(size)) for name, size in sizes))
    symbols = {size.node.expr: _symbol(name) for name, size in reversed(sizes) if _is_free(size)}

    def renamed(formula: Any) -> Any:  # noqa: ANN401 - sympy has no types
        return formula.xreplace(environment.replacements).xreplace(symbols)

    ways = [Condition(renamed(item.formula), item.holds, item.line) for item in asked if item.shapes is environment]
    for name, size in sizes:
        ways.append(_equal(name, renamed(size.node.expr) if isinstance(size, torch.SymInt) else sympy.Integer(size)))
        limits = program.range_constraints.get(size.node.expr) if _is_free(size) else None
        if limits is not None and limits.lower > _SMALLEST:
            ways.append(Condition(sympy.Ge(_symbol(name), limits.lower)))
        if limits is not None and limits.upper is not int_oo:
            ways.append(Condition(sympy.Le(_symbol(name), limits.upper)))
    checks = [check.expr for kept in environment.deferred_runtime_asserts.values() for check in kept]
    checks += [guard.expr for guard in environment.guards]
    both = [truth for truth in _used_truths(program) for truth in (truth, sympy.Not(truth))]
    known = {name for name, _ in sizes}
    return Conditions(
        _of_sizes(ways, known), _of_sizes([Condition(renamed(formula)) for formula in (*checks, *both)], known)
    )


def _of_sizes(conditions: Sequence[Condition], known: set[str]) -> tuple[Condition, ...]:
    """Return the conditions that depend on these sizes alone, each once."""
    return tuple(dict.fromkeys(item for item in conditions if item.names and item.names <= known))


def _equal(name: str, formula: Any) -> Condition:  # noqa: ANN401 - sympy has no types
    return Condition(sympy.Eq(_symbol(name), formula))


def _used_truths(program: Any) -> Iterator[Any]:  # noqa: ANN401 - a private part of torch's program
    """Yield the conditions that a trace holds both ways of, as `torch.cond` does."""
    for node in program.graph.nodes:
        truth = node.meta.get("val")
        if isinstance(truth, torch.SymBool) and any(
            user.op != "call_function" or _computes(user) for user in node.users
        ):
            yield truth.node.expr


def _computes(node: torch.fx.Node) -> bool:
    """Return False for a part of a condition."""
    return not isinstance(node.meta.get("val"), torch.SymBool)


def _sizes(program: Any, axes: Axes) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - as above
    """Yield the name and the size of each dynamic axis of a trace's inputs; one that is not used has none."""
    names = set(program.graph_signature.user_inputs)
    given = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    for value in given:
        if value is not None:
            yield BATCH, value.shape[0]
    for number, place, axis in axes.places():
        value = given[number]
        if value is not None:
            yield axis.name, value.shape[place]


def _is_free(size: object) -> bool:
    return isinstance(size, torch.SymInt) and size.node.expr.is_Symbol


def _symbol(name: str) -> Any:  # noqa: ANN401 - sympy has no types
    return sympy.Symbol(name, integer=True, positive=True)
