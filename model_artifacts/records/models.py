"""The manifests of several models ↔ the one manifest of their folder. Pure functions.

A part keeps everything that a model's own manifest says: `of_model` gives back what `joined` was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import UsageError, closest, listed
from model_artifacts.records.base import Key, KeyField
from model_artifacts.records.manifest import Manifest, ManifestPart

if TYPE_CHECKING:
    from collections.abc import Iterable


def model_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of a manifest's models, sorted; none for an empty manifest of an unknown model."""
    if manifest.models:
        return tuple(part.name for part in manifest.models)
    named = {manifest.model.name} if manifest.model else set()
    return tuple(sorted(named | {entry.model for entry in manifest.artifacts}))


def joined(manifests: Iterable[Manifest]) -> Manifest:
    """Return the manifest of several models, or the only one as it is.

    Args:
        manifests: the manifest of each model; at least one.
    """
    own = {name: item for item in manifests for name in model_names(item)[:1]}
    ordered = [own[name] for name in sorted(own)]
    if len(ordered) == 1:
        return ordered[0]
    states = {item.git for item in ordered}
    return Manifest(
        key=Key(fields=tuple(KeyField(name=name, value=own[name].key.digest) for name in sorted(own))),
        toolchain=max(ordered, key=lambda item: item.built_at).toolchain,
        built_at=max(item.built_at for item in ordered),
        git=states.pop() if len(states) == 1 else None,
        host=", ".join(sorted({item.host for item in ordered})),
        model=None,
        models=tuple(_part(name, own[name]) for name in sorted(own)),
        artifacts=tuple(sorted((entry for item in ordered for entry in item.artifacts), key=lambda entry: entry.id)),
        milestones=tuple(row for item in ordered for row in item.milestones),
    )


def of_model(manifest: Manifest, name: str | None = None) -> Manifest:
    """Return the manifest of one model.

    Args:
        manifest: a manifest of one model or of several.
        name: the model's name; None takes the only model.

    Raises:
        UsageError: there are several models and none was named, or there is no model of this name.
    """
    names = model_names(manifest)
    if name is None and len(manifest.models) > 1:
        raise UsageError(
            "the manifest has several models, and none was chosen",
            expected=f"one of {listed(names, most=20)}",
            fix=f'name it: `model="{names[0]}"`, or on the command line `--model {names[0]}`',
        )
    if name is not None and names and name not in names:
        close = closest(name, names)
        raise UsageError(
            f"the manifest has no model {name!r}",
            expected=listed(names, most=20),
            got=name,
            fix=f"did you mean {close!r}?" if close else "",
        )
    part = next((item for item in manifest.models if item.name == name), None)
    return _own(manifest, part) if part else manifest


def manifests_of(manifest: Manifest) -> tuple[Manifest, ...]:
    """Return the manifest of each model, in the order of their names."""
    return tuple(_own(manifest, part) for part in manifest.models) or (manifest,)


def _part(name: str, own: Manifest) -> ManifestPart:
    return ManifestPart(
        name=name,
        key=own.key,
        built_at=own.built_at,
        toolchain=own.toolchain,
        git=own.git,
        host=own.host,
        model=own.model,
    )


def _own(manifest: Manifest, part: ManifestPart) -> Manifest:
    artifacts = tuple(entry for entry in manifest.artifacts if entry.model == part.name)
    ids = {entry.id for entry in artifacts}
    return Manifest(
        key=part.key,
        built_at=part.built_at,
        toolchain=part.toolchain,
        git=part.git,
        host=part.host,
        model=part.model,
        artifacts=artifacts,
        milestones=tuple(row for row in manifest.milestones if row.id in ids),
    )
