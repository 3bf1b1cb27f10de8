"""pydantic's errors of a configuration → messages in YAML's words, each with its position in the file. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ValidationError

from model_artifacts.errors import closest, listed, shortened
from pipeline.config.arguments import PLACE
from pipeline.config.files.models import MODELS
from pipeline.config.settings import Config
from pipeline.config.values import KEY_PROBLEM, UNKNOWN_KEY, VALUE_PROBLEM, in_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic_core import ErrorDetails

    from pipeline.config.files.yaml_source import Location, YamlSource

_AT_KEYS = ("extra_forbidden", UNKNOWN_KEY, KEY_PROBLEM)
"""Types of errors whose position is that of a key, and not of its value."""


def problems_of(source: YamlSource, error: ValidationError) -> list[str]:
    """Return the message of each of pydantic's errors, with its position.

    Args:
        source: the configuration of one model.
        error: what is wrong with its data.
    """
    problems = []
    for location, detail in _details(error):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # only its items are wrong, and they have messages of their own
        if location in source.unreadable or (location[:2] == PLACE and len(location) > len(PLACE)):
            continue  # the YAML reader or `argument_problems` has reported it
        at_key = detail["type"] in _AT_KEYS
        place = source.key_position(location) if at_key else source.position(location)
        name = shortened(shown_location(source.placed(source.written(location))), 120)
        problems.append(f"{place}: {_explain(detail, location, name)}")
    return problems


def _details(error: ValidationError, place: Location = ()) -> Iterator[tuple[Location, ErrorDetails]]:
    """Yield each error with its location; of a value with wrong parts (`parts_error`) those of the parts."""
    for detail in error.errors(include_url=False):
        location = (*place, *detail["loc"])
        inner = detail.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from _details(inner, location)
        else:
            yield location, detail


@dataclass(frozen=True)
class Together:
    """Problems of several values together, in the configuration of one model."""

    source: YamlSource
    model: str
    problems: tuple[tuple[Location, str], ...]
    """Places with texts."""


def together_problems(found: Sequence[Together], models: int) -> list[str]:
    """Return these problems with their positions. A shared setting that is wrong for some of the models names them.

    Args:
        found: the problems of each model.
        models: how many models the file has.
    """
    owners: dict[tuple[str, bool], list[str]] = {}
    for item in found:
        for place, text in item.problems:
            problem = f"{item.source.position(place)}: {text}"
            owners.setdefault((problem, item.source.is_shared(place)), []).append(item.model)
    return [
        f"{problem} (for the model {listed(names)})" if is_shared and len(names) < models else problem
        for (problem, is_shared), names in owners.items()
    ]


def shown_location(location: Location) -> str:
    """Return a location as text: `profiles[1].max`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".") if location else "the file"


_EXPECTED = {
    "model_type": "a mapping",
    "tuple_type": "a list",
    "too_short": "at least one entry",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:.10g}",
    "less_than_equal": "at most {le:.10g}",
}
"""pydantic's types of errors → the expected value in YAML's words."""


def _explain(detail: ErrorDetails, location: Location, name: str) -> str:
    """Return the message of one of pydantic's errors, without its position."""
    got = in_yaml(detail["input"])
    if detail["type"] in {"extra_forbidden", UNKNOWN_KEY}:
        own = detail["type"] == UNKNOWN_KEY
        known = str(detail["ctx"]["error"]).split(", ") if own else _known_keys(location[:-1])
        close = closest(str(location[-1]), known)
        hint = f"did you mean {close!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {shortened(repr(name), 120)}; {hint}"
    if detail["type"] == "missing":
        return f"missing key {name!r}"
    if detail["type"] in {VALUE_PROBLEM, KEY_PROBLEM}:
        return f"{name}: {detail['ctx']['error']}"
    if detail["type"] == "enum":
        close = closest(str(detail["input"]), re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
        hint = f"; did you mean {close!r}?" if close else ""
        return f"{name}: expected {detail['ctx']['expected']}, got {got}{hint}"
    if detail["type"] in _EXPECTED:
        return f"{name}: expected {_EXPECTED[detail['type']].format(**detail.get('ctx', {}))}, got {got}"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{name}: {message}, got {got}"


def _known_keys(location: Location) -> list[str]:
    """Return the known keys of the mapping at `location`."""
    model: type[BaseModel] = Config
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [
            annotation,
            *get_args(annotation),
            *(inner for arg in get_args(annotation) for inner in get_args(arg)),
        ]
        model = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return [*model.model_fields, *(() if location else (MODELS,))]
