"""The files of the data's record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.records import DataRecord, ImagesOrigin
from tests.support.records import KEY, NOW, RGB, file_record

if TYPE_CHECKING:
    from model_artifacts.records import FileRecord


@pytest.mark.parametrize("labels", [None, file_record("labels")])
def test_data_record_vouches_for_labels_where_there_are_any(labels: FileRecord | None) -> None:
    """Pixels and logits always, labels where the images have them."""
    record = DataRecord(
        key=KEY,
        built_at=NOW,
        origin=ImagesOrigin.DIGITS,
        origin_detail="",
        preprocessing=RGB,
        calibration=file_record("c"),
        calibration_samples=1,
        validation=file_record("v"),
        validation_samples=1,
        labels=labels,
        reference=file_record("r"),
        reference_top1=None,
        unreadable=(),
    )
    assert [file.path for file in record.files] == ["c", "v", *(["labels"] if labels else []), "r"]
