"""Choices of artifacts by latency, throughput and memory, from the manifest alone, and their speed-ups.

A speed-up over eager FP32 has no more digits than the intervals of both latencies allow. Pure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.host.terminal import size_phrase
from model_artifacts.records import CLOCKS, Backend, Clock, Layout, Precision, Status, ranking_clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from model_artifacts.records import BatchTiming, Manifest, ManifestEntry, Milestone


_ONE_SIDED = 1.645
"""Standard deviations that chance exceeds once in twenty times."""


class Choice(NamedTuple):
    """The artifact to deploy for one goal."""

    goal: str
    """For example `lowest latency, batch 1`."""
    entry: ManifestEntry | None
    """None if no deployable artifact has this measurement."""
    why: str
    """The measurement that decided, or the reason for no choice."""
    ties: tuple[str, ...] = ()
    """Ids of the artifacts whose measurement does not differ from the chosen one's."""
    left_out: str = ""
    """The number of artifacts that were no candidates, because they take or give something else; empty without any."""
    timing: BatchTiming | None = None
    """The latency that decided; None for other goals."""


class _Candidate(NamedTuple):
    entry: ManifestEntry
    timing: BatchTiming


def ties_of(entries: Iterable[ManifestEntry], batch: int) -> frozenset[str]:
    """Return the ids of the deployable artifacts that tie with the fastest of their device, the fastest included.

    Two latencies tie if their intervals overlap. A fastest artifact without a tie is left out.

    Args:
        entries: Artifacts of one or more devices.
        batch: The batch size of the compared latencies.
    """
    by_device: dict[tuple[str, Clock], dict[str, BatchTiming]] = {}
    for entry in entries:
        if entry.status is Status.DEPLOYABLE and (timing := latency_of(entry, batch)):
            by_device.setdefault((entry.device, timing.clock), {})[entry.id] = timing
    ties: set[str] = set()
    for timings in by_device.values():
        best = min(timings.values(), key=lambda timing: timing.p50_ms)
        alike = {name for name, timing in timings.items() if timing.ties_with(best)}
        ties |= alike if len(alike) > 1 else set()
    return frozenset(ties)


def may_be_deployed(entry: ManifestEntry) -> bool:
    """Return True for what `load` and a release may take: deployable, and no baseline that only serves to compare."""
    return entry.status is Status.DEPLOYABLE and not entry.backend.is_baseline


def choices_of(entries: Sequence[ManifestEntry]) -> tuple[Choice, ...]:
    """Choose an artifact for latency, one for throughput and one for memory.

    Of artifacts that tie, the one with the smallest file is taken. Those with another input or output than the
    network's own are candidates only if there are no others; else each choice says that they are left out.

    Args:
        entries: The artifacts of one GPU or of one processor.
    """
    ready = [entry for entry in entries if may_be_deployed(entry)]
    deployable = [entry for entry in ready if entry.io.is_plain] or ready  # as `load` takes them without being asked
    others = [entry for entry in ready if entry not in deployable]
    eager = [entry for entry in entries if is_eager(entry)]
    batches = sorted({timing.batch for entry in deployable for timing in entry.timings})
    latency = _fastest(deployable, batches[0] if batches else 1, eager)
    said = _left_out(others)
    return (
        latency._replace(left_out=said + _fastest_of_these(others, latency)),
        _most_images(deployable, eager)._replace(left_out=said),
        _smallest(deployable)._replace(left_out=said),
    )


def _left_out(others: list[ManifestEntry]) -> str:
    if not others:
        return ""
    return f"{len(others)} with another input or output (`io`) {'is' if len(others) == 1 else 'are'} not compared"


def _fastest_of_these(others: list[ManifestEntry], choice: Choice) -> str:
    """Return the lowest latency of the artifacts that are left out, by the clock of the choice."""
    shown = choice.timing
    timed = [_Candidate(entry, timing) for entry in others if shown and (timing := latency_of(entry, shown.batch))]
    alike = [item for item in timed if shown and item.timing.clock is shown.clock]
    if not alike:
        return ""
    best = min(alike, key=lambda item: item.timing.p50_ms)
    return f"; the fastest takes {best.timing.p50_ms:#.4g} ms: {best.entry.id.split('/', 1)[1]}"


def verdict_of(manifest: Manifest) -> dict[str, tuple[Choice, ...]]:
    """Choose for each device that a deployable artifact was timed on.

    Returns:
        The choices by the name of the GPU or of the processor, in the manifest's order.
    """
    by_device: dict[str, list[ManifestEntry]] = {}
    for entry in manifest.artifacts:
        if (may_be_deployed(entry) or is_eager(entry)) and entry.device_type:
            by_device.setdefault(entry.device_type, []).append(entry)
    return {device: choices_of(entries) for device, entries in by_device.items() if any(map(may_be_deployed, entries))}


