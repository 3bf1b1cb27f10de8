"""`python -m pipeline host`, `resolve`, `release`, `pull` and their like: commands with arguments of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.cli import commands as deployment
from model_artifacts.cli.commands import _parser
from model_artifacts.releases.signature import Signer
from pipeline.planning.project import Project
from pipeline.stages.release.stage import make_release

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    **deployment.COMMANDS,
    "release": "makes a folder and an archive of what may be deployed, with its evidence; signed with --key",
    "farm": "looks at the machines of the farm: what they are, and that every target has one",
}


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run one of `COMMANDS`."""
    own = {"release": _release, "farm": _farm}
    return own[name](arguments) if name in own else deployment.run_command(name, arguments)


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


def _farm(arguments: Sequence[str]) -> int:
    from pipeline.farm.inspection import look_at_farm

    parser = _parser("farm")
    parser.add_argument("--config", type=Path, default=Path("pipeline.yaml"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    record = look_at_farm(options.config)
    for item in record.hosts:
        host = item.machine
        gpu = host.gpus[0].name if host.gpus else "no GPU that a driver shows"
        versions = ", ".join(f"{tool.name} {tool.version}" for tool in host.flavours)
        print(f"{item.worker_kind}: {versions or 'no TensorRT'}, torch {host.torch}, {gpu}, driver {item.host.driver}")
    print(f"{len(record.nodes)} machines have the cores or the GPUs that the configuration names")
    return 0
