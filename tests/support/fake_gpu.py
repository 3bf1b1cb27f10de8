"""A GPU that keeps its memory in the host's, as a fixture for all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.host import cuda
from tests.support.fake_cuda import FakeRuntime

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRuntime]:
    """The GPU; at the end of every test, nothing on it may still be open."""
    fake = FakeRuntime()
    monkeypatch.setattr(cuda, "runtime", fake)
    yield fake
    assert fake.idle
