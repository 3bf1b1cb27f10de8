"""Models that Triton can run, on each kind of host, and omissions with reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import (
    AxisRange,
    Backend,
    BatchRange,
    BuiltFor,
    Clock,
    EngineFlavour,
    GpuType,
    Graph,
    LoadSettings,
    ManifestEntry,
    Precision,
    Setting,
    Status,
)
from model_artifacts.releases.triton_models import Platform, plan_models
from tests.support.deployables import engine
from tests.support.hosts import H100, L4, TRT10, TRT86
from tests.support.loads import LOAD, result
from tests.support.manifests import timing

if TYPE_CHECKING:
    from model_artifacts.records import BatchTiming
from tests.support.triton import IMAGE, ONE, RANGE, of, onnx, package, plan


def test_each_kind_of_host_has_a_repository() -> None:
    """A server loads all models of its repository, or ends: those of a processor and of each GPU's SM are apart."""
    on_l4 = plan("l4", 2.0, gpu=L4).model_copy(update={"target": "sm89-l4-trt10.15"})
    on_gpu = onnx("gpu", Graph.FP16, 1, target="sm90-h100", gpu=GpuType(name=H100.name, compute_capability=90))
    unknown = onnx("unknown", Graph.FP16, 1, target="gpu", gpu=None)
    models, left = plan_models(of(plan("h100", 1.0), on_l4, on_gpu, unknown, onnx("cpu", Graph.FP32, 1)))
    assert [model.path for model in models] == [
        "cpu/m-fp32-onnx",
        "gpu/m-fp16-onnx-gpu",
        "sm89/m-fp16-b1-4-8-trt",
        "sm90/m-fp16-b1-4-8-trt",
        "sm90/m-fp16-onnx-gpu",
    ]
    assert [model.filename for model in models if model.platform is Platform.TENSORRT] == [
        "model.sm89.plan",
        "model.sm90.plan",
    ]
    assert [model.on_gpu for model in models] == [False, True, True, True, True]
    assert left == ()


def test_of_workspaces_the_fastest_is_taken() -> None:
    """The others are named with it."""
    slow, fast = plan("ws1GiB", 1.0, 1.0, 1.0, 0.9), plan("ws2GiB", 1.0, 1.0, 1.0, 0.8)
    (model,), left = plan_models(of(slow, fast))
    assert model.entry == fast
    assert [item.id for item in left] == [slow.id]
    assert f"{fast.id} takes its place" in left[0].reason


def test_two_types_of_one_compute_capability_cannot_both_be_there() -> None:
    """Triton tells GPUs apart by SM alone."""
    pcie = H100.model_copy(update={"name": "NVIDIA H100 PCIe"})
    (model,), (left,) = plan_models(of(plan("sxm", 1.0), plan("pcie", 2.0, gpu=pcie)))
    assert model.filename == "model.sm90.plan"
    assert "by SM alone" in left.reason


def test_a_server_has_one_version_of_tensorrt() -> None:
    """The newest stays, although the older engine is faster."""
    new = plan("new", 2.0)
    assert new.built_for is not None
    old = plan("old", 1.0, built_for=new.built_for.model_copy(update={"version": TRT86.version}))
    (model,), (left,) = plan_models(of(old, new))
    assert model.entry == new
    assert TRT10.version > ""
    assert "newer TensorRT" in left.reason


def test_a_server_has_one_version_for_all_its_models() -> None:
    """An engine of an older TensorRT is left out beside other models of its host, and stays on another host."""
    made_for = plan("a", 1.0).built_for
    assert made_for is not None
    old = made_for.model_copy(update={"version": TRT86.version})
    elsewhere = old.model_copy(update={"compute_capabilities": (89,)})
    models, left = plan_models(
        of(
            plan("new", 1.0),
            plan("int8", 1.0, precision=Precision.INT8, built_for=old),
            plan("l4", 1.0, built_for=elsewhere),
        )
    )
    assert [model.path for model in models] == ["sm89/m-fp16-b1-4-8-trt", "sm90/m-fp16-b1-4-8-trt"]
    assert [item.id.rpartition("/")[2] for item in left] == ["int8"]


def test_what_was_not_pulled_is_left_out() -> None:
    """After a pull for one host, the other artifacts are named, and not served."""
    (model,), (left,) = plan_models(of(plan("a", 1.0), plan("b", 1.0, profile=ONE)), {"m/cpu-x86_64/b"})
    assert model.entry.id == "m/cpu-x86_64/a"
    assert "was not pulled" in left.reason


