"""The command line `model-artifacts`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from model_artifacts.cli.artifact_commands import add_artifact_commands
from model_artifacts.cli.boundary import guarded
from model_artifacts.cli.parser import CommandLine
from model_artifacts.cli.process import end_like_ctrl_c, ignore_further_signals
from model_artifacts.cli.release_commands import add_release_commands
from model_artifacts.host.terminal import steady_output

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command and its options. None takes those of the process, and prepares its signals.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage, 141 if the reader of standard output ended, 143 after SIGTERM.
    """
    if arguments is not None:
        with steady_output():
            return _run(arguments)
    end_like_ctrl_c()
    with steady_output():
        status = _run(sys.argv[1:])
    ignore_further_signals()
    return status


def command_line() -> CommandLine:
    """Return the parser with all commands."""
    commands = CommandLine("model-artifacts", "Chooses, shows, moves and verifies the artifacts of a model.")
    commands.parser.epilog = "`model-artifacts COMMAND --help` explains a command."
    add_artifact_commands(commands)
    add_release_commands(commands)
    return commands


def _run(arguments: Sequence[str]) -> int:
    commands = command_line()
    if not arguments:
        commands.parser.print_help(sys.stderr)
        return 2
    options = commands.parse(arguments)
    return guarded(
        options.command,
        lambda: int(options.run(options)),
        debug=options.debug,
        remedy=options.remedy,
        may_be_cut_short=True,
    )
