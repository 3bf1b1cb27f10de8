"""`--print-completion SHELL`: the completion script of a command line, by the library shtab."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

_SHELLS = ("bash", "zsh", "tcsh")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the option `--print-completion` to a parser."""
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=_SHELLS,
        metavar="SHELL",
        help=f"print a completion script for {', '.join(_SHELLS[:-1])} or {_SHELLS[-1]}",
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
