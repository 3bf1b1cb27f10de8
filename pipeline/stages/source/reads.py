"""The files that a factory reads while it makes its network, such as weights that it loads by itself.

Python reports every file that it opens to audit hooks (PEP 578), and so the modules that it imports by any name.
safetensors and TorchScript open theirs without Python, so their readers are watched as well. Other libraries of that
kind, such as h5py, stay unseen, and so do compiled extension modules.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.util import source_from_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import safetensors
import torch

import model_artifacts
from model_artifacts.errors import SourceError
from model_artifacts.host.factory_code import files_of
from model_artifacts.host.hashes import sha256_of
from pipeline.records import ReadFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_COMPILED = {".pyc", ".so"}
_OURS = (Path(model_artifacts.__file__).parent, Path(__file__).parents[2])
"""The folders of this project's packages, whose versions stand in keys."""
_SYSTEM = ("/etc", "/proc", "/sys", "/dev", "/run", "/usr", "/lib")
_WRITES = os.O_WRONLY | os.O_TRUNC


class Reads:
    """The files that were read so far, each with its looks at that time."""

    def __init__(self) -> None:
        """Begin with none."""
        self._looks: dict[Path, tuple[int, int]] = {}
        self._written: set[Path] = set()
        files = [getattr(module, "__dict__", {}).get("__file__") for module in tuple(sys.modules.values())]
        self._loaded = {Path(file).absolute() for file in files if isinstance(file, str)}
        """The code that was there before: a traceback reads its lines."""

    def add(self, path: object, *, writes: bool = False) -> None:
        """Note a file that is being opened; what is no file yet, or no path at all, is left out."""
        if isinstance(path, (str, bytes, os.PathLike)):
            with suppress(OSError, ValueError):
                file = _source_of(Path(os.fsdecode(path)).absolute())
                if writes:
                    self._written.add(file)
                self._looks.setdefault(file, _look(file))

    def records(self, factory: str, ignored: tuple[Path, ...]) -> tuple[ReadFile, ...]:
        """Return the files that the network may depend on, in the order of their names.

        The system's files and those of installed packages are left out, and so is what the factory wrote. Code is left
        out where the key holds it already: the factory's file, and the modules that it imports by their names.

        Args:
            factory: the factory, `module:function`.
            ignored: files and folders of the pipeline itself.

        Raises:
            SourceError: a file has changed since it was read.
        """
        folders: tuple[str | Path, ...] = (*_SYSTEM, sys.prefix, sys.base_prefix, *_OURS, *ignored)
        places = [Path(folder).absolute() for folder in folders]
        known = {path.absolute() for path in files_of(factory)} | self._loaded
        files = [
            file
            for file in sorted(self._looks.keys() - self._written)
            if file.suffix not in _COMPILED
            and file not in known
            and not {"site-packages", "dist-packages"} & set(file.parts)
            and not any(file.is_relative_to(place) for place in places)
            and file.is_file()
        ]
        return tuple(self._record(file) for file in files)

    def _record(self, file: Path) -> ReadFile:
        if _look(file) != self._looks[file]:
            raise SourceError(
                "a file changed while the model's factory read it",
                where=str(file),
                fix="run it again when it is written",
            )
        here = Path.cwd()
        path = file.relative_to(here) if file.is_relative_to(here) else file
        return ReadFile(path=path.as_posix(), sha256=sha256_of(file))


def _source_of(file: Path) -> Path:
    """Return the module behind a file of compiled code; any other file is its own."""
    if file.suffix == ".pyc":
        with suppress(ValueError, NotImplementedError):  # no name of Python's own
            source = Path(source_from_cache(str(file)))
            return source if source.is_file() else file
    return file


def _look(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


_listening: list[Reads] = []
"""The blocks that note what is read at present; an audit hook cannot be removed."""


@contextmanager
def noted_reads() -> Iterator[Reads]:
    """Note the files that are opened for reading inside the block."""
    _hear()
    reads = Reads()
    with ExitStack() as stack:
        for name, reader in (("safe_open", safetensors.safe_open), ("load", torch.jit.load)):
            for module in [item for item in sys.modules.values() if getattr(item, "__dict__", {}).get(name) is reader]:
                stack.enter_context(patch.object(module, name, _noting(reader)))
        _listening.append(reads)
        try:
            yield reads
        finally:
            _listening.remove(reads)


def _noting(reader: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reader that notes the file, its first argument, before it reads it."""

    def read(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - another library's signature
        for path in (*arguments[:1], named.get("filename"), named.get("f")):
            _note(path)
        return reader(*arguments, **named)

    return read


def _note(path: object, *, writes: bool = False) -> None:
    for reads in tuple(_listening):
        reads.add(path, writes=writes)


@cache
def _hear() -> None:
    sys.addaudithook(_opened)


def _opened(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event == "open":
        path, _, flags = arguments
        _note(path, writes=isinstance(flags, int) and bool(flags & _WRITES))
