"""The progress bars of a long build."""

from __future__ import annotations

import io
import time

import pytest

from model_artifacts.host import progress
from model_artifacts.host.progress import Bars
from model_artifacts.host.terminal import is_progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step comes as late as if the build were slow."""
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0)


def build(stream: io.StringIO) -> str:
    """Report a build with one phase inside another, and return the shown lines."""
    with Bars(stream) as shown:
        shown.start("Building engine", None, 6)
        shown.start("Timing tactics", "Building engine", 57)
        shown.step("Timing tactics", 3)
        shown.finish("Timing tactics")
        shown.step("Building engine", 1)
        shown.finish("Building engine")
    return stream.getvalue()


def test_quick_build_says_nothing() -> None:
    """A build of less than a few seconds leaves a log as it is."""
    assert build(io.StringIO()) == ""


@pytest.mark.usefixtures("_always")
def test_slow_build_says_a_line_now_and_then() -> None:
    """A log of a long build says which phase it is in, and how far."""
    assert build(io.StringIO()) == "Timing tactics: 3 of 57\nBuilding engine: 1 of 6\n"


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (0.1, "Images: 3 of 12"),
        (30.0, "Images: 3 of 12, about 90 s left"),
        (600.0, "Images: 3 of 12, about 30 min left"),
    ],
)
def test_line_tells_the_time_left(monkeypatch: pytest.MonkeyPatch, seconds: float, line: str) -> None:
    """The other steps are taken to last as long as those that are done."""
    stream = io.StringIO()
    with Bars(stream) as shown:
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        shown.start("Images", None, 12)
        shown.step("Images", 0)
        monkeypatch.setattr(time, "monotonic", lambda: now + seconds)
        shown.step("Images", 3)
    assert stream.getvalue().splitlines() == ["Images: 0 of 12", line]


@pytest.mark.usefixtures("_always")
def test_step_of_an_unknown_phase_is_shown() -> None:
    """A step that comes before its phase is no reason to end a build."""
    stream = io.StringIO()
    with Bars(stream) as shown:
        shown.step("Mystery", 2)
        shown.finish("Mystery")
    assert stream.getvalue() == "Mystery: 2 of 2\n"


def test_line_follows_a_line_no_sooner_than_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many steps there are, a log gets a line every few seconds at most."""
    clock = iter([0.0, 4.0, 5.0, 9.0, 11.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Bars(stream) as shown:
        for done in range(1, 5):
            shown.step("Timing", done)
    assert stream.getvalue() == "Timing: 2 of 2\nTiming: 4 of 4\n"


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that can do everything."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.usefixtures("_terminal")
def test_terminal_shows_a_bar_a_phase() -> None:
    """On a terminal each phase has a bar with its steps, and no lines are left behind."""
    shown = build(Terminal())
    assert "Building engine" in shown
    assert "left:" in shown
    assert "\x1b[?25l" in shown  # the cursor is hidden while there are bars
    assert shown.rstrip("\r").endswith("\x1b[2K\x1b[?25h")  # and the bars are taken away at the end
    assert "Timing tactics: 3 of 57" not in shown


@pytest.mark.usefixtures("_terminal")
def test_bars_are_taken_away_after_an_error() -> None:
    """A build that fails leaves the terminal as it was."""
    stream = Terminal()
    with pytest.raises(TypeError), Bars(stream) as shown:
        shown.start("Building engine", None, "six")  # type: ignore[arg-type]  # what goes wrong
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


@pytest.mark.usefixtures("_terminal")
def test_phase_within_another_is_indented() -> None:
    """An inner phase stands below its outer phase, indented."""
    stream = Terminal()
    with Bars(stream) as shown:
        shown.start("Outer", None, 2)
        shown.start("Inner", "Outer", 2)
    assert "Outer" in stream.getvalue()
    assert "  Inner" in stream.getvalue()


def test_a_log_tells_that_a_build_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder may compile one kernel for minutes: the log says where it stands, and for how long."""
    monkeypatch.setattr(progress, "_SILENT_SECONDS", 0.02)
    stream, deadline = io.StringIO(), time.monotonic() + 30
    with Bars(stream) as shown:
        shown.start("Cloning network graph", None, 465)
        shown.step("Cloning network graph", 1)
        while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 1
    assert all(line.startswith("Cloning network graph: 1 of 465, no progress for ") for line in lines)
    assert all(is_progress(line) for line in lines)


def test_a_log_of_work_without_phases_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a phase there is nothing to say, however long it takes."""
    monkeypatch.setattr(progress, "_SILENT_SECONDS", 0.01)
    stream = io.StringIO()
    with Bars(stream):
        time.sleep(0.1)
    assert stream.getvalue() == ""
