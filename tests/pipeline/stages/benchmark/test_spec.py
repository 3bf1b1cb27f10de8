"""Keys, places and inputs of a benchmark's restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.benchmark.spec import SPEC, benchmark_key, restart_key

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Key

CPU = "cpu-x86_64"


def with_benchmark(project: Project, **changed: object) -> Project:
    """Return a project with other settings of the benchmark."""
    settings = project.config.benchmark.model_copy(update=changed)
    return Project(
        Plan(project.config.model_copy(update={"benchmark": settings}), project.plan.host), project.paths, STAGES
    )


def changed_fields(before: Key, now: Key) -> set[str]:
    """Return the names of the fields that differ."""
    return {field.name for field in {*before.fields} ^ {*now.fields}}


def test_more_restarts_leave_the_key_of_a_restart(built: Project) -> None:
    """A benchmark of more restarts is another one, and its first restarts are the same; rounds change both."""
    variant = built.plan.variant(f"tiny/{CPU}/onnxruntime-fp32")
    key, whole = restart_key(built, CPU, variant), benchmark_key(built, CPU)
    more, longer = with_benchmark(built, restarts=9), with_benchmark(built, rounds=9)
    assert restart_key(more, CPU, variant) == key
    assert changed_fields(benchmark_key(more, CPU), whole) == {"settings"}
    assert changed_fields(restart_key(longer, CPU, variant), key) == {"settings"}


def test_a_restart_is_of_its_artifact_and_of_the_baselines(copied: Path) -> None:
    """Another build of the variant or of eager FP32 changes the key; another variant's build does not."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    variants = [project.plan.variant(f"tiny/{CPU}/{name}") for name in ("onnxruntime-fp32", "onnxruntime-int8")]
    before = [restart_key(project, CPU, variant) for variant in variants]
    project.paths.artifact(variants[1]).unlink()
    assert restart_key(project, CPU, variants[0]) == before[0]
    assert changed_fields(restart_key(project, CPU, variants[1]), before[1]) == {"artifact"}
    project.paths.artifact(project.plan.variant(f"tiny/{CPU}/eager-fp32")).unlink()
    assert changed_fields(restart_key(project, CPU, variants[0]), before[0]) == {"baseline"}


def test_restarts_travel_to_a_worker_that_goes_on(copied: Path) -> None:
    """They are the step's own files; those of a current benchmark stay here, because its step takes new ones."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    variant = project.plan.variant(f"tiny/{CPU}/onnxruntime-fp32")
    places = {project.paths.restart(variant, number) for number in (1, 2)}
    samples = {project.paths.restart_samples(variant, number) for number in (1, 2)}
    assert {*SPEC.files(project.paths, project.plan, CPU)} >= places | samples
    assert SPEC.inputs is not None
    assert not places & {item.path for item in SPEC.inputs(project, CPU)}
    project.paths.benchmark(variant).unlink()
    project.paths.restart_samples(variant, 2).write_bytes(b"damaged")
    sent = {item.path: item.files for item in SPEC.inputs(project, CPU)}
    (first,) = places & sent.keys()
    assert [project.file(file) for file in sent[first]] == [project.paths.restart_samples(variant, 1)]
