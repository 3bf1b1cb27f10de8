"""`doit run`: failures, reasons, and interrupted runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from doit.cmd_base import ModuleTaskLoader
from doit.cmd_run import Run as DoitRun
from doit.exceptions import TaskFailed
from doit.task import Task

from model_artifacts.records import Precision, Status
from pipeline.cli.live import Live
from pipeline.cli.order import SECONDS
from pipeline.cli.progress import Planned, Progress, read_durations
from pipeline.cli.run import Reporter, Run, planned_steps
from pipeline.cli.tasks import ALONE, SCREEN
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from tests.conftest import TINY
from tests.support.doit_runs import begin, doit, in_a_terminal, ran
from tests.support.parts import long_test

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"


@long_test
def test_a_failure_stops_nobody_else(finished: Path) -> None:
    """A variant that fails leaves the others deployable, and the run ends with status 1 and how to repeat it."""
    config = finished / "pipeline.yaml"
    text = TINY.replace("[16MiB, 32MiB]", "[1KiB, 16MiB, 32MiB]").replace("max: 4", "max: 64")
    config.write_text(text.replace("[fp32, fp16, bf16, int8]", "[fp32]"))
    done = doit(finished)
    assert done.returncode == 1
    failed = "build:tiny/rtx-sm80+/fp32-b1-2-64-ws1KiB"
    assert f"  doit {failed}\n" in done.stdout
    assert "the workspace is too small: 1,024 bytes" in done.stdout
    entries = {entry.id: entry for entry in Project.load(config, STAGES).manifest().artifacts}
    assert entries[failed.removeprefix("build:")].status is Status.FAILED
    assert entries["tiny/rtx-sm80+/fp32-b1-2-64-ws16MiB"].status is Status.BUILT
    assert entries["tiny/cpu-x86_64/onnxruntime-fp32"].status is Status.DEPLOYABLE
    assert f"build:{'tiny/rtx-sm80+/fp32-b1-2-64-ws1KiB'}" in doit(finished).stdout  # failures are not cached


@pytest.mark.parametrize(
    ("configured", "arguments"),
    [
        ("config=my.yaml", ("verify", "--key", "other key.pub")),
        ("", ("verify", "--key", "other.pub", "--path", "nowhere")),
        ("config=my.yaml", ("release", "--key", "missing.pem", "--allow-dirty")),
        ("", ("release", "--keyless")),
        ("", ("release", "--key=pkcs11:token=x?module-path=/nowhere&pin-value=1234")),
    ],
    ids=str,
)
def test_advice_repeats_the_whole_command_line(finished: Path, configured: str, arguments: tuple[str, ...]) -> None:
    """Without its key, `doit verify` would pass without a signature; without its `config=`, for another model."""
    (finished / "pipeline.yaml").rename(finished / (configured.removeprefix("config=") or "pipeline.yaml"))
    words = [*([configured] if configured else []), *arguments]
    done = doit(finished, *words)
    assert done.returncode == 1
    (line,) = (line.strip() for line in done.stdout.splitlines() if line.startswith("  doit "))
    expected = ["doit", *(word.replace("module-path=/nowhere&pin-value=1234", "…") for word in words)]
    assert sorted(shlex.split(line)) == sorted(expected)


def test_advice_repeats_the_named_files(checkout: Path) -> None:
    """A failed `doit check FILE` is repeated for that file alone."""
    done = doit(checkout, "check", "--all", "no such file.py")
    assert done.returncode == 1
    (line,) = (line.strip() for line in done.stdout.splitlines() if line.startswith("  doit "))
    assert shlex.split(line) == ["doit", "check", "--all", "no such file.py"]


def test_what_is_damaged_and_cannot_be_made_again_is_not_deployable(finished: Path) -> None:
    """The manifest no longer offers a file that is gone, although no record has changed; the next run says the same."""
    assert doit(finished, "-n", "1").returncode == 0  # the manifest of another folder may be of another commit
    graph = finished / "artifacts/tiny/onnx/fp32.onnx"
    graph.unlink()
    (graph / "in the way").mkdir(parents=True)
    done = doit(finished)
    assert done.returncode == 1
    assert "manifest:tiny" in ran(done.stdout)
    assert "manifest:tiny: stale: records.tiny/cpu-x86_64/onnxruntime-fp32/" in done.stdout
    entries = {entry.id: entry for entry in Project.load(finished / "pipeline.yaml", STAGES).manifest().artifacts}
    assert entries["tiny/cpu-x86_64/onnxruntime-fp32"].status is Status.FAILED
    assert entries["tiny/cpu-x86_64/onnxruntime-fp16"].status is Status.DEPLOYABLE
    assert "manifest:tiny" not in ran(doit(finished).stdout)


@long_test
def test_a_task_that_is_made_again_says_why(finished: Path) -> None:
    """A stale task prints its reason, and `doit list` prints none."""
    config = finished / "pipeline.yaml"
    config.write_text(config.read_text().replace("validation: 100", "validation: 90"))
    done = doit(finished, "data")
    assert "data:tiny: stale: validation changed: 100 → 90\n" in done.stdout
    engine = finished / "artifacts" / ENGINE / "model.engine"
    engine.unlink()
    assert f"build:{ENGINE}: stale: {ENGINE}/model.engine is missing\n" in doit(finished, f"build:{ENGINE}").stdout
    assert "stale" not in doit(finished, "list").stdout


def test_a_task_that_is_asked_for_alone_says_since_when_it_is_up_to_date(finished: Path) -> None:
    """The time is printed for a single task, and not for many."""
    assert doit(finished, f"build:{ENGINE}").stdout.startswith(f"build:{ENGINE}: up to date since 20")
    assert "since" not in doit(finished, f"build:{ENGINE}", f"build:{TWIN}").stdout


@long_test
def test_exactly_what_builds_on_a_change_runs_again(finished: Path) -> None:
    """More calibration images rerun only the data, int8's graphs and builds, and the steps that depend on them."""
    assert doit(finished, "-n", "1").returncode == 0  # the manifest of another folder may be of another commit
    config = finished / "pipeline.yaml"
    config.write_text(config.read_text().replace("calibration: 32", "calibration: 48"))
    done = doit(finished)
    assert done.returncode == 0, done.stdout
    variants = [
        variant for variant in Project.load(config, STAGES).plan.variants if variant.precision is Precision.INT8
    ]
    built = {variant.id for variant in variants if not variant.id.startswith("tiny/gpu")}
    assert ran(done.stdout) == {
        "data:tiny",
        "quantize:tiny/int8",
        "quantize:tiny/int8-cpu",
        *(f"build:{name}" for name in built),
        *(f"validate:{name}" for name in built if "cpu" in name),
        "benchmark:tiny/cpu-x86_64",
        "manifest:tiny",
    }


