"""Records: closed, checked once, and the same after a journey through JSON."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timedelta, timezone
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model_artifacts.records import (
    Backend,
    BatchRange,
    BatchTiming,
    BuiltFor,
    Clock,
    EngineFlavour,
    EngineMemory,
    FileRecord,
    GateCheck,
    Graph,
    Interpolation,
    Key,
    KeyField,
    Precision,
    Preprocessing,
    Record,
    Setting,
    StageRecord,
    TensorSpec,
    Tool,
    Variant,
    WeightsOrigin,
    Workspace,
)
from pipeline.records import (
    AccuracyReport,
    Artifact,
    BenchmarkReport,
    DataRecord,
    ImagesOrigin,
    OnnxRecord,
    Outcome,
    SourceRecord,
)
from tests.support.hosts import H100

R = TypeVar("R", bound=Record)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
KEY = Key(fields=(KeyField(name="a", value="1"),))
RGB = Preprocessing(
    resize=32, crop=16, interpolation=Interpolation.BICUBIC, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)


def _file(name: str) -> FileRecord:
    return FileRecord(path=name, bytes=1, sha256="0" * 64)


def _again(record: R) -> R:
    return type(record).model_validate_json(record.to_json())


_TEXTS = st.text(max_size=12)
_COUNTS = st.integers(0, 2**60)
_FINITE = st.floats(0, allow_nan=False, allow_infinity=False)
_FILES = st.builds(FileRecord, path=_TEXTS, bytes=_COUNTS, sha256=st.text("0123456789abcdef", min_size=64, max_size=64))
_PROFILES = st.lists(st.integers(1, 10**6), min_size=3, max_size=3).map(
    lambda sizes: BatchRange(**dict(zip(("min", "opt", "max"), sorted(sizes), strict=True)))
)
_VARIANTS = st.builds(
    Variant,
    model=_TEXTS,
    target=_TEXTS,
    backend=st.sampled_from(Backend),
    precision=st.sampled_from(Precision),
    graph=st.none() | st.sampled_from(Graph),
    profile=st.none() | _PROFILES,
    workspace=st.none() | st.builds(Workspace, bytes=st.integers(1, 2**40), label=_TEXTS),
)
_SPECS = st.builds(
    TensorSpec, name=_TEXTS, shape=st.lists(_COUNTS | _TEXTS, max_size=4).map(tuple), dtype=_TEXTS, layout=_TEXTS
)
_KEYS = st.lists(st.builds(KeyField, name=_TEXTS, value=_TEXTS), max_size=3).map(
    lambda fields: Key(fields=tuple(fields))
)
_TIMES = st.datetimes(timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=5, minutes=30))]))
_ARTIFACTS = st.builds(
    Artifact,
    key=_KEYS,
    built_at=_TIMES,
    toolchain=st.lists(st.builds(Tool, name=_TEXTS, version=_TEXTS), max_size=2).map(tuple),
    variant=_VARIANTS,
    outcome=st.sampled_from(Outcome),
    reason=_TEXTS,
    file=st.none() | _FILES,
    log=st.none() | _FILES,
    inputs=st.lists(_SPECS, max_size=2).map(tuple),
    outputs=st.just(()),
    settings=st.lists(
        st.builds(Setting, name=_TEXTS, value=_TEXTS, applied=st.booleans(), note=_TEXTS), max_size=2
    ).map(tuple),
    memory=st.none() | st.builds(EngineMemory, activation_bytes=_COUNTS, weights_bytes=st.none() | _COUNTS),
    built_for=st.none()
    | st.builds(
        BuiltFor,
        flavour=st.sampled_from(EngineFlavour),
        version=_TEXTS,
        gpu=st.none() | _TEXTS,
        compute_capabilities=st.lists(st.integers(1, 200), max_size=3).map(tuple),
        version_compatible=st.booleans(),
        hardware_compatibility=_TEXTS,
    ),
    timing_cache_sha256=st.none() | st.just("0" * 64),
    layers_sha256=st.none(),
    same_as=st.none() | _TEXTS,
    build_seconds=_FINITE,
    schema_version=st.just(1),
)
_TIMINGS = st.builds(
    BatchTiming,
    batch=st.integers(1, 10**6),
    clock=st.sampled_from(Clock),
    runs=st.integers(1, 10**6),
    p50_ms=_FINITE,
    p90_ms=_FINITE,
    p99_ms=_FINITE,
    throughput_per_s=_FINITE,
    speedup=st.none() | _FINITE,
    enqueue_us=st.none() | _FINITE,
)


@given(_ARTIFACTS)
@settings(deadline=None)
def test_artifact_is_the_same_after_json(artifact: Artifact) -> None:
    """What a build writes is what is read back."""
    assert _again(artifact) == artifact


@given(_TIMINGS)
@settings(deadline=None)
def test_timing_is_the_same_after_json(timing: BatchTiming) -> None:
    """No latency loses a digit on disk."""
    assert _again(timing) == timing


@given(_ARTIFACTS)
@settings(deadline=None)
def test_json_is_canonical(artifact: Artifact) -> None:
    """A record read back and written again is the same text."""
    assert _again(artifact).to_json() == artifact.to_json()


def test_json_has_sorted_keys_and_a_newline_at_the_end() -> None:
    """Records are made to be compared by `diff`."""
    assert Tool(version="2", name="ü").to_json() == '{\n  "name": "ü",\n  "version": "2"\n}\n'


def test_record_cannot_be_changed() -> None:
    """A record is frozen."""
    tool = Tool(name="a", version="1")
    with pytest.raises(ValidationError, match="frozen"):
        tool.version = "2"  # type: ignore[misc]


def test_record_refuses_unknown_fields() -> None:
    """A field that this version does not know is refused, not dropped."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Tool.model_validate({"name": "a", "version": "1", "colour": "red"})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_record_refuses_what_json_has_no_number_for(number: float) -> None:
    """NaN and infinity never reach a file."""
    with pytest.raises(ValidationError, match="finite number"):
        BatchTiming(batch=1, runs=1, p50_ms=number, p90_ms=1, p99_ms=1, throughput_per_s=1, speedup=None)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"])
