"""Paths and the shared cache in a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.config.places import check_cache, check_path
from tests.support.configs import MATRIX

if TYPE_CHECKING:
    from tests.support.configs import Problems


@pytest.mark.parametrize(
    "text", ["s3://team/cache", "gs://b", "cache", "/mnt/cache", "../c", "C:\\cache", "~/cache", "a:b", "folder: x"]
)
def test_folders_and_buckets_are_caches(text: str) -> None:
    """A folder may hold a colon, and a drive of Windows is no scheme."""
    assert check_cache(text) == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("s3:/x", "s3://x"),
        ("s3:x", "s3://x"),
        ("s3//x/y", "s3://x/y"),
        ("s3:///x", "s3://x"),
        ("S3://x", "s3://x"),
        ("gs:/x", "gs://x"),
        ("gcs://x", "gs://x"),
        ("s3n://x", "s3://x"),
        ("s33://x", "s3://x"),
    ],
)
def test_bucket_that_is_misspelt_is_refused_with_the_right_url(problems: Problems, text: str, right: str) -> None:
    """A misspelt URL is not taken for a folder."""
    assert problems(MATRIX + f"cache: {text}\n") == [
        f"3:8: cache: expected a folder, s3:// or gs://, got {text!r}; write {right}"
    ]


@pytest.mark.parametrize("text", ["http://host/x", "https:/host/x", "file:///x", "memory://x", "s3://", "ftp://h/x"])
def test_cache_that_cannot_be_written_to_is_refused(problems: Problems, text: str) -> None:
    """A cache is a folder, or a bucket with a name."""
    (problem,) = problems(MATRIX + f"cache: {text}\n")
    assert problem.startswith("3:8: cache: expected a folder, s3:// or gs://, such as s3://bucket/folder, got ")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("artifacts: s3://x\n", "artifacts"),
        ("data: {images: 'https://host/x.tar'}\n", "data.images"),
        ("model: {weights: 'https://host/x.pth'}\n", "model.weights"),
        ("release: {manifest: 's3:/x/manifest.json'}\n", "release.manifest"),
    ],
)
def test_url_in_place_of_a_path_is_refused(problems: Problems, text: str, key: str) -> None:
    """Only the cache may be a URL; all else would become a folder named `s3:`."""
    (problem,) = problems(MATRIX + text)
    assert f" {key}: expected a path of this machine, got " in problem
    assert problem.endswith("; copy it here first, and name the copy")


@pytest.mark.parametrize("text", ["/", "//"])
def test_root_of_the_file_system_is_no_artifacts_folder(problems: Problems, text: str) -> None:
    """The folder is the pipeline's own."""
    assert problems(MATRIX + f"artifacts: {text}\n") == [
        f"3:12: artifacts: expected a folder of its own, such as artifacts, got {text!r}"
    ]


@pytest.mark.parametrize("text", ["", "  ", " x", "x ", "a\0b", "a\nb", "\x1b[31m", "a\u202eb"])
def test_path_with_characters_that_no_terminal_shows_is_refused(text: str) -> None:
    """Blank paths, spaces at an end, control characters and marks of direction are slips or worse."""
    for check in (check_path, check_cache):
        with pytest.raises(ValueError, match=r"^expected text"):
            check(text)
