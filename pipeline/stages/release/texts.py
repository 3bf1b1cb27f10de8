"""A release's texts for people: the model card and the notes of its changes. Pure functions of manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.deployment.choices import compares, latency_of
from model_artifacts.deployment.comparison import compare, worth_telling
from model_artifacts.errors import listed
from model_artifacts.records import Backend, ChannelOrder, Task, WeightsOrigin
from pipeline.stages.release.evidence import tools_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model_artifacts.records import GateCheck, Manifest, ManifestEntry, ManifestModel, Preprocessing, TensorSpec


class Earlier(NamedTuple):
    """The release before."""

    name: str
    """Name of its folder."""
    manifest: Manifest


class _Row(NamedTuple):
    """An artifact in the model card."""

    name: str
    hosts: str
    batch: str
    agreement: str
    distance: str
    latency: str
    file: str
    checks: tuple[GateCheck, ...]


_NAMED_CLASSES = 5
"""Number of classes that the card names."""


def model_card(name: str, manifest: Manifest, before: Earlier | None) -> str:
    """Return the model card, in Markdown with the metadata that model hubs read.

    Args:
        name: the release's name.
        manifest: the release's manifest, of at least one artifact; its model must be known.
        before: the release before; None if there is none.
    """
    model = manifest.model
    assert model is not None, "a deployable artifact has a source and data"  # noqa: S101 - for the type checker
    return _render(
        "card.md.jinja",
        name=name,
        manifest=manifest,
        model=model,
        entries=manifest.artifacts,
        before=before.name if before else None,
        input=_input(model, manifest.artifacts),
        call=_call(model, manifest.artifacts),
        steps=_steps(model.preprocessing),
        output=_output(model, manifest.artifacts),
        metric=_metric(model, manifest.artifacts),
        is_classifier=model.task is Task.CLASSIFICATION,
        scores=_reference_scores(manifest.artifacts),
        sample=model.weights_origin is WeightsOrigin.SAMPLE,
        rows=[_row(entry, manifest) for entry in manifest.artifacts],
        devices="; ".join(sorted({entry.device for entry in manifest.artifacts if entry.timings})) or "none was timed",
        extra=_extra(manifest.artifacts),
    )


def release_notes(name: str, manifest: Manifest, before: Earlier | None) -> str:
    """Return the changes since the release before, in Markdown.

    Args:
        name: the release's name.
        manifest: the release's manifest.
        before: the release before; None if there is none.
    """
    return _render(
        "notes.md.jinja",
        name=name,
        before=before.name if before else None,
        since=before.manifest.built_at if before else None,
        facts=_changed_facts(before.manifest, manifest) if before else (),
        changes=worth_telling(compare(before.manifest, manifest)) if before else (),
        tools=_changed_tools(before.manifest, manifest) if before else (),
    )


def _render(template: str, **values: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - slow, and not in deployments

    environment = Environment(  # noqa: S701 - Markdown; `line` escapes what names could hold
        loader=PackageLoader("pipeline.stages.release", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["line"] = _line
    return environment.get_template(template).render(**values)


_SPECIAL = {ord(sign): f"\\{sign}" for sign in "\\|<[]*"}


def _line(text: str) -> str:
    """Return a text as one line of Markdown, which opens no tag, link, emphasis or column."""
    return " ".join(str(text).split()).translate(_SPECIAL)


def _input(model: ManifestModel, entries: Iterable[ManifestEntry]) -> str:
    """Return what the network takes, as a phrase."""
    steps = model.preprocessing
    if steps is None:
        shown = (f"{spec.name}: {spec.dtype}, ({', '.join(map(str, spec.shape))})" for spec in _tensors(entries))
        return "; ".join(shown)
    order = "greyscale" if steps.channels == 1 else "RGB" if steps.order is ChannelOrder.RGB else "BGR"
    order += "A" if steps.channels == len("RGBA") else ""
    return f"float32, (batch, {', '.join(map(str, steps.input_shape))}), {order}, normalised"


def _tensors(entries: Iterable[ManifestEntry]) -> tuple[TensorSpec, ...]:
    """Return the inputs of the artifacts, which all have the model's."""
    return next((entry.inputs for entry in entries if entry.inputs), ())


def _call(model: ManifestModel, entries: Iterable[ManifestEntry]) -> str:
    """Return a call of the loaded model, as a line of Python shows it."""
    if model.preprocessing is None:
        return f"model({', '.join(f'{spec.name}={spec.name}' for spec in _tensors(entries))})"
    return f'model.{"predict" if model.task.has_answers else "outputs"}("picture.jpg")'


def _steps(steps: Preprocessing | None) -> str:
    """Return the preprocessing as a phrase."""
    if steps is None:
        return "none: the model takes tensors as they are"
    sizes = [f"{size[0]}×{size[1]}" if isinstance(size, tuple) else str(size) for size in (steps.resize, steps.crop)]
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (steps.mean, steps.std))
    return f"resize {sizes[0]} ({steps.interpolation.value}), centre crop {sizes[1]}, mean ({mean}), std ({std})"