def _fastest(entries: list[ManifestEntry], batch: int, eager: list[ManifestEntry]) -> Choice:
    timed = [_Candidate(entry, timing) for entry in entries if (timing := latency_of(entry, batch))]
    goal = f"lowest latency, batch {batch}"
    if not timed:
        return Choice(goal, None, "nothing that may be deployed was timed")
    clock = ranking_clock({item.timing.clock for item in timed})
    alike = [item for item in timed if item.timing.clock is clock]  # the host's clock measures more than a GPU's
    best = min(alike, key=lambda item: item.timing.p50_ms)
    chosen, ties = _settle(alike, best)
    p50, low, high = (f"{value:#.4g}" for value in (chosen.timing.p50_ms, *chosen.timing.interval_ms))
    interval = f"95 %: {low} to {high}" if chosen.timing.has_interval else "no interval, of one round"
    latency = f"p50 {p50} ms ({interval}) {clock.phrase}"
    return Choice(goal, chosen.entry, latency + _gain(chosen, eager, ties), ties, timing=chosen.timing)


def _most_images(entries: list[ManifestEntry], eager: list[ManifestEntry]) -> Choice:
    timed = [
        _Candidate(entry, timing)
        for entry in entries
        for timing in entry.timings
        if timing.layout is Layout.CONTIGUOUS and not timing.clock.counts_copies
    ]
    if not timed:
        return Choice("highest throughput", None, "nothing that may be deployed was timed")
    best = max(timed, key=lambda item: item.timing.throughput_per_s)
    alike = [item for item in timed if (item.timing.batch, item.timing.clock) == (best.timing.batch, best.timing.clock)]
    chosen, ties = _settle(alike, best)
    how = "several streams" if chosen.timing.clock is Clock.STREAMS else "one batch after the other"
    rate = f"{chosen.timing.throughput_per_s:,.0f} {chosen.entry.counted}/s in batches of {chosen.timing.batch}, {how}"
    return Choice("highest throughput", chosen.entry, rate + _gain(chosen, eager, ties), ties)


def _settle(candidates: Iterable[_Candidate], best: _Candidate) -> tuple[_Candidate, tuple[str, ...]]:
    """Return the candidate with the smallest file among those that tie with the best, and the ids of the others."""
    ties = {item.entry.id: item for item in candidates if item.timing.ties_with(best.timing)}
    chosen = min(ties.values(), key=lambda item: (item.entry.file.bytes if item.entry.file else 0, item.entry.id))
    return chosen, tuple(name for name in ties if name != chosen.entry.id)


def _gain(chosen: _Candidate, eager: list[ManifestEntry], ties: tuple[str, ...]) -> str:
    if is_eager(chosen.entry):
        return ""
    speedup = speedup_of(chosen.entry, chosen.timing, eager, tied=bool(ties))
    return f", {speedup.phrase}" if speedup else ""


def _smallest(entries: list[ManifestEntry]) -> Choice:
    """Choose by the memory on the GPU if that was measured, else by the size of the file."""
    measured = [entry for entry in entries if entry.device_memory_bytes is not None]
    if measured:
        return _least("smallest GPU memory", measured, lambda entry: entry.device_memory_bytes or 0, "of GPU memory")
    return _least("smallest file", [*filter(_has_size, entries)], lambda e: e.file.bytes if e.file else 0, "on disk")


def _has_size(entry: ManifestEntry) -> bool:
    """Return True for an artifact whose file holds it; a recipe of a few kilobytes makes an engine of any size."""
    return entry.file is not None and not entry.file.path.endswith(".json")


def _least(goal: str, entries: list[ManifestEntry], size: Callable[[ManifestEntry], int], unit: str) -> Choice:
    if not entries:
        return Choice(goal, None, "nothing may be deployed")
    best = min(entries, key=lambda entry: (size(entry), entry.id))
    ties = tuple(entry.id for entry in entries if size(entry) == size(best) and entry is not best)
    return Choice(goal, best, f"{size_phrase(size(best))} {unit}", ties)


def latency_of(entry: ManifestEntry, batch: int) -> BatchTiming | None:
    """Return the latency that ranks an artifact at a batch size, on a GPU its CUDA graph's; None if not timed."""
    timed = [timing for timing in entry.timings if timing.batch == batch and timing.clock.is_latency]
    return min(
        timed, key=lambda timing: (timing.layout is not Layout.CONTIGUOUS, CLOCKS.index(timing.clock)), default=None
    )


def compares(entry: ManifestEntry, entries: Iterable[ManifestEntry]) -> bool:
    """Return True if an artifact's accuracy is of as many images as that of the others.

    A slow reference evaluator sees a few of the images, whose accuracy is another one.
    """
    most = max((other.accuracy.samples for other in entries if other.accuracy), default=0)
    return entry.accuracy is not None and entry.accuracy.samples == most


def is_by_another_clock(entry: ManifestEntry, timing: BatchTiming, entries: Iterable[ManifestEntry]) -> bool:
    """Return True if others of an artifact's device have a latency at this batch size by a clock that ranks before it.

    A call by the host's clock takes longer than the same work by the GPU's, so that the two do not compare. Eager
    PyTorch is the exception: users run it without a CUDA graph, and speed-ups are over that.

    Args:
        entry: the artifact.
        timing: its latency.
        entries: the artifacts of one or more devices.
    """
    if is_eager(entry):
        return False
    alike = [other for other in entries if other.device == entry.device]
    clocks = {found.clock for other in alike if (found := latency_of(other, timing.batch))}
    return bool(clocks) and timing.clock is not ranking_clock(clocks)


