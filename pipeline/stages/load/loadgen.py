"""MLCommons' LoadGen: one run of a scenario → its verdict. The only module that knows `mlperf_loadgen`."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model_artifacts.errors import RetryableError, RunError, one_line
from model_artifacts.host.environment import installed, version
from model_artifacts.records import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Answered = Callable[[Sequence[int]], None]
    """To be called with the tickets of images that are answered, best of all those of a batch at once."""
    Issue = Callable[[Sequence[int], Sequence[int], Answered], None]
    """Takes the tickets and the numbers of images that have come, and returns before they are answered."""

PACKAGE = "mlcommons-loadgen"
PERCENTILE = 0.99
"""The percentile of a server's bound."""
MULTI_STREAM_SAMPLES = 8
"""The images of a query in MultiStream, by MLPerf's rules."""
_MARK = ":::MLLOG "
_LEAST_QUERIES = {
    Scenario.SINGLE_STREAM: 100,  # its early stopping takes 64 for the 90th percentile
    Scenario.MULTI_STREAM: 662,  # the same for the 99th
    Scenario.OFFLINE: 1,
    Scenario.SERVER: 1000,  # early stopping takes 459 if all of them keep the bound, and more if some do not
}
"""The least queries of a run: with fewer, LoadGen's own test of significance ("early stopping") calls none valid."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A run of LoadGen."""

    scenario: Scenario
    images: int
    """The number of different images, all of which are in memory."""
    expected: float
    """Images per second: to send, of a server; else the expectation, which decides how many are prepared."""
    bound_ms: float | None = None
    """The bound of a server's 99th percentile, in milliseconds."""
    min_seconds: float
    max_seconds: float
    seed: int
    """The seed of the order of images, and of a server's arrivals."""


class Answer(NamedTuple):
    """LoadGen's account of a run."""

    valid: bool
    """Its verdict."""
    why: str
    """Its reasons against a run that is not valid."""
    too_short: bool
    """True if it ran out of queries: it prepares as many as the expected rate needs."""
    rate_per_s: float
    """Images per second."""
    queries: int
    samples_per_query: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    summary: str
    """mlperf_log_summary.txt."""


def require_loadgen() -> None:
    """Check that LoadGen is installed.

    Raises:
        RetryableError: it is not.
    """
    if not installed("mlperf_loadgen"):
        raise RetryableError(f"{PACKAGE} is not installed here: `pip install {PACKAGE}`, or the extra `load`")


def loadgen_version() -> str:
    """Return LoadGen's version."""
    return version(PACKAGE)


def run_loadgen(ask: Ask, issue: Issue) -> Answer:
    """Send the queries of a scenario, and return LoadGen's account once all of them are answered.

    Args:
        ask: the run.
        issue: the system under test. It is called on one thread, and its `Answered` on any.

    Raises:
        RunError: the system failed, or LoadGen left no account.
    """
    import mlperf_loadgen as lg  # noqa: PLC0415 - an extra

    broken: list[BaseException] = []

    def answered(tickets: Sequence[int]) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(ticket, 0, 0) for ticket in tickets])

    def issue_query(tickets: list[int], numbers: list[int]) -> None:
        try:
            issue(tickets, numbers, answered)
        except BaseException as exc:  # noqa: BLE001 - it would end this process inside of LoadGen's C++
            broken.append(exc)
            answered(tickets)

    system = lg.ConstructFastSUT(issue_query, _nothing)  # "fast": lists of numbers in place of objects
    library = lg.ConstructQSL(ask.images, ask.images, _nothing, _nothing)
    try:
        with tempfile.TemporaryDirectory() as folder:
            none = str(Path(folder) / "audit.config")  # of the current folder, it would change the settings
            lg.StartTestWithLogSettings(system, library, _test_settings(lg, ask), _log_settings(lg, folder), none)
            if broken:
                raise RunError(f"the artifact failed under load: {one_line(broken[0])}") from broken[0]
            detail, summary = (Path(folder, f"mlperf_log_{name}.txt").read_text() for name in ("detail", "summary"))
    except OSError as exc:
        raise RunError("LoadGen left no logs", got=one_line(exc)) from exc
    finally:
        lg.DestroyQSL(library)
        lg.DestroyFastSUT(system)
    return read_answer(ask.scenario, detail, summary)


