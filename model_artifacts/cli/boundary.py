"""The boundary of a command line: an exception becomes one message and an exit status."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import TYPE_CHECKING

from model_artifacts.cli.process import discard_output, reader_is_gone
from model_artifacts.errors import ArtifactError, out_of_memory, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable


def guarded(command: str, work: Callable[[], int], *, debug: bool, remedy: str, may_be_cut_short: bool = False) -> int:
    """Run a command, and turn its exceptions into one message on standard error.

    Args:
        command: Its name for the messages, with its subject if it has one.
        work: The command. It returns the exit status.
        debug: Print the traceback, too.
        remedy: The advice if a package is not installed: `pip install …` or `uv sync`.
        may_be_cut_short: End quietly if the reader of standard output has ended, as in `… | head -1`. SIGPIPE keeps
            Python's setting: with SIG_DFL, a connection that a server closes would end `push` without a message.

    Returns:
        The exit status: 1 for failed work, 2 for wrong usage or configuration, 137 if a worker process was killed,
        141 if the reader ended, 143 after SIGTERM.
    """
    problem: Exception
    try:
        with storage_errors(command):
            try:
                status = work()
                sys.stdout.flush()
            except BrokenPipeError:
                if not (may_be_cut_short and reader_is_gone()):
                    raise
                discard_output()
                return 128 + signal.SIGPIPE
            return status
    except KeyboardInterrupt as exc:
        print(f"interrupted: {command}; what was there before is untouched", file=sys.stderr)
        return 128 + signal.SIGTERM if exc.args == (signal.SIGTERM,) else 1
    except ArtifactError as exc:
        problem, message, status = exc, str(exc), exc.exit_code
    except ModuleNotFoundError as exc:
        problem, status = exc, 1
        message = f"{command} needs the package {exc.name}, which is not installed here\n  fix:      {remedy}"
    except Exception as exc:  # noqa: BLE001 - the boundary: a bug is reported as one, with its traceback on request
        problem, status = exc, 1
        unexpected = f"unexpected {type(exc).__name__}: {exc}\n  fix:      run it again with --debug for the traceback"
        message = str(out_of_memory(exc) or unexpected)
    if debug:
        traceback.print_exception(problem)
    print(f"error: {message}", file=sys.stderr)
    return status
