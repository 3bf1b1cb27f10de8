"""Places that `pipeline.yaml` names: paths of this machine, and the shared cache."""

from __future__ import annotations

import re

from model_artifacts.errors import closest
from pipeline.config.values import in_yaml

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)
"""A URL, or one with too few slashes. One letter before the colon is a drive of Windows."""
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and marks that turn the direction of text."""
_CACHES = ("s3", "gs")
_ALIASES = {"s3n": "s3", "s3a": "s3", "gcs": "gs"}
_SCHEMES = (*_CACHES, *_ALIASES, "http", "https", "file", "memory")
_WITHOUT_COLON = re.compile(rf"({'|'.join(_SCHEMES)})//", re.IGNORECASE)


def check_path(value: str) -> str:
    """Return a path of this machine, or a word that stands for one.

    Raises:
        ValueError: the text is blank, has control characters or spaces at an end, or is a URL.
    """
    _check_text(value)
    if _scheme_of(value):
        raise ValueError(
            f"expected a path of this machine, got {in_yaml(value)}; copy it here first, and name the copy"
        )
    return value


def check_folder(value: str) -> str:
    """Return a folder of this machine for files of the pipeline alone.

    Raises:
        ValueError: the text is no path, or the root of the file system.
    """
    if not check_path(value).strip("/"):
        raise ValueError(f"expected a folder of its own, such as artifacts, got {in_yaml(value)}")
    return value


def check_cache(value: str) -> str:
    """Return the shared cache: a folder, or a URL of a bucket.

    Raises:
        ValueError: the text is no path, and no URL of a store that can be written to.
    """
    _check_text(value)
    scheme = _scheme_of(value)
    if scheme is None:
        return value
    rest = value[len(scheme) :].lstrip(":/")
    known = _ALIASES.get(scheme.lower()) or closest(scheme, _CACHES)
    if known is None or not rest:
        example = f"{known or 's3'}://{rest or 'bucket/folder'}"
        advice = f"such as {example}" if known else f"such as {_CACHES[0]}://bucket/folder"
        raise ValueError(f"expected a folder, s3:// or gs://, {advice}, got {in_yaml(value)}")
    if value != (right := f"{known}://{rest}"):
        raise ValueError(f"expected a folder, s3:// or gs://, got {in_yaml(value)}; write {right}")
    return value


def _scheme_of(value: str) -> str | None:
    """Return the scheme of a URL as it is written, one with too few slashes included; None for a path."""
    if found := _WITHOUT_COLON.match(value):
        return found[1]
    found = _SCHEME.fullmatch(value)
    return found[1] if found and (found[2] or found[1].lower() in _SCHEMES) else None


def _check_text(value: str) -> None:
    if not value or value != value.strip() or _HIDDEN.search(value):
        blank = "text that is not empty" if not value.strip() else "text without control characters or spaces at an end"
        raise ValueError(f"expected {blank}, got {in_yaml(value)}")