def _nothing(*_: object) -> None:
    """Do nothing: all images are in memory before the run, and nothing waits for a flush."""


def _test_settings(lg: Any, ask: Ask) -> Any:  # noqa: ANN401 - LoadGen's binding has no types
    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(ask.min_seconds * 1e3)
    settings.max_duration_ms = round(ask.max_seconds * 1e3)
    settings.min_query_count = _LEAST_QUERIES[ask.scenario]
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = ask.seed
    if ask.scenario is Scenario.SERVER:
        settings.scenario = lg.TestScenario.Server
        settings.server_target_qps = ask.expected
        settings.server_target_latency_ns = round((ask.bound_ms or 0) * 1e6)
        settings.server_target_latency_percentile = PERCENTILE
        settings.server_coalesce_queries = True  # those that are due come in one call; each counts from its own moment
    elif ask.scenario is Scenario.OFFLINE:
        settings.scenario = lg.TestScenario.Offline
        settings.offline_expected_qps = ask.expected
        settings.max_duration_ms = 0  # it is one query
    elif ask.scenario is Scenario.SINGLE_STREAM:
        settings.scenario = lg.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = round(1e9 / ask.expected)
    else:
        settings.scenario = lg.TestScenario.MultiStream
        settings.multi_stream_samples_per_query = MULTI_STREAM_SAMPLES
        settings.multi_stream_expected_latency_ns = round(1e9 * MULTI_STREAM_SAMPLES / ask.expected)
    return settings


def _log_settings(lg: Any, folder: str) -> Any:  # noqa: ANN401 - as above
    output = lg.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    settings = lg.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


def read_answer(scenario: Scenario, detail: str, summary: str) -> Answer:
    """Return the account in LoadGen's logs. Pure.

    Args:
        scenario: the scenario of the run.
        detail: mlperf_log_detail.txt, lines of JSON.
        summary: mlperf_log_summary.txt.

    Raises:
        RunError: a value is missing or of another kind.
    """
    try:
        lines = (line.removeprefix(_MARK) for line in detail.splitlines() if line.startswith(_MARK))
        values: dict[str, Any] = {entry["key"]: entry["value"] for entry in map(json.loads, lines)}
        per_query, queries = int(values["effective_samples_per_query"]), int(values["result_query_count"])
        return Answer(
            valid=values["result_validity"] == "VALID" and not values["num_errors"],
            why=_why(values),
            too_short=values["result_min_duration_met"] is False,
            rate_per_s=round(_rate(scenario, values, per_query), 3),
            queries=queries,
            samples_per_query=per_query,
            p50_ms=float(values["result_50.00_percentile_latency_ns"]) / 1e6,
            p90_ms=float(values["result_90.00_percentile_latency_ns"]) / 1e6,
            p99_ms=float(values["result_99.00_percentile_latency_ns"]) / 1e6,
            summary=summary,
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise RunError("LoadGen wrote an account that cannot be read", got=one_line(exc)) from exc


def _rate(scenario: Scenario, values: dict[str, Any], per_query: int) -> float:
    if scenario is Scenario.OFFLINE:
        return float(values["result_samples_per_second"])
    if scenario is Scenario.SERVER:
        return float(values["result_scheduled_samples_per_sec"])
    return per_query * 1e9 / float(values["result_mean_latency_ns"])


def _why(values: dict[str, Any]) -> str:
    """Return LoadGen's reasons against a run, as a phrase."""
    checks = {
        "result_perf_constraints_met": "the bound was not kept",
        "result_min_duration_met": "it was too short",
        "result_min_queries_met": "it had too few queries",
        "early_stopping_met": "its queries prove too little (early stopping)",
    }
    return ", ".join(text for key, text in checks.items() if values.get(key) is False)
