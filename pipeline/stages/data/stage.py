"""Images → calibration images, validation images and the FP32 reference's logits (`<model>/data/`)."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.deployment.detections import classes_of as detected_classes
from model_artifacts.errors import DataError, listed
from model_artifacts.host.environment import now, threads, tools
from model_artifacts.host.files import replacing, write_bytes
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.progress import Bars
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.records import Preprocessing, Task, WeightsOrigin
from model_artifacts.sessions.arithmetic import call, strict_fp32, tensors, torch_batch
from model_artifacts.sessions.feeds.batches import size_of
from pipeline.config.tasks import CLASSES, TABLE_TASKS, require_tolerances
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import DataRecord, ImagesOrigin, SourceRecord
from pipeline.stages.common import images
from pipeline.stages.common.classes import Classes, classes_of
from pipeline.stages.common.model import put_in_fastest_layout, restore_model
from pipeline.stages.common.rows import of_each_output, spans_of
from pipeline.stages.common.samples import to_batch
from pipeline.stages.data.annotations import Truth, read_annotations
from pipeline.stages.data.checks import (
    chance_warning,
    require_different,
    require_different_rows,
    require_order,
    several_labels_warning,
)
from pipeline.stages.data.sizes import store_sizes
from pipeline.stages.data.storing import npy, save
from pipeline.stages.data.tensors import split_tensors
from pipeline.stages.data.truth import Table, arranged, folder_classes, read_masks, read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from torch import nn

    from pipeline.config.settings import Config, DataConfig, ModelConfig
    from pipeline.planning.paths import Paths
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.stages.common.images import Images

log = logging.getLogger(__name__)

_BATCH = 32
_EXCHANGED = 500
"""The number of images that are tried with red and blue exchanged."""


class _Split(NamedTuple):
    """Calibration and validation images, with pixels mapped from their files; or the samples of a model of tensors."""

    origin: ImagesOrigin
    detail: str
    calibration: Images
    validation: Images


def make_data(project: Project, model: nn.Module) -> DataRecord:
    """Store the images and the strict FP32 reference's logits of them.

    Args:
        project: the source stage must have run.
        model: the restored model, in FP32.

    Raises:
        DataError: the images are missing, too few or unreadable, or the reference gives NaN or infinity.
        RecordError: the source's record is missing or damaged.
        StorageError: the results cannot be written.
        NewerRecordError: a newer version of this project wrote the present record.
    """
    source = project.source()
    paths = project.paths
    refuse_newer(paths.data)
    key = key_of(project, Step("data", project.plan.model))  # before the images can change
    with replacing(paths.calibration) as calibration, replacing(paths.validation) as held_out, Bars() as bars:
        classes, files = _classes(project.config, source), (calibration, held_out)
        if source.named_inputs:
            split = _of_tensors(project, files)
        else:
            split = _split(project.config.data, source, classes, files, bars.reporting("reading images"))
        validation = split.validation
        if remark := (require_different if source.preprocessing else require_different_rows)(validation.pixels):
            log.warning("WARNING: %s", remark)
        what = "images" if source.preprocessing else "samples"
        log.info("%d %s from %s; computing the FP32 reference", len(validation), what, split.detail)
        reference = reference_logits(model, validation.pixels, source.preprocessing, bars.reporting("FP32 reference"))
        _check_order(project, model, split, reference)
    stored = _store_reference(project, reference)
    sized = store_sizes(project, model, lambda pixels, spec: reference_logits(model, pixels, spec), validation.labels)
    if source.task is Task.REGRESSION:
        require_tolerances(project.config.model.tolerance, source.classes)
    table = _table(project.config.data, source, classes, validation)
    boxes = _boxes(project.config, source, classes, validation)
    truth = boxes.boxes if boxes else _truth(project.config.data, source, validation, table)
    columns = table.columns if table and source.task in TABLE_TASKS else None
    _store_samples(paths, truth, validation.names)
    top1 = _top1(source, reference, truth) if source.task is Task.CLASSIFICATION else None
    record = DataRecord(
        key=key,
        built_at=now(),
        toolchain=tools(*(("onnxruntime-gpu",) if source.onnx else ()), "torch", "numpy", "pillow", "scikit-learn"),
        origin=split.origin,
        origin_detail=split.detail,
        preprocessing=source.preprocessing,
        calibration=describe_file(paths.calibration, paths.root),
        calibration_samples=len(split.calibration),
        validation=describe_file(paths.validation, paths.root),
        validation_samples=len(validation),
        labels=describe_file(paths.labels, paths.root) if truth is not None else None,
        reference=describe_file(stored, paths.root),
        reference_top1=top1,
        names=describe_file(paths.sample_names, paths.root) if validation.names else None,
        class_names=boxes.names if boxes else classes.names or columns,
        unreadable=(*split.calibration.unreadable, *validation.unreadable),
        sizes=sized,
    )
    return project.write(paths.data, record)


def _top1(
    source: SourceRecord, reference: npt.NDArray[np.float32], labels: npt.NDArray[np.generic] | None
) -> float | None:
    """Return the reference's top-1, None without labels; warn of one by chance, and of logits of several labels."""
    if remark := several_labels_warning(reference):
        log.warning("WARNING: %s", remark)
    if labels is None:
        return None
    top1 = float((reference.argmax(1) == labels).mean())
    if remark := chance_warning(top1, len(labels), source.classes):
        log.warning("WARNING: %s", remark)
    return top1


