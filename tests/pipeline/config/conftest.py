"""Fixtures that load a configuration, or return its problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError
from pipeline.config.loading import load_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import Host
    from pipeline.config.settings import Config
    from tests.support.configs import Problems


@pytest.fixture
def problems(write_config: Callable[[str], Path]) -> Problems:
    """A function that returns the problems of a configuration, each without the file's name in front."""

    def of(text: str, host: Host | None = None) -> list[str]:
        file = write_config(text)
        with pytest.raises(ConfigError) as caught:
            load_config(file, host)
        assert caught.value.problems
        assert all(problem.startswith(f"{file}:") for problem in caught.value.problems)
        return [problem.removeprefix(f"{file}:") for problem in caught.value.problems]

    return of


@pytest.fixture
def load(write_config: Callable[[str], Path]) -> Callable[[str], Config]:
    """A function that loads a configuration from its text."""

    def of(text: str) -> Config:
        return load_config(write_config(text))

    return of
