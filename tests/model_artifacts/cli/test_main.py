"""The command line `model-artifacts`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from model_artifacts import __version__
from model_artifacts.cli.main import main
from tests.support.command_line import status_of

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project
    from pipeline.stages.release.stage import Release

COMMANDS = ("resolve", "show", "host", "triton", "pull", "push", "tag", "gc", "verify", "mlflow")
MODULE = f"{sys.executable} -m model_artifacts"


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the terminal 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command line of bash."""
    return subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)  # noqa: S603, S607


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """It lists every command, each in one line, and the status is 2."""
    assert main([]) == 2
    listed = [
        line.split()[0] for line in capsys.readouterr().err.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of each command ends with status 0 and names the command."""
    assert status_of([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: model-artifacts {command}".rstrip())
    assert max(map(len, text.splitlines())) <= 80
    assert "--debug" in text or not command


@pytest.mark.parametrize(
    ("command", "groups"),
    [("resolve", ["requirements:"]), ("pull", ["signature:", "requirements (with"]), ("verify", ["signature:"])],
)
def test_options_are_grouped(command: str, groups: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Requirements and signatures have titles of their own."""
    assert status_of([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert [group for group in groups if f"\n{group}" not in text] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the package's version."""
    assert status_of(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bild", f"expected one of {', '.join(COMMANDS)}, got 'bild'; see `model-artifacts --help`"),
        ("--debug", "expected COMMAND; see `model-artifacts --help`"),
        ("pull", "expected URL; see `model-artifacts pull --help`"),
        ("resolve a b", "expected no further arguments, got b; see `model-artifacts resolve --help`"),
        ("host --fast", "expected no further arguments, got --fast; see `model-artifacts host --help`"),
        ("resolve --precision fp12", "fp16, bf16, int8, fp8, got 'fp12'; did you mean 'fp"),
        ("reslove a", f"expected one of {', '.join(COMMANDS)}, got 'reslove'; did you mean 'resolve'?; see"),
        ("resolve a --precison fp16", "got --precison fp16; did you mean --precision?; see"),
        ("verify r --Key=k.pub", "got --Key=k.pub; did you mean --key?; see"),
        ("gc store --grace-hours soon", "expected hours, 0 or more, got 'soon'; see `model-artifacts gc --help`"),
        (f"pull store --tag a --release {'b' * 64}", "--release: not allowed with argument --tag; see"),
        ("pull store --release 0123abcd4567", "expected a full SHA-256 of 64 hexadecimal digits, got '0123abcd4567'"),
        ("pull store --no-downgrade", "beside --no-downgrade, got none of them"),
        ("verify r --identity me", "expected --key, or --identity with --issuer, got --identity"),
        ("verify r --key k --identity me --issuer i", "got --key and --identity and --issuer"),
        ("--print-completion fortran", "expected one of bash, zsh, tcsh, got 'fortran'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the expected and the typed values, and the status is 2."""
    assert status_of(arguments.split()) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert printed.out == ""


@pytest.fixture
def paths(built: Project, tmp_path: Path) -> dict[str, str]:
    """Paths by the words that stand for them in a command line."""
    release = tmp_path / "release.tar.zst"
    release.write_bytes(b"")
    return {
        "RELEASE": str(release),
        "ARTIFACTS": str(built.paths.root),
        "OUTPUT": str(tmp_path / "triton"),
        "STORE": str(tmp_path / "store"),
    }


@pytest.mark.parametrize(
    ("arguments", "package", "remedy"),
    [
        ("verify RELEASE", "zstandard", '"model-artifacts[verify]"'),
        ("show RELEASE", "zstandard", '"model-artifacts[verify]"'),
        ("triton ARTIFACTS --output OUTPUT", "tritonclient.grpc", '"model-artifacts[triton]"'),
        ("push STORE RELEASE", "zstandard", '"model-artifacts[store,verify]"'),
    ],
)
def test_a_missing_package_is_named_with_its_extra(  # noqa: PLR0913 - three values and three fixtures
    arguments: str,
    package: str,
    remedy: str,
    paths: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A deployment has no checkout, so the advice is `pip install`."""
    monkeypatch.setitem(sys.modules, package, None)
    command, *rest = arguments.split()
    assert main([command, *(paths.get(word, word) for word in rest)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {command} needs the package {package}, which is not installed here\n")
    assert message.endswith(f"  fix:      pip install {remedy}\n")


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command takes `--debug`."""
    assert main(["resolve", str(tmp_path), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


# The command `show`.


def test_show_prints_the_table_and_the_choices(built: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of artifacts is only read."""
    before = {path: path.stat().st_mtime_ns for path in built.paths.root.rglob("*")}
    assert main(["show", str(built.paths.root)]) == 0
    text = capsys.readouterr().out
    assert "cpu-x86_64/onnxruntime-fp32" in text
    assert "\nto deploy on " in text
    assert "  lowest latency, batch 1: cpu-x86_64/" in text
    assert {path: path.stat().st_mtime_ns for path in built.paths.root.rglob("*")} == before


def test_show_reads_a_release(released: Release, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder and its archive give the same output, but for the paths and commands of a folder."""
    assert main(["show", str(released.folder)]) == 0
    text = capsys.readouterr().out
    assert "deployable" in text
    assert main(["show", str(released.archive)]) == 0
    archived = capsys.readouterr().out
    assert set(archived.splitlines()) < set(text.splitlines())
    assert "deployable" in archived


def test_show_needs_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without one is reported with the folder to name."""
    assert main(["show", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/manifest.json is missing\n  fix:")


# Completion.


def test_completion_knows_commands_options_and_paths(tmp_path: Path) -> None:
    """Bash completes them from the printed script."""
    pytest.importorskip("shtab", reason="the completion's library is not installed")
    script = shell(f"{MODULE} --print-completion bash")
    assert (script.returncode, script.stderr) == (0, "")
    (tmp_path / "script").write_text(script.stdout)
    (tmp_path / "models").mkdir()

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in ("model-artifacts", *words))
        code = f"source ./script; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_model_artifacts; "
        return shell(f"cd {tmp_path}; {code}" + 'printf "%s\\n" "${COMPREPLY[@]}"').stdout.split()

    assert completed("re") == ["resolve"]
    assert completed("pull", "--key") == ["--key"]
    assert completed("resolve", "--precision", "f") == ["fp32", "fp16", "fp8"]
    assert completed("show", "m") == ["models"]


def test_completion_names_its_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the package to install if shtab is missing."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert status_of(["--print-completion", "bash"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: --print-completion needs the package shtab, which is not installed here",
        "  fix:      pip install shtab",
    ]


# The process.


@pytest.mark.parametrize("command", ["resolve", "show"])
def test_a_reader_that_ends_is_no_error(built: Project, command: str) -> None:
    """`… | head -1` prints one line, and no complaint."""
    done = shell(f"{MODULE} {command} {built.paths.root} | head -1")
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


def test_sigterm_ends_like_ctrl_c() -> None:
    """A command that is asked to end says so in one line, and ends with status 143."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(  # noqa: S603 - our own
            [sys.executable, "-m", "model_artifacts", "tag", store], stderr=subprocess.PIPE, text=True
        )
        connection, _ = silent.accept()  # once the command waits for an answer
        with connection:
            process.send_signal(signal.SIGTERM)
            _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert message == "interrupted: tag; what was there before is untouched\n"


def test_a_terminal_without_unicode_gets_other_signs(built: Project) -> None:
    """The marks of the table are ASCII there, where Python would raise an error."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "model_artifacts", "show", str(built.paths.root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603 - our own
    assert "\n+ judged on fewer images than the others" in done.stdout
    assert "\\u" not in done.stdout


def test_help_imports_nothing_heavy() -> None:
    """`--help` imports no runtime, no table and no store."""
    code = (
        "import sys\nfrom model_artifacts.cli.main import command_line\ncommand_line()\n"
        "print({'numpy', 'rich', 'shtab', 'fsspec', 'zstandard', 'model_signing', 'onnxruntime'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603 - our own
    assert done.stdout.strip() == "set()"
