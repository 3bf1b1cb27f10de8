"""Which TensorRT is there, and what it says while it works."""

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
    """An imported TensorRT, and what it can do."""

    name: EngineFlavour
    version: str
    module: ModuleType

    @property
    def strongly_typed(self) -> bool:
        """Precisions are the graph's. Without this (8.6) they are flags, and the builder chooses among them."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def tunes(self) -> bool:
        """Builds on the GPU, by timing tactics. TensorRT-RTX builds ahead of time, for compute capabilities."""
        return not hasattr(self.module, "ComputeCapability")

    def __str__(self) -> str:
        return f"{self.name.value} {self.version}"


def load_flavour(name: EngineFlavour) -> Flavour:
    """Import a flavour.

    Raises:
        UnsupportedError: it is not installed.
        RetryableError: it is, but its libraries are missing.
    """
    try:
        module = importlib.import_module(name.value)
    except (ImportError, OSError) as exc:  # OSError: a wheel that loads its libraries by itself, and misses one
        group = "the dependency group `rtx`" if name is EngineFlavour.TENSORRT_RTX else "the extra `tensorrt`"
        kind = RetryableError if installed(name.value) else UnsupportedError
        raise kind(
            f"{name.value} is not installed, or cannot be imported", got=one_line(exc), fix=f"install {group}"
        ) from exc
    return Flavour(name, str(module.__version__), module)


class BuildLog:
    """What a library says, line by line, in the order in which its threads said it."""

    def __init__(self, file: TextIO | None = None) -> None:
        """Begin empty; `file` gets every line at once, so that it survives a crash."""
        self._lines: list[tuple[str, str]] = []
        self._file = file
        self._lock = threading.Lock()

    def add(self, severity: str, message: str) -> None:
        """Append a line."""
        with self._lock:
            self._lines.append((severity, message))
            if self._file:
                self._file.write(f"{severity:<14} {message}\n")
                self._file.flush()

    def text(self) -> str:
        """Return the whole log, a line each, severity first."""
        return "".join(f"{severity:<14} {message}\n" for severity, message in self._lines)

    def errors(self) -> list[str]:
        """Return the messages of errors."""
        return [message for severity, message in self._lines if severity in {"ERROR", "INTERNAL_ERROR"}]

    def search(self, pattern: str) -> re.Match[str] | None:
        """Return the last match of `pattern` in any message."""
        matches = [match for _, message in self._lines if (match := re.search(pattern, message))]
        return matches[-1] if matches else None


_COUNTED = re.compile(r"(\d+) weights? (?:are|is) affected by this issue: (.+)")
_NAMED = re.compile(r"Weights \[name=(.+?)\] had the following issues")
_ISSUE = re.compile(r"(?:\[W\]|^WARNING)\s+- (.+)$")


def weight_warnings(log: str) -> tuple[WeightWarning, ...]:
    """Return what a builder's log says of weights that FP16 does not hold.

    TensorRT says so where it converts weights itself. Until 8.5 it names each weight, maybe for every tactic it tries;
    from 8.6 on it says "20 weights are affected by this issue: Detected subnormal FP16 values." A graph that is in FP16
    already gives no reason to: what its cast lost is counted by the export.
    """
    named: dict[str, set[str]] = {}
    counted: dict[str, int] = {}
    weight = ""
    for line in log.splitlines():
        if found := _COUNTED.search(line):
            counted[_sentence(found.group(2))] = int(found.group(1))
        elif found := _NAMED.search(line):
            weight = found.group(1)
        elif found := _ISSUE.search(line):
            named.setdefault(_sentence(found.group(1)), set()).add(weight)
    counts = {issue: len(weights) for issue, weights in named.items()} | counted
    return tuple(WeightWarning(issue=issue, weights=count) for issue, count in counts.items())


def _sentence(text: str) -> str:
    return text.strip().rstrip(".")


def make_logger(trt: ModuleType, log: BuildLog) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
    """Return a logger for the library, which appends to `log` and never raises."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # the base exists once a flavour is imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            log.add(str(severity).rpartition(".")[2], message)

    return Logger()
