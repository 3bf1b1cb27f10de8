"""TensorRT flavours, and the log of their messages."""

from __future__ import annotations

import importlib
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_artifacts.errors import RetryableError, UnsupportedError, one_line
from model_artifacts.host.environment import installed
from model_artifacts.records import EngineFlavour, WeightWarning

if TYPE_CHECKING:
    from types import ModuleType
    from typing import TextIO


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT flavour and its abilities."""

    name: EngineFlavour
    """The flavour."""
    version: str
    """Full version of its module."""
    module: ModuleType
    """The imported module."""

    @property
    def strongly_typed(self) -> bool:
        """True if the graph sets the precisions. In TensorRT 8.6 flags do, and the builder chooses among them."""
        flags = self.module.NetworkDefinitionCreationFlag
        # TensorRT 11 has no EXPLICIT_BATCH and deprecates STRONGLY_TYPED: its networks always are both.
        return hasattr(flags, "STRONGLY_TYPED") or not hasattr(flags, "EXPLICIT_BATCH")

    @property
    def tunes(self) -> bool:
        """True if builds time tactics on the GPU. TensorRT-RTX builds ahead of time, for compute capabilities."""
        return not hasattr(self.module, "ComputeCapability")

    def __str__(self) -> str:
        return f"{self.name.value} {self.version}"


def load_flavour(name: EngineFlavour) -> Flavour:
    """Import a flavour.

    Raises:
        UnsupportedError: the flavour is not installed.
        RetryableError: the flavour is installed, but its libraries are missing.
    """
    try:
        module = importlib.import_module(name.value)
    except (ImportError, OSError) as exc:  # OSError: the wheel loads its libraries by itself, and one is missing
        extra = name.value.replace("_", "-")
        group = "rtx" if name is EngineFlavour.TENSORRT_RTX else "datacenter"
        kind = RetryableError if installed(name.value) else UnsupportedError
        raise kind(
            f"{name.value} is not installed, or cannot be imported",
            got=one_line(exc),
            fix=f"install the extra `{extra}` of model-artifacts; for building, the dependency group `{group}`",
        ) from exc
    return Flavour(name, str(module.__version__), module)


class BuildLog:
    """Log of a library's messages, in the order in which its threads wrote them."""

    def __init__(self, file: TextIO | None = None) -> None:
        """Create an empty log.

        Args:
            file: gets every line immediately, so that the lines survive a crash.
        """
        self._lines: list[tuple[str, str]] = []
        self._file = file
        self._lock = threading.Lock()

    def add(self, severity: str, message: str) -> None:
        """Append a line.

        Args:
            severity: TensorRT's name of the severity, such as `WARNING`.
            message: the message.
        """
        with self._lock:
            self._lines.append((severity, message))
            if self._file:
                self._file.write(f"{severity:<14} {message}\n")
                self._file.flush()

    def text(self) -> str:
        """Return the whole log: one line per message, the severity first."""
        return "".join(f"{severity:<14} {message}\n" for severity, message in self._lines)

    def errors(self) -> list[str]:
        """Return the messages of severity `ERROR` and `INTERNAL_ERROR`."""
        return [message for severity, message in self._lines if severity in {"ERROR", "INTERNAL_ERROR"}]

    def search(self, pattern: str) -> re.Match[str] | None:
        """Return the last match of a regular expression in any message; None without a match."""
        matches = [match for _, message in self._lines if (match := re.search(pattern, message))]
        return matches[-1] if matches else None


_COUNTED = re.compile(r"(\d+) weights? (?:are|is) affected by this issue: (.+)")
_NAMED = re.compile(r"Weights \[name=(.+?)\] had the following issues")
_ISSUE = re.compile(r"(?:\[W\]|^WARNING)\s+- (.+)$")


def weight_warnings(log: str) -> tuple[WeightWarning, ...]:
    """Return a builder's warnings about weights that FP16 cannot represent.

    TensorRT warns if it converts the weights itself. Up to 8.5 it names each weight, possibly for every tactic that it
    tries. From 8.6 on it counts: "20 weights are affected by this issue: Detected subnormal FP16 values". A graph that
    is already in FP16 causes no warnings; the export counts the losses of its cast.

    Args:
        log: the whole text of the log.
    """
    named: dict[str, set[str]] = {}
    counted: dict[str, int] = {}
    weight = ""
    for line in log.splitlines():
        if match := _COUNTED.search(line):
            counted[_sentence(match.group(2))] = int(match.group(1))
        elif match := _NAMED.search(line):
            weight = match.group(1)
        elif match := _ISSUE.search(line):
            named.setdefault(_sentence(match.group(1)), set()).add(weight)
    counts = {issue: len(weights) for issue, weights in named.items()} | counted
    return tuple(WeightWarning(issue=issue, weights=count) for issue, count in counts.items())


def _sentence(text: str) -> str:
    return text.strip().rstrip(".")


def make_logger(trt: ModuleType, log: BuildLog) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
    """Return a logger for the library, which appends to a log and never raises.

    Args:
        trt: the flavour's module.
        log: the log to append to.
    """

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # the base exists once a flavour is imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            log.add(str(severity).rpartition(".")[2], message)

    return Logger()
