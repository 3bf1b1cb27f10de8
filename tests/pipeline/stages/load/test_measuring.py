"""Results of a system of known speed: which settings win, and what is said of those without a result."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.records import BatchRange, Scenario
from pipeline.config.benchmark import LoadConfig
from pipeline.stages.load.measuring import Facts, Measured, measure

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("mlperf_loadgen", reason="the extra `load` is not installed here")

IMAGES = np.zeros((16, 1), np.float32)


def config(*scenarios: Scenario, **changes: Any) -> LoadConfig:
    """Return settings of short runs."""
    short = {"min_duration_seconds": 0.1, "confirmation_seconds": 0.2, "max_duration_seconds": 4.0}
    return LoadConfig(scenarios=scenarios, **short | changes)


def taking(milliseconds: float) -> Callable[[Any], Any]:
    """Return a network that takes as long for a batch of any size."""

    def run(batch: Any) -> Any:
        time.sleep(milliseconds / 1e3)
        return batch

    return run


def measured(settings: LoadConfig, *, took: float = 2.0, joins: bool = True, **facts: Any) -> Measured:
    """Return the results of such a network with two runners."""
    known = Facts(BatchRange(min=1, opt=4, max=4), joins=joins, on_gpu=False, timed=(1,))._replace(**facts)
    return measure([taking(took)] * 2, IMAGES, len(IMAGES), known, settings)


def test_settings_that_serve_most_win_offline() -> None:
    """A network whose batches cost as much as single images serves most with all contexts and the largest batch."""
    found = measured(config(Scenario.OFFLINE, contexts=(1, 2), min_duration_seconds=0.3), took=5.0)
    (result,) = found.results
    assert (result.scenario, result.settings.contexts, result.settings.batch) == (Scenario.OFFLINE, 2, 4)
    assert 0 < result.rate_per_s < 2 * 4 / 5e-3
    assert [run.valid for run in found.runs if run.settings == result.settings][-1]
    assert len(found.summaries.split("MLPerf Results Summary")) == len(found.runs) + 1


def test_server_keeps_its_bound_by_joined_batches() -> None:
    """The rate is within the bound by LoadGen's verdict, confirmed by another run, and more than one context gives.

    A busy machine delays answers by seconds, and its runs take longer: the bound and the limit are far above that, and
    a full batch serves sixteen times as much as single images.
    """
    bound = 60_000
    settings = config(Scenario.SERVER, contexts=(1,), p99_ms=(bound,), max_delay_ms=(0,), max_duration_seconds=600.0)
    found = measured(settings, profile=BatchRange(min=1, opt=16, max=16))
    (result,) = found.results
    assert (result.p99_bound_ms, result.settings.batch) == (bound, 16)
    singles = [run for run in found.runs if run.scenario is Scenario.OFFLINE and run.settings.batch == 1]
    assert result.rate_per_s > max(run.rate_per_s for run in singles)
    assert result.p99_ms <= bound
    assert found.runs[-1].valid
    assert (found.runs[-1].p99_ms, found.runs[-1].rate_per_s) == (result.p99_ms, result.rate_per_s)


def test_bound_below_one_image_is_not_searched() -> None:
    """A bound that a single image breaks has a note in place of a result, and costs no run."""
    found = measured(config(Scenario.SERVER, p99_ms=(0.5,)))
    assert (found.results, found.runs) == ((), ())
    assert found.notes[0].startswith("p99 ≤ 0.5 ms: one image alone takes ")


def test_rows_that_may_depend_on_each_other_are_not_joined() -> None:
    """A server of such an artifact runs single images, as the loader does."""
    found = measured(config(Scenario.SERVER, contexts=(1,), p99_ms=(1000,), max_delay_ms=(0,)), took=0.5, joins=False)
    assert {run.settings.batch for run in found.runs} == {1}


@pytest.mark.parametrize(
    ("least", "scenario", "note"),
    [
        (4, Scenario.SINGLE_STREAM, "single_stream: it takes no single image"),
        (4, Scenario.SERVER, "server: it takes no single image"),
        (16, Scenario.MULTI_STREAM, "multi_stream: it takes no batch of 8 images"),
    ],
    ids=["single", "server", "multi"],
)
def test_sizes_that_an_engine_does_not_take_are_not_sent(least: int, scenario: Scenario, note: str) -> None:
    """An engine of one large batch size serves no single images; the note says so."""
    found = measured(config(scenario), profile=BatchRange(min=least, opt=least, max=least))
    assert (found.results, found.notes) == ((), (note,))


def test_configured_batches_that_it_does_not_take_leave_a_note() -> None:
    """Beside the notes of the scenarios."""
    only = BatchRange(min=16, opt=16, max=16)
    found = measured(config(Scenario.SINGLE_STREAM, batches=(4,)), profile=only)
    assert len(found.notes) == 2
    assert found.notes[0].startswith("batch 4 of `load.batches`: it takes 16 images")


def test_engine_of_one_batch_size_is_loaded_offline_and_by_streams() -> None:
    """Queries are filled up to its batch size."""
    found = measured(
        config(Scenario.MULTI_STREAM, Scenario.OFFLINE, contexts=(1,), max_duration_seconds=20.0),
        took=0.5,
        profile=BatchRange(min=4, opt=4, max=4),
    )
    assert [(item.scenario, item.settings.batch) for item in found.results] == [
        (Scenario.MULTI_STREAM, 4),
        (Scenario.OFFLINE, 4),
    ]


def test_every_run_is_kept_with_its_settings(capfd: pytest.CaptureFixture[str]) -> None:
    """The log has a line for each run while it lasts, and the summaries begin with the same facts."""
    found = measured(config(Scenario.SINGLE_STREAM))
    lines = [line.partition(": ")[2] for line in capfd.readouterr().err.splitlines() if line.startswith("run ")]
    assert [json.loads(line) for line in lines] == [run.model_dump(mode="json") for run in found.runs]
    assert found.summaries.startswith(f"# run 1: {found.runs[0].model_dump_json()}\n")


def test_artifact_that_fails_has_no_result() -> None:
    """An error under load ends the measurement with its message."""

    def fails(batch: Any) -> Any:
        if fails.left == 0:  # type: ignore[attr-defined]
            raise RunError("out of memory")
        fails.left -= 1  # type: ignore[attr-defined]
        return batch

    fails.left = 20  # type: ignore[attr-defined]
    facts = Facts(None, True, False, (1,))  # noqa: FBT003 - as the stage passes them
    with pytest.raises(RunError, match="out of memory"):
        measure([fails], IMAGES, len(IMAGES), facts, config(Scenario.SINGLE_STREAM))


def test_every_size_that_may_come_is_warm_on_a_gpu() -> None:
    """Each runner has run the sizes of which it keeps graphs, and the largest, before the first query."""
    seen: list[list[int]] = [[], []]
    runs = [lambda batch, sizes=sizes: sizes.append(len(batch)) for sizes in seen]
    facts = Facts(BatchRange(min=1, opt=8, max=100), joins=True, on_gpu=True, timed=(1,))
    found = measure(runs, IMAGES, len(IMAGES), facts, config(Scenario.SERVER, p99_ms=(1e-9,)))
    assert found.runs == ()
    assert seen[1] == [*range(1, 64), 100]
    assert seen[0][:64] == seen[1]
