"""Records of artifacts: JSON, and the files they list."""

from __future__ import annotations

from datetime import timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_artifacts.records import (
    Backend,
    BuiltFor,
    EngineFlavour,
    EngineMemory,
    FileRecord,
    Graph,
    Precision,
    Setting,
    TensorSpec,
    Tool,
    Variant,
    Workspace,
)
from pipeline.records import Artifact, Outcome
from tests.support.records import BATCH_RANGES, COUNTS, FINITE, KEY, KEYS, NOW, TEXTS, file_record, reread

_FILES = st.builds(FileRecord, path=TEXTS, bytes=COUNTS, sha256=st.text("0123456789abcdef", min_size=64, max_size=64))

_VARIANTS = st.builds(
    Variant,
    model=TEXTS,
    target=TEXTS,
    backend=st.sampled_from(Backend),
    precision=st.sampled_from(Precision),
    graph=st.none() | st.sampled_from(Graph),
    profile=st.none() | BATCH_RANGES,
    workspace=st.none() | st.builds(Workspace, bytes=st.integers(1, 2**40), label=TEXTS),
)
_SPECS = st.builds(
    TensorSpec, name=TEXTS, shape=st.lists(COUNTS | TEXTS, max_size=4).map(tuple), dtype=TEXTS, layout=TEXTS
)

_TIMES = st.datetimes(timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=5, minutes=30))]))
_ARTIFACTS = st.builds(
    Artifact,
    key=KEYS,
    built_at=_TIMES,
    toolchain=st.lists(st.builds(Tool, name=TEXTS, version=TEXTS), max_size=2).map(tuple),
    variant=_VARIANTS,
    outcome=st.sampled_from(Outcome),
    reason=TEXTS,
    file=st.none() | _FILES,
    log=st.none() | _FILES,
    inputs=st.lists(_SPECS, max_size=2).map(tuple),
    outputs=st.just(()),
    settings=st.lists(st.builds(Setting, name=TEXTS, value=TEXTS, applied=st.booleans(), note=TEXTS), max_size=2).map(
        tuple
    ),
    memory=st.none() | st.builds(EngineMemory, activation_bytes=COUNTS, weights_bytes=st.none() | COUNTS),
    built_for=st.none()
    | st.builds(
        BuiltFor,
        flavour=st.sampled_from(EngineFlavour),
        version=TEXTS,
        gpu=st.none() | TEXTS,
        compute_capabilities=st.lists(st.integers(1, 200), max_size=3).map(tuple),
        version_compatible=st.booleans(),
        hardware_compatibility=TEXTS,
    ),
    timing_cache_sha256=st.none() | st.just("0" * 64),
    layers_sha256=st.none(),
    same_as=st.none() | TEXTS,
    build_seconds=FINITE,
    schema_version=st.just(1),
)


@given(_ARTIFACTS)
@settings(deadline=None)
def test_artifact_is_the_same_after_json(artifact: Artifact) -> None:
    """An artifact's record that is written and read back is equal."""
    assert reread(artifact) == artifact


@given(_ARTIFACTS)
@settings(deadline=None)
def test_json_is_canonical(artifact: Artifact) -> None:
    """A record read back and written again is the same text."""
    assert reread(artifact).to_json() == artifact.to_json()


@pytest.mark.parametrize(
    ("file", "log", "paths"), [("a", "l", ["a", "l"]), (None, "l", ["l"]), ("a", None, ["a"]), (None, None, [])]
)
def test_artifact_vouches_for_file_and_log(file: str | None, log: str | None, paths: list[str]) -> None:
    """Each of the two where it is there."""
    artifact = Artifact(
        key=KEY,
        built_at=NOW,
        variant=Variant(model="m", target="t", backend=Backend.EAGER, precision=Precision.FP32),
        outcome=Outcome.DONE,
        file=file_record(file) if file else None,
        log=file_record(log) if log else None,
    )
    assert [found.path for found in artifact.files] == paths
