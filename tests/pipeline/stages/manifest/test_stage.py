"""The contents of the manifest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import (
    BatchTiming,
    Clock,
    FileRecord,
    KernelSpecialization,
    ManifestEntry,
    Status,
    Workspace,
)
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.manifest.stage import VariantRecords, decide, make_manifest, smallest_workspace

if TYPE_CHECKING:
    from pathlib import Path

FP16 = "tiny/cpu-x86_64/onnxruntime-fp16"
ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
NEEDS = "an SM80+ GPU"


def found(project: Project, variant_id: str) -> VariantRecords:
    """Return all the records of a variant."""
    variant = project.plan.variant(variant_id)
    return VariantRecords(variant, project.artifact(variant), project.accuracy(variant), project.benchmark(variant))


def entry(project: Project, variant_id: str) -> ManifestEntry:
    """Return a variant's entry in the written manifest."""
    return next(entry for entry in project.manifest().artifacts if entry.id == variant_id)


def test_built_validated_and_timed_is_deployable(built: Project) -> None:
    """A variant that went through every stage on its own runtime may be deployed."""
    assert decide(found(built, FP16), NEEDS) == (Status.DEPLOYABLE, "")


def test_an_engine_that_no_gpu_has_run_is_built(built: Project) -> None:
    """An engine built here is not deployable, and the reason names the hardware that it needs."""
    verdict = decide(found(built, ENGINE), NEEDS)
    assert verdict.status is Status.BUILT
    assert verdict.reason == "built, not yet validated: needs an SM80+ GPU (no NVIDIA driver found)"


def test_what_only_a_reference_evaluator_ran_is_built(built: Project) -> None:
    """bf16 that passed on a subset is not deployable on a CPU."""
    verdict = decide(found(built, "tiny/cpu-x86_64/onnx-reference-bf16"), NEEDS)
    assert verdict.status is Status.BUILT
    assert "8 of 100 samples" in verdict.reason
    assert verdict.reason.endswith("no CPU runtime runs bf16")


def test_a_stand_in_is_built(built: Project) -> None:
    """TensorRT's int8 graph on a processor is not deployable there, whatever its gate says; the processor's own is."""
    verdict = decide(found(built, "tiny/cpu-x86_64/onnxruntime-int8"), NEEDS)
    assert verdict.status is Status.BUILT
    assert verdict.reason.startswith("numerically sound (ONNX Runtime")
    assert "64 of 100 samples" in verdict.reason
    assert decide(found(built, "tiny/cpu-x86_64/onnxruntime-int8-cpu"), NEEDS).status is Status.DEPLOYABLE


def test_a_skipped_build_is_skipped(built: Project) -> None:
    """A variant that this host cannot build says why."""
    variant = built.plan.variant("tiny/gpu/dynamo-fp16-b1-ws16MiB")
    verdict = decide(VariantRecords(variant, built.artifact(variant), None, None), NEEDS)
    assert verdict == (Status.SKIPPED, "no NVIDIA driver found")


def test_a_failed_build_is_failed(built: Project) -> None:
    """A failed build keeps its reason."""
    item = found(built, ENGINE)
    assert item.artifact
    broken = item.artifact.model_copy(update={"outcome": Outcome.FAILED, "reason": "the workspace is too small"})
    assert decide(item._replace(artifact=broken), NEEDS) == (Status.FAILED, "the workspace is too small")


def test_a_missed_gate_is_a_rejection(built: Project) -> None:
    """A variant outside its gate is rejected, with the gate's words."""
    item = found(built, FP16)
    assert item.accuracy
    missed = item.accuracy.checks[0].model_copy(update={"passed": False})
    judged = item.accuracy.model_copy(update={"checks": (missed,), "reason": "cosine 0.5, gate ≥ 0.9999"})
    assert decide(item._replace(accuracy=judged), NEEDS) == (Status.REJECTED, "cosine 0.5, gate ≥ 0.9999")


def test_a_missing_record_is_a_failure(built: Project) -> None:
    """Nothing is deployable on the word of a record that is not there."""
    unbuilt = decide(found(built, FP16)._replace(artifact=None), NEEDS)
    unjudged = decide(found(built, FP16)._replace(accuracy=None), NEEDS)
    assert (unbuilt.status, unjudged.status) == (Status.FAILED, Status.FAILED)
    assert unbuilt.reason.startswith("not built")
    assert unjudged.reason.startswith("not validated")


