"""The tests of everything, or of some files: `doit check FILE…` starts `python -m tests.support.check FILE…`.

A module's own tests are those of the file that mirrors it, and a test file's are its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def own_tests(file: Path) -> Path | None:
    """Return the test file of a file, both relative to the repository; None if it has none."""
    is_test = file.parts[:1] == ("tests",) and file.name.startswith("test_")
    mirror = file if is_test else Path("tests", file.parent, f"test_{file.stem.strip('_')}.py")
    return mirror if file.suffix == ".py" and (REPOSITORY / mirror).is_file() else None


def nearest_folder(file: Path) -> Path:
    """Return the folder of tests that mirrors a file's folder, or the next one above that exists."""
    folder = Path("tests", file.parent)
    while not (REPOSITORY / folder).is_dir():
        folder = folder.parent
    return folder


def main(arguments: list[str]) -> int:
    """Print which tests belong to the files, and run them; without files, run everything with coverage.

    Args:
        arguments: files, relative to the repository or absolute, and options for pytest.

    Returns:
        pytest's exit status, or 1 if no file has tests of its own.
    """
    options = [argument for argument in arguments if argument.startswith("-")]
    names = [argument for argument in arguments if argument not in options]
    chosen = {name: own_tests(_relative(name)) for name in names}
    for name, tests in chosen.items():
        near = nearest_folder(_relative(name))
        said = tests or f"has no test file of its own; `pytest {near}` runs those nearby"
        print(f"{name}: {said}", flush=True)  # noqa: T201 - what it prints is its result
    what = [*dict.fromkeys(str(tests) for tests in chosen.values() if tests)]
    if names and not what:
        return 1
    command = [sys.executable, "-m", "pytest", *(what or ["--cov", "-n", "auto"]), *options]
    return subprocess.run(command, check=False, cwd=REPOSITORY).returncode  # noqa: S603 - this project's tests


def _relative(name: str) -> Path:
    """Return a file's path in the repository; of one elsewhere, its name alone."""
    file = (REPOSITORY / name).resolve()
    return file.relative_to(REPOSITORY) if file.is_relative_to(REPOSITORY) else Path(file.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
