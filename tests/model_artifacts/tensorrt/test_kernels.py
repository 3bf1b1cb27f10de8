"""Kernels that a machine keeps: whole, its own, and never a reason to fail."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
from typing import TYPE_CHECKING

import pytest

from model_artifacts.tensorrt.kernels import KeptKernels, kept_kernels, user_folder
from tests.support.hosts import H100

if TYPE_CHECKING:
    from pathlib import Path

ENGINE, OTHER = "1" * 64, "2" * 64


@pytest.fixture
def kept(tmp_path: Path) -> KeptKernels:
    """The place of an engine's kernels, in a folder that is not there yet."""
    return kept_kernels(tmp_path / "cache", ENGINE, "1.4", H100, "580.1")


def test_kernels_are_kept_and_read(kept: KeptKernels) -> None:
    """Nothing is there at first; what was kept is read, also after more kernels replaced it."""
    assert kept.read() is None
    kept.keep(b"two kernels")
    assert kept.read() == b"two kernels"
    kept.keep(b"three more kernels")
    kept.keep(b"one")
    assert kept.read() == b"three more kernels"
    kept.drop()
    assert kept.read() is None


def test_each_engine_gpu_driver_and_version_has_its_own(tmp_path: Path) -> None:
    """None of the four loads the kernels of another one; two GPUs of one type share theirs."""
    other = H100.model_copy(update={"name": "NVIDIA A100", "compute_capability": 80})
    places = {
        kept_kernels(tmp_path, ENGINE, "1.4", H100, "580.1"),
        kept_kernels(tmp_path, ENGINE, "1.4", H100.model_copy(update={"index": 3, "uuid": "GPU-3"}), "580.1"),
        kept_kernels(tmp_path, OTHER, "1.4", H100, "580.1"),
        kept_kernels(tmp_path, ENGINE, "1.6", H100, "580.1"),
        kept_kernels(tmp_path, ENGINE, "1.4", other, "580.1"),
        kept_kernels(tmp_path, ENGINE, "1.4", H100, "590.1"),
    }
    assert len(places) == 5


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 80], ids=["empty", "short", "other bytes"])
def test_damaged_kernels_are_set_aside_and_replaced(
    kept: KeptKernels, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    """A warning names the file; the kernels that are compiled instead are kept."""
    kept.keep(b"many kernels of an engine")
    kept.path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert kept.read() is None
    assert f"{kept.path} is damaged" in caplog.text
    kept.keep(b"new")
    assert kept.read() == b"new"


def test_kernels_of_another_user_are_not_loaded(
    kept: KeptKernels, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are code that runs on the GPU."""
    kept.keep(b"kernels")
    if os.geteuid() == 0:
        os.chown(kept.path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert kept.read() is None
    assert "belongs to another user" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The process goes on without kept kernels."""
    (tmp_path / "file").write_text("no folder")
    kept = kept_kernels(tmp_path / "file", ENGINE, "1.4", H100, "580.1")
    kept.keep(b"kernels")
    assert "cannot be kept" in caplog.text
    assert kept.read() is None
    assert "cannot be read" in caplog.text


def test_a_file_that_another_process_writes_is_left_to_it(kept: KeptKernels) -> None:
    """Nobody waits for another process's write, and nothing is written twice."""
    kept.path.parent.mkdir()
    with kept.path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept.keep(b"kernels")
        assert kept.read() is None
    kept.keep(b"kernels")
    assert kept.read() == b"kernels"


def _keep(kept: KeptKernels, number: int) -> None:
    for size in range(1, 40):
        kept.keep(bytes([number]) * 1000 * size)
        found = kept.read()
        assert found is None or len({*found}) == 1


def test_processes_that_write_at_once_leave_one_whole_file(kept: KeptKernels) -> None:
    """Every read, in between and in the end, finds the kernels of one process and no mixture."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_keep, args=(kept, number)) for number in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len({*(kept.read() or b"")}) == 1
    assert [path.suffix for path in sorted(kept.path.parent.iterdir())] == [".kernels", ".lock"]


def test_the_users_folder_follows_the_rules_of_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`XDG_CACHE_HOME` moves it; without that it lies below the home folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "model-artifacts" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_folder() == tmp_path / "home" / ".cache" / "model-artifacts" / "kernels"


def test_a_pipe_in_place_of_the_file_does_not_block(kept: KeptKernels, caplog: pytest.LogCaptureFixture) -> None:
    """Others may write to a shared folder that `kernel_cache` names."""
    kept.path.parent.mkdir()
    os.mkfifo(kept.path)
    assert kept.read() is None
    assert "it is no plain file" in caplog.text


def test_a_user_without_a_home_folder_keeps_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container that runs under a number alone: `load` goes on, and says so."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert user_folder() is None
    assert "no kernels are kept" in caplog.text