def test_precisions_batches_and_forms_are_models_of_their_own() -> None:
    """Clients choose between precisions, batch ranges and forms by the name of the model."""
    models, left = plan_models(
        of(
            plan("a", 1.0),
            plan("b", 1.0, profile=ONE),
            plan("c", 1.0, precision=Precision.INT8),
            plan("d", 1.0, precision=Precision.INT8, graph=Graph.INT8_MIXED),
            package("e", 1.0),
            onnx("f", Graph.FP32, 1, 8),
            onnx("g", Graph.INT8_CPU, 1),
        )
    )
    assert [model.path for model in models] == [
        "cpu/m-fp32-onnx",
        "cpu/m-int8-cpu-onnx",
        "sm90/m-fp16-b1-4-8-aoti",
        "sm90/m-fp16-b1-4-8-trt",
        "sm90/m-fp16-b1-trt",
        "sm90/m-int8-b1-4-8-trt",
        "sm90/m-int8-mixed-b1-4-8-trt",
    ]
    assert [model.platform for model in models[2:4]] == [Platform.AOTI, Platform.TENSORRT]
    assert left == ()


TWO_PARTS = BuiltFor(
    flavour=EngineFlavour.TENSORRT, version="10.6", gpu=H100.name, compute_capabilities=(90,), batch_parts=2
)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (engine("rtx", 1.0, gpu=None), "none of TensorRT-RTX"),
        (plan("dynamo", 1.0, backend=Backend.DYNAMO), "no ExportedPrograms"),
        (plan("recipe", 1.0, backend=Backend.TORCH_COMPILE), "nothing to load"),
        (plan("bare", 1.0, built_for=None), "TensorRT-RTX"),
        (
            plan("stripped", 1.0, settings=(Setting(name="strip_plan", value="true", applied=True),)),
            "without its weights",
        ),
        (
            plan("parts", 1.0, built_for=TWO_PARTS),
            "its batch runs in 2 parts at once",
        ),
        (onnx("int8", Graph.INT8, 1), "its Q/DQ pairs are placed for TensorRT"),
        (onnx("fp32", Graph.FP32, 1, target="sm90-h100"), "without TF32"),
    ],
    ids=lambda item: item.id if isinstance(item, ManifestEntry) else "",
)
def test_what_triton_cannot_run_is_told(bad: ManifestEntry, reason: str) -> None:
    """One line each."""
    models, (left,) = plan_models(of(bad))
    assert models == ()
    assert left.id == bad.id
    assert reason in left.reason


def test_what_may_not_be_deployed_is_not_mentioned() -> None:
    """Baselines and artifacts that are not deployable are not mentioned."""
    rejected = plan("a", 1.0, status=Status.REJECTED)
    assert plan_models(of(rejected, onnx("b", Graph.FP32, 1, backend=Backend.EAGER))) == ((), ())


@pytest.mark.parametrize(
    ("profile", "largest", "dims"),
    [
        (RANGE, 8, (3, 32, 32)),
        (BatchRange(min=1, opt=1, max=8), 8, (3, 32, 32)),
        (ONE, 0, (1, 3, 32, 32)),
        (BatchRange(min=64, opt=64, max=64), 0, (64, 3, 32, 32)),
        (BatchRange(min=2, opt=4, max=8), 0, (-1, 3, 32, 32)),
    ],
    ids=lambda item: item.label if isinstance(item, BatchRange) else "",
)
def test_triton_batches_only_what_takes_any_size_up_to_the_largest(
    profile: BatchRange, largest: int, dims: tuple[int, ...]
) -> None:
    """A fixed size is part of the shape; one that takes no single image is left to the client."""
    (model,), _ = plan_models(of(plan("a", 1.0, profile=profile)))
    assert (model.max_batch, model.composes, model.dims(IMAGE)) == (largest, bool(largest), dims)


@pytest.mark.parametrize(
    ("milliseconds", "preferred", "composes"),
    [
        ({}, None, True),
        ({4: 1.0}, None, True),
        ({1: 1.0, 4: 1.0}, None, True),
        ({1: 1.0, 4: 2.0, 8: 3.0}, None, True),
        ({1: 1.0, 4: 2.0, 8: 5.0}, 4, True),
        ({1: 1.0, 4: 2.0, 8: 4.02}, None, True),
        ({1: 1.0, 4: 8.0, 8: 16.0}, 1, False),
    ],
    ids=str,
)
def test_a_batch_is_preferred_if_it_was_measured_best(
    milliseconds: dict[int, float], preferred: int | None, *, composes: bool
) -> None:
    """Triton stops at the largest preferred size: none is listed unless the largest batch is measured to be worse."""
    timings = tuple(timing(batch, p50) for batch, p50 in milliseconds.items())
    streams = timing(2, 1e-3, clock=Clock.STREAMS)
    (model,), _ = plan_models(of(plan("a", timings=(*timings, streams))))
    assert (model.preferred_batch, model.composes) == (preferred, composes)


