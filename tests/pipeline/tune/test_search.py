"""The search itself, over synthetic costs: its moves, its limits, and that it goes on as it would have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tune.records import Choice, Point, Trial, TrialVerdict
from pipeline.tune.repair import RULE, Ranking, Repair, Screen
from pipeline.tune.search import Objective, Search, best_of, gains_of, ranking_of
from pipeline.tune.space import PARTS, REWRITE_CHOICES, Contender, Mixed, Option, Space
from tests.support.searches import (
    BATCHES,
    LAYERS,
    LEVEL,
    LIMIT,
    OBJECTIVES,
    RULES,
    STREAMS,
    TILING,
    WORLDS,
    World,
    contender,
    trial_of,
)

INT8, FP16 = contender("int8-b1", 0), contender("fp16-b1", 1)
SPACE = Space((INT8, FP16), BATCHES)
LATENCY = OBJECTIVES[0]


def search_of(budget: float = 1000.0, **values: object) -> Search:
    """Return a search of two contenders for the latency at batch 1."""
    return replace(Search(SPACE, (LATENCY,), budget), **values)  # type: ignore[arg-type]  # fields of a frozen class


@given(world=WORLDS)
def test_no_finalist_and_no_winner_missed_its_gate(world: World) -> None:
    """Whatever is fast, only what passed is ranked, and becomes a finalist."""
    search = world.search()
    trials = world.run(search, [])
    winners = [best for objective in OBJECTIVES if (best := best_of(objective, trials))]
    assert all(trial.passed and world.passes(trial.point) for trial in (*winners, *search.finalists(trials)))


@given(world=WORLDS, cut=st.integers(0, 30))
def test_a_search_that_was_killed_goes_on_to_the_same_answer(world: World, cut: int) -> None:
    """Stopped after any number of trials and begun anew with these, it makes the same moves."""
    whole = world.run(world.search(), [])
    assert world.run(world.search(), world.run(world.search(), [], most=cut)) == whole


@given(world=WORLDS)
def test_the_budget_is_kept(world: World) -> None:
    """No trial begins without time left; where trials take what they were expected to, all of them end in time."""
    trials = world.run(world.search(), [])
    before = [sum(trial.seconds for trial in trials[:index]) for index in range(len(trials))]
    assert all(spent < world.budget for spent in before)
    passed = [trial for trial in trials if trial.passed]
    if passed and all(trial.passed for trial in trials):
        assert sum(trial.seconds for trial in trials) <= world.budget + trials[0].seconds


@given(world=WORLDS)
def test_no_point_is_tried_twice(world: World) -> None:
    """Each trial is of another point."""
    points = [trial.point for trial in world.run(world.search(), [])]
    assert len(points) == len(set(points))


@given(world=WORLDS)
def test_with_time_enough_nothing_is_left(world: World) -> None:
    """Every contender was tried, and the best has been tried with every choice that the library can apply."""
    search = replace(world.search(), budget_seconds=1e9)
    trials = world.run(search, [])
    assert {item.point for item in search.space.contenders} <= {trial.point for trial in trials}
    best = best_of(LATENCY, trials)
    for choice in (STREAMS, LEVEL, TILING) if best else ():
        made = best is not None and choice.setting in {item.setting for item in best.point.choices}
        tried = best is not None and best.point.with_choice(choice) in {trial.point for trial in trials}
        assert made or tried or choice.setting in world.refused


def test_the_first_moves_are_the_contenders_by_their_prior() -> None:
    """int8 comes before fp16."""
    assert search_of().next([]) == INT8.point
    assert search_of().next([trial_of(1, INT8.point, 1.0)]) == FP16.point


def test_then_the_best_gets_one_choice_more() -> None:
    """A choice is added to the fastest point, not to another."""
    trials = [trial_of(1, INT8.point, 2.0), trial_of(2, FP16.point, 1.0)]
    assert search_of().next(trials) == FP16.point.with_choice(STREAMS)


@pytest.mark.parametrize(("milliseconds", "added"), [(1.0, "channels"), (3.0, "pooled")], ids=["faster", "slower"])
def test_values_of_one_setting_are_alternatives(milliseconds: float, added: str) -> None:
    """Each other form of a product is tried in place of a slower one, and never on top of one."""
    convolution, pooled, channels = (
        Choice(setting="rewrites.product", value="convolution"),
        Choice(setting="rewrites.product", value="pooled"),
        Choice(setting="rewrites.channels", value=4),
    )
    assert {convolution, pooled, channels} <= {*REWRITE_CHOICES}
    options = tuple(Option(choice) for choice in (convolution, pooled, channels))
    search = search_of(space=Space((replace(INT8, options=options),), BATCHES))
    trials = [trial_of(1, INT8.point, 2.0), trial_of(2, INT8.point.with_choice(convolution), milliseconds)]
    expected = {"channels": trials[1].point.with_choice(channels), "pooled": INT8.point.with_choice(pooled)}
    assert search.next(trials) == expected[added]


def test_a_choice_that_helped_comes_first() -> None:
    """What made the point before faster is tried first on the one that is best now."""
    trials = [
        trial_of(1, INT8.point, 2.0),
        trial_of(2, FP16.point, 2.1),
        trial_of(3, INT8.point.with_choice(TILING), 1.9),
        trial_of(4, FP16.point.with_choice(STREAMS), 1.0),
    ]
    assert gains_of(LATENCY, trials) == {TILING: 0.95, STREAMS: 1.0 / 2.1}
    assert search_of().next(trials) == Point(subject=FP16.subject, choices=(STREAMS, TILING))


def test_a_choice_that_changed_nothing_comes_behind_the_untried() -> None:
    """It gave the same engine elsewhere; it is not given up, since this point may differ."""
    trials = [
        trial_of(1, INT8.point, 1.0),
        trial_of(2, FP16.point, 2.0),
        trial_of(3, FP16.point.with_choice(STREAMS), 2.0),
    ]
    order: list[Point] = []
    for number in range(4, 7):
        found = search_of().next(trials)
        assert isinstance(found, Point)
        order.append(found)
        trials.append(trial_of(number, found, 1.5))
    assert order[0] != INT8.point.with_choice(STREAMS)
    assert INT8.point.with_choice(STREAMS) in order[1:]


def test_a_choice_waits_for_what_it_needs() -> None:
    """The limit of the L2 cache is no choice without tiling, and is one with it."""
    tiled = INT8.point.with_choice(TILING)
    trials = [trial_of(1, INT8.point, 1.0), trial_of(2, FP16.point, 3.0)]
    trials += [
        trial_of(number, INT8.point.with_choice(item), 2.0) for number, item in enumerate((STREAMS, LEVEL), start=3)
    ]
    assert search_of().next(trials) == tiled
    trials += [trial_of(5, tiled, 0.9)]
    trials += [trial_of(number, tiled.with_choice(item), 2.0) for number, item in enumerate((STREAMS, LEVEL), start=6)]
    assert search_of().next(trials) == tiled.with_choice(LIMIT)


@pytest.mark.parametrize("excludes", [(), (TILING.setting,)], ids=["beside each other", "excluded"])
def test_a_choice_does_not_join_one_that_it_excludes(excludes: tuple[str, ...]) -> None:
    """It is added to a point with another choice, unless it excludes that."""
    held = replace(INT8, options=(Option(TILING), Option(STREAMS, excludes=excludes)))
    tiled = held.point.with_choice(TILING)
    trials = [trial_of(1, held.point, 1.0), trial_of(2, tiled, 0.9)]
    found = replace(search_of(), space=Space((held,), BATCHES)).next(trials)
    assert (found == tiled.with_choice(STREAMS)) is (not excludes)


def test_a_further_attempt_takes_the_place_of_the_one_before() -> None:
    """It is tried on what the other attempt has made best; another value of another setting is not."""
    second, third = (Choice(setting="tensorrt.attempt", value=number) for number in (2, 3))
    others = (Option(LEVEL), Option(LEVEL.model_copy(update={"value": 4})), Option(STREAMS))
    held = replace(INT8, options=(Option(second, replaces=True), Option(third, replaces=True), *others))
    search = replace(search_of(), space=Space((held,), BATCHES))
    tried = (held.point, 1.0), (held.point.with_choice(second), 0.95)
    trials = [trial_of(number, *item) for number, item in enumerate(tried, start=1)]
    assert search.next(trials) == held.point.with_choice(third)
    leveled = held.point.with_choice(third).with_choice(LEVEL)
    trials.append(trial_of(3, held.point.with_choice(third), 0.9))
    assert search.next(trials) == leveled
    trials.append(trial_of(4, leveled, 0.8))
    assert search.next(trials) == leveled.with_choice(STREAMS)  # the worse of both attempts comes after what is untried
    trials.append(trial_of(5, leveled.with_choice(STREAMS), 0.9))
    assert search.next(trials) == leveled.with_choice(second)
    trials.append(trial_of(6, leveled.with_choice(second), 0.9))
    assert search.next(trials) is None


def test_a_setting_that_the_library_lacks_is_not_tried_again() -> None:
    """One unsupported trial bars the setting with every value."""
    refused = trial_of(3, INT8.point.with_choice(STREAMS), verdict=TrialVerdict.UNSUPPORTED, refused=STREAMS.setting)
    trials = [trial_of(1, INT8.point, 1.0), trial_of(2, FP16.point, 2.0), refused]
    assert search_of().next(trials) == INT8.point.with_choice(LEVEL)


@pytest.mark.parametrize(("profile", "is_tried"), [("b8", False), ("b64", True)], ids=["same batch", "other batch"])
def test_parts_that_one_batch_size_lacks_are_tried_with_another(profile: str, is_tried: bool) -> None:  # noqa: FBT001 - data
    """The outputs of a small batch may be too short to be divided; other settings are the library's."""
    parts = Choice(setting=PARTS, value=2)
    small, large = (
        replace(contender(f"{name}-ws{place}", place), options=(Option(parts),), traits=(("profile", name),))
        for place, name in enumerate(("b8", profile))
    )
    trials = [
        trial_of(1, small.point, 2.0),
        trial_of(2, large.point, 1.0),
        trial_of(3, small.point.with_choice(parts), verdict=TrialVerdict.UNSUPPORTED, refused=PARTS),
    ]
    found = search_of(space=Space((small, large), BATCHES)).next(trials)
    assert found == (large.point.with_choice(parts) if is_tried else None)


