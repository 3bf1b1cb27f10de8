"""The front page of several models: `artifacts/report.html` with a line and a link for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.host.files import write_bytes
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Manifest, Status, manifests_of, model_names
from pipeline.system.locks import updating

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.planning.project import Project


class Line(NamedTuple):
    """A model's line of the front page."""

    name: str
    network: str
    """The call that makes it; empty while nothing of it was built."""
    artifacts: int
    deployable: int
    answer: str
    """The artifacts with the lowest latency."""
    page: str
    """Path of its report, relative to the front page; empty while there is none."""


def write_front(project: Project) -> None:
    """Write the front page, if the configuration has several models: each of their reports leaves it up to date.

    Raises:
        RecordError: the manifest is missing or damaged.
        StorageError: the page cannot be written.
    """
    if not project.paths.of_several:
        return
    with updating(project.paths.front):
        lines = _lines(project, read_record(project.paths.manifest, Manifest))
        write_bytes(project.paths.front, (_mark(project) + _render(lines)).encode("utf-8"))


def front_reasons(project: Project) -> Iterator[str]:
    """Yield the reason to write the front page again: it is missing, or of another manifest."""
    if not project.paths.of_several:
        return
    front, mark = project.paths.front, _mark(project).encode()
    if not front.is_file():
        yield f"{front.name} is missing"
        return
    with front.open("rb") as file:
        if file.read(len(mark)) != mark:
            yield f"{front.name} is of another manifest"


def _mark(project: Project) -> str:
    """Return the beginning of the front page, which tells the manifest that it was made of."""
    return f"<!doctype html>\n<!-- manifest.json {sha256_of(project.paths.manifest)} -->\n"


def _lines(project: Project, whole: Manifest) -> list[Line]:
    from model_artifacts.cli.answers import answer_in_short  # noqa: PLC0415 - planning needs no terminal

    root = project.paths.root
    return [
        Line(
            name=name,
            network=item.model.network if item.model else "",
            artifacts=len(item.artifacts),
            deployable=sum(entry.status is Status.DEPLOYABLE for entry in item.artifacts),
            answer=answer_in_short(item),
            page=f"{name}/report.html" if (root / name / "report.html").is_file() else "",
        )
        for item in manifests_of(whole)
        for name in model_names(item)[:1]
    ]


def _render(lines: list[Line]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only the report needs it

    loader = PackageLoader("pipeline.stages.report", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("front.html.jinja").render(lines=lines)
