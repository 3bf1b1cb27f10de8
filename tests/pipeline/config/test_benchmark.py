"""The settings of `load`: their defaults, and what is refused with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Scenario
from pipeline.config.benchmark import LoadConfig
from pipeline.config.loading import load_config
from tests.support.configs import MATRIX

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.configs import Problems


def test_settings_are_read(tmp_path: Path) -> None:
    """Each has its default; numbers may be whole."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        MATRIX + "load: {scenarios: [server], p99_ms: [5], contexts: [3], batches: [4], max_delay_ms: [0]}\n"
    )
    found = load_config(file).load
    assert (found.scenarios, found.p99_ms, found.contexts) == ((Scenario.SERVER,), (5.0,), (3,))
    assert (found.batches, found.max_delay_ms, found.min_duration_seconds) == ((4,), (0.0,), 5.0)
    file.write_text(MATRIX)
    assert load_config(file).load == LoadConfig()


def test_time_limit_is_none_of_a_runs_settings() -> None:
    """All others change what is measured."""
    assert LoadConfig(timeout_seconds=1).run_settings == LoadConfig().run_settings
    assert LoadConfig(p99_ms=(3,)).run_settings != LoadConfig().run_settings


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("load: {p99_ms: []}", "3:16: load.p99_ms: expected at least one entry, got []", id="empty"),
        pytest.param("load: {p99_ms: [0]}", "3:17: load.p99_ms[0]: ", id="zero"),
        pytest.param("load: {contexts: [0]}", "3:19: load.contexts[0]: ", id="no-context"),
        pytest.param("load: {max_delay_ms: [-1]}", "3:23: load.max_delay_ms[0]: ", id="delay"),
        pytest.param("load: {scenarios: [servers]}", "got 'servers'; did you mean 'server'?", id="scenario"),
        pytest.param("load: {contexts: [2, 2]}", "3:22: `load.contexts` lists the same entry twice: 2", id="twice"),
        pytest.param("load: {p99_ms: [2, 2.0]}", "3:20: `load.p99_ms` lists the same entry twice: 2", id="equal"),
        pytest.param(
            "load: {min_duration_seconds: 90}",
            "3:30: `load.min_duration_seconds`: 90 is longer than `load.max_duration_seconds`, 60; shorten it",
            id="longer",
        ),
    ],
)
def test_mistakes_have_their_place(problems: Problems, text: str, problem: str) -> None:
    """Each is reported with its line and column."""
    assert problem in "\n".join(problems(MATRIX + text + "\n"))
