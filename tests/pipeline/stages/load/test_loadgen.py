"""LoadGen itself, on a system of known latency, and its logs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import RetryableError, RunError
from model_artifacts.records import Scenario
from pipeline.stages.load import loadgen
from pipeline.stages.load.loadgen import Ask, loadgen_version, read_answer, require_loadgen, run_loadgen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.stages.load.loadgen import Answered

pytest.importorskip("mlperf_loadgen", reason="the extra `load` is not installed here")


def ask(scenario: Scenario, expected: float = 2000, bound_ms: float | None = None, **changes: float) -> Ask:
    """Return a short run."""
    seconds = {"min_seconds": 0.1, "max_seconds": 5.0} | changes
    return Ask(scenario=scenario, images=16, expected=expected, bound_ms=bound_ms, seed=1, **seconds)


def at_once(tickets: Sequence[int], numbers: Sequence[int], answered: Answered) -> None:
    """Answer queries on the spot."""
    assert len(tickets) == len(numbers)
    assert all(0 <= number < 16 for number in numbers)
    answered(tickets)


@pytest.mark.parametrize(
    ("scenario", "expected", "bound", "samples"),
    [
        (Scenario.SINGLE_STREAM, 1e6, None, 1),
        (Scenario.MULTI_STREAM, 1e6, None, 8),
        (Scenario.SERVER, 2e3, 1000.0, 1),
    ],
    ids=["single", "multi", "server"],
)
def test_queries_are_sent_and_judged(scenario: Scenario, expected: float, bound: float | None, samples: int) -> None:
    """Each scenario has its number of images a query; a system that answers at once is valid."""
    answer = run_loadgen(ask(scenario, expected, bound), at_once)
    assert (answer.valid, answer.why, answer.samples_per_query) == (True, "", samples)
    assert answer.queries >= 100
    assert 0 < answer.p50_ms <= answer.p90_ms <= answer.p99_ms
    assert "Result is : VALID" in answer.summary


def test_offline_sends_all_images_in_one_query() -> None:
    """The number of images follows the expected rate; a run that ends too soon is not valid, and says why."""

    def slowly(tickets: Sequence[int], _numbers: Sequence[int], answered: Answered) -> None:
        time.sleep(0.3)
        answered(tickets)

    answer = run_loadgen(ask(Scenario.OFFLINE, expected=1000), slowly)
    assert (answer.valid, answer.queries) == (True, 1)
    assert answer.samples_per_query >= 100
    assert answer.rate_per_s == pytest.approx(answer.samples_per_query / 0.3, rel=0.5)
    short = run_loadgen(ask(Scenario.OFFLINE, expected=10, min_seconds=1.0), at_once)
    assert (short.valid, short.too_short, short.why) == (False, True, "it was too short")


def test_servers_bound_decides() -> None:
    """A system that takes longer than the bound is not valid, with the bound as the reason."""

    def late(tickets: Sequence[int], _numbers: Sequence[int], answered: Answered) -> None:
        threading.Timer(0.02, answered, (tickets,)).start()

    answer = run_loadgen(ask(Scenario.SERVER, bound_ms=5.0, expected=500, max_seconds=1.0), late)
    assert not answer.valid
    assert "the bound was not kept" in answer.why
    assert answer.p50_ms >= 20
    assert "Result is : INVALID" in answer.summary


def test_system_that_fails_ends_the_run() -> None:
    """An error of the system is raised after the run, whose queries were all answered."""

    def fails(_tickets: Sequence[int], _numbers: Sequence[int], _answered: Answered) -> None:
        raise ValueError("no such batch")

    with pytest.raises(RunError, match=r"failed under load: ValueError: no such batch"):
        run_loadgen(ask(Scenario.SINGLE_STREAM), fails)


def test_audit_file_of_the_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoadGen reads an audit.config where it runs, which could switch its checks off."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 3\n*.*.max_query_count = 3\n")
    assert run_loadgen(ask(Scenario.SINGLE_STREAM), at_once).queries >= 100
    assert [path.name for path in tmp_path.iterdir()] == ["audit.config"]


@pytest.mark.parametrize(
    "detail",
    ["", ':::MLLOG {"key": "result_validity", "value": "VALID"}', ":::MLLOG {"],
    ids=["empty", "without-values", "cut-off"],
)
def test_logs_that_lack_values_are_refused(detail: str) -> None:
    """A verdict without its numbers is no result."""
    with pytest.raises(RunError, match="cannot be read"):
        read_answer(Scenario.SERVER, detail, "")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without LoadGen nothing is run, and the message says what to install."""
    require_loadgen()
    assert loadgen_version()[0].isdecimal()
    monkeypatch.setattr(loadgen, "installed", lambda _: False)
    with pytest.raises(RetryableError, match="the extra `load`"):
        require_loadgen()