@pytest.mark.parametrize(
    ("ending", "is_tried"),
    [({}, False), ({"graph": "a"}, True), ({"cut": True}, True)],
    ids=["graph", "build", "budget"],
)
def test_a_graph_that_cannot_be_made_is_not_asked_for_again(ending: dict[str, object], is_tried: bool) -> None:  # noqa: FBT001 - data
    """Not with settings of the builder beside it, either: they are no part of it."""
    product = Choice(setting="rewrites.product", value="pooled")
    held = replace(INT8, options=(Option(product), Option(STREAMS)))
    failed = trial_of(2, held.point.with_choice(product), verdict=TrialVerdict.FAILED).model_copy(update=ending)
    streamed = held.point.with_choice(STREAMS)
    trials = [trial_of(1, held.point, 2.0), failed, trial_of(3, streamed, 1.0)]
    found = search_of(space=Space((held,), BATCHES)).next(trials)
    assert found == (streamed.with_choice(product) if is_tried else None)


def test_a_choice_that_cost_the_gate_is_not_added_again() -> None:
    """Not to the same variant with others beside it; another variant may try it."""
    level = INT8.point.with_choice(LEVEL)
    trials = [
        trial_of(1, INT8.point, 2.0),
        trial_of(2, FP16.point, 9.0),
        trial_of(3, INT8.point.with_choice(STREAMS), verdict=TrialVerdict.REJECTED),
        trial_of(4, level, 1.0),
    ]
    assert search_of().next(trials) == level.with_choice(TILING)
    trials[1] = trial_of(2, FP16.point, 0.5)
    assert search_of().next(trials) == FP16.point.with_choice(LEVEL)
    tried = [trial_of(5, FP16.point.with_choice(LEVEL), 2.0)]
    assert search_of().next([*trials, *tried]) == FP16.point.with_choice(STREAMS)


