"""Measure the farm's overhead on a Ray cluster of this machine alone; fail if a bound is broken.

    python benchmarks/farm.py --nodes 50 --tasks 1000 --only many

Part `steps`, on two nodes:

* the overhead of a step, as the difference between its command run directly and run through the farm: packed, sent,
  run, checked and installed. Both are measured in turns; the command copies an engine that was built before.
* the time of a second machine with a warm store.

Part `many`: the makespan of many tasks of one second on nodes of one core each; tasks / nodes seconds would be ideal.
Fifty nodes are 150 processes of Ray and 12 GB. They take some minutes to start on 2 cores, and more than one on 16.

`--only` runs one part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the tests' cluster

from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import write_record
from pipeline.farm import executor
from pipeline.farm.cluster import Cluster, NodeRequirements
from pipeline.farm.parcels import Completed, Input, Packed, Parcel, PrintedLine, Refused, pack, read_message
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from tests.support.farm_cluster import LOOPBACK, ONE_ENGINE, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.records import FarmHost

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = (
    ONE_ENGINE
    + """\
executor: ray
farm: {{address: "{address}", targets: [{{flavour: tensorrt_rtx}}]}}
"""
)
BUILD = Step("build", "tiny/rtx-sm80+/fp16-b1-ws16MiB")
COPY = ("-I", "-S", "-c", "import shutil; shutil.copytree('results', 'artifacts', dirs_exist_ok=True)")
SECOND = ("-I", "-S", "-c", "import time; time.sleep(1)")
ROUNDS = 40
LIGHT = {
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
}
"""Ray's settings that keep fifty idle nodes on one machine from using its cores."""
LARGE_BYTES = 45_000_000
"""Size of ResNet18's FP32 engine."""
OVERHEAD_MS = 50
"""Upper bound of a step's overhead with a tiny model's engine."""
MAKESPAN = 1.15
"""Upper bound of the makespan's ratio to the ideal."""


def run(cluster: Cluster) -> None:
    """Run a command of one second on the cluster, like a driver.

    Raises:
        SystemExit: the command failed or was refused.
    """
    running = cluster.submit(
        Parcel(command=SECOND, files=(), timeout_seconds=60), b"", [], NodeRequirements(None, ()), ()
    )
    for item in running.items(lambda: None):
        message = read_message(item if isinstance(item, str) else "")
        if isinstance(message, Refused) or (isinstance(message, Completed) and message.status != 0):
            raise SystemExit(f"the command failed: {message}")


def directly(command: tuple[str, ...], folder: Path) -> float:
    """Run a Python command on this machine, and return its duration in seconds.

    Raises:
        CalledProcessError: the command failed.
    """
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, cwd=folder)  # noqa: S603 - one of the above
    return time.perf_counter() - began


def farmed(farm: executor.Farm) -> float:
    """Run a step like doit: packed, sent, checked and installed; return its duration in seconds.

    Raises:
        SystemExit: the step failed.
    """
    began = time.perf_counter()
    lines: list[PrintedLine] = []
    if farm.run(BUILD, lines.append) != 0:
        raise SystemExit(f"the step failed: {lines}")
    return time.perf_counter() - began


def write_project(folder: Path, address: str) -> None:
    """Write a project of a tiny model, look at the farm, and run the stages before the build.

    Raises:
        CalledProcessError: a stage failed.
    """
    (folder / "tests" / "support").mkdir(parents=True)
    for name in ("tests/__init__.py", "tests/support/__init__.py", "tests/support/tiny_model.py"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "pipeline.yaml").write_text(CONFIG.format(address=address))
    for arguments in (["farm"], ["source", "tiny"], ["data", "tiny"], ["export", "tiny/fp32"], ["export", "tiny/fp16"]):
        command = [sys.executable, "-m", "pipeline", *arguments]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S603 - this package's own


def prepare_results(project: Project, size: int | None) -> None:
    """Copy the step's results, with an engine of `size` random bytes, to the folder that `COPY` copies from."""
    artifact = project.artifact(project.plan.variant(BUILD.subject))
    assert artifact.file  # noqa: S101 - it was built
    results = Path("results")
    shutil.rmtree(results, ignore_errors=True)
    shutil.copytree(project.file(artifact.file).parent, results / BUILD.subject)
    if size:
        (results / artifact.file.path).write_bytes(os.urandom(size))
        other = describe_file(results / artifact.file.path, results)
        write_record(results / BUILD.subject / "artifact.json", artifact.model_copy(update={"file": other}))


def pack_copying(project: Project, step: Step, workers: FarmHost) -> Packed:
    """Pack a step with a command that only copies prepared results, so that the rest of its time is the farm's."""
    packed = pack(project, step, workers)
    paths = (path for path in Path("results").rglob("*") if path.is_file())
    results = (Input(describe_file(path, Path()), path) for path in paths)
    inputs = (*packed.inputs, *results)
    files = tuple(item.record for item in inputs)
    return Packed(packed.parcel.model_copy(update={"command": COPY, "files": files}), inputs)


