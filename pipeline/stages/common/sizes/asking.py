"""The code that asks for a size: whose it is, its line, and whether a text that it makes goes to a message alone."""

from __future__ import annotations

import ast
import builtins
import dis
import linecache
import logging
import sys
import sysconfig
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

_TORCH = Path(torch.__file__).parent
_STANDARD = Path(sysconfig.get_paths()["stdlib"])
_INSTALLED = {"site-packages", "dist-packages"}
_TOOLS = ("sympy", "mpmath", "numpy", "onnx", "onnx_ir", "onnxscript", "einops", "pipeline", "model_artifacts")
"""Packages that trace a network, as torch does: what they ask is not asked by the network. einops keeps its recipes by
sizes, and makes them again for those of a trace, which have no hash."""
_MADE_BY: dict[str, type[ast.expr]] = {
    **dict.fromkeys(("FORMAT", "CONVERT"), ast.JoinedStr),
    **dict.fromkeys(("CALL", "PRECALL"), ast.Call),
    "BINARY": ast.BinOp,
}
"""The code that makes a text, by the first word of the instruction that does (CPython 3.10 to 3.14)."""
_LOGS = {"debug", "info", "warning", "warn", "error", "exception", "critical", "log"}
"""Methods of loggers that take a message, and return nothing. Others end with `_once` (transformers)."""
_LOGGERS = {"logging", "loguru"}
_LABELS = {"record_function", "range_push", "range_start", "mark"}
"""Functions and classes of torch's profilers, which take a label."""


class _Scope(NamedTuple):
    """Where code runs."""

    known: Mapping[str, object]
    """What its names stand for, as far as is known."""
    helps: bool = False
    """True in a function that the network's code calls with a message; those that it calls are not looked into."""


def line_of(frame: FrameType) -> str:
    """Return the line of code that a frame is at; empty within torch. `if size % 2:` asks by a method of torch's."""
    if frame.f_code.co_name in {"__bool__", "__hash__", "__int__"} and frame.f_back is not None:
        frame = frame.f_back
    if _is_of_torch(frame.f_code.co_filename):
        return ""
    file = Path(frame.f_code.co_filename)
    code = linecache.getline(str(file), frame.f_lineno).strip()
    return f"{file.name}:{frame.f_lineno}: {code}"


@cache
def _is_of_torch(file: str) -> bool:
    return _TORCH in Path(file).parents


@cache
def _folders_of_tools() -> tuple[Path, ...]:
    found = [find_spec(name) for name in _TOOLS]
    return (_TORCH, *(Path(spec.origin).parent for spec in found if spec is not None and spec.origin))


@cache
def _is_standard(file: str) -> bool:
    """Return True for a file of Python's own library, or for code that has none."""
    parents = Path(file).parents
    return file.startswith("<") or (_STANDARD in parents and not _INSTALLED & {path.name for path in parents})


@cache
def is_own(file: str) -> bool:
    """Return True for a file of the network's own code, or of a library of networks."""
    return not _is_standard(file) and not any(folder in Path(file).parents for folder in _folders_of_tools())


def asker_of(frame: FrameType) -> FrameType | None:
    """Return the network's own frame that asks, perhaps by Python's library; None for torch, and for a log."""
    found: FrameType | None = frame
    while found is not None and _is_standard(found.f_code.co_filename):
        if found.f_globals.get("__name__", "").split(".")[0] in {"logging", "warnings"}:
            return None
        found = found.f_back
    return found if found is not None and is_own(found.f_code.co_filename) else None


def makes_message(frame: FrameType) -> bool:
    """Return True if all texts that the present line of a frame makes in this way go to messages, and nowhere else.

    Messages are those of logs, `print`, warnings, `torch._assert`, `torch._check`, labels of profilers, and exceptions.
    A text may be a variable first, or the argument of a helper, `check(ok, f"{height} rows")`, all of whose uses are
    messages.
    """
    tree, line = _tree_of(frame.f_code.co_filename), frame.f_lineno
    instruction = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    kind = _MADE_BY.get(instruction.split("_")[0])
    if tree is None or kind is None:
        return False
    makers = [node for node in ast.walk(tree) if isinstance(node, kind) and _covers(node, line)]
    scope = _Scope({**vars(builtins), **frame.f_globals, **frame.f_locals})
    # What a function in Python makes, it makes at a line of its own.
    makers = [node for node in makers if not (isinstance(node, ast.Call) and _function(node, scope))]
    return bool(makers) and all(_is_sink(node, scope) or _goes_to_message(node, scope) for node in makers)


