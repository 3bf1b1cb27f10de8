"""Records on disk: written, read back, and refused with a fix."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_artifacts.errors import NewerRecordError, RecordError
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import FileRecord, Key, KeyField, StageRecord, Tool
from tests.support.records import with_digest

if TYPE_CHECKING:
    from pathlib import Path


def _stage_record() -> StageRecord:
    return StageRecord(key=Key(fields=()), built_at=datetime(2026, 1, 1, tzinfo=timezone.utc))


def test_record_is_read_back(tmp_path: Path) -> None:
    """A record that is written and read back is equal."""
    write_record(tmp_path / "r.json", _stage_record())
    assert read_record(tmp_path / "r.json", StageRecord) == _stage_record()


def test_record_on_disk_is_its_canonical_json(tmp_path: Path) -> None:
    """The file is UTF-8 text that ends in a newline."""
    write_record(tmp_path / "r.json", Tool(name="ü", version="1"))
    assert (tmp_path / "r.json").read_bytes() == '{\n  "name": "ü",\n  "version": "1"\n}\n'.encode()


def test_stage_record_on_disk_begins_with_its_digest(tmp_path: Path) -> None:
    """`sha256sum` of the file without that line gives the digest."""
    write_record(tmp_path / "r.json", _stage_record())
    first, second, *others = (tmp_path / "r.json").read_bytes().splitlines(keepends=True)
    digest = hashlib.sha256(first + b"".join(others)).hexdigest()
    assert second.decode() == f'  "digest": "{digest}",\n'


def test_any_other_digit_in_a_stage_record_is_an_edit(tmp_path: Path) -> None:
    """Each digit counts: those of values, of the time, of the digest, and the tenth decimal of a number."""
    path = tmp_path / "r.json"
    key = Key(fields=(KeyField(name="bound", value="0.30000000000000004"),))
    write_record(path, _stage_record().model_copy(update={"key": key}))
    sound = path.read_text()
    places = [index for index, letter in enumerate(sound) if letter.isdigit()]
    assert len(places) > 60
    for index in places:
        path.write_text(f"{sound[:index]}{(int(sound[index]) + 1) % 10}{sound[index + 1 :]}")
        with pytest.raises(RecordError, match=r"it was changed after it was written"):
            read_record(path, StageRecord)


def test_edited_record_is_told_both_digests_and_the_fix(tmp_path: Path) -> None:
    """The message has the digest that was written, the one of the file, and the remedy."""
    path = tmp_path / "r.json"
    write_record(path, _stage_record())
    path.write_text(path.read_text().replace("2026", "2027"))
    with pytest.raises(RecordError) as caught:
        read_record(path, StageRecord, fix="run `make r`")
    first, expected, got, fix = str(caught.value).splitlines()
    assert first == f"{path} is not a valid StageRecord: it was changed after it was written"
    assert expected.startswith("  expected: SHA-256 ")
    assert got.startswith("  got:      SHA-256 ")
    assert expected.split()[-1] != got.split()[-1]
    assert fix == "  fix:      run `make r`"


def test_stage_record_without_a_digest_is_refused(tmp_path: Path) -> None:
    """Removing the line of the digest does not make an edit pass."""
    path = tmp_path / "r.json"
    path.write_text(_stage_record().to_json())
    with pytest.raises(RecordError, match=r"is not a valid StageRecord: it lacks the digest of itself"):
        read_record(path, StageRecord)


def test_edited_schema_version_is_an_edit(tmp_path: Path) -> None:
    """A version that was edited is no newer version: the step runs again, and may replace the record."""
    path = tmp_path / "r.json"
    write_record(path, _stage_record())
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(RecordError, match=r"it was changed after it was written"):
        read_record(path, StageRecord)
    write_record(path, _stage_record())
    assert read_record(path, StageRecord) == _stage_record()


def test_missing_record_is_told_the_fix(tmp_path: Path) -> None:
    """A record that is not there is named, with the command that makes it."""
    with pytest.raises(RecordError) as caught:
        read_record(tmp_path / "r.json", Tool, fix="run `make r`")
    assert str(caught.value) == f"{tmp_path / 'r.json'} is missing\n  fix:      run `make r`"


def test_record_that_is_a_folder_is_told_the_fix(tmp_path: Path) -> None:
    """Other read errors give the system's reason and the fix."""
    with pytest.raises(RecordError) as caught:
        read_record(tmp_path, Tool, fix="run `make r`")
    assert str(caught.value) == f"{tmp_path} cannot be read: Is a directory\n  fix:      run `make r`"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"name": "x"'])
