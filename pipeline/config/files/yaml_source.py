"""YAML text → plain data, with the position of each part in the text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeGuard

import yaml

from model_artifacts.errors import shortened

if TYPE_CHECKING:
    from pathlib import Path

Location = tuple[str | int, ...]
"""The keys and indices that lead to a value: ("profiles", 1, "max")."""


@dataclass(frozen=True)
class YamlSource:
    """A parsed YAML file.

    Attributes:
        file: the path, for positions.
        data: mappings, lists and scalars; None if the file is not valid YAML.
        problems: the errors of the YAML itself, each with its position in front.
        unreadable: the locations at which `data` holds None because of a problem.
    """

    file: Path
    data: object
    problems: tuple[str, ...]
    unreadable: frozenset[Location]
    _marks: dict[Location, yaml.Mark] = field(repr=False)
    _keys: dict[Location, yaml.Mark] = field(repr=False)
    _entry: Location = ()
    _own: frozenset[str] = frozenset()

    def of_entry(self, entry: Location, shared: dict[str, object], own: dict[str, object]) -> YamlSource:
        """Return a part of this file as if it were a file of its own, with the positions that its values have here.

        Args:
            entry: the location of an entry, whose keys stand for keys of the file.
            shared: the file's other keys, with their values.
            own: the entry's keys, with their values.
        """
        depth = len(entry)
        elsewhere = {place for place in self.unreadable if place and place[0] in shared and place[0] not in own}
        here = {place[depth:] for place in self.unreadable if place[:depth] == entry}
        return replace(
            self,
            data={**shared, **own},
            problems=(),
            unreadable=frozenset(elsewhere | here),
            _entry=entry,
            _own=frozenset(own),
        )

    def placed(self, location: Location) -> Location:
        """Return a location of this data as one of the file."""
        return (*self._entry, *location) if location and location[0] in self._own else location

    def is_shared(self, location: Location) -> bool:
        """Return True if a location of an entry is outside it, so that all entries have it."""
        return bool(self._entry) and location[:1] != () and location[0] not in self._own

    def position(self, location: Location) -> str:
        """Return `file:line:column` of the value at `location`, or of its nearest parent in the file."""
        location = self.placed(location)
        while location and location not in self._marks:
            location = location[:-1]
        return _position(self.file, self._marks.get(location))

    def key_position(self, location: Location) -> str:
        """Return `file:line:column` of the last key of `location`, or of its nearest parent's value in the file."""
        mark = self._keys.get(self.placed(location))
        return _position(self.file, mark) if mark else self.position(location)

    def written(self, location: Location) -> Location:
        """Return the part of a location that the data has: text alone may stand for a mapping, a number for a list."""
        value = self.data
        for depth, part in enumerate(location):
            if not isinstance(value, (dict, list)):
                return location[:depth]
            value = value.get(part) if isinstance(value, dict) else value[part] if _is_index(part, value) else None
        return location


def parse_yaml(file: Path, text: str) -> YamlSource:
    """Parse YAML and collect all of its problems, such as duplicate keys and aliases.

    Args:
        file: the path, for positions.
        text: the YAML.
    """
    reader = _Reader(file)
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = reader.read(node, ()) if node else {}
    except yaml.MarkedYAMLError as exc:
        problem = ", ".join(part for part in (exc.context, exc.problem) if part)
        fix = "; indent and separate with spaces, not with a tab" if "'\\t'" in problem else ""
        reader.complain(exc.problem_mark, f"not valid YAML: {problem}{fix}")
        data = None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position)
        column = exc.position - (text.rfind("\n", 0, exc.position) + 1)
        problem = f"not valid YAML: character U+{ord(text[exc.position]):04X} is not allowed"
        reader.problems.append(f"{file}:{line + 1}:{column + 1}: {problem}")
        data = None
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        reader.complain(None, f"not valid YAML: {exc}")
        data = None
    return YamlSource(file, data, tuple(reader.problems), frozenset(reader.unreadable), reader.marks, reader.keys)


def _is_index(part: str | int, items: list[object]) -> TypeGuard[int]:
    return isinstance(part, int) and part < len(items)


_ALIAS = "an alias"


class _Loader(yaml.SafeLoader):
    """A loader that does not resolve aliases, so that each keeps its own position."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if not self.check_event(yaml.AliasEvent):
            return super().compose_node(parent, index)
        event = self.get_event()  # type: ignore[no-untyped-call]
        return yaml.ScalarNode(_ALIAS, event.anchor, event.start_mark, event.end_mark)


# YAML 1.2 reads 1e-5 as a number. PyYAML implements YAML 1.1, which reads it as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


_DECIMAL = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9]\d*)", re.ASCII),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII
    ),
}
"""The tags of numbers → the forms that every version of YAML reads in the same way."""


def _number_problem(node: yaml.Node) -> str | None:
    """Return the reason why a number may be another one than it seems; None if it is decimal.

    YAML 1.1 reads 0500 as octal, 1:30 to the base 60, and 5_00 as 500. YAML 1.2 reads none of them so.
    """
    decimal = _DECIMAL.get(node.tag)
    if decimal is None or decimal.fullmatch(node.value):
        return None
    shown = shortened(node.value, 60)
    digits = node.value.replace("_", "").lstrip("+")
    plain = digits.lstrip("0") or "0"
    number = plain if plain.isdecimal() else "it in decimal digits"
    return (
        f"expected a number in decimal digits, got {shown}, which YAML may read as another number; "
        f"write {number}, or '{shown}' in quotes for text"
    )


class _Reader:
    """Reads the data of YAML nodes, and notes positions and problems."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.marks: dict[Location, yaml.Mark] = {}
        self.keys: dict[Location, yaml.Mark] = {}
        self.problems: list[str] = []
        self.unreadable: set[Location] = set()
        self._scalars = yaml.SafeLoader("")

    def complain(self, mark: yaml.Mark | None, problem: str) -> None:
        """Add a problem with its position."""
        self.problems.append(f"{_position(self.file, mark)}: {problem}")

    def read(self, node: yaml.Node, location: Location) -> object:
        """Return the data of a node, None for an unreadable part."""
        self.marks[location] = node.start_mark
        if node.tag == _ALIAS:
            self.unreadable.add(location)
            self.complain(node.start_mark, "anchors and aliases are not supported; write the value twice")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*location, index)) for index, item in enumerate(node.value)]
        if problem := _number_problem(node):
            self.unreadable.add(location)
            self.complain(node.start_mark, problem)
            return None
        # `2026-13-45` looks like a date and is none. A value that does not fit its tag may raise any of these errors.
        try:
            return self._scalars.construct_object(node)
        except (ValueError, OverflowError) as exc:
            problem = f"cannot read {shortened(repr(node.value), 60)}: {shortened(str(exc), 120)}"
        except (LookupError, AttributeError):
            problem = f"cannot read {shortened(repr(node.value), 60)} as {node.tag.rsplit(':', 1)[-1]}"
        self.unreadable.add(location)
        self.complain(node.start_mark, problem)
        return None

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, object]:
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _ALIAS:
                self.complain(key_node.start_mark, "a key must be a plain word")
                continue
            key = str(key_node.value)
            if key in mapping:
                self.complain(key_node.start_mark, f"duplicate key {key!r}; remove one of them")
                continue
            place = (*location, key)
            self.keys[place] = key_node.start_mark
            mapping[key] = self.read(value_node, place)
        return mapping


def _position(file: Path, mark: yaml.Mark | None) -> str:
    return f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else f"{file}:1:1"
