"""Arguments of the model's factory in `pipeline.yaml` → problems, each with its place. Pure.

The factory's own signature is checked by the stage `source`, which imports it.
"""

from __future__ import annotations

import keyword
import math
from typing import TYPE_CHECKING

from pipeline.config.values import in_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pipeline.config.files.yaml_source import Location

PLACE: Location = ("model", "arguments")
"""The place of the arguments in the configuration."""

_SECRETS = frozenset({"token", "use_auth_token", "auth_token", "api_key", "password", "secret"})
"""Names of parameters that take a secret. Arguments stand in records and in the manifest."""
_TORCHVISION = frozenset({"weights", "pretrained", "progress"})
"""Parameters of torchvision's factories that `model.weights` sets."""


def argument_problems(factory: str, arguments: Mapping[str, object]) -> Iterator[tuple[Location, str]]:
    """Yield the reasons why arguments cannot be passed to a factory or written to a record.

    Args:
        factory: `package.module:function`.
        arguments: the arguments by their names.
    """
    for name, value in arguments.items():
        place = (*PLACE, name)
        if not name.isidentifier() or keyword.iskeyword(name):
            yield place, f"`model.arguments`: expected the name of a parameter, got {in_yaml(name)}"
        elif name in _SECRETS and isinstance(value, str):
            refusal = "would be written to records and to the manifest"
            yield place, f"`model.arguments.{name}` {refusal}; remove it, and log in with `hf auth login` or HF_TOKEN"
        elif factory.startswith("torchvision.") and name in _TORCHVISION:
            yield place, f"`model.arguments.{name}`: `model.weights` chooses torchvision's weights; remove it"
        else:
            yield from _value_problems(place, value)


def _value_problems(place: Location, value: object) -> Iterator[tuple[Location, str]]:
    """Yield the parts of a value that JSON does not hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _value_problems((*place, key), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _value_problems((*place, index), item)
    elif isinstance(value, str):
        if any("\ud800" <= sign <= "\udfff" for sign in value):
            yield place, f"`{_name(place)}`: expected text of whole characters, got {value!a}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, f"`{_name(place)}`: expected a finite number, got {in_yaml(value)}"
    elif value is not None and not isinstance(value, (int, float)):
        quotes = f"; write '{value}' in quotes for text" if not isinstance(value, (bytes, set)) else ""
        yield place, f"`{_name(place)}`: expected text, a number, true, false or null, got {in_yaml(value)}{quotes}"


def _name(place: Location) -> str:
    """Return a place as text: `model.arguments.sizes[1]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")
