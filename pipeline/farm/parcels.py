"""Parcels and messages between a driver and its workers: a step's command, its inputs by digest, and its results.

Parcels and messages are JSON, and files are bytes; nothing is pickled. The plan and the records decide here which files
a step reads and may write. The driver accepts a worker's results only after all checks.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

import model_artifacts
import pipeline
from model_artifacts import __version__
from model_artifacts.errors import FarmError, MissingRecordError, RecordError, shortened, storage_errors
from model_artifacts.host.factory_code import files_of
from model_artifacts.host.files import install_files
from model_artifacts.host.hashes import describe_bytes, describe_file
from model_artifacts.host.record_files import file_of
from model_artifacts.records import FileRecord, Record, StageRecord
from pipeline.planning.freshness import changes, comparable
from pipeline.planning.keys import key_of
from pipeline.planning.paths import Paths
from pipeline.planning.project import Project, read_farm
from pipeline.stages.common.inputs import is_whole
from pipeline.system.digests import digests_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.planning.steps import Step
    from pipeline.records import FarmHost

SMALL_BYTES = 64 * 1024
"""The size limit of files that travel together with their parcel.

A larger file is an object of its own on the cluster, and a machine keeps it for later steps.
"""
CONFIG = "pipeline.yaml"
"""The configuration's path on a worker, in the folder of its step."""
ARTIFACTS = "artifacts"
"""The artifacts' path on a worker, in the folder of its step."""


CODE = ("*.py", "*.jinja", "*_ids.txt", "py.typed")
"""The files of both packages that a driver sends to its workers."""


def code_folders() -> tuple[Path, ...]:
    """Return the folders of both packages, as this process has imported them."""
    return tuple(Path(package.__path__[0]) for package in (model_artifacts, pipeline))


