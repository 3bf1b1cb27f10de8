"""The steps at work in a terminal's last lines."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, NoReturn, TextIO

import pytest

from pipeline.cli.live import Live, can_redraw, cut, row
from pipeline.cli.progress import Planned, Progress, Working

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = "build:resnet18/sm90-h100-80gb-hbm3-trt10.15/torch_compile-int8-mixed-b1-8-32-ws256MiB"


class Terminal:
    """A terminal that a test writes to, and whose screen it reads."""

    def __init__(self, columns: int = 80, encoding: str = "utf-8") -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns)
        self.stream = os.fdopen(theirs, "w", encoding=encoding, errors="backslashreplace")

    def resize(self, columns: int) -> None:
        """Set the width."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def raw(self) -> str:
        """Return everything that was written since the last call."""
        self.stream.flush()
        os.set_blocking(self.ours, False)
        read = b""
        with suppress(BlockingIOError):
            while part := os.read(self.ours, 1 << 16):
                read += part
        return read.decode(self.stream.encoding)


def screen(raw: str) -> list[str]:
    """Return the lines that a terminal of endless height shows after these characters."""
    lines, at = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", raw):
        if part == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            at -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[at] = ""
        elif part != "\r" and not part.startswith("\x1b"):
            lines[at] += part
    return lines


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Standard output and standard error of this test."""
    found = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    yield found
    found.stream.close()
    os.close(found.ours)


@contextmanager
def _output(stream: TextIO) -> Iterator[None]:
    """Make a stream the standard output and the standard error; a fixture cannot, before pytest's own."""
    with redirect_stdout(stream), redirect_stderr(stream):
        yield


def _say(line: str, stream: TextIO | None = None) -> None:
    (stream or sys.stdout).write(f"{line}\n")


def _progress(*names: str) -> Progress:
    return Progress({name: Planned(name.partition(":")[0]) for name in names}, {}, 2)


def test_steps_at_work_stay_below_what_is_printed_and_leave_nothing(terminal: Terminal) -> None:
    """One line a step and one for the run; at the end only what was printed is there, and the cursor is visible."""
    progress = _progress("build:a", "build:b")
    with _output(terminal.stream), Live(progress) as live:
        for name in ("build:a", "build:b"):
            progress.begin(name, 0)
        live.show()
        _say("build:a: tuning")
        _say("a warning", sys.stderr)
        before = terminal.raw()
        assert [line.split("  ")[0] for line in screen(before)] == [
            "build:a: tuning",
            "a warning",
            "build:a",
            "build:b",
            "0 of 2 steps",
        ]
        progress.end("build:a", 1, done=True)
        live.show()
        during = before + terminal.raw()
        assert [line.split("  ")[0] for line in screen(during)[2:]] == [
            "build:b",
            "1 of 2 steps",
            "",
        ]
    terminal.stream.write("later\n")
    raw = during + terminal.raw()
    assert [line for line in screen(raw) if line] == ["build:a: tuning", "a warning", "later"]
    assert "\x1b[?25l" not in raw


def test_a_line_that_only_counts_is_in_the_step_s_own_line(terminal: Terminal) -> None:
    """It would fill the screen with outdated numbers."""
    progress = _progress("build:a")
    with _output(terminal.stream), Live(progress) as live:
        progress.begin("build:a", 0)
        live.show()
        _say("build:a: layers: 3 of 12, about 30 s left")
        live.show()
        shown = screen(terminal.raw())
        assert len([line for line in shown if line]) == 2
        assert shown[0].startswith("build:a  layers: 3 of 12, about 30 s left")


def test_a_command_that_asks_has_the_terminal(terminal: Terminal) -> None:
    """After `hide` nothing is drawn, and lines come as they are written."""
    progress = _progress("build:a")
    with _output(terminal.stream), Live(progress) as live:
        progress.begin("build:a", 0)
        live.show()
        live.hide()
        terminal.raw()
        _say("build:a: layers: 3 of 12")
        assert terminal.raw() == "build:a: layers: 3 of 12\r\n"


def test_an_interrupt_gives_the_terminal_back(terminal: Terminal) -> None:
    """The lines are removed, and the streams are the process's own."""
    progress = _progress("build:a")
    progress.begin("build:a", 0)

    def be_interrupted(live: Live) -> NoReturn:
        live.show()
        raise KeyboardInterrupt

    with _output(terminal.stream):
        with pytest.raises(KeyboardInterrupt), Live(progress) as live:
            be_interrupted(live)
        assert (sys.stdout, sys.stderr) == (terminal.stream, terminal.stream)
    assert [line for line in screen(terminal.raw()) if line] == []


def test_a_line_without_an_end_is_not_lost(terminal: Terminal) -> None:
    """A step that dies in the middle of its last line has said it all the same."""
    progress = _progress("build:a")
    with _output(terminal.stream), Live(progress) as live:
        progress.begin("build:a", 0)
        live.show()
        sys.stdout.write("build:a: error: it")
        sys.stderr.write("died")
    assert [line for line in screen(terminal.raw()) if line] == ["died", "build:a: error: it"]


