"""The command line of one stage."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest

from model_artifacts import __version__
from model_artifacts.errors import BuildError
from pipeline.cli.main import main
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.planning.project import Project


def raises(error: BaseException) -> Callable[[Project, str, object], NoReturn]:
    """Return a stage that raises `error`."""

    def stage(project: Project, subject: str, console: object) -> NoReturn:
        del project, subject, console
        raise error

    return stage


@pytest.fixture
def config(built_folder: Path) -> str:
    """The finished tiny project's configuration."""
    return str(built_folder / "pipeline.yaml")


def test_help_explains_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` lists each stage with its sentence, and ends with status 0."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert [spec.name for spec in STAGES if f"  {spec.name} " not in said] == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` is the package's."""
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_schema_needs_no_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`schema` prints JSON Schema, wherever it is run."""
    monkeypatch.chdir(tmp_path)
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Manifest"


def test_plan_lists_commands(capsys: pytest.CaptureFixture[str], config: str, built: Project) -> None:
    """`plan` prints each step as the command that runs it, with its configuration."""
    assert main(["plan", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"python -m pipeline source tiny --config {config}"
    assert f"python -m pipeline build tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB --config {config}" in lines
    assert len(lines) == len(built.schedule.steps)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "tiny/rtx-sm80+/fp16-b1-ws17MiB"], "tiny/rtx-sm80+/fp16-b1-ws16MiB"),
        (["export", "tiny/fp23"], "tiny/fp32"),
        (["benchmark", "tiny/cpu"], "tiny/cpu-x86_64"),
        (["source", "tinny"], "tiny"),
    ],
)
def test_a_wrong_subject_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], config: str, arguments: list[str], says: str
) -> None:
    """An unknown subject ends with status 2 and the closest name."""
    assert main([*arguments, "--config", config]) == 2
    assert says in capsys.readouterr().err


def test_an_unknown_stage_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown stage ends with status 2 and the known ones."""
    with pytest.raises(SystemExit) as ended:
        main(["bild"])
    assert ended.value.code == 2
    assert "got 'bild'; did you mean 'build'?" in capsys.readouterr().err


def test_a_missing_configuration_is_a_usage_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without a configuration the message says how to name one."""
    assert main(["plan", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "--config FILE" in capsys.readouterr().err


def test_a_step_without_what_it_needs_names_the_command(
    capsys: pytest.CaptureFixture[str], write_config: Callable[[str], Path]
) -> None:
    """Exporting before there are weights says which command makes them."""
    file = write_config("model: {name: other}\nprofiles: [1]\nworkspaces: [1GiB]\n")
    assert main(["export", "other/fp32", "--config", str(file)]) == 1
    said = capsys.readouterr().err
    assert "source.json is missing" in said
    assert "python -m pipeline source other" in said


def test_stage_that_needs_torch_says_so_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build host without torch gets the missing inputs, the command to run elsewhere and the folder to copy."""
    monkeypatch.setattr("pipeline.planning.freshness.installed", lambda module: module != "torch")
    assert main(["source", "resnet18"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        ("error: source needs torch, which is not installed here; its result in artifacts/ is missing or stale"),
        "  expected: the folders source/, data/ and onnx/ of this configuration, made on a host with torch",
        "  fix:      run `python -m pipeline source resnet18` there, and copy artifacts/resnet18 from it",
    ]


def test_stage_that_needs_no_torch_runs_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], copied: Path
) -> None:
    """A build host without torch writes its manifest."""
    monkeypatch.setattr("pipeline.planning.freshness.installed", lambda module: module != "torch")
    assert main(["manifest", "tiny", "--config", str(copied / "pipeline.yaml")]) == 0
    assert "deployable" in capsys.readouterr().out


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str) -> None:
    """An interrupted stage says so, without a traceback, and ends with status 1."""
    monkeypatch.setattr("pipeline.stages.source.stage.run", raises(KeyboardInterrupt()))
    assert main(["source", "tiny", "--config", config]) == 1
    assert capsys.readouterr().err.startswith("interrupted: source tiny")


