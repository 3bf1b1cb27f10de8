"""The manifest's entries → what to deploy, and why. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import CLOCKS, Clock, Layout, Status, ranking_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from model_artifacts.records import BatchTiming, ManifestEntry


class Choice(NamedTuple):
    """What to deploy where one thing counts most."""

    wish: str
    entry: ManifestEntry | None
    """None: nothing that may be deployed tells of this."""
    why: str
    ties: tuple[str, ...] = ()
    """Artifacts that cannot be told from it by this measure."""


class _Candidate(NamedTuple):
    entry: ManifestEntry
    timing: BatchTiming


def ties_of(entries: Iterable[ManifestEntry], batch: int) -> frozenset[str]:
    """Return the ids of what may be deployed and cannot be told from the fastest of its device, that one included.

    Where nothing ties with the fastest there are none.

    Args:
        entries: of one or more devices.
        batch: at which they are compared.
    """
    by_device: dict[tuple[str, Clock], dict[str, BatchTiming]] = {}
    for entry in entries:
        if entry.status is Status.DEPLOYABLE and (timing := latency_of(entry, batch)):
            by_device.setdefault((entry.device, timing.clock), {})[entry.id] = timing
    ties: set[str] = set()
    for found in by_device.values():
        best = min(found.values(), key=lambda timing: timing.p50_ms)
        alike = {name for name, timing in found.items() if timing.ties_with(best)}
        ties |= alike if len(alike) > 1 else set()
    return frozenset(ties)


def choices_of(entries: Sequence[ManifestEntry]) -> tuple[Choice, ...]:
    """Return what to deploy for latency, for throughput and for the smallest memory.

    Of what cannot be told apart the smallest file is taken.

    Args:
        entries: artifacts that run on one GPU, or on one processor.
    """
    deployable = [entry for entry in entries if entry.status is Status.DEPLOYABLE]
    batches = sorted({timing.batch for entry in deployable for timing in entry.timings})
    return (_fastest(deployable, batches[0] if batches else 1), _most_images(deployable), _smallest(deployable))


def _fastest(entries: list[ManifestEntry], batch: int) -> Choice:
    found = [_Candidate(entry, timing) for entry in entries if (timing := latency_of(entry, batch))]
    wish = f"lowest latency, batch {batch}"
    if not found:
        return Choice(wish, None, "nothing that may be deployed was timed")
    clock = ranking_clock({item.timing.clock for item in found})
    alike = [item for item in found if item.timing.clock is clock]  # a host's clock and a GPU's tell different things
    best = min(alike, key=lambda item: item.timing.p50_ms)
    chosen, ties = _settle(alike, best)
    p50, low, high = (f"{value:#.4g}" for value in (chosen.timing.p50_ms, *chosen.timing.interval_ms))
    told = f"p50 {p50} ms (95 %: {low} to {high}) {clock.phrase}"
    return Choice(wish, chosen.entry, told + _gain(chosen), ties)


def _most_images(entries: list[ManifestEntry]) -> Choice:
    found = [
        _Candidate(entry, timing)
        for entry in entries
        for timing in entry.timings
        if timing.layout is Layout.CONTIGUOUS and timing.clock is not Clock.COPIES
    ]
    if not found:
        return Choice("highest throughput", None, "nothing that may be deployed was timed")
    best = max(found, key=lambda item: item.timing.throughput_per_s)
    alike = [item for item in found if (item.timing.batch, item.timing.clock) == (best.timing.batch, best.timing.clock)]
    chosen, ties = _settle(alike, best)
    how = "several streams" if chosen.timing.clock is Clock.STREAMS else "one batch after the other"
    rate = f"{chosen.timing.throughput_per_s:,.0f} images/s in batches of {chosen.timing.batch}, {how}"
    return Choice("highest throughput", chosen.entry, rate + _gain(chosen), ties)


def _settle(found: Iterable[_Candidate], best: _Candidate) -> tuple[_Candidate, tuple[str, ...]]:
    """Return the smallest file of those that tie with the best, and the others' ids."""
    ties = {item.entry.id: item for item in found if item.timing.ties_with(best.timing)}
    chosen = min(ties.values(), key=lambda item: (item.entry.file.bytes if item.entry.file else 0, item.entry.id))
    return chosen, tuple(name for name in ties if name != chosen.entry.id)


def _gain(found: _Candidate) -> str:
    return f", {found.timing.speedup:.2f}× eager FP32" if found.timing.speedup else ""


def _smallest(entries: list[ManifestEntry]) -> Choice:
    """Memory on a GPU where that was measured, or else the file."""
    measured = [entry for entry in entries if entry.device_memory_bytes is not None]
    if measured:
        return _least("smallest GPU memory", measured, lambda entry: entry.device_memory_bytes or 0, "of GPU memory")
    return _least(
        "smallest file", [entry for entry in entries if entry.file], lambda e: e.file.bytes if e.file else 0, "on disk"
    )


def _least(wish: str, entries: list[ManifestEntry], size: Callable[[ManifestEntry], int], what: str) -> Choice:
    if not entries:
        return Choice(wish, None, "nothing may be deployed")
    best = min(entries, key=lambda entry: (size(entry), entry.id))
    ties = tuple(entry.id for entry in entries if size(entry) == size(best) and entry is not best)
    return Choice(wish, best, f"{size(best) / 1e6:.1f} MB {what}", ties)


def latency_of(entry: ManifestEntry, batch: int) -> BatchTiming | None:
    """Return the timing that tells most of an artifact at a batch: on a GPU its CUDA graph's; None without any."""
    found = [timing for timing in entry.timings if timing.batch == batch and timing.clock is not Clock.STREAMS]
    return min(
        found, key=lambda timing: (timing.layout is not Layout.CONTIGUOUS, CLOCKS.index(timing.clock)), default=None
    )