def _covers(node: ast.expr, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


@cache
def _tree_of(file: str) -> ast.Module | None:
    """Return the syntax of a file, each node with its parent; None if the file cannot be read."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]  # ast's nodes take any attribute
    return tree


def _parents(node: ast.AST) -> Iterator[tuple[ast.AST, Any]]:
    """Yield a node with its parent, then the parent with its own, up to the file."""
    while (parent := getattr(node, "parent", None)) is not None:
        yield node, parent
        node = parent


def _goes_to_message(node: ast.AST, scope: _Scope) -> bool:
    """Return True if the value of an expression is a part of a message, and of nothing else."""
    for child, parent in _parents(node):
        if isinstance(parent, ast.Raise) or (isinstance(parent, ast.Assert) and child is parent.msg):
            return True
        if isinstance(parent, ast.Call) and _takes_message(parent, child, scope):
            return True
        if isinstance(parent, ast.Assign):
            return _is_variable_of_messages(parent, scope)
        if not _is_part(child, parent):
            return False
    return False


def _is_part(child: ast.AST, parent: ast.AST) -> bool:
    """Return True if an expression is a text that only holds another one, or is a text's part."""
    if isinstance(parent, ast.IfExp):
        return child is not parent.test
    if isinstance(parent, ast.Call):
        function = parent.func
        if isinstance(function, ast.Name):
            return function.id in {"str", "repr", "format"} or isinstance(getattr(parent, "parent", None), ast.Raise)
        filled = isinstance(function, ast.Attribute) and function.attr in {"format", "join"}
        return filled and isinstance(getattr(function, "value", None), ast.Constant)
    return isinstance(
        parent, ast.FormattedValue | ast.JoinedStr | ast.BinOp | ast.Starred | ast.keyword | ast.Lambda | ast.Tuple
    )


def _is_variable_of_messages(assignment: ast.Assign, scope: _Scope) -> bool:
    """Return True if a text is kept in one local variable, all of whose uses are messages."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = next((parent for _, parent in _parents(assignment) if isinstance(parent, functions)), None)
    target = assignment.targets[0]
    if inside is None or len(assignment.targets) != 1 or not isinstance(target, ast.Name):
        return False
    return _has_only_messages(inside, target.id, scope)


def _has_only_messages(function: ast.AST, variable: str, scope: _Scope) -> bool:
    """Return True if all uses of a function's local variable are messages."""
    nodes = list(ast.walk(function))
    if any(isinstance(node, ast.Global | ast.Nonlocal) and variable in node.names for node in nodes):
        return False
    names = [node for node in nodes if isinstance(node, ast.Name) and node.id == variable]
    return all(_goes_to_message(name, scope) for name in names if not isinstance(name.ctx, ast.Store))


def _takes_message(call: ast.Call, argument: ast.AST, scope: _Scope) -> bool:
    """Return True if an argument of a call is a message, and not the condition that is checked."""
    if argument is call.func:
        return False
    if not _is_sink(call, scope):
        return not scope.helps and _helps(call, argument, scope)
    if not getattr(_called(call, scope), "__name__", "").startswith(("_assert", "_check")):
        return True
    if isinstance(argument, ast.keyword):
        return argument.arg == "message"
    return len(call.args) > 1 and argument is call.args[1]


def _helps(call: ast.Call, argument: ast.AST, scope: _Scope) -> bool:
    """Return True if a function in Python takes an argument as a parameter, all of whose uses are messages."""
    function = _function(call, scope)
    if function is None or any(isinstance(given, ast.Starred) for given in call.args):
        return False
    code, is_bound = function.__code__, function is not _called(call, scope)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if isinstance(argument, ast.keyword):
        name = argument.arg
    else:
        name = next(iter(names[call.args.index(argument) + is_bound : code.co_argcount]), None)  # type: ignore[arg-type]  # an ast.expr
    tree = _tree_of(code.co_filename)
    body = next((node for node in ast.walk(tree) if _is_body(node, function)), None) if tree else None
    if body is None or name not in names:
        return False
    known = {**vars(builtins), **function.__globals__}
    local = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    inside = _Scope({key: value for key, value in known.items() if key not in local}, helps=True)
    return _has_only_messages(body, str(name), inside)


def _is_body(node: ast.AST, function: FunctionType) -> bool:
    """Return True for the syntax of a function. Python counts its lines from its first decorator."""
    if not isinstance(node, ast.FunctionDef):
        return False
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.name, first) == (function.__code__.co_name, function.__code__.co_firstlineno)


def _function(call: ast.Call, scope: _Scope) -> FunctionType | None:
    """Return the function in Python that a call names; that of a method for it."""
    called = _called(call, scope)
    function = getattr(called, "__func__", called)
    return function if isinstance(function, FunctionType) else None


def _is_sink(node: ast.AST, scope: _Scope) -> bool:
    """Return True for a call that takes a message and returns nothing that code could decide by."""
    if not isinstance(node, ast.Call):
        return False
    called = _called(node, scope)
    if called is print:  # a text in a file of the network's own can be read again
        files = [given.value for given in node.keywords if given.arg in {None, "file"}]
        return all(any(_named(file, scope) is known for known in (sys.stdout, sys.stderr)) for file in files)
    if called is warnings.warn:
        return True
    name, owner = getattr(called, "__name__", ""), getattr(called, "__self__", None)
    if isinstance(owner, logging.Logger | logging.LoggerAdapter) or type(owner).__module__.split(".")[0] in _LOGGERS:
        return name in _LOGS or name.endswith("_once")
    module = (getattr(called, "__module__", None) or "").split(".")[0]
    if module == "logging":
        return name in _LOGS
    return module == "torch" and (name.startswith(("_assert", "_check")) or name in _LABELS)


def _called(call: ast.Call, scope: _Scope) -> object:
    return _named(call.func, scope)


def _named(node: ast.expr, scope: _Scope) -> object:
    """Return what an expression names, such as `torch._assert`; None for what only a run could tell."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    found: object = scope.known.get(node.id)
    for attribute in reversed(attributes):
        found = getattr(found, attribute, None)
    return found
