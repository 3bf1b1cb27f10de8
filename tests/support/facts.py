"""Facts of the host that go into staleness keys, replaced wherever a key reads them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pipeline.planning import keys
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def replace_fact(patch: pytest.MonkeyPatch, name: str, function: Callable[..., object]) -> None:
    """Replace a function of `model_artifacts.host.environment` in all modules that make keys."""
    modules = [keys, *(importlib.import_module(f"pipeline.stages.{spec.name}.spec") for spec in STAGES)]
    replaced = [patch.setattr(module, name, function) for module in modules if hasattr(module, name)]
    assert replaced, f"no key reads {name}"
