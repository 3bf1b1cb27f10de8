"""Compare push and pull of a release in an OCI registry with oras-py's own client, and count the bytes for one host.

    python benchmarks/registry.py

The registry is Debian's docker-registry on loopback; the release has engines of 40 MB for three types of GPU. Both
clients move the same files in turns. oras-py checks nothing that it pulls and syncs nothing; a pull here hashes every
byte, syncs, and verifies the release. The medians and their ratios are printed.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import oras.client

from model_artifacts.deployment.requirements import Requirements
from model_artifacts.releases.oci.offers import read_offers
from model_artifacts.releases.oci.references import reference_of
from model_artifacts.releases.oci.registry import Registry
from model_artifacts.releases.store import pull, push

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.deployables import machine
from tests.support.gpu_releases import GPUS, write_release
from tests.support.registries import PROGRAM, running

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.registries import RegistryServer

_ENGINE_BYTES = 40 * 10**6
_ROUNDS = 5


def _seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _document_bytes(url: str) -> int:
    """Return the bytes of a release's index and manifests, which every pull reads."""
    registry = Registry(reference_of(url))
    offered = read_offers(url)
    found = [registry.manifest(f"sha256:{digest}") for digest in (offered.digest, *offered.manifests)]
    return sum(len(stored.data) for stored in found if stored)


def _compare(server: RegistryServer, release: Path, root: Path) -> None:
    """Move the release there and back by both clients, in turns, and print the medians."""
    size = sum(path.stat().st_size for path in release.rglob("*") if path.is_file())
    files = [str(path) for path in release.rglob("*") if path.is_file()]
    client = oras.client.OrasClient(hostname=server.host, insecure=True)
    taken: dict[str, list[float]] = {}
    for number in range(_ROUNDS):
        ours, theirs = server.url(f"ours/{number}"), f"{server.host}/theirs/{number}:latest"
        bare = str(root / "bare")
        works: dict[str, Callable[[], object]] = {
            "push": partial(push, ours, release),
            "oras push": partial(client.push, theirs, files=files, disable_path_validation=True),
            "pull": partial(pull, ours, root / "pulled"),
            "oras pull": partial(client.pull, theirs, outdir=bare, allowed_media_type=[]),
        }
        for name, work in works.items():
            taken.setdefault(name, []).append(_seconds(work))
        for folder in ("pulled", "bare"):
            shutil.rmtree(root / folder)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name in ("push", "pull"):
        print(
            f"{name} of {size / 1e6:.0f} MB: {medians[name]:.2f} s, {size / 1e6 / medians[name]:.0f} MB/s; oras-py "
            f"{medians[f'oras {name}']:.2f} s; ratio {medians[name] / medians[f'oras {name}']:.2f}"
        )


def _count(server: RegistryServer, root: Path) -> None:
    """Print the bytes that a host of each type moves for the release, and those of the whole."""
    url = server.url("ours/0")
    documents = _document_bytes(url)
    whole = sum(file.bytes for file in pull(url, root / "whole").fetched) + documents
    print(f"a whole pull moves {whole:,} bytes, of which {documents:,} are of the index and the manifests")
    for gpu in GPUS:
        with patch("model_artifacts.releases.store.this_host", partial(machine, gpu)):
            pulled = pull(url, root / gpu.slug, for_host=Requirements())
        moved = sum(file.bytes for file in pulled.fetched) + documents
        print(f"{gpu.name}: {moved:,} bytes, {moved / whole:.3f} of the whole")


def main() -> None:
    """Measure, and print the medians and ratios."""
    if PROGRAM is None:
        sys.exit("docker-registry is not installed: apt-get install docker-registry")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_release(root / "release", _ENGINE_BYTES)
        with running(root / "registry") as server:
            _compare(server, root / "release", root)
            _count(server, root)


if __name__ == "__main__":
    main()
