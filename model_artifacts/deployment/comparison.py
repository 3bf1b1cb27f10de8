"""Two manifests → changes in status, latency and accuracy, and the broken bounds. Pure functions."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from model_artifacts.records import Clock, Layout, Status, ranking_clock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model_artifacts.records import Accuracy, BatchTiming, Manifest, ManifestEntry

_BEYOND = 0.03
"""Share by which a latency without intervals must change to count as changed."""


class Bounds(Protocol):
    """Bounds of a change, as `release` in pipeline.yaml configures them."""

    @property
    def max_latency_increase(self) -> float:
        """Largest growth of a median latency, as a share."""

    @property
    def max_top1_drop(self) -> float:
        """Largest drop of top-1; without labels of the agreement, for other tasks of the mean cosine."""


class Turn(str, Enum):
    """Direction of a change."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    UNKNOWN = "not compared"


class Change(NamedTuple):
    """One fact of an artifact, before and after."""

    id: str
    metric: str
    before: str
    after: str
    turn: Turn
    by: float | None = None
    """Growth of a latency as a share, or drop of top-1, agreement or cosine; None for other facts."""
    breach: str = ""
    """The configured bound that the change breaks; empty if none."""


def compare(before: Manifest, after: Manifest, bounds: Bounds | None = None) -> tuple[Change, ...]:
    """Compare two manifests.

    A latency counts as changed if the 95 % intervals do not overlap; without intervals, if it moved by more than 3 %.
    Latencies of different devices or drivers are not compared, nor accuracies on different numbers of images; a bound
    on the accuracy holds for those, too. Bounds apply to the ranking clock and to several streams
    only, because a busy host would break those of other clocks. A measurement that is missing now breaks its bound.

    Args:
        before: the released manifest.
        after: this build's manifest.
        bounds: the configured bounds; None checks none.

    Returns:
        the facts of all artifacts, sorted by id; unchanged ones have the turn `SAME`.
    """
    old = {entry.id: entry for entry in before.artifacts}
    new = {entry.id: entry for entry in after.artifacts}
    changes: list[Change] = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            changes.append(
                Change(name, "artifact", old[name].status.value, "absent", _of_status(old[name].status, None))
            )
        elif name not in old:
            changes.append(Change(name, "artifact", "absent", new[name].status.value, Turn.UNKNOWN))
        else:
            changes += _compared(old[name], new[name], bounds)
    return tuple(changes)


