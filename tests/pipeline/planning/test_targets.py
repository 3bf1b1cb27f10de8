"""Targets of engines: flavours, GPUs, and the machines of a farm."""

from __future__ import annotations

import pytest

from model_artifacts.records import CPU_TARGET, GPU_TARGET, Backend, EngineFlavour, Gpu, Tool, Workspace
from pipeline.planning.plan import Plan
from tests.support.hosts import H100, L4, RTX, TRT10, TRT86, host, workers
from tests.support.plans import config_of, engines_of, farm_plan, plan_of, schedule_of


@pytest.mark.parametrize(
    ("capabilities", "target", "needs"),
    [
        ("80+", "rtx-sm80+", "an SM80+ GPU"),
        ([120, 89, 86, 80], "rtx-sm80+", "an SM80+ GPU"),
        ([89, 75], "rtx-sm75-89", "a GPU of SM 75, 89"),
        ([121], "rtx-sm121", "a GPU of SM 121"),
    ],
)
def test_engine_target_names_the_gpu_generations(capabilities: object, target: str, needs: str) -> None:
    """An engine's target and its hardware follow from the compute capabilities."""
    plan = plan_of(tensorrt={"compute_capabilities": capabilities})
    (engine,) = engines_of(plan)
    assert ([found.name for found in plan.engine_targets], engine.target) == ([target], target)
    assert plan.hardware(engine) == needs


@pytest.mark.parametrize(
    ("flavours", "target"),
    [
        ((TRT86,), "sm90-h100-80gb-hbm3-trt8.6"),
        ((TRT10, RTX), "sm90-h100-80gb-hbm3-trt10.15"),
        ((RTX,), "rtx-sm80+"),
    ],
)
def test_engine_target_follows_from_gpu_and_flavour(flavours: tuple[Tool, ...], target: str) -> None:
    """A tuned engine belongs to a type of GPU and a version; a portable one belongs to GPU generations."""
    (found,) = Plan(config_of(), host(H100, flavours=flavours)).engine_targets
    assert (found.name, found.gpu) == (target, H100)


def test_every_type_of_gpu_is_a_target_of_its_own() -> None:
    """Engines for two types stand side by side, each tuned on its own GPU."""
    plan = Plan(config_of(device="all"), host(H100, L4, flavours=(TRT86,)))
    assert [(found.name, found.gpu) for found in plan.engine_targets] == [
        ("sm90-h100-80gb-hbm3-trt8.6", H100),
        ("sm89-l4-trt8.6", L4),
    ]
    assert [engine.target for engine in engines_of(plan)] == ["sm90-h100-80gb-hbm3-trt8.6", "sm89-l4-trt8.6"]


def test_portable_engines_are_one_target_whatever_gpus_there_are() -> None:
    """Engines that are built ahead of time are built once, and tried on the first GPU."""
    (found,) = Plan(config_of(device="all"), host(H100, L4)).engine_targets
    assert (found.name, found.gpu, found.compute_capabilities) == ("rtx-sm80+", H100, (80, 86, 89, 120))


def test_current_is_a_target_of_the_gpu() -> None:
    """TensorRT-RTX's engines for this very GPU are not those that run on others."""
    config = config_of(tensorrt={"compute_capabilities": "current"})
    (found,) = Plan(config, host(H100)).engine_targets
    assert (found.name, found.compute_capabilities) == ("sm90-h100-80gb-hbm3-rtx1.4", ())


def test_tensorrt_without_a_gpu_is_a_target_that_nothing_is_built_for() -> None:
    """The variants are planned, so that the manifest can say why they were skipped."""
    plan = Plan(config_of(), host(flavours=(TRT86,)))
    (found,) = plan.engine_targets
    assert (found.name, found.gpu, found.compute_capabilities) == ("trt8.6", None, ())
    assert [plan.hardware(engine) for engine in engines_of(plan)] == ["an NVIDIA GPU"]


def test_configured_flavour_goes_before_the_one_installed() -> None:
    """A flavour that the file names is taken, with the version that this host has of it."""
    config = config_of(tensorrt={"flavour": "tensorrt_rtx"})
    plan = Plan(config, host(H100, flavours=(TRT10, RTX)))
    (found,) = plan.engine_targets
    assert (found.flavour, found.flavour_version) == (EngineFlavour.TENSORRT_RTX, "1.4.0.76")


def test_flavour_that_is_not_installed_has_no_version() -> None:
    """A flavour that the host lacks has no version."""
    (found,) = Plan(config_of(tensorrt={"flavour": "tensorrt"}), host(flavours=(RTX,))).engine_targets
    assert found.flavour_version == "absent"


@pytest.mark.parametrize(
    ("config", "installed", "target"),
    [
        ({"flavour": "tensorrt"}, RTX, "trt"),
        ({"flavour": "tensorrt_rtx", "compute_capabilities": "current"}, TRT10, "rtx"),
    ],
)
@pytest.mark.parametrize(("gpus", "prefix"), [((), ""), ((H100,), "sm90-h100-80gb-hbm3-")], ids=["no GPU", "H100"])
def test_target_of_a_flavour_that_is_not_installed_has_no_version(
    config: dict[str, object], installed: Tool, target: str, gpus: tuple[Gpu, ...], prefix: str
) -> None:
    """Without a version, a target is named by the library alone."""
    (found,) = Plan(config_of(tensorrt=config), host(*gpus, flavours=(installed,))).engine_targets
    assert found.name == prefix + target


def test_host_without_a_flavour_plans_for_tensorrt_rtx() -> None:
    """The default flavour is TensorRT for RTX, which installs anywhere."""
    (found,) = Plan(config_of()).engine_targets
    assert found.flavour is EngineFlavour.TENSORRT_RTX


