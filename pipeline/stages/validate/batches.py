"""Batch sizes and batches of a validation: which sizes to run, extreme images, and the independence of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import RunError
from model_artifacts.host.environment import version
from model_artifacts.records import CPU_TARGET, Backend, OutputForm, RowCheck
from model_artifacts.sessions.feeds.batches import filled, rows_of_batch, size_of
from pipeline.stages.common.rows import ALONE, lifted, load_rows, rows_of, shown_rows, spans_of
from pipeline.stages.validate.metrics import distance, largest_part, row_dependence
from pipeline.stages.validate.spec import limit_of_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from model_artifacts.records import BatchRange, Preprocessing, Variant
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs
    from pipeline.planning.project import Project
    from pipeline.records import Artifact
    from pipeline.stages.common.rows import Parts, Span

    Logits = npt.NDArray[np.float32]

    Run = Callable[[Batch], Outputs]

    Load = Callable[[int, int], Batch]

    Lift = Callable[[Logits, Logits], Logits]


_BATCH = 32

_LARGEST_BATCH = 64
"""A larger batch shows nothing more, and takes memory."""
_ROWS = 64
"""The number of samples that run at every batch size."""
_ANY_SIZES = (1, 3, _BATCH)
"""The batch sizes to try of an artifact that takes any."""


class BatchSizes(NamedTuple):
    """The batch sizes that an artifact runs with."""

    most: int
    """The batch size for all samples."""
    smallest: int
    """The smallest batch that the artifact takes; fewer samples are filled up."""
    checked: tuple[int, ...]
    """The batch sizes for checks of rows."""
    others: tuple[int, ...] = ()
    """Further batch sizes for all samples: other kernels run each of several profiles."""


def checked_sizes(profile: BatchRange) -> tuple[int, ...]:
    """Return a profile's smallest, best and largest batch, and an odd one between: kernels prefer even ones.

    Of several profiles it is every size, and below each a batch that is padded.
    """
    if profile.tuned:
        below = [(less + size) // 2 for less, size in zip((0, *profile.tuned), profile.tuned, strict=False)]
        return tuple(sorted({*profile.tuned, *(size for size in below if profile.takes(size))}))
    middle = (profile.min + profile.max) // 2 | 1
    odd = middle if profile.takes(middle) else middle - 2
    return tuple(sorted({*profile.sizes, odd} if profile.takes(odd) else {*profile.sizes}))


def require_profiles(found: BatchRange, variant: Variant) -> None:
    """Check that an engine has the optimization profiles of its variant, each of which is then judged.

    Raises:
        RunError: it has others.
    """
    wanted = variant.profile.tuned if variant.profile else ()
    if found.tuned != wanted:
        expected = ", ".join(map(str, wanted)) or "one"
        raise RunError(
            "the engine has other optimization profiles than its variant", expected=expected, got=found.label
        )


def samples_of(project: Project, variant: Variant) -> int:
    """Return the number of validation samples to run a variant on, the first ones: all, if it may be deployed."""
    every, limit = project.data().validation_samples, limit_of_samples(project, variant)
    return every if limit is None else min(every, limit)


def batch_sizes_of(project: Project, variant: Variant, profile: BatchRange | None) -> BatchSizes:
    """Return the batch sizes to run a variant with; a profile of None stands for any size."""
    if profile is None:
        # A backend that tunes itself for every size runs one timed size only.
        timed = [size for size in project.config.timed_batches if size <= _LARGEST_BATCH]
        on_gpu = variant.target != CPU_TARGET
        most = max(timed, default=_BATCH) if on_gpu else _BATCH
        return (
            BatchSizes(most, most, (most,)) if variant.backend is Backend.INDUCTOR else BatchSizes(most, 1, _ANY_SIZES)
        )
    if profile.tuned:
        most = max((size for size in profile.tuned if size <= _LARGEST_BATCH), default=profile.tuned[0])
        return BatchSizes(most, 1, checked_sizes(profile), tuple(size for size in profile.tuned if size != most))
    most = max(profile.min, min(profile.max, _LARGEST_BATCH))
    if variant.backend is Backend.TORCH_COMPILE:  # compiled for each batch size that it runs
        return BatchSizes(most, most, profile.sizes)
    return BatchSizes(most, profile.min, checked_sizes(profile))


def extreme_images(spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return images that no validation set has, but that a camera may send: black, white, and a checkerboard.

    Returns:
        uint8 (3, height, width, channels).
    """
    board = np.indices((spec.height, spec.width)).sum(axis=0) % 2 * 255
    planes = np.stack([np.zeros_like(board), np.full_like(board, 255), board]).astype(np.uint8)
    return np.repeat(planes[..., None], spec.channels, axis=-1)


class Measured(NamedTuple):
    """An output, and the measure of its distances."""

    span: Span
    parts: Parts | None = None
    """The parts of a tensor; None for logits and vectors."""


