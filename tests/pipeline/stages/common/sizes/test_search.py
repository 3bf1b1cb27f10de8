"""The sizes to compare at reach every way through forward, whatever it asks for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import RoundDecimal

from model_artifacts.errors import ExportError
from model_artifacts.records import AxisRange
from pipeline.stages.common.sizes.conditions import Condition
from pipeline.stages.common.sizes.search import LARGEST_BATCH, Ranges, drawn_sizes, other_ways, where_broken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config.axes import Sizes

HEIGHT, WIDTH, BATCH = (sympy.Symbol(name, integer=True, positive=True) for name in ("height", "width", "batch"))
AXES = (AxisRange(name="height", min=3, opt=4, max=9), AxisRange(name="width", min=5, opt=6, max=12))
RANGES = Ranges(AXES, 4)
OWN = {"height": 4, "width": 6, "batch": 2}


class Fork(NamedTuple):
    """A place where a network asks for a size: a formula, and what follows if it is true, and if it is not."""

    asked: Any
    yes: Fork | int
    no: Fork | int


def formulas() -> st.SearchStrategy[Any]:
    """Return conditions as networks have them."""
    symbols, numbers = st.sampled_from([HEIGHT, WIDTH]), st.integers(1, 12)
    return st.one_of(
        st.builds(sympy.Eq, symbols, numbers),
        st.builds(sympy.Gt, symbols, numbers),
        st.builds(lambda symbol, by, rest: sympy.Eq(symbol % by, rest), symbols, st.integers(2, 5), st.integers(0, 1)),
        st.builds(lambda more: sympy.Eq(HEIGHT + more, WIDTH), st.integers(0, 5)),
        st.builds(lambda number: sympy.Eq(BATCH, number), numbers),
    ).filter(lambda formula: bool(formula.free_symbols))


def forks() -> st.SearchStrategy[Fork | int]:
    """Return networks of several forks; a leaf is the number of the way."""
    return st.recursive(st.integers(0, 99), lambda more: st.builds(Fork, formulas(), more, more), max_leaves=5)


def walk(network: Fork | int, sizes: dict[str, int]) -> tuple[tuple[Condition, ...], tuple[bool, ...]]:
    """Return the conditions of the way at some sizes, and the answers."""
    asked: list[Condition] = []
    while isinstance(network, Fork):
        at = {symbol: sizes[symbol.name] for symbol in network.asked.free_symbols}
        holds = bool(network.asked.subs(at))
        asked.append(Condition(network.asked, holds, "model.py:1: if"))
        network = network.yes if holds else network.no
    return tuple(asked), tuple(item.holds for item in asked)


@settings(deadline=None)  # the first example loads sympy; a busy machine is no fault
@given(forks())
def test_every_way_is_compared(network: Fork | int) -> None:
    """Of each way that some size of the ranges takes, but for the graph's own, some size is yielded."""

    def follow(sizes: Sizes) -> Sequence[Condition]:
        return walk(network, OWN | dict(sizes))[0]

    known, own = walk(network, OWN)
    compared = {walk(network, OWN | dict(trial.sizes))[1] for trial in other_ways(known, RANGES, follow)}
    taken = {
        walk(network, {"height": height, "width": width, "batch": batch})[1]
        for height in range(3, 10)
        for width in range(5, 13)
        for batch in range(1, 13)
    }
    assert taken - {own} <= compared


def test_a_way_is_compared_at_its_ends_and_between() -> None:
    """Ways of many sizes have three: one that computes the same at an end need not do so at the others."""
    odd = Condition(sympy.Eq(sympy.Mod(HEIGHT, 2), 0))
    other = Condition(odd.formula, holds=False)
    found = [trial.sizes for trial in other_ways([odd], RANGES, lambda _: [other])]
    assert found[0] == (("height", 3),)
    assert found[-1] == (("height", 9),)
    assert len(found) in {2, 3}


def test_a_trace_that_does_not_hold_at_its_own_sizes_is_refused() -> None:
    """Otherwise the same sizes would be followed for ever."""
    condition = Condition(sympy.Ne(HEIGHT, 5))
    with pytest.raises(ExportError, match=r"(?s)too many ways.*another one for height 5"):
        list(other_ways([condition], RANGES, lambda _: [condition]))


def test_ranges_that_cannot_be_looked_through_are_refused() -> None:
    """A condition of the network's own code is never looked at in a part of its sizes."""
    large = (AxisRange(name="height", min=1, opt=1, max=4096), AxisRange(name="width", min=1, opt=1, max=4096))
    with pytest.raises(ExportError, match=r"(?s)too large to find.*height 1 to 4096, width 1 to 4096"):
        list(other_ways([Condition(sympy.Ne(HEIGHT * WIDTH, 400))], Ranges(large, 4), lambda _: []))


