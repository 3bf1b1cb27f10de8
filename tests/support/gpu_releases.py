"""A release with an engine for each of several types of GPU, as a farm makes it; its engines are random bytes."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

from model_artifacts.host.hashes import describe_bytes, describe_file
from model_artifacts.host.record_files import write_record
from model_artifacts.records import Gpu
from model_artifacts.releases.verification import BILL, MANIFEST, NOTICES, PROVENANCE, REPORT, SUMS, verify_release
from tests.support.deployables import engine
from tests.support.hosts import H100, L4
from tests.support.manifests import manifest

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import ManifestEntry

A100 = Gpu(
    index=2,
    uuid="GPU-00000000-5555-6666-7777-888888888888",
    name="NVIDIA A100-SXM4-80GB",
    compute_capability=80,
    memory_bytes=80 * 2**30,
)
GPUS = (H100, L4, A100)


def write_release(folder: Path, engine_bytes: int, seed: int = 0) -> tuple[ManifestEntry, ...]:
    """Write a valid release, unsigned, and return its artifacts: one for each of `GPUS`.

    Args:
        folder: the folder to make.
        engine_bytes: the size of each engine.
        seed: the seed of the engines' bytes.
    """
    generator = random.Random(seed)  # noqa: S311 - bytes that no compression shrinks
    entries = []
    for gpu in GPUS:
        made = engine(gpu.slug, 0.5, gpu=gpu).model_copy(update={"target": gpu.slug})
        path = folder / made.id / "model.plan"
        path.parent.mkdir(parents=True)
        path.write_bytes(generator.randbytes(engine_bytes))
        entries.append(made.model_copy(update={"file": describe_file(path, folder)}))
    write_record(folder / MANIFEST, manifest(*entries))
    (folder / REPORT).write_text("<html></html>\n")
    (folder / NOTICES).write_text("none\n")
    files = [entry.file for entry in entries if entry.file]
    parts = [
        {"type": "file", "name": file.path, "hashes": [{"alg": "SHA-256", "content": file.sha256}]} for file in files
    ]
    (folder / BILL).write_text(json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "components": parts}))
    files += [describe_bytes(name, (folder / name).read_bytes()) for name in (MANIFEST, REPORT, NOTICES, BILL)]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in files],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {"buildDefinition": {}, "runDetails": {}},
    }
    (folder / PROVENANCE).write_text(json.dumps(statement))
    files.append(describe_bytes(PROVENANCE, (folder / PROVENANCE).read_bytes()))
    (folder / SUMS).write_text("".join(f"{file.sha256}  {file.path}\n" for file in files))
    verify_release(folder)
    return tuple(entries)
