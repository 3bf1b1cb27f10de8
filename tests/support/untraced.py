"""Coverage does not follow libraries into their longest work.

It measures this project alone, but until Python 3.12 it is called for every line of every library, and torch's exporter
takes twice as long by that. These functions of libraries run with tracing off, and on again behind them. A network's
`forward` and whatever else they call of this project is measured where it is called without them.
"""

from __future__ import annotations

import sys
import threading
from functools import wraps
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pipeline.system.forks import SHARED, ForkServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from pipeline.system.forks import ForkedProcess

LONG = {
    "botocore.client": ("BaseClient._make_api_call",),
    "moto.moto_server.werkzeug_app": ("DomainDispatcherApplication.__call__",),
    "onnx.reference": ("ReferenceEvaluator.run",),
    "onnxruntime.quantization.qdq_quantizer": ("QDQQuantizer.quantize_model",),
    "torch._dynamo.convert_frame": ("ConvertFrame.__call__",),
    "torch.export": ("export",),
    "torch.fx._symbolic_trace": ("Tracer.trace",),
    "torch.onnx": ("export",),
}
"""Functions and methods by their module. Another version of a library may lack one."""
_DONE = "_runs_untraced"


def settrace(function: Any) -> None:
    """Set the trace function of this thread, however many threads do so at once.

    CPython 3.11 refuses the second of two (`_PyEval_SetTrace`) where an audit hook in Python lets it come between, such
    as that of `pipeline.stages.source.reads`. The refused thread would end before its first line.
    """
    try:
        sys.settrace(function)
    except RuntimeError as exc:
        if "is being installed" not in str(exc):
            raise
        settrace(function)  # a refusal also ends the state that it came from


class _PatientSys:
    """Stands for `sys` in the module `threading`, which sets the trace function of each new thread."""

    settrace = staticmethod(settrace)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as one that runs with tracing off."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        before = sys.gettrace()
        settrace(None)
        try:
            return function(*arguments, **options)
        finally:
            settrace(before)

    setattr(run, _DONE, True)
    return run


def trace_less() -> None:
    """Have the long functions of all modules that are imported run untraced, and threads set their trace patiently."""
    setattr(threading, "_sys", _PatientSys())  # noqa: B010 - the name is none of its stubs
    for module, names in LONG.items():
        for name in names if module in sys.modules else ():
            owner, _, last = name.rpartition(".")
            holder = attrgetter(owner)(sys.modules[module]) if owner else sys.modules[module]
            function = getattr(holder, last, None)
            if function is not None and not hasattr(function, _DONE):
                setattr(holder, last, untraced(function))


class LoadedForkServer(ForkServer):
    """A fork server that imports what a doit's does, in which the same functions run untraced."""

    def fork(self, *arguments: Any, modules: Sequence[str] = (), **options: Any) -> tuple[ForkedProcess, Connection]:
        """Start a function in a child, as a fork server does."""
        return super().fork(*arguments, modules=(*modules, *SHARED, __name__), **options)


if "pytest" not in sys.modules:  # in a fork server
    trace_less()
