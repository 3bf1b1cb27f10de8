"""The command line `model-artifacts`, run in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Sequence


def status_of(arguments: Sequence[str]) -> int:
    """Run a command, and return its exit status, whether it returns or exits."""
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
