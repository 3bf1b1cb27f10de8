"""Arrays → npy files that are whole or not there."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.host.files import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


def save(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array to a .npy file, in one step.

    Raises:
        StorageError: it cannot be written.
    """
    write_bytes(path, npy(array))


def npy(array: npt.NDArray[np.generic]) -> bytes:
    """Return an array as the bytes of a .npy file, because `np.save` to a full disk does not report the full disk."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
