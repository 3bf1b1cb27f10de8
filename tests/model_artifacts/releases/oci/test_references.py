"""URLs of releases in registries."""

from __future__ import annotations

import pytest

from model_artifacts.errors import StoreError
from model_artifacts.releases.oci.references import Reference, check_repository, is_registry, reference_of


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("oci://ghcr.io/team/resnet18", Reference("ghcr.io", "team/resnet18")),
        ("oci://ghcr.io/team/resnet18:1.4", Reference("ghcr.io", "team/resnet18", tag="1.4")),
        ("oci://localhost:5000/a", Reference("localhost:5000", "a")),
        ("oci+http://127.0.0.1:5000/a/b_c/d--e:x", Reference("127.0.0.1:5000", "a/b_c/d--e", tag="x", plain=True)),
        (f"oci://r.io/a@sha256:{'a' * 64}", Reference("r.io", "a", digest="a" * 64)),
    ],
    ids=["repository", "tag", "port", "plain", "digest"],
)
def test_a_url_names_a_repository(url: str, expected: Reference) -> None:
    """With its registry, and a tag or a digest."""
    assert is_registry(url)
    assert reference_of(url) == expected
    assert reference_of(expected.shown) == Reference(expected.host, expected.repository, plain=expected.plain)


@pytest.mark.parametrize(
    "url",
    [
        "oci://ghcr.io",
        "oci://ghcr.io/",
        "oci://ghcr.io/Team/x",
        "oci://ghcr.io/../x",
        "oci://ghcr.io/a//b",
        "oci://ghcr.io/a:",
        "oci://ghcr.io/a@sha256:abc",
        "oci://ghcr.io/a?b=c",
        "oci://ghcr.io/a\n",
        "oci:///a",
        f"oci://ghcr.io/{'a' * 300}",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    """They could lead to other requests than meant."""
    with pytest.raises(StoreError, match="names no repository"):
        reference_of(url)


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    """Docker's credential store is the place for it."""
    with pytest.raises(StoreError, match="docker login") as caught:
        reference_of("oci://someone:secret@ghcr.io/team/x")
    assert "secret" not in str(caught.value)
    assert "someone" not in str(caught.value)


def test_docker_hub_has_an_address_of_its_own() -> None:
    """Its API lies elsewhere than its name says; other hosts are what they are called."""
    assert reference_of("oci://docker.io/team/x").root == "https://registry-1.docker.io/v2/"
    assert reference_of("oci+http://localhost:5000/x").root == "http://localhost:5000/v2/"


def test_another_repository_is_a_path_alone() -> None:
    """No URL, no tag."""
    check_repository("team/dev")
    for wrong in ("oci://ghcr.io/team/dev", "team/dev:1.4", "../x", ""):
        with pytest.raises(StoreError, match="is no repository"):
            check_repository(wrong)
