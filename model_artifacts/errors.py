"""The exception tree: everything this package raises on purpose.

Third-party errors are translated into these at one boundary each (`raise … from exc`), so that the command line can
turn every expected failure into one message a person can act on.
"""

from __future__ import annotations

import errno
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class ArtifactError(Exception):
    """Something failed, and `str()` of it says what, where, what was expected, what was got and what to do.

    Attributes:
        exit_code: the process's exit status: 2 for usage and configuration, 1 for work that failed.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", got: str = "", fix: str = "") -> None:
        """Compose the message from its parts; empty parts are left out."""
        self.what = what
        self.got = got
        details = (("where", where), ("expected", expected), ("got", got), ("fix", fix))
        super().__init__("\n".join([what, *(f"  {label + ':':<10}{text}" for label, text in details if text)]))

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes as what it says."""
        return _restore, (type(self), str(self), self.what, self.got)


def _restore(kind: type[ArtifactError], text: str, what: str, got: str) -> ArtifactError:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.what, error.got = what, got
    return error


class UsageError(ArtifactError):
    """The command line asked for something that does not exist."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration file is wrong; all of its problems at once."""

    def __init__(self, file: Path, problems: Sequence[str]) -> None:
        """List the problems, each of which begins with its `file:line:column`."""
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{file} has {count}", *(f"  {problem}" for problem in problems)]))


class RecordError(ArtifactError):
    """A record on disk is missing, damaged or of another schema version."""


class MissingRecordError(RecordError):
    """There is no such record: its step has not run."""


class NewerRecordError(ArtifactError):
    """A record was written by a newer version of this package; this one neither reads nor replaces it."""


class SourceError(ArtifactError):
    """The model's factory or its weights cannot be had."""


class DataError(ArtifactError):
    """The images cannot be read."""


class ExportError(ArtifactError):
    """The model cannot be exported to ONNX."""


class QuantizeError(ArtifactError):
    """The graph cannot be quantised."""


class BuildError(ArtifactError):
    """An engine cannot be built."""


class RunError(ArtifactError):
    """An artifact cannot be loaded or run."""


class CrashedError(ArtifactError):
    """A process that did risky work died, hung, or raised what nobody expected."""


class KilledError(CrashedError):
    """Somebody else has ended such a process: the kernel for want of memory, or whoever stops a machine."""

    exit_code = 128 + signal.SIGKILL


class UnsupportedError(ArtifactError):
    """This host, flavour or graph cannot do it, whatever is tried: the variant is skipped, not failed."""


class RetryableError(UnsupportedError):
    """This host cannot do it as it is: skipped like what never can be, and tried again by the next run."""


def is_retryable(exc: UnsupportedError) -> bool:
    """Return whether what was missing may be there the next time, without a key telling of it."""
    return isinstance(exc, RetryableError)


class ResolveError(ArtifactError):
    """No artifact of a manifest suits a host and what its caller wishes."""


class ReleaseError(ArtifactError):
    """A release cannot be made, or is not what it says it is."""


class TritonError(ArtifactError):
    """A model repository for Triton Inference Server cannot be made."""


class StoreError(ArtifactError):
    """A store of releases cannot be reached, or what it holds is not what it should be."""


class FarmError(ArtifactError):
    """The farm cannot be reached, has no worker that a step can run on, or one did not do what it should."""


class UnknownFarmError(FarmError):
    """Nobody has looked at the farm yet, or not at what the configuration names of it now."""


class LostWorkerError(FarmError):
    """A worker, or its machine, went away while it ran a step; another may run it."""


class StorageError(ArtifactError):
    """A file cannot be written or read: permissions, a full disk, a missing folder."""


def one_line(exc: BaseException) -> str:
    """Return an exception's type and the first line of what it says, for a message's `got`."""
    lines = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0]}"[:300] if lines else type(exc).__name__


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Translate `OSError` raised inside into a `StorageError` that says what was being done.

    Args:
        doing: what fails, as a phrase: "writing artifacts/x.json".

    Raises:
        StorageError: for any `OSError`.
    """
    fixes = {
        errno.ENOSPC: "free some disk space, then run the command again; nothing half-written was left",
        errno.EDQUOT: "free some of your quota, then run the command again; nothing half-written was left",
        errno.EACCES: "make the folder writable for this user, or set `artifacts:` in pipeline.yaml to one that is",
        errno.EPERM: "make the folder writable for this user, or set `artifacts:` in pipeline.yaml to one that is",
        errno.EROFS: "remount it writable, or work in a copy of the checkout elsewhere",
    }
    try:
        yield
    except OSError as exc:
        raise StorageError(
            f"{doing} failed: {exc.strerror or exc}",
            where=str(exc.filename or ""),
            fix=fixes.get(exc.errno or 0, ""),
        ) from exc