def test_a_choice_that_left_the_graph_as_it_was_is_not_added_to_it_again() -> None:
    """Whatever the batch range, and whatever other choices there are; another graph may try it."""
    sums = Choice(setting="quantization.sums", value=False)
    options = (Option(sums), Option(STREAMS))
    one, eight, half = (replace(item, options=options) for item in (INT8, contender("int8-b8", 1), FP16))
    search = search_of(space=Space((one, eight, half), BATCHES))
    trials = [
        trial_of(1, one.point, 1.0),
        trial_of(2, eight.point, 2.0),
        trial_of(3, half.point, 3.0),
        trial_of(4, one.point.with_choice(sums), verdict=TrialVerdict.UNCHANGED).model_copy(update={"same_as": 1}),
    ]
    assert search.next(trials) == one.point.with_choice(STREAMS)
    trials[1] = trial_of(2, eight.point, 0.5)
    assert search.next(trials) == eight.point.with_choice(STREAMS)
    trials[2] = trial_of(3, half.point, 0.1)
    assert search.next(trials) == half.point.with_choice(sums)


def test_a_choice_that_would_outlast_the_budget_is_passed_over() -> None:
    """The highest level takes four times as long as a trial without it, and only two of them are left."""
    trials = [
        trial_of(1, INT8.point, 1.0),
        trial_of(2, FP16.point, 2.0),
        trial_of(3, INT8.point.with_choice(STREAMS), 2.0),
    ]
    assert search_of(1000.0).next(trials) == INT8.point.with_choice(LEVEL)
    assert search_of(100.0).next(trials) == INT8.point.with_choice(TILING)


