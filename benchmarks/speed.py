"""Measure the pipeline itself: a full run, the own work of its steps, a run with nothing to do, and `doit list`.

python benchmarks/speed.py            with two full runs into temporary folders: all steps by doit, and each by itself
python benchmarks/speed.py --tests    with the test suite, too
python benchmarks/speed.py FILE       with another configuration; the bounds are those of the default

The own work of a step is its time by itself, from the fork of its process to its end: without the imports that steps
share, and without other steps beside it. The machine must be quiet; another load counts as work.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.main import run_forked
from pipeline.cli.order import chains_of
from pipeline.cli.progress import read_durations
from pipeline.cli.run import DURATIONS
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.system.forks import SHARED, ForkServer, Surroundings
from pipeline.system.isolation import step_environment

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pipeline.planning.schedule import Schedule
    from pipeline.planning.steps import Dependencies

REPOSITORY = Path(__file__).resolve().parent.parent
BUDGETS = {"full run": 180.0, "no-op doit": 1.5, "doit list": 0.8, "uv run adds": 0.5, "pytest --cov": 300.0}
"""Upper bounds in seconds, on 2 cores."""
RATIOS = {"onnxruntime-fp32": 1.8, "onnxruntime-int8-cpu": 2.5}
"""Lower bounds of the speed-up over eager FP32 at batch 1."""


def timed_run(config: Path, names: Collection[str]) -> tuple[float, dict[str, float]]:
    """Run everything by doit in a process of its own; return its wall time, and that of each step, in seconds.

    doit notes the durations of steps for its next run; they are those of its last run.

    Args:
        config: the configuration.
        names: the names of the steps that do something.

    Raises:
        CalledProcessError: a step failed.
    """
    began = time.perf_counter()
    subprocess.run(  # noqa: S603 - doit itself
        [sys.executable, "-m", "doit", f"config={config}"],
        check=True,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    noted = read_durations(REPOSITORY / "artifacts" / DURATIONS)
    return seconds, {name: noted[name] for name in names if name in noted}


def own_work(config: Path) -> dict[str, float]:
    """Run every step by itself, in a child of a process with the shared imports; return their seconds by name.

    Steps that this host is known to skip have no process, and count as nothing.

    Raises:
        RuntimeError: a step failed.
    """
    project = Project.load(config, STAGES)
    schedule, found = project.schedule, {}
    with closing(ForkServer(step_environment(timed=False))) as server, (config.parent / "steps.log").open("wb") as log:
        for step in schedule.steps:
            spec = schedule.spec(step.stage)
            if spec.lacks_hardware(project.plan, schedule.subject(step)):
                spec.load()(project, schedule.subject(step), _Silent())
                found[step.name] = 0.0
                continue
            child, connection = server.fork(
                run_forked,
                ([step.stage, step.subject, "--config", str(config)],),
                modules=(run_forked.__module__, *SHARED),
                surroundings=Surroundings.of_step(step_environment(timed=spec.timed), step.name),
                output=(log.fileno(), log.fileno()),
            )
            began = time.perf_counter()  # the server has imported the modules by now
            connection.close()
            child.join()
            found[step.name] = time.perf_counter() - began
            if child.exitcode:
                raise RuntimeError(f"{step.name} failed; see {log.name}")
            child.close()
    return found


class _Silent:
    """A console that shows nothing."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def error(self, text: str) -> None:
        """Drop the line."""


def longest_chain(seconds: Mapping[str, float], schedule: Schedule) -> list[str]:
    """Return the names of the steps that a run with any number of processors would wait for."""
    before = {step.name: _names(schedule.dependencies(step)) for step in schedule.steps}
    chains = chains_of({name: seconds.get(name, 0.0) for name in before}, before)
    ready: Collection[str] = [name for name, others in before.items() if not others]
    found: list[str] = []
    while ready:
        found.append(max(ready, key=chains.__getitem__))
        ready = [name for name, others in before.items() if found[-1] in others]
    return found


def _names(dependencies: Dependencies) -> list[str]:
    return [step.name for step in (*dependencies.requires, *dependencies.follows)]


def seconds_of(*command: str, repeats: int = 1) -> float:
    """Run a command in the repository and return the median of its wall times in seconds.

    Raises:
        CalledProcessError: the command failed.
    """
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)  # noqa: S603 - its callers' own
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def show(name: str, value: float, bound: float, unit: str, *, at_most: bool) -> None:
    """Print a figure with its bound."""
    good = value <= bound if at_most else value >= bound
    print(
        f"{name:<24} {value:8.2f} {unit}   {'≤' if at_most else '≥'} {bound:g}   {'ok' if good else 'MISSED'}",
        flush=True,
    )


