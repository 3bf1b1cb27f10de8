"""Commands for releases and their stores: pull, push, tag, gc, verify, mlflow."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.cli.artifact_commands import requirements_of
from model_artifacts.cli.options import (
    HOURS,
    MODEL,
    REQUIREMENTS,
    SHA256,
    SIGNATURE,
    URL,
    VERIFY_PATH,
    Option,
    add_group,
)
from model_artifacts.errors import UsageError
from model_artifacts.host.terminal import one_row, size_phrase
from model_artifacts.records import LATEST

if TYPE_CHECKING:
    import argparse
    from datetime import datetime

    from model_artifacts.cli.parser import CommandLine, Parser
    from model_artifacts.deployment.requirements import Requirements
    from model_artifacts.records import FileRecord
    from model_artifacts.releases.signature import Verifier

_INSTALL_STORE = 'pip install "model-artifacts[store,verify]"'
_INSTALL_VERIFY = 'pip install "model-artifacts[verify]"'

PULLED = Option(
    ("folder",), "where to install it; default: artifacts", Path, Path("artifacts"), metavar="FOLDER", nargs="?"
)
TAG = Option(("--tag",), f"the tag to install; default: the one in a registry's URL, or {LATEST}", metavar="NAME")
DIGEST = Option(("--release",), "install the release with this full digest, without a tag", SHA256, metavar="SHA256")
NO_DOWNGRADE = Option(
    ("--no-downgrade",),
    "refuse a release that was built before the installed one, by the time in its signed manifest; needs a signature",
    action="store_true",
)
FOR_HOST = Option(
    ("--for-host",), "install only the artifact that `resolve` chooses for this machine", action="store_true"
)
RELEASE = Option(
    ("release",),
    "a folder or a .tar.zst; default: the newest one in the artifacts",
    Path,
    metavar="RELEASE",
    nargs="?",
)
ARTIFACTS = Option(
    ("--artifacts",), "the artifacts that hold it; default: artifacts", Path, Path("artifacts"), metavar="FOLDER"
)
TAGS = Option(
    ("--tag",),
    f"a tag to move to this release, besides one in a registry's URL; default: {LATEST}; may be repeated",
    metavar="NAME",
    action="append",
)
MOUNT_FROM = Option(
    ("--mount-from",),
    "another repository of the registry, whose files are mounted rather than sent",
    metavar="REPOSITORY",
    default="",
)
AGAIN = Option(("--again",), "send files that the store has, too: they are damaged", action="store_true")
NAME = Option(("name",), "the tag to make or to move; without it, the tags are listed", metavar="NAME", nargs="?")
TARGET = Option(("to",), "the release that it names: another tag, or a SHA-256", metavar="TO", nargs="?")
DELETE = Option(("--delete",), "delete them; without this they are only listed", action="store_true")
GRACE_HOURS = Option(("--grace-hours",), "keep newer objects; default: 24", HOURS, 24.0, metavar="HOURS")
PARTIAL = Option(
    ("--partial",), "allow missing artifacts; a folder of `pull --for-host` needs no option", action="store_true"
)
OUTPUT = Option(
    ("--output",),
    "the folder to write; default: beside the release, with the suffix -mlflow",
    Path,
    metavar="FOLDER",
)


def add_release_commands(commands: CommandLine) -> None:
    """Add the commands that move releases, and the one that checks a release."""
    _add_pull(
        commands.add(
            "pull",
            "install a release from a store, once it is verified",
            example="s3://team/models --tag prod --key release.pub",
            remedy=_INSTALL_STORE,
        )
    )
    parser = commands.add(
        "push", "send a release to a store", example="s3://team/models --tag prod", remedy=_INSTALL_STORE
    )
    for option in (URL, RELEASE, ARTIFACTS, MODEL, TAGS, AGAIN, MOUNT_FROM):
        option.add_to(parser)
    parser.set_defaults(run=_push)
    parser = commands.add(
        "tag",
        "list the tags of a store, or move one",
        example="s3://team/models prod latest",
        remedy=_INSTALL_STORE,
    )
    for option in (URL, NAME, TARGET):
        option.add_to(parser)
    parser.set_defaults(run=lambda options: _tag(options.url, options.name, options.to))
    parser = commands.add(
        "gc",
        "list or delete the objects that no tag reaches",
        example="s3://team/models --delete",
        remedy=_INSTALL_STORE,
    )
    for option in (URL, DELETE, GRACE_HOURS):
        option.add_to(parser)
    parser.set_defaults(run=lambda options: _gc(options.url, options.grace_hours, delete=options.delete))
    parser = commands.add(
        "verify",
        "check a release's files, evidence and signature; show its signed name and time",
        example="model.tar.zst --key release.pub",
        remedy=_INSTALL_VERIFY,
    )
    for option in (VERIFY_PATH, ARTIFACTS, MODEL, PARTIAL):
        option.add_to(parser)
    add_group(parser, "signature", SIGNATURE)
    parser.set_defaults(
        run=lambda options: _verify(_release_of(options.path, options), verifier_of(options), partial=options.partial)
    )
    parser = commands.add(
        "mlflow",
        "write a release as a folder that MLflow loads as a python_function",
        example="models/ --output mlflow/ --key release.pub",
        remedy=_INSTALL_VERIFY,
    )
    for option in (VERIFY_PATH, ARTIFACTS, MODEL, OUTPUT):
        option.add_to(parser)
    add_group(parser, "signature", SIGNATURE)
    parser.set_defaults(
        run=lambda options: _mlflow(_release_of(options.path, options), options.output, verifier_of(options))
    )


def _add_pull(parser: Parser) -> None:
    for option in (URL, PULLED):
        option.add_to(parser)
    source = parser.add_mutually_exclusive_group()
    for option in (TAG, DIGEST):
        option.add_to(source)
    FOR_HOST.add_to(parser)
    add_group(parser, "signature", (*SIGNATURE, NO_DOWNGRADE))
    add_group(parser, "requirements (with --for-host)", REQUIREMENTS)
    parser.set_defaults(
        run=lambda options: _pull(
            options.url,
            options.folder,
            options.release or options.tag,
            verifier_of(options),
            requirements_of(options),
            for_host=options.for_host,
            no_downgrade=options.no_downgrade,
        )
    )


def verifier_of(options: argparse.Namespace) -> Verifier | None:
    """Return the demanded signature, or None.

    Raises:
        UsageError: The options contradict each other.
    """
    from model_artifacts.releases.signature import Verifier

    key, identity, issuer = options.key, options.identity, options.issuer
    if bool(identity) != bool(issuer) or (key and identity):
        names = {"--key": key, "--identity": identity, "--issuer": issuer}
        got = " and ".join(name for name, value in names.items() if value)
        raise UsageError(f"expected --key, or --identity with --issuer, got {got}")
    return Verifier(key, identity or "", issuer or "") if key or identity else None


def _pull(  # noqa: PLR0913 - the command's options
    url: str,
    folder: Path,
    name: str | None,
    verifier: Verifier | None,
    requirements: Requirements,
    *,
    for_host: bool,
    no_downgrade: bool,
) -> int:
    from model_artifacts.deployment.requirements import Requirements
    from model_artifacts.releases.store import pull

    if requirements != Requirements() and not for_host:
        raise UsageError("expected --for-host beside a requirement, got the requirement alone")
    if no_downgrade and not verifier:
        raise UsageError("expected --key, or --identity with --issuer, beside --no-downgrade, got none of them")
    pulled = pull(url, folder, name, verifier, requirements if for_host else None, no_downgrade=no_downgrade)
    fetched = _size(pulled.fetched)
    print(
        f"{pulled.release.name} ({pulled.digest[:12]}…), built {_time(pulled.built_at)}: "
        f"{len(pulled.fetched)} files were fetched ({fetched})"
    )
    if pulled.replaced and pulled.is_downgrade:
        print(f"this goes back: it replaces a newer release, built {_time(pulled.replaced)}")
    contents = pulled.entry.id if pulled.entry else _amount(pulled.release.files)
    print(one_row(f"{contents} in {folder}; {_trust(verifier)}"))
    return 0


def _time(when: datetime) -> str:
    return f"{when.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def _push(options: argparse.Namespace) -> int:
    from model_artifacts.releases.store import push, tags_to_move

    tags = tags_to_move(options.url, options.tag or ())
    release = _release_of(options.release, options)
    pushed = push(options.url, release, tags, again=options.again, mounted_from=options.mount_from)
    sent = _size(pushed.sent)
    print(f"{_amount(pushed.release.files)} of {pushed.release.name}; {len(pushed.sent)} were sent ({sent})")
    for tag in tags:
        print(f"{tag} {pushed.digest}")
    return 0


def _release_of(path: Path | None, options: argparse.Namespace) -> Path:
    """Return the named release, or else the newest one in the artifacts, of the named model if there are several.

    Raises:
        UsageError: no model of several is named, or one is named beside a release.
        ReleaseError: there is no release.
        RecordError: the manifest of the artifacts is damaged, so that their model is unknown.
    """
    from model_artifacts.errors import MissingRecordError
    from model_artifacts.host.record_files import read_record
    from model_artifacts.records import Manifest, model_names, of_model
    from model_artifacts.releases.verification import latest_release

    if path and options.model:
        raise UsageError(f"expected --model, or a release, which has one model, got --model {options.model} and {path}")
    if path:
        return path
    model: str | None = options.model or None
    if model is None:
        with suppress(MissingRecordError):  # `release` may lie there alone; its releases tell of their models
            only = of_model(read_record(options.artifacts / "manifest.json", Manifest))
            model = next(iter(model_names(only)), None)
    return latest_release(options.artifacts / "release", model)


def _tag(url: str, name: str | None, target: str | None) -> int:
    from model_artifacts.releases.listings import StoredTag
    from model_artifacts.releases.store import move_tag, read_tags

    if name and not target:
        raise UsageError(f"expected another tag or a release's SHA-256 after {name}, got nothing")
    moved = [StoredTag(name, move_tag(url, name, target))] if name and target else None
    for tag in moved or read_tags(url):
        print(one_row(f"{tag.name} {tag.release}"))
    return 0


def _gc(url: str, grace_hours: float, *, delete: bool) -> int:
    from model_artifacts.releases.store import collect_garbage

    garbage = collect_garbage(url, timedelta(hours=grace_hours), delete=delete)
    for path in garbage.paths:
        print(one_row(f"{'deleted' if delete else 'would delete'} {path}"))
    young = f"; {garbage.young} more are newer than {grace_hours:g} h" if garbage.young else ""
    print(f"{len(garbage.paths)} objects are reached by no tag{young}")
    return 0


def _verify(path: Path, verifier: Verifier | None, *, partial: bool) -> int:
    from model_artifacts.releases.archive import unpacked
    from model_artifacts.releases.signature import signed_name
    from model_artifacts.releases.verification import host_release, present_artifacts, verify_release

    with unpacked(path) as folder:
        manifest = verify_release(folder, verifier, partial=partial)
        name = (signed_name(folder) if verifier else "") or path.resolve().name
        there, total = present_artifacts(manifest, folder), len(manifest.artifacts)
        reason = ", pulled for one host" if host_release(folder) else ""
    amount = f"{total} artifacts are" if there == total else f"{there} of {total} artifacts are here{reason}, and"
    print(f"{name}, built {_time(manifest.built_at)}: {amount} what the release says; {_trust(verifier)}")
    return 0


def _mlflow(release: Path, output: Path | None, verifier: Verifier | None) -> int:
    from model_artifacts.releases.exports.pyfunc import export_pyfunc

    beside = release.resolve()
    name = beside.name.removesuffix(".tar.zst")
    made = export_pyfunc(release, output or beside.with_name(f"{name}-mlflow"), verifier)
    print(f"{len(made.manifest.artifacts)} artifacts; {_trust(verifier)}")
    print(one_row(f'mlflow.pyfunc.load_model("{made.folder}") opens the one for its machine'))
    return 0


def _trust(verifier: Verifier | None) -> str:
    return "the signature holds" if verifier else "no signature was demanded, so nobody vouches for it"


def _amount(files: tuple[FileRecord, ...]) -> str:
    return f"{len(files)} files, {_size(files)}"


def _size(files: tuple[FileRecord, ...]) -> str:
    return size_phrase(sum(file.bytes for file in files))
