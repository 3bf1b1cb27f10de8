"""Version of the code of a model's factory, for staleness keys and recipes."""

from __future__ import annotations

import ast
import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from model_artifacts.host.hashes import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_OURS = {"model_artifacts", "pipeline"}
"""Packages whose versions stand in keys, although a checkout has them in the current folder."""


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


def imported_code_of(factory: str) -> str | None:
    """Return the SHA-256 of the modules in the current folder that a factory's file imports, directly or not.

    Modules that are imported by a computed name are not seen; `source` notes those that it sees while it runs.

    Args:
        factory: the factory, `module:function`.

    Returns:
        the digest of all names and files; None if the factory's file imports none, or lies elsewhere.

    Raises:
        StorageError: a file cannot be read.
    """
    first = factory.split(":", maxsplit=1)[0]
    found = _modules_of(first)
    digests = [f"{name}\0{sha256_of(file)}\0" for name, file in sorted(found.items()) if name != first]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else None


def files_of(factory: str) -> tuple[Path, ...]:
    """Return the factory's file and those of the modules in the current folder that it imports, directly or not.

    Args:
        factory: the factory, `module:function`.

    Raises:
        StorageError: a file cannot be read.
    """
    first = factory.split(":", maxsplit=1)[0]
    elsewhere = [file for folder in sys.path if (file := _file_of(first, Path(folder)))]
    return (*_modules_of(first).values(), *elsewhere[:1])


def _modules_of(first: str) -> dict[str, Path]:
    """Return a module of the current folder and those that it imports by their names, with their files."""
    found: dict[str, Path] = {}
    ahead = [first]
    while ahead:
        name = ahead.pop()
        file = None if name in found or name.split(".")[0] in _OURS else _file_of(name, Path())
        if file:
            found[name] = file
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            ahead += _imports(file, package, sha256_of(file))
    return found


@cache
def _imports(file: Path, package: str, _digest: str) -> tuple[str, ...]:
    """Return the dotted names that a module may import, and the packages around it; none for a file of other syntax."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):
        return ()
    names = {package} | {name for node in nodes for name in _names(node, package)}
    return tuple({".".join(name.split(".")[:end]) for name in names if name for end in range(1, name.count(".") + 2)})


def _names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _file_of(module: str, folder: Path) -> Path | None:
    name = folder.joinpath(*module.split("."))
    return next((file for file in (name.with_suffix(".py"), name / "__init__.py") if file.is_file()), None)