@cache
def this_package() -> str:
    """Return the version with a digest of both packages' code.

    Workers get the code from the driver, so a difference means that Python took it from elsewhere on the worker.
    """
    digest = hashlib.sha256()
    for folder in code_folders():
        for path in sorted(path for pattern in CODE for path in folder.rglob(pattern)):
            digest.update(f"{folder.name}/{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return f"{__version__}, code {digest.hexdigest()[:12]}"


def is_small(file: FileRecord) -> bool:
    """Return True if a file travels together with its parcel."""
    return file.bytes <= SMALL_BYTES


class Parcel(Record):
    """A command and its files."""

    package: str = Field(default_factory=this_package)
    """The driver's version of this package and its code. A worker that runs other code refuses the parcel."""
    command: tuple[str, ...]
    """The arguments of Python."""
    files: tuple[FileRecord, ...]
    """The inputs, by their paths below the command's folder."""
    timed: bool = False
    """True if the command measures latencies."""
    timeout_seconds: float


class Began(Record):
    """The message that a worker has begun a parcel."""

    kind: Literal["began"] = "began"
    node: str
    """The cluster's id of the machine."""


class PrintedLine(Record):
    """A line of the command's output."""

    kind: Literal["said"] = "said"
    error: bool
    """True for a line of standard error."""
    line: str


class Completed(Record):
    """The message that the command has ended. The bytes of `files` follow, in their order."""

    kind: Literal["made"] = "made"
    status: int
    """The exit status. Below 0 it is the number of the signal that ended the command."""
    files: tuple[FileRecord, ...]
    """New and changed files, by their paths in the artifacts folder."""


class Refused(Record):
    """The message that the worker could not run the parcel."""

    kind: Literal["refused"] = "refused"
    reason: str
    """The text of the error."""


Message = Began | PrintedLine | Completed | Refused
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def read_message(text: str) -> Message:
    """Return a worker's message from its JSON.

    Raises:
        FarmError: the text is no known message.
    """
    try:
        return _MESSAGE.validate_json(text)
    except ValidationError as exc:
        raise FarmError("a worker sent a message that this version does not know", got=shortened(text)) from exc


class Input(NamedTuple):
    """A file that travels to a worker."""

    record: FileRecord
    """The file, by its path below the command's folder."""
    content: Path | bytes

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            OSError: the file cannot be read.
        """
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


class Packed(NamedTuple):
    """A parcel with the contents of its files."""

    parcel: Parcel
    inputs: tuple[Input, ...]

    @property
    def large(self) -> tuple[Input, ...]:
        """The large inputs, each of which travels by itself."""
        return tuple(item for item in self.inputs if not is_small(item.record))

    def small(self) -> bytes:
        """Return the bytes of all other inputs, one after another.

        Raises:
            StorageError: one of them cannot be read.
        """
        with storage_errors("reading a worker's inputs"):
            return b"".join(item.read() for item in self.inputs if is_small(item.record))


def pack(project: Project, step: Step, workers: FarmHost) -> Packed:
    """Return a step's command with all of its inputs.

    Args:
        project: the configuration and the artifacts, with the step's inputs.
        step: a step of one of the farm's targets.
        workers: the workers of this target.

    Raises:
        FarmError: the stage runs only on the driver's machine.
        RecordError: an input is missing or damaged.
        StorageError: an input cannot be read.
    """
    sent = {"here": workers.worker_kind, "nodes": (), "git": project.git}
    farm = read_farm(project.config, project.paths).model_copy(update=sent)
    with storage_errors("reading a worker's inputs"):
        inputs = [
            _text(CONFIG, project.config_file.read_bytes()),
            _text(f"{ARTIFACTS}/{project.paths.farm.name}", file_of(farm)),
            *(_text(path.as_posix(), path.read_bytes()) for path in _own_code(project)),
            *_from_artifacts(project, step),
        ]
        if project.config.model.onnx is None and _has_weights(project, inputs):
            inputs += _read_by_factory(project)
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
    """Return bytes as an input."""
    return Input(describe_bytes(path, data), data)


def _own_code(project: Project) -> Iterator[Path]:
    """Yield the Python files of the current folder that hold the user's functions, and those that they import.

    These are the factory, the metric and the function that decodes a detector's outputs. Of a package all files travel,
    because it may import its modules by computed names. Installed packages do not.
    """
    model = project.config.model
    factory = model.factory if model.onnx is None else None
    metric = model.metric.function if model.metric else None
    for function in filter(None, (factory, metric, model.postprocess)):
        top = Path(function.split(":", maxsplit=1)[0].split(".", maxsplit=1)[0])
        if top.is_dir():
            yield from sorted(top.rglob("*.py"))
        yield from (path for path in files_of(function) if _travels(path))


def _travels(path: Path) -> bool:
    """Return True for a path that leads from the current folder to a place inside of it."""
    return not path.is_absolute() and ".." not in path.parts


def _has_weights(project: Project, inputs: Sequence[Input]) -> bool:
    """Return True if a step gets the model's weights, so that it calls the factory."""
    path = f"{ARTIFACTS}/{project.paths.weights.relative_to(project.paths.root).as_posix()}"
    return any(item.record.path == path for item in inputs)


def _read_by_factory(project: Project) -> Iterator[Input]:
    """Yield the files of the current folder that the factory read, such as its own settings or a model's folder.

    Files elsewhere do not travel: the machine needs them at the same place.

    Raises:
        RecordError: a file is missing or changed since `source` ran.
    """
    for read in project.source().reads:
        path = Path(read.path)
        if not _travels(path):
            continue
        if not path.is_file() or digests_in(project.paths.digests).sha256_of(path) != read.sha256:
            raise RecordError(
                f"{read.path}, which the factory read, is missing or has changed",
                fix=f"run `{project.doit}`, which calls it again",
            )
        yield Input(describe_file(path, Path()), path)


def _from_artifacts(project: Project, step: Step) -> Iterator[Input]:
    """Yield the records that a step reads, with their files.

    Raises:
        FarmError: the stage runs only on the driver's machine.
        RecordError: a file is missing or damaged.
    """
    root = project.paths.root
    spec = project.schedule.spec(step.stage)
    if spec.inputs is None:
        raise FarmError(f"{step.name} runs only on the driver's machine")
    for item in spec.inputs(project, project.schedule.subject(step)):
        yield _text(f"{ARTIFACTS}/{item.path.relative_to(root)}", item.path.read_bytes())
        for file in item.files:
            if not is_whole(project, file):
                again = f"run `{project.doit}`, which makes it again"
                raise RecordError(f"{file.path} does not match its record", fix=again)
            yield Input(file.model_copy(update={"path": f"{ARTIFACTS}/{file.path}"}), project.file(file))


def check_list(project: Project, step: Step, completed: Completed) -> None:
    """Check that a step may write all files that its worker announces, before any of them is received.

    Args:
        project: the configuration and the artifacts.
        step: the step that ran.
        completed: the worker's message.

    Raises:
        FarmError: a file is not the step's, or is announced twice.
    """
    allowed = {path.relative_to(project.paths.root).as_posix() for path in _places(project, step)}
    names = [file.path for file in completed.files]
    wrong = [name for name in names if name not in allowed] or [name for name in names if names.count(name) > 1]
    if wrong:
        raise FarmError(f"a worker sent a file that is not the step's: {wrong[0]}; nothing of the step was kept")


def accept(project: Project, step: Step, completed: Completed, staged: Path) -> None:
    """Check a worker's results, and move them to their places.

    Args:
        project: the configuration and the artifacts.
        step: the step that ran.
        completed: the worker's message.
        staged: the folder of the received files, whose digests are right.

    Raises:
        FarmError: a record is missing after exit status 0, is of another key, or does not match its files.
        StorageError: the files cannot be written.
    """
    received = Project(project.plan, Paths(staged, project.plan.model), project.stages, project.config_file)
    digests = {file.path: file.sha256 for file in completed.files}
    try:
        records = [_present(result) for result in received.records(step)]
        for record in records:
            _check(project, step, record, digests)
    except RecordError as exc:
        if completed.status != 0 and isinstance(exc, MissingRecordError):
            return  # the step failed before its record, and has printed the reason
        raise FarmError("a worker's results failed their check; nothing of them was kept", got=exc.what) from exc
    _remove_former(project, step, digests)
    # Records come last, so that each is in its place only after its files.
    recorded = {file.path for record in records for file in record.files}
    install_files(staged, project.paths.root, sorted(completed.files, key=lambda file: file.path not in recorded))


def _present(result: StageRecord | MissingRecordError) -> StageRecord:
    """Return a record, or raise the error of a missing one."""
    if isinstance(result, MissingRecordError):
        raise result
    return result


def _check(project: Project, step: Step, record: StageRecord, digests: dict[str, str]) -> None:
    """Check a record's key and its files, received or already here.

    Raises:
        RecordError: the key or a file does not match.
    """
    before, now = (comparable(project, step, key) for key in (record.key, key_of(project, step)))
    if before != now:
        raise RecordError("; ".join(changes(before, now)) or "its record has another key")
    for file in record.files:
        path = project.file(file)
        own = digests.get(file.path)
        if own is None and path.is_file():
            own = digests_in(project.paths.digests).sha256_of(path)
        if own != file.sha256:
            raise RecordError(f"{file.path} does not match its record")


def _remove_former(project: Project, step: Step, digests: dict[str, str]) -> None:
    """Remove files of an earlier result that this one does not have."""
    spec, subject = project.schedule.spec(step.stage), project.schedule.subject(step)
    for path in spec.replaced(project.paths, subject):
        if path.relative_to(project.paths.root).as_posix() not in digests:
            path.unlink(missing_ok=True)


def _places(project: Project, step: Step) -> Iterator[Path]:
    """Yield the paths that a step may write."""
    spec, subject = project.schedule.spec(step.stage), project.schedule.subject(step)
    yield from spec.records(project.paths, project.plan, subject)
    yield from spec.files(project.paths, project.plan, subject)
