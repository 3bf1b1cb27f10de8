"""Names of classes and of folders → the number of each folder's class; a folder that is none is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

IMAGENET_CLASSES = 1000
_WORDNET_ID = re.compile(r"n\d{8}")
_WITH_ID = re.compile(r"(n\d{8})[\s,]+(\S.*)")
"""A line of ImageNet's LOC_synset_mapping.txt: `n01440764 tench, Tinca tinca`."""
_SPLIT = re.compile(
    r"(train|training|trainval|val|valid|validation|dev|test|testing|eval|holdout)[_-]?\d*", re.IGNORECASE
)
"""Names of the parts of a dataset."""
_SHOWN = 5


@dataclass(frozen=True)
class Classes:
    """The classes of a network in the order of its logits.

    Attributes:
        names: the name of each class; None if unknown.
        numbers: the numbers of the classes that a folder's name may mean, by the name.
        listed: True if pipeline.yaml lists the classes, so that every folder must be one of them.
    """

    names: tuple[str, ...] | None
    numbers: Mapping[str, tuple[int, ...]]
    listed: bool = False


def classes_of(setting: Sequence[str] | str | None, known: Sequence[str] | None, count: int | None) -> Classes:
    """Return the classes of a network.

    Args:
        setting: `data.classes` of pipeline.yaml: the names, or the path of a file with them.
        known: the names that come with the weights.
        count: the number of the network's logits; None if unknown, as behind a function of the user's own.

    Raises:
        DataError: the file cannot be read, or the number of names is not that of the logits.
    """
    if setting is None:
        numbers = _numbers((name, index) for index, name in enumerate(known or ()))
        return Classes(tuple(known) if known else None, numbers)
    entries = _read(Path(setting)) if isinstance(setting, str) else [(name,) for name in setting]
    if count is not None and len(entries) != count:
        raise DataError(
            "`data.classes` in pipeline.yaml does not name the network's classes",
            where=setting if isinstance(setting, str) else "",
            expected=f"{count} names, one for each logit in their order",
            got=f"{len(entries)} names: {_some([entry[0] for entry in entries])}",
        )
    counted = Counter(entry[0] for entry in entries)
    names = tuple(entry[0] if counted[entry[0]] == 1 else f"{entry[0]} ({entry[-1]})" for entry in entries)
    if len(set(names)) < len(names):
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise DataError(
            "`data.classes` in pipeline.yaml names a class twice",
            where=setting if isinstance(setting, str) else "",
            got=repr(twice),
            fix="give each class a name of its own",
        )
    numbers = _numbers((name, index) for index, entry in enumerate(entries) for name in {*entry, names[index]})
    return Classes(names, numbers, listed=True)


