"""Texts reach a terminal without controls, whoever wrote them."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.host.terminal import escaped, one_row, plain, size_phrase, steady_output

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202egnp\u2066\u200e\u2028\x7f\x08"
"""Clears the screen, sets the title, goes back to the line's start, colours, and turns the direction around."""


@given(st.text())
def test_no_text_steers_the_terminal(text: str) -> None:
    """No control is left but newlines and tabs, and none at all within a row."""
    for shown, kept in ((escaped(text), "\n\t"), (one_row(text), "")):
        left = {character for character in shown if unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp", "Cs"}}
        assert left <= {*kept, "\u200c", "\u200d"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_keeps_its_values(text: str) -> None:
    """Escaping within a JSON document changes no value of it."""
    for document in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        assert json.loads(escaped(document)) == text


@pytest.mark.parametrize(
    "text", ["fox", "≈ 1.5 ms", "狐狸", "Füchse\n\tund Hunde", "\u0645\u06cc\u200c\u062e", "a\u3000b"]
)
def test_words_stay_as_they_are(text: str) -> None:
    """Words of all languages, emoji, newlines and tabs are shown as they are."""
    assert escaped(text) == text


def test_a_row_has_no_line_break() -> None:
    """A name cannot forge a line of a listing."""
    assert one_row("a\nsigned: yes\tb") == "a\\u000asigned: yes\\u0009b"


def test_everything_that_is_printed_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Both streams are escaped within the block, and are the process's own again after it."""
    before = sys.stdout, sys.stderr
    with steady_output(), steady_output():
        print(HOSTILE)  # noqa: T201 - the subject of the test
        sys.stdout.writelines([HOSTILE, "\n"])
        sys.stderr.write(f"error: {HOSTILE}\n")
        assert plain(sys.stdout) is before[0]
        assert not sys.stdout.isatty()
    assert (sys.stdout, sys.stderr) == before
    told = capsys.readouterr()
    assert told.out.count("\\u001b[2J") == 2
    assert "\\u202egnp" in told.err
    assert not {"\x1b", "\x9b", "\r", "\x07", "\u202e"} & {*told.out, *told.err}


def test_what_a_terminal_lacks_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of ASCII shows other characters as numbers, where Python would raise an error."""
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        assert isinstance(file, io.TextIOWrapper)
        monkeypatch.setattr(sys, "stdout", file)
        with steady_output():
            print("≤ 1 ms")  # noqa: T201 - the subject of the test
    assert (tmp_path / "out").read_text() == "\\u2264 1 ms\n"


@pytest.mark.parametrize(
    ("size", "phrase"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (99_900, "99.9 kB"),
        (100_000, "0.1 MB"),
        (5e9, "5000.0 MB"),
    ],
    ids=str,
)
def test_a_small_size_is_not_told_as_nothing(size: float, phrase: str) -> None:
    """Below 0.1 MB it is in kB, below 1 kB in bytes."""
    assert size_phrase(size) == phrase
