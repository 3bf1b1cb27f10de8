"""Batches and images that callers hand over → what an artifact takes, and its logits → classes; or a refusal."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    import numpy.typing as npt
    from PIL import Image

    Batch = npt.NDArray[np.float32]

    Readable: TypeAlias = Image.Image | str | os.PathLike[str]

    Picture: TypeAlias = Readable | npt.NDArray[np.uint8]

_AXES = (2, 3)
"""The numbers of axes of an image as an array: (height, width), or (height, width, 3)."""


def checked_batch(batch: Any, sample: tuple[int, int, int]) -> Batch:  # noqa: ANN401 - whatever a caller hands over
    """Return a batch as a contiguous array. Every backend then takes and refuses the same batches.

    Args:
        batch: an array, or a tensor of another library in the host's memory.
        sample: (channels, height, width).

    Raises:
        RunError: it is no array, not of float32, or of another shape.
    """
    expected = f"float32 (batch, {', '.join(map(str, sample))})"
    try:
        array = np.asarray(batch)
    except Exception as exc:  # torch refuses tensors with gradients or in a GPU's memory, each in its own way
        raise RunError(
            "the batch cannot be read as an array",
            expected=expected,
            got=f"{type(batch).__name__}: {one_line(exc)}",
            fix="hand over an array in the host's memory, such as `tensor.detach().cpu().numpy()`",
        ) from exc
    if array.dtype != np.float32 or array.ndim != len(sample) + 1 or array.shape[1:] != sample or not len(array):
        got = f"{array.dtype} {array.shape}" if array.ndim else type(batch).__name__
        raise RunError("the artifact takes other batches", expected=expected, got=got, fix=_fix_of(array, sample))
    return np.ascontiguousarray(array)


def _fix_of(array: npt.NDArray[Any], sample: tuple[int, int, int]) -> str:
    channels, height, width = sample
    if array.dtype == np.uint8:
        return "`predict` takes images of 0 to 255; a batch is preprocessed already, as `preprocessing` says"
    if array.shape[1:] == (height, width, channels):
        return "put the channels first: `batch.transpose(0, 3, 1, 2)`"
    if array.shape == sample:
        return "add the axis of the batch: `batch[None]`"
    if array.shape[1:] == sample and len(array):
        return "cast it: `batch.astype(numpy.float32)`"
    return "preprocess images as the manifest says, or hand them to `predict`"


def as_images(images: Any) -> list[Readable]:  # noqa: ANN401 - whatever a caller hands over
    """Return images as paths and Pillow's images.

    Args:
        images: one image, or any iterable of images: paths, Pillow's, or uint8 arrays (height, width) or (height,
            width, 3).

    Raises:
        RunError: something else is among them.
    """
    from PIL import Image  # noqa: PLC0415 - hosts that only run batches have no Pillow

    if isinstance(images, (str, os.PathLike, Image.Image)) or _is_image(images):
        images = [images]
    if isinstance(images, bytes) or not isinstance(images, Iterable):
        raise _no_image(images)
    found: list[Readable] = []
    for image in images:
        if isinstance(image, (str, os.PathLike, Image.Image)):
            found.append(image)
        elif _is_image(image):
            found.append(Image.fromarray(image))
        else:
            raise _no_image(image)
    return found


def _is_image(given: object) -> bool:
    if not isinstance(given, np.ndarray) or given.dtype != np.uint8 or not given.size:
        return False
    return given.ndim == _AXES[0] or (given.ndim == _AXES[1] and given.shape[2] == _AXES[1])


def _no_image(given: object) -> RunError:
    return RunError(
        "`predict` takes images",
        expected="paths, Pillow's images, or uint8 arrays (height, width, 3) or (height, width)",
        got=f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__,
        fix="call the model itself for a batch that is preprocessed already",
    )


def likeliest(logits: Batch, names: Sequence[str] | None) -> list[int]:
    """Return the class with the largest logit of each image.

    Args:
        logits: (images, classes).
        names: the names of the classes; None if they are unknown.

    Raises:
        RunError: there is one logit only, they are not finite, or their number is not that of the names.
    """
    classes = logits.shape[1]
    if classes == 1 or (names and len(names) != classes):
        raise RunError(
            "the artifact's logits are not those of its classes",
            expected=f"{len(names)} logits for each image" if names else "two logits or more for each image",
            got=str(classes),
            fix="call the model itself for its outputs, or build it with a logit for each class",
        )
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise RunError(
            "the logits are not finite, so that none is the largest",
            expected="finite logits",
            got=f"NaN or infinity for {len(broken)} of {len(logits)} images, the first at {broken[0]}",
            fix="take an artifact of another precision: `Requirements(precision=...)`",
        )
    return [int(index) for index in logits.argmax(axis=1)]
