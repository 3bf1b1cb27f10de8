"""The exceptions that both packages raise on purpose.

Each boundary to a third-party library translates the library's errors into these (`raise … from exc`). The command
line can then show every expected failure as one message with a remedy.
"""

from __future__ import annotations

import errno
import re
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path


class ArtifactError(Exception):
    """An expected failure; `str()` is its message for people.

    The message names the failure and, if known, the place, the expected and the actual value, and the fix.

    Attributes:
        exit_code: exit status of the process: 2 for usage and configuration errors, 1 for failed work.
        what: the failure alone, without the details.
        got: the actual value or the library's own message; empty if unknown.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", got: str = "", fix: str = "") -> None:
        """Compose the message from its parts; empty parts are left out.

        Args:
            what: the failure, as a short sentence.
            where: the file, folder or machine that it concerns.
            expected: the value that would have been right.
            got: the actual value, or the library's own message.
            fix: the remedy for the user.
        """
        self.what = what
        self.got = got
        details = (("where", where), ("expected", expected), ("got", got), ("fix", fix))
        super().__init__("\n".join([what, *(f"  {label + ':':<10}{text}" for label, text in details if text)]))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the finished message, which processes exchange."""
        return _restore, (type(self), str(self), self.what, self.got)


def _restore(kind: type[ArtifactError], text: str, what: str, got: str) -> ArtifactError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.what, error.got = what, got
    return error


class UsageError(ArtifactError):
    """A request for something that does not exist."""

    exit_code = 2


class ConfigError(UsageError):
    """All problems of a configuration file.

    Attributes:
        problems: one line per problem, each of which begins with its `file:line:column`.
    """

    def __init__(self, file: Path, problems: Sequence[str]) -> None:
        """Compose one message from all problems.

        Args:
            file: the configuration file.
            problems: one line per problem, each of which begins with its `file:line:column`.
        """
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{file} has {count}", *(f"  {problem}" for problem in problems)]))


class RecordError(ArtifactError):
    """A record on disk that is missing, damaged or of an older schema version."""


class MissingRecordError(RecordError):
    """A missing record: its step has not run."""


class NewerRecordError(ArtifactError):
    """A record from a newer version of this package; this version neither reads nor replaces it."""


class SourceError(ArtifactError):
    """A model factory or weights that cannot be loaded."""


class DataError(ArtifactError):
    """Images that cannot be read or used."""


class UnreadableError(DataError):
    """An image file that is missing, damaged or of no known format."""


class ExportError(ArtifactError):
    """A model that cannot be exported to ONNX."""


class QuantizeError(ArtifactError):
    """A graph that cannot be quantised."""


class BuildError(ArtifactError):
    """An engine or a module that cannot be built."""


class RunError(ArtifactError):
    """An artifact that cannot be loaded or run."""


class BusyError(RunError):
    """A call of a loaded model that found no free execution context in the time that it may wait."""


class KernelsError(RunError):
    """A runtime cache that the library refuses: of another GPU, driver or version, or damaged."""


class CrashedError(ArtifactError):
    """A process for risky work that died, hung or raised an unexpected exception."""


class OverdueError(CrashedError):
    """A process for risky work that had no result within its time limit."""


class KilledError(CrashedError):
    """A process for risky work that was killed from outside: for lack of memory, or with its machine."""

    exit_code = 128 + signal.SIGKILL
    """137, which shells report for a process that SIGKILL ended."""


class UnsupportedError(ArtifactError):
    """Work that this host, flavour or graph can never do: the variant is skipped, not failed."""


class RetryableError(UnsupportedError):
    """Work that this host cannot do at present: the variant is skipped, and the next run tries it again."""


def is_retryable(exc: UnsupportedError) -> bool:
    """Return True if the next run may succeed although no staleness key has changed."""
    return isinstance(exc, RetryableError)


class ResolveError(ArtifactError):
    """A manifest without an artifact for the host and the caller's requirements."""


class ReleaseError(ArtifactError):
    """A release that cannot be made, or that fails its verification."""


class TritonError(ArtifactError):
    """Model repositories for Triton Inference Server that cannot be made."""


class StoreError(ArtifactError):
    """A store of releases that is unreachable, or that holds damaged or unexpected files."""


class FarmError(ArtifactError):
    """An unreachable farm, a farm without a worker for a step, or a worker that failed."""


class UnknownFarmError(FarmError):
    """A farm without a valid record, or with a record that lacks workers of the configuration."""


class LostWorkerError(FarmError):
    """A worker or a machine that was lost during a step; another worker may run the step."""


class MemoryShortageError(ArtifactError):
    """Work that needs more memory than the machine has left."""


class StorageError(ArtifactError):
    """A file that cannot be written or read: permissions, a full disk, a missing folder."""


def shortened(text: str, limit: int = 300) -> str:
    """Return a text of at most `limit` characters. A longer one loses its middle.

    A library's message begins with its kind and ends with its reason; paths and signatures stand between them.
    """
    if len(text) <= limit:
        return text
    gap = " … "
    head = (limit - len(gap)) // 3
    return text[:head] + gap + text[head + len(gap) - limit :]


def listed(names: Sequence[str], *, most: int = 5, separator: str = ", ") -> str:
    """Return the first names of a list as text, with the number of all others.

    Args:
        names: the names.
        most: the number of names to show.
        separator: the text between two names.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that a mistyped word most likely stands for, whatever its case; None if none is near.

    Args:
        word: the word as it was typed.
        known: the names to choose from.
    """
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

    names = {name.casefold(): name for name in known}
    found = get_close_matches(word.casefold(), names, n=1)
    return names[found[0]] if found else None


def one_line(exc: BaseException) -> str:
    """Return an exception's type and the first line of its message, shortened to 300 characters."""
    lines = str(exc).strip().splitlines()
    return shortened(f"{type(exc).__name__}: {lines[0]}") if lines else type(exc).__name__


_NO_MEMORY = re.compile(r"(?i)can(?:'|no)t allocate memory|not enough memory|bad_alloc|failed to allocate memory")
"""Messages of torch's allocator, the operating system, C++ and ONNX Runtime."""


def out_of_memory(exc: BaseException) -> MemoryShortageError | None:
    """Return the error to raise instead, if the machine ran out of memory. None for any other exception."""
    if isinstance(exc, ArtifactError) or not (isinstance(exc, MemoryError) or _NO_MEMORY.search(str(exc))):
        return None
    return MemoryShortageError(
        "this machine ran out of memory",
        got=one_line(exc),
        fix="end other programs, raise the memory limit of the container, or run the step on a larger machine",
    )


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Translate an `OSError` of the block into a `StorageError` that names the action.

    Args:
        doing: the action as a phrase, such as "writing artifacts/x.json".

    Raises:
        StorageError: the block raised an `OSError`.
        MemoryShortageError: it was for lack of memory.
    """
    fixes = {
        errno.ENOSPC: "free some disk space, then run the command again",
        errno.EDQUOT: "free some of your quota, then run the command again",
        errno.EACCES: "make the folder writable for this user, or set `artifacts:` in pipeline.yaml to one that is",
        errno.EPERM: "make the folder writable for this user, or set `artifacts:` in pipeline.yaml to one that is",
        errno.EROFS: "remount it writable, or work in a copy of the checkout elsewhere",
    }
    try:
        yield
    except OSError as exc:
        if memory := out_of_memory(exc):
            raise memory from exc
        raise StorageError(
            f"{doing} failed: {exc.strerror or exc}",
            where=str(exc.filename or ""),
            fix=fixes.get(exc.errno or 0, ""),
        ) from exc
