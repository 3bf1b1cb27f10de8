"""The order of steps, and the steps that each one requires."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from model_artifacts.errors import UsageError
from model_artifacts.records import CPU_TARGET, Graph
from pipeline.planning.plan import Plan
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from tests.support.hosts import H100, TRT10, host, workers
from tests.support.plans import PLANS, farm_plan, plan_of, schedule_of


def test_steps_come_in_the_order_of_the_stages() -> None:
    """Every stage's steps stand together, source first and manifest last."""
    stages = [step.stage for step in schedule_of(plan_of(precisions=["int8", "fp16"])).steps]
    names = [spec.name for spec in STAGES]
    assert list(dict.fromkeys(stages)) == [spec.name for spec in STAGES if not spec.on_demand]
    assert stages == sorted(stages, key=names.index)


@pytest.mark.parametrize(
    ("step", "needs"),
    [
        ("source m", []),
        ("data m", ["source m"]),
        ("export m/fp16", ["source m"]),
        ("quantize m/int8", ["data m", "export m/fp32"]),
        ("build m/cpu-x86_64/eager-fp32", ["source m"]),
        ("build m/cpu-x86_64/onnxruntime-fp16", ["export m/fp16"]),
        ("build m/rtx-sm80+/int8-b1-ws1GiB", ["quantize m/int8"]),
        ("build m/gpu/dynamo-fp16-b1-ws1GiB", ["source m"]),
        (
            "validate m/gpu/dynamo-fp16-b1-ws1GiB",
            ["data m", "rounding m/fp32", "rounding m/fp16", "build m/gpu/dynamo-fp16-b1-ws1GiB"],
        ),
        ("benchmark m/gpu", ["data m"]),
        ("manifest m", []),
    ],
)
def test_each_step_needs_what_it_reads(step: str, needs: list[str]) -> None:
    """A step needs the steps whose results it cannot do without."""
    schedule = schedule_of(plan_of(precisions=["fp16", "int8"]))
    stage, subject = step.split(" ")
    found = schedule.dependencies(Step(stage, subject)).requires
    assert [f"{other.stage} {other.subject}" for other in found] == needs


def test_build_follows_the_builds_with_smaller_workspaces() -> None:
    """An engine may turn out to be that of a smaller workspace, all of which are built before, one after the other."""
    schedule = schedule_of(plan_of(workspaces=["3GiB", "1GiB", "2GiB"]))
    before = {
        size: [
            step.subject[-6:] for step in schedule.dependencies(Step(stage, f"m/rtx-sm80+/fp32-b1-ws{size}")).follows
        ]
        for size in ("1GiB", "2GiB", "3GiB")
        for stage in ("build", "validate")
    }
    assert before == {"1GiB": [], "2GiB": ["ws1GiB"], "3GiB": ["ws2GiB"]}


def test_benchmark_follows_everything_that_would_disturb_the_clock() -> None:
    """All builds, all validations and the benchmarks before it come first, whether or not they succeed."""
    schedule = schedule_of(plan_of())
    follows = schedule.dependencies(Step("benchmark", "m/rtx-sm80+")).follows
    expected = {step for step in schedule.steps if step.stage in {"build", "validate"}}
    assert set(follows) == expected | {Step("benchmark", "m/cpu-x86_64")}


def test_manifest_follows_everything() -> None:
    """The manifest tells of failures too, so that it comes after all the other steps and needs none."""
    schedule = schedule_of(plan_of())
    *others, manifest, report = schedule.steps
    assert schedule.dependencies(manifest).follows == tuple(others)
    assert schedule.dependencies(report).requires == (manifest,)


@given(PLANS)
@settings(deadline=None)
def test_every_plan_is_in_an_order_in_which_it_can_run(plan: Plan) -> None:
    """In every matrix, the requirements of a step come before it and are part of the plan."""
    done: set[Step] = set()
    schedule = schedule_of(plan)
    for step in schedule.steps:
        before = schedule.dependencies(step)
        assert {*before.requires, *before.follows} <= done
        done.add(step)


TUNED: dict[str, object] = {"accelerator": "H100", "flavour": "tensorrt"}
AHEAD: dict[str, object] = {"flavour": "tensorrt_rtx"}
OF_H100 = workers("H100 with tensorrt", host(H100, flavours=(TRT10,)))

OF_PROCESSORS = workers("a processor with tensorrt_rtx", host(torch="absent"))


def test_farms_machines_time_without_waiting_for_each_other() -> None:
    """A farm's benchmark follows the builds of its own machines; the driver's follows everything."""
    plan = Plan(farm_plan(TUNED, AHEAD), host(), (OF_H100, OF_PROCESSORS))
    schedule = schedule_of(plan)
    after = {target: schedule.dependencies(Step("benchmark", f"m/{target}")).follows for target in plan.targets}
    assert {schedule.workers(step) for step in after["rtx-sm80+"]} == {OF_PROCESSORS}
    assert {schedule.workers(step) for step in after["sm90-h100-80gb-hbm3-trt10.15"]} == {OF_H100}
    assert {schedule.workers(step) for step in after[CPU_TARGET]} == {None, OF_H100, OF_PROCESSORS}


def test_misspelt_stage_is_told_the_closest() -> None:
    """An unknown stage is a usage error with the name that resembles it."""
    with pytest.raises(UsageError, match=r"(?s)no stage 'bild'.*build"):
        schedule_of(plan_of()).spec("bild")


@pytest.mark.parametrize(
    ("stage", "subject", "noun"),
    [
        ("export", "m/int8", "graph"),
        ("quantize", "m/fp32", "graph"),
        ("benchmark", "m/rtx-sm90", "target"),
        ("source", "n", "model"),
        ("sensitivity", "m/int8-cpu", "quantised graph"),
    ],
)
def test_subject_of_another_kind_is_refused(stage: str, subject: str, noun: str) -> None:
    """A subject that the stage is not applied to is a usage error that names its kind."""
    schedule = schedule_of(plan_of(precisions=["fp32", "int8"]))
    with pytest.raises(UsageError, match=f"no {noun} '{subject}' in this configuration"):
        schedule.subject(Step(stage, subject))


def test_subject_is_found_by_its_name() -> None:
    """`m/int8-cpu` names the graph for processors, `m/rtx-sm80+` the target of engines."""
    schedule = schedule_of(plan_of(precisions=["int8"]))
    assert schedule.subject(Step("quantize", "m/int8-cpu")) is Graph.INT8_CPU
    assert schedule.subject(Step("benchmark", "m/rtx-sm80+")) == "rtx-sm80+"