def timing_of(row: Milestone, entries: Iterable[ManifestEntry]) -> tuple[BatchTiming | None, ManifestEntry | None]:
    """Return the timing and the artifact that a milestone's speed-up belongs to; None for each that is missing."""
    entry = next((other for other in entries if other.id == row.id), None)
    shown = {row.p50_ms: Clock.GPU, row.graph_ms: Clock.GPU_GRAPH}
    timings = [
        timing
        for timing in (entry.timings if entry else ())
        if timing.batch == row.batch and timing.layout is Layout.CONTIGUOUS and shown.get(timing.p50_ms) is timing.clock
    ]
    return min(timings, key=lambda timing: timing.p50_ms, default=None), entry


def is_better_than_chance(top1: float, samples: int, classes: int) -> bool:
    """Return True if a share of right answers is hardly luck (one-sided normal test at 95 %), or of one class only.

    Args:
        top1: the share of right answers.
        samples: the number of images.
        classes: the number of classes.
    """
    chance = 1 / classes
    return classes == 1 or top1 - _ONE_SIDED * math.sqrt(chance * (1 - chance) / samples) > chance


def reference_warning(manifest: Manifest) -> str:
    """Return a warning if the FP32 reference is no better than chance on the labelled images, else an empty text.

    A configuration may deploy such artifacts all the same: they agree with a network that answers nothing.
    """
    model = manifest.model
    samples = max((entry.accuracy.samples for entry in manifest.artifacts if entry.accuracy), default=0)
    if model is None or model.reference_top1 is None or not model.class_names or not samples:
        return ""
    classes = len(model.class_names)
    if is_better_than_chance(model.reference_top1, samples, classes):
        return ""
    return (
        f"the FP32 reference's top-1 of {model.reference_top1:.1%} is no better than chance ({1 / classes:.1%}): "
        "what agrees with it is no better"
    )


class Speedup(NamedTuple):
    """Factor between the latency of eager FP32 and an artifact's."""

    factor: float | None
    """None if the two latencies are not told apart, because their 95 % intervals overlap."""
    at_least: bool = False
    """True if the factor is the least that the intervals allow."""

    @property
    def short(self) -> str:
        """The factor in a table: `5.42×`, `≥5.1×`, or nothing if there is none to tell."""
        if self.factor is None:
            return ""
        if not self.at_least:
            return f"{self.factor:.2f}×"
        digits = f"{self.factor:.1f}" if self.factor < 10 else f"{self.factor:.0f}"  # noqa: PLR2004 - two digits
        return f"≥{digits}×"

    @property
    def phrase(self) -> str:
        """The factor in a sentence."""
        if self.factor is None:
            return "not told apart from eager FP32"
        return f"{self.short.replace('≥', 'at least ')} eager FP32"


def speedup_of(
    entry: ManifestEntry, timing: BatchTiming, entries: Iterable[ManifestEntry], *, tied: bool = False
) -> Speedup | None:
    """Return an artifact's speed-up over eager FP32; None if eager FP32 was not timed beside it.

    Args:
        entry: the artifact.
        timing: its latency.
        entries: artifacts among which eager FP32 is looked for. Without it, its interval is taken for narrow.
        tied: True if the artifact is not told apart from another one. Then only the least factor is a fact.
    """
    if not timing.speedup:
        return None
    eager = _eager(entry, timing, entries)
    if is_eager(entry):
        return Speedup(None if tied else timing.speedup)
    if eager is not None and eager.ties_with(timing):
        return Speedup(None)
    if not tied:
        return Speedup(timing.speedup)
    slowest = timing.interval_ms[1] / timing.p50_ms if timing.p50_ms else 1.0
    fastest = eager.interval_ms[0] / eager.p50_ms if eager and eager.p50_ms else 1.0
    return Speedup(_rounded_down(timing.speedup * fastest / slowest), at_least=True)


def is_eager(entry: ManifestEntry) -> bool:
    """Return True for eager FP32, which others are compared with."""
    return entry.backend is Backend.EAGER and entry.precision is Precision.FP32


def _eager(entry: ManifestEntry, timing: BatchTiming, entries: Iterable[ManifestEntry]) -> BatchTiming | None:
    """Return the latency of eager FP32 that a speed-up is over: on the GPU's clock, without a CUDA graph."""
    wanted = (timing.batch, timing.clock.of_eager, Layout.CONTIGUOUS)
    return next(
        (
            found
            for other in entries
            if is_eager(other) and other.device == entry.device
            for found in other.timings
            if (found.batch, found.clock, found.layout) == wanted
        ),
        None,
    )


def _rounded_down(factor: float) -> float:
    """Return a factor of two digits that is not larger; whole from ten on."""
    return float(math.floor(factor)) if factor >= 10 else math.floor(factor * 10) / 10  # noqa: PLR2004 - two digits
