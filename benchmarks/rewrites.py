"""Build engines without and with each rewrite and group of pairs, judge each by its gate, and time them in turns.

    python benchmarks/rewrites.py                                        on a GPU host; a second run takes what is built
    python benchmarks/rewrites.py --precisions int8 --batches 64         a part of it
    python benchmarks/rewrites.py --points "plain" "4 channels"          the same

Every point is a normal one of `doit tune`: a folder with its own pipeline.yaml, in which the normal steps run. Graphs
are made first, those of all points at once, in processes of their own. Builds share one timing cache. Only what passed
its gate is timed. All engines of a batch size are then open in this process, and their CUDA graphs take turns between
two events. Each line has the median in ms, and its ratio to the same precision without any choice, with 95 % intervals
over the rounds; a ratio below 1 is a gain. `same as` names an engine with the same layers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import ArtifactError, one_line
from model_artifacts.host.environment import missing_driver, threads
from model_artifacts.records import Backend, Clock, Precision
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.benchmark.clocks import timed_on_gpu
from pipeline.stages.benchmark.messages import Ask
from pipeline.stages.benchmark.statistics import interval_of_median
from pipeline.stages.common.opening import gpu_of, open_serialized
from pipeline.stages.common.samples import images_of
from pipeline.system.locks import exclusive
from pipeline.tune.records import Choice, Point
from pipeline.tune.setups import Setups
from pipeline.tune.space import option
from pipeline.tune.steps.limits import Rest
from pipeline.tune.steps.running import ensure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.records import AccuracyReport, Artifact
    from pipeline.tune.setups import Place

ROUNDS, RUNS, MILLISECONDS = 15, 20, 25.0
"""Rounds of all engines in turns; the fewest replays and the shortest time of each in a round."""

PLAIN = "plain"
CONVOLUTION = option("rewrites.product", "convolution").choice
POOLED = option("rewrites.product", "pooled").choice
INT8_LAST = option("quantization.last", True).choice  # noqa: FBT003 - the setting's value
HALF_HEAD = option("quantization.head", "float16").choice
BOTH = (Precision.FP16, Precision.INT8)
POINTS: tuple[tuple[str, tuple[Choice, ...], tuple[Precision, ...]], ...] = (
    (PLAIN, (), BOTH),
    ("product as convolution", (CONVOLUTION,), BOTH),
    ("pooled", (POOLED,), BOTH),
    ("4 channels", (option("rewrites.channels", 4).choice,), BOTH),
    ("8 channels", (option("rewrites.channels", 8).choice,), BOTH),
    ("pool without pairs", (option("quantization.pools", False).choice,), BOTH[1:]),  # noqa: FBT003 - the same
    ("product in fp16", (HALF_HEAD,), BOTH[1:]),
    ("convolution in fp16", (HALF_HEAD, CONVOLUTION), BOTH[1:]),
    ("product in int8", (INT8_LAST,), BOTH[1:]),
    ("convolution in int8", (INT8_LAST, CONVOLUTION), BOTH[1:]),
    ("pooled in int8", (INT8_LAST, POOLED), BOTH[1:]),
)
"""The name of each point, its choices, and the precisions that have it."""


class Named(NamedTuple):
    """A point to build."""

    name: str
    point: Point
    batch: int


class Engine(NamedTuple):
    """A point that was built and judged."""

    name: str
    place: Place
    artifact: Artifact
    report: AccuracyReport

    @property
    def precision(self) -> str:
        """The precision, for the table."""
        return self.place.variant.precision.value


def points_of(project: Project, options: argparse.Namespace) -> list[Named]:
    """Return the points that were asked for, of engines for one batch size alone."""
    return [
        Named(name, Point(subject=variant.id, choices=choices), variant.profile.opt)
        for variant in project.plan.variants
        if variant.backend is Backend.TENSORRT and variant.graph and not variant.graph.is_mixed
        if variant.profile and variant.profile.is_fixed
        if variant.profile.opt in (options.batches or project.config.timed_batches)
        if variant.precision.value in (options.precisions or [item.value for item in BOTH])
        for name, choices, having in POINTS
        if variant.precision in having and name in (options.points or [name])
    ]


def make_graphs(setups: Setups, points: Sequence[Point]) -> None:
    """Make what the engines of some points are made of and judged by, as far as it is stale."""
    done: dict[Step, ArtifactError | None] = {}
    for point in points:
        project, variant = setups.place(point)
        for stage in ("build", "validate"):
            for step in project.schedule.dependencies(Step(stage, variant.id)).requires:
                if step.stage != "build":
                    ensure(project, step, Rest(), done)


def make_all_graphs(setups: Setups, found: Sequence[Named], options: argparse.Namespace) -> None:
    """Make the graphs without choices, which all others begin with, and then those of each point, at once."""
    began, others = time.monotonic(), dict.fromkeys(item.name for item in found if item.point.choices)
    make_graphs(setups, [item.point for item in found if not item.point.choices])
    print(f"weights, images and the plain graphs: {time.monotonic() - began:.0f} s", flush=True)
    narrowed = ["--config", str(options.config), "--precisions", *(options.precisions or [item.value for item in BOTH])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads() // max(1, len(others))))}
    running = [
        subprocess.Popen([sys.executable, __file__, *narrowed, "--graphs", "--points", name], env=environment)  # noqa: S603 - own arguments
        for name in others
    ]
    for process in running:
        process.wait()  # what failed there is said by the point's own line
    print(f"and those of {len(running)} points: {time.monotonic() - began:.0f} s", flush=True)


def made(setups: Setups, name: str, point: Point) -> Engine | None:
    """Build and validate a point; print a line, and return it if there is an engine."""
    began = time.monotonic()
    try:
        place = setups.place(point)
        ensure(place.project, Step("build", place.variant.id), Rest())
        artifact = place.project.artifact(place.variant)
        if artifact.outcome is not Outcome.DONE:
            print(f"{point.subject} {name}: {artifact.outcome.value}: {artifact.reason}".partition("\n")[0], flush=True)
            return None
        ensure(place.project, Step("validate", place.variant.id), Rest())
        report = place.project.accuracy(place.variant)
    except ArtifactError as exc:
        print(f"{point.subject} {name}: failed: {one_line(exc)}", flush=True)
        return None
    seconds = time.monotonic() - began
    ended = "passed its gate" if report.passed else f"not timed: {report.reason}".partition("\n")[0]
    distance = f", relative L2 {report.accuracy.relative_l2:.4f}" if report.accuracy else ""
    print(f"{point.subject} {name}: {seconds:.0f} s, {ended}{distance}", flush=True)
    return Engine(name, place, artifact, report)


def in_turns(engines: Sequence[Engine], batch: int) -> list[list[float]]:
    """Return the median of each round of each engine, in ms; the first round is not counted."""
    ask = Ask(batch, RUNS, MILLISECONDS)
    rounds: list[list[float]] = [[] for _ in engines]
    with ExitStack() as stack:
        runs = []
        for item in engines:
            engine = stack.enter_context(open_serialized(item.place.project, item.artifact))
            runs.append(stack.enter_context(engine.session()))
            runs[-1].upload(images_of(item.place.project, batch, item.place.variant))
        for number in range(1 + ROUNDS):
            for found, run in zip(rounds, runs, strict=True):
                taken = median(timed_on_gpu(Clock.GPU_GRAPH, ask, run, run.enqueue).milliseconds)
                found.extend([taken] if number else [])
    return rounds


def rows_of(engines: Sequence[Engine], batch: int) -> Iterator[list[str]]:
    """Time the engines that passed, and yield a row for each engine."""
    passed = [item for item in engines if item.report.passed]
    taken = dict(zip((id(item) for item in passed), in_turns(passed, batch), strict=True))
    seen: dict[str | None, str] = {}
    for item in engines:
        accuracy = item.report.accuracy
        row = [item.precision, str(batch), item.name, f"{accuracy.relative_l2:.4f}" if accuracy else "-"]
        if id(item) not in taken:
            yield [*row, "-", "-", "not timed"]
            continue
        beside = [taken[id(other)] for other in passed if (other.name, other.precision) == (PLAIN, item.precision)]
        times = taken[id(item)]
        ratios = [mine / other for mine, other in zip(times, beside[0], strict=True)] if beside else []
        same = seen.setdefault(item.artifact.layers_sha256, item.name)
        yield [*row, _cell(times), _cell(ratios) if ratios else "-", "" if same == item.name else f"same as {same}"]


def _cell(rounds: Sequence[float]) -> str:
    low, high = interval_of_median([rounds])
    return f"{median(rounds):.4f} ({low:.4f}-{high:.4f})"


HEAD = ["precision", "batch", "point", "rel. L2", "ms (95 %)", "ratio (95 %)", ""]


def main() -> int:
    """Build, judge and time; print a table for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("benchmarks/rewrites.yaml"))
    parser.add_argument("--precisions", nargs="+", choices=[item.value for item in BOTH], help="default: both")
    parser.add_argument("--batches", nargs="+", type=int, help="default: the profiles of the configuration")
    parser.add_argument("--points", nargs="+", choices=[name for name, _, _ in POINTS], help="default: all")
    parser.add_argument("--graphs", action="store_true", help="make the graphs, and end")
    options = parser.parse_args()
    project = Project.load(options.config, STAGES)
    setups, found = Setups(project), points_of(project, options)
    if options.graphs:
        make_graphs(setups, [item.point for item in found])
        return 0
    make_all_graphs(setups, found, options)
    timed = 0
    for batch in sorted({item.batch for item in found}):
        built = [made(setups, item.name, item.point) for item in found if item.batch == batch]
        engines = [item for item in built if item]
        if not engines or (reason := missing_driver()):
            print(f"batch {batch}: nothing can be timed here: {reason if engines else 'there is no engine'}")
            continue
        timed += 1
        with exclusive(gpu_of(engines[0].place.project, engines[0].artifact)):
            print(f"\n{' | '.join(HEAD)}")
            for row in rows_of(engines, batch):
                print(" | ".join(row), flush=True)
    return 0 if timed else 1


if __name__ == "__main__":
    sys.exit(main())
