"""Whether the result on disk still is what it should be, and if not, why.

A result is current while its record's key is the one computed now, its files have their digests, and it did not fail.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from model_artifacts.errors import MissingRecordError, RecordError, StorageError
from model_artifacts.host.environment import installed
from model_artifacts.records import Key, KeyField, StageRecord, WeightsOrigin
from pipeline.planning.keys import key_of, manifest_key
from pipeline.planning.steps import Stage, Step
from pipeline.records import (
    AccuracyReport,
    Artifact,
    BenchmarkReport,
    LayerProfile,
    Outcome,
    ReportRecord,
    SourceRecord,
)
from pipeline.system.digests import digests_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from datetime import datetime

    from pipeline.planning.project import Project

R = TypeVar("R", bound=StageRecord)

NOT_MADE = "not made yet"
"""The reason of a step that has never run."""

_SHOWN_CHARACTERS = 40
"""A value that takes more is not shown: a digest, a list of artifacts."""
_SHOWN_CHANGES = 3


@dataclass(frozen=True)
class Freshness:
    """What is known of a step's results on disk."""

    reasons: tuple[str, ...] = ()
    """Why the step has something to do; none where it has not."""
    since: datetime | None = None
    """When the newest of its results was made; None where there is nothing, or nothing to be made."""

    @property
    def is_current(self) -> bool:
        """Whether there is nothing to do."""
        return not self.reasons


def is_current(project: Project, step: Step) -> bool:
    """Return whether a step has nothing to do: its results are there, whole, and made from what there is now."""
    return freshness_of(project, step).is_current


def freshness_of(project: Project, step: Step, held: Collection[Step] = ()) -> Freshness:
    """Return whether a step has something to do, and why.

    Args:
        project: where its results lie.
        step: what is asked about.
        held: steps whose results are known to be current, which the manifest then does not look at again.

    Raises:
        NewerRecordError: a record is there that only a newer version of this package can read.
    """
    try:
        if step.stage in {Stage.VALIDATE, Stage.PROFILE} and _unbuilt(project, step):
            return Freshness()
        found = [_read(reader) for reader in readers(project, step)]
        records = [record for record in found if isinstance(record, StageRecord)]
        if missing := [reason for reason in found if isinstance(reason, str)]:
            return Freshness(tuple(missing) if records else (NOT_MADE,))
        key = key_of_manifest(project, held) if step.stage is Stage.MANIFEST else key_of(project, step)
        reasons = [reason for record in records for reason in _reasons(project, step, record, key)]
        return Freshness(tuple(dict.fromkeys(reasons)), max((record.built_at for record in records), default=None))
    except (RecordError, StorageError) as exc:
        return Freshness((exc.what,))


def _read(reader: Callable[[], StageRecord]) -> StageRecord | str:
    """Return a record, or that it is missing."""
    try:
        return reader()
    except MissingRecordError as exc:
        return exc.what


def _reasons(project: Project, step: Step, record: StageRecord, key: Key) -> Iterator[str]:
    """Yield why a record does not hold."""
    before, now = (asked_for(project, step, key) for key in (record.key, key))
    if before != now:
        yield from changes(before, now) or ("its key changed",)
    yield from _damage(project, record)
    yield from _tried_again(project, record)


def _damage(project: Project, record: StageRecord) -> Iterator[str]:
    digests = digests_in(project.paths.digests)
    for file in record.files:
        path = project.file(file)
        if not path.is_file():
            yield f"{file.path} is missing"
        elif digests.sha256_of(path) != file.sha256:
            yield f"{file.path} is not what was made"


def changes(before: Key, now: Key) -> tuple[str, ...]:
    """Return what differs between two keys, a line each: "preprocessing.mean changed: [0.5, 0.5, 0.5] → [0.4, …]"."""
    old, new = ({field.name: _value_of(field) for field in key.fields} for key in (before, now))
    found = []
    for name in sorted(old.keys() | new.keys()):
        lines = list(_differences(name, old.get(name), new.get(name)))
        more = len(lines) - _SHOWN_CHANGES
        found += [*lines[:_SHOWN_CHANGES], *([f"{more} more of {name}"] if more > 0 else [])]
    return tuple(found)


def _value_of(field: KeyField) -> object:
    """Return what a field says; its text where that is no JSON, as in a record that somebody has edited."""
    try:
        return json.loads(field.value)
    except ValueError:
        return field.value


def _differences(name: str, before: object, now: object) -> Iterator[str]:
    old, new = _by_name(before), _by_name(now)
    if old is not None and new is not None:
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif before != now:
        shown = [json.dumps(value) for value in (before, now)]
        short = all(len(text) <= _SHOWN_CHARACTERS for text in shown)
        happened = "is new" if before is None else "is gone" if now is None else "changed"
        yield f"{name} changed: {shown[0]} → {shown[1]}" if short else f"{name} {happened}"


def _by_name(value: object) -> dict[str, Any] | None:
    """Return what has names: a mapping, or a list whose items begin with theirs."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, list) and item for item in value):
        return {str(item[0]): item[1:] for item in value}
    return None


def readers(project: Project, step: Step) -> list[Callable[[], StageRecord]]:
    """Return what reads a step's records, one of each."""
    plan = project.plan
    one: dict[Stage, Callable[[], StageRecord]] = {
        Stage.SOURCE: project.source,
        Stage.DATA: project.data,
        Stage.EXPORT: lambda: project.onnx(plan.graph(step.subject)),
        Stage.QUANTIZE: lambda: project.onnx(plan.graph(step.subject)),
        Stage.BUILD: lambda: project.artifact(plan.variant(step.subject)),
        Stage.VALIDATE: lambda: project.accuracy(plan.variant(step.subject)),
        Stage.SENSITIVITY: lambda: project.sensitivity(plan.quantized(step.subject)),
        Stage.PROFILE: lambda: project.layers(plan.variant(step.subject)),
        Stage.MANIFEST: project.manifest,
        Stage.REPORT: project.report,
    }
    if step.stage in one:
        return [one[step.stage]]
    return [partial(project.benchmark, variant) for variant in plan.variants_on(plan.target(step.subject))]


