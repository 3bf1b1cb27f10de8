"""Errors of execution contexts, told apart by what the library said."""

from __future__ import annotations

import pytest

from model_artifacts.tensorrt.flavour import BuildLog
from model_artifacts.tensorrt.runtime import no_context


def log_of(*errors: str) -> BuildLog:
    """Return a log with these errors behind ordinary messages, which speak of memory."""
    log = BuildLog()
    log.add("INFO", "[MemUsageChange] TensorRT-managed allocation in IExecutionContext creation: CPU +0, GPU +11")
    log.add("WARNING", "nothing of importance")
    for error in errors:
        log.add("ERROR", error)
    return log


@pytest.mark.parametrize(
    "errors",
    [
        (),
        ("[defaultAllocator.cpp::allocate] Cuda Runtime (out of memory)",),
        ("Requested amount of GPU memory (11698176 bytes) could not be allocated.",),
    ],
)
def test_a_lack_of_memory_names_what_is_needed(errors: tuple[str, ...]) -> None:
    """It is the cause if the library says so, and the likely one if it says nothing."""
    found = str(no_context(log_of(*errors), 11_698_176))
    assert found.startswith("the GPU has too little free memory for an execution context")
    assert "11,698,176 bytes" in found


def test_another_cause_is_the_librarys_own_words() -> None:
    """A graph that cuDNN could not compile is no lack of memory, and no number of bytes would help."""
    found = str(no_context(log_of("[myelinGraph] could not compile a cuDNN graph"), 11_698_176))
    assert found.startswith("the library cannot create an execution context")
    assert "could not compile a cuDNN graph" in found
    assert "bytes" not in found