def test_a_run_ends_with_what_to_deploy(finished: Path) -> None:
    """The answer comes before the table, which is printed once, and again in short as the last thing."""
    (finished / "artifacts/manifest.json").unlink()
    done = doit(finished, "manifest", "report")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("to deploy on ") < done.stdout.index("\nvariant ")
    assert done.stdout.count("\nvariant ") == 1
    *_, short, again = done.stdout.splitlines()
    assert short.startswith("to deploy for the lowest latency: cpu-x86_64/onnxruntime-")
    assert again == "all of this again: model-artifacts show artifacts"
    assert "manifest:tiny" in read_durations(finished / "artifacts/.durations.json")


def test_a_terminal_of_80_columns_holds_the_last_screen(finished: Path) -> None:
    """In a terminal no line is wider, the display of the steps leaves nothing, and the cursor stays visible."""
    (finished / "artifacts/manifest.json").unlink()
    status, raw = in_a_terminal([sys.executable, "-m", "doit", "manifest"], finished, columns=80)
    assert status == 0, raw
    assert "of 1 steps" not in raw.rpartition("variant ")[2]
    assert "manifest:tiny" in raw  # while it was at work
    table = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", raw.partition("to deploy on ")[2])
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80
    assert "to deploy for the lowest latency: " in table
    assert "\x1b[?25l" not in raw


def _task(name: str, *before: str, meta: dict[str, object] | None = None) -> Task:
    """Return a command on demand, or with `meta` a step."""
    return Task(name, ["true"], task_dep=list(before), meta=meta)


def test_the_steps_of_a_run_are_those_asked_for_and_those_before_them() -> None:
    """Groups, commands on demand and other steps do not count."""
    step: dict[str, object] = {ALONE: False}
    rough: dict[str, object] = {ALONE: False, SECONDS: 20.0}
    tasks = {
        task.name: task
        for task in (
            _task("source:m", meta=rough),
            _task("build:a", "source:m", meta=step),
            _task("build:b", "source:m", meta=step),
            _task("benchmark:t", "build:a", "source:m", meta={ALONE: True}),
            Task("benchmark", None, task_dep=["benchmark:t"]),
            _task("release", "benchmark"),
        )
    }
    assert planned_steps(tasks, ["release"]) == {
        "source:m": Planned("source", roughly=20.0),
        "build:a": Planned("build"),
        "benchmark:t": Planned("benchmark", alone=True),
    }


def test_a_command_on_demand_has_the_terminal_for_itself() -> None:
    """`doit release` may ask for a password; a step shows the display again."""
    calls: list[str] = []

    class Recorded(Live):
        def show(self) -> None:
            calls.append("show")

        def hide(self) -> None:
            calls.append("hide")

    progress = Progress({"build:a": Planned("build")}, {}, 1)
    reporter = Reporter(Recorded(progress), progress)
    tasks = {task.name: task for task in (_task("build:a", meta={ALONE: False}), _task("release"), Task("x", None))}
    reporter.initialize(tasks, [])
    for task in tasks.values():
        reporter.execute_task(task)
    assert calls == ["show", "hide"]
    reporter.add_success(tasks["build:a"])
    assert list(progress.took) == ["build:a"]


