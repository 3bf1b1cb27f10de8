"""What travels to a worker and back: a step's command, its inputs by digest, and what it has made.

Nothing is pickled: a parcel and a message are JSON, and files are bytes. Which files a step takes and may give is
decided here, from the plan and the records; what comes back is believed once it holds.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from model_artifacts import __version__
from model_artifacts.errors import FarmError, MissingRecordError, RecordError, storage_errors
from model_artifacts.host.files import install_files
from model_artifacts.host.hashes import describe_bytes
from model_artifacts.records import FileRecord, Record, StageRecord
from pipeline.planning.freshness import changes, comparable
from pipeline.planning.keys import key_of
from pipeline.planning.paths import Paths
from pipeline.planning.project import Project, read_farm
from pipeline.stages.common.inputs import is_whole
from pipeline.system.digests import digests_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.planning.steps import Step
    from pipeline.records import FarmHost

SMALL_BYTES = 64 * 1024
"""Files of up to this size travel together with what names them; a larger one is an object of its own on the cluster,
and a machine keeps it for the next step.
"""
CONFIG = "pipeline.yaml"
ARTIFACTS = "artifacts"
"""Where the configuration and the artifacts lie on a worker, in the folder that it runs a step in."""


@cache
def this_package() -> str:
    """Return this package's version with a digest of its code, which tells two checkouts of one version apart."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent.parent.parent
    packages = (folder / "model_artifacts", folder / "pipeline")
    for path in sorted(file for package in packages for file in package.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return f"{__version__}, code {digest.hexdigest()[:12]}"


def is_small(file: FileRecord) -> bool:
    """Return whether a file travels together with others."""
    return file.bytes <= SMALL_BYTES


class Parcel(Record):
    """A command and what it takes."""

    package: str = Field(default_factory=this_package)
    """What has packed it; a worker that is another refuses."""
    command: tuple[str, ...]
    """What follows Python's name."""
    files: tuple[FileRecord, ...]
    """By their paths below the folder that the command runs in."""
    timed: bool = False
    """Whether the command measures what users will see."""
    timeout_seconds: float


class Began(Record):
    """A worker has taken a parcel."""

    kind: Literal["began"] = "began"
    node: str
    """What the cluster calls its machine."""


class PrintedLine(Record):
    """A line that the command has printed."""

    kind: Literal["said"] = "said"
    error: bool
    """To standard error."""
    line: str


class Completed(Record):
    """The command has ended; the bytes of `files` follow, in their order."""

    kind: Literal["made"] = "made"
    status: int
    """The exit status; below 0 the signal that has ended it."""
    files: tuple[FileRecord, ...]
    """What is new or other than it was, by its path in the artifacts folder."""


class Refused(Record):
    """The worker could not run it."""

    kind: Literal["refused"] = "refused"
    reason: str


Message = Began | PrintedLine | Completed | Refused
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def read_message(text: str) -> Message:
    """Return what a worker says.

    Raises:
        FarmError: that is nothing which one says.
    """
    try:
        return _MESSAGE.validate_json(text)
    except ValidationError as exc:
        raise FarmError("a worker said what this version does not know", got=text[:200]) from exc


class Input(NamedTuple):
    """A file that travels."""

    record: FileRecord
    """By its path below the folder that the command runs in."""
    content: Path | bytes

    def read(self) -> bytes:
        """Return its bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


class Packed(NamedTuple):
    """A parcel with the contents of its files."""

    parcel: Parcel
    inputs: tuple[Input, ...]

    @property
    def large(self) -> tuple[Input, ...]:
        """What travels by itself."""
        return tuple(item for item in self.inputs if not is_small(item.record))

    def small(self) -> bytes:
        """Return all others, one after another.

        Raises:
            StorageError: one of them cannot be read.
        """
        with storage_errors("reading what travels to a worker"):
            return b"".join(item.read() for item in self.inputs if is_small(item.record))


def pack(project: Project, step: Step, workers: FarmHost) -> Packed:
    """Return what a worker takes to run a step.

    Args:
        project: what the step is made from must be there.
        step: of a target that the farm builds.
        workers: who run it.

    Raises:
        RecordError: what it is made from is missing or damaged.
        StorageError: a file cannot be read.
    """
    farm = read_farm(project.config, project.paths).model_copy(update={"here": workers.worker_kind, "nodes": ()})
    with storage_errors("reading what travels to a worker"):
        inputs = [
            _text(CONFIG, project.config_file.read_bytes()),
            _text(f"{ARTIFACTS}/{project.paths.farm.name}", farm.to_json().encode()),
            *(_text(path.as_posix(), path.read_bytes()) for path in _factory_code(project.config.model.factory)),
            *_from_artifacts(project, step),
        ]
    unique = {item.record.path: item for item in inputs}
    command = ("-m", "pipeline", step.stage, step.subject, "--config", CONFIG, "--artifacts", ARTIFACTS)
    parcel = Parcel(
        command=command,
        files=tuple(item.record for item in unique.values()),
        timed=project.schedule.spec(step.stage).timed,
        timeout_seconds=project.config.farm.step_timeout_seconds if project.config.farm else 0,
    )
    return Packed(parcel, tuple(unique.values()))


def _text(path: str, data: bytes) -> Input:
    return Input(describe_bytes(path, data), data)


def _factory_code(factory: str) -> Iterator[Path]:
    """Yield the Python files of a factory that lies here rather than in an installed package."""
    top = Path(factory.split(":", maxsplit=1)[0].split(".", maxsplit=1)[0])
    if top.is_dir():
        yield from sorted(top.rglob("*.py"))
    elif top.with_suffix(".py").is_file():
        yield top.with_suffix(".py")


def _from_artifacts(project: Project, step: Step) -> Iterator[Input]:
    """Yield the records that a step reads, and the files that they name."""
    root = project.paths.root
    spec = project.schedule.spec(step.stage)
    if spec.inputs is None:
        raise FarmError(f"{step.name} runs on this machine only")
    for item in spec.inputs(project, project.schedule.subject(step)):
        yield _text(f"{ARTIFACTS}/{item.path.relative_to(root)}", item.path.read_bytes())
        for file in item.files:
            if not is_whole(project, file):
                raise RecordError(f"{file.path} is not what was made", fix="run `doit`, which makes it again")
            yield Input(file.model_copy(update={"path": f"{ARTIFACTS}/{file.path}"}), project.file(file))


def check_list(project: Project, step: Step, made: Completed) -> None:
    """Check that a worker gives what a step may make, and nothing else, before any of it is taken.

    Raises:
        FarmError: it gives something else.
    """
    allowed = {path.relative_to(project.paths.root).as_posix() for path in _places(project, step)}
    names = [file.path for file in made.files]
    wrong = [name for name in names if name not in allowed] or [name for name in names if names.count(name) > 1]
    if wrong:
        raise FarmError(f"a worker gave a file that is not the step's: {wrong[0]}; nothing of it was kept")


def accept(project: Project, step: Step, made: Completed, staged: Path) -> None:
    """Put what a worker has made in its place, once it holds.

    Args:
        project: where.
        step: which has been run.
        made: what came back.
        staged: the folder in which its files lie, each with its digest.

    Raises:
        FarmError: a record is missing although all went well, or tells of something else than was asked for.
        StorageError: the files cannot be written.
    """
    there = Project(project.plan, Paths(staged, project.plan.model), project.stages, project.config_file)
    digests = {file.path: file.sha256 for file in made.files}
    try:
        records = [_present(result) for result in there.records(step)]
        for record in records:
            _check(project, step, record, digests)
    except RecordError as exc:
        if made.status != 0 and isinstance(exc, MissingRecordError):
            return  # it has ended before it could leave one, and has said why
        raise FarmError("a worker's results do not hold; nothing of them was kept", got=exc.what) from exc
    _remove_former(project, step, digests)
    vouched_for = {file.path for record in records for file in record.files}
    install_files(staged, project.paths.root, sorted(made.files, key=lambda file: file.path not in vouched_for))


def _present(result: StageRecord | MissingRecordError) -> StageRecord:
    if isinstance(result, MissingRecordError):
        raise result
    return result


def _check(project: Project, step: Step, record: StageRecord, digests: dict[str, str]) -> None:
    """Check that a record is of what was asked for, and that its files have come, or were here."""
    before, now = (comparable(project, step, key) for key in (record.key, key_of(project, step)))
    if before != now:
        raise RecordError("; ".join(changes(before, now)) or "its key is another")
    for file in record.files:
        path = project.file(file)
        own = digests.get(file.path)
        if own is None and path.is_file():
            own = digests_in(project.paths.digests).sha256_of(path)
        if own != file.sha256:
            raise RecordError(f"{file.path} is not what its record says")


def _remove_former(project: Project, step: Step, digests: dict[str, str]) -> None:
    """Remove files of an earlier result that this one does not have."""
    spec, subject = project.schedule.spec(step.stage), project.schedule.subject(step)
    for path in spec.replaced(project.paths, subject):
        if path.relative_to(project.paths.root).as_posix() not in digests:
            path.unlink(missing_ok=True)


def _places(project: Project, step: Step) -> Iterator[Path]:
    """Yield the places of a step's results."""
    spec, subject = project.schedule.spec(step.stage), project.schedule.subject(step)
    yield from spec.records(project.paths, project.plan, subject)
    yield from spec.files(project.paths, project.plan, subject)
