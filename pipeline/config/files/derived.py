"""A configuration's YAML with other values: what `doit tune` writes, to build a point of its search and its winner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from model_artifacts.errors import ConfigError
from pipeline.config.files.models import sources_of
from pipeline.config.files.yaml_source import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

Plain = dict[str, object]
"""A mapping of YAML."""


def plain_data(file: Path) -> Plain:
    """Return a configuration of one model as plain data, each value as it is written.

    A list `models` with one entry becomes the sections of that model, so that changes of them take effect.

    Raises:
        ConfigError: the file is no mapping in valid YAML, or has several models.
    """
    source = parse_yaml(file, file.read_text(encoding="utf-8"))
    found = sources_of(source)
    data = found.each[0].data if len(found.each) == 1 else None
    if (problems := [*source.problems, *found.problems]) or not isinstance(data, dict):
        raise ConfigError(file, problems or [f"{file}:1:1: expected a mapping with one model"])
    return data


def changed(data: Plain, changes: Mapping[str, object], dropped: Collection[str] = ()) -> Plain:
    """Return the data with other values. Pure.

    Args:
        data: a configuration's data.
        changes: new values, by keys that are joined by dots: `tensorrt.optimization_level`.
        dropped: such keys to leave out.
    """
    found = data
    for place, value in changes.items():
        found = _with(found, place.split("."), value)
    for place in dropped:
        found = _without(found, place.split("."))
    return found


def _with(data: Plain, keys: list[str], value: object) -> Plain:
    first, *rest = keys
    inner = data.get(first)
    return {**data, first: _with(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def _without(data: Plain, keys: list[str]) -> Plain:
    first, *rest = keys
    inner = data.get(first)
    if rest and isinstance(inner, dict):
        return {**data, first: _without(inner, rest)}
    return data if rest else {key: value for key, value in data.items() if key != first}


def yaml_of(data: Plain, comment: str) -> str:
    """Return a configuration's text.

    Args:
        data: its data.
        comment: the lines above it, without their marks.
    """
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    return lines + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
