"""The stage `report`: the page for people, and the comparison with a release."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import file_of, read_record
from model_artifacts.records import Manifest
from pipeline.planning.freshness import failed_before
from pipeline.planning.keys import make_key
from pipeline.planning.spec import MODEL, StageSpec
from pipeline.records import ReportRecord
from pipeline.stages.report.front import front_reasons

if TYPE_CHECKING:
    from model_artifacts.records import Key
    from pipeline.planning.project import Project

VERSION = 10
"""Raise it when the same records give another page. Since 7 no baseline is a choice, and numbers of fewer images or by
another clock are marked. Since 8 there is no column of top-1 without one. Since 9 it has latencies from host to
host, and says what a choice leaves out. Since 10 models of arrays have samples, and no images a second."""


def report_key(project: Project, _model: str) -> Key:
    """Return the key of the report, from the manifest, the profiles and the released manifest."""
    release = project.config.release
    released = Path(release.manifest) if release else None
    return make_key(
        page=VERSION,
        manifest=_manifest_digest(project),
        profiles=_profiles(project),
        release=release,
        released=sha256_of(released) if released and released.is_file() else None,
    )


def _manifest_digest(project: Project) -> str:
    """Return the digest of this model's part of the manifest: that of the file, if it has no other model."""
    try:
        whole = read_record(project.paths.manifest, Manifest)
    except RecordError:  # the report cannot be made, and says why
        return sha256_of(project.paths.manifest)
    if not whole.models:
        return sha256_of(project.paths.manifest)
    return hashlib.sha256(file_of(project.manifest())).hexdigest()


def _profiles(project: Project) -> list[list[str]]:
    """Return the digests of the profiles on disk, which are optional."""
    paths = {variant.id: project.paths.layers(variant) for variant in project.plan.variants}
    return [[name, sha256_of(path)] for name, path in paths.items() if path.is_file()]


SPEC = StageSpec(
    name="report",
    sentence="artifacts/report.html: the best artifacts with their evidence, and the changes since the released build.",
    subjects=MODEL,
    version=VERSION,
    record=ReportRecord,
    records=lambda paths, _plan, _model: (paths.report_record,),
    files=lambda paths, _plan, _model: (paths.report,),
    key=report_key,
    run="pipeline.stages.report.stage:run",
    requires=lambda schedule, _model: schedule.of("manifest"),
    retried=lambda project, record: chain(failed_before(project, record), front_reasons(project)),
    last=True,
    prints_a_table=True,
)
