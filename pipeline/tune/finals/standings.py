"""Restarts of the finals → standings, the winner beside its peers, and its rates with each number of streams. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import CLOCKS, Clock
from pipeline.stages.benchmark.statistics import interval_of_median
from pipeline.tune.records import Peer, Standing, StreamRate, are_of_a_kind
from pipeline.tune.search import LATENCY, MEMORY, THROUGHPUT, ranking_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pipeline.tune.records import FinalRestart, FinalSet, Trial
    from pipeline.tune.search import Objective


def standings_of(objective: Objective, trials: Sequence[Trial], restarts: Sequence[FinalRestart]) -> list[Standing]:
    """Return the finalists of an objective that were timed in every restart, the best first.

    Of a finalist that was timed with several numbers of streams, its best is its standing for throughput.

    Args:
        objective: the objective.
        trials: all trials.
        restarts: the finals' restarts, which all have the same finalists.
    """
    passed = {trial.point: trial for trial in reversed(trials) if trial.passed}
    if objective.kind == MEMORY:
        return [_by_memory(trial) for trial in ranking_of(objective, trials)[:3]]
    finalists = restarts[0].finalists if restarts else ()
    found = [
        standing
        for index, point in enumerate(finalists)
        if point.built in passed and (objective.kind == THROUGHPUT or point.streams is None)
        if (standing := _standing(objective, index, passed[point.built], restarts))
    ]
    if objective.kind == LATENCY:
        return sorted(found, key=lambda item: item.value)
    ordered = sorted(found, key=lambda item: -item.value)
    best = {item.trial: item for item in reversed(ordered)}
    return [item for item in ordered if item is best[item.trial]]


def _by_memory(trial: Trial) -> Standing:
    size = float(trial.memory_bytes or 0)
    return Standing(
        point=trial.point, trial=trial.number, value=size, low=size, high=size, drop=trial.drop or 0.0, restarts=0
    )


class Measured(NamedTuple):
    """The value of a finalist."""

    batch: int
    clock: Clock
    value: float
    low: float
    high: float
    streams: int | None = None
    """The number of streams, if several were timed at once."""


def _standing(objective: Objective, index: int, trial: Trial, restarts: Sequence[FinalRestart]) -> Standing | None:
    found = measured_of(objective, index, restarts)
    if found is None:
        return None
    several = found.clock is Clock.STREAMS
    return Standing(
        point=restarts[0].finalists[index] if several else trial.point,
        trial=trial.number,
        batch=found.batch,
        clock=found.clock,
        value=found.value,
        low=found.low,
        high=found.high,
        drop=trial.drop or 0.0,
        restarts=len(restarts),
        streams=found.streams,
    )


def measured_of(
    objective: Objective, index: int, restarts: Sequence[FinalRestart], among: Collection[Clock] = CLOCKS
) -> Measured | None:
    """Return the value of a finalist by its best clock, of a throughput at its best batch size.

    Args:
        objective: the objective.
        index: the finalist's place in the restarts.
        restarts: the finals' restarts.
        among: the clocks to look at.

    Returns:
        the value; None if a restart lacks it.
    """
    sets = [[item for item in restart.sets if item.finalist == index and item.clock in among] for restart in restarts]
    clocks = {(item.batch, item.clock) for item in sets[0]} if sets else set()
    whole = [key for key in clocks if all(any(_is(item, key) for item in own) for own in sets)]
    found: list[Measured] = []
    for batch, clock in sorted(_ranked(objective, whole)):
        own = [item for restart in sets for item in restart if _is(item, (batch, clock))]
        rounds = [item.rounds_ms for item in own]
        middle = median(time for times in rounds for time in times)
        low, high = interval_of_median(rounds)
        found.append(Measured(batch, clock, middle, min(low, middle), max(high, middle), own[0].streams))
    if not found:
        return None
    best = min(found, key=lambda item: item.value / item.batch)
    times = (best.value, best.low, best.high)
    if objective.kind != LATENCY:
        value, high, low = (_rate(best.batch, time) for time in times)
        times = (value, low, high)
    value, low, high = (round(time, 4) for time in times)
    return best._replace(value=value, low=low, high=high)


def eager_of(
    objective: Objective, winner: Standing, baseline: str | None, restarts: Sequence[FinalRestart]
) -> Peer | None:
    """Return how many times as fast as eager FP32 the winner is, by the ends of both intervals.

    Args:
        objective: the objective.
        winner: the best standing.
        baseline: the subject of eager FP32; None if the model has none.
        restarts: the finals' restarts, in which it took turns with all others.

    Returns:
        eager FP32 beside the winner; None for memory, without eager FP32, or after one restart, which has no interval.
    """
    finalists = restarts[0].finalists if len(restarts) > 1 else ()
    index = next((place for place, point in enumerate(finalists) if point.subject == baseline), None)
    if index is None or objective.kind == MEMORY:
        return None
    return _beside(objective, winner, index, restarts)


def _beside(objective: Objective, winner: Standing, index: int, restarts: Sequence[FinalRestart]) -> Peer | None:
    """Return a finalist beside the winner; None if they have no clock in common."""
    finalists, mine = restarts[0].finalists, _of(winner)
    pair = _by_one_clock(objective, mine, (finalists.index(winner.point), index), restarts) if mine else None
    if pair is None:
        return None
    own, theirs = pair
    fast, slow = pair if objective.kind == LATENCY else (theirs, own)  # of rates the larger is faster
    if not (fast.value and fast.high and fast.low):
        return None
    ends = (slow.low / fast.high, slow.high / fast.low) if len(restarts) > 1 else (None, None)
    least, most = (None if end is None else round(end, 3) for end in ends)
    return Peer(
        subject=finalists[index].subject,
        clock=theirs.clock,
        winner_clock=own.clock,
        ratio=round(slow.value / fast.value, 3),
        least=least,
        most=most,
    )


def _of(standing: Standing) -> Measured | None:
    if standing.batch is None or standing.clock is None:
        return None
    return Measured(standing.batch, standing.clock, standing.value, standing.low, standing.high)


def _by_one_clock(
    objective: Objective, winner: Measured, places: tuple[int, int], restarts: Sequence[FinalRestart]
) -> tuple[Measured, Measured] | None:
    """Return the winner and another one, each by its best clock on the GPU, or both by the host's.

    Args:
        objective: the objective.
        winner: the winner, by its best clock.
        places: the places of both in the restarts, the winner's first.
        restarts: the finals' restarts.

    Returns:
        both; None if they have no such clock in common.
    """
    theirs = measured_of(objective, places[1], restarts)
    if theirs is None or are_of_a_kind(winner.clock, theirs.clock):
        return (winner, theirs) if theirs else None
    mine, theirs = (measured_of(objective, place, restarts, {Clock.HOST}) for place in places)
    return (mine, theirs) if mine and theirs else None


def peers_of(
    objective: Objective, winner: Standing, backends: Mapping[int, str], restarts: Sequence[FinalRestart]
) -> list[Peer]:
    """Return the best of each other backend, beside the winner.

    What the host's clock alone has timed, as ONNX Runtime's CUDA provider is, is compared by that clock: as the winner,
    too, beside an engine whose work on the GPU has a time of its own.

    Args:
        objective: the objective.
        winner: the best standing.
        backends: the backend of each finalist, by its place in the restarts; those of eager FP32 are left out.
        restarts: the finals' restarts, in which all took turns.
    """
    if objective.kind == MEMORY or not restarts:
        return []
    own = backends[restarts[0].finalists.index(winner.point)]
    best: dict[str, Peer] = {}
    for index, backend in backends.items():
        peer = None if backend == own else _beside(objective, winner, index, restarts)
        if peer and (backend not in best or peer.ratio < best[backend].ratio):
            best[backend] = peer
    return list(best.values())


def rates_of(objective: Objective, winner: Standing, restarts: Sequence[FinalRestart]) -> list[StreamRate]:
    """Return the winner's rates with each number of streams that was timed; none for another objective.

    Args:
        objective: the objective.
        winner: the best standing.
        restarts: the finals' restarts.
    """
    if objective.kind != THROUGHPUT or not restarts:
        return []
    places = [index for index, point in enumerate(restarts[0].finalists) if point.built == winner.point.built]
    found = [measured_of(objective, index, restarts, {Clock.STREAMS}) for index in places]
    rates = {item.streams: item for item in found if item and item.streams}
    if rates and (alone := measured_of(objective, places[0], restarts, {*CLOCKS} - {Clock.STREAMS})):
        rates[1] = alone
    return [
        StreamRate(streams=number, batch=item.batch, rate=item.value)
        for number, item in sorted(rates.items(), key=lambda pair: pair[0] or 0)
        if number
    ]


def _is(item: FinalSet, key: tuple[int, Clock]) -> bool:
    return (item.batch, item.clock) == key


def _rate(batch: int, milliseconds: float) -> float:
    return batch / max(milliseconds, 1e-6) * 1e3


def _ranked(objective: Objective, keys: Sequence[tuple[int, Clock]]) -> Iterator[tuple[int, Clock]]:
    """Yield the batch sizes and clocks that count for an objective: a latency is never that of several streams."""
    for size in sorted({batch for batch, _ in keys}):
        if objective.batch not in {None, size}:
            continue
        clocks = [clock for batch, clock in keys if batch == size]
        alone = [clock for clock in clocks if clock is not Clock.STREAMS]
        if alone:
            yield size, min(alone, key=CLOCKS.index)
        if objective.kind != LATENCY and Clock.STREAMS in clocks:
            yield size, Clock.STREAMS


def tied(standings: Sequence[Standing]) -> int:
    """Return how many of those behind the winner may be as good: their intervals overlap its own, by a clock like it.

    One restart has no interval, and says nothing of ties. Nor does a call by the host's clock beside work on the GPU.
    """
    if not standings or standings[0].restarts == 1:
        return 0
    first = standings[0]
    others = [item for item in standings[1:] if are_of_a_kind(first.clock, item.clock)]
    return sum(max(first.low, item.low) <= min(first.high, item.high) for item in others)
