"""Files of stores and of pulled releases."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def listing(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    """Return the hidden folders beside a folder."""
    return [path.name for path in folder.parent.glob(".*")]


def left_by_a_pull(folder: Path, digest: str) -> Path:
    """Make the staging folder that a killed pull of a release leaves beside a folder."""
    place = folder.with_name(f".pulling-{folder.name}-{digest[:16]}-abcdefgh")
    place.mkdir(mode=0o700)
    (place / "release").mkdir()
    (place / "parts").mkdir()
    return place


def part_of(place: Path, path: str) -> Path:
    """Return where a pull keeps the beginning of a file."""
    return place / "parts" / f"{hashlib.sha256(path.encode()).hexdigest()}.part"
