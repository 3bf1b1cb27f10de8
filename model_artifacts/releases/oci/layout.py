"""A release ↔ the documents of an OCI registry. Pure.

    index                     one release: its name, its time, and a manifest for each artifact
    └ manifest                a ModelPack: one artifact with its files, and the release's evidence
      ├ config                the ModelPack's description
      └ layers                files as they are, each a blob, at the path in `org.cncf.model.filepath`

Every manifest can be pulled alone, by any client that knows ModelPack, and makes a folder that loads. Blobs are shared.
The facts in annotations serve the choice of an artifact without its bytes. They are not signed, so a pull compares
them with the manifest that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from model_artifacts.errors import ReleaseError, StoreError
from model_artifacts.records import (
    CPU_TARGET,
    Backend,
    FileRecord,
    ManifestEntry,
    Precision,
    StoredRelease,
    Task,
    is_applied,
)
from model_artifacts.records.latency import ranking_clock
from model_artifacts.releases.archive import MAX_BYTES as MOST_BYTES
from model_artifacts.releases.oci.documents import (
    MANIFEST_TYPE,
    MAX_BYTES,
    Descriptor,
    Document,
    ImageIndex,
    ImageManifest,
    Platform,
    describe,
    parsed,
)
from model_artifacts.releases.oci.ngc import NO_PARTS, triton_image
from model_artifacts.releases.verification import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from model_artifacts.records import Manifest

RELEASE_TYPE = "application/vnd.model-artifacts.release.v1+json"
"""Type of a release's index."""
MODEL_TYPE, CONFIG_TYPE = "application/vnd.cncf.model.manifest.v1+json", "application/vnd.cncf.model.config.v1+json"
_WEIGHT, _SETTINGS, _TEXT = (
    "application/vnd.cncf.model.weight.v1.raw",
    "application/vnd.cncf.model.weight.config.v1.raw",
    "application/vnd.cncf.model.doc.v1.raw",
)
"""ModelPack's types of layers: artifacts' files, the manifest, all others. Source: its specification, docs/spec.md."""
_PATH, _TITLE = "org.cncf.model.filepath", "org.opencontainers.image.title"
"""ModelPack's annotation of a file's path, and the one that `oras` reads."""
_OURS = "dev.model-artifacts."
_CREATED, _REVISION = "org.opencontainers.image.created", "org.opencontainers.image.revision"
NAME, FACTORY, ENTRY = f"{_OURS}release", f"{_OURS}factory", f"{_OURS}entry"
_PRECISIONS = {
    Precision.FP32: "float32",
    Precision.TF32: "float32",
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
    Precision.INT8: "int8",
    Precision.FP8: "float8_e4m3",
}
"""ModelPack's names of the precisions. Source: its specification, docs/config.md."""
_FORMATS = {
    Backend.TENSORRT: "tensorrt",
    Backend.ONNXRUNTIME: "onnx",
    Backend.DYNAMO: "pt2",
    Backend.DYNAMO_AOTI: "pt2",
    Backend.TORCH_COMPILE: "json",
}
_MAX_ALL_BYTES = 64 * 2**20
"""Most bytes of all manifests of one release."""


class ModelDescriptor(Document):
    """ModelPack's general facts about a model."""

    name: str
    title: str
    created_at: str
    revision: str | None = None


class Capabilities(Document):
    """ModelPack's kinds of inputs and outputs."""

    input_types: tuple[str, ...]
    output_types: tuple[str, ...]


class ModelConfig(Document):
    """ModelPack's technical facts about a model."""

    format: str
    precision: str
    capabilities: Capabilities


class ModelFiles(Document):
    """Digests of the layers as they are unpacked, in their order."""

    type: str = "layers"
    diff_ids: tuple[str, ...]


class ModelPack(Document):
    """The configuration of a manifest: `application/vnd.cncf.model.config.v1+json`."""

    descriptor: ModelDescriptor
    config: ModelConfig
    modelfs: ModelFiles


class Documents(NamedTuple):
    """The documents of a release."""

    configs: tuple[bytes, ...]
    manifests: tuple[bytes, ...]
    release: bytes
    """The index."""


class Offer(NamedTuple):
    """An artifact of an index."""

    entry: ManifestEntry
    """Its facts, without those that no choice depends on."""
    digest: str
    """SHA-256 of its manifest."""


