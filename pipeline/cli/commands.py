"""`python -m pipeline release` and `farm`: commands with options of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.cli.options import DEBUG
from model_artifacts.cli.parser import Parser
from model_artifacts.releases.signature import Signer
from pipeline.cli.options import ALLOW_DIRTY, CONFIG, KEYLESS, RELEASE_KEY
from pipeline.planning.project import Project
from pipeline.stages.release.stage import make_release

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "release": "makes a folder and an archive of what may be deployed, with its evidence; signed with --key",
    "farm": "looks at the machines of the farm: what they are, and that every target has one",
}


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run one of `COMMANDS`. Wrong usage ends the process with status 2.

    Returns:
        The exit status.

    Raises:
        ArtifactError: The command failed.
    """
    return {"release": _release, "farm": _farm}[name](arguments)


def _parser(name: str) -> Parser:
    parser = Parser(prog=f"python -m pipeline {name}", description=COMMANDS[name])
    for option in (DEBUG, CONFIG):
        option.add_to(parser)
    return parser


def _release(arguments: Sequence[str]) -> int:
    parser = _parser("release")
    signing = parser.add_mutually_exclusive_group()
    for option in (RELEASE_KEY, KEYLESS):
        option.add_to(signing)
    ALLOW_DIRTY.add_to(parser)
    options = parser.parse_args(arguments)
    signer = Signer(options.key) if options.key or options.keyless else None
    release = make_release(Project.load(options.config), signer, allow_dirty=options.allow_dirty)
    size = release.archive.stat().st_size / 1e6
    signature = "signed" if release.signed else "not signed"
    print(f"{len(release.manifest.artifacts)} artifacts, {signature}: {release.folder}")
    print(f"{size:.1f} MB: {release.archive}")
    return 0


def _farm(arguments: Sequence[str]) -> int:
    from pipeline.farm.inspection import look_at_farm

    options = _parser("farm").parse_args(arguments)
    record = look_at_farm(options.config)
    for item in record.hosts:
        host = item.machine
        gpu = host.gpus[0].name if host.gpus else "no GPU that a driver shows"
        versions = ", ".join(f"{tool.name} {tool.version}" for tool in host.flavours)
        print(f"{item.worker_kind}: {versions or 'no TensorRT'}, torch {host.torch}, {gpu}, driver {item.host.driver}")
    print(f"{len(record.nodes)} machines have the cores or the GPUs that the configuration names")
    return 0
