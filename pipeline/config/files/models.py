"""`models` in `pipeline.yaml` → the configuration of each model, as if it were the only one. Pure.

An entry has a model's own sections. All others stand beside `models` and are shared. A section of an entry replaces the
shared one as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_artifacts.errors import closest, shortened
from pipeline.config.settings import Config
from pipeline.config.values import in_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config.files.yaml_source import Location, YamlSource

MODELS = "models"
"""The key of the list of models, in place of `model`."""
OWN = ("model", "preprocessing", "data", "gates", "rewrites", "quantization", "leave_unquantized", "release")
"""The sections that an entry may have."""


@dataclass(frozen=True)
class Sources:
    """The configurations of a file."""

    each: tuple[YamlSource, ...]
    """One for each model, with the positions of its values in the file."""
    problems: tuple[str, ...] = ()
    """What is wrong with the list itself, each with its position in front."""


def sources_of(source: YamlSource) -> Sources:
    """Return the configuration of each model of a file; the file itself if it has no `models`.

    Args:
        source: the parsed file.
    """
    if not isinstance(source.data, dict) or MODELS not in source.data:
        return Sources((source,))
    entries = source.data[MODELS]
    problems = [f"{place}: {text}" for place, text in _problems(source, entries)]
    shared = {key: value for key, value in source.data.items() if key not in {MODELS, "model"}}
    each = tuple(
        source.of_entry((MODELS, index), shared, {key: value for key, value in entry.items() if key in OWN})
        for index, entry in enumerate(entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    )
    return Sources(each, tuple(problems))


def source_of(source: YamlSource, model: str) -> YamlSource:
    """Return the configuration of one model of a file; the file itself if it has no model of this name."""
    named = (item for item in sources_of(source).each if isinstance(item.data, dict) and _name(item.data) == model)
    return next(named, source)


def _problems(source: YamlSource, entries: object) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the list, as pairs of position and text."""
    if isinstance(source.data, dict) and "model" in source.data:
        yield source.key_position(("model",)), "`model` stands beside `models`; make it an entry of `models`"
    if (MODELS,) in source.unreadable:
        return
    if not isinstance(entries, list) or not entries:
        expected = "a list with an entry for each model, such as [{model: {name: detector, onnx: detector.onnx}}]"
        yield source.position((MODELS,)), f"models: expected {expected}, got {in_yaml(entries)}"
        return
    yield from _useless_sections(source, entries)
    first: dict[str, int] = {}
    for index, entry in enumerate(entries):
        place: Location = (MODELS, index)
        if place in source.unreadable:
            continue
        if not isinstance(entry, dict):
            yield source.position(place), f"models[{index}]: expected a mapping with `model`, got {in_yaml(entry)}"
            continue
        yield from _strange_keys(source, place, entry)
        name = _name(entry)
        if name is None:
            yield source.position((*place, "model")), f"missing key 'models[{index}].model.name', the model's folder"
        elif first.setdefault(name, index) != index:
            other = f"models[{first[name]}]"
            text = f"models[{index}].model.name: {shortened(name, 60)} is the name of {other}, too; give it another"
            yield source.position((*place, "model", "name")), text


def _useless_sections(source: YamlSource, entries: list[object]) -> Iterator[tuple[str, str]]:
    """Yield the shared sections that no model can take, as pairs of position and text."""
    shared = source.data if isinstance(source.data, dict) else {}
    for key in OWN[1:]:
        if key not in shared:
            continue
        if all(isinstance(entry, dict) and key in entry for entry in entries):
            yield source.key_position((key,)), f"`{key}` has no effect: every entry of `models` has its own; remove it"
        elif key == "release" and len(entries) > 1:
            text = "`release` is the released build of one model; write it into the entry of that model"
            yield source.key_position((key,)), text


def _strange_keys(source: YamlSource, place: Location, entry: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the keys of an entry that are no sections of one model, as pairs of position and text."""
    for key in entry:
        if key in OWN:
            continue
        name = shortened(repr(f"models[{place[1]}].{key}"), 120)
        if key in Config.model_fields:
            text = f"key {name} is shared by all models; write it beside `models`"
        else:
            close = closest(key, OWN)
            text = f"unknown key {name}; " + (f"did you mean {close!r}?" if close else f"known keys: {', '.join(OWN)}")
        yield source.key_position((*place, key)), text


def _name(data: dict[str, object]) -> str | None:
    """Return the name of a configuration's model as it is written; None without one."""
    model = data.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return None if name is None else str(name)