def _output(model: ManifestModel, entries: Iterable[ManifestEntry]) -> str:
    """Return the output as a phrase: logits of classes, or the name with the shape."""
    if model.task is Task.CLASSIFICATION:
        return f"logits of {_classes(model)}"
    classes = f" of {_classes(model)}" if model.task.has_classes else ""
    specs = {f"{spec.name}: {spec.dtype}, ({', '.join(map(str, spec.shape))})" for e in entries for spec in e.outputs}
    return f"{'; '.join(sorted(specs))} ({model.task.value}{classes})"


def _classes(model: ManifestModel) -> str:
    names = model.class_names
    return f"{len(names)} classes: {listed(names, most=_NAMED_CLASSES)}" if names else "classes without names"


def _metric(model: ManifestModel, entries: Iterable[ManifestEntry]) -> str:
    scores = (entry.accuracy.scores for entry in entries if entry.accuracy)
    if first := next((found[0].metric for found in scores if found), None):
        return first
    if model.task is not Task.CLASSIFICATION:
        return "cosine"
    return "top-1" if model.labelled else "agreement"


def _reference_scores(entries: Iterable[ManifestEntry]) -> list[str]:
    """Return the FP32 network's own measures by the labels; none without."""
    found = next((entry.accuracy.scores for entry in entries if entry.accuracy and entry.accuracy.scores), ())
    return [f"{score.metric} {score.reference_text}" for score in found if score.reference is not None]


def _row(entry: ManifestEntry, manifest: Manifest) -> _Row:
    agreement, distance = _accuracy(entry, manifest)
    return _Row(
        name=entry.id.split("/", 1)[1],
        hosts=_hosts(entry),
        batch=_batch(entry),
        agreement=agreement,
        distance=distance,
        latency=_latencies(entry),
        file=entry.file.path if entry.file else "",
        checks=entry.checks,
    )


def _accuracy(entry: ManifestEntry, manifest: Manifest) -> tuple[str, str]:
    """Return the share that the card's column is headed by, and the distance; none if they do not compare."""
    accuracy = entry.accuracy
    if accuracy is None:
        return "", ""
    if not compares(entry, manifest.artifacts):
        return f"not compared: on {accuracy.samples} images", ""
    labelled = manifest.model is not None and manifest.model.labelled
    if accuracy.scores:
        return accuracy.scores[0].text, f"{accuracy.relative_l2:.1e}"
    if manifest.model is not None and manifest.model.task is not Task.CLASSIFICATION:
        return f"{accuracy.cosine:.6f}", f"{accuracy.relative_l2:.1e}"
    share = accuracy.top1 if labelled else accuracy.top1_agreement
    return "" if share is None else f"{100 * share:.2f} %", f"{accuracy.relative_l2:.1e}"


def _hosts(entry: ManifestEntry) -> str:
    if built := entry.built_for:
        gpus = built.gpu or ", ".join(f"SM {number / 10:.1f}" for number in built.compute_capabilities)
        return f"{built.flavour.value} {built.version}, {gpus}"
    if entry.module:
        return ", ".join(f"{tool.name} {tool.version}" for tool in entry.module.libraries)
    return "ONNX Runtime" if entry.backend is Backend.ONNXRUNTIME else entry.backend.value


def _batch(entry: ManifestEntry) -> str:
    """Return the batch sizes that an artifact takes, and how a batch runs unless it does so as a whole."""
    size = entry.profile.label if entry.profile else "any"
    return ", ".join(filter(None, (size, entry.built_for.parts_phrase if entry.built_for else "")))


def _latencies(entry: ManifestEntry) -> str:
    timed = (latency_of(entry, batch) for batch in sorted({timing.batch for timing in entry.timings}))
    shown = [f"{timing.p50_ms:.4g} ms at batch {timing.batch}, {timing.clock.phrase}" for timing in timed if timing]
    return "; ".join(shown) or "not measured"


def _extra(entries: Iterable[ManifestEntry]) -> str:
    """Return the library's extra that loads the first artifact."""
    entry = next(iter(entries))
    return entry.built_for.flavour.value.replace("_", "-") if entry.built_for else "onnxruntime"


def _changed_facts(before: Manifest, after: Manifest) -> tuple[str, ...]:
    """Return the changes of model, data and commit, one phrase each."""
    old, new = before.model, after.model
    if old is None or new is None:
        return ()
    facts = (
        ("network", old.network, new.network),
        (
            "weights",
            f"{old.weights_detail}, {old.weights_sha256[:12]}…",
            f"{new.weights_detail}, {new.weights_sha256[:12]}…",
        ),
        ("preprocessing", _steps(old.preprocessing), _steps(new.preprocessing)),
        ("classes", _classes(old), _classes(new)),
        ("images", old.images, new.images),
        ("top-1 of the FP32 network", _share(old.reference_top1), _share(new.reference_top1)),
    )
    return tuple(f"{name}: {now}; before: {then}" for name, then, now in facts if then != now)


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.2f} %"


def _changed_tools(before: Manifest, after: Manifest) -> tuple[str, ...]:
    old, new = ({tool.name: tool.version for tool in tools_of(manifest)} for manifest in (before, after))
    return tuple(
        f"{name}: {new.get(name, 'none')}; before: {old.get(name, 'none')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )
