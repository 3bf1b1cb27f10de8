"""Folders become classes by name, WordNet id, number or order, or are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import DataError
from pipeline.stages.common.classes import Classes, Numbering, classes_of, number_folders, wordnet_ids

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN = classes_of(None, None, 3)


def folders(root: Path, *names: str) -> list[str]:
    """Make folders, and return the names of the outer ones."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
    return sorted({name.partition("/")[0] for name in names})


def numbers(root: Path, names: list[str], classes: Classes, count: int) -> dict[str, int]:
    """Return the class of each folder."""
    return dict(numbered(root, names, classes, count).numbers)


def numbered(root: Path, names: list[str], classes: Classes, count: int) -> Numbering:
    """Make the folders, and number them."""
    return number_folders(root, folders(root, *names), classes, count)


# Listed classes.


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "dog\nemu\ncat\n", ("dog", "emu", "cat")),
        ("a.txt", "\ufeffdog\r\nemu\r\ncat\r\n\r\n", ("dog", "emu", "cat")),
        ("a.json", json.dumps(["dog", "emu", "cat"]), ("dog", "emu", "cat")),
        ("a.json", json.dumps({"cat": 2, "dog": 0, "emu": 1}), ("dog", "emu", "cat")),
        ("a.json", json.dumps({"2": "cat", "0": "dog", "1": "emu"}), ("dog", "emu", "cat")),
        ("a.json", json.dumps({str(i): [f"n0000000{i}", n] for i, n in enumerate(["dog", "emu", "cat"])}), None),
        ("a.txt", "n00000000 dog, domestic dog\nn00000001 emu\nn00000002 cat\n", None),
    ],
)
def test_files_of_classes(tmp_path: Path, name: str, text: str, expected: tuple[str, ...] | None) -> None:
    """Lines, lists, and mappings in both directions give the same classes, with WordNet ids where the file has them."""
    (tmp_path / name).write_bytes(text.encode())
    classes = classes_of(str(tmp_path / name), None, 3)
    assert classes.names == ("dog", "emu", "cat")
    assert numbers(tmp_path, ["cat", "dog"], classes, 3) == {"cat": 2, "dog": 0}
    if expected is None:
        assert numbers(tmp_path, ["n00000002", "emu"], classes, 3) == {"n00000002": 2, "emu": 1}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("gone.txt", None, "No such file"),
        ("a.json", "{", "Expecting property name"),
        ("a.json", "3", "a int"),
        ("a.json", '{"cat": 1, "dog": 2, "emu": 3}', "the numbers are not 0, 1, 2"),
        ("a.json", '["cat", 3, "dog"]', "a name that is no text"),
    ],
)
def test_files_that_name_no_classes(tmp_path: Path, name: str, text: str | None, reason: str) -> None:
    """A file that is missing or has another form is named, with the forms that it may have."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"(?s){name}.*a name on each line.*{reason}"):
        classes_of(str(tmp_path / name), None, 3)


def test_classes_are_as_many_as_the_logits() -> None:
    """Two names for three logits are refused with both numbers."""
    with pytest.raises(DataError, match=r"(?s)expected: 3 names.*got: +2 names: cat, dog"):
        classes_of(["cat", "dog"], None, 3)


def test_listed_classes_decide_the_order(tmp_path: Path) -> None:
    """The list, not the alphabet and not the weights, gives a folder its number."""
    classes = classes_of(["10", "2", "1"], ("1", "2", "10"), 3)
    assert classes.names == ("10", "2", "1")
    assert numbers(tmp_path, ["1", "10"], classes, 3) == {"1": 2, "10": 0}


def test_listed_classes_bind(tmp_path: Path) -> None:
    """A folder that the list lacks is refused, although there are as many folders as classes."""
    with pytest.raises(DataError, match=r"(?s)1 of 3 image folders are not among `data.classes`.*got: +dogg"):
        numbered(tmp_path, ["cat", "dogg", "emu"], classes_of(["cat", "dog", "emu"], None, 3), 3)


# Names of the weights.


def test_some_of_the_classes_by_name_and_by_wordnet_id(tmp_path: Path) -> None:
    """Folders of a few of ImageNet's classes take these classes' numbers; names and ids may stand side by side."""
    names = [f"class {index}" for index in range(1000)]
    ids = wordnet_ids()
    found = numbers(tmp_path, ["class 7", ids[517], ids[0]], classes_of(None, names, 1000), 1000)
    assert found == {"class 7": 7, ids[517]: 517, ids[0]: 0}
    assert numbers(tmp_path, [ids[999], ids[1]], classes_of(None, None, 1000), 1000) == {ids[999]: 999, ids[1]: 1}


def test_wordnet_ids_are_imagenets() -> None:
    """There are 1,000 ids in sorted order, with the tench first and the two cranes in their places."""
    ids = wordnet_ids()
    assert len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert (ids[0], ids[134], ids[517], ids[999]) == ("n01440764", "n02012849", "n03126707", "n15075141")


def test_name_of_two_classes_is_refused(tmp_path: Path) -> None:
    """A folder whose name two of ImageNet's classes have is refused with both WordNet ids, which tell them apart."""
    names = [f"class {index}" for index in range(1000)]
    names[134] = names[517] = "crane"
    classes = classes_of(None, names, 1000)
    with pytest.raises(DataError, match=r"(?s)'crane' may be any of 2.*134 and 517.*n02012849 or n03126707"):
        numbered(tmp_path, ["class 3", "crane"], classes, 1000)
    assert numbers(tmp_path, ["n03126707"], classes, 1000) == {"n03126707": 517}


