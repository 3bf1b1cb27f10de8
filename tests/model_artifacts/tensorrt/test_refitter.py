"""Engines that take other weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import RunError
from model_artifacts.tensorrt.flavour import BuildLog
from model_artifacts.tensorrt.refitter import put_weights

if TYPE_CHECKING:
    from pathlib import Path


class WithoutRefitter:
    """A TensorRT whose bindings gave no refitter for an engine, as they do for one that was not built for that."""

    OnnxParserRefitter = None

    @staticmethod
    def Refitter(engine: object, logger: object) -> None:  # noqa: N802 - TensorRT's name
        """Fail as pybind11 does."""
        del engine, logger
        raise TypeError("pybind11::init(): factory function returned nullptr")


def test_engine_that_was_not_built_for_other_weights_says_so(tmp_path: Path) -> None:
    """Seen with TensorRT-RTX 1.4 on an H100; the caller builds it again."""
    with pytest.raises(RunError, match="the engine cannot be refitted") as caught:
        put_weights(WithoutRefitter, None, None, BuildLog(), tmp_path / "fp16.onnx")
    assert "`refit: true`" in str(caught.value)