def test_torchs_own_condition_is_looked_at_in_a_part_of_large_ranges() -> None:
    """The smallest sizes are among them."""
    large = (AxisRange(name="height", min=1, opt=1, max=4096), AxisRange(name="width", min=1, opt=1, max=4096))
    found = where_broken(Condition(sympy.Gt(HEIGHT * WIDTH, 1)), Ranges(large, 4))
    assert found == [(("height", 1), ("width", 1))]


def test_what_arithmetic_shows_is_not_looked_through() -> None:
    """Numbers of 32 bits for pixels, which torch asks for, hold in any range of use."""
    large = (AxisRange(name="height", min=1, opt=1, max=4096), AxisRange(name="width", min=1, opt=1, max=4096))
    assert where_broken(Condition(sympy.Le(3 * HEIGHT * WIDTH, 2**31 - 1)), Ranges(large, 4)) == []
    assert list(other_ways([Condition(HEIGHT * WIDTH >= 1)], Ranges(large, 4), lambda _: [])) == []


def test_batches_are_small_where_they_can_be() -> None:
    """A batch alone is looked at up to 1,000, and compared up to 64 images, or at the first larger one."""
    assert where_broken(Condition(sympy.Ne(BATCH, 900)), RANGES) == [(("batch", 900),)]
    sizes = where_broken(Condition(sympy.Eq(sympy.Mod(BATCH, 2), 0)), RANGES)
    assert all(dict(item)["batch"] <= LARGEST_BATCH for item in sizes)
    assert where_broken(Condition(sympy.Ne(BATCH, 1001)), RANGES) == []


def test_a_module_of_large_batches_is_compared_at_both_ends_of_a_way() -> None:
    """It takes no batch of 64 or less: its smallest one is compared, with the smallest and the largest height."""
    sizes = where_broken(Condition(BATCH * HEIGHT >= 90 * 9 + 1), Ranges(AXES, 90, 80))
    assert {sizes[0], sizes[-1]} == {(("batch", 80), ("height", height)) for height in (3, 9)}


def test_sizes_are_drawn_alike() -> None:
    """Few sizes are all compared; of many some are drawn, the same ones each time."""
    few = drawn_sizes((AxisRange(name="height", min=3, opt=4, max=9),))
    assert few == [(("height", size),) for size in range(3, 10)]
    many = drawn_sizes(AXES)
    assert many == drawn_sizes(AXES)
    assert len(many) == 8
    assert drawn_sizes(()) == []


@pytest.mark.parametrize(
    ("formula", "got"),
    [
        (sympy.Eq(sympy.Mod(HEIGHT**30, 7), 1), "a number of 4.24e+28"),
        (sympy.Eq(sympy.Mod(HEIGHT**10 * WIDTH**12, 7), 1), "a number of 3.11e+22"),
        (sympy.Eq(sympy.Mod(HEIGHT**19 + 2 * WIDTH**17, 7), 1), "a number of 5.79e+18"),
        (sympy.Gt(sympy.floor(HEIGHT**9 * WIDTH**10 / 2.0), 3), "a number of "),
    ],
    ids=["a power", "a product", "a sum", "a rounding"],
)
def test_a_whole_number_that_would_wrap_around_is_refused(formula: Any, got: str) -> None:
    """9 ** 30 is a number of 96 bits in Python, and another one in int64: a way at some size would be missed."""
    asked = Condition(formula, holds=False, line="model.py:3: if height ** 30 % 7 == 1:")
    with pytest.raises(ExportError, match=f"(?s)cannot look through.*model.py:3.*{re.escape(got)}"):
        list(other_ways([asked], RANGES, lambda _: []))


def test_large_whole_numbers_that_do_not_wrap_are_exact() -> None:
    """9 ** 19 is above 2 ** 60, and no float64."""
    asked = Condition(sympy.Eq(HEIGHT**19, 9**19), holds=False)
    found = [trial.sizes for trial in other_ways([asked], RANGES, lambda _: [Condition(asked.formula)])]
    assert found == [(("height", 9),)]
    off_by_one = Condition(sympy.Eq(HEIGHT**19, 9**19 - 1), holds=False)
    assert list(other_ways([off_by_one], RANGES, lambda _: [])) == []


@pytest.mark.parametrize(
    "formula",
    [sympy.Eq(RoundDecimal(HEIGHT / 3, 1), 2), sympy.Gt(HEIGHT * WIDTH * 10**19, 10**20)],
    ids=["a rounding to a decimal", "a number of more than 64 bits"],
)
def test_a_formula_without_a_vector_form_is_named(formula: Any) -> None:
    """It is refused with the line that asks, and no traceback of torch's."""
    asked = Condition(formula, holds=False, line="model.py:3: if round(height / 3, 1) == 2:")
    with pytest.raises(ExportError, match=r"(?s)cannot look through.*model.py:3.*whole numbers"):
        list(other_ways([asked], RANGES, lambda _: []))
