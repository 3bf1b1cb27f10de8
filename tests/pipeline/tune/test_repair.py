"""The rules for ranges that are worth a build, and the fewest layers that stay in FP16."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tune.records import ScreenedRule
from pipeline.tune.repair import next_count, next_rule, promising_rules


def search_for(fewest: int, most: int, proposed: int) -> dict[int, bool]:
    """Return the numbers that are tried if `fewest` layers are needed, with what they gave."""
    verdicts: dict[int, bool] = {}
    while (count := next_count(most, proposed, verdicts)) is not None:
        assert count not in verdicts
        assert 1 <= count <= most
        verdicts[count] = count >= fewest
    return verdicts


@given(most=st.integers(1, 200), proposed=st.integers(0, 200), fewest=st.integers(1, 220))
def test_it_ends_after_a_few_numbers_each_tried_once(most: int, proposed: int, fewest: int) -> None:
    """However many layers there are."""
    assert len(search_for(fewest, most, proposed)) <= 6


@given(most=st.integers(8, 60), fewest=st.integers(1, 8))
def test_the_fewest_are_found_near_the_proposal(most: int, fewest: int) -> None:
    """A proposal of up to eight layers is halved or doubled to the least number that passes."""
    verdicts = search_for(fewest, most, proposed=4)
    assert min(count for count, good in verdicts.items() if good) == fewest


def test_a_proposal_of_one_layer_that_passes_is_the_answer() -> None:
    """There is no smaller number than one to try: none has failed already."""
    assert search_for(1, 20, 1) == {1: True}


def test_nothing_is_tried_without_layers() -> None:
    """A graph without a ranking is not repaired."""
    assert next_count(0, 3, {}) is None


RULES = st.lists(
    st.builds(
        ScreenedRule,
        rule=st.text(min_size=1, max_size=3),
        kept=st.booleans(),
        loss=st.floats(0, 1),
        distance=st.floats(0, 1),
    ),
    min_size=1,
    max_size=7,
    unique_by=lambda item: item.rule,
)


@given(screened=RULES)
def test_rules_that_are_nearer_are_worth_a_build(screened: list[ScreenedRule]) -> None:
    """Those that keep the gate come first, and the graph's own is none of them."""
    own, known = screened[0], {item.rule: item for item in screened}
    found = [known[rule] for rule in promising_rules(screened)]
    assert all(item.distance < own.distance or item.loss < own.loss for item in found)
    assert len(found) == sum(item.distance < own.distance or item.loss < own.loss for item in screened)
    assert sorted(found, key=lambda item: not item.kept) == found


def test_nothing_is_promising_where_nothing_was_judged() -> None:
    """A graph that could not be quantised on calibration images has no other rules."""
    assert promising_rules([]) == ()


@given(rules=st.lists(st.text(max_size=3), unique=True, max_size=6), good=st.sets(st.integers(0, 5)))
def test_at_most_two_rules_are_built(rules: list[str], good: set[int]) -> None:
    """The best first, each once, until one passes."""
    verdicts: dict[str, bool] = {}
    while (rule := next_rule(rules, verdicts)) is not None:
        assert rule not in verdicts
        verdicts[rule] = rules.index(rule) in good
    assert [*verdicts] == rules[: len(verdicts)]
    assert len(verdicts) == min(2, len(rules)) or any(verdicts.values())