def documents_of(listing: StoredRelease, manifest: Manifest, parts: Mapping[str, Iterable[FileRecord]]) -> Documents:
    """Return the documents of a release. The same release gives the same bytes.

    Args:
        listing: the release's name and files.
        manifest: its manifest.
        parts: the files of each artifact, by its id.

    Raises:
        ReleaseError: the release has no artifact, or too many for a registry.
    """
    if not manifest.artifacts:
        raise ReleaseError("the release has no artifact that a host could pick", fix="release a finished build")
    ours = {file.path for files in parts.values() for file in files}
    evidence = [file for file in listing.files if file.path not in ours]
    configs, manifests, descriptors = [], [], []
    for entry in manifest.artifacts:
        own = {file.path: file for file in parts[entry.id]}
        layers = [_layer(own[path], _WEIGHT) for path in sorted(own)]
        layers += [_layer(file, _SETTINGS if file.path == MANIFEST else _TEXT) for file in evidence]
        config = _config(entry, manifest, layers)
        facts = _facts(entry)
        image = ImageManifest(
            artifact_type=MODEL_TYPE,
            config=describe(config, CONFIG_TYPE),
            layers=tuple(layers),
            annotations={NAME: listing.name, **facts},
        ).to_bytes()
        described = describe(image, MANIFEST_TYPE)
        known = {**facts, ENTRY: _short(entry).model_dump_json(exclude_defaults=True)}
        update = {"artifact_type": MODEL_TYPE, "platform": _platform(entry), "annotations": known}
        configs.append(config)
        manifests.append(image)
        descriptors.append(described.model_copy(update=update))
    about = {NAME: listing.name, _CREATED: manifest.built_at.isoformat()}
    if manifest.git:
        about[_REVISION] = manifest.git.commit
    if manifest.model:
        about[FACTORY] = manifest.model.factory
    index = ImageIndex(artifact_type=RELEASE_TYPE, manifests=tuple(descriptors), annotations=about).to_bytes()
    if max(map(len, (index, *manifests))) > MAX_BYTES:
        raise ReleaseError(
            "the release has too many artifacts for a registry",
            expected=f"an index of at most {MAX_BYTES:,} bytes",
            got=f"{len(index):,} bytes",
        )
    return Documents(tuple(configs), tuple(manifests), index)


def _layer(file: FileRecord, media_type: str) -> Descriptor:
    named = {_PATH: file.path, _TITLE: file.path}
    return Descriptor(media_type=media_type, digest=f"sha256:{file.sha256}", size=file.bytes, annotations=named)


def _config(entry: ManifestEntry, manifest: Manifest, layers: Iterable[Descriptor]) -> bytes:
    task = manifest.model.task if manifest.model else Task.CLASSIFICATION
    return ModelPack(
        descriptor=ModelDescriptor(
            name=entry.model,
            title=entry.id,
            created_at=manifest.built_at.isoformat(),
            revision=manifest.git.commit if manifest.git else None,
        ),
        config=ModelConfig(
            format=_FORMATS.get(entry.backend, entry.backend.value),
            precision=_PRECISIONS[entry.precision],
            capabilities=Capabilities(
                input_types=("image",), output_types=("embedding" if task is Task.EMBEDDING else "other",)
            ),
        ),
        modelfs=ModelFiles(diff_ids=tuple(layer.digest for layer in layers)),
    ).to_bytes()


def _platform(entry: ManifestEntry) -> Platform:
    """Return the hosts of an artifact.

    Clients that know no GPU compare the variant, too, and take none that is not their own: of an index, they find the
    files for a processor alone. Without it, the first engine would do for them on any GPU.
    """
    return Platform(os="linux", architecture="amd64", variant="" if entry.target == CPU_TARGET else entry.target)


def _facts(entry: ManifestEntry) -> dict[str, str]:
    """Return an artifact's facts for people and for other tools, as annotations."""
    built, module = entry.built_for, entry.module
    gpu = (built.gpu if built else None) or (entry.gpu.name if entry.gpu else "")
    numbers = built.compute_capabilities if built else (entry.gpu.compute_capability,) if entry.gpu else ()
    facts = {
        "artifact": entry.id,
        "target": entry.target,
        "backend": entry.backend.value,
        "precision": entry.precision.value,
        "gpu": gpu,
        "sm": ",".join(map(str, numbers)),
        "batch": entry.profile.phrase if entry.profile else "any",
        "gate": _gate(entry),
    }
    if entry.timings:
        clock = ranking_clock({timing.clock for timing in entry.timings})
        best = min((timing for timing in entry.timings if timing.clock is clock), key=lambda item: item.batch)
        facts["p50"] = f"{best.p50_ms:.4g} ms at batch {best.batch} {clock.phrase}"
    if built:
        split = built.batch_parts > 1
        facts["tensorrt"] = f"{built.flavour.value} {built.version}"
        facts["compatible"] = (
            f"versions: {'later ones' if built.version_compatible else 'its own'}; GPUs: {_others(entry)}"
        )
        facts["parts"] = f"{built.batch_parts} of a batch at once; the file is for one of them" if split else ""
        facts["triton"] = NO_PARTS if split else triton_image(built.flavour, built.version)
    if module:
        facts["libraries"] = ", ".join(f"{tool.name} {tool.version}" for tool in module.libraries)
    return {f"{_OURS}{name}": value for name, value in facts.items() if value}


