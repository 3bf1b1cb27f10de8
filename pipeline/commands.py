"""`python -m pipeline host`, `resolve`, `release` and `verify`: commands with arguments of their own."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.atomic import read_record
from pipeline.config import WorkspaceSize
from pipeline.deployment import resolve, this_host
from pipeline.project import Project
from pipeline.records import DeploymentHost, Precision
from pipeline.release import make_release, verify_release
from pipeline.release.signature import Signer, Verifier
from pipeline.resolution import Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.resolution import Resolution

T = TypeVar("T")

COMMANDS = {
    "host": "prints as JSON what this machine has that runs artifacts",
    "resolve": "says which artifact to take on this machine, or another; `resolve --help` has the wishes",
    "release": "makes a folder and an archive of what may be deployed, with its evidence; signed with --key",
    "verify": "checks a release against everything that it says of itself, and against a signature that --key demands",
}


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run one of `COMMANDS`; wrong usage ends the process with status 2.

    Returns:
        the exit status.

    Raises:
        PipelineError: it cannot be done.
    """
    return {"host": _host, "resolve": _resolve, "release": _release, "verify": _verify}[name](arguments)


def _host(arguments: Sequence[str]) -> int:
    _parser("host").parse_args(arguments)
    print(this_host().to_json(), end="")
    return 0


def _resolve(arguments: Sequence[str]) -> int:
    options = _resolve_parser().parse_args(arguments)
    wish = Wish(
        batch=options.batch,
        max_latency_ms=options.max_latency_ms,
        throughput=options.throughput,
        min_top1=options.min_top1,
        precision=options.precision,
        max_memory_bytes=options.max_memory,
    )
    fix = "`python -m pipeline host` prints one there"
    host = read_record(options.host, DeploymentHost, fix=fix) if options.host else None
    found = resolve(options.artifacts, wish, host)
    print(_as_json(found, options.artifacts) if options.json else _as_text(found, options.artifacts, wish))
    return 0


def _release(arguments: Sequence[str]) -> int:
    parser = _parser("release")
    parser.add_argument("--config", type=Path, default=Path("pipeline.yaml"), help="default: %(default)s")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--key", type=Path, metavar="PEM", help="sign with this private key on an elliptic curve")
    who.add_argument("--keyless", action="store_true", help="sign as the identity that CI's OIDC vouches for")
    parser.add_argument("--allow-dirty", action="store_true", help="although files differ from the commit")
    options = parser.parse_args(arguments)
    signer = Signer(options.key) if options.key or options.keyless else None
    made = make_release(Project.load(options.config), signer, allow_dirty=options.allow_dirty)
    size = made.archive.stat().st_size / 1e6
    print(f"{len(made.manifest.artifacts)} artifacts, {'signed' if made.signed else 'not signed'}: {made.folder}")
    print(f"{size:.1f} MB: {made.archive}")
    return 0


def _verify(arguments: Sequence[str]) -> int:
    parser = _parser("verify")
    parser.add_argument("release", type=Path, help="the folder, or the .tar.zst")
    parser.add_argument(
        "--key", type=Path, metavar="PEM", help="demand the signature of this public key's private half"
    )
    parser.add_argument("--identity", help="demand a signature of this identity")
    parser.add_argument("--issuer", help="which this OIDC issuer has vouched for")
    options = parser.parse_args(arguments)
    if bool(options.identity) != bool(options.issuer) or (options.key and options.identity):
        parser.error("expected --key, or --identity with --issuer")
    wanted = options.key or options.identity
    verifier = Verifier(options.key, options.identity or "", options.issuer or "") if wanted else None
    manifest = verify_release(options.release, verifier)
    whose = "the signature holds" if verifier else "no signature was demanded, so nobody vouches for it"
    print(f"{len(manifest.artifacts)} artifacts are what the release says; {whose}")
    return 0


def _parser(name: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"python -m pipeline {name}", description=COMMANDS[name])


def _resolve_parser() -> argparse.ArgumentParser:
    parser = _parser("resolve")
    add = parser.add_argument
    where = Path("artifacts")
    add("artifacts", nargs="?", type=Path, default=where, help="the folder with manifest.json; default: artifacts")
    add("--host", type=Path, metavar="FILE", help="for the machine on which `pipeline host` printed this")
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
    add("--json", action="store_true", help="for programs")
    return parser


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


def _share(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def _size(text: str) -> int:
    size = WorkspaceSize(text=text).bytes(None)
    if size is None:
        raise ValueError
    return size


def _as_text(found: Resolution, artifacts: Path, wish: Wish) -> str:
    entry, gpu = found.entry, found.place.gpu
    where = gpu.name if gpu else "the processor"
    speed, unit = (
        (found.throughput_per_s, "images/s")
        if wish.throughput
        else (found.latency_ms, f"ms at batch {wish.timed_batch}")
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
