"""The parser of a command line with subcommands: errors in one line, help that fits 80 columns."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NoReturn

from model_artifacts import __version__
from model_artifacts.cli.completion import add_completion
from model_artifacts.cli.options import DEBUG
from model_artifacts.errors import closest

if TYPE_CHECKING:
    from collections.abc import Sequence


class Parser(argparse.ArgumentParser):
    """A parser that ends with status 2 and one line for wrong usage."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        """End the process with status 2.

        Args:
            message: The problem, in the form `expected …, got …`.
        """
        message = message.replace("the following arguments are required:", "expected")
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # noqa: ANN401 - argparse's own
        """Report a wrong choice in the form of all other errors."""
        if action.choices is not None and value not in action.choices:
            names = tuple(map(str, action.choices))
            close = closest(str(value), names)
            hint = f"; did you mean {close!r}?" if close else ""
            raise argparse.ArgumentError(action, f"expected one of {', '.join(names)}, got {value!r}{hint}")

    def closest_option(self, argument: str) -> str | None:
        """Return the option that a mistyped argument most likely stands for; None if none is near."""
        name = argument.partition("=")[0]
        return closest(name, self._option_string_actions) if name.startswith("-") else None


class CommandLine:
    """A program with subcommands.

    Each subcommand sets `run` in its defaults: a function of the parsed options that returns the exit status.
    """

    def __init__(self, program: str, description: str) -> None:
        self.parser = Parser(prog=program, description=description)
        self.parser.add_argument("--version", action="version", version=__version__)
        add_completion(self.parser)
        self._commands = self.parser.add_subparsers(
            title="commands", dest="command", metavar="COMMAND", required=True, parser_class=Parser
        )

    def add(self, name: str, summary: str, *, example: str, remedy: str) -> Parser:
        """Add a subcommand, with `--debug`.

        Args:
            name: As it is typed.
            summary: One phrase for the list of commands, which is also the description of the command's own help.
            example: Arguments for the example in the help. Empty for a command without arguments.
            remedy: The advice where a package of this command is not installed.
        """
        usage = f"example: {self.parser.prog} {name} {example}".rstrip() if example else None
        parser: Parser = self._commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=usage
        )
        DEBUG.add_to(parser)
        parser.set_defaults(parser=parser, remedy=remedy)
        return parser

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command and its options. Wrong usage ends the process with status 2."""
        options, unknown = self.parser.parse_known_args(arguments)
        if unknown:
            close = options.parser.closest_option(unknown[0])
            hint = f"; did you mean {close}?" if close else ""
            options.parser.error(f"expected no further arguments, got {' '.join(unknown)}{hint}")
        return options