def _others(entry: ManifestEntry) -> str:
    built = entry.built_for
    if built is None or built.gpu is None:
        return "those of its list and later ones"
    return built.hardware_compatibility.replace("_", " ").replace("none", "this type")


def _gate(entry: ManifestEntry) -> str:
    """Return the gate's verdict: its number of checks, and the distance to the reference."""
    passed = sum(check.passed for check in entry.checks)
    distance = f", relative L2 {entry.accuracy.relative_l2:.3g}" if entry.accuracy else ""
    return f"{passed} of {len(entry.checks)} checks passed{distance}" if entry.checks else ""


def _short(entry: ManifestEntry) -> ManifestEntry:
    """Return an entry without the facts that no choice depends on."""
    stripped = tuple(item for item in entry.settings if item.name == "strip_plan" and is_applied(item.name, [item]))
    dropped = ("layers", "inputs", "outputs", "weight_warnings", "checks", "rows", "noise", "toolchain", "commits")
    return entry.model_copy(update={**dict.fromkeys(dropped, ()), "settings": stripped})


# Reading.


def files_of(image: ImageManifest, where: str) -> tuple[FileRecord, ...]:
    """Return the files of an artifact's manifest, at paths that nobody has checked yet.

    Raises:
        StoreError: a layer states no path.
    """
    if any(_PATH not in layer.annotations for layer in image.layers):
        raise StoreError(
            f"{where} is no release of this project", expected=f"{_PATH} at every layer", fix="do not use it"
        )
    return tuple(
        FileRecord(path=layer.annotations[_PATH], bytes=layer.size, sha256=layer.sha256) for layer in image.layers
    )


def index_of(data: bytes, where: str) -> ImageIndex:
    """Return a release's index.

    Raises:
        StoreError: it is none, or its manifests are too large.
    """
    index = parsed(ImageIndex, data, where)
    total = sum(item.size for item in index.manifests)
    kinds = {item.media_type for item in index.manifests}
    if index.artifact_type != RELEASE_TYPE or kinds != {MANIFEST_TYPE} or not index.annotations.get(NAME):
        raise StoreError(
            f"{where} is no release of this project",
            expected=f"an index of the type {RELEASE_TYPE}, of image manifests",
            got=index.artifact_type or "another one",
        )
    if total > _MAX_ALL_BYTES or any(item.size > MAX_BYTES for item in index.manifests):
        raise StoreError(f"the manifests of {where} are too large", expected=f"at most {_MAX_ALL_BYTES:,} bytes")
    return index


def listing_of(index: ImageIndex, images: Iterable[ImageManifest], where: str) -> StoredRelease:
    """Return a release's name and files, from its index and all its manifests.

    Raises:
        StoreError: a path leaves the release's folder or stands for two files, or the files are too large.
    """
    files = {file for image in images for file in files_of(image, where)}
    try:
        listing = StoredRelease(
            name=index.annotations[NAME], files=tuple(sorted(files, key=lambda file: (file.path, file.sha256)))
        )
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise StoreError(f"{where} lists no release", got=first["msg"], fix="do not use it") from exc
    if listing.total_bytes > MOST_BYTES:
        got = f"{listing.total_bytes:,} bytes"
        raise StoreError(f"{listing.name} is too large", expected=f"at most {MOST_BYTES:,} bytes", got=got)
    return listing


def offers_of(index: ImageIndex, where: str) -> tuple[Offer, ...]:
    """Return the artifacts of an index, as its annotations describe them. Nothing has proven them.

    Raises:
        StoreError: an annotation is missing or damaged.
    """
    try:
        return tuple(
            Offer(ManifestEntry.model_validate_json(item.annotations.get(ENTRY, "")), item.sha256)
            for item in index.manifests
        )
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"the index of {where} does not describe its artifacts",
            expected=f"{ENTRY} at each, as this version of the package writes it",
            got=f"{place}: {first['msg']}",
            fix="pull with the version that pushed it, or push the release again",
        ) from exc


def check_offers(index: ImageIndex, manifest: Manifest, where: str) -> None:
    """Check that an index describes the artifacts as the release's own manifest does.

    Raises:
        ReleaseError: it does not.
        StoreError: an annotation is missing or damaged.
    """
    stated = [offer.entry for offer in offers_of(index, where)]
    known = [_short(entry) for entry in manifest.artifacts]
    if stated != known:
        wrong = [one.id for one in stated if one not in known] or [one.id for one in known if one not in stated]
        raise ReleaseError(
            "the registry's index describes artifacts otherwise than the release does",
            where=where,
            got=f"another description of {wrong[0]}" if wrong else "another order",
            fix="do not use it; push the release again",
        )
