"""`python -m pipeline host`, `resolve`, `release`, `pull` and their like: commands with arguments of their own."""

from __future__ import annotations

import argparse
import json
import math
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ByteSize, TypeAdapter

from model_artifacts.deployment.loading import resolve, this_host
from model_artifacts.deployment.resolution import Requirements
from model_artifacts.host.record_files import read_record
from model_artifacts.records import DeploymentHost, Precision
from model_artifacts.releases.signature import Verifier
from model_artifacts.releases.verification import latest_release, verify_release

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_artifacts.deployment.resolution import Resolution
    from model_artifacts.records import FileRecord


T = TypeVar("T")

COMMANDS = {
    "host": "prints as JSON what this machine has that runs artifacts",
    "resolve": "says which artifact to take on this machine, or another; `resolve --help` has the wishes",
    "verify": "checks a release against everything that it says of itself, and against a signature that --key demands",
    "triton": "writes a model repository for Triton Inference Server: what of a build or a release it can run",
    "push": "puts a release into a store: a folder, s3://bucket/path, gs://bucket/path",
    "pull": "installs a release from a store, or from https://, once all of it is verified",
    "tag": "lists the tags of a store, or lets one stand for another release",
    "gc": "says what no tag of a store reaches, and deletes it with --delete",
}


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run one of `COMMANDS`; wrong usage ends the process with status 2.

    Returns:
        the exit status.

    Raises:
        ArtifactError: it cannot be done.
    """
    return {
        "host": _host,
        "resolve": _resolve,
        "verify": _verify,
        "triton": _triton,
        "push": _push,
        "pull": _pull,
        "tag": _tag,
        "gc": _gc,
    }[name](arguments)


def _host(arguments: Sequence[str]) -> int:
    _parser("host").parse_args(arguments)
    print(this_host().to_json(), end="")
    return 0


def _resolve(arguments: Sequence[str]) -> int:
    parser = _parser("resolve")
    where = Path("artifacts")
    parser.add_argument("artifacts", nargs="?", type=Path, default=where, help="the folder; default: artifacts")
    parser.add_argument(
        "--host", type=Path, metavar="FILE", help="for the machine on which `pipeline host` printed this"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    _add_wishes(parser)
    options = parser.parse_args(arguments)
    requirements = _wish(options)
    fix = "`python -m pipeline host` prints one there"
    host = read_record(options.host, DeploymentHost, fix=fix) if options.host else None
    found = resolve(options.artifacts, requirements, host)
    print(_as_json(found, options.artifacts) if options.json else _as_text(found, options.artifacts, requirements))
    return 0


def _verify(arguments: Sequence[str]) -> int:
    parser = _parser("verify")
    parser.add_argument("release", type=Path, help="the folder, or the .tar.zst")
    parser.add_argument("--partial", action="store_true", help="artifacts may be missing, as after `pull --for-host`")
    _add_signature(parser)
    options = parser.parse_args(arguments)
    verifier = _verifier(parser, options)
    manifest = verify_release(options.release, verifier, partial=options.partial)
    print(f"{len(manifest.artifacts)} artifacts are what the release says; {_whose(verifier)}")
    return 0


def _triton(arguments: Sequence[str]) -> int:
    from model_artifacts.releases.triton import make_repository

    parser = _parser("triton")
    where = Path("artifacts")
    parser.add_argument("artifacts", nargs="?", type=Path, default=where, help="the folder; default: artifacts")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: beside that folder, NAME-triton")
    options = parser.parse_args(arguments)
    folder = options.artifacts.resolve()  # in it, `verify` and `pull` would find what no release has
    made = make_repository(options.artifacts, options.output or folder.with_name(f"{folder.name}-triton"))
    for model in made.models:
        print(f"{model.name}  {', '.join(entry.id for entry in model.entries)}")
    for left in made.left_out:
        print(f"not {left.id}: {left.reason}")
    print(f"{len(made.models)} models: {made.folder}")
    return 0


def _push(arguments: Sequence[str]) -> int:
    from model_artifacts.releases.store import LATEST, push

    parser = _parser("push")
    parser.add_argument("url", help="of the store")
    parser.add_argument("release", nargs="?", type=Path, help="a folder or .tar.zst; default: the one made last")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="default: %(default)s")
    parser.add_argument("--tag", action="append", metavar="NAME", help=f"to move; default: {LATEST}; repeatable")
    parser.add_argument("--again", action="store_true", help="send also what is there: it is damaged")
    options = parser.parse_args(arguments)
    release = options.release or latest_release(options.artifacts / "release")
    done = push(options.url, release, options.tag or [LATEST], again=options.again)
    sent = _megabytes(done.sent)
    print(f"{_amount(done.release.files)} of {done.release.name}; {len(done.sent)} were sent ({sent})")
    for tag in options.tag or [LATEST]:
        print(f"{tag} {done.digest}")
    return 0


def _pull(arguments: Sequence[str]) -> int:
    from model_artifacts.releases.store import LATEST, pull

    parser = _parser("pull")
    parser.add_argument("url", help="of the store")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("artifacts"), help="default: artifacts")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tag", metavar="NAME", default=LATEST, help="default: %(default)s")
    which.add_argument("--release", metavar="SHA256", help="this one, whatever tags stand for")
    parser.add_argument("--for-host", action="store_true", help="only what `resolve` picks here, by the wishes below")
    _add_signature(parser)
    _add_wishes(parser)
    options = parser.parse_args(arguments)
    verifier = _verifier(parser, options)
    requirements = _wish(options)
    if requirements != Requirements() and not options.for_host:
        parser.error("expected --for-host beside a requirement")
    name = options.release or options.tag
    done = pull(options.url, options.folder, name, verifier, requirements if options.for_host else None)
    fetched = _megabytes(done.fetched)
    print(f"{done.release.name} ({done.digest[:12]}…): {len(done.fetched)} files were fetched ({fetched})")
    what = done.entry.id if done.entry else _amount(done.release.files)
    print(f"{what} in {options.folder}; {_whose(verifier)}")
    return 0


def _tag(arguments: Sequence[str]) -> int:
    from model_artifacts.releases.store import StoredTag, move_tag, read_tags

    parser = _parser("tag")
    parser.add_argument("url", help="of the store")
    parser.add_argument("name", nargs="?", help="the tag to move, or to make")
    parser.add_argument("to", nargs="?", help="another tag, or a release's SHA-256")
    options = parser.parse_args(arguments)
    if options.name and not options.to:
        parser.error("expected what the tag is to stand for: another tag, or a release's SHA-256")
    moved = [StoredTag(options.name, move_tag(options.url, options.name, options.to))] if options.name else None
    for tag in moved or read_tags(options.url):
        print(f"{tag.name} {tag.release}")
    return 0


def _gc(arguments: Sequence[str]) -> int:
    from model_artifacts.releases.store import collect_garbage

    parser = _parser("gc")
    parser.add_argument("url", help="of the store")
    parser.add_argument("--delete", action="store_true", help="delete it; without this it is only listed")
    grace = _argument(_hours, "hours, 0 or more")
    parser.add_argument("--grace-hours", type=grace, default=24.0, metavar="H", help="leave what is newer; default: 24")
    options = parser.parse_args(arguments)
    found = collect_garbage(options.url, timedelta(hours=options.grace_hours), delete=options.delete)
    for path in found.paths:
        print(f"{'deleted' if options.delete else 'would delete'} {path}")
    young = f"; {found.young} more are newer than {options.grace_hours:g} h" if found.young else ""
    print(f"{len(found.paths)} objects are reached by no tag{young}")
    return 0


def _amount(files: tuple[FileRecord, ...]) -> str:
    return f"{len(files)} files, {_megabytes(files)}"


def _megabytes(files: tuple[FileRecord, ...]) -> str:
    return f"{sum(file.bytes for file in files) / 1e6:.1f} MB"


def _add_signature(parser: argparse.ArgumentParser) -> None:
    key = "demand the signature of this public key's private half"
    parser.add_argument("--key", type=Path, metavar="PEM", help=key)
    parser.add_argument("--identity", help="demand a signature of this identity")
    parser.add_argument("--issuer", help="which this OIDC issuer has vouched for")


def _verifier(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Verifier | None:
    if bool(options.identity) != bool(options.issuer) or (options.key and options.identity):
        parser.error("expected --key, or --identity with --issuer")
    wanted = options.key or options.identity
    return Verifier(options.key, options.identity or "", options.issuer or "") if wanted else None


def _whose(verifier: Verifier | None) -> str:
    return "the signature holds" if verifier else "no signature was demanded, so nobody vouches for it"


def _parser(name: str, program: str = "model-artifacts") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"{program} {name}", description=COMMANDS.get(name))
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _add_wishes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("wishes").add_argument
    add(
        "--batch",
        type=_argument(_count, "a whole number above 0"),
        metavar="N",
        help="the batch size that it must take; default: 1",
    )
    add(
        "--max-latency-ms",
        type=_argument(_milliseconds, "milliseconds above 0"),
        metavar="MS",
        help="the median of a batch, measured on such a GPU",
    )
    add("--throughput", action="store_true", help="prefer images a second, at any batch size unless --batch names one")
    add(
        "--min-top1",
        type=_argument(_share, "a share such as 0.75 or 75%"),
        metavar="SHARE",
        help="of labelled images recognised: 0.75 or 75%%",
    )
    names = ", ".join(precision.value for precision in Precision)
    add("--precision", type=_argument(Precision, f"one of {names}"), metavar="NAME", help=f"of the artifact: {names}")
    add(
        "--max-memory",
        type=_argument(_size, "a size such as 512MiB or 2GiB"),
        metavar="SIZE",
        help="of the GPU: 512MiB, 2GiB",
    )


def _wish(options: argparse.Namespace) -> Requirements:
    return Requirements(
        batch=options.batch,
        max_latency_ms=options.max_latency_ms,
        throughput=options.throughput,
        min_top1=options.min_top1,
        precision=options.precision,
        max_memory_bytes=options.max_memory,
    )


def _argument(convert: Callable[[str], T], expected: str) -> Callable[[str], T]:
    """Return a conversion that says what it expected."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except (ValueError, ArithmeticError):  # pydantic's are ValueErrors, too
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None

    return converted


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def _milliseconds(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError
    return value


def _hours(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise ValueError
    return value


def _share(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _size(text: str) -> int:
    if not re.fullmatch(r"\d+(\.\d+)?\s*([KMGT]i?B|B)?", text, re.ASCII) or not (
        size := int(TypeAdapter(ByteSize).validate_python(text))
    ):
        raise ValueError
    return size


def _as_text(found: Resolution, artifacts: Path, requirements: Requirements) -> str:
    entry, gpu = found.entry, found.place.gpu
    where = gpu.name if gpu else "the processor"
    speed, unit = (
        (found.throughput_per_s, "images/s")
        if requirements.throughput
        else (found.latency_ms, f"ms at batch {requirements.timed_batch}")
    )
    timed = "not timed there" if speed is None else f"{speed:.4g} {unit}"
    file = f"{artifacts / entry.file.path}" if entry.file else "none"
    lines = [entry.id, f"  file  {file}", f"  why   {found.place.tier.phrase}; {where}; {timed}"]
    return "\n".join([*lines, *(f"  not   {item.id}: {item.reason}" for item in found.rejected)])


def _as_json(found: Resolution, artifacts: Path) -> str:
    file, gpu = found.entry.file, found.place.gpu
    said = {
        "id": found.entry.id,
        "file": str(artifacts / file.path) if file else None,
        "sha256": file.sha256 if file else None,
        "tier": found.place.tier.name.lower(),
        "gpu": gpu.uuid if gpu else None,
        "latency_ms": found.latency_ms,
        "throughput_per_s": found.throughput_per_s,
        "rejected": [{"id": item.id, "reason": item.reason} for item in found.rejected],
    }
    return json.dumps(said, indent=2, sort_keys=True)
