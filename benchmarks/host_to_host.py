"""Time engines from host to host in one run: alone, overlapped, and from NumPy arrays, beside the copies' floor.

    python benchmarks/host_to_host.py --build                  builds and validates the engines first, on a GPU host
    python benchmarks/host_to_host.py --config other.yaml      engines that are built already

All clocks of an engine take turns in one process. Times are medians in ms, with their 95 % interval over the rounds;
only engines that passed their gates are timed. The floor is that of the copies, at the rates that are measured first:

* `gpu`: the CUDA graph between two events, with inputs and outputs on the GPU.
* `pinned`: copy in, run and copy out, by the host's clock. Target: at most gpu + 1.15 × floor.
* `numpy`: `session(array)` of an ordinary array. Target: at most 1.1 × pinned.
* `overlap`: per batch, with three buffers. Target: at least 0.9 × the GPU's throughput. The link alone may forbid
  that: its own limit is the slower direction's time of a batch.
* `stream`: per batch of `model.stream` from ordinary arrays, with as many buffers. No target: the host copies first.

The last table has `session(array)` by the number of threads that copy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import model_artifacts
from model_artifacts.host import cuda
from model_artifacts.host.environment import missing_driver, threads
from model_artifacts.records import Backend, BatchRange, Clock, ImageInput, Status
from model_artifacts.sessions.engine import Engine
from model_artifacts.sessions.feeds.staging import Copiers, copier_threads
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.benchmark.clocks import measured_link, timed, timed_on_gpu, timed_overlapped, timed_pinned
from pipeline.stages.benchmark.messages import Ask
from pipeline.stages.benchmark.statistics import interval_of_median
from pipeline.stages.common.opening import gpu_of, open_serialized
from pipeline.stages.common.samples import images_of
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from model_artifacts.records import Link, Variant
    from pipeline.records import Artifact

ROUNDS, RUNS, MILLISECONDS = 5, 10, 25.0
"""Rounds of all clocks in turns; the fewest runs and the shortest time of each in a round."""
BUFFERS = 3
STREAMED = 40
"""Batches of a stream that are timed: enough that the filling of its buffers is less than the interval."""
COPIED_IN, NUMPY, OVERLAPPED = 1.15, 1.1, 0.9
"""The targets: the copies over their floor, `session(array)` over pinned, and overlapped over the GPU's throughput."""


class Found(NamedTuple):
    """A median and its interval, in ms."""

    p50: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the median and the interval as a cell."""
        return f"{self.p50:8.4f} ({self.low:.4f}-{self.high:.4f})"


def summary(rounds: list[float]) -> Found:
    """Return the median of rounds' medians, with its interval."""
    return Found(median(rounds), *interval_of_median([rounds]))


def in_turns(clocks: dict[str, Callable[[], tuple[float, ...]]]) -> dict[str, Found]:
    """Call all clocks in turns, and return each one's median; the first round is not counted."""
    rounds: dict[str, list[float]] = {name: [] for name in clocks}
    for number in range(1 + ROUNDS):
        for name, clock in clocks.items():
            found = median(clock())
            rounds[name] += [found] if number else []
    return {name: summary(found) for name, found in rounds.items()}


def wanted_of(variant: Variant, batch: int) -> model_artifacts.Requirements:
    """Return the requirements that choose an engine among those of the configuration."""
    return model_artifacts.Requirements(
        batch=batch, precision=variant.precision, input=variant.io.input, output=variant.io.answer
    )


def timed_stream(model: model_artifacts.Model, images: npt.NDArray[np.generic]) -> tuple[float, ...]:
    """Return the milliseconds a batch of a stream of the same batch, from its first result to its last."""
    results = model.stream(repeat(images, STREAMED), buffers=BUFFERS)
    next(results)
    start = time.perf_counter()
    count = sum(1 for _ in results)
    return ((time.perf_counter() - start) * 1e3 / count,)


def row_of(project: Project, artifact: Artifact, link: Link) -> list[str]:
    """Return an engine's row, and the targets that it missed in its last cell."""
    variant = artifact.variant
    batch = variant.profile.opt if variant.profile else 1
    images = images_of(project, batch, variant)
    ask = Ask(batch, RUNS, MILLISECONDS)
    with ExitStack() as stack:
        engine = stack.enter_context(open_serialized(project, artifact))
        run = stack.enter_context(engine.session())
        overlap = stack.enter_context(engine.overlap(BUFFERS))
        model = stack.enter_context(model_artifacts.load(project.paths.root, wanted_of(variant, batch)))
        if model.entry.id != variant.id:
            raise SystemExit(f"{variant.id}: `load` takes {model.entry.id}, so that no stream of this engine is timed")
        run.upload(images)
        found = in_turns(
            {
                "gpu": lambda: timed_on_gpu(Clock.GPU_GRAPH, ask, run, run.enqueue).milliseconds,
                "pinned": lambda: timed_pinned(ask, run).milliseconds,
                "numpy": lambda: timed(Clock.HOST, ask, lambda: run(images)).milliseconds,
                "overlap": lambda: timed_overlapped(ask, overlap, images).milliseconds,
                "stream": lambda: timed_stream(model, images),
            }
        )
        given = sum(cuda.bytes_of((batch, *map(int, spec.shape[1:])), np.dtype(spec.dtype)) for spec in engine.outputs)
    floor = link.floor_ms(images.nbytes, given)
    slower = max(link.floor_ms(images.nbytes, 0), link.floor_ms(0, given))
    gpu, pinned, numpy, overlap_ms, stream = (found[name] for name in ("gpu", "pinned", "numpy", "overlap", "stream"))
    share = gpu.p50 / overlap_ms.p50
    allowed = gpu.p50 + COPIED_IN * floor
    missed = [
        *(["pinned"] if pinned.p50 > allowed else []),
        *(["numpy"] if numpy.p50 > NUMPY * pinned.p50 else []),
        *([f"overlap (the link allows {min(1.0, gpu.p50 / slower):.2f})"] if share < OVERLAPPED else []),
    ]
    return [
        f"{variant.precision.value} {variant.io.input.value} b{batch}",
        str(gpu),
        f"{floor:.4f}",
        str(pinned),
        f"{pinned.p50 / allowed:.3f}",
        str(numpy),
        f"{numpy.p50 / pinned.p50:.3f}",
        str(overlap_ms),
        f"{batch / overlap_ms.p50 * 1e3:,.0f}",
        f"{share:.3f}",
        str(stream),
        f"{gpu.p50 / stream.p50:.3f}",
        ", ".join(missed) or "-",
    ]


