"""Text for people's terminals: characters that would steer the terminal are escaped, whoever wrote them.

A name in a listing may come from anybody's file. Escape sequences would colour, hide or replace lines, and controls of
the writing direction would turn them around.
"""

from __future__ import annotations

import io
import re
import sys
import unicodedata
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of characters that are controls, and of those that end lines."""
_JOINERS = frozenset("\u200c\u200d")
"""Controls that words of some languages, and emoji, are written with."""
COLUMNS_VARIABLE = "MODEL_ARTIFACTS_COLUMNS"
"""The environment variable of the terminal's width, for a process whose output another one shows there."""
_KILO, _SMALL = 1e3, 1e5
"""Bytes from which a size is in kB, and from which in MB: less than 0.1 MB would be told as 0.0."""
_LONG = 100
"""The number from which a time is told in the next larger unit."""
_PROGRESS = re.compile(r".+: \d+ of \d+(, about .+ left|, no progress for .+)?")


def escaped(text: str, *, kept: str = "\n\t") -> str:
    r"""Return a text without controls: each is written as `\u001b`, which means the same within JSON.

    Args:
        text: the text.
        kept: the controls to keep.
    """
    if text.isprintable():
        return text
    return "".join(character if _is_harmless(character, kept) else _escape(character) for character in text)


def one_row(text: object) -> str:
    """Return a name as part of one line of a listing: it neither ends the line nor moves to a column."""
    return escaped(str(text), kept="")


def duration_phrase(seconds: float) -> str:
    """Return a duration as a phrase: in seconds, from 100 seconds in minutes, from 100 minutes in hours."""
    if seconds < _LONG:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < _LONG else f"{minutes / 60:.0f} h"


def size_phrase(size: float) -> str:
    """Return a size in bytes as a phrase: in MB (10^6 bytes), below 100,000 bytes in kB, below 1,000 in bytes."""
    if size < _KILO:
        return f"{size:.0f} bytes"
    return f"{size / 1e3:.1f} kB" if size < _SMALL else f"{size / 1e6:.1f} MB"


def progress_line(phase: str, done: int, steps: int, seconds: float) -> str:
    """Return the line in which a phase of long work tells its progress, with the time left at the same pace.

    Args:
        phase: name of the phase.
        done: number of finished steps.
        steps: number of all steps.
        seconds: the time that the finished ones took.
    """
    left = seconds / done * (steps - done) if done else 0.0
    return f"{phase}: {done} of {steps}" + (f", about {duration_phrase(left)} left" if left >= 1 else "")


def silent_line(latest: str, seconds: float) -> str:
    """Return the line of long work whose last progress, such as `Timing tactics: 3 of 57`, is so many seconds old."""
    return f"{latest}, no progress for {duration_phrase(seconds)}"


def is_progress(line: str) -> bool:
    """Return True for a line of `progress_line` or `silent_line`, which the next one outdates."""
    return _PROGRESS.fullmatch(line) is not None


def _is_harmless(character: str, kept: str) -> bool:
    if character.isprintable() or character in kept or character in _JOINERS:
        return True
    return unicodedata.category(character) not in _STEERING


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


class _Escaping:
    """A stream that escapes what is written to another one, and is that other one in all else."""

    def __init__(self, stream: TextIO) -> None:
        self.inner = stream

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        self.inner.write(escaped(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self.inner, name)


def plain(stream: TextIO) -> TextIO:
    """Return the stream itself, for a writer that escapes texts but not its own colours."""
    return stream.inner if isinstance(stream, _Escaping) else stream


@contextmanager
def steady_output() -> Iterator[None]:
    """Escape all text that the block prints to standard output and standard error.

    Characters that the terminal cannot show, such as `≤`, are escaped where Python would raise an error.
    """
    streams = plain(sys.stdout), plain(sys.stderr)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out, error = (cast("TextIO", _Escaping(stream)) for stream in streams)
    with redirect_stdout(out), redirect_stderr(error):
        yield