def test_digest_is_64_small_hexadecimal_digits(digest: str) -> None:
    """Anything but a SHA-256 in small letters is refused."""
    with pytest.raises(ValidationError, match="sha256"):
        FileRecord(path="x", bytes=1, sha256=digest)


@pytest.mark.parametrize("version", [0, 2])
def test_stage_record_of_another_schema_version_is_refused(version: int) -> None:
    """A record says which schema it follows, and only this one's is read."""
    with pytest.raises(ValidationError, match="schema_version"):
        StageRecord(schema_version=version, key=KEY, built_at=NOW)


def test_time_without_a_zone_is_refused() -> None:
    """A time that could be any zone's is no time."""
    with pytest.raises(ValidationError, match="built_at"):
        StageRecord(key=KEY, built_at=NOW.replace(tzinfo=None))


# Profiles.


@given(st.integers(-3, 40), st.integers(-3, 40), st.integers(-3, 40))
@settings(deadline=None)
def test_profile_is_accepted_if_and_only_if_it_is_ordered(low: int, opt: int, high: int) -> None:
    """1 ≤ min ≤ opt ≤ max, and nothing else."""
    try:
        BatchRange(min=low, opt=opt, max=high)
    except ValidationError:
        accepted = False
    else:
        accepted = True
    assert accepted == (1 <= low <= opt <= high)


@pytest.mark.parametrize(("bounds", "label"), [((8, 8, 8), "b8"), ((1, 8, 32), "b1-8-32"), ((1, 1, 2), "b1-1-2")])
def test_profile_label_is_short_for_a_fixed_batch(bounds: tuple[int, int, int], label: str) -> None:
    """A fixed batch is named once, a range by its three sizes."""
    low, opt, high = bounds
    assert BatchRange(min=low, opt=opt, max=high).label == label


@given(_PROFILES, _PROFILES)
@settings(deadline=None)
def test_profile_labels_are_equal_for_equal_profiles_only(first: BatchRange, second: BatchRange) -> None:
    """A label stands for one profile."""
    assert (first.label == second.label) == (first == second)


# Variants.


def test_engines_name_has_no_backend() -> None:
    """An engine is named by graph, profile and workspace."""
    variant = Variant(
        model="resnet18",
        target="rtx-sm80+",
        backend=Backend.TENSORRT,
        precision=Precision.FP16,
        graph=Graph.FP16,
        profile=BatchRange(min=1, opt=8, max=32),
        workspace=Workspace(bytes=2**30, label="1GiB"),
    )
    assert variant.id == "resnet18/rtx-sm80+/fp16-b1-8-32-ws1GiB"


def test_other_backends_names_begin_with_the_backend() -> None:
    """What is no engine is named by its backend, and by its precision where it has no graph."""
    variant = Variant(model="m", target="cpu-x86_64", backend=Backend.EAGER, precision=Precision.FP32)
    assert variant.id == "m/cpu-x86_64/eager-fp32"