def test_the_first_module_begins_only_with_a_minute_left() -> None:
    """Nothing is known of its duration yet, but that compiling takes long; the first engine may try."""
    module = Contender("m/gpu/dynamo-fp16", "dynamo", BATCHES, (0,))
    search = search_of(space=Space((module,), BATCHES))
    assert search.next([]) == module.point
    assert replace(search, budget_seconds=70.0).next([]) is None


def test_modules_take_turns_with_further_choices() -> None:
    """After the engines, every fourth trial begins with a module, if there is one."""
    module = Contender("m/gpu/dynamo-fp16", "dynamo", BATCHES, (0,))
    search = search_of(space=Space((module, INT8, FP16), BATCHES))
    trials = [trial_of(1, INT8.point, 1.0), trial_of(2, FP16.point, 2.0)]
    assert search.next(trials) == INT8.point.with_choice(STREAMS)
    assert search.next([*trials, trial_of(3, INT8.point.with_choice(STREAMS), 2.0)]) == module.point


def test_a_part_of_the_budget_is_kept_for_the_finals() -> None:
    """A quarter before anything was timed; then the time that the finalists will take, and at most two fifths."""
    assert search_of(100.0).seconds_left([]) == 75.0
    timed = [trial_of(1, INT8.point, 1.0, 8.0)]
    assert search_of(100.0).reserve(timed) == 3 * 2 * 1.5 * 2.0
    assert search_of(30.0).reserve(timed) == 12.0
    assert search_of(10.0).next(timed) is None


