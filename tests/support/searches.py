"""Synthetic searches: contenders with costs, gates and latencies that a function gives, and no engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from hypothesis import strategies as st

from model_artifacts.records import Clock, Key
from pipeline.tune.records import Choice, Point, ScreenedBatch, Trial, TrialVerdict
from pipeline.tune.repair import RULE, Ranking, Repair, Screen
from pipeline.tune.search import Objective, Search
from pipeline.tune.space import Contender, Mixed, Option, Space

BATCHES = (1, 64)
OBJECTIVES = (*(Objective("latency", batch) for batch in BATCHES), Objective("throughput"), Objective("memory"))
LEVEL = Choice(setting="tensorrt.optimization_level", value=5)
STREAMS = Choice(setting="tensorrt.max_aux_streams", value=0)
TILING = Choice(setting="tensorrt.tiling_optimization_level", value="fast")
LIMIT = Choice(setting="tensorrt.l2_limit_for_tiling", value="16MiB")
OPTIONS = (Option(STREAMS), Option(LEVEL, 4.0), Option(TILING), Option(LIMIT, needs=TILING.setting))
RULES = ("entropy", "mse", "99.9%")
"""Rules for ranges that are worth a build, the best first."""
LAYERS = tuple(f"conv{number}" for number in range(12))


def never_ends(*_work: object) -> None:
    """Run an artifact or a graph as a driver that hangs does."""
    while True:
        time.sleep(60)


def contender(name: str, place: int = 0, batches: tuple[int, ...] = BATCHES) -> Contender:
    """Return a contender of the kind `tensorrt`, with every option."""
    traits = (("precision", name.partition("-")[0]),)
    return Contender(f"m/gpu/{name}", "tensorrt", batches, (place,), OPTIONS, traits)


def trial_of(  # noqa: PLR0913 - the facts of a trial
    number: int,
    point: Point,
    milliseconds: float | None = None,
    seconds: float = 10.0,
    *,
    verdict: TrialVerdict | None = None,
    batches: tuple[int, ...] = BATCHES,
    memory: int = 1000,
    drop: float = 0.0,
    distance: float | None = 0.1,
    refused: str = "",
) -> Trial:
    """Return a trial; one with milliseconds for a batch of 1 has passed, and the time grows with the batch."""
    passed = verdict is None and milliseconds is not None
    return Trial(
        key=Key(fields=()),
        built_at=datetime(2026, 1, 1, tzinfo=timezone.utc),
        number=number,
        point=point,
        verdict=TrialVerdict.PASSED if passed else verdict or TrialVerdict.REJECTED,
        refused=refused,
        seconds=seconds,
        screening_seconds=seconds / 4 if passed else 0.0,
        drop=drop,
        relative_l2=distance,
        memory_bytes=memory if passed else None,
        screened=tuple(
            ScreenedBatch(batch=batch, clock=Clock.GPU_GRAPH, p50_ms=milliseconds * batch**0.5)
            for batch in batches
            if passed and milliseconds is not None
        ),
    )


@dataclass(frozen=True)
class World:
    """The truth that a search does not know: what each point costs, gives and loses."""

    names: tuple[str, ...]
    factors: tuple[float, ...]
    """Latency of each name, in ms."""
    failing: frozenset[str]
    """Names that miss their gate without a repair."""
    gains: tuple[float, ...]
    """Factor of the latency of each of OPTIONS."""
    refused: frozenset[str]
    """Settings that the library cannot apply."""
    fewest: int
    """Number of layers that must stay in FP16; more than there are if nothing helps."""
    rescuing: frozenset[str]
    """Rules for ranges with which all names keep their gate."""
    seconds: float
    """Duration of a trial."""
    budget: float

    def search(self) -> Search:
        """Return the search before its first move."""
        found = tuple(contender(name, place) for place, name in enumerate(self.names))
        mixed = {
            item.subject: Mixed("int8", "int8", contender(f"{name}-mixed"))
            for item, name in zip(found, self.names, strict=True)
        }
        return Search(Space(found, BATCHES), OBJECTIVES, self.budget, mixed=mixed)

    def trial(self, number: int, point: Point) -> Trial:
        """Return what a trial of a point would give."""
        name = point.subject.rpartition("/")[2].removesuffix("-mixed")
        left = next((len(item.value) for item in point.choices if isinstance(item.value, tuple)), 0)
        known = {item.choice: (gain, item.cost) for item, gain in zip(OPTIONS, self.gains, strict=True)}
        made = [known[choice] for choice in point.choices if choice in known]
        seconds = self.seconds * max([cost for _, cost in made], default=1.0)
        if refused := next((item.setting for item in point.choices if item.setting in self.refused), ""):
            return trial_of(number, point, seconds=seconds, verdict=TrialVerdict.UNSUPPORTED, refused=refused)
        rescued = any(item.setting == RULE and item.value in self.rescuing for item in point.choices)
        if name in self.failing and left < self.fewest and not rescued:
            return trial_of(number, point, seconds=seconds, verdict=TrialVerdict.REJECTED)
        time = self.factors[self.names.index(name)] * (1 + left / 100)
        for gain, _ in made:
            time *= gain
        return trial_of(number, point, time, seconds)

    def passes(self, point: Point) -> bool:
        """Return whether a point keeps its gate."""
        return self.trial(1, point).passed

    def run(self, search: Search, trials: list[Trial], most: int = 10**6) -> list[Trial]:
        """Make moves until the search ends, or until there are so many trials."""
        found = [*trials]
        while len(found) < most and (move := search.next(found)) is not None:
            if isinstance(move, Screen):
                search = replace(search, rules={**search.rules, move.graph: RULES})
            elif isinstance(move, Repair):
                search = replace(search, rankings={**search.rankings, move: Ranking(LAYERS, 3)})
            else:
                found.append(self.trial(len(found) + 1, move))
        return found


_NAMES = ("int8-b1", "fp16-b1", "bf16-b1", "fp32-b1")
WORLDS = st.builds(
    World,
    names=st.just(_NAMES),
    factors=st.tuples(*[st.floats(0.1, 10)] * len(_NAMES)),
    failing=st.frozensets(st.sampled_from(_NAMES)),
    gains=st.tuples(*[st.floats(0.5, 1.5)] * len(OPTIONS)),
    refused=st.frozensets(st.sampled_from([item.choice.setting for item in OPTIONS])),
    fewest=st.integers(1, 20),
    rescuing=st.frozensets(st.sampled_from(RULES)),
    seconds=st.floats(0.5, 30),
    budget=st.floats(10, 600),
)
