"""Messages of failures, and translations of the operating system's errors."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from model_artifacts.errors import (
    ArtifactError,
    BuildError,
    ConfigError,
    MemoryShortageError,
    StorageError,
    UnsupportedError,
    UsageError,
    one_line,
    out_of_memory,
    storage_errors,
)


def test_message_lists_what_where_expected_got_and_fix_in_this_order() -> None:
    """A message has one line a part, the labels in one column."""
    error = ArtifactError("it broke", where="here", expected="a", got="b", fix="do c")
    assert str(error) == "it broke\n  where:    here\n  expected: a\n  got:      b\n  fix:      do c"


def test_message_leaves_out_empty_parts() -> None:
    """A message without details is a single line."""
    assert str(ArtifactError("it broke")) == "it broke"


def test_error_keeps_what_and_got_for_reports() -> None:
    """The parts that a report repeats can be read from the error."""
    error = ArtifactError("it broke", got="b")
    assert (error.what, error.got) == ("it broke", "b")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_lack_of_memory_has_one_message(error: Exception) -> None:
    """Python's, torch's, the system's and C++'s lack of memory become the same error."""
    assert "this machine ran out of memory" in str(out_of_memory(error))


@pytest.mark.parametrize("error", [ValueError("bad"), BuildError("the GPU ran out of memory"), RuntimeError()])
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    """Other exceptions are left as they are."""
    assert out_of_memory(error) is None


def test_lack_of_memory_is_no_storage_error() -> None:
    """A file that cannot be read for lack of memory has nothing wrong with its storage."""
    with pytest.raises(MemoryShortageError), storage_errors("reading"):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize("kind", [BuildError, UnsupportedError, UsageError])
def test_error_survives_a_journey_between_processes(kind: type[ArtifactError]) -> None:
    """Type, message, headline and got survive a pipe between processes."""
    error = kind("it broke", where="here", expected="a", got="b", fix="do c")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(again), str(again), again.what, again.got) == (kind, str(error), "it broke", "b")


def test_config_error_survives_a_journey_between_processes() -> None:
    """An error whose constructor takes other arguments keeps its message, too."""
    error = ConfigError(Path("c.yaml"), ["c.yaml:1:1: bad"])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (type(again), str(again), again.exit_code) == (ConfigError, str(error), 2)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\nfirst\nsecond"), "ValueError: first"),
        (ValueError(), "ValueError"),
        (ValueError("x" * 288), "ValueError: " + "x" * 288),
        (ValueError("a" * 500 + "b" * 500), "ValueError: " + "a" * 87 + " … " + "b" * 198),
    ],
)
def test_one_line_is_type_and_first_line(error: Exception, line: str) -> None:
    """The text of a library's error is its type and its first line, without the middle of a long one."""
    assert one_line(error) == line


def test_failed_work_exits_with_1() -> None:
    """Work that failed has the exit status 1."""
    assert ArtifactError("x").exit_code == StorageError("x").exit_code == 1


def test_wrong_usage_exits_with_2() -> None:
    """A wrong command line and a wrong configuration have the exit status 2."""
    assert UsageError("x").exit_code == ConfigError(Path("c.yaml"), ["p"]).exit_code == 2


def test_config_error_counts_a_single_problem() -> None:
    """One problem is not "1 problems"."""
    assert str(ConfigError(Path("c.yaml"), ["c.yaml:1:1: bad"])) == "c.yaml has 1 problem\n  c.yaml:1:1: bad"


def test_config_error_lists_every_problem() -> None:
    """Several problems are counted, and each has a line of its own."""
    error = ConfigError(Path("c.yaml"), ["c.yaml:1:1: bad", "c.yaml:2:1: worse"])
    assert str(error) == "c.yaml has 2 problems\n  c.yaml:1:1: bad\n  c.yaml:2:1: worse"
    assert error.problems == ("c.yaml:1:1: bad", "c.yaml:2:1: worse")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EACCES, "make the folder writable"),
        (errno.EPERM, "make the folder writable"),
        (errno.EROFS, "remount it writable, or work in a copy of the checkout elsewhere"),
    ],
)
def test_storage_errors_say_what_to_do(number: int, fix: str) -> None:
    """Each failure of the disk that a person can mend has a fix."""
    with pytest.raises(StorageError) as caught, storage_errors("writing x"):
        raise OSError(number, os.strerror(number), "/data/x")
    lines = str(caught.value).splitlines()
    assert lines[:2] == [f"writing x failed: {os.strerror(number)}", "  where:    /data/x"]
    assert lines[2].startswith(f"  fix:      {fix}")


def test_storage_errors_keep_an_error_without_a_number() -> None:
    """An `OSError` that carries only a text is told by that text."""
    with pytest.raises(StorageError) as caught, storage_errors("reading x"):
        raise OSError("the tape is torn")
    assert str(caught.value) == "reading x failed: the tape is torn"


def test_storage_errors_keep_the_cause() -> None:
    """The operating system's own error stays attached."""
    with pytest.raises(StorageError) as caught, storage_errors("reading x"):
        Path("/nowhere/at/all").read_bytes()
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_storage_errors_let_other_errors_through() -> None:
    """Only the operating system's errors are translated."""
    with pytest.raises(KeyError), storage_errors("reading x"):
        raise KeyError("x")
