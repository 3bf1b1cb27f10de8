"""Errors become outcomes in the same way for every stage."""

from __future__ import annotations

import pytest

from model_artifacts.errors import (
    ArtifactError,
    BuildError,
    CrashedError,
    KilledError,
    RecordError,
    RetryableError,
    RunError,
    StorageError,
    UnsupportedError,
)
from pipeline.records import Outcome
from pipeline.stages.common.outcomes import Attempt, Ending, attempt, ending_of


def failing(error: Exception) -> Attempt[None]:
    """Return the attempt of work that raises an error, away from any farm."""

    def work() -> None:
        raise error

    return attempt(work, RunError, on_worker=False)


def test_work_that_succeeds_has_its_result() -> None:
    """Work without an error is done, and has no reason."""
    assert attempt(lambda: 7, RunError, on_worker=False) == Attempt(Ending(Outcome.DONE), 7)


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (UnsupportedError("no GPU", fix="buy one"), Ending(Outcome.SKIPPED, "no GPU")),
        (RetryableError("no driver"), Ending(Outcome.SKIPPED, "no driver", retryable=True)),
        (RunError("it fails", got="x"), Ending(Outcome.FAILED, "it fails\n  got:      x")),
        (CrashedError("it died"), Ending(Outcome.FAILED, "it died")),
        (KilledError("it was killed"), Ending(Outcome.FAILED, "it was killed")),
    ],
)
def test_an_error_is_an_ending(error: ArtifactError, ending: Ending) -> None:
    """A host that cannot do the work skips it; work that fails or crashes has failed."""
    assert failing(error) == Attempt(ending)
    assert ending_of(error) == ending


def test_a_skip_keeps_its_remedy_on_request() -> None:
    """The whole message of a skip is its reason where the caller asks for it."""
    error = UnsupportedError("no GPU", fix="buy one")

    assert ending_of(error, full_reason=True).reason == "no GPU\n  fix:      buy one"


@pytest.mark.parametrize("error", [BuildError("x"), RecordError("x"), StorageError("x"), ValueError("x")])
def test_other_errors_pass(error: Exception) -> None:
    """An error that does not concern the variant alone is raised."""
    with pytest.raises(type(error)):
        failing(error)


def test_a_killed_worker_says_nothing_about_the_variant() -> None:
    """On a worker of a farm a killed process is an error, so that another machine tries; a crash is a failure."""

    def end(error: Exception) -> None:
        raise error

    with pytest.raises(KilledError):
        attempt(lambda: end(KilledError("killed")), RunError, on_worker=True)
    assert attempt(lambda: end(CrashedError("died")), RunError, on_worker=True).ending.outcome is Outcome.FAILED
