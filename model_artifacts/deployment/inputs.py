"""Batches and pictures that callers hand over → what an artifact takes; or a refusal."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, one_line
from model_artifacts.records import ImageInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    import numpy.typing as npt

    from model_artifacts.records import TensorSpec
    from model_artifacts.sessions.preprocessing import Picture

    Pictures: TypeAlias = Picture | npt.NDArray[Any] | Iterable[Picture | npt.NDArray[Any]]

_GREY, _COLOUR, _MANY = 2, 3, 4
"""The numbers of axes: (height, width), one with channels, and several with channels."""
_CHANNELS = frozenset({1, 3, 4})
"""The numbers of channels of a picture: greyscale, RGB, RGB with transparency."""
_DEEP = frozenset({"uint16", "int16", "int32", "uint32", "float16", "float32", "float64"})
"""Types of greyscale pictures that the preprocessing's `levels` scale."""
_EXPECTED = (
    "paths, bytes of image files, Pillow's images, or uint8 pixels (height, width, channels), (channels, height, "
    "width) or (height, width); one, or an iterable of them"
)


def checked_batch(
    batch: Any,  # noqa: ANN401 - whatever a caller hands over
    sample: tuple[int, int, int],
    kind: ImageInput = ImageInput.FLOAT32,
    spec: TensorSpec | None = None,
) -> npt.NDArray[Any]:
    """Return a batch as a contiguous array. Every backend then takes and refuses the same batches.

    Args:
        batch: an array, or a tensor of torch in any memory, or one of another library in the host's memory.
        sample: (channels, height, width), of pixels (height, width, channels).
        kind: the images that the artifact takes.
        spec: the artifact's input. If it has dynamic axes beside the batch, samples of every size in their ranges fit.

    Raises:
        RunError: it is no array, not of this type in this machine's byte order, of another shape, or not finite.
    """
    ranged = spec if spec is not None and spec.ranges else None
    expected = f"{kind.value} (batch, {', '.join(ranged.sample_words if ranged else map(str, sample))})"
    array = array_of(batch, expected)
    if (
        array.dtype != np.dtype(kind.value)
        or array.ndim != len(sample) + 1
        or not (ranged.takes_sample(array.shape[1:]) if ranged else array.shape[1:] == sample)
        or not len(array)
    ):
        got = f"{_type(array)} {array.shape}" if array.ndim else type(batch).__name__
        fix = fix_of_size(array.shape, ranged) or _fix_of(array, sample, kind)
        raise RunError("the artifact takes other batches", expected=expected, got=got, fix=fix)
    array = np.ascontiguousarray(array)
    check_finite(array)
    return array


def fix_of_size(shape: tuple[int, ...], spec: TensorSpec | None) -> str:
    """Return the fix of an array that has no samples, or whose axes miss their ranges; empty for any other array.

    Args:
        shape: the array's shape.
        spec: the input that it is for; None of one without ranges.
    """
    if shape and not shape[0]:
        return "hand over at least one sample"
    missed = spec.beyond(shape[1:]) if spec else ()
    wider = "or build a profile with a wider one (`profiles` in pipeline.yaml)"
    return f"bring {' and '.join(missed)} into the range, {wider}" if missed else ""


def detached(given: Any) -> Any:  # noqa: ANN401 - whatever a caller hands over
    """Return a tensor of torch without its gradients and contiguous, and anything else as it is."""
    if not _is_torch(given):
        return given
    tensor = given.detach()
    return tensor.contiguous() if str(tensor.layout) == "torch.strided" else tensor  # a sparse one is refused later


def array_of(given: Any, expected: str) -> npt.NDArray[Any]:  # noqa: ANN401
    """Return an array or tensor as numpy's array, which may share its memory.

    Raises:
        RunError: it is masked, or cannot be read as an array.
    """
    if isinstance(given, np.ma.MaskedArray):
        raise RunError(
            "a masked array has values that are not meant",
            expected=expected,
            got=f"a masked array {given.shape}",
            fix="fill it: `batch.filled(0)`",
        )
    try:
        return np.asarray(detached(given).cpu() if _is_torch(given) else given)
    except Exception as exc:  # each library refuses types and other memory in its own way
        raise RunError(
            "the batch cannot be read as an array",
            expected=expected,
            got=f"{type(given).__name__}: {one_line(exc)}",
            fix="hand over an array in the host's memory, such as `tensor.float().cpu().numpy()`",
        ) from exc