def test_damaged_record_is_told_the_fix(tmp_path: Path, content: bytes) -> None:
    """The message names the file, the type of the record and the fix."""
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        read_record(path, Tool, fix="run `make r`")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path} is not a valid Tool: ")
    assert lines[-1] == "  fix:      run `make r`"


def test_damaged_record_has_no_empty_place(tmp_path: Path) -> None:
    """A message about the whole file names no place within it."""
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(RecordError, match="is not a valid Tool: Invalid JSON"):
        read_record(tmp_path / "r.json", Tool)


def test_record_with_a_wrong_field_names_the_field(tmp_path: Path) -> None:
    """The place within the record is part of the message."""
    (tmp_path / "r.json").write_text('{"path": "x", "bytes": -1, "sha256": "' + "0" * 64 + '"}')
    with pytest.raises(RecordError, match="is not a valid FileRecord: bytes: Input should be greater than"):
        read_record(tmp_path / "r.json", FileRecord)


def test_record_of_a_newer_schema_names_the_version(tmp_path: Path) -> None:
    """A record that a later version of this program wrote is refused because of its schema version."""
    path = tmp_path / "r.json"
    path.write_text(with_digest(_stage_record().to_json().replace('"schema_version": 1', '"schema_version": 2')))
    with pytest.raises(NewerRecordError, match=r"(?s)r\.json was written by a newer.*got: +schema_version 2.*update"):
        read_record(path, StageRecord)


def test_record_of_a_newer_schema_is_not_replaced(tmp_path: Path) -> None:
    """An older version of this program does not overwrite a record of a later version."""
    path = tmp_path / "r.json"
    newer = _stage_record().to_json().replace('"schema_version": 1', '"schema_version": 2')
    path.write_text(newer)
    with pytest.raises(NewerRecordError, match="newer version"):
        write_record(path, _stage_record())
    assert path.read_text() == newer


def test_record_of_an_older_schema_is_made_again(tmp_path: Path) -> None:
    """It is never misread; its step is told to run, and may replace it."""
    path = tmp_path / "r.json"
    path.write_text(with_digest(_stage_record().to_json().replace('"schema_version": 1', '"schema_version": 0')))
    with pytest.raises(RecordError, match="schema_version: Input should be greater than or equal to 1"):
        read_record(path, StageRecord)
    write_record(path, _stage_record())
    assert read_record(path, StageRecord) == _stage_record()


@pytest.mark.parametrize("text", ["[1, 2]", '{"schema_version": "2"}', '{"schema_version": true}', "[" * 100_000])
def test_what_is_no_record_may_be_replaced(tmp_path: Path, text: str) -> None:
    """Only a whole number that is too high makes a record newer."""
    path = tmp_path / "r.json"
    path.write_text(text)
    write_record(path, _stage_record())
    assert read_record(path, StageRecord) == _stage_record()


def test_record_of_a_newer_schema_with_new_fields_names_the_version(tmp_path: Path) -> None:
    """The version is told rather than a field that only the later version has."""
    path = tmp_path / "r.json"
    text = _stage_record().to_json().replace('"schema_version": 1', '"schema_version": 2')
    path.write_text(text.replace("{", '{"aaa": 1, "built_by": "me",', 1))
    with pytest.raises(NewerRecordError, match="schema_version"):
        read_record(path, StageRecord)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_no_tool(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Random bytes are a record error, never another one."""
    path = tmp_path_factory.getbasetemp() / "any-record.json"
    path.write_bytes(data)
    with pytest.raises(RecordError):
        read_record(path, Tool)
