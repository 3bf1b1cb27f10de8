"""Commands for a folder of artifacts: resolve, show, host, triton."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.cli.options import COUNT, FOLDER, MILLISECONDS, MODEL, REQUIREMENTS, Option, add_group
from model_artifacts.errors import UsageError
from model_artifacts.host.terminal import one_row

if TYPE_CHECKING:
    import argparse

    from model_artifacts.cli.parser import CommandLine
    from model_artifacts.deployment.requirements import Requirements
    from model_artifacts.deployment.resolution import Resolution

_INSTALL = "pip install model-artifacts"

RESOLVED = Option(
    ("folder",),
    "the artifacts, with their manifest.json, or a release in a registry, oci://…, of which no file is fetched; "
    "default: artifacts",
    default="artifacts",
    metavar="FOLDER",
    nargs="?",
)
HOST = Option(
    ("--host",), "resolve for another machine, whose `host` command printed this file", type=Path, metavar="FILE"
)
JSON = Option(("--json",), "print JSON, for programs", action="store_true")
SHOWN = Option(
    ("path",),
    "a folder of artifacts, or a release: its folder or its .tar.zst; default: artifacts",
    type=Path,
    default=Path("artifacts"),
    metavar="PATH",
    nargs="?",
)
OUTPUT = Option(
    ("--output",),
    "the folder of the repositories; default: beside the artifacts, with the suffix -triton",
    type=Path,
    metavar="FOLDER",
)
MODEL_VERSION = Option(
    ("--model-version",),
    "the version of all models; default: the next one, for a model whose file is another than the one it replaces",
    type=COUNT,
    metavar="N",
)
P99 = Option(
    ("--p99-ms",),
    "the latency bound whose settings of `doit load` models take; default: the strictest that each of them kept",
    type=MILLISECONDS,
    metavar="MS",
)


def add_artifact_commands(commands: CommandLine) -> None:
    """Add the commands that read a folder of artifacts."""
    parser = commands.add(
        "resolve",
        "choose the artifact for this machine, or another",
        example="artifacts/ --max-latency-ms 1 --min-top1 75%",
        remedy=_INSTALL,
    )
    for option in (RESOLVED, MODEL, HOST, JSON):
        option.add_to(parser)
    add_group(parser, "requirements", REQUIREMENTS)
    parser.set_defaults(
        run=lambda options: _resolve(
            options.folder, options.model, options.host, requirements_of(options), as_json=options.json
        )
    )

    parser = commands.add(
        "show",
        "print the artifacts, and which of them to deploy",
        example="artifacts/",
        remedy='pip install "model-artifacts[verify]"',
    )
    for option in (SHOWN, MODEL):
        option.add_to(parser)
    parser.set_defaults(run=lambda options: _show(options.path, options.model))

    parser = commands.add(
        "host", "print this machine's GPUs and runtimes as JSON", example="> h100.json", remedy=_INSTALL
    )
    parser.set_defaults(run=lambda _: _host())

    parser = commands.add(
        "triton",
        "write model repositories for Triton Inference Server",
        example="artifacts/ --output models/",
        remedy='pip install "model-artifacts[triton]"',
    )
    for option in (FOLDER, MODEL, OUTPUT, MODEL_VERSION, P99):
        option.add_to(parser)
    parser.set_defaults(
        run=lambda options: _triton(
            options.folder, options.model, options.output, options.model_version, options.p99_ms
        )
    )


def requirements_of(options: argparse.Namespace) -> Requirements:
    """Return the caller's requirements."""
    from model_artifacts.deployment.requirements import Requirements

    return Requirements(
        batch=options.batch,
        max_latency_ms=options.max_latency_ms,
        throughput=options.throughput,
        min_top1=options.min_top1,
        precision=options.precision,
        max_memory_bytes=options.max_memory,
        input=options.input,
        output=options.output,
    )


