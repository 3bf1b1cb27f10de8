"""Time an engine with a profile for each batch size beside engines of one fixed size, and beside a range.

    python benchmarks/profiles.py    on a GPU host; builds and validates the engines of benchmarks/profiles.yaml first

All engines that take a batch are timed in turns, in one process: a replayed CUDA graph and the kernels without one,
between two events on the stream, and a whole call with NumPy arrays. A ratio is to the fixed engine of the same size.
A batch without one runs padded in the engine with profiles, and its ratio is to the range.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.host import cuda
from model_artifacts.host.environment import missing_driver
from model_artifacts.records import Backend, Status
from pipeline.cli.main import main as run_command
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.common.opening import gpu_of, open_serialized
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_artifacts.sessions.engine import Session
    from pipeline.records import Artifact

ROUNDS, RUNS = 7, 60
"""Rounds of all engines in turns, and timed runs a round."""
BETWEEN = (4, 32)
"""Batches between the sizes."""


class Opened(NamedTuple):
    """An engine with its session."""

    artifact: Artifact
    session: Session
    used_bytes: int
    """The GPU memory that both took when they were opened."""

    @property
    def label(self) -> str:
        """The name of its batch range."""
        profile = self.artifact.variant.profile
        return profile.label if profile else ""

    def takes(self, batch: int) -> bool:
        """Return true if it takes a batch of this size."""
        profile = self.artifact.variant.profile
        return profile is not None and profile.takes(batch)


def build(project: Project, config: Path) -> list[Artifact]:
    """Build and validate the engines as far as they are stale, and return those that were built."""
    engines = [item for item in project.plan.variants if item.backend is Backend.TENSORRT]
    command = [sys.executable, "-m", "doit", f"config={config}", "-n", "4", "--continue"]
    subprocess.run([*command, *(f"validate:{item.id}" for item in engines)], check=False)  # noqa: S603 - fixed
    run_command(["manifest", project.plan.model, "--config", str(config)])
    found = [project.artifact(item) for item in engines]
    return [artifact for artifact in found if artifact.outcome is Outcome.DONE]


def on_gpu(session: Session, enqueue: Callable[[], None]) -> list[float]:
    """Return the ms between two events around each run; an untimed one before it keeps the GPU busy."""
    start, end = cuda.Event(), cuda.Event()
    found = []
    for _ in range(RUNS):
        enqueue()
        start.record(session.stream)
        enqueue()
        end.record(session.stream)
        end.synchronize()
        found.append(end.milliseconds_since(start))
    start.close()
    end.close()
    return found


def calls(session: Session, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[float]:
    """Return the ms of whole calls, from an array in the host's memory to logits there."""
    found = []
    for _ in range(RUNS):
        began = time.perf_counter()
        session(images)
        found.append((time.perf_counter() - began) * 1e3)
    return found


def compare(opened: Sequence[Opened], batch: int) -> None:
    """Print the rows of a batch size."""
    taking = [item for item in opened if item.takes(batch)]
    (image,) = opened[0].artifact.inputs
    images = np.random.default_rng(0).random((batch, *map(int, image.shape[1:])), np.float32)
    times: dict[str, tuple[list[float], list[float], list[float]]] = {item.label: ([], [], []) for item in taking}
    for number in range(1 + ROUNDS):  # the first one captures, compiles and is not counted
        for item in taking:
            item.session.upload(images)
            measured = (
                on_gpu(item.session, item.session.enqueue),
                on_gpu(item.session, item.session.enqueue_kernels),
                calls(item.session, images),
            )
            for kept, new in zip(times[item.label], measured, strict=True):
                kept.extend(new if number else ())
    medians = {label: [statistics.median(kept) for kept in clocks] for label, clocks in times.items()}
    base = medians.get(f"b{batch}") or next(iter(medians.values()))
    for label, (graph, kernels, call) in medians.items():
        ratios = [found / wanted for found, wanted in zip((graph, kernels, call), base, strict=True)]
        shown = "".join(
            f"{found:>10.4f} {ratio:>6.3f}" for found, ratio in zip((graph, kernels, call), ratios, strict=True)
        )
        print(f"{batch:>5} {label:<14} {shown}", flush=True)


def main() -> int:
    """Print both tables; return 0 if every engine is deployable, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("benchmarks/profiles.yaml"))
    options = parser.parse_args()
    if reason := missing_driver():
        print(f"nothing can be timed here: {reason}", file=sys.stderr)
        return 1
    project = Project.load(options.config, STAGES)
    artifacts = build(project, options.config)
    if not artifacts:
        print("no engine was built", file=sys.stderr)
        return 1
    entries = {entry.id: entry for entry in project.manifest().artifacts}
    sizes = sorted({size for item in artifacts if item.variant.profile for size in item.variant.profile.tuned_for})
    gpu = gpu_of(project, artifacts[0])
    with exclusive(gpu), ExitStack() as stack:
        cuda.use(gpu)
        opened = []
        for artifact in artifacts:
            before = cuda.free_bytes()
            engine = stack.enter_context(open_serialized(project, artifact))
            session = stack.enter_context(engine.session())
            opened.append(Opened(artifact, session, before - cuda.free_bytes()))
        library = artifacts[0].built_for
        print(f"\n{gpu.name}, {library.flavour.value if library else ''} {library.version if library else ''}\n")
        print(f"{'engine':<58} {'file MB':>8} {'activations MB':>15} {'opened MB':>10} {'build s':>8}  status")
        for item in opened:
            record = item.artifact
            size = record.file.bytes if record.file else 0
            activations = record.memory.activation_bytes if record.memory else 0
            print(
                f"{record.variant.id:<58} {size / 1e6:>8.1f} {activations / 1e6:>15.1f} {item.used_bytes / 1e6:>10.1f} "
                f"{record.build_seconds or 0:>8.1f}  {entries[record.variant.id].status.value} "
                f"{entries[record.variant.id].reason}"
            )
        print(f"\n{'batch':>5} {'engine':<14} {'graph ms':>10} {'ratio':>6}{'kernels ms':>10} {'ratio':>6}", end="")
        print(f"{'call ms':>10} {'ratio':>6}")
        for batch in sorted({*sizes, *(size for size in BETWEEN if size < max(sizes))}):
            compare(opened, batch)
    deployable = all(entries[artifact.variant.id].status is Status.DEPLOYABLE for artifact in artifacts)
    return 0 if deployable else 1


if __name__ == "__main__":
    sys.exit(main())
