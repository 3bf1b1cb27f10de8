"""Version of the code of a model's factory, for staleness keys and recipes."""

from __future__ import annotations

import sys
from pathlib import Path

from model_artifacts.host.environment import version
from model_artifacts.host.hashes import sha256_of


def code_of(factory: str) -> str:
    """Return the SHA-256 of the file that defines a factory, or the version of the factory's package.

    Args:
        factory: the factory, `module:function`.

    Raises:
        StorageError: the file cannot be read.
    """
    module = factory.split(":", maxsplit=1)[0]
    if here := _file_of(module, Path()):
        return sha256_of(here)
    package = version(module.split(".")[0])
    elsewhere = (_file_of(module, Path(folder)) for folder in sys.path) if package == "absent" else ()
    return next((sha256_of(file) for file in elsewhere if file), package)


def _file_of(module: str, folder: Path) -> Path | None:
    name = folder.joinpath(*module.split("."))
    return next((file for file in (name.with_suffix(".py"), name / "__init__.py") if file.is_file()), None)
