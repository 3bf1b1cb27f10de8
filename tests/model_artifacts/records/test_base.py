"""The base of all records: JSON, schema version, digests and staleness keys."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from model_artifacts.records import AxisRange, BatchTiming, FileRecord, Key, KeyField, StageRecord, Tool
from tests.support.records import KEY, KEYS, NOW


def test_json_has_sorted_keys_and_a_newline_at_the_end() -> None:
    """Records are made to be compared by `diff`."""
    assert Tool(version="2", name="ü").to_json() == '{\n  "name": "ü",\n  "version": "2"\n}\n'


def test_record_cannot_be_changed() -> None:
    """Assigning to a field of a record is an error."""
    tool = Tool(name="a", version="1")
    with pytest.raises(ValidationError, match="frozen"):
        tool.version = "2"  # type: ignore[misc]


def test_record_refuses_unknown_fields() -> None:
    """A field that this version does not know is refused, not dropped."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Tool.model_validate({"name": "a", "version": "1", "colour": "red"})


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_record_refuses_what_json_has_no_number_for(number: float) -> None:
    """NaN and infinity never reach a file."""
    with pytest.raises(ValidationError, match="finite number"):
        BatchTiming(batch=1, runs=1, p50_ms=number, p90_ms=1, p99_ms=1, throughput_per_s=1, speedup=None)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"])
def test_digest_is_64_small_hexadecimal_digits(digest: str) -> None:
    """Anything but a SHA-256 in small letters is refused."""
    with pytest.raises(ValidationError, match="sha256"):
        FileRecord(path="x", bytes=1, sha256=digest)


@pytest.mark.parametrize("version", [0, 2])
def test_stage_record_of_another_schema_version_is_refused(version: int) -> None:
    """A record says which schema it follows, and only this one's is read."""
    with pytest.raises(ValidationError, match="schema_version"):
        StageRecord(schema_version=version, key=KEY, built_at=NOW)


def test_time_without_a_zone_is_refused() -> None:
    """A time that could be any zone's is no time."""
    with pytest.raises(ValidationError, match="built_at"):
        StageRecord(key=KEY, built_at=NOW.replace(tzinfo=None))


# Keys.


def test_key_digest_is_pinned() -> None:
    """The digest of a key does not change from one version of this program to the next."""
    assert KEY.digest == "57bfe7a5665fd3e5b7872b4dc4b0752144714ed463048a8448c04a15e4596dba"


@given(KEYS, KEYS)
@settings(deadline=None)
def test_key_digests_are_equal_for_equal_keys_only(first: Key, second: Key) -> None:
    """A digest stands for one key, wherever its fields' names and values are cut."""
    assert (first.digest == second.digest) == (first == second)


def test_key_digest_tells_name_from_value() -> None:
    """Moving a letter from a name into its value is another key."""
    other = Key(fields=(KeyField(name="", value="a1"),))
    assert other.digest != Key(fields=(KeyField(name="a", value="1"),)).digest


# Files that a record vouches for.


def test_plain_stage_record_has_no_files() -> None:
    """A record without files of its own vouches for none."""
    assert StageRecord(key=KEY, built_at=NOW).files == ()


@pytest.mark.parametrize("name", ["", "x/../../escaped", "a b", "2x", "height\n", "höhe"], ids=ascii)
def test_an_axis_has_a_name_that_may_be_a_file_s(name: str) -> None:
    """Names of variants and of Triton's folders hold it."""
    with pytest.raises(ValidationError, match=r"(?s)name.*should match pattern"):
        AxisRange(name=name, min=1, opt=2, max=3)
    assert [AxisRange(name=axis, min=1, opt=2, max=3).name for axis in ("height", "axis_2")] == ["height", "axis_2"]
