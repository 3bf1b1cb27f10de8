"""Measure planning, hashing and a run with nothing to do, and optionally the gain of two processes.

python benchmarks/staleness.py            with the tests' tiny model: a run of 200 variants, a plan of 10,000
python benchmarks/staleness.py --builds   also `doit -n 2` against `-n 1`, with engines of ResNet18; takes minutes
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from speed import REPOSITORY, seconds_of, show

sys.path.insert(0, str(REPOSITORY))

from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import write_record
from model_artifacts.records import StageRecord
from pipeline.planning.keys import key_of
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.system.digests import Digests
from tests.conftest import TINY

if TYPE_CHECKING:
    from pipeline.planning.steps import Step

R = TypeVar("R", bound=StageRecord)

SIZES = "[16MiB, 32MiB]"
ENGINE_BYTES = 50 * 10**6
BUDGETS = {"no-op doit, 200 variants": 2.0, "doit list": 0.8, "planning 10,000 variants": 3.0}
"""Upper bounds in seconds, on 2 cores."""


def main() -> None:
    """Measure, and print each figure with its bound."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan_many(folder / "plan.yaml")
        hash_once(folder)
        do_nothing(folder / "pipeline.yaml")
        if "--builds" in sys.argv:
            build_side_by_side(folder)


def plan_many(config: Path) -> None:
    """Time a plan of 10,000 variants, with the dependencies of every step."""
    config.write_text(TINY.replace(SIZES, f"[{', '.join(f'{size}MiB' for size in range(16, 516))}]"))
    began = time.perf_counter()
    project = Project.load(config, STAGES)
    plan, schedule = project.plan, project.schedule
    steps = [schedule.dependencies(step) for step in schedule.steps]
    name = "planning 10,000 variants"
    show(name, time.perf_counter() - began, BUDGETS[name], "s", at_most=True)
    print(f"{'':<24} {len(plan.variants):,} variants, {len(steps):,} steps")


def hash_once(folder: Path) -> None:
    """Time the digest of an engine, first without and then with the digest cache on disk."""
    engine = folder / "model.engine"
    engine.write_bytes(bytes(ENGINE_BYTES))
    time.sleep(2.1)  # the digest of a file younger than the clock's resolution is not cached
    times = []
    for _ in range(2):
        digests = Digests(folder / "digests.sqlite3")
        began = time.perf_counter()
        digests.sha256_of(engine)
        times.append(time.perf_counter() - began)
    print(f"{'digest of 50 MB':<24} {1e3 * times[0]:8.2f} ms, {1e3 * times[1]:.2f} ms once cached")


def do_nothing(config: Path) -> None:
    """Time `doit` with 200 up-to-date variants."""
    config.write_text(TINY)
    doit("-n", "2", f"config={config}")
    few = Project.load(config, STAGES)
    config.write_text(TINY.replace(SIZES, f"[{', '.join(f'{size}MiB' for size in range(16, 26))}]"))
    many = Project.load(config, STAGES)
    for step in many.schedule.steps:
        multiply(few, many, step)
    doit(f"config={config}")
    show(
        "no-op doit, 200 variants",
        seconds_of(sys.executable, "-m", "doit", f"config={config}", repeats=5),
        2.0,
        "s",
        at_most=True,
    )
    print(f"{'':<24} {len(many.plan.variants)} variants, {len(many.schedule.steps)} steps")
    show(
        "doit list",
        seconds_of(sys.executable, "-m", "doit", "list", f"config={config}", repeats=5),
        BUDGETS["doit list"],
        "s",
        at_most=True,
    )


def multiply(few: Project, many: Project, step: Step) -> None:
    """Copy the files and records of an equal variant to one with a new workspace, as if it had been built."""
    if step.stage not in {"build", "validate"}:
        return
    variant = many.plan.variant(step.subject)
    like = next(item for item in few.plan.variants if item.family == variant.family)
    if variant in few.plan.variants:
        return
    if step.stage == "build":
        record = few.artifact(like)
        files = {}
        for field, file in (("file", record.file), ("log", record.log)):
            if file:
                there = many.paths.variant(variant) / Path(file.path).name
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(few.file(file), there)
                files[field] = describe_file(there, many.paths.root)
        keep(many.paths.artifact(variant), record, many, step, variant=variant, same_as=None, **files)
    elif few.paths.accuracy(like).exists():
        keep(many.paths.accuracy(variant), few.accuracy(like), many, step, variant_id=variant.id)


def keep(path: Path, record: R, project: Project, step: Step, **update: object) -> None:
    """Write a record with its step's current key."""
    write_record(path, record.model_copy(update={"key": key_of(project, step), **update}))


def build_side_by_side(folder: Path) -> None:
    """Time the same builds with one process and with two."""
    times = []
    for number in (1, 2):
        config = folder / f"{number}" / "pipeline.yaml"
        config.parent.mkdir()
        config.write_text(
            "model: {name: resnet18, weights: sample}\n"
            "precisions: [fp32, fp16, bf16]\nprofiles: [1, 4]\nworkspaces: [256MiB]\nbenchmark: {baselines: []}\n"
        )
        steps = [
            step
            for step in Project.load(config, STAGES).schedule.steps
            if "/rtx-" in step.subject and step.stage == "build"
        ]
        doit(f"config={config}", "-n", "2", "data", "export")
        began = time.perf_counter()
        doit(f"config={config}", "-n", f"{number}", *(f"build:{step.subject}" for step in steps))
        times.append(time.perf_counter() - began)
    print(f"{'':<24} {times[0]:.1f} s one by one, {times[1]:.1f} s two at once, {len(steps)} engines")
    show("doit -n 2", times[0] / times[1], 1.6, "×", at_most=False)


def doit(*arguments: str) -> None:
    """Run doit in the repository.

    Raises:
        CalledProcessError: doit failed.
    """
    command = [sys.executable, "-m", "doit", *arguments]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)  # noqa: S603


if __name__ == "__main__":
    main()