def _is_torch(given: object) -> bool:
    """Return true for a tensor of torch, which need not be imported."""
    return any(cls.__module__ == "torch" and cls.__name__ == "Tensor" for cls in type(given).__mro__)


def _type(array: npt.NDArray[Any]) -> str:
    """Return an array's type as messages name it: the byte order, too, where it is the other one."""
    return str(array.dtype) if array.dtype.isnative else f"{array.dtype} (the other byte order)"


def check_finite(batch: Any) -> None:  # noqa: ANN401 - an array of any library
    """Check an array of numpy or a tensor of torch in floating point, and no other array.

    Raises:
        RunError: it has NaN or infinity.
    """
    if isinstance(batch, np.ndarray):
        if batch.dtype.kind in "biu" or not batch.size:  # a sum of pixels takes longer than the network
            return
    elif not (_is_torch(batch) and batch.is_floating_point()):
        return
    with np.errstate(all="ignore"):
        if _looks_finite(batch):
            return
    # NumPy has no bfloat16; float64 has every value of each type in floating point.
    array = np.asarray(batch.detach().double().cpu() if _is_torch(batch) else batch)
    broken = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if len(broken):
        raise RunError(
            "the batch is not finite, so that its logits would mean nothing",
            expected="finite values",
            got=f"NaN or infinity in {len(broken)} of {len(array)} images, the first at {broken[0]}",
            fix="look for a division by zero, or a cast from float16, before the model",
        )


def _looks_finite(batch: Any) -> bool:  # noqa: ANN401 - as above
    """Return False if a value may be NaN or infinite: a sum of finite ones is rarely infinite.

    A dot product of 64 images takes half the time of their sum (benchmarks/session_calls.py), and NumPy has a quick one
    of two types alone. The largest bits of FP16 take a twentieth: infinity is 0x7C00, or 0xFC00 with its sign, and NaN
    lies above either (IEEE 754).
    """
    if isinstance(batch, np.ndarray) and batch.flags.c_contiguous:
        if batch.dtype == np.float16:
            return bool(batch.view(np.int16).max() < 0x7C00 and batch.view(np.uint16).max() < 0xFC00)  # noqa: PLR2004 - above
        if batch.dtype.char in "fd":
            flat = batch.reshape(-1)
            return math.isfinite(float(np.dot(flat, flat)))
    return math.isfinite(float(batch.sum()))


def _fix_of(array: npt.NDArray[Any], sample: tuple[int, int, int], kind: ImageInput) -> str:
    if kind is ImageInput.UINT8:
        return "hand over the pixels as decoded, resized and cropped, channels last, or images to `predict`"
    channels, height, width = sample
    if array.dtype == np.uint8:
        return "`predict` takes images as they are; the model itself takes preprocessed ones"
    if array.shape[1:] == (height, width, channels):
        return "put the channels first: `batch.transpose(0, 3, 1, 2)`"
    if array.shape == sample:
        return "add the axis of the batch: `batch[None]`"
    if array.shape[1:] == sample and len(array):
        return f"cast it: `batch.astype(numpy.{kind.value})`"
    return "preprocess images as the manifest says, or hand them to `predict`"