def worth_telling(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Return the changes that are not `same`."""
    return tuple(change for change in changes if change.turn is not Turn.SAME)


def breaches_of(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Return the changes that break a configured bound."""
    return tuple(change for change in changes if change.breach)


def _compared(old: ManifestEntry, new: ManifestEntry, bounds: Bounds | None) -> list[Change]:
    changes = []
    if old.status is not new.status:
        turn = _of_status(old.status, new.status)
        breach = "must stay deployable" if bounds and turn is Turn.WORSE else ""
        changes.append(Change(new.id, "status", old.status.value, new.status.value, turn, breach=breach))
    changes += _latencies(old, new, bounds)
    changes += _accuracies(old, new, bounds)
    return changes


def _of_status(old: Status, new: Status | None) -> Turn:
    if old is Status.DEPLOYABLE:
        return Turn.WORSE
    return Turn.BETTER if new is Status.DEPLOYABLE else Turn.UNKNOWN


def _latencies(old: ManifestEntry, new: ManifestEntry, bounds: Bounds | None) -> list[Change]:
    now = {_metric(timing): timing for timing in new.timings}
    bounded = {ranking_clock({timing.clock for timing in old.timings}), Clock.STREAMS} if old.timings else set()
    changes = []
    for timing in old.timings:
        limits = bounds if timing.clock in bounded else None
        if after := now.get(_metric(timing)):
            changes.append(_latency(new.id, timing, after, limits, alike=old.device == new.device))
        elif limits or new.timings:
            changes.append(_missing(new.id, _metric(timing), _shown(timing), limits))
    return changes


def _missing(name: str, metric: str, before: str, bounds: Bounds | None) -> Change:
    breach = "must be measured" if bounds else ""
    return Change(name, metric, before, "not measured", Turn.WORSE if bounds else Turn.UNKNOWN, breach=breach)


def _shown(timing: BatchTiming) -> str:
    return f"{timing.p50_ms:.4g} ms"


def _metric(timing: BatchTiming) -> str:
    layout = "" if timing.layout is Layout.CONTIGUOUS else f", {timing.layout.value}"
    return f"p50 at batch {timing.batch}, {timing.clock.value}{layout}"


def _latency(name: str, old: BatchTiming, new: BatchTiming, bounds: Bounds | None, *, alike: bool) -> Change:
    grown = new.p50_ms / old.p50_ms - 1 if old.p50_ms else 0.0
    turn = Turn.UNKNOWN if not alike else _turn_of_latency(old, new, grown)
    breach = ""
    if bounds and turn is Turn.WORSE and grown > bounds.max_latency_increase:
        breach = f"≤ +{bounds.max_latency_increase:.1%}"
    return Change(name, _metric(new), _shown(old), _shown(new), turn, grown, breach)


def _turn_of_latency(old: BatchTiming, new: BatchTiming, grown: float) -> Turn:
    with_intervals = None not in {old.p50_low_ms, new.p50_low_ms}
    if old.ties_with(new) or (not with_intervals and abs(grown) <= _BEYOND):
        return Turn.SAME
    return Turn.WORSE if grown > 0 else Turn.BETTER


def _accuracies(old: ManifestEntry, new: ManifestEntry, bounds: Bounds | None) -> list[Change]:
    after = {accuracy.output: accuracy for accuracy in _of_outputs(new)}
    changes = []
    for before in _of_outputs(old):
        name = f"{before.output}: " if before.output else ""
        if before.output in after:
            changes.append(_accuracy(new.id, before, after[before.output], bounds, name))
        else:
            changes.append(_missing(new.id, f"{name}accuracy", f"relative L2 {before.relative_l2:.1e}", bounds))
    return changes


def _of_outputs(entry: ManifestEntry) -> tuple[Accuracy, ...]:
    """Return the accuracy of each output; none without a validation."""
    return entry.accuracies or ((entry.accuracy,) if entry.accuracy else ())


def _accuracy(entry: str, old: Accuracy, new: Accuracy, bounds: Bounds | None, name: str) -> Change:
    metric, before, after = _shared_metric(old, new)
    drop = round(before - after, 9)  # shares of whole samples: a drop of exactly the bound is allowed
    alike = old.samples == new.samples
    turn = Turn.UNKNOWN if not alike else Turn.SAME if drop == 0 else Turn.WORSE if drop > 0 else Turn.BETTER
    form = ".6f" if metric == _COSINE else ".2%"
    of = (f"{before:{form}}", f"{after:{form}}")
    if not alike:
        of = (f"{of[0]} of {old.samples}", f"{of[1]} of {new.samples}")
    breach = ""
    if bounds and drop > bounds.max_top1_drop:
        turn, breach = Turn.WORSE, f"≥ -{bounds.max_top1_drop * 100:g} pt"
    return Change(entry, f"{name}{metric}", *of, turn, drop, breach)


_COSINE = "cosine"


def _shared_metric(old: Accuracy, new: Accuracy) -> tuple[str, float, float]:
    """Return the first metric that both have, with its values: top-1, agreement, or the cosine, which all have."""
    for before in old.scores[:1]:
        for after in new.scores[:1]:
            if before.is_share and before.metric == after.metric:
                return before.metric, before.value, after.value
    if old.top1 is not None and new.top1 is not None:
        return "top-1", old.top1, new.top1
    if old.top1_agreement is not None and new.top1_agreement is not None:
        return "agreement", old.top1_agreement, new.top1_agreement
    return _COSINE, old.cosine, new.cosine
