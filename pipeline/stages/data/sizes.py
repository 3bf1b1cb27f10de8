"""Validation samples at the sizes that dynamic axes are checked at, with the FP32 reference's logits of them.

Images are resized. Of arrays, whose entries no filter mixes, the beginnings are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import DataError
from model_artifacts.host.hashes import describe_file
from pipeline.config.axes import label_axes, own_sizes, shown_sizes
from pipeline.config.loading import placed_error
from pipeline.records import AxisSize, SizedSamples
from pipeline.stages.common.probe import at_sizes, taking
from pipeline.stages.common.sizes.following import at_each_size, require_following
from pipeline.stages.common.tensors.axes import beginnings, dynamic_inputs, require_axes, what_of
from pipeline.stages.data.storing import save

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    from torch import nn

    from model_artifacts.records import Preprocessing
    from pipeline.config.axes import Sizes
    from pipeline.config.files.yaml_source import Location
    from pipeline.planning.project import Project
    from pipeline.stages.common.sizes.following import AtSize, Shape

    Logits = npt.NDArray[np.float32]
    Reference = Callable[[npt.NDArray[Any], Preprocessing | None], Logits]

SAMPLES = 16
"""The samples at each size: a choice. There are up to eight sizes, and a fault at a size shows in every one of it."""


def store_sizes(
    project: Project, model: nn.Module, run: Reference, labels: npt.NDArray[Any] | None
) -> tuple[SizedSamples, ...]:
    """Write the first validation samples at each size with the reference's logits; nothing without dynamic axes.

    The samples' own size is left out: all of them are validated at it.

    Args:
        project: the validation samples must be written.
        model: the FP32 network.
        run: (pixels, preprocessing), or (arrays, None) → the logits of the FP32 network.
        labels: the labels of the validation samples in the file of arrays; None without them.

    Raises:
        ConfigError: the inputs have no such axes, a range does not fit the samples' own size, or outputs follow arrays
            whose labels do not.
        DataError: the network takes no samples of such a size, or gives outputs for them that its task has no meaning
            for.
    """
    for kind in ("validation", "reference"):
        for former in project.paths.data.parent.glob(f"{kind}-*.npy"):
            former.unlink()
    if not project.config.axes:
        return ()
    specs = project.source().inputs
    require_axes(project, specs)
    own = own_sizes(specs, dynamic_inputs(project))
    rows = np.load(project.paths.validation, mmap_mode="r")[:SAMPLES]
    others = [sizes for sizes in project.config.checked_sizes if {**own, **dict(sizes)} != own]
    tried = at_each_size(project, model, others, DataError)
    require_following(tried, project.source().task, DataError, what_of(project))
    _require_labels(project, tried, own, labels)
    return tuple(
        _store(project, _at(project, rows, sizes), run, () if item.shapes == tried[0].shapes else item.shapes)
        for sizes, item in zip(others, tried[1:], strict=True)
    )


def _require_labels(
    project: Project, tried: Sequence[AtSize], own: Mapping[str, int], truth: npt.NDArray[Any] | None
) -> None:
    """Refuse labels of outputs that follow arrays if nothing says which of their axes to cut, or they do not fit.

    Args:
        project: the configuration.
        tried: the outputs at the samples' own size, and at the others.
        own: the samples' own size along each dynamic axis.
        truth: the labels of the validation samples; None without them.

    Raises:
        ConfigError: a metric would compare them with outputs of another size.
    """
    labels = project.config.data.labels
    if project.source().preprocessing is not None or truth is None:
        return
    names = label_axes(project.config.data)
    if not names:
        if any(item.shapes != tried[0].shapes for item in tried):
            text = (
                "`data.labels` have the samples' own size, and the network's outputs follow the samples; name the axes "
                f"of the labels, such as `data: {{axes: {{{labels}: [{next(iter(own))}]}}}}`, with null for a fixed one"
            )
            raise placed_error(project.config_file, project.plan.model, [(("data", "labels"), text)])
        return
    shape = truth.shape[1:]
    wrong = [name for name, size in zip(names, shape, strict=False) if name is not None and own[name] != size]
    if len(names) != len(shape) or wrong:
        text = f"a label has the shape {shape}; expected a name or null for each axis"
        if wrong:
            text = (
                f"a label has the shape {shape}; expected {own[wrong[0]]} entries of {wrong[0]!r}, as the inputs have"
            )
        place: Location = ("data", "axes", str(labels))
        raise placed_error(project.config_file, project.plan.model, [(place, f"`data.axes.{labels}`: {text}")])


@dataclass(frozen=True)
class _Sized:
    """Samples of other sizes than their own."""

    sizes: Sizes
    rows: npt.NDArray[Any]
    """Pixels, or an array with a field for each input."""
    spec: Preprocessing | None
    """The preprocessing of images of this size; None for arrays."""


def _at(project: Project, rows: npt.NDArray[Any], sizes: Sizes) -> _Sized:
    """Return validation samples in other sizes."""
    own = project.source().preprocessing
    if own is None:
        shorter = beginnings(rows, dynamic_inputs(project), sizes)
        _require_different(rows, shorter, sizes)
        return _Sized(sizes, shorter, None)
    spec = at_sizes(own, sizes)
    return _Sized(sizes, resized(rows, spec), spec)


def _require_different(rows: npt.NDArray[Any], shorter: npt.NDArray[Any], sizes: Sizes) -> None:
    """Refuse beginnings that are alike for samples that differ: an artifact would be judged by one of them alone.

    Raises:
        DataError: they are.
    """
    if len({row.tobytes() for row in shorter}) == 1 < len({row.tobytes() for row in rows}):
        raise DataError(
            f"the beginnings of the first {len(rows)} validation samples are alike at {shown_sizes(sizes)}",
            expected="samples that differ at every size, by which artifacts are judged",
            got="the same entries in each",
            fix="pad the samples at their end, and not at their start; or raise `min` in `profiles`",
        )


def _store(project: Project, sized: _Sized, run: Reference, shapes: tuple[Shape, ...]) -> SizedSamples:
    """Write samples with the reference's logits, and the shapes of its outputs where they follow."""
    sizes = sized.sizes
    with taking(what_of(project), sizes, DataError):
        logits = run(sized.rows, sized.spec)
    files = project.paths.sized_validation(sizes), project.paths.sized_reference(sizes)
    save(files[0], sized.rows)
    save(files[1], logits)
    stored, reference_file = (describe_file(file, project.paths.root) for file in files)
    return SizedSamples(
        axes=tuple(AxisSize(name=name, size=size) for name, size in sizes),
        samples=len(sized.rows),
        pixels=stored,
        reference=reference_file,
        shapes=shapes,
    )


def resized(pixels: npt.NDArray[np.uint8], spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return images in another size, by Pillow's bilinear filter, channel by channel.

    Args:
        pixels: uint8 (samples, height, width, channels).
        spec: the preprocessing with the new size.
    """
    from PIL import Image  # noqa: PLC0415 - only images with dynamic axes need it

    found = np.empty((len(pixels), spec.height, spec.width, spec.channels), dtype=np.uint8)
    for image, resized_image in zip(pixels, found, strict=True):
        for channel in range(spec.channels):
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            resized_image[..., channel] = np.asarray(plane.resize((spec.width, spec.height), Image.Resampling.BILINEAR))
    return found
