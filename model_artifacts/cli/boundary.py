"""`python -m pipeline STAGE SUBJECT`: one stage of one subject; what every `doit` action runs, and a person pastes."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import TYPE_CHECKING

from model_artifacts.errors import ArtifactError, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable


_EXTRAS = {
    "triton": ", or this project with its extra `triton`",
    "verify": ", or this project with its extra `verify`",
    "farm": ", or this project with its extra `farm`",
    **dict.fromkeys(("push", "pull", "tag", "gc"), ", or this project with its extras `verify` and `store`"),
}
"""What a command takes where nothing is built."""


def _guarded(doing: str, work: Callable[[], int], *, debug: bool) -> int:
    """Do something, and turn what goes wrong into one message and an exit status."""
    try:
        with storage_errors(doing):
            return work()
    except KeyboardInterrupt as exc:
        print(f"interrupted: {doing}; what was there before is untouched", file=sys.stderr)
        return 128 + signal.SIGTERM if exc.args == (signal.SIGTERM,) else 1
    except ArtifactError as exc:
        if debug:
            traceback.print_exc()
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    except ModuleNotFoundError as exc:
        if debug:
            traceback.print_exc()
        print(
            f"error: {doing} needs the package {exc.name}, which is not installed here\n"
            f"  fix:      install the building stack (`uv sync`){_EXTRAS.get(doing, '')}",
            file=sys.stderr,
        )
        return 1
    except Exception as exc:  # noqa: BLE001 - the boundary: a bug is reported as one, with its traceback on request
        if debug:
            traceback.print_exc()
        print(
            f"error: unexpected {type(exc).__name__}: {exc}\n  fix:      run it again with --debug for the traceback",
            file=sys.stderr,
        )
        return 1