def show_run(seconds: float, steps: Mapping[str, float], own: Mapping[str, float], schedule: Schedule) -> None:
    """Print where the time of a full run goes: by stage, by start-up, and along the longest chain of steps.

    Args:
        seconds: the wall time of the run.
        steps: the seconds of its steps, by name.
        own: the own work of each step, by name.
        schedule: the steps and their order.
    """
    counts: Counter[str] = Counter()
    beside: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for name, taken in steps.items():
        stage = name.partition(":")[0]
        counts[stage] += 1
        beside[stage] += taken  # type: ignore[assignment]  # a Counter takes any number
        alone[stage] += own.get(name, 0.0)  # type: ignore[assignment]  # the same
    print(f"\n{'stage':<12} {'steps':>5} {'in the run, s':>14} {'own work, s':>12}")
    for stage in sorted(counts, key=lambda stage: -alone[stage]):
        print(f"{stage:<12} {counts[stage]:5} {beside[stage]:14.1f} {alone[stage]:12.1f}")
    total = sum(own.values())
    print(f"{'all':<12} {len(steps):5} {sum(beside.values()):14.1f} {total:12.1f}")
    print(f"the run takes {seconds / total:.2f} of the sum of its steps' own work")
    chain = longest_chain(own, schedule)
    print(f"longest chain: {sum(own[name] for name in chain):.1f} s, whatever the number of processors:")
    print("".join(f"  {own[name]:6.1f} s  {name}\n" for name in chain if own[name] >= 1), flush=True)


def show_starts() -> None:
    """Print the time of the imports that steps share, and that of a step's process in a server that has them."""
    python = (sys.executable, "-c")
    bare = seconds_of(*python, "pass", repeats=3)
    imports = seconds_of(*python, f"import {', '.join(SHARED)}", repeats=3) - bare
    with closing(ForkServer(step_environment(timed=False))) as server:
        times = []
        for _ in range(6):
            began = time.perf_counter()
            child, connection = server.fork(id, (), modules=SHARED)
            child.join()
            times.append(time.perf_counter() - began)
            connection.close()
            child.close()
    print(f"imports, once a run      {imports:8.2f} s   ({', '.join(SHARED)})")
    print(f"start of a step          {statistics.median(times[1:]):8.3f} s   in a process that has imported them")


def main() -> None:
    """Measure, and print each figure with its bound."""
    doit = (sys.executable, "-m", "doit")
    options = [word for word in sys.argv[1:] if word != "--tests"]
    chosen = Path(options[0]) if options else REPOSITORY / "pipeline.yaml"
    show_starts()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        configs = [Path(shutil.copy(chosen, Path(folder) / "pipeline.yaml")) for folder in (first, second)]
        own = own_work(configs[1])
        seconds, steps = timed_run(configs[0], [name for name, taken in own.items() if taken])
        show("full run", seconds, BUDGETS["full run"], "s", at_most=True)
        show_run(seconds, steps, own, Project.load(configs[0], STAGES).schedule)
        noop = seconds_of(*doit, f"config={configs[0]}", repeats=5)
        show("no-op doit", noop, BUDGETS["no-op doit"], "s", at_most=True)
        for entry in Project.load(configs[0], STAGES).manifest().artifacts:
            bound = RATIOS.get(entry.id.rpartition("/")[2])
            first_timing = next((timing for timing in entry.timings if timing.batch == 1), None)
            if bound and first_timing and first_timing.speedup:
                show(entry.id.rpartition("/")[2], first_timing.speedup, bound, "×", at_most=False)
    show("doit list", seconds_of(*doit, "list", repeats=5), BUDGETS["doit list"], "s", at_most=True)
    if uv := shutil.which("uv"):
        bare = seconds_of(sys.executable, "-c", "pass", repeats=5)
        added = seconds_of(uv, "run", "python", "-c", "pass", repeats=5) - bare
        show("uv run adds", added, BUDGETS["uv run adds"], "s", at_most=True)
    if "--tests" in sys.argv[1:]:
        tests = seconds_of(sys.executable, "-m", "pytest", "-q", "--cov")
        show("pytest --cov", tests, BUDGETS["pytest --cov"], "s", at_most=True)


if __name__ == "__main__":
    main()