def check_rows(  # noqa: PLR0913 - the artifact, the samples, and their measure
    run: Run,
    load: Load,
    reference: Logits,
    size: int,
    known: Logits | None = None,
    measured: Sequence[Measured] = (Measured(ALONE[0]),),
    *,
    lift: Lift = lambda rows, _reference: rows,
) -> tuple[RowCheck, ...]:
    """Run the first samples in batches of one size: as they are, in another order, and beside copies of the first.

    Args:
        run: a batch of images → float32 (size, classes), or several outputs by their names.
        load: (start, stop) → those samples.
        reference: the reference's logits (samples, classes), or the values of all outputs.
        size: the batch size.
        known: the artifact's logits of all samples, if they were computed in batches of this size. They are not
            computed again, unless the last of these batches was smaller.
        measured: the outputs, each of which is compared apart.
        lift: (rows, the reference's) → the rows as they are compared.

    Returns:
        a check of each output.
    """
    spans = [item.span for item in measured]
    count = min(len(reference), max(_ROWS, size))
    if known is not None and count % size == 0:
        logits = known[:count]
    else:
        logits = run_batches(run, load, count, batch=size, smallest=size, spans=spans)
    logits = lift(logits, reference[:count])
    images = filled(load(0, min(size, count)), size)
    wanted = filled(reference[: min(size, count)], size)
    plain = lift(rows_of(run(images), spans), wanted)
    order = np.random.default_rng(size).permutation(size)
    shuffled = np.empty_like(plain)
    shuffled[order] = lift(rows_of(run(rows_of_batch(images, order)), spans), wanted[order])
    first = np.where(np.arange(size) % 2, 0, np.arange(size))  # every second sample becomes the first one
    beside = lift(rows_of(run(rows_of_batch(images, first)), spans), wanted[first])
    alike = np.concatenate([plain, plain[::2], np.resize(plain[0], beside[1::2].shape)])
    among_others = np.concatenate([shuffled, beside[::2], beside[1::2]])
    checks = []
    for (name, _, columns), parts in measured:
        rows, want = logits[:, columns], reference[:count, columns]
        checks.append(
            RowCheck(
                output=name or None,
                batch=size,
                reference_l2=distance(rows, want, parts),
                part_l2=None if parts is None else largest_part(rows, want, parts.shape, parts.tolerance),
                relative_l2=row_dependence(alike[:, columns], among_others[:, columns], parts),
            )
        )
    return tuple(checks)


def evaluator(artifact: Artifact, samples: int, total: int) -> str:
    """Return the library that computes an artifact's logits, with its version, as the report names it."""
    backend = artifact.variant.backend
    part = f" on {samples} of {total} samples" if samples < total else ""
    if artifact.built_for is not None:
        return f"{artifact.built_for.flavour.value} {artifact.built_for.version}"
    if artifact.module is not None:
        return ", ".join(f"{tool.name} {tool.version}" for tool in artifact.module.libraries)
    if backend.is_module:
        return f"torch {version('torch')}"
    if backend is Backend.ONNX_REFERENCE:
        return f"onnx.reference {version('onnx')}{part}"
    on_gpu = "TensorRT" if backend is Backend.ONNXRUNTIME_TENSORRT else "CUDA"
    provider = "CPU" if artifact.variant.target == CPU_TARGET else on_gpu
    return f"ONNX Runtime {version('onnxruntime-gpu')}, {provider}{part}"


def run_batches(  # noqa: PLR0913 - the artifact, its samples, its sizes, and its outputs
    run: Run,
    load: Load,
    samples: int,
    *,
    batch: int = _BATCH,
    smallest: int = 1,
    spans: Sequence[Span] = ALONE,
    what: str = "the artifact",
) -> Logits:
    """Run all samples in batches.

    Args:
        run: float32 (batch, channels, height, width) → float32 (batch, classes), or several outputs by their names.
        load: (start, stop) → those samples.
        samples: the number of samples.
        batch: the batch size.
        smallest: the smallest batch size allowed. The last batch repeats its samples to fill up, and the surplus logits
            are dropped.
        spans: the outputs of the model.
        what: whose outputs they are, as messages name it.

    Returns:
        float32 (samples, classes), the values of several outputs side by side.

    Raises:
        RunError: the artifact has other outputs.
    """
    results = []
    for start in range(0, samples, batch):
        images = load(start, min(start + batch, samples))
        count = size_of(images)
        results.append(rows_of(run(filled(images, max(count, smallest))), spans, what)[:count])
    return np.concatenate(results)


class Showing(NamedTuple):
    """An artifact whose outputs are compared as rows."""

    run: Run
    spans: tuple[Span, ...]
    """The columns of each output."""
    reference: Logits
    """The reference's rows of all samples."""
    lift: Lift
    """(rows, the reference's) → the rows as they are compared."""


def showing(project: Project, variant: Variant, run: Run) -> Showing:
    """Return an artifact by what it shows of the logits: all of them, or their probabilities."""
    spans = spans_of(project.source())
    reference = load_rows(project.file(project.data().reference), spans)
    if variant.io.output is OutputForm.LOGITS:
        return Showing(run, spans, reference, lambda rows, _reference: rows)
    return Showing(lambda batch: shown_rows(run(batch), variant.io, reference.shape[1]), spans, reference, lifted)
