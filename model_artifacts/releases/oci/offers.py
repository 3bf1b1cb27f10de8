"""The artifact that a host would pull from a registry, by the index alone: no file is fetched.

The index's description is not signed. It tells what a pull would most likely take; a pull itself chooses by the signed
manifest, with which it compares the description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.deployment.files import uncallable_recipes
from model_artifacts.deployment.loading import this_host
from model_artifacts.deployment.resolution import resolve_entry
from model_artifacts.records import LATEST
from model_artifacts.releases.oci.layout import FACTORY, NAME, offers_of
from model_artifacts.releases.oci.references import reference_of
from model_artifacts.releases.oci.releases import OciReleases

if TYPE_CHECKING:
    from model_artifacts.deployment.requirements import Requirements
    from model_artifacts.deployment.resolution import Resolution
    from model_artifacts.records import DeploymentHost, ManifestEntry


class Offered(NamedTuple):
    """The artifacts of a release in a registry."""

    release: str
    """Name of the release."""
    digest: str
    """SHA-256 of its index."""
    artifacts: tuple[ManifestEntry, ...]
    """The artifacts as the index describes them."""
    manifests: tuple[str, ...]
    """SHA-256 of each artifact's manifest, in the same order."""
    factory: str
    """The model's factory, `module:function`; empty if the index names none."""
    shown: str
    """URL of the repository."""

    def place_of(self, entry: ManifestEntry) -> str:
        """Return the URL of an artifact's manifest."""
        return f"{self.shown}@sha256:{self.manifests[self.artifacts.index(entry)]}"


def read_offers(url: str) -> Offered:
    """Return the artifacts of a release in a registry.

    Args:
        url: the URL of the repository, with a tag or a digest; without one, `latest`.

    Raises:
        StoreError: there is no such release, its index is damaged, or the registry cannot be reached.
    """
    store = OciReleases(url)
    digest = store.digest_of(reference_of(url).name or LATEST)
    index = store.index(digest)
    offers = offers_of(index, f"{store.shown}@sha256:{digest}")
    return Offered(
        release=index.annotations[NAME],
        digest=digest,
        artifacts=tuple(offer.entry for offer in offers),
        manifests=tuple(offer.digest for offer in offers),
        factory=index.annotations.get(FACTORY, ""),
        shown=store.shown,
    )


def resolve_offered(offered: Offered, requirements: Requirements, host: DeploymentHost | None = None) -> Resolution:
    """Return the artifact to take from a registry, and the reasons against the others.

    Args:
        offered: the artifacts.
        requirements: the caller's requirements.
        host: the machine to resolve for; None for this one.

    Raises:
        ResolveError: no artifact suits; the message has the reason for each.
    """
    if host:
        return resolve_entry(offered, host, requirements)
    return resolve_entry(offered, this_host(), requirements, uncallable_recipes(offered.factory, offered.artifacts))
