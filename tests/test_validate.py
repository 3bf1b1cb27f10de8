"""How artifacts are judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from pipeline.__main__ import main
from pipeline.atomic import describe_file, read_record, write_record
from pipeline.config import Gate
from pipeline.errors import RunError
from pipeline.project import Project
from pipeline.records import (
    Accuracy,
    AccuracyReport,
    Artifact,
    GateCheck,
    Graph,
    LayerShare,
    OnnxRecord,
    Outcome,
    Precision,
)
from pipeline.validate import (
    executed_precision,
    judge,
    judge_layers,
    measure,
    run_batches,
    validate_variant,
    wilson,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

GATE = Gate(cosine=0.99, relative_l2=0.1, top1_agreement=0.9, top1_drop=0.05)
FP16 = "tiny/cpu-x86_64/onnxruntime-fp16"


def logits(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return rows of logits."""
    return np.array(rows, dtype=np.float32)


def failed(accuracy: Accuracy, *, require_proof: bool = False) -> list[str]:
    """Return the metrics that miss `GATE`."""
    return [check.metric for check in judge(accuracy, GATE, require_proof=require_proof) if not check.passed]


def test_equal_logits_are_perfect() -> None:
    """Logits equal to the reference's agree wholly, and pass."""
    same = logits((1, 2), (3, 1))
    accuracy = measure(same, same, None)
    assert accuracy.cosine == pytest.approx(1)
    assert (accuracy.relative_l2, accuracy.max_abs, accuracy.top1_agreement) == (0, 0, 1)
    assert failed(accuracy) == []


def test_metrics_by_hand() -> None:
    """Cosine, relative L2 and maximum are those of a case computed by hand."""
    accuracy = measure(logits((3, 4), (0, 2)), logits((3, 4), (2, 0)), None)
    assert accuracy.cosine == pytest.approx(0.5)
    assert accuracy.cosine_min == pytest.approx(0.0)
    assert accuracy.relative_l2 == pytest.approx(np.sqrt(8 / 29))
    assert accuracy.max_abs == 2
    assert accuracy.top1_agreement == 0.5
    assert accuracy.worst_sample == 1


def test_labels_give_top1_and_its_drop() -> None:
    """With labels, top-1 and how much it falls below the reference's are known."""
    accuracy = measure(logits((1, 0), (1, 0)), logits((1, 0), (0, 1)), np.array([0, 1]))
    assert (accuracy.top1, accuracy.top1_drop) == (0.5, 0.5)
    assert "labelled top-1 drop" in failed(accuracy)


