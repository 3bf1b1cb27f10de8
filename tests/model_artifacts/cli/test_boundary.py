"""The boundary: one message and an exit status for each exception."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from model_artifacts.cli.boundary import guarded
from model_artifacts.errors import KilledError, ReleaseError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


def failing(error: BaseException) -> Callable[[], int]:
    """Return a command that raises an exception."""

    def work() -> int:
        raise error

    return work


def run(work: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command named `pull`."""
    return guarded("pull", work, debug=debug, remedy="pip install x")


def test_the_status_is_the_command_s() -> None:
    """A command that raises nothing decides its own exit status."""
    assert run(lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ReleaseError("it differs", fix="take it again"), 1, "error: it differs\n  fix:      take it again\n"),
        (UsageError("expected a, got b"), 2, "error: expected a, got b\n"),
        (KilledError("a worker was killed"), 137, "error: a worker was killed\n"),
        (KeyboardInterrupt(), 1, "interrupted: pull; what was there before is untouched\n"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "interrupted: pull; what was there before is untouched\n"),
        (
            ModuleNotFoundError(name="zstandard"),
            1,
            "error: pull needs the package zstandard, which is not installed here\n  fix:      pip install x\n",
        ),
        (
            ZeroDivisionError("oops"),
            1,
            "error: unexpected ZeroDivisionError: oops\n  fix:      run it again with --debug for the traceback\n",
        ),
        (OSError(28, "No space left on device"), 1, "error: pull failed: No space left on device\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_is_one_message(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes to standard error, without a traceback."""
    assert run(failing(error)) == status
    printed = capsys.readouterr()
    assert (printed.out, printed.err[: len(message)]) == ("", message)
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("error", [ReleaseError("it differs"), ZeroDivisionError("oops"), ModuleNotFoundError("x")])
def test_debug_prints_the_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """The message comes after it."""
    assert run(failing(error), debug=True) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_connection_that_breaks_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A broken pipe ends a command quietly only where the reader of standard output has ended."""
    status = guarded("pull", failing(BrokenPipeError(32, "Broken pipe")), debug=False, remedy="", may_be_cut_short=True)
    assert status == 1
    assert capsys.readouterr().err.startswith("error: pull failed: Broken pipe")
