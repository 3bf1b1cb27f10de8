"""Tables and listings of both command lines show hostile names without obeying them."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from rich.table import Table
from rich.text import Text

import pipeline.cli.main as build
from model_artifacts.cli.console import SteadyConsole
from model_artifacts.cli.main import main
from model_artifacts.cli.tables import console_for
from model_artifacts.errors import RunError
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import ManifestEntry

HOSTILE = "x\x1b[2J\x9b1m\u202e\r[red]:smile:[/nothing]"
SHOWN = "x\\u001b[2J\\u009b1m\\u202e\\u000d[red]:smile:[/nothing]"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """Return true: this is one."""
        return True


def test_a_terminal_without_unicode_keeps_its_columns() -> None:
    """Our signs become others of one column, and other characters are left to the stream."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    SteadyConsole(stream, 80).print(Text("≈ 1.0 ms  ≥2.5×  † of 8 é"))
    stream.flush()
    assert raw.getvalue() == b"~ 1.0 ms  >2.5x  + of 8 \\xe9\n"


def test_a_table_has_its_own_colours_alone() -> None:
    """The console colours its texts, and shows controls, markup and names of emoji in them as they are."""
    screen = Screen()
    console = SteadyConsole(screen, 100)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(Text(HOSTILE, style="green"))
    console.print(HOSTILE)
    text = screen.getvalue()
    assert text.count("x\\u001b[2J\\u009b1m\\u202e") == 5
    assert text.count("[red]:smile:[/nothing]") == 5
    assert "\x1b[" in text.replace("\x1b[0m", "")
    assert "\x1b[2J" not in text
    assert not {"\x9b", "\u202e", "\r"} & {*text}


def test_a_log_file_has_no_controls() -> None:
    """Without a terminal there are no colours, and no controls at all."""
    file = io.StringIO()
    console_for(file).print(HOSTILE)
    assert file.getvalue() == f"{SHOWN}\n"


@pytest.fixture
def hostile(copied: Path) -> Callable[..., Path]:
    """A function that changes every artifact of a copied build's manifest, and returns the folder."""

    def change(**changes: object) -> Path:
        path = copied / "artifacts" / "manifest.json"
        manifest = read_record(path, Manifest)
        entries = tuple(entry.model_copy(update=changes) for entry in manifest.artifacts)
        about = manifest.model
        if about and "model" in changes:  # the manifest's model is that of its artifacts
            about = about.model_copy(update={"name": changes["model"]})
        write_record(path, manifest.model_copy(update={"artifacts": entries, "model": about}))
        return path.parent

    return change


@pytest.mark.parametrize("command", [["show"], ["resolve"], ["resolve", "--json"], ["triton"]])
@pytest.mark.parametrize("name", ["id", "model", "target"])
def test_names_that_steer_are_refused(
    hostile: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str, command: list[str]
) -> None:
    """A manifest whose names hold escape sequences is no build's, and the message shows them escaped."""
    folder = hostile(**{name: f"tiny{HOSTILE}"})
    assert main([*command, str(folder)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "a name that no build gives" in told.err
    assert "\x1b" not in told.err


@pytest.mark.parametrize("model", ["../../out", "a/b", "..", ""])
def test_a_models_name_is_no_path(hostile: Callable[..., Path], model: str) -> None:
    """A repository for Triton has a folder of the model's name, which must not lead elsewhere."""
    assert main(["triton", str(hostile(model=model))]) == 1


def test_reasons_are_shown_in_one_row(hostile: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A reason with controls and line breaks is shown, and steers nothing."""
    folder = hostile(reason=f"slow\nfile /etc/passwd {HOSTILE}")
    for command in (["show"], ["resolve"]):
        main([*command, str(folder)])
        told = capsys.readouterr()
        assert not {"\x1b", "\x9b", "\u202e", "\r"} & {*told.out, *told.err}
        assert "\nfile /etc/passwd" not in told.out or command == ["show"]


@pytest.mark.parametrize("where", ["../../etc/passwd", "/etc/passwd"])
@pytest.mark.parametrize("command", [["resolve"], ["resolve", "--json"], ["show"], ["triton"]])
def test_paths_outside_the_folder_are_not_printed(
    copied: Path, capsys: pytest.CaptureFixture[str], where: str, command: list[str]
) -> None:
    """No command prints such a path as that of an artifact; the manifest is refused."""
    path = copied / "artifacts" / "manifest.json"
    manifest = read_record(path, Manifest)

    def moved(entry: ManifestEntry) -> ManifestEntry:
        return entry.model_copy(update={"file": entry.file.model_copy(update={"path": where}) if entry.file else None})

    write_record(path, manifest.model_copy(update={"artifacts": tuple(map(moved, manifest.artifacts))}))
    assert main([*command, str(path.parent)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "outside its folder" in told.err


def test_json_is_json(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What programs read stays as it is."""
    assert main(["resolve", "--json", str(copied / "artifacts")]) == 0
    assert json.loads(capsys.readouterr().out)["id"]


def test_errors_of_the_build_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The build's command line prints through the same boundary."""
    monkeypatch.chdir(tmp_path)

    def fail(*_: object) -> None:
        raise RunError(f"no {HOSTILE}")

    monkeypatch.setattr("pipeline.cli.main.load_projects", fail)
    assert build.main(["export", "tiny/fp32"]) == 1
    assert f"error: no {SHOWN}" in capsys.readouterr().err
