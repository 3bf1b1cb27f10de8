"""The freshness of a step's results on disk, with the reasons if they are stale.

A result is current while its key equals the one computed now, its files have their digests, and it did not fail.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from model_artifacts.errors import MissingRecordError, RecordError, StorageError
from model_artifacts.host.environment import installed
from model_artifacts.records import Key, KeyField, StageRecord
from pipeline.planning.keys import key_of
from pipeline.records import Outcome
from pipeline.system.digests import digests_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from datetime import datetime
    from pathlib import Path

    from pipeline.planning.project import Project
    from pipeline.planning.steps import Step
    from pipeline.records import AccuracyReport, Artifact, BenchmarkReport, LayerProfile, ReportRecord

R = TypeVar("R", bound=StageRecord)

NOT_MADE = "not made yet"
"""The reason of a step that has never run."""

_SHOWN_CHARACTERS = 40
"""The longest value that a reason shows; digests and lists of artifacts are longer."""
_SHOWN_CHANGES = 3


@dataclass(frozen=True)
class Freshness:
    """The state of a step's results on disk."""

    reasons: tuple[str, ...] = ()
    """The reasons to run the step; none if its results are current."""
    since: datetime | None = None
    """The time of the newest result; None without results."""

    @property
    def is_current(self) -> bool:
        """True if the results are up to date."""
        return not self.reasons


def is_current(project: Project, step: Step) -> bool:
    """Return whether a step's results are there, undamaged, and made from the present inputs."""
    return freshness_of(project, step).is_current


def freshness_of(project: Project, step: Step, current_steps: Collection[Step] = ()) -> Freshness:
    """Return whether a step has something to do, and why.

    Args:
        project: the place of the results.
        step: the step to look at.
        current_steps: steps whose results are known to be current; a summary does not look at them again.

    Raises:
        NewerRecordError: a record was written by a newer version of this package.
        UsageError: the plan has no such step.
    """
    spec = project.schedule.spec(step.stage)
    try:
        if spec.needs_build and _is_unbuilt(project, step):
            return Freshness()
        results = project.records(step)
        records = [result for result in results if isinstance(result, StageRecord)]
        if missing := [result.what for result in results if isinstance(result, MissingRecordError)]:
            return Freshness(tuple(missing) if records else (NOT_MADE,))
        key = spec.key_beside(project, current_steps) if spec.key_beside else key_of(project, step)
        reasons = [reason for record in records for reason in _reasons(project, step, record, key)]
        return Freshness(tuple(dict.fromkeys(reasons)), max((record.built_at for record in records), default=None))
    except (RecordError, StorageError) as exc:
        return Freshness((exc.what,))


def _reasons(project: Project, step: Step, record: StageRecord, key: Key) -> Iterator[str]:
    """Yield the reasons why a record is stale."""
    before, now = (comparable(project, step, key) for key in (record.key, key))
    if before != now:
        yield from changes(before, now) or ("its key changed",)
    yield from _damage(project, record)
    yield from project.schedule.spec(step.stage).retried(project, record)


def _damage(project: Project, record: StageRecord) -> Iterator[str]:
    digests = digests_in(project.paths.digests)
    for file in record.files:
        path = project.file(file)
        if not path.is_file():
            yield f"{file.path} is missing"
        elif digests.sha256_of(path) != file.sha256:
            yield f"{file.path} is not what was made"


def changes(before: Key, now: Key) -> tuple[str, ...]:
    """Return the differences between two keys, one line each, such as "classes changed: 10 → 12"."""
    old, new = ({field.name: _value_of(field) for field in key.fields} for key in (before, now))
    found = []
    for name in sorted(old.keys() | new.keys()):
        lines = list(_differences(name, old.get(name), new.get(name)))
        more = len(lines) - _SHOWN_CHANGES
        found += [*lines[:_SHOWN_CHANGES], *([f"{more} more of {name}"] if more > 0 else [])]
    return tuple(found)


def _value_of(field: KeyField) -> object:
    """Return the value of a field; its text if that is no JSON, as in an edited record."""
    try:
        return json.loads(field.value)
    except ValueError:
        return field.value


