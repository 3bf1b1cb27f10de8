"""The console script `model-artifacts`."""

from __future__ import annotations

import sys

from model_artifacts.cli.boundary import _guarded
from model_artifacts.cli.commands import COMMANDS, run_command


def main() -> int:
    """Run one command."""
    given = sys.argv[1:]
    if not given or given[0] not in COMMANDS:
        print("\n".join(f"{name:<9} {text}" for name, text in COMMANDS.items()), file=sys.stderr)
        return 2
    return _guarded(given[0], lambda: run_command(given[0], given[1:]), debug="--debug" in given)
