"""Restarts on disk: written when taken, refused if damaged or of other circumstances, and joined for the report."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import MissingRecordError, RecordError, storage_errors
from model_artifacts.host.environment import now
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from pipeline.planning.freshness import changes
from pipeline.records import RestartRecord, TimedSet
from pipeline.stages.benchmark.gpu_watch import Reading
from pipeline.stages.benchmark.messages import Ready, Samples, SampleSet
from pipeline.stages.benchmark.results import Measured, Round, Taken, samples_on_disk
from pipeline.stages.common.inputs import is_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    import numpy.typing as npt

    from model_artifacts.records import FileRecord, Key, Variant
    from pipeline.planning.project import Project
    from pipeline.records import TimedVariant

    Arrays = Mapping[str, npt.NDArray[Any]]

_BASELINE = "baseline_"
"""The beginning of the names of the baseline's arrays."""
_READINGS = "readings"


class Rounds(NamedTuple):
    """The rounds of one restart of a group of variants."""

    restart: int
    """The number of the restart, from 1."""
    taken: Taken
    """The names of the run and of these rounds."""
    timed_with: tuple[TimedVariant, ...]
    """The variants that get a record of them."""


@dataclass(frozen=True)
class Restart:
    """A restart of a variant, as it lies on disk."""

    record: RestartRecord
    measured: Measured
    """The samples of this restart, with those of the baseline in the same rounds."""


@dataclass(frozen=True)
class Kept:
    """The usable restarts of a target's variants."""

    restarts: dict[tuple[str, int], Restart] = field(default_factory=dict)
    """By variant id and number, from 1."""
    refused: tuple[str, ...] = ()
    """The reasons for taking the others again; none for restarts that were never taken."""

    def missing(self, variant_id: str, restarts: int) -> tuple[int, ...]:
        """Return the numbers of a variant's restarts that are not there."""
        return tuple(number for number in range(1, restarts + 1) if (variant_id, number) not in self.restarts)

    def of(self, variant: Variant, restarts: int) -> Measured | None:
        """Return a variant's samples of all restarts, from their records alone; None unless all are there."""
        if self.missing(variant.id, restarts):
            return None
        return joined(variant, [self.restarts[variant.id, number] for number in range(1, restarts + 1)])


def kept_restarts(project: Project, keys: Mapping[Variant, Key], *, with_baseline: bool) -> Kept:
    """Return the restarts on disk that count as if they were taken now.

    A restart counts only if every variant that was timed in it and would be now has its own record of it: the rounds of
    a restart are one whole.

    Args:
        project: the place of the records.
        keys: the variants to time, with the keys that their restarts would have now.
        with_baseline: refuse restarts in which the baseline was not timed.

    Raises:
        NewerRecordError: a newer version of this package wrote one of the records.
    """
    found: dict[tuple[str, int], Restart] = {}
    refused: list[str] = []
    for variant, key in keys.items():
        for number in range(1, project.config.benchmark.restarts + 1):
            restart = _usable(project, variant, number, key, with_baseline=with_baseline)
            if isinstance(restart, Restart):
                found[variant.id, number] = restart
            elif restart:
                refused.append(restart)
    digests = {variant.id: key.digest for variant, key in keys.items()}
    while torn := [place for place, restart in found.items() if _is_torn(restart.record, found, digests)]:
        for place in torn:
            del found[place]
        refused += ["the samples of other variants in the same rounds are missing"] * len(torn)
    return Kept(found, tuple(refused))


def _usable(project: Project, variant: Variant, number: int, key: Key, *, with_baseline: bool) -> Restart | str:
    """Return a restart, or the reason for taking it again; an empty one if it was never taken."""
    try:
        restart = read_restart(project, variant, number, key)
    except MissingRecordError:
        return ""
    except RecordError as exc:
        return exc.what
    is_committed = project.git is None or project.git.dirty or (restart.record.git and not restart.record.git.dirty)
    if not is_committed:
        return "it was taken with files that no commit has"
    is_alone = with_baseline and not restart.record.baseline_sets
    return "eager FP32 was not timed in the same rounds" if is_alone else restart


def _is_torn(record: RestartRecord, found: Mapping[tuple[str, int], Restart], digests: Mapping[str, str]) -> bool:
    """Return whether the rounds of a restart have lost a variant that would take part in them now."""
    peers = [peer.variant_id for peer in record.timed_with if digests.get(peer.variant_id) == peer.key_sha256]
    restarts = [found.get((peer, record.restart)) for peer in peers]
    return any(restart is None or restart.record.taken != record.taken for restart in restarts)


def read_restart(project: Project, variant: Variant, number: int, key: Key) -> Restart:
    """Read a restart with its samples.

    Raises:
        MissingRecordError: it was never taken.
        RecordError: it is damaged, or was taken of another artifact, with other settings or elsewhere.
    """
    path = project.paths.restart(variant, number)
    record = project.read(path, RestartRecord)
    if (record.variant_id, record.restart) != (variant.id, number):
        raise RecordError(f"{path} is the record of restart {record.restart} of {record.variant_id}")
    if record.key != key:
        raise RecordError("; ".join(changes(record.key, key)) or "its key changed")
    if record.runtime_cache and not is_whole(project, record.runtime_cache):
        raise RecordError(f"{record.runtime_cache.path} is missing, or is not what was made")
    return Restart(record, _restored(project, variant, record))