def test_without_labels_there_is_no_drop_to_judge() -> None:
    """Without labels the gate does not speak of top-1."""
    accuracy = measure(logits((1, 0)), logits((1, 0)), None)
    assert accuracy.top1 is None
    assert "labelled top-1 drop" not in [check.metric for check in judge(accuracy, GATE, require_proof=False)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_rejected(bad: float) -> None:
    """NaN or infinity in a single logit misses the gate, and counts as disagreement."""
    accuracy = measure(logits((1, bad), (0, 1)), logits((1, 0), (0, 1)), None)
    assert not accuracy.finite
    assert accuracy.top1_agreement == 0.5
    assert "finite outputs" in failed(accuracy)


def test_another_shape_is_an_error() -> None:
    """Logits of another shape than the reference's cannot be compared."""
    with pytest.raises(RunError, match="another shape"):
        measure(logits((1, 2, 3)), logits((1, 2)), None)


def test_proof_can_be_required() -> None:
    """Full agreement on few samples passes, unless the gate demands that it be proven."""
    same = logits(*[(1, 0)] * 20)
    accuracy = measure(same, same, None)
    assert failed(accuracy) == []
    assert failed(accuracy, require_proof=True) == ["top-1 agreement, proven"]


def test_wilson_by_the_book() -> None:
    """The interval of 997 out of 997 begins at 99.62 %, as the design says."""
    low, high = wilson(997, 997)
    assert low == pytest.approx(0.99616, abs=1e-5)
    assert high == 1


@given(st.integers(1, 10_000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_contains_the_share(case: tuple[int, int]) -> None:
    """The interval lies in [0, 1] and contains the share."""
    successes, trials = case
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1


def test_batches_cover_every_sample_once() -> None:
    """Samples that do not fill the last batch are run, too, in their order."""
    source = np.arange(70, dtype=np.float32).reshape(70, 1)
    out = run_batches(lambda batch: batch * 2, lambda start, stop: source[start:stop], 70)
    assert np.array_equal(out, source * 2)


def test_every_cpu_variant_of_the_tiny_model_keeps_its_gate(built: Project) -> None:
    """Real ONNX Runtime and reference evaluations pass on a real model."""
    reports = [built.accuracy(variant) for variant in built.plan.variants if variant.target == "cpu-x86_64"]
    assert [report.variant_id for report in reports if not report.passed] == []
    assert [report.accuracy.samples for report in reports if report.accuracy] == [100, 100, 100, 8, 100, 100]


def test_the_subset_is_said(built: Project) -> None:
    """A report on a part of the validation set says so."""
    variant = built.plan.variant("tiny/cpu-x86_64/onnx-reference-bf16")
    assert built.accuracy(variant).evaluator.endswith("on 8 of 100 samples")


def test_engines_wait_for_a_gpu(built: Project) -> None:
    """An engine is not judged where no driver is; the report says why."""
    report = built.accuracy(built.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB"))
    assert (report.outcome, report.reason, report.passed) == (Outcome.SKIPPED, "no NVIDIA driver found", False)


def test_what_was_not_built_is_not_judged(copied: Path) -> None:
    """Validating a variant whose build was skipped says that, rather than failing."""
    project = Project.load(copied / "pipeline.yaml")
    report = validate_variant(project, project.plan.variant("tiny/gpu/dynamo-fp16-b1-ws16MiB"))
    assert (report.outcome, report.reason) == (Outcome.SKIPPED, "not built: no NVIDIA driver found")


def scale_one_weight(copied: Path, factor: float) -> Project:
    """Multiply the fp16 graph's first weight by `factor`, records kept true, and return the project."""
    project = Project.load(copied / "pipeline.yaml")
    file = project.paths.onnx(Graph.FP16)
    model = onnx.load(file)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float16), tensor.name))
    onnx.save(model, file)
    record = read_record(project.paths.onnx_record(Graph.FP16), OnnxRecord)
    changed = record.model_copy(update={"file": describe_file(file, project.paths.root)})
    write_record(project.paths.onnx_record(Graph.FP16), changed)
    variant = project.plan.variant(FP16)
    artifact = read_record(project.paths.artifact(variant), Artifact)
    write_record(project.paths.artifact(variant), artifact.model_copy(update={"file": changed.file}))
    return project


def test_a_wrong_weight_is_rejected(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A graph with one weight scaled by 8 is rejected, with metric, value, bound and worst sample."""
    scale_one_weight(copied, 8)
    assert main(["validate", FP16, "--config", str(copied / "pipeline.yaml")]) == 0
    said = capsys.readouterr().out
    assert "REJECTED: cosine 0." in said
    assert "gate ≥ 0.9999" in said
    assert "worst sample: " in said


def test_an_artifact_that_does_not_load_is_a_failure(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An ONNX file that ONNX Runtime cannot read fails its variant, with exit status 1 and a record."""
    project = Project.load(copied / "pipeline.yaml")
    project.paths.onnx(Graph.FP16).write_bytes(b"not a model")
    assert main(["validate", FP16, "--config", str(copied / "pipeline.yaml")]) == 1
    assert "ONNX Runtime cannot load" in capsys.readouterr().err
    report = read_record(project.paths.accuracy(project.plan.variant(FP16)), AccuracyReport)
    assert report.outcome is Outcome.FAILED


# What an engine computed in.


def layers(*found: tuple[Precision | None, int]) -> tuple[LayerShare, ...]:
    """Return shares of layers, the most frequent first."""
    return tuple(LayerShare(precision=precision, layers=count, examples=()) for precision, count in found)


@pytest.mark.parametrize(
    ("asked", "found", "relative_l2", "executed"),
    [
        (Precision.FP32, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.FP32, layers((Precision.FP32, 20)), 4e-4, Precision.TF32),
        (Precision.FP32, layers((Precision.FP32, 19), (Precision.TF32, 1)), 1e-6, Precision.TF32),
        (Precision.TF32, layers((Precision.TF32, 20)), 4e-4, Precision.TF32),
        (Precision.TF32, layers((Precision.FP32, 20)), 4e-4, Precision.TF32),
        (Precision.TF32, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.FP16, layers((Precision.FP16, 20), (Precision.FP32, 1)), 1e-3, Precision.FP16),
        (Precision.FP16, layers((Precision.FP32, 20)), 1e-6, Precision.FP32),
        (Precision.INT8, layers((Precision.INT8, 19), (Precision.FP16, 1)), 0.05, Precision.INT8),
        (Precision.FP16, layers((None, 20)), 1e-3, None),
        (Precision.FP32, (), 1e-3, None),
    ],
)
def test_executed_precision_is_that_of_most_layers(
    asked: Precision, found: tuple[LayerShare, ...], relative_l2: float, executed: Precision | None
) -> None:
    """An engine computed in what most of its convolutions multiply in; numbers tell TF32 from strict FP32."""
    assert executed_precision(asked, found, relative_l2, 1e-5) is executed


@pytest.mark.parametrize(
    ("claimed", "found", "value", "passed"),
    [
        (Precision.FP16, layers((Precision.FP16, 20)), "100.0%", True),
        (Precision.FP16, layers((Precision.FP16, 19), (Precision.FP32, 1)), "95.0%", True),
        (Precision.FP16, layers((Precision.FP16, 18), (Precision.FP32, 2)), "90.0%", False),
        (Precision.FP16, layers((Precision.FP32, 20)), "0.0%", False),
        (Precision.TF32, layers((Precision.FP32, 10), (Precision.TF32, 10)), "100.0%", True),
        (Precision.FP32, layers((Precision.FP32, 10), (Precision.TF32, 10)), "50.0%", False),
        (Precision.INT8, layers((Precision.INT8, 4), (Precision.FP16, 1)), "80.0%", True),
        (Precision.INT8, layers((Precision.INT8, 3), (Precision.FP16, 1)), "75.0%", False),
        (Precision.FP8, layers((Precision.FP8, 19), (Precision.FP16, 1)), "95.0%", True),
        (Precision.BF16, layers((None, 20)), "0.0%", False),
    ],
)
def test_layers_are_held_against_the_claimed_precision(
    claimed: Precision, found: tuple[LayerShare, ...], value: str, *, passed: bool
) -> None:
    """An engine that claims a precision multiplies in it, but for a few layers; quantisers leave more."""
    bound = "80%" if claimed in {Precision.INT8, Precision.FP8} else "95%"
    assert judge_layers(claimed, found) == (
        GateCheck(metric="executed precision", bound=f"≥ {bound} {claimed.value}", value=value, passed=passed),
    )


def test_artifact_that_tells_no_layers_is_not_held_against_them() -> None:
    """ONNX Runtime tells nothing, and a network may have no convolution."""
    assert judge_layers(Precision.FP16, ()) == ()


# Batches of an engine.


def sizes_of(samples: int, batch: int, smallest: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Run samples whose only number is their index; return the sizes of the batches, and the results."""
    source = np.arange(samples, dtype=np.float32).reshape(samples, 1)
    sizes: list[int] = []

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        sizes.append(len(images))
        return images * 2

    return sizes, run_batches(run, lambda start, stop: source[start:stop], samples, batch=batch, smallest=smallest)


@pytest.mark.parametrize(
    ("samples", "batch", "smallest", "sizes"),
    [
        (10, 4, 1, [4, 4, 2]),
        (10, 4, 4, [4, 4, 4]),
        (3, 8, 8, [8]),
        (8, 8, 8, [8]),
        (5, 4, 3, [4, 3]),
        (1, 1, 1, [1]),
    ],
)
def test_batches_are_as_large_as_the_engine_takes(samples: int, batch: int, smallest: int, sizes: list[int]) -> None:
    """Only the last batch is smaller, and it is filled up to the smallest that the engine takes."""
    assert sizes_of(samples, batch, smallest)[0] == sizes


@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_filled_batches_are_cut_again(samples: int, batch: int, data: st.DataObject) -> None:
    """Whatever the sizes, every sample has its own result, in order, and no filling is left."""
    smallest = data.draw(st.integers(1, batch))
    sizes, results = sizes_of(samples, batch, smallest)
    assert results.ravel().tolist() == [2.0 * index for index in range(samples)]
    assert all(smallest <= size <= batch for size in sizes)
