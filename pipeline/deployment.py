"""What a machine that runs artifacts does with an artifacts folder: see what it is, and resolve what to take."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.atomic import read_record
from pipeline.environment import driver_version, processor, read_host, torch_tensorrt, version
from pipeline.nvml import free_memory_bytes
from pipeline.records import DeploymentHost, Manifest, Tool
from pipeline.resolution import Resolution, Wish, resolve_entry

if TYPE_CHECKING:
    import os

ANY = Wish()
"""No wishes: the fastest at batch 1."""


def this_host() -> DeploymentHost:
    """Return what this machine has; no GPU and no library is touched, but for asking the driver."""
    host = read_host()
    runtimes = [Tool(name=name, version=version(name)) for name in ("onnxruntime-gpu", "onnxruntime")]
    return DeploymentHost(
        machine=platform.machine(),
        processor=processor(),
        host=host,
        free_memory_bytes=tuple(free_memory_bytes(gpu) for gpu in host.gpus),
        driver=driver_version(),
        torch_tensorrt=torch_tensorrt(),
        onnxruntime=next((tool for tool in runtimes if tool.version != "absent"), runtimes[-1]),
    )


def read_manifest(artifacts: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of an artifacts folder.

    Raises:
        RecordError: there is none, or it is damaged.
        NewerRecordError: it was written by a newer version of this package.
    """
    return read_record(
        Path(artifacts) / "manifest.json", Manifest, fix="name a folder that `doit` or `pull` has filled"
    )


def resolve(artifacts: str | os.PathLike[str], wish: Wish = ANY, host: DeploymentHost | None = None) -> Resolution:
    """Return which artifact of a folder to take, and why not the others; nothing is loaded.

    Args:
        artifacts: the folder with manifest.json.
        wish: what is wanted of it.
        host: for which machine; None is this one.

    Raises:
        ResolveError: none suits; the message says why not, artifact by artifact.
        RecordError: there is no manifest, or it is damaged.
    """
    return resolve_entry(read_manifest(artifacts), host or this_host(), wish)
