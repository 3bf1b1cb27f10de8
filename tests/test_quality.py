"""What CI holds beside behaviour: linters, types, layers, and documents that say the same thing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.config.loading import load_config
from tests.conftest import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPTS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache"],
        ["ruff", "format", "--check", "--no-cache"],
        ["mypy"],
        ["lint-imports", "--no-cache"],
    ],
    ids=["lint", "format", "types", "layers"],
)
def test_the_code_is_clean(command: list[str]) -> None:
    """Each of the tools finds nothing to say."""
    tool = [str(SCRIPTS / command[0]), *command[1:]]
    done = subprocess.run(tool, check=False, cwd=REPOSITORY, capture_output=True, text=True)  # noqa: S603 - fixed
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    """`.ci/run` ends with the second command of the README, word for word."""
    commands = re.findall(r"^(pip install uv && uv run .*?)\s+#", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    assert (REPOSITORY / ".ci" / "run").read_text().splitlines()[-1] == commands[1]


def test_the_readme_shows_the_table_of_contents() -> None:
    """The README's table of contents is what `doit list` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "doit", "list"], check=True, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.strip() in (REPOSITORY / "README.md").read_text()


def test_the_default_configuration_is_the_commented_one(write_config: Callable[[str], Path]) -> None:
    """pipeline.yaml shows the defaults: what it says of any other key is what leaving the key out gives."""
    shown = load_config(REPOSITORY / "pipeline.yaml")
    bare = load_config(write_config("profiles: [1, {min: 1, opt: 8, max: 32}]\nworkspaces: [256MiB, 1GiB]\n"))
    assert bare.timed_batches == shown.timed_batches
    timing = bare.benchmark.model_copy(update={"batches": shown.benchmark.batches})
    assert bare.model_copy(update={"benchmark": timing}) == shown


def test_planning_imports_neither_torch_nor_tensorrt() -> None:
    """`doit list` stays instant: what dodo.py imports is light."""
    code = (
        "import pipeline.cli.tasks, sys; print({'torch', 'tensorrt_rtx', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True)  # noqa: S603
    assert done.stdout.strip() == "set()"


def test_a_deployment_needs_no_torch() -> None:
    """What loads and runs an engine imports nothing but the package's own dependencies."""
    code = (
        "import model_artifacts.records, model_artifacts.sessions.preprocessing, model_artifacts.sessions.engine;"
        "import model_artifacts.tensorrt.runtime, sys;"
        "print([m for m in ('torch', 'doit', 'yaml', 'rich', 'filelock', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
