"""A user's ONNX file: what is read, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper

from model_artifacts.errors import SourceError
from pipeline.adapters.onnx_files import read_model
from tests.support.onnx_models import make

if TYPE_CHECKING:
    from pathlib import Path


def saved(folder: Path) -> Path:
    """Write a model whose weights lie beside it, and return its file."""
    file = folder / "own.onnx"
    onnx.save(make(), file, save_as_external_data=True, location="own.data", size_threshold=0)
    return file


def moved(file: Path, location: str) -> None:
    """Let all external data of a file have another location."""
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        info = external_data_helper.ExternalDataInfo(tensor)
        numpy_free = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=b"")
        external_data_helper.set_external_data(numpy_free, location, info.offset, info.length)
        numpy_free.data_location = onnx.TensorProto.EXTERNAL
        tensor.CopyFrom(numpy_free)
    file.write_bytes(model.SerializeToString())


def test_external_data_are_taken_in(tmp_path: Path) -> None:
    """The model in memory has all values, and every file that gave them is known by its digest."""
    read = read_model(saved(tmp_path))
    values = {item.name: numpy_helper.to_array(item) for item in read.model.graph.initializer}
    np.testing.assert_array_equal(values["kernel"], numpy_helper.to_array(make().graph.initializer[0]))
    assert not any(item.external_data for item in read.model.graph.initializer)
    (beside,) = read.external
    assert beside.path == tmp_path / "own.data"
    (tmp_path / "own.data").write_bytes((tmp_path / "own.data").read_bytes() + b"\0")
    assert read_model(tmp_path / "own.onnx").external[0].sha256 != beside.sha256


def test_a_link_inside_of_the_folder_is_followed(tmp_path: Path) -> None:
    """As in a cache of Hugging Face, where the model and its data are links."""
    (tmp_path / "blobs").mkdir()
    file = saved(tmp_path / "blobs")
    (tmp_path / "own.onnx").symlink_to(file)
    (tmp_path / "own.data").symlink_to(tmp_path / "blobs" / "own.data")
    assert len(read_model(tmp_path / "own.onnx").external) == 1


@pytest.mark.parametrize("keep", [0, 1, 40, 400], ids=str)
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    """Wherever it ends."""
    file = tmp_path / "own.onnx"
    file.write_bytes(make().SerializeToString()[:keep])
    with pytest.raises(SourceError, match="damaged, or no ONNX file"):
        read_model(file)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """Both the model's own file, and its data."""
    with pytest.raises(SourceError, match=r"(?s)the ONNX file cannot be read.*none\.onnx"):
        read_model(tmp_path / "none.onnx")
    file = saved(tmp_path)
    (tmp_path / "own.data").unlink()
    with pytest.raises(SourceError, match=r"(?s)external data cannot be read.*own\.data.*No such file"):
        read_model(file)


@pytest.mark.parametrize("location", ["../own.data", "/etc/passwd", "sub/../../own.data"])
def test_data_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    """A model from somewhere must not take in the files of this machine."""
    folder = tmp_path / "model"
    folder.mkdir()
    file = saved(folder)
    (tmp_path / "own.data").write_bytes((folder / "own.data").read_bytes())
    moved(file, location)
    with pytest.raises(SourceError, match="takes data from outside of its folder"):
        read_model(file)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    """The data's name is harmless, and its target lies elsewhere."""
    folder = tmp_path / "model"
    folder.mkdir()
    file = saved(folder)
    (folder / "own.data").rename(tmp_path / "elsewhere")
    (folder / "own.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="takes data from outside of its folder"):
        read_model(file)


def test_data_that_end_early_are_refused(tmp_path: Path) -> None:
    """A copy that was cut off would give weights of zeros, or none."""
    file = saved(tmp_path)
    data = tmp_path / "own.data"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(SourceError, match=r"(?s)external data are damaged.*in a file of"):
        read_model(file)


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of any size costs no more memory than the largest model."""
    monkeypatch.setattr("pipeline.adapters.onnx_files.MOST_BYTES", 100)
    file = tmp_path / "own.onnx"
    file.write_bytes(make().SerializeToString())
    with pytest.raises(SourceError, match=r"(?s)too large for one ONNX file.*at most 100 bytes"):
        read_model(file)
