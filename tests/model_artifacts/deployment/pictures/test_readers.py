"""Batches of pictures, and the proof that a GPU may make them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from model_artifacts.deployment.pictures.readers import OnGpu, OnProcessor, gpu_reader
from model_artifacts.errors import DataError, UnsupportedError, UsageError
from model_artifacts.records import GpuPictures, ImageInput, Interpolation, Preprocessing
from model_artifacts.serving.settings import Serving
from model_artifacts.sessions.gpu_pictures import TorchPictures, decoder
from tests.support.hosts import H100
from tests.support.manifests import entry
from tests.support.pictures import photographs

if TYPE_CHECKING:
    from pathlib import Path

SPEC = Preprocessing(
    resize=32, crop=32, interpolation=Interpolation.BILINEAR, mean=(0.5, 0.4, 0.6), std=(0.25, 0.3, 0.2)
)
PROOF = GpuPictures(passed=True, gpu=H100.name, decoder=decoder(), samples=500)


@pytest.mark.parametrize("kind", [ImageInput.FLOAT32, ImageInput.UINT8])
def test_batches_are_filled_up_with_the_last_picture(kind: ImageInput) -> None:
    """Both readers give the same batch to a level: one in the host's memory, one on torch's device."""
    pictures = photographs(2)
    wanted, places = OnProcessor(SPEC, kind)(pictures, 3)
    found, same = OnGpu(TorchPictures(SPEC, "cpu"), kind)(pictures, 3)
    assert places == same
    assert isinstance(found, torch.Tensor)
    assert found.shape == wanted.shape
    assert np.array_equal(wanted[1], wanted[2])
    level = 1 if kind is ImageInput.UINT8 else 1 / 255 / 0.2
    assert np.abs(found.numpy().astype(float) - wanted).max() <= level * 1.001


@pytest.mark.parametrize("kind", [ImageInput.FLOAT32, ImageInput.UINT8])
@pytest.mark.parametrize("cores", [1, 4])
def test_several_threads_read_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: ImageInput, cores: int
) -> None:
    """Files give the batch that one thread reads of the same images, in their order, and no thread is left."""
    monkeypatch.setattr("model_artifacts.deployment.pictures.readers.threads", lambda: cores)
    pictures = photographs(9)
    files = [tmp_path / f"{number}.png" for number in range(9)]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    opening = threading.Barrier(2, timeout=30)
    real = Image.open

    def opened(file: Path) -> Image.Image:
        if cores > 1 and file in files[:2]:
            opening.wait()  # two threads are in here at once
        return real(file)

    monkeypatch.setattr("PIL.Image.open", opened)
    formats: list[int] = []
    monkeypatch.setattr("PIL.Image.init", lambda: formats.append(opening.n_waiting))
    wanted, places = OnProcessor(SPEC, kind)(pictures, 11)
    assert formats == []
    found, same = OnProcessor(SPEC, kind)(files, 11)
    assert formats == [0] * (cores > 1)  # Pillow's formats are there before the threads are
    assert places == same
    np.testing.assert_array_equal(found, wanted)
    assert len(found) == 11
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("picture")]


def test_the_first_picture_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever thread fails first."""
    monkeypatch.setattr("model_artifacts.deployment.pictures.readers.threads", lambda: 4)
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    photographs(1)[0].save(tmp_path / "00.png")
    with pytest.raises(DataError, match=r"01\.png"):
        OnProcessor(SPEC, ImageInput.FLOAT32)(sorted(tmp_path.iterdir()), 1)


def test_artifact_with_a_proof_of_this_gpu_reads_on_it() -> None:
    """The proof names the GPU and the libraries, which are those here."""
    found = gpu_reader(entry("a", gpu_pictures=PROOF), SPEC, H100)
    assert found.kind is ImageInput.FLOAT32


@pytest.mark.parametrize(
    ("proof", "message"),
    [
        (None, "not proven"),
        (PROOF.model_copy(update={"passed": False, "reason": "labelled top-1 drop 3%"}), "labelled top-1 drop 3%"),
        (PROOF.model_copy(update={"gpu": "Tesla T4"}), "proven elsewhere"),
        (PROOF.model_copy(update={"decoder": "torchvision 0.1, torch 1"}), r"torchvision 0\.1"),
    ],
    ids=["none", "rejected", "another GPU", "other libraries"],
)
def test_without_a_proof_nothing_is_decoded_on_a_gpu(proof: GpuPictures | None, message: str) -> None:
    """The message has the command that proves it."""
    with pytest.raises(UnsupportedError, match=f"(?s){message}.*doit pictures:m/cpu-x86_64/a manifest"):
        gpu_reader(entry("a", gpu_pictures=proof), SPEC, H100)


def test_artifact_of_the_processor_has_no_gpu_to_decode_on() -> None:
    """Whatever its manifest says."""
    with pytest.raises(UnsupportedError, match="runs on the processor"):
        gpu_reader(entry("a", gpu_pictures=PROOF), SPEC, None)


def test_other_places_are_refused() -> None:
    """`load` takes cpu or gpu."""
    with pytest.raises(UsageError, match=r"(?s)place to decode pictures.*'tpu'"):
        Serving(pictures="tpu")  # type: ignore[arg-type]  # a caller's mistake