def test_tuned_engine_needs_the_gpu_that_it_was_tuned_on() -> None:
    """An engine of a flavour that tunes runs on the type of GPU that it names."""
    plan = Plan(config_of(), host(H100, flavours=(TRT86,)))
    assert [plan.hardware(engine) for engine in engines_of(plan)] == ["an NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (CPU_TARGET, None),
        ("sm90-h100-80gb-hbm3-trt8.6", 0),
        ("sm89-l4-trt8.6", 1),
        ("sm90-h100-80gb-hbm3-torch2.11", 0),
        ("sm89-l4-torch2.11", 1),
    ],
)
def test_each_target_runs_on_its_own_gpu(target: str, index: int | None) -> None:
    """Engines and modules run on the type that they were made for, and the CPU's variants on none."""
    gpu = Plan(config_of(device="all"), host(H100, L4, flavours=(TRT86,))).gpu(target)
    assert (gpu and gpu.index) == index


def test_host_without_a_gpu_runs_no_target_on_one() -> None:
    """On a host without a GPU no target has one."""
    plan = Plan(config_of(), host())
    assert {plan.gpu(target) for target in plan.targets} == {None}


def test_shares_are_of_each_targets_own_gpu() -> None:
    """A quarter of each GPU's memory is another size on another type, under one label."""
    plan = Plan(config_of(device="all", workspaces=["25%", "8GiB"]), host(H100, L4, flavours=(TRT86,)))
    assert [(engine.target[:4], engine.workspace) for engine in engines_of(plan)] == [
        ("sm90", Workspace(bytes=8 * 2**30, label="8GiB")),
        ("sm90", Workspace(bytes=20 * 2**30, label="25pct")),
        ("sm89", Workspace(bytes=6 * 2**30, label="25pct")),
        ("sm89", Workspace(bytes=8 * 2**30, label="8GiB")),
    ]


def test_needs_of_the_other_targets_are_phrases() -> None:
    """The hardware of the CPU's target and of the GPU's target is a phrase."""
    plan = plan_of()
    assert {
        variant.target: plan.hardware(variant) for variant in plan.variants if variant.backend is not Backend.TENSORRT
    } == {
        CPU_TARGET: "an x86-64 processor",
        GPU_TARGET: "an NVIDIA GPU",
    }


def test_targets_are_listed_once_in_the_order_of_the_variants() -> None:
    """There is one interleaved benchmark a target."""
    assert plan_of(precisions=["fp32", "fp16"]).targets == (CPU_TARGET, "rtx-sm80+", GPU_TARGET)


TUNED: dict[str, object] = {"accelerator": "H100", "flavour": "tensorrt"}
AHEAD: dict[str, object] = {"flavour": "tensorrt_rtx"}
OF_H100 = workers("H100 with tensorrt", host(H100, flavours=(TRT10,)))
OF_L4 = workers("L4 with tensorrt_rtx", host(L4, torch="absent"))
OF_PROCESSORS = workers("a processor with tensorrt_rtx", host(torch="absent"))


def test_farm_has_the_targets_of_all_its_machines() -> None:
    """Each machine's flavour gives a target of engines, and machines with torch give targets of modules."""
    config = farm_plan(
        TUNED, {"accelerator": "L4", "flavour": "tensorrt_rtx", "compute_capabilities": "current"}, AHEAD
    )
    plan = Plan(config, host(), (OF_H100, OF_L4, OF_PROCESSORS))
    engines = [(found.name, found.flavour_version, found.gpu) for found in plan.engine_targets]
    assert engines == [
        ("sm90-h100-80gb-hbm3-trt10.15", "10.15.1.29", H100),
        ("sm89-l4-rtx1.4", "1.4.0.76", L4),
        ("rtx-sm80+", "1.4.0.76", None),
    ]
    assert [found.name for found in plan.module_targets] == ["sm90-h100-80gb-hbm3-torch2.11"]


def test_farm_runs_what_belongs_to_its_targets() -> None:
    """Shared steps and the CPU's steps run on the driver, not on the farm."""
    plan = Plan(farm_plan(TUNED, AHEAD), host(), (OF_H100, OF_PROCESSORS))
    schedule = schedule_of(plan)
    where = {
        (step.stage, step.subject.split("/")[1] if "/" in step.subject else ""): schedule.workers(step)
        for step in schedule.steps
    }
    tuned = {stage for (stage, _), found in where.items() if found == OF_H100}
    assert tuned == {"build", "validate", "benchmark"}
    assert where["build", "rtx-sm80+"] == OF_PROCESSORS
    assert {found for (_, target), found in where.items() if target in {"", CPU_TARGET, "fp32"}} == {None}
    assert {schedule.workers(step) for step in schedule.on_demand} == {None, OF_H100, OF_PROCESSORS}


def test_share_of_memory_is_of_each_targets_own_gpu() -> None:
    """A quarter of an H100 is more than a quarter of an L4."""
    config = farm_plan(
        TUNED,
        {"accelerator": "L4", "flavour": "tensorrt_rtx", "compute_capabilities": "current"},
        workspaces=["25%"],
    )
    plan = Plan(config, host(), (OF_H100, OF_L4))
    sizes = {variant.target: variant.workspace for variant in engines_of(plan)}
    assert sizes["sm90-h100-80gb-hbm3-trt10.15"] == Workspace(bytes=20 * 2**30, label="25pct")
    assert sizes["sm89-l4-rtx1.4"] == Workspace(bytes=6 * 2**30, label="25pct")