def test_a_stage_that_failed_is_a_failure(built: Project) -> None:
    """A validation or a benchmark that failed keeps a variant from being deployed."""
    item = found(built, FP16)
    assert item.accuracy
    assert item.benchmark
    died = {"outcome": Outcome.FAILED, "reason": "died"}
    unjudged = decide(item._replace(accuracy=item.accuracy.model_copy(update=died)), NEEDS)
    untimed = decide(item._replace(benchmark=item.benchmark.model_copy(update=died)), NEEDS)
    assert unjudged == (Status.FAILED, "validation failed: died")
    assert untimed == (Status.FAILED, "benchmark failed: died")


def test_engines_that_are_the_same_share_a_file(built: Project) -> None:
    """The larger workspace's entry has the smaller one's file, and both name each other."""
    small, large = entry(built, ENGINE), entry(built, "tiny/rtx-sm80+/fp16-b1-ws32MiB")
    assert small.file == large.file
    assert small.equals == (large.id,)
    assert large.equals == (small.id,)
    assert small.file is not None
    assert small.file.path == f"{ENGINE}/model.engine"


def test_an_entry_has_what_a_deployment_asks(built: Project) -> None:
    """An engine's entry has digest, inputs with their dynamic axis, memory, workspace and toolchain."""
    item = entry(built, "tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB")
    assert item.inputs[0].shape == ("batch", 3, 32, 32)
    assert (item.inputs[0].dtype, item.inputs[0].layout) == ("float32", "NCHW")
    assert item.outputs[0].shape == ("batch", 10)
    assert item.memory is not None
    assert item.memory.activation_bytes > 0
    assert item.workspace_bytes == 16 * 2**20
    assert "tensorrt_rtx" in [tool.name for tool in item.toolchain]
    assert item.rerun == "python -m pipeline build tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB"


def test_an_engine_is_opened_as_it_was_timed(copied: Path) -> None:
    """The time of kernel compilation is in the entries of engines that compile some, and changes the manifest's key."""
    config = copied / "pipeline.yaml"
    before = Project.load(config, STAGES)
    eager = make_manifest(before)
    config.write_text(config.read_text() + "tensorrt: {kernel_specialization: lazy}\n")
    project = Project.load(config, STAGES)
    lazy = make_manifest(project)
    text = project.paths.manifest.read_text()
    assert lazy.key != eager.key
    assert {item.kernel_specialization for item in eager.artifacts} == {KernelSpecialization.EAGER}
    engines = {item.id for item in lazy.artifacts if item.kernel_specialization is KernelSpecialization.LAZY}
    assert engines == {item.id for item in lazy.artifacts if item.built_for}
    assert text.count('"kernel_specialization": "lazy"') == len(engines) > 0
    assert '"kernel_specialization": "eager"' not in text
    assert project.manifest() == lazy


def test_the_model_is_described_once(built: Project) -> None:
    """The manifest has the origin of the weights, the preprocessing and the names of the classes."""
    model = built.manifest().model
    assert model is not None
    assert model.weights_origin.value == "sample"
    assert model.class_names == tuple("0123456789")
    assert model.preprocessing is not None
    assert model.preprocessing.input_shape == (3, 32, 32)
    assert model.labelled


def test_the_manifest_is_sorted_json(built: Project) -> None:
    """The file is canonical: the digest, then sorted keys, entries by id, a newline at the end."""
    text = built.paths.manifest.read_text()
    data = json.loads(text)
    digest = f'  "digest": "{data.pop("digest")}",\n'
    assert text.replace(digest, "") == json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    ids = [item["id"] for item in data["artifacts"]]
    assert ids == sorted(ids)