def test_graph_is_named_rather_than_its_precision() -> None:
    """Two graphs of one precision give two names."""
    variant = Variant(
        model="m", target="t", backend=Backend.ONNXRUNTIME, precision=Precision.INT8, graph=Graph.INT8_CPU
    )
    assert variant.name == "onnxruntime-int8-cpu"


def test_precision_is_named_where_the_graph_is_another_precisions() -> None:
    """A TF32 engine is built from FP32's graph, and is not called FP32."""
    variant = Variant(model="m", target="t", backend=Backend.TENSORRT, precision=Precision.TF32, graph=Graph.FP32)
    assert variant.name == "tf32"


@pytest.mark.parametrize("graph", list(Graph))
def test_graphs_precision_begins_its_name(graph: Graph) -> None:
    """A graph's precision is what its name begins with."""
    assert graph.value.split("-")[0] == graph.precision.value


# GPUs.


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "sm90-h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 4090", "sm90-geforce-rtx-4090"),
        ("Tesla T4", "sm90-tesla-t4"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "sm90-a100-sxm4-40gb-mig-1g-5gb"),
        ("Graphics/Device (test)", "sm90-graphics-device-test"),
    ],
)
def test_gpus_slug_is_its_type_as_a_folder_may_be_called(name: str, slug: str) -> None:
    """A slug begins with the compute capability, and leaves the maker's name out."""
    assert H100.model_copy(update={"name": name}).slug == slug


@given(st.text(max_size=30))
@settings(deadline=None)
def test_any_gpus_slug_fits_a_folders_name(name: str) -> None:
    """Whatever a GPU is called, its slug has small letters, digits and single hyphens only."""
    assert re.fullmatch(r"sm90-([a-z0-9]+(-[a-z0-9]+)*)?", H100.model_copy(update={"name": name}).slug)


# Preprocessing.


def test_preprocessing_of_three_means_is_rgb() -> None:
    """The input's shape follows from the crop and the means."""
    assert (RGB.channels, RGB.input_shape) == (3, (3, 16, 16))


def test_preprocessing_of_one_mean_is_greyscale() -> None:
    """One mean makes one channel."""
    grey = Preprocessing(resize=32, crop=32, interpolation=Interpolation.NEAREST, mean=(0.5,), std=(0.5,))
    assert grey.input_shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 33}, "expected crop ≤ resize, got crop 33, resize 32"),
        ({"mean": (0.5,)}, "expected one mean and one std .* got 1 and 3"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "expected one mean and one std .* got 2 and 2"),
        ({"mean": (), "std": ()}, "expected one mean and one std .* got 0 and 0"),
        ({"std": (0.5, 0.0, 0.5)}, r"expected every std above 0, got \[0\.5, 0\.0, 0\.5\]"),
        ({"std": (0.5, -1.0, 0.5)}, r"expected every std above 0, got \[0\.5, -1\.0, 0\.5\]"),
    ],
)
def test_preprocessing_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    """Each contradiction has a message with both of its sides."""
    with pytest.raises(ValidationError, match=message):
        Preprocessing.model_validate(RGB.model_dump() | change)


# Keys.


def test_key_digest_is_pinned() -> None:
    """The digest of a key does not change from one version of this program to the next."""
    assert KEY.digest == "57bfe7a5665fd3e5b7872b4dc4b0752144714ed463048a8448c04a15e4596dba"


@given(_KEYS, _KEYS)
@settings(deadline=None)
def test_key_digests_are_equal_for_equal_keys_only(first: Key, second: Key) -> None:
    """A digest stands for one key, wherever its fields' names and values are cut."""
    assert (first.digest == second.digest) == (first == second)


def test_key_digest_tells_name_from_value() -> None:
    """Moving a letter from a name into its value is another key."""
    other = Key(fields=(KeyField(name="", value="a1"),))
    assert other.digest != Key(fields=(KeyField(name="a", value="1"),)).digest


# Files that a record vouches for.


def test_plain_stage_record_has_no_files() -> None:
    """A record without files of its own vouches for none."""
    assert StageRecord(key=KEY, built_at=NOW).files == ()


def test_source_record_vouches_for_the_weights() -> None:
    """The weights are the source's only file."""
    record = SourceRecord(
        key=KEY,
        built_at=NOW,
        model="m",
        factory="a:b",
        origin=WeightsOrigin.FACTORY,
        origin_detail="",
        weights=_file("w"),
        parameters=1,
        classes=2,
        class_names=None,
        replaced_head=None,
        preprocessing=RGB,
    )
    assert record.files == (_file("w"),)