def test_the_last_screen_comes_before_a_command_that_follows(
    built: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of `doit release` are the last ones, and not the table."""
    progress = Progress({}, {}, 1)
    reporter = Reporter(Live(progress), progress)
    manifest = _task("manifest:tiny", meta={SCREEN: (built.paths.root, "doit", "tiny")})
    reporter.initialize({manifest.name: manifest}, [])
    reporter.add_success(manifest)
    reporter.execute_task(_task("release"))
    shown = capsys.readouterr().out
    assert shown.index("\nto deploy on ") < shown.index("\nvariant ")
    assert "to release all that may be deployed: doit release" in shown
    reporter.complete_run()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("shown", [True, False], ids=["below a table", "without a table"])
def test_errors_are_said_again_below_the_table(
    built: Project,
    capsys: pytest.CaptureFixture[str],
    shown: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A table of many variants takes the error off the screen. Without one it stands just above, and is said once."""
    progress = Progress({}, {}, 1)
    reporter = Reporter(Live(progress), progress)
    manifest = _task("manifest:tiny", meta={SCREEN: (built.paths.root, "doit", "tiny")})
    failed = [_task(f"export:tiny/{name}") for name in ("fp32", "fp16", "bf16")]
    for task, error in zip(
        failed, ("bad\n  got:      1\n", "bad\n  got:      1\n", "worse\n" + "  x\n" * 9), strict=True
    ):
        task.actions[0].err = f"a warning\nerror: {error}"
    reporter.initialize({task.name: task for task in (manifest, *failed)}, [])
    for task in failed:
        reporter.add_failure(task, TaskFailed("exit status 1"))
    if shown:
        reporter.add_success(manifest)
    reporter.complete_run()
    _, _, end = capsys.readouterr().out.partition("3 failed; run again, each by itself, with:\n")
    commands = [f"  doit {task.name}" for task in failed]
    nothing: list[str] = []
    said = ["      bad", "        got:      1"], nothing, ["      worse", *["        x"] * 5, "      …"]
    expected = [line for command, lines in zip(commands, said, strict=True) for line in (command, *lines)]
    assert end.splitlines()[: len(expected) if shown else None] == (expected if shown else commands)


def test_last_screens_keep_the_order_of_the_configuration(
    built: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest of a later model may be made first; its screen still comes last."""
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        shutil.copytree(built.paths.root, root)
    first, second = (_task(f"manifest:{root.name}", meta={SCREEN: (root, "doit", "tiny")}) for root in roots)
    progress = Progress({}, {}, 1)
    reporter = Reporter(Live(progress), progress)
    reporter.initialize({first.name: first, second.name: second}, [])
    reporter.add_success(second)
    reporter.add_success(first)
    reporter.complete_run()
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all of this again")]
    assert [line.rsplit("/", 1)[1] for line in again] == ["a", "b"]


def test_a_first_run_has_no_reasons(checkout: Path) -> None:
    """Nothing is stale where nothing has been."""
    assert "stale" not in doit(checkout, "source").stdout


def test_ctrl_c_ends_cleanly(interrupted: Path) -> None:
    """Ctrl-C ends doit and its stages with one message and leaves nothing half-written."""
    process = begin(interrupted)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; run `doit` again" in said
    assert "Traceback" not in said
    left = [file.name for file in (interrupted / "artifacts" / "tiny").rglob("*") if file.is_file()]
    assert [name for name in left if name.startswith(".")] == [".doit.lock"]


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """The handlers of this process, given back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_own_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_that_a_lock_turns_into_another_error(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal that finds a queue without its lock is the interrupt that it is, without a traceback."""

    def run(*_: object) -> int:
        try:
            signal.raise_signal(number)
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DoitRun, "execute", run)
    monkeypatch.setattr(Run, "_end_steps", lambda _self: None)
    monkeypatch.setattr("sys.argv", ["doit", "config=my file.yaml", "release", "--key", "release.pem"])

    assert Run(task_loader=ModuleTaskLoader({})).execute({}, []) == 1
    again = "doit 'config=my file.yaml' release --key release.pem"
    assert capsys.readouterr().err == f"\ninterrupted; run `{again}` again to go on from here\n"


@pytest.mark.usefixtures("_own_signals")
def test_an_error_without_an_interrupt_stays_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the code is not taken for an interrupt."""

    def run(*_: object) -> int:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DoitRun, "execute", run)

    with pytest.raises(RuntimeError, match="dictionary changed size"):
        Run(task_loader=ModuleTaskLoader({})).execute({}, [])