def _store_samples(paths: Paths, truth: npt.NDArray[np.generic] | None, names: Sequence[str]) -> None:
    """Write the truth and the names of the validation samples, and remove files of those that there are not."""
    if truth is not None:
        save(paths.labels, truth)
    else:
        paths.labels.unlink(missing_ok=True)
    if names:
        write_bytes(paths.sample_names, json.dumps(names).encode())
    else:
        paths.sample_names.unlink(missing_ok=True)


def _classes(config: Config, source: SourceRecord) -> Classes:
    """Return the classes of the network; none for a task without classes."""
    if not source.task.has_classes:
        return Classes(None, {})
    count: int | None = (source.sample_shape or (source.classes,))[0]
    if source.task is Task.DETECTION:
        count = _detected_classes(config.model, source)
        own = source.class_names
        if config.data.classes is None and own and count not in {None, len(own)}:
            raise DataError(
                "`model.decoding` gives other classes than the ONNX file names",
                expected=f"{len(own)}: {listed(own, most=10)}",
                got=f"{count} scores of each box",
                fix="correct `model.decoding`, such as a score of the background, or write the names in `data.classes`",
            )
    return classes_of(config.data.classes, source.class_names, count)


def _detected_classes(config: ModelConfig, source: SourceRecord) -> int | None:
    """Return the number of a detector's classes; None if a function of the user's own decodes its outputs."""
    return detected_classes(config.decoding, source.outputs) if config.decoding else None


def _boxes(config: Config, source: SourceRecord, classes: Classes, validation: Images) -> Truth | None:
    """Return the true boxes of a detector's validation images; None for other tasks, and without labels."""
    if source.task is not Task.DETECTION or config.data.labels is None:
        return None
    return read_annotations(
        Path(config.data.labels),
        Path(config.data.images),
        validation.names,
        source.pictures,
        classes.names,
        _detected_classes(config.model, source),
    )


def _truth(
    config: DataConfig, source: SourceRecord, validation: Images, table: Table | None
) -> npt.NDArray[np.generic] | None:
    """Return the labels of the validation images, as the task has them; None without any."""
    if source.task is Task.CLASSIFICATION or config.tensors is not None:
        return validation.labels
    if config.labels == CLASSES:
        return validation.labels if validation.labels is not None else folder_classes(config.images, validation.names)
    if config.masks is not None and source.sample_shape is not None:
        images_folder, folder = Path(config.images), Path(config.masks)
        return read_masks(folder, images_folder, validation.names, source.pictures, source.sample_shape)
    if table is not None:
        return table.values.astype(np.uint8) if source.task is Task.MULTILABEL else table.values
    return None