def test_a_bug_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str) -> None:
    """An unexpected exception ends with status 1 and the option that shows its traceback."""
    monkeypatch.setattr("pipeline.stages.source.stage.run", raises(ZeroDivisionError("oops")))
    assert main(["source", "tiny", "--config", config]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected ZeroDivisionError: oops")
    assert "--debug" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("error", [ZeroDivisionError("oops"), BuildError("no engine")])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str, error: Exception
) -> None:
    """`--debug` shows where an error comes from, expected or not."""
    monkeypatch.setattr("pipeline.stages.source.stage.run", raises(error))
    assert main(["source", "tiny", "--config", config, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    """An unexpected error of the file system still has a fix."""
    monkeypatch.setattr("pipeline.stages.source.stage.run", raises(OSError(28, "No space left on device")))
    assert main(["source", "tiny", "--config", config]) == 1
    assert "free some disk space" in capsys.readouterr().err


def test_a_workspace_too_small_fails_with_its_reason(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A build with too small a workspace ends with status 1 and the setting to change."""
    file = copied / "pipeline.yaml"
    file.write_text(file.read_text().replace("[16MiB, 32MiB]", "[1KiB]"))
    assert main(["build", "tiny/rtx-sm80+/fp32-b1-ws1KiB", "--config", str(file)]) == 1
    said = capsys.readouterr().err
    assert "the workspace is too small: 1,024 bytes" in said
    assert "`workspaces` in pipeline.yaml" in said


def test_the_manifest_prints_its_table(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest stage ends with the table."""
    assert main(["manifest", "tiny", "--config", str(copied / "pipeline.yaml")]) == 0
    said = capsys.readouterr().out
    assert "speed-up" in said
    assert "built: not yet validated: needs an SM80+ GPU" in said


def test_a_line_of_the_log_is_not_said_twice_in_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    """A stage that restores the model for each size says once what it found; later lines may be equal again."""

    def stage(project: Project, subject: str, console: object) -> int:
        del project, subject, console
        for line in ("one", "one", "two", "one"):
            logging.getLogger("pipeline.stages.source").info("%s", line)
        return 0

    monkeypatch.setattr("pipeline.stages.source.stage.run", stage)
    assert main(["source", "tiny", "--config", config]) == 0
    assert capsys.readouterr().out.splitlines() == ["one", "two", "one"]


def test_the_module_runs_as_a_command() -> None:
    """`python -m pipeline` hands its status to the shell."""
    done = subprocess.run([sys.executable, "-m", "pipeline", "source"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: expected SUBJECT; see `python -m pipeline source --help`\n"
    assert done.stdout == ""


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    """The building stack is installed by `uv sync`."""
    monkeypatch.setattr("pipeline.stages.source.stage.run", raises(ModuleNotFoundError(name="safetensors")))
    assert main(["source", "tiny", "--config", config]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: source tiny needs the package safetensors, which is not installed here",
        "  fix:      install the building stack: `uv sync`",
    ]


@pytest.mark.parametrize("name", ["resolve", "show", "host", "pull", "push", "tag", "gc", "verify", "triton"])
def test_commands_for_deployments_are_not_those_of_the_build(name: str) -> None:
    """`model-artifacts` has them."""
    with pytest.raises(SystemExit) as ended:
        main([name])
    assert ended.value.code == 2


@pytest.mark.parametrize("name", ["release", "farm"])
def test_a_command_with_options_of_its_own_explains_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` ends with status 0."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


def test_a_list_that_nobody_reads_to_its_end_is_no_error(config: str) -> None:
    """`plan | head -1` prints one line, and no complaint."""
    command = f"{sys.executable} -m pipeline plan --config {config} | head -1"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)  # noqa: S603, S607
    assert (done.stdout, done.stderr) == (f"python -m pipeline source tiny --config {config}\n", "")