def _resolve(
    source: str, model: str | None, host_file: Path | None, requirements: Requirements, *, as_json: bool
) -> int:
    from model_artifacts.deployment.loading import resolve
    from model_artifacts.host.record_files import read_record
    from model_artifacts.records import DeploymentHost
    from model_artifacts.releases.oci.references import is_registry

    fix = "`model-artifacts host` prints one there"
    host = read_record(host_file, DeploymentHost, fix=fix) if host_file else None
    if is_registry(source):
        from model_artifacts.releases.oci.offers import read_offers, resolve_offered

        if model:
            raise UsageError("expected --model with a folder of several models, got it with a release, which has one")
        offered = read_offers(source)
        resolution = resolve_offered(offered, requirements, host)
        place = offered.place_of(resolution.entry)
    else:
        resolution = resolve(source, requirements, host, model=model)
        file = resolution.entry.file
        place = str(Path(source) / file.path) if file else ""
    print(_as_json(resolution, place) if as_json else _as_text(resolution, place, requirements))
    return 0


def _show(path: Path, model: str | None) -> int:
    from model_artifacts.cli.answers import Place, devices_here, print_manifest
    from model_artifacts.deployment.loading import read_manifest
    from model_artifacts.records import manifests_of, of_model
    from model_artifacts.releases.archive import unpacked

    if path.is_file():
        with unpacked(path) as folder:
            manifest = read_manifest(folder)
    else:
        manifest = read_manifest(path)
    place = Place(None if path.is_file() else path, devices_here(), is_shared=len(manifest.models) > 1)
    for item in (of_model(manifest, model),) if model else manifests_of(manifest):
        print_manifest(item, place, sys.stdout)
    return 0


def _host() -> int:
    from model_artifacts.deployment.loading import this_host

    print(this_host().to_json(), end="")
    return 0


def _triton(artifacts: Path, model: str | None, output: Path | None, version: int | None, p99_ms: float | None) -> int:
    from model_artifacts.releases.triton import make_repositories

    folder = artifacts.resolve()  # inside it, `verify` and `pull` would report files that no release has
    made = make_repositories(artifacts, output or folder.with_name(f"{folder.name}-triton"), version, model, p99_ms)
    for item, number in made.models:
        print(one_row(f"{item.path}  version {number}, {item.entry.id}"))
        if item.entry.load is not None:
            print(one_row(f"  instances, batching and CUDA graphs: {item.origin}"))
    for left in made.left_out:
        print(one_row(f"not {left.id}: {left.reason}"))
    print(f"{len(made.models)} models; a server on each kind of host takes its own repository:")
    for host in made.hosts:
        print(f"  tritonserver --model-repository={made.folder / host}")
    return 0


def _as_text(resolution: Resolution, place: str, requirements: Requirements) -> str:
    entry, gpu = resolution.entry, resolution.place.gpu
    where = gpu.name if gpu else "the processor"
    speed, unit = (
        (resolution.throughput_per_s, f"{entry.counted}/s")
        if requirements.throughput
        else (resolution.latency_ms, f"ms at batch {requirements.timed_batch}")
    )
    nearest = f"; ranked by {resolution.evidence}" if resolution.evidence else ""
    timed = f"not timed there{nearest}" if speed is None else f"{speed:.4g} {unit}"
    lines = [entry.id, f"  file  {place or 'none'}", f"  why   {resolution.place.tier.phrase}; {where}; {timed}"]
    rejected = (f"  not   {item.id}: {item.reason}" for item in resolution.rejected)
    return "\n".join(map(one_row, [*lines, *rejected]))


def _as_json(resolution: Resolution, place: str) -> str:
    file, gpu = resolution.entry.file, resolution.place.gpu
    fields = {
        "id": resolution.entry.id,
        "file": place or None,
        "sha256": file.sha256 if file else None,
        "tier": resolution.place.tier.name.lower(),
        "gpu": gpu.uuid if gpu else None,
        "latency_ms": resolution.latency_ms,
        "throughput_per_s": resolution.throughput_per_s,
        "ranked_by": str(resolution.evidence) if resolution.evidence else None,
        "rejected": [{"id": item.id, "reason": item.reason} for item in resolution.rejected],
    }
    return json.dumps(fields, indent=2, sort_keys=True)