def _table(config: DataConfig, source: SourceRecord, classes: Classes, validation: Images) -> Table | None:
    """Return the table of labels with its columns in the order of the network's output; None without one."""
    images_alone = config.labels == CLASSES or config.tensors is not None
    if config.labels is None or images_alone or source.task is Task.DETECTION:
        return None
    table = read_table(Path(config.labels), validation.names)
    if source.task not in TABLE_TASKS:  # the user's own metric knows what the columns mean
        return table
    return arranged(
        table, Path(config.labels), classes.names, source.classes, zeros_and_ones=source.task is Task.MULTILABEL
    )


def reference_logits(
    model: nn.Module,
    pixels: npt.NDArray[Any],
    spec: Preprocessing | None,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> npt.NDArray[np.float32]:
    """Run the model strictly in FP32 on the CPU.

    Args:
        model: the network, in FP32.
        pixels: uint8 (samples, height, width, channels), or an array with a field for each input, possibly mapped from
            disk.
        spec: the preprocessing from pixels to the network's input; None for a model of tensors.
        report: receives the number of finished samples and their total after each batch.

    Returns:
        float32 (samples, classes), or flattened tensors (samples, values), those of several outputs side by side.

    Raises:
        DataError: the reference gives NaN or infinity.
    """
    batches = []
    put_in_fastest_layout(model, torch_batch(to_batch(_mapped_anew(pixels)[:2], spec)))
    with strict_fp32():
        for start in range(0, len(pixels), _BATCH):
            batch = torch_batch(to_batch(_mapped_anew(pixels)[start : start + _BATCH], spec))
            outputs = [output.detach().numpy() for output in tensors(call(model, batch))]
            batches.append(np.concatenate([output.reshape(size_of(batch), -1) for output in outputs], axis=1))
            report(min(start + _BATCH, len(pixels)), len(pixels))
    logits: npt.NDArray[np.float32] = np.concatenate(batches).astype(np.float32)
    if not np.isfinite(logits).all():
        raise DataError("the FP32 reference gives NaN or infinity, so that nothing can be validated with these weights")
    return logits


def _store_reference(project: Project, reference: npt.NDArray[np.float32]) -> Path:
    """Write the reference's outputs, each of several to an array of its own, and return the file."""
    paths, spans = project.paths, spans_of(project.source())
    if len(spans) == 1:
        save(paths.reference, reference)
        paths.references.unlink(missing_ok=True)
        return paths.reference
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # numpy's own function takes no array called `file`
        for name, array in of_each_output(reference, spans).items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy(array))
    write_bytes(paths.references, buffer.getvalue())
    paths.reference.unlink(missing_ok=True)
    return paths.references


def _check_order(project: Project, model: nn.Module, split: _Split, reference: npt.NDArray[np.float32]) -> None:
    """Try labelled images with red and blue exchanged, unless the order of the channels is known.

    Raises:
        DataError: the network recognises them better, and is better than chance.
    """
    source, written, labels = project.source(), project.config.preprocessing, split.validation.labels
    known = written is None and source.origin not in {
        WeightsOrigin.CHECKPOINT,
        WeightsOrigin.FACTORY,
        WeightsOrigin.ONNX,
    }
    stated = written is not None and "order" in written.model_fields_set
    if labels is None or split.origin is not ImagesOrigin.FOLDER or source.pictures.channels != len("RGB"):
        return
    if known or stated or source.classes == 1:
        return
    exchanged = np.array(split.validation.pixels[:_EXCHANGED, ..., ::-1])  # a copy: the file has the other order
    count = len(exchanged)
    logits = reference_logits(model, exchanged, source.pictures)
    if remark := require_order(reference[:count], logits, labels[:count]):
        log.warning("WARNING: %s", remark)