_MADE_WITH_TORCH = {Stage.SOURCE, Stage.DATA, Stage.EXPORT, Stage.QUANTIZE}

_OF_THE_MAKER = frozenset(
    {"torch", "torchvision", "scikit_learn", "pillow", "onnx", "onnxscript", "onnxruntime"}
    | {"factory_code", "checkpoint", "folder"}
)
"""Fields of keys that tell of the host that made a result, rather than of what the configuration asks for."""


def is_reused(step: Step) -> bool:
    """Return whether a step's results, made elsewhere, are used as they are: a build host needs no torch."""
    return step.stage in _MADE_WITH_TORCH and not installed("torch")


_OF_THE_WORKER = frozenset({"driver", "gpu", "nsight"})
"""Fields of the keys of what is measured that tell of the one of many workers that has."""


def asked_for(project: Project, step: Step, key: Key) -> Key:
    """Return what of a step's key must hold for its result to be used here: all of it, of what is made here."""
    given: frozenset[str] = frozenset()
    if is_reused(step):
        given = _OF_THE_MAKER
    elif step.stage in {Stage.BENCHMARK, Stage.PROFILE} and project.plan.workers(step):
        given = _OF_THE_WORKER
    return Key(fields=tuple(field for field in key.fields if field.name not in given)) if given else key


def current(project: Project, step: Step, read: Callable[[], R]) -> R | None:
    """Return a step's record as `read` gives it; None for one that is missing, damaged or made from something else."""
    try:
        return _current(project, step, read, key_of(project, step))
    except (RecordError, StorageError):
        return None


def _current(project: Project, step: Step, read: Callable[[], R], key: Key) -> R | None:
    try:
        record = read()
        before, now = (asked_for(project, step, item) for item in (record.key, key))
        return record if before == now and not any(_damage(project, record)) else None
    except (RecordError, StorageError):
        return None


def current_records(project: Project) -> dict[Path, StageRecord]:
    """Return the records of variants that are current, those of failures included, by where they lie."""
    found: dict[Path, StageRecord] = {}
    for step in _of_variants(project):
        found |= _current_of(project, step)
    return found


def _of_variants(project: Project) -> list[Step]:
    return [step for step in project.plan.steps if step.stage in {Stage.BUILD, Stage.VALIDATE, Stage.BENCHMARK}]


def _current_of(project: Project, step: Step) -> dict[Path, StageRecord]:
    """Return which of a step's records are current, by where they lie; its key is made once for all of them."""
    try:
        key = key_of(project, step)
    except (RecordError, StorageError):
        return {}
    read = zip(_paths_of(project, step), readers(project, step), strict=True)
    records = ((path, _current(project, step, reader, key)) for path, reader in read)
    return {path: record for path, record in records if record}


def _paths_of(project: Project, step: Step) -> list[Path]:
    """Return where the records lie that tell of variants, in the order of `readers`."""
    plan, paths = project.plan, project.paths
    if step.stage is Stage.BENCHMARK:
        return [paths.benchmark(variant) for variant in plan.variants_on(plan.target(step.subject))]
    variant = plan.variant(step.subject)
    return [paths.artifact(variant) if step.stage is Stage.BUILD else paths.accuracy(variant)]


def key_of_manifest(project: Project, held: Collection[Step] = ()) -> Key:
    """Return what the manifest depends on: its records, byte for byte, and which of them are current.

    Args:
        project: where the records lie.
        held: steps whose results are known to be current, and are not looked at again.
    """
    known = {step: _paths_of(project, step) for step in _of_variants(project) if step in held}
    others = (_current_of(project, step) for step in _of_variants(project) if step not in known)
    return manifest_key(project, {path for paths in (*known.values(), *others) for path in paths})


def _unbuilt(project: Project, step: Step) -> bool:
    """Nothing was built on purpose, so that there is nothing to validate or to profile."""
    return project.artifact(project.plan.variant(step.subject)).outcome is Outcome.SKIPPED


def _tried_again(project: Project, record: StageRecord) -> Iterator[str]:
    """Yield why a result is made again although its key is the same: failures are never cached."""
    kinds = (Artifact, AccuracyReport, BenchmarkReport, LayerProfile, ReportRecord)
    if isinstance(record, kinds) and record.outcome is Outcome.FAILED:
        yield "it failed the last time"
    if isinstance(record, Artifact | AccuracyReport | LayerProfile) and record.retryable:
        yield "this host may have by now what it lacked"
    if isinstance(record, BenchmarkReport) and record.retryable and _is_validated(project, record.variant_id):
        yield f"{record.variant_id} runs here by now"
    if isinstance(record, SourceRecord) and record.origin is WeightsOrigin.SAMPLE and _is_downloaded(project):
        yield "the weights that could not be downloaded are there by now"


def _is_validated(project: Project, variant_id: str) -> bool:
    """Return whether a variant has been run; its target is not timed again for one that still cannot be."""
    return project.accuracy(project.plan.variant(variant_id)).outcome is Outcome.DONE


def _is_downloaded(project: Project) -> bool:
    """Return whether `auto`, which took the sample model, would find ImageNet's weights in the cache of torch's hub."""
    model = project.config.model
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    checkpoints = Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints"
    return model.weights == "auto" and any(checkpoints.glob(f"{model.factory.rpartition(':')[2]}-*.pth"))