def _differences(name: str, before: object, now: object) -> Iterator[str]:
    old, new = _by_name(before), _by_name(now)
    if isinstance(before or now, list):  # a key without the field has none of a list's items
        old, new = {} if before is None else old, {} if now is None else new
    if old is not None and new is not None:
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif before != now:
        shown = [json.dumps(value) for value in (before, now)]
        short = all(len(text) <= _SHOWN_CHARACTERS for text in shown)
        happened = "is new" if before is None else "is gone" if now is None else "changed"
        yield f"{name} changed: {shown[0]} → {shown[1]}" if short else f"{name} {happened}"


def _by_name(value: object) -> dict[str, Any] | None:
    """Return a mapping, or a list whose items begin with their names, by name; None for other values."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, list) and item for item in value):
        return {str(item[0]): item[1:] for item in value}
    return None


def is_reused(project: Project, step: Step) -> bool:
    """Return whether another host's result is used as it is: a build host needs no torch."""
    return project.schedule.spec(step.stage).needs_torch and not installed("torch")


def comparable(project: Project, step: Step, key: Key) -> Key:
    """Drop the key fields that may differ because another machine made the result."""
    spec = project.schedule.spec(step.stage)
    dropped: frozenset[str] = frozenset()
    if is_reused(project, step):
        dropped = spec.maker_fields
    elif spec.worker_fields and project.schedule.workers(step):
        dropped = spec.worker_fields
    return Key(fields=tuple(field for field in key.fields if field.name not in dropped)) if dropped else key


def failed_before(
    _project: Project, record: Artifact | AccuracyReport | BenchmarkReport | LayerProfile | ReportRecord
) -> Iterator[str]:
    """Yield the reason to repeat a failed step: failures are never cached."""
    if record.outcome is Outcome.FAILED:
        yield "it failed the last time"


def failed_or_lacked_before(project: Project, record: Artifact | AccuracyReport | LayerProfile) -> Iterator[str]:
    """Yield the reasons to repeat a step that failed, or that lacked hardware or a library."""
    yield from failed_before(project, record)
    if record.retryable:
        yield "this host may have by now what it lacked"


def current(project: Project, step: Step, read: Callable[[], R]) -> R | None:
    """Return a step's record from `read`; None if it is missing, damaged or stale."""
    try:
        return _current(project, step, read, key_of(project, step))
    except (RecordError, StorageError):
        return None


def _current(project: Project, step: Step, read: Callable[[], R], key: Key) -> R | None:
    try:
        record = read()
        before, now = (comparable(project, step, item) for item in (record.key, key))
        return record if before == now and not any(_damage(project, record)) else None
    except (RecordError, StorageError):
        return None


def current_records(project: Project) -> dict[Path, StageRecord]:
    """Return the current records that the manifest reads, those of failures included, by their paths."""
    records: dict[Path, StageRecord] = {}
    for step in _in_manifest(project):
        records |= _current_of(project, step)
    return records


def current_paths(project: Project, current_steps: Collection[Step] = ()) -> set[Path]:
    """Return the paths of the current records that the manifest reads.

    Args:
        project: the place of the records.
        current_steps: steps whose results are known to be current, and are not looked at again.
    """
    known = [_paths_of(project, step) for step in _in_manifest(project) if step in current_steps]
    others = [_current_of(project, step) for step in _in_manifest(project) if step not in current_steps]
    return {path for paths in (*known, *others) for path in paths}


def _in_manifest(project: Project) -> list[Step]:
    return [step for spec in project.stages if spec.in_manifest for step in project.schedule.of(spec.name)]


def _current_of(project: Project, step: Step) -> dict[Path, StageRecord]:
    """Return the current records of a step, by their paths; the key is made once for all of them."""
    kind = project.schedule.spec(step.stage).record
    if not any(path.is_file() for path in _paths_of(project, step)):
        return {}
    try:
        key = key_of(project, step)
    except (RecordError, StorageError):
        return {}
    records = (
        (path, _current(project, step, partial(project.read, path, kind), key)) for path in _paths_of(project, step)
    )
    return {path: record for path, record in records if record}


def _paths_of(project: Project, step: Step) -> tuple[Path, ...]:
    """Return the paths of a step's records."""
    schedule = project.schedule
    return schedule.spec(step.stage).records(project.paths, project.plan, schedule.subject(step))


def _is_unbuilt(project: Project, step: Step) -> bool:
    """Return whether the build was skipped on purpose, which leaves nothing to validate or to profile."""
    return project.artifact(project.plan.variant(step.subject)).outcome is Outcome.SKIPPED
