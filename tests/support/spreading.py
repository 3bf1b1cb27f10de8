"""A pytest plugin: how xdist's workers share the tests, so that they end together and wait for nothing meanwhile.

Each worker has neighbouring tests, which share fixtures, and takes half of another's rest when its own are done. The
first worker therefore begins with the longest modules: a long test at the end would keep the others waiting. Those that
need the built project follow, which only one process builds. The second begins in the middle, with those that do not.
"""

from __future__ import annotations

import pytest

_BUILT = "built_folder"
"""The fixture of the built project."""


def pytest_configure(config: pytest.Config) -> None:
    """Choose xdist's scheduler in place of its usual one."""
    if getattr(config.option, "dist", "") == "load":
        config.option.dist = "worksteal"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put modules into that order on workers; the tests of a module stay together."""
    if not hasattr(config, "workerinput"):
        return
    ranks: dict[str, int] = {}
    for item in items:
        module = item.location[0]
        ranks[module] = min(ranks.get(module, 2), _rank(item))
    items.sort(key=lambda item: ranks[item.location[0]])


def _rank(item: pytest.Item) -> int:
    """Return 0 for accidents on purpose and what else takes long, 1 for users of the built project, 2 for the rest."""
    if item.get_closest_marker("faults") or item.get_closest_marker("early"):
        return 0
    return 1 if _BUILT in getattr(item, "fixturenames", ()) else 2
