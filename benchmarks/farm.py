"""What the farm costs, on a Ray cluster of this machine alone; prints ratios of one run.

    python benchmarks/farm.py --nodes 50 --tasks 1000

First, on two nodes, the overhead of a task: a command run directly and through the farm, in turn, and with 45 MB of
input. Then the makespan of many tasks of one second on nodes of one core each; tasks / nodes seconds would be ideal.
Fifty nodes are 150 processes of Ray, which take some minutes to start on two cores, and 12 GB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))  # for the tests' cluster

from pipeline.atomic import describe_bytes
from pipeline.farm.cluster import Cluster, Needs
from pipeline.farm.parcels import Made, Parcel, Refused, read_message
from tests.farm_cluster import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pipeline.records import FileRecord

QUICK = ("-I", "-S", "-c", "pass")
SECOND = ("-I", "-S", "-c", "import time; time.sleep(1)")
ROUNDS = 40
LIGHT = {
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
}
"""What keeps fifty nodes on one machine from being busy with themselves."""
INPUT_BYTES = 45_000_000
"""As ResNet18's FP32 graph has."""


def run(cluster: Cluster, command: tuple[str, ...], file: FileRecord | None = None, content: Any = None) -> float:  # noqa: ANN401 - Ray's
    """Run a command through the farm, as its driver does, and return how many seconds that took."""
    began = time.perf_counter()
    parcel = Parcel(command=command, files=(file,) if file else (), timeout_seconds=60)
    running = cluster.submit(parcel, [content] if file else [], Needs(None, ()), set())
    for item in running.items(lambda: None):
        message = read_message(item if isinstance(item, str) else "")
        if isinstance(message, Refused) or (isinstance(message, Made) and message.status != 0):
            raise SystemExit(f"it failed: {message}")
    return time.perf_counter() - began


def directly(command: tuple[str, ...]) -> float:
    """Run a command here."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True)  # noqa: S603 - one of the above
    return time.perf_counter() - began


def measure_overhead(cluster: Cluster) -> None:
    """Print what a task takes beyond its command."""
    data = os.urandom(INPUT_BYTES)
    file, content = describe_bytes("artifacts/input", data), cluster.put(data)
    for _ in range(4):
        run(cluster, QUICK, file, content)  # the worker's start, and the input's way to it
    plain, farmed, fed = [], [], []
    for _ in range(ROUNDS):
        plain.append(directly(QUICK))
        farmed.append(run(cluster, QUICK))
        fed.append(run(cluster, QUICK, file, content))
    here, there, with_input = (1e3 * statistics.median(times) for times in (plain, farmed, fed))
    print(f"the command directly        {here:7.1f} ms")
    print(f"through the farm            {there:7.1f} ms, {there - here:+.1f} ms")
    print(f"with {INPUT_BYTES / 1e6:.0f} MB that are there  {with_input:7.1f} ms, {with_input - here:+.1f} ms")


def measure_makespan(cluster: Cluster, tasks: int) -> None:
    """Print how long many tasks take, against the ideal."""
    import ray  # noqa: PLC0415 - once its environment is set

    nodes = [node for node in cluster.nodes() if Needs(None, ()).met_by(node)]
    with ThreadPoolExecutor(2) as few:  # every node's worker, started; not all at once on this machine
        list(few.map(lambda node: cluster.probe(node).result(300), nodes))
    with ThreadPoolExecutor(256) as threads:
        for count in (len(nodes), tasks):
            began = time.perf_counter()
            list(threads.map(lambda _: run(cluster, SECOND), range(count)))
            took = time.perf_counter() - began
    plain = ray.remote(num_cpus=1, max_retries=0)(time.sleep)
    began = time.perf_counter()
    ray.get([plain.remote(1) for _ in range(tasks)])
    alone = time.perf_counter() - began
    ideal = tasks / len(nodes)
    print(f"{tasks} tasks of 1 s on {len(nodes)} nodes: {took:.2f} s, {took / ideal:.3f} of the ideal")
    print(f"Ray's own, without a command: {alone:.2f} s, {alone / ideal:.3f} of the ideal")


@contextmanager
def joined(nodes: int) -> Iterator[Cluster]:
    """Start a cluster of so many nodes on this machine, and join it."""
    with tempfile.TemporaryDirectory(prefix="farm-", dir="/tmp") as folder:
        serving = subprocess.Popen(  # noqa: S603 - this repository's own script
            [sys.executable, "-m", "tests.farm_cluster", *[""] * nodes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": folder, **LIGHT},
            cwd=Path(__file__).parent.parent,
            text=True,
        )
        try:
            assert serving.stdout  # noqa: S101 - of the pipe above
            address = next(line.strip() for line in serving.stdout if line.startswith("127.0.0.1:"))
            cluster = Cluster.connect(address, 60)
            yield cluster
            cluster.close()
        finally:
            serving.communicate()


def main() -> None:
    """Measure, on two clusters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=1000)
    options = parser.parse_args()
    os.environ.update(LOOPBACK)
    with joined(2) as cluster:
        measure_overhead(cluster)
    with joined(options.nodes) as cluster:
        measure_makespan(cluster, options.tasks)


if __name__ == "__main__":
    main()
