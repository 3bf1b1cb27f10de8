"""Documents of OCI registries: descriptors, image manifests and image indexes.

Their form is that of the OCI image specification 1.1. Fields that this package does not use are ignored.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from model_artifacts.errors import StoreError

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
"""The empty configuration of an artifact without one."""
MAX_BYTES = 4 * 2**20
"""Most bytes of a manifest or an index: registries must take 4 MiB, and many take no more."""

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""An algorithm and its value. Others than SHA-256 are refused: they are not compared with a release's digests."""


class Document(BaseModel):
    """Base of the documents: camel case in JSON, frozen, open to fields that later versions add."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True
    )

    def to_bytes(self) -> bytes:
        """Return the document as JSON that is the same for the same content. Empty fields are left out."""
        fields = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(_without_empty(fields), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _without_empty(value: object) -> object:
    """Return a value of JSON without empty texts and mappings; `layers` and `manifests` stay, which must be there."""
    if isinstance(value, dict):
        return {name: _without_empty(item) for name, item in value.items() if item not in ("", {})}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value


class Platform(Document):
    """The hosts that a manifest of an index is for."""

    architecture: str
    os: str
    variant: str = ""


class Descriptor(Document):
    """A reference to a blob or a manifest, by its digest."""

    media_type: str
    digest: Digest
    size: Annotated[int, Field(ge=0)]
    artifact_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] = Field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The digest in hexadecimal."""
        return self.digest.removeprefix("sha256:")


class ImageManifest(Document):
    """A manifest: a configuration and layers, each of which is a blob."""

    schema_version: Literal[2] = 2
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = MANIFEST_TYPE
    artifact_type: str = ""
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Field(max_length=10_000)]
    subject: Descriptor | None = None
    annotations: dict[str, str] = Field(default_factory=dict)


class ImageIndex(Document):
    """A list of manifests."""

    schema_version: Literal[2] = 2
    media_type: Literal["application/vnd.oci.image.index.v1+json"] = INDEX_TYPE
    artifact_type: str = ""
    manifests: Annotated[tuple[Descriptor, ...], Field(max_length=10_000)] = ()
    annotations: dict[str, str] = Field(default_factory=dict)


D = TypeVar("D", bound=Document)


def parsed(kind: type[D], data: bytes, where: str) -> D:
    """Return a document.

    Args:
        kind: its class.
        data: its JSON.
        where: its place, for messages.

    Raises:
        StoreError: it is none.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{where} is no release of this project",
            expected="an OCI image index, and manifests of model files" if kind is ImageIndex else kind.__name__,
            got=f"{place}: {first['msg']}" if place else first["msg"],
        ) from exc


def describe(data: bytes, media_type: str) -> Descriptor:
    """Return the descriptor of bytes."""
    return Descriptor(media_type=media_type, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