def test_a_look_at_rules_or_layers_counts_and_leaves_time_for_others() -> None:
    """While nothing has passed it has half of what is left: else a repair could leave no answer at all."""
    search = search_of(100.0)
    assert search.repair_seconds([]) == 37.5
    assert replace(search, pending_seconds=25.0).repair_seconds([]) == 25.0
    passed = [trial_of(1, INT8.point, 1.0, 8.0)]
    assert search.repair_seconds(passed) == search.seconds_left(passed) == 100.0 - 8.0 - search.reserve(passed)
    assert replace(search, pending_seconds=90.0).next(passed) is None


def mixed_of(*items: Contender) -> dict[str, Mixed]:
    """Return the same variants with layers left in FP16."""
    return {item.subject: Mixed("int8", "int8", contender(f"{item.subject[6:]}-mixed")) for item in items}


def ruled(rule: str) -> Point:
    """Return int8 with another rule for its ranges."""
    return INT8.point.with_choice(Choice(setting=RULE, value=rule))


MISSED = trial_of(1, INT8.point, verdict=TrialVerdict.REJECTED)


def test_int8_that_misses_its_gate_gets_other_ranges_before_others_are_begun() -> None:
    """The rules are asked for once; the best two are built, and the first that passes ends the repair."""
    search = search_of(mixed=mixed_of(INT8))
    assert search.next([MISSED]) == Screen("int8")
    search = replace(search, rules={"int8": RULES})
    assert search.next([MISSED]) == ruled(RULES[0])
    first = trial_of(2, ruled(RULES[0]), verdict=TrialVerdict.REJECTED)
    assert search.next([MISSED, first]) == ruled(RULES[1])
    second = trial_of(3, ruled(RULES[1]), verdict=TrialVerdict.REJECTED)
    assert search.next([MISSED, first, second]) == Repair("int8")
    assert search.next([MISSED, first, trial_of(3, ruled(RULES[1]), 1.0)]) == FP16.point


def test_layers_stay_in_fp16_where_no_rule_helps() -> None:
    """The layers' sensitivities are asked for once, then the proposed number of layers stays in FP16."""
    search = search_of(mixed=mixed_of(INT8), rules={"int8": ()})
    assert search.next([MISSED]) == Repair("int8")
    ranked = replace(search, rankings={Repair("int8"): Ranking(LAYERS, 3)})
    expected = Choice(setting="leave_unquantized.int8", value=LAYERS[:3])
    assert ranked.next([MISSED]) == Point(subject="m/gpu/int8-b1-mixed", choices=(expected,))


def missed_with(number: int, rule: str, distance: float, drop: float = 0.0) -> Trial:
    """Return int8 with another rule, which misses its gate all the same."""
    return trial_of(number, ruled(rule), verdict=TrialVerdict.REJECTED, distance=distance, drop=drop)


def test_layers_stay_in_fp16_on_top_of_the_rule_that_came_nearest() -> None:
    """Its own ranking of the layers is asked for; the graph's own rule has its turn if no number of layers passes."""
    search = search_of(mixed=mixed_of(INT8), rules={"int8": RULES})
    tried = [MISSED, missed_with(2, RULES[0], 0.09), missed_with(3, RULES[1], 0.08)]
    assert search.next(tried) == Repair("int8", RULES[1])
    few = LAYERS[:2]
    rankings = {Repair("int8", RULES[1]): Ranking(few, 1)}
    search = replace(search, rankings=rankings)
    mixed, rule = Point(subject="m/gpu/int8-b1-mixed"), Choice(setting=RULE, value=RULES[1])
    for number in (1, 2):
        point = mixed.with_choice(Choice(setting="leave_unquantized.int8", value=few[:number])).with_choice(rule)
        assert search.next(tried) == point
        tried.append(trial_of(len(tried) + 1, point, verdict=TrialVerdict.REJECTED))
    assert search.next(tried) == Repair("int8")
    tried[-1] = trial_of(len(tried), tried[-1].point, 1.0)
    assert search.next(tried) == FP16.point