def test_listed_names_that_are_the_same_get_their_id(tmp_path: Path) -> None:
    """Two classes of one name in a file with ids are told apart in answers; without ids they are refused."""
    file = tmp_path / "a.txt"
    file.write_text("n00000000 crane\nn00000001 crane\n")
    assert classes_of(str(file), None, 2).names == ("crane (n00000000)", "crane (n00000001)")
    file.write_text("crane\ncrane\n")
    with pytest.raises(DataError, match=r"(?s)names a class twice.*crane"):
        classes_of(str(file), None, 2)


def test_one_misspelt_name_is_not_taken_for_an_order(tmp_path: Path) -> None:
    """Where most folders are the network's classes by name, one that is not is refused instead of sorted."""
    classes = classes_of(None, ("dog", "emu", "cat"), 3)
    with pytest.raises(DataError, match=r"(?s)1 of 3 image folders.*got: +dogg"):
        numbered(tmp_path, ["cat", "dogg", "emu"], classes, 3)


# Numbers.


def test_numbers_sort_as_numbers_and_it_is_said(tmp_path: Path) -> None:
    """Folder 10 is class 10, not class 2, and a warning says how a training by ImageFolder differs."""
    names = sorted(map(str, range(12)))
    found = numbered(tmp_path, names, UNKNOWN, 12)
    assert found.numbers == {str(index): index for index in range(12)}
    assert "2 before 10" in found.doubt
    assert "data.classes" in found.doubt


def test_a_thousand_numbers_sort_as_numbers(tmp_path: Path) -> None:
    """Folders 0 to 999 are the classes of these numbers."""
    found = numbered(tmp_path, list(map(str, range(1000))), UNKNOWN, 1000)
    assert found.numbers == {str(index): index for index in range(1000)}
    assert "10 before 2" in found.doubt


def test_listed_numbers_are_not_doubted(tmp_path: Path) -> None:
    """With `data.classes` the list decides, and nothing has to be said."""
    names = sorted(map(str, range(12)))
    found = numbered(tmp_path, names, classes_of(names, None, 12), 12)
    assert found.numbers == {name: index for index, name in enumerate(names)}
    assert (found.remark, found.doubt) == ("", "")


def test_numbers_of_some_classes(tmp_path: Path) -> None:
    """Zero-padded numbers of a few classes are these classes, without a remark, for both orders agree."""
    found = numbered(tmp_path, ["00002", "00040"], UNKNOWN, 43)
    assert (dict(found.numbers), found.remark, found.doubt) == ({"00002": 2, "00040": 40}, "", "")


def test_numbers_from_1(tmp_path: Path) -> None:
    """As many numbers as classes that begin at 1 are classes in their order, and it is said."""
    found = numbered(tmp_path, ["1", "2", "3"], UNKNOWN, 3)
    assert found.numbers == {"1": 0, "2": 1, "3": 2}
    assert "1 is 0, 3 is 2" in found.remark
    assert not found.doubt


@pytest.mark.parametrize("names", [["1", "7"], ["1", "01", "2"]])
def test_numbers_that_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    """A number beyond the classes, or the same number twice, is refused."""
    with pytest.raises(DataError, match=r"(?s)not the model's.*expected: 3 folders.*data\.classes"):
        numbered(tmp_path, names, UNKNOWN, 3)


def test_sorted_order_is_said(tmp_path: Path) -> None:
    """Folders with other names are classes in sorted order, which the remark spells out."""
    found = numbered(tmp_path, ["dog", "cat", "emu"], UNKNOWN, 3)
    assert found.numbers == {"cat": 0, "dog": 1, "emu": 2}
    assert "cat is 0, dog is 1, emu is 2" in found.remark
    assert not found.doubt


# Parts of a dataset.


@pytest.mark.parametrize(
    ("made", "best"),
    [
        (("train/cat", "train/dog", "val/cat", "val/dog"), "val"),
        (("Training/cat", "Training/dog", "Test/cat", "Test/dog"), "Test"),
        (("train2017/cat", "val2017/cat"), "val2017"),
        (("train/cat", "train/dog", "masks"), "train"),
        (("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"), "fold1"),
        (("images/cat", "images/dog"), "images"),
    ],
)
def test_root_of_a_dataset_is_refused(tmp_path: Path, made: tuple[str, ...], best: str) -> None:
    """Folders of folders of classes are no classes, and the message names the folder to take."""
    with pytest.raises(DataError, match=rf"(?s)parts of a dataset.*set `data.images` in pipeline.yaml to \S*/{best}"):
        numbered(tmp_path, [*made], UNKNOWN, 2)


def test_parts_with_images_are_no_classes(tmp_path: Path) -> None:
    """train/ and val/ that hold the images themselves have no classes at all."""
    with pytest.raises(DataError, match=r"(?s)got: +train, val\n.*make a folder for each class"):
        numbered(tmp_path, ["train", "val"], UNKNOWN, 2)


def test_parts_that_are_classes_can_be_listed(tmp_path: Path) -> None:
    """A network that tells trains from buses keeps its class `train`."""
    names = folders(tmp_path, "train/a", "bus/a")
    assert numbers(tmp_path, names, classes_of(["train", "bus"], None, 2), 2) == {"train": 0, "bus": 1}
    assert numbers(tmp_path, names, classes_of(None, ("bus", "train"), 2), 2) == {"train": 1, "bus": 0}


def test_classes_with_folders_inside(tmp_path: Path) -> None:
    """Classes may hold folders of their own."""
    names = folders(tmp_path, "cat/2019", "cat/2020", "dog/2020", "emu")
    assert numbers(tmp_path, names, UNKNOWN, 3) == {"cat": 0, "dog": 1, "emu": 2}
