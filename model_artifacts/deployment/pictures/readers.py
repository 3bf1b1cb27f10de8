"""Pictures → an artifact's batch: by Pillow on the processor, or by torch on the artifact's GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from model_artifacts.errors import UnsupportedError
from model_artifacts.sessions.gpu_pictures import TorchPictures, decoder
from model_artifacts.sessions.preprocessing import read_pixels, to_feed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_artifacts.records import Gpu, ImageInput, ManifestEntry, Preprocessing
    from model_artifacts.sessions.preprocessing import Picture


class Reader(Protocol):
    """The way from pictures to a batch."""

    def __call__(self, pictures: Sequence[Picture], smallest: int) -> Any:  # noqa: ANN401 - an array, or torch's tensor
        """Return the batch of pictures, filled up with the last one to at least `smallest` samples."""


@dataclass(frozen=True)
class OnProcessor:
    """Pillow reads the pictures, as it read those of the validation."""

    spec: Preprocessing
    kind: ImageInput

    def __call__(self, pictures: Sequence[Picture], smallest: int) -> Any:  # noqa: ANN401 - numpy's array
        """Return the batch of pictures, in the host's memory."""
        batch = to_feed(np.stack([read_pixels(picture, self.spec) for picture in pictures]), self.spec, self.kind)
        missing = max(0, smallest - len(batch))
        return np.concatenate([batch, *[batch[-1:]] * missing]) if missing else batch


@dataclass(frozen=True)
class OnGpu:
    """nvJPEG decodes the pictures, and torch resizes them."""

    pictures: TorchPictures
    kind: ImageInput

    def __call__(self, pictures: Sequence[Picture], smallest: int) -> Any:  # noqa: ANN401 - torch's tensor
        """Return the batch of pictures, in the GPU's memory."""
        pixels = self.pictures.pixels(pictures)
        missing = max(0, smallest - len(pixels))
        if missing:
            import torch  # noqa: PLC0415 - hosts that decode on the processor have none

            pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        return self.pictures.feed(pixels, self.kind)


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
