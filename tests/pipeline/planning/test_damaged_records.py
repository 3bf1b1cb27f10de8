"""Damaged records and manifests: read with their own contents, or refused by name."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_artifacts.errors import NewerRecordError, RecordError
from model_artifacts.host.record_files import file_of, read_record
from model_artifacts.records import (
    Backend,
    DigestedRecord,
    FileRecord,
    Graph,
    Key,
    KeyField,
    Manifest,
    Precision,
    Recipe,
    Record,
    Scenario,
    Setting,
    Task,
    Variant,
)
from pipeline.planning.freshness import freshness_of
from pipeline.planning.project import Project
from pipeline.records import (
    AccuracyReport,
    Artifact,
    BenchmarkReport,
    DataRecord,
    FarmRecord,
    LayerProfile,
    LayerTime,
    LoadReport,
    LoadRun,
    OnnxRecord,
    Outcome,
    PlacedPair,
    Proposal,
    ReportRecord,
    Sensitivity,
    SourceRecord,
)
from pipeline.stages import STAGES
from tests.support.hosts import H100, RTX, host, workers
from tests.support.loads import LOAD, WON
from tests.support.manifests import accuracy
from tests.support.records import as_record

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.parts import Part

KINDS: dict[str, type[Record]] = {
    "manifest.json": Manifest,
    "tiny/source/source.json": SourceRecord,
    "tiny/data/data.json": DataRecord,
    "tiny/onnx/int8.json": OnnxRecord,
    "tiny/rtx-sm80+/fp16-b1-ws16MiB/artifact.json": Artifact,
    "tiny/cpu-x86_64/onnxruntime-fp16/accuracy.json": AccuracyReport,
    "tiny/cpu-x86_64/onnxruntime-fp16/benchmark.json": BenchmarkReport,
    "report.json": ReportRecord,
}
NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
_VARIANT = Variant(model="tiny", target="gpu", backend=Backend.TORCH_COMPILE, precision=Precision.FP16)
_WRITTEN: dict[str, Record] = {
    "layers.json": LayerProfile(
        key=Key(fields=(KeyField(name="profiler", value="1"),)),
        built_at=NOW,
        variant_id=_VARIANT.id,
        outcome=Outcome.DONE,
        layers=(LayerTime(name="conv", kind="Conv", median_us=1.5, share=1.0),),
    ),
    "int8.sensitivity.json": Sensitivity(
        key=Key(fields=()),
        built_at=NOW,
        graph=Graph.INT8,
        samples=4,
        calibrated_on=4,
        calibration_sha256="0" * 64,
        task=Task.CLASSIFICATION,
        layers=(),
        plain=accuracy(),
        plain_loss=0.1,
        proposal=("conv",),
        proposed=accuracy(),
        proposed_loss=0.01,
        kept=True,
    ),
    "int8.proposal.json": Proposal(
        key=Key(fields=()),
        built_at=NOW,
        graph=Graph.INT8,
        structure_sha256="0" * 64,
        model_optimizer="0.47.0",
        pairs=(PlacedPair(node="conv", kind="Conv", input=0, tensor="image"),),
    ),
    "load.json": LoadReport(
        key=Key(fields=()),
        built_at=NOW,
        variant_id=_VARIANT.id,
        outcome=Outcome.DONE,
        load=LOAD,
        notes=("p99 ≤ 1 ms: no rate keeps it",),
        runs=(LoadRun(scenario=Scenario.OFFLINE, settings=WON, target_per_s=9.5, valid=True, rate_per_s=9, p99_ms=1),),
        summaries=FileRecord(path="s", bytes=1, sha256="0" * 64),
    ),
    "farm.json": FarmRecord(hosts=(workers("H100", host(H100)),), here=None),
    "recipe.json": Recipe(
        variant=_VARIANT,
        factory="tests.support.tiny_model:make",
        replaced_head=None,
        classes=10,
        weights=FileRecord(path="w", bytes=1, sha256="0" * 64),
        input_shape=(3, 32, 32),
        warm_up=(1, 2),
        settings=(Setting(name="workspace_size", value="1", applied=True),),
        libraries=(RTX,),
    ),
}
"""What the built project has none of."""

_ANYTHING = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
_VALUES = st.recursive(
    _ANYTHING,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def examples(name: str, part: Part) -> settings:
    """Return how many examples of a record are tried: most of those that every user has and deployments read."""
    many = name == "manifest.json" or name.endswith("/artifact.json")
    return settings(deadline=None, max_examples=part.number(2000, 100) if many else part.number(100, 20))


@st.composite
def changed_somewhere(draw: st.DrawFn, value: Any) -> Any:
    """Return a value of JSON in which something, at any depth, is another thing, gone, or new."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(["inside", "inside", "gone", "new"]))
        if how == "gone":
            return {name: inner for name, inner in value.items() if name != key}
        if how == "new":
            return {**value, draw(st.text(max_size=6)): draw(_VALUES)}
        return {**value, key: draw(changed_somewhere(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], draw(changed_somewhere(value[index])), *value[index + 1 :]]
    return draw(_VALUES)


def read_or_refused(path: Path, kind: type[Record]) -> bool:
    """Return whether a record says the same when it is written again, or else is refused in a message with its name."""
    try:
        record = read_record(path, kind)
    except (RecordError, NewerRecordError) as exc:
        return str(path) in str(exc)
    return kind.model_validate_json(record.to_json()) == record


def written(project: Project, name: str) -> tuple[bytes, type[Record]]:
    """Return a sound record as it is on disk, and its kind."""
    if name in _WRITTEN:
        return file_of(_WRITTEN[name]), type(_WRITTEN[name])
    return (project.paths.root / name).read_bytes(), KINDS[name]


every_kind = pytest.mark.parametrize("name", [*KINDS, *_WRITTEN])


@pytest.mark.no_cover
@every_kind
def test_a_changed_record_is_read_as_it_says_or_refused_by_name(
    built: Project, tmp_path: Path, name: str, part: Part
) -> None:
    """An accepted change survives another write, and a refused one names the file."""
    sound, kind = written(built, name)
    path, content = tmp_path / "changed.json", json.loads(sound)
    content.pop("digest", None)

    @given(changed=changed_somewhere(content))
    @examples(name, part)
    def check(changed: Any) -> None:
        path.write_text(as_record(changed) if issubclass(kind, DigestedRecord) else json.dumps(changed))
        assert read_or_refused(path, kind)

    check()


@pytest.mark.no_cover
@every_kind
def test_a_record_with_a_flipped_bit_or_cut_short_is_no_traceback(
    built: Project, tmp_path: Path, name: str, part: Part
) -> None:
    """Damage of disks and copies ends in a message."""
    sound, kind = written(built, name)
    path = tmp_path / "damaged.json"

    @given(cut=st.integers(0, 10**6), flip=st.integers(0, 7))
    @examples(name, part)
    def check(cut: int, flip: int) -> None:
        data = bytearray(sound)
        path.write_bytes(data[: cut % (len(data) - 2)])  # the last newline may be missing
        with pytest.raises(RecordError, match=r"damaged\.json"):
            read_record(path, kind)
        data[cut % len(data)] ^= 1 << flip
        path.write_bytes(data)
        if issubclass(kind, DigestedRecord):
            with pytest.raises(RecordError, match=r"damaged\.json"):
                read_record(path, kind)
        assert read_or_refused(path, kind)

    check()


def test_damaged_records_are_stale_for_that_reason(copied: Path) -> None:
    """The step of a damaged record is stale, and its reason names the damage."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    (project.paths.root / "tiny/data/data.json").write_text('{"key": 1}')
    step = next(step for step in project.schedule.steps if step.stage == "data")
    assert "data.json is not a valid DataRecord" in freshness_of(project, step).reasons[0]
