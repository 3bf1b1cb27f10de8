"""Two manifests → what got slower, less accurate, larger, or went missing. Pure."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Clock, Layout, Status, ranking_clock

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model_artifacts.records import BatchTiming, Manifest, ManifestEntry
    from pipeline.config.settings import ReleaseConfig

_BEYOND = 0.03
"""Without intervals, a latency that moved by less is taken for the same."""


class Turn(str, Enum):
    """Which way something went."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    UNKNOWN = "not compared"


class Change(NamedTuple):
    """One thing about one artifact, before and now."""

    id: str
    metric: str
    before: str
    after: str
    turn: Turn
    by: float | None = None
    """Of a latency or a size the share by which it grew; of a top-1 or an agreement the drop; None of anything else."""
    breach: str = ""
    """The bound of the configuration that it breaks."""


def compare(before: Manifest, after: Manifest, bounds: ReleaseConfig | None = None) -> tuple[Change, ...]:
    """Return what differs between two manifests, the artifacts of both in order.

    A latency has changed where the 95 % intervals do not overlap; without intervals, where it moved by more than 3 %.
    Latencies of two devices or drivers are not compared. A bound holds by the clock that variants are compared by, and
    with several streams: by others a busy host breaks it. What was measured and no longer is cannot be held to its
    bound, which breaks it.

    Args:
        before: the released one.
        after: this build's.
        bounds: what must not be exceeded; None bounds nothing.
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
    """Return the changes that break a bound."""
    return tuple(change for change in changes if change.breach)


def _compared(old: ManifestEntry, new: ManifestEntry, bounds: ReleaseConfig | None) -> list[Change]:
    changes = []
    if old.status is not new.status:
        turn = _of_status(old.status, new.status)
        breach = "what was deployable must stay so" if bounds and turn is Turn.WORSE else ""
        changes.append(Change(new.id, "status", old.status.value, new.status.value, turn, breach=breach))
    changes += _latencies(old, new, bounds)
    changes += _accuracies(old, new, bounds)
    return changes


def _of_status(old: Status, new: Status | None) -> Turn:
    if old is Status.DEPLOYABLE:
        return Turn.WORSE
    return Turn.BETTER if new is Status.DEPLOYABLE else Turn.UNKNOWN


def _latencies(old: ManifestEntry, new: ManifestEntry, bounds: ReleaseConfig | None) -> list[Change]:
    now = {_what(timing): timing for timing in new.timings}
    bounded = {ranking_clock({timing.clock for timing in old.timings}), Clock.STREAMS} if old.timings else set()
    changes = []
    for timing in old.timings:
        held_to = bounds if timing.clock in bounded else None
        if found := now.get(_what(timing)):
            changes.append(_latency(new.id, timing, found, held_to, alike=old.device == new.device))
        elif held_to or new.timings:
            changes.append(_missing(new.id, _what(timing), _shown(timing), held_to))
    return changes


def _missing(name: str, metric: str, before: str, bounds: ReleaseConfig | None) -> Change:
    breach = "must be measured to be held to its bound" if bounds else ""
    return Change(name, metric, before, "not measured", Turn.WORSE if bounds else Turn.UNKNOWN, breach=breach)


def _shown(timing: BatchTiming) -> str:
    return f"{timing.p50_ms:.4g} ms"


def _what(timing: BatchTiming) -> str:
    layout = "" if timing.layout is Layout.CONTIGUOUS else f", {timing.layout.value}"
    return f"p50 at batch {timing.batch}, {timing.clock.value}{layout}"


def _latency(name: str, old: BatchTiming, new: BatchTiming, bounds: ReleaseConfig | None, *, alike: bool) -> Change:
    grown = new.p50_ms / old.p50_ms - 1 if old.p50_ms else 0.0
    turn = Turn.UNKNOWN if not alike else _turn_of_latency(old, new, grown)
    breach = ""
    if bounds and turn is Turn.WORSE and grown > bounds.max_latency_increase:
        breach = f"≤ +{bounds.max_latency_increase:.1%}"
    return Change(name, _what(new), _shown(old), _shown(new), turn, grown, breach)


def _turn_of_latency(old: BatchTiming, new: BatchTiming, grown: float) -> Turn:
    with_intervals = None not in {old.p50_low_ms, new.p50_low_ms}
    if old.ties_with(new) or (not with_intervals and abs(grown) <= _BEYOND):
        return Turn.SAME
    return Turn.WORSE if grown > 0 else Turn.BETTER


def _accuracies(old: ManifestEntry, new: ManifestEntry, bounds: ReleaseConfig | None) -> list[Change]:
    if old.accuracy is None:
        return []
    if new.accuracy is None:
        return [_missing(new.id, "accuracy", f"agreement {old.accuracy.top1_agreement:.2%}", bounds)]
    labelled = old.accuracy.top1 is not None and new.accuracy.top1 is not None
    pair = (
        (old.accuracy.top1, new.accuracy.top1)
        if labelled
        else (old.accuracy.top1_agreement, new.accuracy.top1_agreement)
    )
    before, after = (value or 0.0 for value in pair)
    drop = round(before - after, 9)  # shares of whole samples: what is exactly the bound keeps it
    turn = Turn.SAME if drop == 0 else Turn.WORSE if drop > 0 else Turn.BETTER
    breach = ""
    if bounds and drop > bounds.max_top1_drop:
        breach = f"≥ -{bounds.max_top1_drop * 100:g} pt"
    return [Change(new.id, "top-1" if labelled else "agreement", f"{before:.2%}", f"{after:.2%}", turn, drop, breach)]
