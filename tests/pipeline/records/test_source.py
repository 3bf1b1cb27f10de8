"""The files of the source's record."""

from __future__ import annotations

from model_artifacts.records import WeightsOrigin
from pipeline.records import SourceRecord
from tests.support.records import KEY, NOW, RGB, file_record


def test_source_record_vouches_for_the_weights() -> None:
    """The weights are the source's only file."""
    record = SourceRecord(
        key=KEY,
        built_at=NOW,
        model="m",
        factory="a:b",
        origin=WeightsOrigin.FACTORY,
        origin_detail="",
        weights=file_record("w"),
        parameters=1,
        classes=2,
        class_names=None,
        replaced_head=None,
        preprocessing=RGB,
    )
    assert record.files == (file_record("w"),)
