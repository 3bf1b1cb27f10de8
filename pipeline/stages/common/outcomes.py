"""Exception → outcome, reason and retryability of a stage's record, in one place for all stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from model_artifacts.errors import ArtifactError, CrashedError, KilledError, UnsupportedError, is_retryable
from pipeline.records import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.records import Artifact

T = TypeVar("T")


class Ending(NamedTuple):
    """The end of a piece of work, as records hold it."""

    outcome: Outcome
    reason: str = ""
    retryable: bool = False


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """A piece of work that has ended."""

    ending: Ending
    result: T | None = None
    """Present if the work succeeded."""


def unbuilt(artifact: Artifact) -> str:
    """Return the reason why a variant has no artifact to run; empty if it was built."""
    return "" if artifact.outcome is Outcome.DONE else f"not built: {artifact.reason.splitlines()[0]}"


def ending_of(error: ArtifactError, *, full_reason: bool = False) -> Ending:
    """Return the ending that an error stands for: skipped where this host cannot do the work, else failed. Pure.

    Args:
        error: the error.
        full_reason: keep the details and the remedy of a skip, too, not its headline alone.
    """
    if isinstance(error, UnsupportedError):
        return Ending(Outcome.SKIPPED, str(error) if full_reason else error.what, is_retryable(error))
    return Ending(Outcome.FAILED, str(error))


def attempt(
    work: Callable[[], T], failure: type[ArtifactError], *, on_worker: bool, full_reason: bool = False
) -> Attempt[T]:
    """Do a piece of work, and turn the errors that concern its variant alone into an ending.

    Args:
        work: the work.
        failure: the error that the work raises where it fails. Crashes of its process count as failures, too.
        on_worker: true on a worker of a farm.
        full_reason: as `ending_of` takes it.

    Raises:
        KilledError: on a worker, something outside has ended the work's process. That says nothing about the variant,
            and the farm tries another machine.
        ArtifactError: any other error than those above.
    """
    try:
        return Attempt(Ending(Outcome.DONE), work())
    except (UnsupportedError, CrashedError, failure) as exc:
        if isinstance(exc, KilledError) and on_worker:
            raise
        return Attempt(ending_of(exc, full_reason=full_reason))