def _mapped_anew(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same images in a new mapping, which frees the pages read so far: 50,000 images are 7.5 GB."""
    if isinstance(pixels, np.memmap) and pixels.filename is not None:
        return np.load(pixels.filename, mmap_mode="r")  # type: ignore[no-any-return]  # numpy's types do not know
    return pixels


def _split(
    config: DataConfig,
    source: SourceRecord,
    classes: Classes,
    files: tuple[Path, Path],
    report: Callable[[int, int], None],
) -> _Split:
    """Write the configured images; `auto` means digits for the sample model and photographs for others."""
    calibration, validation = files
    spec = source.pictures
    name = config.images
    if name == "auto":
        name = "digits" if source.origin is WeightsOrigin.SAMPLE else "photographs"
    is_classifier = source.task is Task.CLASSIFICATION
    if name == "digits":
        if is_classifier and source.classes != images.DIGIT_CLASSES:
            raise DataError(
                "the digits' classes are not the model's",
                expected=f"{images.DIGIT_CLASSES} classes",
                got=str(source.classes),
                fix="set `data.images` in pipeline.yaml to `photographs`, or to a folder of the model's classes",
            )
        if config.calibration > images.DIGITS_TO_FIT:
            raise DataError(
                "there are too few digits for calibration",
                expected=f"`data.calibration` up to {images.DIGITS_TO_FIT}",
                got=str(config.calibration),
            )
        held_out = images.digits(spec, images.DIGITS_TO_FIT, config.validation)
        return _Split(
            ImagesOrigin.DIGITS,
            "scikit-learn's digits, held out from fitting",
            _stored(images.digits(spec, 0, config.calibration), calibration),
            _stored(held_out if is_classifier or config.labels else replace(held_out, labels=None), validation),
        )
    if name == "photographs":
        return _Split(
            ImagesOrigin.PHOTOGRAPHS,
            "crops of scikit-learn's two photographs, without labels",
            _stored(images.photographs(spec, 0, config.calibration), calibration),
            _stored(images.photographs(spec, config.calibration, config.validation), validation),
        )
    folder = (
        images.open_folder(Path(name), source.classes, classes) if is_classifier else images.open_pictures(Path(name))
    )
    first = min(config.calibration, max(1, len(folder.files) // 2))
    workers = threads()
    rest = range(first, first + config.validation)
    total = min(rest.stop, len(folder.files))
    chosen = folder.read(spec, range(first), calibration, total=total, workers=workers)
    held_out = folder.read(
        spec, rest, validation, before=chosen.unreadable, total=total, workers=workers, on_progress=report
    )
    return _Split(ImagesOrigin.FOLDER, f"{name}, {len(folder.files)} images", chosen, held_out)


def _of_tensors(project: Project, files: tuple[Path, Path]) -> _Split:
    """Write the samples of `data.tensors`."""
    found = split_tensors(project, files)
    calibration, validation = (images.Images(np.load(file, mmap_mode="r"), None) for file in files)
    detail = f"{project.config.data.tensors}, {found.total} samples"
    return _Split(ImagesOrigin.TENSORS, detail, calibration, replace(validation, labels=found.truth))


def _stored(loaded: Images, file: Path) -> Images:
    """Write images that fit into memory, and return them with pixels mapped from the file."""
    file.write_bytes(npy(loaded.pixels))
    return replace(loaded, pixels=np.load(file, mmap_mode="r"))


def run(project: Project, _model: str, console: Console) -> int:
    """Make the data, and print the counts, the reference's accuracy and the unreadable images."""
    record = make_data(project, restore_model(project))
    top1 = "no labels" if record.labels is None else "with labels"
    if record.reference_top1 is not None:
        top1 = f"reference top-1 {record.reference_top1:.1%}"
    what = "images" if record.preprocessing else "samples"
    console.say(
        f"{what}: {record.calibration_samples} for calibration, {record.validation_samples} for validation; {top1}"
    )
    for file in record.unreadable:
        console.say(f"unreadable, left out: {file}")
    return 0
