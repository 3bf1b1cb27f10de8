"""The names of classes that an exporter has written into an ONNX file. Pure."""

from __future__ import annotations

import ast
import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

log = logging.getLogger(__name__)

NAMES = "names"
"""The key of a model's metadata that Ultralytics' and YOLOv5's exporters write: a mapping of numbers, or a list."""
_LONGEST = 2**20
"""Characters of the metadata that are read. Those of 10,000 classes take 0.2 million."""


def class_names(model: onnx.ModelProto, count: int | None, where: str) -> tuple[str, ...] | None:
    """Return the names of the classes in a model's metadata; None without them.

    Names that cannot be read, or are not as many as the classes, are left out, which is said.

    Args:
        model: the model, with its metadata.
        count: the number of classes; None if a decoding of the outputs tells it later.
        where: the file, for messages.
    """
    text = next((item.value for item in model.metadata_props if item.key == NAMES), None)
    if text is None:
        return None
    found = _parsed(text)
    if found is None:
        trouble = "they are no mapping of numbers to texts, and no list of texts"
    elif count is not None and len(found) != count:
        trouble = f"they are {len(found)} for {count} classes"
    elif len(set(found)) < len(found):
        trouble = "two classes have one name"
    else:
        return found
    log.warning(
        "WARNING: the metadata `%s` of %s are left out: %s; write `data.classes` for names", NAMES, where, trouble
    )
    return None


def _parsed(text: str) -> tuple[str, ...] | None:
    """Return the names of a mapping {0: name, …} or of a list, as Python or as JSON; None for anything else."""
    if len(text) > _LONGEST:
        return None
    try:
        data = json.loads(text)
    except ValueError:
        try:
            data = ast.literal_eval(text)  # literals alone: nothing is run
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    except RecursionError:
        return None
    names = _in_order(data) if isinstance(data, dict) else list(data) if isinstance(data, (list, tuple)) else None
    if names is None or not all(isinstance(name, str) and name.strip() for name in names):
        return None
    return tuple(map(str, names))


def _in_order(data: Mapping[object, object]) -> list[object] | None:
    """Return the values of a mapping in the order of its numbers; None if these are not 0, 1, 2 and so on."""
    numbered = {int(str(key)): value for key, value in data.items() if str(key).isascii() and str(key).isdecimal()}
    if sorted(numbered) != list(range(len(data))):
        return None
    return [numbered[number] for number in range(len(data))]
