"""Validation images at the sizes that dynamic axes are checked at, with the FP32 reference's logits of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import DataError
from model_artifacts.host.hashes import describe_file
from pipeline.config.axes import FOLLOWING, ranges_without
from pipeline.config.loading import placed_error
from pipeline.records import AxisSize, SizedSamples
from pipeline.stages.common.probe import at_sizes, taking
from pipeline.stages.common.sizes.following import at_each_size, require_following
from pipeline.stages.data.storing import save

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import nn

    from model_artifacts.records import AxisRange, Preprocessing
    from pipeline.planning.project import Project
    from pipeline.stages.common.sizes.following import Shape

    Logits = npt.NDArray[np.float32]
    Reference = Callable[[npt.NDArray[Any], Preprocessing], Logits]

SAMPLES = 16
"""The images at each size: a choice. There are up to eight sizes, and a fault at a size shows in every image of it."""


def store_sizes(project: Project, model: nn.Module, run: Reference) -> tuple[SizedSamples, ...]:
    """Write the first validation images at each size with the reference's logits; nothing without dynamic axes.

    The network's own size is left out: all images are validated at it.

    Args:
        project: the validation images must be written.
        model: the FP32 network.
        run: (pixels, preprocessing) → the logits of the FP32 network.

    Raises:
        ConfigError: the images' own size lies outside of a range.
        DataError: the network takes no images of such a size, or gives outputs for them that its task has no meaning
            for.
    """
    for kind in ("validation", "reference"):
        for former in project.paths.data.parent.glob(f"{kind}-*.npy"):
            former.unlink()
    if not project.config.axes:
        return ()
    spec = project.source().pictures
    _require_own_size(project, {"height": spec.height, "width": spec.width})
    pixels = np.load(project.paths.validation, mmap_mode="r")[:SAMPLES]
    task = project.source().task
    others = [sizes for sizes in project.config.checked_sizes if at_sizes(spec, sizes).input_shape != spec.input_shape]
    tried = at_each_size(model, spec, others, DataError)
    require_following(tried, task, DataError)
    found = []
    for sizes, item in zip(others, tried[1:], strict=True):
        sized = at_sizes(spec, sizes)
        shapes = item.shapes if task in FOLLOWING else ()
        found.append(_store(project, sizes, resized(pixels, sized), sized, run, shapes))
    return tuple(found)


def _store(  # noqa: PLR0913 - the images, their size, and what the network gives for them
    project: Project,
    sizes: tuple[tuple[str, int], ...],
    pixels: npt.NDArray[np.uint8],
    spec: Preprocessing,
    run: Reference,
    shapes: tuple[Shape, ...],
) -> SizedSamples:
    with taking(sizes, DataError):
        logits = run(pixels, spec)
    files = project.paths.sized_validation(sizes), project.paths.sized_reference(sizes)
    save(files[0], pixels)
    save(files[1], logits)
    pixel_file, reference_file = (describe_file(file, project.paths.root) for file in files)
    return SizedSamples(
        axes=tuple(AxisSize(name=name, size=size) for name, size in sizes),
        samples=len(pixels),
        pixels=pixel_file,
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


def _require_own_size(project: Project, own: dict[str, int]) -> None:
    """Refuse ranges without the images' own size, at which all validation images are judged.

    Raises:
        ConfigError: a range does not hold it; all of them are listed.
    """
    ranges = [profile.axes for profile in project.config.profiles]
    problems = [
        (("profiles", index), _not_held(axis, own[axis.name], index)) for index, axis in ranges_without(ranges, own)
    ]
    if problems:
        raise placed_error(project.config_file, project.plan.model, problems)


def _not_held(axis: AxisRange, own: int, index: int) -> str:
    fact = f"`profiles[{index}]`: {axis.name} {axis.min} to {axis.max} does not hold the images' own {axis.name}, {own}"
    return f"{fact}, at which every artifact is validated; widen it, or change `preprocessing`"