def test_a_changed_file_is_not_deployable(copied: Path) -> None:
    """A flipped byte in an ONNX file invalidates its records."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    item = entry(project, FP16)
    assert item.file
    file = project.file(item.file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    make_manifest(project)
    assert entry(project, FP16).status is Status.FAILED


def test_with_nothing_built_everything_has_failed(copied: Path) -> None:
    """A manifest of an empty folder lists every variant as not built, and no model."""
    text = (copied / "pipeline.yaml").read_text()
    (copied / "pipeline.yaml").write_text("artifacts: empty\n" + text)
    project = Project.load(copied / "pipeline.yaml", STAGES)
    manifest = make_manifest(project)
    assert manifest.model is None
    assert {item.status for item in manifest.artifacts} == {Status.FAILED}
    assert len(manifest.artifacts) == len(project.plan.variants)


# Which workspace to take.


def timing(p50_ms: float, batch: int = 1, clock: Clock = Clock.GPU_GRAPH) -> BatchTiming:
    """Return the timing of a batch."""
    return BatchTiming(
        batch=batch, clock=clock, runs=9, p50_ms=p50_ms, p90_ms=9, p99_ms=9, throughput_per_s=1, speedup=None
    )


def timed(project: Project, gibibytes: int, *timings: BatchTiming, engine: str = "") -> VariantRecords:
    """Return a deployable engine with such a workspace; engines of one letter are the same file."""
    item = found(project, ENGINE)
    report = found(project, FP16)
    assert item.artifact
    assert item.artifact.file
    assert report.benchmark
    file = FileRecord(path=f"{gibibytes}", bytes=1, sha256=(engine or f"{gibibytes}") * 64)
    workspace = Workspace(bytes=gibibytes * 2**30, label=f"{gibibytes}GiB")
    return VariantRecords(
        item.variant.model_copy(update={"workspace": workspace}),
        item.artifact.model_copy(update={"file": file}),
        report.accuracy,
        report.benchmark.model_copy(update={"timings": timings}),
    )


def smallest(*family: VariantRecords) -> str | None:
    """Return the workspace that is to be taken."""
    name = smallest_workspace(list(family), NEEDS)
    return name and name.rpartition("-ws")[2]


def test_smallest_workspace_is_the_smallest_that_costs_no_speed(built: Project) -> None:
    """A workspace within 1 % of the best is as good as the best; one beyond is not."""
    family = (timed(built, 1, timing(1.02)), timed(built, 2, timing(1.009)), timed(built, 4, timing(1.0)))
    assert smallest(*family) == "2GiB"


def test_best_workspace_may_be_the_largest(built: Project) -> None:
    """A larger workspace wins if it buys speed."""
    assert smallest(timed(built, 1, timing(2.0)), timed(built, 2, timing(1.0))) == "2GiB"


def test_equal_engines_have_one_speed(built: Project) -> None:
    """The difference between two variants of one file is noise, so the better timing counts for both."""
    family = (timed(built, 1, timing(1.5), engine="a"), timed(built, 2, timing(1.0), engine="a"))
    assert smallest(*family) == "1GiB"


def test_rejected_engine_is_not_taken(built: Project) -> None:
    """A rejected engine is no measure for deployable ones, however fast it is."""
    fast = timed(built, 1, timing(0.1))
    assert fast.accuracy
    missed = fast.accuracy.checks[0].model_copy(update={"passed": False})
    rejected = fast._replace(accuracy=fast.accuracy.model_copy(update={"checks": (missed,)}))
    assert smallest(rejected, timed(built, 2, timing(1.0))) == "2GiB"


def test_without_timings_no_workspace_is_better(built: Project) -> None:
    """No workspace is recommended without timings."""
    untimed = timed(built, 2)
    assert smallest(timed(built, 1)._replace(benchmark=None), untimed) is None
    assert smallest() is None


def test_workspaces_are_compared_at_the_batch_that_the_profile_is_tuned_for(built: Project) -> None:
    """Latencies of other batches do not count where the tuned one was timed."""
    small = timed(built, 1, timing(1.0, batch=1), timing(9.0, batch=4))
    assert smallest(small, timed(built, 2, timing(2.0, batch=1), timing(1.0, batch=4))) == "1GiB"


def test_workspaces_are_compared_by_the_gpus_own_clock(built: Project) -> None:
    """The CUDA graph's time counts before that of a call from the host."""
    small = timed(built, 1, timing(1.0, clock=Clock.HOST), timing(2.0))
    assert smallest(small, timed(built, 2, timing(3.0, clock=Clock.HOST), timing(1.0))) == "2GiB"


def test_without_the_tuned_batch_the_largest_is_compared(built: Project) -> None:
    """The largest timed batch counts if the tuned one was not timed."""
    small = timed(built, 1, timing(1.0, batch=2), timing(2.0, batch=4))
    assert smallest(small, timed(built, 2, timing(2.0, batch=2), timing(1.0, batch=4))) == "2GiB"


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("tiny/rtx-sm80+/fp16-b1-ws32MiB", True),
        (ENGINE, True),
        ("tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB", False),
        ("tiny/rtx-sm80+/fp32-b1-ws16MiB", False),
        (FP16, False),
    ],
)
def test_alike_variants_differ_in_the_workspace_only(built: Project, other: str, *, expected: bool) -> None:
    """Precision, profile and target make another family."""
    assert (built.plan.variant(ENGINE).family == built.plan.variant(other).family) is expected


def test_untimed_engines_name_no_smallest_workspace(built: Project) -> None:
    """On a host without a GPU the manifest recommends none."""
    assert entry(built, FP16).smallest_workspace is None
