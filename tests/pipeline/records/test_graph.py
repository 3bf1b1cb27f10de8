"""The files of an ONNX graph's record."""

from __future__ import annotations

import pytest

from model_artifacts.records import FileRecord, Graph
from pipeline.records import OnnxRecord
from tests.support.records import KEY, NOW, file_record


@pytest.mark.parametrize("opset17", [None, file_record("o17")])
def test_onnx_record_vouches_for_its_graphs(opset17: FileRecord | None) -> None:
    """The ONNX file, and the one for TensorRT 8.6 where there is such."""
    record = OnnxRecord(
        key=KEY,
        built_at=NOW,
        graph=Graph.FP32,
        file=file_record("o"),
        canonical_sha256="0" * 64,
        structure_sha256="0" * 64,
        opset=18,
        inputs=(),
        outputs=(),
        folded_batch_norms=0,
        casts=(),
        opset17=opset17,
    )
    assert [file.path for file in record.files] == ["o", *(["o17"] if opset17 else [])]