def _restored(project: Project, variant: Variant, record: RestartRecord) -> Measured:
    """Return the samples of a record.

    Raises:
        RecordError: they are missing or damaged.
    """
    broken = f"{record.samples.path} is missing, or is not what was made"
    try:
        data = project.file(record.samples).read_bytes()
        if hashlib.sha256(data).hexdigest() != record.samples.sha256:
            raise RecordError(broken)
        with np.load(io.BytesIO(data)) as file:
            arrays = {name: file[name] for name in file.files}
        own = {what: [*_rounds(arrays, what, record.restart)] for what in _sets(record.sets)}
        beside = {what: [*_rounds(arrays, what, record.restart, _BASELINE)] for what in _sets(record.baseline_sets)}
        readings = [
            Reading(sm_clock, memory_clock, temperature, power, int(reasons))
            for sm_clock, memory_clock, temperature, power, reasons in arrays[_READINGS].tolist()
        ]
    except (OSError, KeyError, ValueError, TypeError, IndexError, zipfile.BadZipFile) as exc:
        raise RecordError(broken) from exc
    if not all((*own.values(), *beside.values())) or not own:
        raise RecordError(broken)
    return Measured(
        variant,
        rounds=own,
        ready=Ready(record.cold_start, record.device_memory_bytes, record.runtime_cache, record.tuning_seconds),
        notes=[*record.notes],
        unsettled=[*record.unsettled],
        link=record.link,
        disturbed_by=record.disturbed_by,
        readings=readings,
        baseline=Measured(variant, rounds=beside) if beside else None,
        taken=(Taken(record.run, record.taken),),
    )


def _sets(sets: Sequence[TimedSet]) -> Iterator[SampleSet]:
    return (SampleSet(what.clock, what.batch, what.layout) for what in sets)


def _rounds(arrays: Arrays, what: SampleSet, number: int, prefix: str = "") -> Iterator[Round]:
    """Yield the rounds of a sample set."""
    name = prefix + what.name
    values, rounds, enqueues = arrays[name], arrays[f"{name}_round"], arrays.get(f"{name}_enqueue_us")
    for index in np.unique(rounds):
        picked = rounds == index
        host = () if enqueues is None else tuple(enqueues[picked].tolist())
        yield Round(number - 1, Samples(what.clock, tuple(values[picked].tolist()), host, what.layout))


def joined(variant: Variant, restarts: Sequence[Restart]) -> Measured:
    """Return the samples of all restarts of a variant, in their order. Pure."""
    parts = [restart.measured for restart in restarts]
    besides = [part.baseline for part in parts if part.baseline]
    return Measured(
        variant,
        rounds=_all_rounds(parts),
        ready=parts[0].ready,
        notes=[*dict.fromkeys(note for part in parts for note in part.notes)],
        unsettled=[*dict.fromkeys(text for part in parts for text in part.unsettled)],
        disturbed_by=tuple(dict.fromkeys(stranger for part in parts for stranger in part.disturbed_by)),
        readings=[reading for part in parts for reading in part.readings],
        link=next((part.link for part in parts if part.link), None),
        baseline=Measured(variant, rounds=_all_rounds(besides)) if besides else None,
        taken=tuple(taken for part in parts for taken in part.taken),
    )


def _all_rounds(parts: Sequence[Measured]) -> dict[SampleSet, list[Round]]:
    sets = dict.fromkeys(what for part in parts for what in part.rounds)
    return {what: [kept for part in parts for kept in part.rounds.get(what, ())] for what in sets}


def write_restart(project: Project, found: Measured, key: Key, rounds: Rounds) -> RestartRecord:
    """Write a variant's samples of a restart, and then its record.

    Raises:
        StorageError: they cannot be written.
    """
    record = RestartRecord(
        key=key,
        built_at=now(),
        variant_id=found.variant.id,
        restart=rounds.restart,
        run=rounds.taken.run,
        taken=rounds.taken.rounds,
        timed_with=rounds.timed_with,
        sets=_listed(found),
        baseline_sets=_listed(found.baseline),
        samples=_store(project, found, rounds.restart),
        notes=tuple(found.notes),
        unsettled=tuple(found.unsettled),
        disturbed_by=found.disturbed_by,
        conditions=found.conditions,
        cold_start=found.ready.cold_start,
        tuning_seconds=found.ready.tuning_seconds,
        device_memory_bytes=found.ready.device_memory_bytes,
        runtime_cache=found.ready.runtime_cache,
        link=found.link,
    )
    return project.write(project.paths.restart(found.variant, rounds.restart), record)


def _listed(found: Measured | None) -> tuple[TimedSet, ...]:
    return (
        tuple(TimedSet(clock=what.clock, batch=what.batch, layout=what.layout) for what in found.rounds)
        if found
        else ()
    )


def _store(project: Project, found: Measured, number: int) -> FileRecord:
    path = project.paths.restart_samples(found.variant, number)
    arrays: dict[str, Any] = {_READINGS: np.array(found.readings, dtype=np.float64)}
    for what, rounds in found.rounds.items():
        arrays |= samples_on_disk(what, rounds)
    for what, rounds in found.baseline.rounds.items() if found.baseline else ():
        arrays |= {f"{_BASELINE}{name}": values for name, values in samples_on_disk(what, rounds).items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    return describe_file(path, project.paths.root)


def remove_restarts(project: Project, variants: Sequence[Variant]) -> None:
    """Remove all restarts of variants, so that they are taken anew.

    Raises:
        StorageError: a file cannot be removed.
    """
    for variant in variants:
        for path in sorted(project.paths.restarts(variant), key=lambda path: path.suffix):  # records come first
            with storage_errors(f"deleting {path}"):
                path.unlink(missing_ok=True)
