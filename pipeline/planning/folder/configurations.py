"""The file or folder that a command names → the configurations there, one for each model.

Every `*.yaml` of a folder is a configuration, in the order of their names. Other files, hidden ones and folders are
none.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import ConfigError, UsageError
from pipeline.config.loading import load_config, load_configs, placed_error
from pipeline.config.values import in_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model_artifacts.records import Host
    from pipeline.config.files.yaml_source import Location
    from pipeline.config.settings import Config

_ENDING = ".yaml"
_ONE_FARM = ("executor", "farm")
"""The sections that all files of a folder have alike: one run has one farm."""


class Placed(NamedTuple):
    """The configuration of a model, with its file."""

    config: Config
    file: Path

    @property
    def artifacts(self) -> Path:
        """The artifacts folder that it names, relative to its file: `artifacts`, not `configs/../artifacts`."""
        written = self.file.parent / self.config.artifacts
        short = Path(os.path.normpath(written))
        return short if short.resolve() == written.resolve() else written  # `..` of a link is another folder


def read_place(place: Path, host: Host) -> tuple[Placed, ...]:
    """Read and check a configuration, or all of a folder.

    Args:
        place: the YAML file, or a folder of such files.
        host: the machine that `device` and percentages of memory refer to.

    Returns:
        one for each model, in the order of the files, and of the models in each.

    Raises:
        UsageError: a file or the folder cannot be read, or the folder has no configuration.
        ConfigError: the files have problems; the error lists all of them, each with its `file:line:column`.
    """
    if not place.is_dir():
        return tuple(Placed(config, place) for config in load_configs(place, host))
    found: list[Placed] = []
    problems: list[str] = []
    for file in files_in(place):
        configs, wrong = _read_or_refused(file, host)
        found += [Placed(config, file) for config in configs]
        problems += wrong
    problems += _problems(found)
    if problems:
        raise ConfigError(place, problems)
    return tuple(found)


def read_only_one(place: Path, host: Host) -> Placed:
    """Read and check a configuration of one model: a file, or a folder with one such file.

    Raises:
        UsageError: it cannot be read, or has several models.
        ConfigError: it has problems; the error lists all of them, each with its `file:line:column`.
    """
    if not place.is_dir():
        return Placed(load_config(place, host), place)
    first, *others = read_place(place, host)
    if others:
        names = ", ".join(item.config.model.name for item in (first, *others))
        file = shlex.quote(str(first.file))
        fix = f"name the file of one: `--config {file}`, with doit `config={file}`"
        raise UsageError(f"{place} has several models", expected="a configuration of one model", got=names, fix=fix)
    return first


def files_in(folder: Path) -> tuple[Path, ...]:
    """Return the configurations of a folder, sorted by name.

    A link that leads nowhere is one: whoever reads it says so, where its model would leave the manifest without a word.

    Raises:
        UsageError: the folder cannot be read, or has none.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.is_dir())
    except OSError as exc:
        raise UsageError(f"the folder of configurations {folder} cannot be read: {exc.strerror}") from exc
    if found := [name for name in names if name.endswith(_ENDING) and not name.startswith(".")]:
        return tuple(folder / name for name in found)
    other = next((name for name in names if name.endswith(".yml")), None)
    raise UsageError(
        f"the folder {folder} has no configuration",
        expected=f"a file *{_ENDING} for each model, not in a folder below it",
        got=other or "no such file",
        fix=f"rename it to {other.removesuffix('.yml')}{_ENDING}" if other else "write one, or name another place",
    )


def _read_or_refused(file: Path, host: Host) -> tuple[tuple[Config, ...], tuple[str, ...]]:
    """Return the configurations of a file, or its problems."""
    try:
        return load_configs(file, host), ()
    except ConfigError as exc:
        return (), exc.problems


def _problems(found: Sequence[Placed]) -> Iterator[str]:
    """Yield what the files of a folder contradict each other in, each with its position in front."""
    names: dict[str, Path] = {}
    files: dict[Path, Placed] = {}
    for item in found:
        name = item.config.model.name
        if (first := names.setdefault(name, item.file)) != item.file:
            text = f"`model.name`: {in_yaml(name)} is the name of a model of {first}, too; give it another"
            yield from _at(item, ("model", "name"), text)
        files.setdefault(item.file, item)
    for item in [*files.values()][1:]:
        yield from _apart(item, found[0])


def _apart(item: Placed, first: Placed) -> Iterator[str]:
    """Yield the sections of a file that must be as in the first file of its folder."""
    if item.artifacts.resolve() != first.artifacts.resolve():
        wanted, got = in_yaml(first.config.artifacts), in_yaml(item.config.artifacts)
        text = f"the models of a folder share one; expected {wanted}, as in {first.file}, got {got}"
        yield from _at(item, ("artifacts",), f"`artifacts`: {text}")
    for section in _ONE_FARM:
        if getattr(item.config, section) != getattr(first.config, section):
            text = f"`{section}`: the models of a folder have one farm; write it as in {first.file}"
            yield from _at(item, (section,), text)


def _at(item: Placed, place: Location, text: str) -> tuple[str, ...]:
    return placed_error(item.file, item.config.model.name, [(place, text)]).problems