def test_threads_print_whole_lines(terminal: Terminal) -> None:
    """Two steps that print in pieces at once do not mix their lines."""
    progress = _progress("build:a")
    with _output(terminal.stream), Live(progress) as live:
        progress.begin("build:a", 0)
        live.show()
        both = threading.Barrier(2)

        def speak(name: str) -> None:
            both.wait()
            for number in range(50):
                sys.stdout.write(f"{name}{number}")
                sys.stdout.write(f"{name}\n")

        threads = [threading.Thread(target=speak, args=(name,)) for name in "xy"]
        for thread in threads:
            thread.start()
        raw = ""
        while any(thread.is_alive() for thread in threads):
            raw += terminal.raw()
    printed = [line for line in screen(raw + terminal.raw()) if line]
    assert sorted(printed) == sorted(f"{name}{number}{name}" for name in "xy" for number in range(50))


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_drawn_line_is_wider_than_the_terminal_or_80_columns(terminal: Terminal, columns: int) -> None:
    """A terminal of any width, which may also change, shows a step in one row."""
    progress = _progress(LONG)
    with _output(terminal.stream), Live(progress) as live:
        progress.begin(LONG, 0)
        terminal.resize(columns)
        live.show()
        _say(f"{LONG}: {'tuning ' * 40}")
        terminal.resize(columns // 2)
        live.show()
        lines = [line for line in screen(terminal.raw()) if line and not line.startswith(LONG)]
    assert len(lines) == 2
    assert max(map(len, lines)) < min(columns // 2, 80)


def test_a_terminal_without_unicode_gets_none(terminal: Terminal) -> None:
    """A name is cut with dots that the terminal can show, and what it cannot show is escaped."""
    plain = Terminal(encoding="ascii")
    progress = _progress(LONG)
    with _output(plain.stream), Live(progress) as live:
        progress.begin(LONG, 0)
        live.show()
        _say("an é")
        lines = [line for line in screen(plain.raw()) if line]
    assert lines[0] == "an \\xe9"
    assert "..." in lines[1]
    assert len(lines[1]) < 80
    assert terminal.raw() == ""
    plain.stream.close()
    os.close(plain.ours)


def test_steps_beyond_half_of_the_rows_are_counted(terminal: Terminal) -> None:
    """A farm's hundred steps do not fill the screen."""
    names = [f"build:{number}" for number in range(100)]
    progress = _progress(*names)
    with _output(terminal.stream), Live(progress) as live:
        for name in names:
            progress.begin(name, 0)
        live.show()
        lines = [line for line in screen(terminal.raw()) if line]
    assert len(lines) == 12
    assert lines[-1] == "0 of 100 steps (and 89 more at work)"


@pytest.mark.parametrize("kind", ["dumb", "", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_is_a_log(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Lines are printed as they come, without a control character."""
    monkeypatch.setenv("TERM", kind)
    progress = _progress("build:a")
    with _output(terminal.stream), Live(progress) as live:
        progress.begin("build:a", 0)
        live.show()
        _say("build:a: layers: 3 of 12")
    assert terminal.raw() == "build:a: layers: 3 of 12\r\n"


def test_a_log_gets_no_display() -> None:
    """A pipe or a file is not drawn on, and rich is not needed for it."""
    log = io.StringIO()
    progress = _progress("build:a")
    with _output(log), Live(progress) as live:
        progress.begin("build:a", 0)
        live.show()
        _say("build:a: layers: 3 of 12")
        assert sys.stdout is log
    assert log.getvalue() == "build:a: layers: 3 of 12\n"
    assert not can_redraw(log)


@pytest.mark.parametrize("columns", [20, 40, 79])
@pytest.mark.parametrize("doing", ["", "tuning", "x" * 100, "日本語" * 30, "with \x1b[31m controls"])
def test_a_row_has_its_columns(columns: int, doing: str) -> None:
    """Whatever a step says, its line is as wide as the others and ends with its time."""
    from rich.cells import cell_len  # noqa: PLC0415 - as the module does

    text = row(Working(LONG, doing, 42.0, None), columns, "…")
    assert cell_len(text) == columns
    assert text.endswith("  42 s")
    assert "\x1b" not in text


def test_a_row_tells_the_time_left() -> None:
    """Beside the time since the start."""
    assert row(Working("build:a", "", 42.0, 28.0), 79, "…").endswith("  42 s, about 28 s left")


def test_a_name_is_cut_in_its_middle() -> None:
    """The stage and the end of the variant's name tell more than the target."""
    assert cut("build:a", 7, "…") == "build:a"
    assert cut(LONG, 40, "…") == "build:resnet1…int8-mixed-b1-8-32-ws256MiB"[:14] + LONG[-26:]
    assert len(cut(LONG, 40, "...")) == 40
    assert cut(LONG, 2, "...") == "..."
