"""Trials → all that takes part in the finals, as far as the budget has time and the host memory. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Backend
from pipeline.tune.records import Point

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model_artifacts.records import Variant
    from pipeline.planning.plan import Plan
    from pipeline.tune.records import Trial
    from pipeline.tune.search import Search

_TUNING_SECONDS = 180.0
"""The seconds that inductor may tune for in the first restart, and ONNX Runtime's TensorRT provider build: a guess."""
_PEERS = {Backend.INDUCTOR, Backend.ONNXRUNTIME_TENSORRT}
"""The baselines that `benchmark.baselines` adds, and that are no contenders."""


class Entrants(NamedTuple):
    """Entrants of the finals beside eager FP32."""

    finalists: tuple[Trial, ...] = ()
    """The best of each objective, in the order of the search."""
    rivals: tuple[Trial, ...] = ()
    """The best trial of each backend that is not among the finalists."""
    streams: tuple[Point, ...] = ()
    """Finalists with other numbers of streams."""
    baselines: tuple[Point, ...] = ()
    """Baselines of the configuration, which are no answer."""
    left: tuple[str, ...] = ()
    """Entrants that the budget has no time for, each as a phrase."""
    crowded: tuple[str, ...] = ()
    """Entrants that the host has no memory for, finalists included, each as a phrase."""


NOBODY = Entrants()


class _Extra(NamedTuple):
    what: str
    point: Point
    trial: Trial | None = None
    start_seconds: float = 0.0


def entrants_of(search: Search, trials: Sequence[Trial], plan: Plan, room: int) -> Entrants:
    """Return what takes part: the finalists, then each other in its turn, if all restarts would end in the budget.

    All have a process at once, so that each must also have room.

    Args:
        search: the search.
        trials: all trials.
        plan: the plan, whose baselines are peers.
        room: the number of processes that this host has memory for, beside that of eager FP32.
    """
    finalists = search.finalists(trials)
    if not finalists:
        return NOBODY
    own, crowded = finalists[:room], [trial.point.text for trial in finalists[room:]]
    count = len(own) + 1
    seconds = search.budget_seconds - search.spent(trials)
    taken: list[_Extra] = []
    left: list[str] = []
    for extra in _extras(search, trials, plan):
        starts = sum(item.start_seconds for item in [*taken, extra])
        if count + len(taken) > room:
            crowded.append(extra.what)
        elif search.final_seconds(trials, count + len(taken) + 1) + starts > seconds:
            left.append(extra.what)
        else:
            taken.append(extra)
    return Entrants(
        finalists=tuple(sorted(own, key=lambda trial: trial.number)),
        rivals=tuple(item.trial for item in taken if item.trial),
        streams=tuple(item.point for item in taken if item.point.streams),
        baselines=tuple(item.point for item in taken if not item.trial and not item.point.streams),
        left=tuple(dict.fromkeys(left)),
        crowded=tuple(dict.fromkeys(crowded)),
    )


def _extras(search: Search, trials: Sequence[Trial], plan: Plan) -> Iterator[_Extra]:
    """Yield the candidates, the most telling first."""
    for point in search.stream_points(trials):
        yield _Extra(f"{point.streams} streams", point)
    for trial in search.rivals(trials):
        yield _Extra(_name(trial.point.subject), trial.point, trial)
    for variant in _baselines(search, plan):
        yield _Extra(_name(variant.id), Point(subject=variant.id), start_seconds=_TUNING_SECONDS)


def _name(subject: str) -> str:
    return subject.rpartition("/")[2]


def _baselines(search: Search, plan: Plan) -> Iterator[Variant]:
    """Yield the baselines on the hardware of the search: of each the fastest precision, with a timed batch size."""
    found = [item for item in plan.variants if item.backend in _PEERS and plan.gpu(item.target) is not None]
    for backend in Backend:
        own = [item for item in found if item.backend is backend]
        for variant in own:
            takes = variant.profile is None or any(variant.profile.takes(batch) for batch in search.space.batches)
            if takes and variant.precision is own[-1].precision:  # the plan has the fastest last
                yield variant