SWEPT = BatchRange(min=64, opt=64, max=64)
"""The batch of the last tables, or the nearest to it."""
HEAD = (
    "engine",
    "gpu",
    "floor",
    "pinned",
    "of target",
    "numpy",
    "x pinned",
    "overlap",
    "images/s",
    "x gpu",
    "stream",
    "x gpu",
    "missed",
)


def print_table(rows: list[list[str]]) -> None:
    """Print rows below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def print_threads(project: Project, artifact: Artifact) -> None:
    """Print the time of `session(array)` by the number of threads that copy; 0 is the caller's own."""
    variant = artifact.variant
    images = images_of(project, variant.profile.opt if variant.profile else 1, variant)
    ask = Ask(len(images), RUNS, MILLISECONDS)
    with ExitStack() as stack:
        loaded = stack.enter_context(open_serialized(project, artifact))._loaded  # noqa: SLF001 - its sessions vary
        clocks: dict[str, Callable[[], tuple[float, ...]]] = {}
        for count in sorted({0, 1, 2, 4, 6, 8, 12, 16, copier_threads(threads())}):
            copiers = stack.enter_context(closing(Copiers(count)))
            run = stack.enter_context(Engine(loaded, gpu_of(project, artifact), copiers).session())
            clocks[str(count)] = partial(_milliseconds, ask, partial(run, images))
        found = in_turns(clocks)
    print(f"\nsession(array) by threads: {variant.precision.value} {variant.io.input.value} b{len(images)}")
    print_table([[*found], [f"{item.p50:.3f}" for item in found.values()]])


def _milliseconds(ask: Ask, call: Callable[[], object]) -> tuple[float, ...]:
    """Return the times of calls by the host's clock."""
    return timed(Clock.HOST, ask, call).milliseconds


def engines_of(project: Project) -> list[Variant]:
    """Return the engines of the configuration."""
    return [variant for variant in project.plan.variants if variant.backend is Backend.TENSORRT]


def build(project: Project, config: Path) -> None:
    """Build and validate the engines, and write the manifest. Failures have their reasons there."""
    tasks = [f"validate:{variant.id}" for variant in engines_of(project)]
    command = [sys.executable, "-m", "doit", f"config={config}", "-n", str(min(6, threads())), "--continue", *tasks]
    subprocess.run(command, check=False)  # noqa: S603 - fixed arguments
    manifest = [sys.executable, "-m", "pipeline", "manifest", project.plan.model, "--config", str(config)]
    subprocess.run(manifest, check=True)  # noqa: S603 - the same


def main() -> int:
    """Print the tables; return 0 if all targets held, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("benchmarks/host.yaml"))
    parser.add_argument("--build", action="store_true", help="build and validate the engines first")
    options = parser.parse_args()
    if reason := missing_driver():
        print(f"nothing can be timed here: {reason}", file=sys.stderr)
        return 1
    project = Project.load(options.config, STAGES)
    if options.build:
        build(project, options.config)
    deployable = {entry.id for entry in project.manifest().artifacts if entry.status is Status.DEPLOYABLE}
    artifacts = [project.artifact(variant) for variant in engines_of(project) if variant.id in deployable]
    artifacts = [artifact for artifact in artifacts if not artifact.same_as]
    if not artifacts:
        print(f"{options.config} has no deployable engine", file=sys.stderr)
        return 1
    gpu = gpu_of(project, artifacts[0])
    with exclusive(gpu):
        link = measured_link(gpu)
        rates = link.to_gpu_bytes_per_s / 1e9, link.to_host_bytes_per_s / 1e9
        print(f"{gpu.name}: {rates[0]:.1f} GB/s to the GPU, {rates[1]:.1f} GB/s to the host; {threads()} cores")
        rows = [row_of(project, artifact, link) for artifact in artifacts]
        print_table([[*HEAD], *rows])
        for kind in (ImageInput.FLOAT32, ImageInput.UINT8):
            swept = [item for item in artifacts if item.variant.profile and item.variant.io.input is kind]
            if swept:
                print_threads(
                    project, min(swept, key=lambda item: abs((item.variant.profile or SWEPT).opt - SWEPT.opt))
                )
    return 0 if all(row[-1] == "-" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
