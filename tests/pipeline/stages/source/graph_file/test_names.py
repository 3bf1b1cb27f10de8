"""Names of classes in an ONNX file's metadata."""

from __future__ import annotations

import logging

import onnx
import pytest

from pipeline.stages.source.graph_file.names import class_names

ANIMALS = ("cat", "dog", "owl's")


def with_names(text: str, key: str = "names") -> onnx.ModelProto:
    """Return a model that has metadata alone."""
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, {"stride": "32", key: text})
    return model


WRITTEN = {
    "python": """{0: 'cat', 1: 'dog', 2: "owl's"}""",
    "list": """['cat', 'dog', "owl's"]""",
    "json": """{"2": "owl's", "0": "cat", "1": "dog"}""",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_names_are_read_in_the_order_of_their_numbers(text: str) -> None:
    """Ultralytics writes a mapping of Python, YOLOv5 a list, others JSON."""
    assert class_names(with_names(text), 3, "own.onnx") == ANIMALS


def test_a_file_without_names_has_none() -> None:
    """Other metadata mean something else."""
    assert class_names(onnx.ModelProto(), 3, "own.onnx") is None
    assert class_names(with_names(WRITTEN["list"], key="labels"), 3, "own.onnx") is None


ODD = {
    "code": ("__import__('os').getcwd()", "no mapping"),
    "damaged": ("{0: 'cat', 1: ", "no mapping"),
    "number": ("3", "no mapping"),
    "gap": ("{0: 'cat', 1: 'dog', 3: 'owl'}", "no mapping"),
    "no text": ("{0: 'cat', 1: 'dog', 2: 3}", "no mapping"),
    "empty": ("['cat', 'dog', ' ']", "no mapping"),
    "too long": ("[" + "'cat', " * 200_000 + "]", "no mapping"),
    "deep": ("[" * 100_000, "no mapping"),
    "fewer": ("['cat', 'dog']", "2 for 3 classes"),
    "twice": ("['cat', 'dog', 'cat']", "one name"),
}


@pytest.mark.parametrize(("text", "message"), ODD.values(), ids=ODD)
def test_other_texts_are_left_out_and_said(text: str, message: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is guessed, and nothing is run."""
    caplog.set_level(logging.WARNING)
    assert class_names(with_names(text), 3, "own.onnx") is None
    assert message in caplog.text
    assert "data.classes" in caplog.text