@pytest.mark.parametrize("labels", [None, _file("labels")])
def test_data_record_vouches_for_labels_where_there_are_any(labels: FileRecord | None) -> None:
    """Pixels and logits always, labels where the images have them."""
    record = DataRecord(
        key=KEY,
        built_at=NOW,
        origin=ImagesOrigin.DIGITS,
        origin_detail="",
        preprocessing=RGB,
        calibration=_file("c"),
        calibration_samples=1,
        validation=_file("v"),
        validation_samples=1,
        labels=labels,
        reference=_file("r"),
        reference_top1=None,
        unreadable=(),
    )
    assert [file.path for file in record.files] == ["c", "v", *(["labels"] if labels else []), "r"]


@pytest.mark.parametrize("opset17", [None, _file("o17")])
def test_onnx_record_vouches_for_its_graphs(opset17: FileRecord | None) -> None:
    """The ONNX file, and the one for TensorRT 8.6 where there is such."""
    record = OnnxRecord(
        key=KEY,
        built_at=NOW,
        graph=Graph.FP32,
        file=_file("o"),
        canonical_sha256="0" * 64,
        structure_sha256="0" * 64,
        opset=18,
        inputs=(),
        outputs=(),
        folded_batch_norms=0,
        casts=(),
        opset17=opset17,
    )
    assert [file.path for file in record.files] == ["o", *(["o17"] if opset17 else [])]


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
        file=_file(file) if file else None,
        log=_file(log) if log else None,
    )
    assert [found.path for found in artifact.files] == paths


@pytest.mark.parametrize(
    ("samples", "cache", "paths"),
    [(None, None, []), ("s", None, ["s"]), ("s", "c", ["s", "c"]), (None, "c", ["c"])],
)
def test_benchmark_report_vouches_for_samples_and_kernels(
    samples: str | None, cache: str | None, paths: list[str]
) -> None:
    """The raw latencies and the compiled kernels, where there are any."""
    report = BenchmarkReport(
        key=KEY,
        built_at=NOW,
        variant_id="m/t/v",
        outcome=Outcome.DONE,
        samples=_file(samples) if samples else None,
        runtime_cache=_file(cache) if cache else None,
    )
    assert [file.path for file in report.files] == paths


@pytest.mark.parametrize(
    ("outcome", "checks", "passed"),
    [
        (Outcome.DONE, [True, True], True),
        (Outcome.DONE, [True, False], False),
        (Outcome.FAILED, [True], False),
        (Outcome.SKIPPED, [], False),
    ],
)
def test_report_passes_when_done_and_every_check_passed(outcome: Outcome, checks: list[bool], *, passed: bool) -> None:
    """What failed or was skipped passes no gate, and neither does one failed check."""
    report = AccuracyReport(
        key=KEY,
        built_at=NOW,
        variant_id="m/t/v",
        outcome=outcome,
        checks=tuple(GateCheck(metric="x", bound="1", value="1", passed=check) for check in checks),
    )
    assert report.passed is passed


def test_json_on_disk_names_enumerations_by_their_values() -> None:
    """A reader in another language sees `fp16`, not a class of this one."""
    variant = Variant(model="m", target="t", backend=Backend.TORCH_COMPILE, precision=Precision.FP16)
    assert json.loads(variant.to_json())["backend"] == "torch_compile"


def timing(p50: float, low: float | None = None, high: float | None = None) -> BatchTiming:
    """Return a latency with its interval."""
    return BatchTiming(
        batch=1, runs=1, p50_ms=p50, p90_ms=p50, p99_ms=p50, p50_low_ms=low, p50_high_ms=high,
        throughput_per_s=1.0, speedup=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (timing(1.0, 0.9, 1.1), timing(1.2, 1.1, 1.3), True),
        (timing(1.0, 0.9, 1.1), timing(1.2, 1.15, 1.3), False),
        (timing(1.0, 0.9, 1.1), timing(1.05), True),
        (timing(1.0), timing(1.0), True),
        (timing(1.0), timing(1.1), False),
    ],
)
def test_overlapping_intervals_are_ties(one: BatchTiming, other: BatchTiming, *, alike: bool) -> None:
    """What cannot be told apart is said to be equal, whichever comes first."""
    assert one.ties_with(other) is other.ties_with(one) is alike