def _numbers(pairs: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, number in pairs:
        found[name] = (*found.get(name, ()), number)
    return found


def _read(file: Path) -> list[tuple[str, ...]]:
    """Return a file's classes in order: the name of each, then its other names, at last its WordNet id if it has one.

    A text has a name on each line, or a WordNet id and names. JSON has a list of names, or a mapping between names and
    numbers in either direction, such as `class_to_idx` of torchvision or `imagenet_class_index.json` of Keras.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() != ".json":
            return [_entry(line.strip()) for line in text.rstrip().splitlines()]
        return _of_json(json.loads(text))
    except (OSError, ValueError) as exc:  # ValueError: no UTF-8, no JSON, or no classes
        raise DataError(
            "the file of `data.classes` cannot be read",
            where=str(file),
            expected="text with a name on each line, or JSON with a list of names or a mapping of names to numbers",
            got=str(exc),
        ) from exc


def _entry(line: str) -> tuple[str, ...]:
    found = _WITH_ID.fullmatch(line)
    if not found:
        return (line,)
    names = [name.strip() for name in found[2].split(",")]
    return (*names, found[1])


def _of_json(data: object) -> list[tuple[str, ...]]:
    """Return the classes of a list or a mapping.

    Raises:
        ValueError: the data are neither, or the numbers are not 0, 1, 2 and so on.
    """
    if isinstance(data, dict):
        pairs = [(value, key) if isinstance(value, int) else (int(key), value) for key, value in data.items()]
        pairs.sort(key=lambda pair: pair[0])
        if [number for number, _ in pairs] != list(range(len(pairs))):
            raise ValueError("the numbers are not 0, 1, 2 and so on")
        data = [entry for _, entry in pairs]
    if not isinstance(data, list):
        raise ValueError(f"a {type(data).__name__}")  # noqa: TRY004 - the caller reports all faults of the file alike
    entries = [tuple(entry[::-1]) if isinstance(entry, list) else (entry,) for entry in data]
    if not all(isinstance(name, str) and name for entry in entries for name in entry):
        raise ValueError("a name that is no text")
    return entries


@dataclass(frozen=True)
class Numbering:
    """The class of each folder.

    Attributes:
        numbers: the number of the class by the folder's name.
        remark: the rule behind the numbers, if the folders' names do not say it; empty otherwise.
        doubt: the reason why the training may have numbered the folders otherwise; empty if it hardly did.
    """

    numbers: Mapping[str, int]
    remark: str = ""
    doubt: str = ""


def number_folders(folder: Path, names: Sequence[str], classes: Classes, count: int) -> Numbering:
    """Return the class of each folder.

    Folders are classes by their name, by their WordNet id, or by their number. Otherwise they are numbered in sorted
    order, as by torchvision's `ImageFolder`, if there are as many as the network has classes.

    Args:
        folder: the folder around them, for messages.
        names: the folders' names.
        classes: the network's classes.
        count: the number of the network's logits.

    Raises:
        DataError: a name means no class or several ones, or the folders are the parts of a dataset.
    """
    numbers = dict(classes.numbers)
    if count == IMAGENET_CLASSES and not classes.listed and any(map(_WORDNET_ID.fullmatch, names)):
        numbers |= {wordnet_id: (index,) for index, wordnet_id in enumerate(wordnet_ids())}
    known = [name for name in names if name in numbers]
    if len(known) == len(names) or classes.listed:
        _require_known(folder, names, numbers, classes)
        return Numbering({name: numbers[name][0] for name in names})
    refuse_parts(folder, names, count)
    if known:
        _require_known(folder, names, numbers, classes)
    if all(name.isascii() and name.isdecimal() for name in names):
        return _by_number(folder, names, count)
    if len(names) != count:
        raise _other_classes(folder, names, count)
    ordered = sorted(names)
    remark = f"the folders are classes in sorted order: {_some([f'{name} is {i}' for i, name in enumerate(ordered)])}"
    return Numbering({name: index for index, name in enumerate(ordered)}, remark)


def _require_known(
    folder: Path, names: Sequence[str], numbers: Mapping[str, tuple[int, ...]], classes: Classes
) -> None:
    """Raise an error if a folder is none of the classes, or may be several."""
    unknown = [name for name in names if name not in numbers]
    if unknown:
        listed = "`data.classes` in pipeline.yaml" if classes.listed else "the network's classes"
        raise DataError(
            f"{len(unknown)} of {len(names)} image folders are not among {listed}",
            where=str(folder),
            expected=f"names such as {_some(list(numbers))}",
            got=_some(unknown),
            fix="rename or remove these folders, or list the classes in the order of the logits: `data.classes`",
        )
    for name in names:
        if len(numbers[name]) > 1:
            meant = numbers[name]
            ids = [wordnet_ids()[number] for number in meant] if len(classes.names or ()) == IMAGENET_CLASSES else []
            advice = f"name the folder by its WordNet id, {' or '.join(ids)}, or" if ids else "Rename it, and"
            raise DataError(
                f"the image folder {name!r} may be any of {len(meant)} classes",
                where=str(folder / name),
                got=f"classes {' and '.join(map(str, meant))} have this name",
                fix=f"{advice} list names that differ in `data.classes` of pipeline.yaml",
            )


def _by_number(folder: Path, names: Sequence[str], count: int) -> Numbering:
    """Return the classes of folders that have numbers as names: these numbers, or their order if they begin at 1."""
    values = {name: int(name) for name in names}
    ordered = sorted(names, key=lambda name: values[name])
    if len(set(values.values())) == len(names):
        doubt = ""
        if ordered != sorted(names):
            doubt = (
                "the folders' names are taken as numbers (2 before 10). torchvision's ImageFolder sorts them as text "
                "(10 before 2): for a network that was trained so, list the folders in its order in `data.classes`"
            )
        if max(values.values()) < count:
            return Numbering(values, doubt=doubt)
        if len(names) == count:
            ends = f"{ordered[0]} is 0, {ordered[-1]} is {count - 1}"
            remark = f"the folders are classes in the order of their numbers: {ends}"
            return Numbering({name: index for index, name in enumerate(ordered)}, remark, doubt)
    raise _other_classes(folder, ordered, count)


def refuse_parts(folder: Path, names: Sequence[str], count: int) -> None:
    """Raise an error if the folders are the parts of a dataset, such as train and val, instead of classes.

    Args:
        folder: the folder around them.
        names: the folders' names.
        count: the number of classes.

    Raises:
        DataError: they have the names of parts, or each holds the same folders, one for each class.
    """
    inner = {name: _subfolders(folder / name) for name in names}
    parts = [name for name in names if _SPLIT.fullmatch(name)]
    nested = [name for name in parts if inner[name]]
    alike = count > 1 and all(found == inner[names[0]] and len(found) == count for found in inner.values())
    if not names or not (nested or alike or len(parts) == len(names)):
        return
    shown = nested or list(names)
    best = next((name for name in nested if name.lower().startswith(("val", "test", "eval"))), (nested or shown)[0])
    holds = f", each with folders such as {_some(inner[best])}" if inner[best] else ""
    fix = f"set `data.images` in pipeline.yaml to {folder / best}" if inner[best] else "make a folder for each class"
    raise DataError(
        "the image folder holds the parts of a dataset, and their names are no classes",
        where=str(folder),
        expected="a folder with one folder of images for each class",
        got=f"{_some(shown)}{holds}",
        fix=f"{fix}; if these are the classes, list them in `data.classes`",
    )


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def _other_classes(folder: Path, names: Sequence[str], count: int) -> DataError:
    return DataError(
        "the image folder's classes are not the model's",
        where=str(folder),
        expected=f"{count} folders, or folders named like the model's classes",
        got=f"{len(names)} folders: {_some(names)}",
        fix="for images of some classes, list all classes in the order of the logits: `data.classes` in pipeline.yaml",
    )


def wordnet_ids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's 1,000 classes, in the order of the logits (ILSVRC 2012).

    Source: the sorted synset ids of ILSVRC 2012, as in timm's `imagenet_synsets.txt`.
    """
    return tuple(Path(__file__).with_name("imagenet_wordnet_ids.txt").read_text(encoding="ascii").split())


def _some(names: Sequence[str]) -> str:
    """Return the first names as text."""
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
