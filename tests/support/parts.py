"""A pytest plugin: every run takes a part of each long campaign, and `--all` takes the whole.

The parts follow from one seed a run, which the header and the end of a failed run print. `--seed N` takes the same
parts again. A campaign says its share in one of four ways:

* `@pytest.mark.part(3)`: three of a test's parametrised cases; as a module's `pytestmark`, three of its tests. `of="…"`
  makes one campaign of several tests.
* The fixture `part`, of a test with a loop of its own: `part.of(cases, 3)` and `part.number(2000, 150)`.
* `@long_test`: one test that takes long by itself. All of these are one campaign.
* Hypothesis: the profiles of `EXAMPLES`, for every test without a number of its own.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


def long_test(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that takes 10 s of processor or more in one case."""
    return pytest.mark.early(pytest.mark.part(4, of="long tests")(test))  # type: ignore[no-any-return]  # pytest's own


EXAMPLES = {"part": 25, "all": 100}
"""Hypothesis's examples of a test in every run, and with `--all`."""
_SEED = pytest.StashKey[int]()
_ON_WORKERS = "seed of the parts"


class Part:
    """The share of one test: which cases, and how many.

    Attributes:
        chance: random numbers that follow from the run's seed and the test's name.
    """

    def __init__(self, seed: int, name: str, *, whole: bool) -> None:
        self._seed = seed
        self._whole = whole
        self.chance = random.Random(f"{seed} {name}")  # noqa: S311 - no secret

    def number(self, whole: int, part: int) -> int:
        """Return the number of cases of this run."""
        return whole if self._whole else part

    def of(self, cases: Iterable[T], number: int) -> list[T]:
        """Return so many of the cases, in their order; all of them with `--all`."""
        found = list(cases)
        if self._whole or len(found) <= number:
            return found
        return [found[index] for index in sorted(self.chance.sample(range(len(found)), number))]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("parts", "parts of long campaigns")
    group.addoption("--all", action="store_true", help="run the long campaigns whole, as every night")
    group.addoption("--seed", type=int, metavar="N", help="take the parts that an earlier run printed this number of")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of the run, which workers have from their controller, for hypothesis, too."""
    config.addinivalue_line("markers", "part(number, of=name): so many cases in every run, all of them with --all")
    given: dict[str, int] = getattr(config, "workerinput", {})
    seed = given.get(_ON_WORKERS, config.option.seed)
    config.stash[_SEED] = random.SystemRandom().getrandbits(32) if seed is None else seed
    with suppress(ImportError):  # GPU hosts do not have it
        _configure_hypothesis(config)


def _configure_hypothesis(config: pytest.Config) -> None:
    """Load the profile; hypothesis's own for CI would try the same examples every time."""
    from hypothesis import settings  # noqa: PLC0415 - see above

    for name, number in EXAMPLES.items():
        settings.register_profile(name, max_examples=number, derandomize=False)
    settings.load_profile("all" if config.option.all else "part")
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(config.stash[_SEED])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the seed to a worker of xdist."""
    node.workerinput[_ON_WORKERS] = node.config.stash[_SEED]


def _told(config: pytest.Config) -> str:
    seed = config.stash[_SEED]
    if config.option.all:
        return f"long campaigns: whole, with --seed {seed}"
    return f"long campaigns: a part of each, which --seed {seed} takes again; --all takes the whole"


def pytest_report_header(config: pytest.Config) -> str:
    """Return the line with the seed."""
    return _told(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the seed again where something failed."""
    if terminalreporter.stats.keys() & {"failed", "error"}:
        terminalreporter.write_line(_told(config))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the cases beyond each campaign's part."""
    campaigns: dict[str, list[pytest.Item]] = {}
    for item in items if not config.option.all else ():
        if campaign := _campaign(item):
            campaigns.setdefault(campaign, []).append(item)
    left_out = {item for found in campaigns.values() for item in _beyond(found, config.stash[_SEED])}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _campaign(item: pytest.Item) -> str | None:
    """Return the name of the campaign that an item is a case of: the marker's, its function's, or the module's."""
    for owner, marker in item.iter_markers_with_node("part"):
        if "of" in marker.kwargs:
            return str(marker.kwargs["of"])
        if owner is not item:
            return owner.nodeid
        return f"{item.location[0]}::{getattr(item, 'originalname', item.name)}"
    return None


def _beyond(cases: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """Return the cases that this run leaves out.

    Each case has a rank of its own, so that a run of few files takes the cases that a run of all takes.
    """
    marker = cases[0].get_closest_marker("part")
    number: int = marker.args[0] if marker else len(cases)
    return sorted(cases, key=lambda case: hashlib.sha256(f"{seed} {case.nodeid}".encode()).digest())[number:]


@pytest.fixture
def part(request: pytest.FixtureRequest) -> Part:
    """The share of this test."""
    return Part(request.config.stash[_SEED], request.node.nodeid, whole=request.config.option.all)
