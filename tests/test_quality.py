"""Linters, types, layers, the layout of folders, and documents that agree with the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = Path(sys.executable).parent
PACKAGES = ("model_artifacts", "pipeline")
INTEGRATION = {
    "model_artifacts/deployment/test_resolution_onnx.py",
    "model_artifacts/serving/test_broken_streams.py",
    "model_artifacts/sessions/test_engine_session.py",
    "pipeline/adapters/test_tensorrt_contract.py",
    "pipeline/adapters/test_tensorrt_settings_contract.py",
    "pipeline/adapters/test_tensorrt_sites.py",
    "pipeline/adapters/test_torch_tensorrt_contract.py",
    "pipeline/adapters/test_torch_tensorrt_dry_run.py",
    "pipeline/farm/test_on_a_cluster.py",
    "pipeline/planning/test_damaged_records.py",
    "pipeline/planning/test_edited_records.py",
    "pipeline/stages/test_versions.py",
    "pipeline/stages/validate/test_gates_catch_faults.py",
    "pipeline/test_detection.py",
    "pipeline/test_embedding.py",
    "pipeline/test_faults.py",
    "pipeline/test_folder_of_configurations.py",
    "pipeline/test_half_onnx_model.py",
    "pipeline/test_heads.py",
    "pipeline/test_inputs.py",
    "pipeline/test_io.py",
    "pipeline/test_own_inputs.py",
    "pipeline/test_killed_runs.py",
    "pipeline/test_lengths.py",
    "pipeline/test_multilabel.py",
    "pipeline/test_onnx_model.py",
    "pipeline/test_profiles.py",
    "pipeline/test_quantised_lengths.py",
    "pipeline/test_regression.py",
    "pipeline/test_rewrites.py",
    "pipeline/test_segmentation.py",
    "pipeline/test_several_models.py",
    "pipeline/test_sized_boxes.py",
    "pipeline/test_sized_files.py",
    "pipeline/test_sized_maps.py",
    "pipeline/test_sized_modules.py",
    "pipeline/test_sizes.py",
    "pipeline/test_tags.py",
    "pipeline/test_tensors.py",
}
"""Test files that cover several modules, and are named after their subject."""


@pytest.mark.early
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
    """The README's table of contents equals the output of `doit list`."""
    done = subprocess.run(
        [sys.executable, "-m", "doit", "list"], check=True, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.strip() in (REPOSITORY / "README.md").read_text()


def test_planning_imports_neither_torch_nor_tensorrt() -> None:
    """dodo.py imports light modules only, so that `doit list` is instant."""
    code = (
        "import pipeline.cli.tasks, sys; print({'torch', 'tensorrt_rtx', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True)  # noqa: S603
    assert done.stdout.strip() == "set()"


def test_a_deployment_needs_no_torch() -> None:
    """Loading and running an engine imports only the package's own dependencies."""
    code = (
        "import model_artifacts.records, model_artifacts.sessions.preprocessing, model_artifacts.sessions.engine;"
        "import model_artifacts.tensorrt.runtime, sys;"
        "print([m for m in ('torch', 'doit', 'yaml', 'rich', 'filelock', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, capture_output=True, text=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def modules() -> list[Path]:
    """Return the modules of both packages, relative to the repository."""
    return sorted(file.relative_to(REPOSITORY) for name in PACKAGES for file in (REPOSITORY / name).rglob("*.py"))


def test_tests_are_named_after_modules() -> None:
    """Each test file has the path of the module that it tests, or is a listed integration test."""
    tests = REPOSITORY / "tests"
    there = {file.relative_to(tests).as_posix() for name in PACKAGES for file in (tests / name).rglob("test_*.py")}
    expected = {(file.parent / f"test_{file.stem.strip('_')}.py").as_posix() for file in modules()}
    assert sorted(there - expected - INTEGRATION) == []
    assert sorted(INTEGRATION - there) == []


def test_every_folder_of_tests_is_looked_into(pytestconfig: pytest.Config) -> None:
    """No folder has a name that pytest passes over, as it does with `build` by default."""
    folders = {file.parent.relative_to(REPOSITORY) for file in (REPOSITORY / "tests").rglob("test_*.py")}
    passed_over = pytestconfig.getini("norecursedirs")
    parts = {part for folder in folders for part in folder.parts}
    assert [part for part in sorted(parts) if any(fnmatch(part, pattern) for pattern in passed_over)] == []


def test_folders_and_modules_are_small() -> None:
    """A folder has at most 12 modules, a module at most 400 lines, and a test file at most 500."""
    folders = [file.parent for file in modules() if file.name != "__init__.py"]
    assert [folder for folder in sorted(set(folders)) if folders.count(folder) > 12] == []
    assert [file for file in modules() if len((REPOSITORY / file).read_text().splitlines()) > 400] == []
    assert [file for file in (REPOSITORY / "tests").rglob("*.py") if len(file.read_text().splitlines()) > 500] == []


@pytest.mark.parametrize("file", [file for file in modules() if file.name == "__init__.py"], ids=str)
def test_packages_only_export(file: Path) -> None:
    """An `__init__.py` has a docstring, imports, and tuples or lists of names such as `__all__`, but no logic."""
    if file == Path("model_artifacts/__init__.py"):
        pytest.skip("its `__getattr__` imports a public name on first use, so that `doit list` imports no runtime")
    body = ast.parse((REPOSITORY / file).read_text()).body
    assert ast.get_docstring(ast.Module(body, [])), "it has no docstring"
    assert [ast.unparse(statement) for statement in body[1:] if not _exports(statement)] == []


def _exports(statement: ast.stmt) -> bool:
    """Return whether a statement is an import, or assigns a tuple or a list of names."""
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.List | ast.Tuple):
        return all(isinstance(item, ast.Constant | ast.Name) for item in statement.value.elts)
    return isinstance(statement, ast.Import | ast.ImportFrom)
