"""The command line `model-artifacts`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.cli.artifact_commands import add_artifact_commands
from model_artifacts.cli.boundary import guarded
from model_artifacts.cli.parser import CommandLine
from model_artifacts.cli.process import end_like_ctrl_c, escape_unknown_characters, ignore_further_signals
from model_artifacts.cli.release_commands import add_release_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHELLS = ("bash", "zsh", "tcsh")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command and its options. None takes those of the process, and prepares its signals.

    Returns:
        The exit status: 0 done, 1 failed, 2 wrong usage, 141 if the reader of standard output ended, 143 after SIGTERM.
    """
    if arguments is not None:
        return _run(arguments)
    end_like_ctrl_c()
    status = _run(sys.argv[1:])
    ignore_further_signals()
    return status


def command_line() -> CommandLine:
    """Return the parser with all commands."""
    commands = CommandLine("model-artifacts", "Chooses, shows, moves and verifies the artifacts of a model.")
    commands.parser.epilog = "`model-artifacts COMMAND --help` explains a command."
    commands.parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=_SHELLS,
        metavar="SHELL",
        help=f"print a completion script for {', '.join(_SHELLS[:-1])} or {_SHELLS[-1]}",
    )
    add_artifact_commands(commands)
    add_release_commands(commands)
    return commands


def _run(arguments: Sequence[str]) -> int:
    escape_unknown_characters()
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


class _PrintCompletion(argparse.Action):
    """`--print-completion SHELL`, by the library shtab."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: object = None,
    ) -> None:
        del namespace, option_string
        try:
            shtab = import_module("shtab")
        except ModuleNotFoundError:
            parser.exit(
                1,
                "error: --print-completion needs the package shtab, which is not installed here\n"
                "  fix:      pip install shtab\n",
            )
        _complete_paths(parser, {"FOLDER": shtab.DIRECTORY}, shtab.FILE)
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _complete_paths(parser: argparse.ArgumentParser, by_metavar: dict[str, object], default: object) -> None:
    """Let a shell complete the paths of all commands with files or folders."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of them
        if action.type is Path:
            action.complete = by_metavar.get(str(action.metavar), default)  # type: ignore[attr-defined]  # read by shtab
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _complete_paths(command, by_metavar, default)