@pytest.mark.parametrize(
    ("distance", "drop"), [(0.1, 0.0), (0.2, 0.0), (0.05, 0.01)], ids=["as far", "farther", "more answers lost"]
)
def test_a_rule_that_came_no_nearer_is_no_base(distance: float, drop: float) -> None:
    """The layers stay in FP16 with the graph's own rule, then."""
    search = search_of(mixed=mixed_of(INT8), rules={"int8": RULES[:1]})
    assert search.next([MISSED, missed_with(2, RULES[0], distance, drop)]) == Repair("int8")


def test_a_rule_is_judged_once_for_all_batch_ranges() -> None:
    """A rule that missed the gate for one is not built for the next; one that passed comes first."""
    other = contender("int8-b64", 2)
    search = search_of(mixed=mixed_of(INT8, other), rules={"int8": RULES}, space=Space((INT8, other), BATCHES))
    missed = [
        trial_of(1, INT8.point, 1.0),  # as if it were repaired
        missed_with(2, RULES[0], 0.2),
        trial_of(3, other.point, verdict=TrialVerdict.REJECTED),
    ]
    second = Choice(setting=RULE, value=RULES[1])
    assert search.next(missed) == other.point.with_choice(second)
    also = missed_with(4, RULES[1], 0.2)
    assert search.next([*missed, also]) == Repair("int8")


def test_a_repaired_point_asks_for_no_rules_again() -> None:
    """A search that goes on sees what has passed, and judges nothing anew."""
    passed = trial_of(2, ruled("mse"), 1.0)
    assert search_of(mixed=mixed_of(INT8)).next([MISSED, passed]) == FP16.point


def test_without_a_ranking_nothing_is_repaired() -> None:
    """A graph whose sensitivities cannot be measured is left as it is."""
    search = search_of(mixed=mixed_of(INT8), rules={"int8": ()}, rankings={Repair("int8"): Ranking((), 0)})
    assert search.next([MISSED]) == FP16.point


def test_another_batch_range_begins_with_the_layers_that_passed_before() -> None:
    """What the repair of one range has found is the proposal for the next."""
    other = contender("int8-b64", 2)
    layers = Choice(setting="leave_unquantized.int8", value=LAYERS[:1])
    trials = [
        MISSED,
        trial_of(2, Point(subject="m/gpu/int8-b1-mixed", choices=(layers,)), 1.0),
        trial_of(3, other.point, verdict=TrialVerdict.REJECTED),
    ]
    search = search_of(
        mixed=mixed_of(INT8, other),
        rules={"int8": ()},
        rankings={Repair("int8"): Ranking(LAYERS, 3)},
        space=Space((INT8, other), BATCHES),
    )
    assert search.next(trials) == Point(subject="m/gpu/int8-b64-mixed", choices=(layers,))


def test_the_best_third_two_or_three_become_finalists() -> None:
    """Of twelve that passed three, of three two; an equal engine is no finalist of its own."""
    points = [INT8.point.with_choice(Choice(setting="s", value=number)) for number in range(12)]
    trials = [trial_of(number, point, float(number)) for number, point in enumerate(points, start=1)]
    assert [trial.number for trial in search_of().finalists(trials)] == [1, 2, 3]
    assert [trial.number for trial in search_of().finalists(trials[:3])] == [1, 2]
    twin = trials[1].model_copy(update={"same_as": 1})
    assert [trial.number for trial in search_of().finalists([trials[0], twin, trials[2]])] == [1, 3]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [(Objective("latency", 1), [2, 1]), (Objective("throughput"), [2, 1]), (Objective("memory"), [1, 2])],
    ids=["latency", "throughput", "memory"],
)
def test_each_objective_ranks_by_its_own_measure(objective: Objective, expected: list[int]) -> None:
    """The faster one needs more memory; the one that missed its gate is in no ranking."""
    missed = trial_of(3, FP16.point.with_choice(LEVEL), verdict=TrialVerdict.REJECTED)
    trials = [trial_of(1, INT8.point, 2.0, memory=10), trial_of(2, FP16.point, 1.0, memory=20), missed]
    assert [trial.number for trial in ranking_of(objective, trials)] == expected