def pictures_of(given: Any) -> Iterator[Picture]:  # noqa: ANN401 - whatever a caller hands over
    """Yield pictures as paths, bytes and Pillow's images, one after the other as they are asked for.

    Args:
        given: one picture, or an iterable of pictures: paths, bytes or open files of image files, Pillow's images, or
            arrays and tensors of pixels. Arrays have the channels last, torch's tensors have them first, unless the
            other order alone fits. Greyscale may have more than 8 bits.

    Raises:
        RunError: something else is among them.
    """
    from PIL import Image  # noqa: PLC0415 - hosts that only run batches have no Pillow

    if isinstance(given, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(given, "read"):
        yield _picture(given)
    elif isinstance(given, np.ndarray) or _is_torch(given) or hasattr(given, "__array__"):
        yield from map(_from_pixels, _split(array_of(given, _EXPECTED), channels_first=_is_torch(given)))
    elif isinstance(given, Iterable) and not isinstance(given, (Mapping, AbstractSet)):
        yield from map(_picture, given)
    else:
        raise _no_picture(type(given).__name__)


def _picture(given: Any) -> Picture:  # noqa: ANN401
    from PIL import Image  # noqa: PLC0415 - hosts that only run batches have no Pillow

    if isinstance(given, (str, os.PathLike, bytes, Image.Image)):
        return given
    if isinstance(given, (bytearray, memoryview)):
        return bytes(given)
    if hasattr(given, "read"):
        return _contents(given)
    if isinstance(given, np.ndarray) or _is_torch(given) or hasattr(given, "__array__"):
        return _from_pixels(_channels_last(array_of(given, _EXPECTED), channels_first=_is_torch(given)))
    raise _no_picture(type(given).__name__)


def _contents(file: Any) -> bytes:  # noqa: ANN401
    """Return the rest of an open file."""
    try:
        read = file.read()
    except Exception as exc:  # files of any library
        raise _no_picture(f"{type(file).__name__}: {one_line(exc)}") from exc
    if not isinstance(read, bytes):
        raise _no_picture(f"an open file that gives {type(read).__name__}; open it with mode 'rb'")
    return read


def _split(array: npt.NDArray[Any], *, channels_first: bool) -> Iterable[npt.NDArray[Any]]:
    """Return the pictures in an array: one, or those along its first axis.

    Raises:
        RunError: its axes fit none, or fit one picture as well as several.
    """
    if array.ndim == _MANY:
        return [_channels_last(picture, channels_first=channels_first) for picture in array]
    if array.ndim != _COLOUR:
        return [_channels_last(array, channels_first=channels_first)]
    first, last = array.shape[0] in _CHANNELS, array.shape[-1] in _CHANNELS
    if first and not last and not channels_first:
        raise RunError(
            f"an array {array.shape} may be one picture with its channels first, or {len(array)} in greyscale",
            expected="pixels (height, width, channels), or a list of pictures",
            got=f"{_type(array)} {array.shape}",
            fix="write `picture.transpose(1, 2, 0)` for one picture, or `list(pictures)` for several",
        )
    return [_channels_last(array, channels_first=channels_first)] if first or last else list(array)


def _channels_last(array: npt.NDArray[Any], *, channels_first: bool) -> npt.NDArray[Any]:
    """Return the pixels of one picture as (height, width, channels) or (height, width).

    Raises:
        RunError: no axis can be that of the channels.
    """
    if array.ndim == _GREY and array.size:
        return array
    first = array.ndim == _COLOUR and array.shape[0] in _CHANNELS
    last = array.ndim == _COLOUR and array.shape[-1] in _CHANNELS
    if not array.size or not (first or last):
        raise _no_picture(f"{_type(array)} {array.shape}")
    return array.transpose(1, 2, 0) if first and (channels_first or not last) else array


def _from_pixels(array: npt.NDArray[Any]) -> Picture:
    """Return pixels as Pillow's image.

    Raises:
        RunError: they are of another type: only greyscale may have more than 8 bits.
    """
    from PIL import Image  # noqa: PLC0415 - hosts that only run batches have no Pillow

    if array.ndim == _COLOUR and array.shape[-1] == 1:
        array = array[..., 0]
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(native))
    if native.ndim == _GREY and native.dtype.name in _DEEP:
        if native.dtype == np.uint16:
            return Image.fromarray(np.ascontiguousarray(native))
        exact = np.int32 if native.dtype.name in {"int16", "int32"} else np.float32
        return Image.fromarray(np.ascontiguousarray(native.astype(exact)))
    raise _no_picture(f"{_type(array)} {array.shape}")


def _no_picture(got: str) -> RunError:
    return RunError(
        "`predict` takes images",
        expected=_EXPECTED,
        got=got,
        fix="call the model itself for a batch that is preprocessed already",
    )
