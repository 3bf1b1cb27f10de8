"""A Ray cluster of one machine for tests: a head that runs nothing, and nodes that claim the arguments' resources.

    python -m tests.support.farm_cluster accelerator_type:H100 accelerator_type:A10G ""

It prints its address, and ends with its standard input. No address but loopback is used. Ray's sockets lie in TMPDIR,
whose name must be short.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

START_SECONDS = 300
"""How long a node may take to start on a machine that other tests keep busy."""
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's only way to stay on loopback
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
"""What the cluster's processes, and every driver of it, have in their environment."""


ONE_ENGINE = """\
model: {{name: tiny, factory: "tests.support.tiny_model:make", weights: sample}}
preprocessing: {{resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
data: {{calibration: 32, validation: 100}}
precisions: [fp16]
profiles: [1]
workspaces: [16MiB]
"""
"""The tiny model with one engine a target, for `str.format`: what a configuration of a farm begins with."""


class Served(NamedTuple):
    """A cluster that runs."""

    address: str
    folder: Path
    """Of its machines' temporary files."""


@contextmanager
def served(claims: Sequence[str], environment: Mapping[str, str]) -> Iterator[Served]:
    """Start this script, and stop it with the block.

    Args:
        claims: its arguments.
        environment: additional variables of its processes.

    Raises:
        RuntimeError: it does not start; the message has its errors.
    """
    with tempfile.TemporaryDirectory(prefix="farm-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        said = folder / "said"
        with said.open("w") as errors:
            process = subprocess.Popen(  # noqa: S603 - this repository's own script
                [sys.executable, "-m", "tests.support.farm_cluster", *claims],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "TMPDIR": name, **environment},
                text=True,
            )
        try:
            lines = iter(process.stdout.readline, "") if process.stdout else ()
            address = next((line.strip() for line in lines if line.startswith("127.0.0.1:")), None)
            if not address:
                raise RuntimeError(f"the cluster has not started:\n{said.read_text()}")
            yield Served(address, folder)
        finally:
            process.communicate()


def patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Return Ray's question for a node that has just been started, asked for longer than the 30 s that Ray gives it."""

    @wraps(get_node)
    def ask(*arguments: Any) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # not there yet
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    return ask


def main(claims: list[str]) -> None:
    """Serve until nobody wants it any more."""
    os.environ.update(LOOPBACK)
    from ray._private import services  # noqa: PLC0415 - after the environment
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - the same

    services.get_node = patient(services.get_node)
    common = {"node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
    head = {"num_cpus": 0, "include_dashboard": False, **common}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for claim in claims:
        resources = {claim: 1} if claim else {}
        cluster.add_node(wait=False, num_cpus=1, num_gpus=len(resources), resources=resources, **common)
    cluster.wait_for_nodes(timeout=START_SECONDS)
    print(cluster.address, flush=True)  # noqa: T201 - what it prints is its result
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