@pytest.mark.parametrize("timings", [(), (timing(1, 1.0),), (timing(64, 1.0),)])
def test_onnx_is_batched_as_far_as_it_was_validated(timings: tuple[BatchTiming, ...]) -> None:
    """It takes any size, and the largest that was validated counts, whether it was timed or not."""
    (model,), _ = plan_models(of(onnx("a", Graph.FP16, 1, 3, 32, timings=timings)))
    assert model.max_batch == 32


def test_settings_that_won_under_load_are_the_servers() -> None:
    """Those of the strictest bound that was kept, or of the bound that is asked for, in place of the benchmark's."""
    loaded = plan("a", timings=(timing(1, 1.0), timing(4, 2.0), timing(8, 5.0)), load=LOAD)
    (model,), _ = plan_models(of(loaded))
    assert (model.instances, model.preferred_batch, model.max_delay_us, model.composes) == (3, 4, 500, True)
    assert model.graph_batches == (1, 2, 3, 4)
    assert model.origin == "`doit load`: 1,234 images/s within p99 2 ms, by LoadGen 6.0.17 on a GPU, driver 580"
    (model,), _ = plan_models(of(loaded), p99_ms=20)
    assert (model.instances, model.preferred_batch, model.max_delay_us) == (2, 8, 1000)
    (model,), _ = plan_models(of(loaded), p99_ms=1)
    assert model.origin == "Triton's defaults and the benchmark: no result within p99 1 ms"
    assert (model.instances, model.preferred_batch, model.max_delay_us, model.graph_batches) == (1, 4, 0, None)


def test_single_images_that_won_are_not_batched() -> None:
    """Triton composes no batches where batches of one image won under load; the graph is that of one image."""
    alone = LoadSettings(contexts=4, batch=1, max_delay_ms=0)
    load = LOAD.model_copy(update={"results": (result(2, alone),)})
    (model,), _ = plan_models(of(plan("a", 1.0, load=load)))
    assert (model.instances, model.composes, model.max_delay_us, model.graph_batches) == (4, False, 0, (1,))


def test_only_engines_have_cuda_graphs() -> None:
    """An engine of one batch size has that of its size; an ONNX file has none, and no batch above what was proven."""
    (fixed,), _ = plan_models(of(plan("a", 1.0, profile=ONE, load=LOAD)))
    assert (fixed.max_batch, fixed.graph_batches, fixed.composes, fixed.instances) == (0, (), False, 3)
    (file,), _ = plan_models(of(onnx("a", Graph.FP16, 1, 2, load=LOAD)))
    assert (file.graph_batches, file.preferred_batch, file.instances) == (None, 2, 3)


def test_an_engine_for_several_sizes_has_free_axes() -> None:
    """Its plan refuses other sizes. An ONNX file would take any, so that it is left out with that reason."""
    ranges = (AxisRange(name="height", min=24, opt=32, max=48), AxisRange(name="width", min=24, opt=32, max=64))
    sized = IMAGE.model_copy(update={"shape": ("batch", 3, "height", "width"), "ranges": ranges})
    profile = BatchRange(min=1, opt=4, max=8, axes=ranges)
    file = onnx("file", Graph.FP16, 1).model_copy(update={"inputs": (sized,)})
    engines = plan("sizes", 1.0, profile=profile).model_copy(update={"inputs": (sized,)})
    (model,), (left,) = plan_models(of(engines, file))
    assert model.name == "m-fp16-b1-4-8-height24-32-48-width24-32-64-trt"
    assert (model.dims(sized), model.max_batch) == ((3, -1, -1), 8)
    assert (left.id, left.reason[:35]) == (file.id, "its graph takes images of any size,")


BUILT = plan("a", 1.0).built_for
assert BUILT is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "../../escaped"}, "the name of its model"),
        ({"model": "m\n"}, "the name of its model"),
        ({"built_for": BUILT.model_copy(update={"version": "10.15.1.post1"})}, "TensorRT is '10.15.1.post1'"),
        ({"built_for": BUILT.model_copy(update={"compute_capabilities": ()})}, "the compute capability"),
    ],
    ids=["a path", "a line break", "no numbers", "no compute capability"],
)
def test_facts_that_no_build_writes_are_obstacles(changes: dict[str, object], said: str) -> None:
    """The other artifacts stay, and nothing is written outside of the repository."""
    pair = (plan("good", 1.0), plan("wrong", 1.0).model_copy(update=changes))
    (model,), (left,) = plan_models(of().model_copy(update={"artifacts": pair}))
    assert model.entry.id.endswith("/good")
    assert left.id.endswith("/wrong")
    assert said in left.reason