def measure_overhead() -> bool:
    """Print the overhead of a step, and return True if it is within its bound."""
    project = Project.load(Path("pipeline.yaml"), STAGES)
    farm = executor.Farm(project)
    farmed(farm)  # builds the engine whose results are copied later
    overheads = []
    for name, size in (("an engine of a tiny model", None), (f"an engine of {LARGE_BYTES / 1e6:.0f} MB", LARGE_BYTES)):
        prepare_results(project, size)
        with patch.object(executor, "pack", pack_copying):
            for _ in range(4):
                farmed(farm)  # without the worker's start and the first transfer of the inputs
            pairs = [(directly(COPY, Path()), farmed(farm)) for _ in range(ROUNDS)]
        here, there = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
        overheads.append(there - here)
        print(f"{name}: directly {here:.1f} ms, through the farm {there:.1f} ms, {there - here:+.1f} ms", flush=True)
    return bool(overheads[0] <= OVERHEAD_MS)


def measure_second_run() -> bool:
    """Print the time of a second machine with a warm store, and return True if it built nothing."""
    shutil.rmtree("results")
    text = Path("pipeline.yaml").read_text()
    Path("pipeline.yaml").write_text(f"{text}cache: {Path('cache').absolute()}\n")
    first = farmed(executor.Farm(Project.load(Path("pipeline.yaml"), STAGES)))
    shutil.rmtree(Path("artifacts") / BUILD.subject)
    began, lines = time.perf_counter(), list[PrintedLine]()
    status = executor.Farm(Project.load(Path("pipeline.yaml"), STAGES)).run(BUILD, lines.append)
    took = time.perf_counter() - began
    reused = status == 0 and [printed.line.startswith("taken from") for printed in lines] == [True]
    print(
        f"an engine, built and copied to the store: {1e3 * first:.0f} ms; with a warm store: {1e3 * took:.0f} ms",
        flush=True,
    )
    return reused


def measure_makespan(cluster: Cluster, tasks: int) -> bool:
    """Print the makespan of many tasks and its ratio to the ideal; return True if that is within its bound."""
    import ray  # noqa: PLC0415 - reads its environment when it is imported

    nodes = [node for node in cluster.nodes() if NodeRequirements(None, ()).met_by(node)]
    with ThreadPoolExecutor(os.cpu_count()) as few:  # start every node's worker, but not all at once on this machine
        list(few.map(lambda node: cluster.probe(node).result(time.monotonic() + 300, lambda: None), nodes))
    with ThreadPoolExecutor(256) as threads:
        for count in (len(nodes), tasks):
            began = time.perf_counter()
            list(threads.map(lambda _: run(cluster), range(count)))
            took = time.perf_counter() - began
    plain = ray.remote(num_cpus=1, max_retries=0)(lambda: time.sleep(1))
    began = time.perf_counter()
    ray.get([plain.remote() for _ in range(tasks)])
    alone = time.perf_counter() - began
    ideal = tasks / len(nodes)
    print(f"{tasks} tasks of 1 s on {len(nodes)} nodes: {took:.2f} s, {took / ideal:.3f} of the ideal", flush=True)
    print(f"Ray's own, without a command: {alone:.2f} s, {alone / ideal:.3f} of the ideal")
    return took / ideal <= MAKESPAN


@contextmanager
def joined(nodes: int) -> Iterator[Cluster]:
    """Yield a new cluster of this machine with a number of nodes."""
    with served([""] * nodes, LIGHT) as there:
        cluster = Cluster.connect(there.address, 60)
        yield cluster
        cluster.close()


def measure_steps() -> dict[str, bool]:
    """Measure single steps, and return each bound with True if it holds."""
    with joined(2) as cluster, tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder), cluster.address)
        os.chdir(folder)  # the model's factory is imported from there
        overhead, second = measure_overhead(), measure_second_run()
        os.chdir(REPOSITORY)
    return {f"overhead of at most {OVERHEAD_MS} ms": overhead, "nothing built again with a warm store": second}


def measure_many(nodes: int, tasks: int) -> dict[str, bool]:
    """Measure many tasks, and return each bound with True if it holds."""
    began = time.perf_counter()
    with joined(nodes) as cluster:
        print(f"{nodes} nodes have started in {time.perf_counter() - began:.0f} s", flush=True)
        return {f"at most {MAKESPAN} of the ideal makespan": measure_makespan(cluster, tasks)}


def main() -> None:
    """Measure on two clusters, each in a process of its own, because a process can join only one.

    Raises:
        SystemExit: a bound is broken.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--only", choices=("steps", "many"))
    options = parser.parse_args()
    os.environ.update(LOOPBACK)
    held: dict[str, bool] = {}
    measures: dict[str, Callable[[], dict[str, bool]]] = {
        "steps": measure_steps,
        "many": partial(measure_many, options.nodes, options.tasks),
    }
    for measure in [measures[options.only]] if options.only else measures.values():
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            held |= process.submit(measure).result()
    if broken := [bound for bound, holds in held.items() if not holds]:
        raise SystemExit(f"broken bounds: {', '.join(broken)}")


if __name__ == "__main__":
    main()
