"""Pictures → an artifact's batch: by Pillow on the processor, or by torch on the artifact's GPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from model_artifacts.errors import UnsupportedError
from model_artifacts.host.environment import threads
from model_artifacts.sessions.gpu_pictures import TorchPictures, decoder
from model_artifacts.sessions.preprocessing import read_placed, to_feed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from model_artifacts.records import Gpu, ImageInput, ManifestEntry, Preprocessing
    from model_artifacts.sessions.preprocessing import Picture, Placement

MOST_THREADS = 8
"""The most threads that read pictures, as of those that copy arrays: others have work, too."""


class Read(NamedTuple):
    """Pictures as an artifact takes them."""

    batch: Any
    """An array in the host's memory, or torch's tensor."""
    places: tuple[Placement, ...]
    """The way of each picture to the network's input."""


class Reader(Protocol):
    """The way from pictures to a batch."""

    def __call__(self, pictures: Sequence[Picture], smallest: int) -> Read:
        """Return the batch of pictures, filled up with the last one to at least `smallest` samples."""


@dataclass(frozen=True)
class OnProcessor:
    """Pillow reads the pictures, as it read those of the validation.

    Several threads read paths and bytes, for Pillow lets go of Python's lock meanwhile. Pillow's own images, which a
    caller may hand over twice, are read by one.
    """

    spec: Preprocessing
    kind: ImageInput

    def __call__(self, pictures: Sequence[Picture], smallest: int) -> Read:
        """Return the batch of pictures, in the host's memory.

        Raises:
            DataError: a picture cannot be read: the first of them in their order.
        """
        count = min(threads(), MOST_THREADS, len(pictures))
        if count > 1 and all(isinstance(picture, (str, bytes, os.PathLike)) for picture in pictures):
            _load_formats()
            with ThreadPoolExecutor(count, thread_name_prefix="picture") as pool:
                try:
                    found = list(pool.map(self._read, pictures))
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
        else:
            found = [self._read(picture) for picture in pictures]
        places, samples = zip(*found, strict=True)
        return Read(np.concatenate([*samples, *[samples[-1]] * (smallest - len(samples))]), places)

    def _read(self, picture: Picture) -> tuple[Placement, npt.NDArray[Any]]:
        """Return the way of a picture to the input, and the batch of it alone."""
        place, pixels = read_placed(picture, self.spec)
        return place, to_feed(pixels[None], self.spec, self.kind)


def _load_formats() -> None:
    """Let Pillow load its formats, which it else does with the first file that needs one.

    Another thread that opens a file meanwhile takes a format that was just loaded for one that it has tried.
    """
    from PIL import Image  # noqa: PLC0415 - hosts that only run batches have no Pillow

    Image.init()


@dataclass(frozen=True)
class OnGpu:
    """nvJPEG decodes the pictures, and torch resizes them."""

    pictures: TorchPictures
    kind: ImageInput

    def __call__(self, pictures: Sequence[Picture], smallest: int) -> Read:
        """Return the batch of pictures, in the GPU's memory."""
        places, pixels = self.pictures.read(pictures)
        missing = max(0, smallest - len(pixels))
        if missing:
            import torch  # noqa: PLC0415 - hosts that decode on the processor have none

            pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        return Read(self.pictures.feed(pixels, self.kind), places)

    def close(self) -> None:
        """Give the GPU's memory back."""
        self.pictures.close()


def gpu_reader(entry: ManifestEntry, spec: Preprocessing, gpu: Gpu | None) -> OnGpu:
    """Return the reader of an artifact whose answers to the GPU's pictures are proven on such a GPU.

    Args:
        entry: the artifact.
        spec: its preprocessing.
        gpu: the GPU that runs it; None for the processor.

    Raises:
        UnsupportedError: there is no proof, or one of another GPU or of other libraries.
    """
    proof, fix = (
        entry.gpu_pictures,
        f"run `doit pictures:{entry.id} manifest` on such a GPU, or decode on the processor",
    )
    if gpu is None:
        raise UnsupportedError(
            f"{entry.id} runs on the processor, which decodes the pictures", fix="leave out `pictures`"
        )
    if proof is None or not proof.passed:
        raise UnsupportedError(
            f"the answers of {entry.id} to pictures that a GPU decodes are not proven",
            expected="a passed `gpu_pictures` in the manifest",
            got=proof.reason if proof else "none",
            fix=fix,
        )
    here, proven = (gpu.name, decoder()), (proof.gpu, proof.decoder)
    if here != proven:
        raise UnsupportedError(
            f"the answers of {entry.id} to pictures that a GPU decodes are proven elsewhere",
            expected=", ".join(proven),
            got=", ".join(here),
            fix=fix,
        )
    return OnGpu(TorchPictures(spec, f"cuda:{gpu.index}"), entry.io.input)
