"""The stage `source`: the weights and the preprocessing of the model, or its ONNX file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from model_artifacts.host.environment import version
from model_artifacts.host.factory_code import code_of, imported_code_of
from model_artifacts.records import Key, Task, WeightsOrigin
from pipeline.planning.keys import code_version, file_digest, folder_digest, make_key
from pipeline.planning.spec import MODEL, StageSpec
from pipeline.records import SourceRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.planning.project import Project
    from pipeline.records import ReadFile

VERSION = 5
"""Raise it when the same configuration gives other weights, or none.

Since 2 torchvision builds its networks. Since 3 compiled functions, borrowed weights and weights that cannot be baked
are refused. Since 4 nothing replaces an unknown preprocessing. Since 5 the crop of Hugging Face's processors has
their offset.
"""

ONNX_VERSION = 3
"""Raise it when the same ONNX file gives another source.

Since 2 names of classes are read from the file. Since 3 the record says how far its own run is from that in float32.
"""

_IMPORTED = "imported_code"
"""The key field of the modules that the factory's file imports from the current folder."""
_ARGUMENT_FILES = "argument_files"
"""The key field of the files and folders that the factory's arguments name."""
_TENSORS = "tensors"
"""The key field of `data.tensors`."""
_READS = "reads"
"""The key field of the files that the factory read."""


def source_key(project: Project, _model: str) -> Key:
    """Return the key of the weights, of the factory's code, and of the files that it read the last time.

    Of a model that is an ONNX file, it is the key of that file and of its external data.
    """
    model = project.config.model
    if model.onnx is not None:
        return with_reads(_onnx_key(project, model.onnx), _reads_now(project))
    key = make_key(
        factory=model.factory,
        factory_code=code_of(model.factory),
        weights=model.weights.file,
        checkpoint=file_digest(project, model.weights.file) if model.weights.is_file else None,
        preprocessing=project.config.preprocessing,
        torch=version("torch"),
        torchvision=version("torchvision"),
        scikit_learn=version("scikit-learn"),
        **({_IMPORTED: imported} if (imported := imported_code_of(model.factory)) else {}),
        **({"weights_key": model.weights.key} if model.weights.key is not None else {}),
        **({"arguments": named} if (named := {item.name: item.value for item in model.arguments}) else {}),
        **({"task": model.task.value} if model.task is not Task.CLASSIFICATION else {}),
        **({_ARGUMENT_FILES: files} if (files := _argument_files(project)) else {}),
        **_tensors(project),
        **code_version(VERSION),
    )
    return with_reads(key, _reads_now(project))


def _onnx_key(project: Project, file: str) -> Key:
    """Return the key of an ONNX file; `with_reads` adds the files of its external data."""
    return make_key(
        onnx_file=file_digest(project, file),
        preprocessing=project.config.preprocessing,
        task=project.config.model.task.value,
        onnx=version("onnx"),
        onnxruntime=version("onnxruntime-gpu"),
        **_tensors(project),
        **code_version(ONNX_VERSION),
    )


def _tensors(project: Project) -> dict[str, object]:
    """Return the fields of a model's own inputs, whose first samples the record keeps; labels are none of them."""
    data = project.config.data
    if data.tensors is None:
        return {}
    named = {} if data.labels is None else {"labels": data.labels}
    return {_TENSORS: file_digest(project, data.tensors), **named}


def _argument_files(project: Project) -> list[list[str]]:
    """Return the digests of the files and folders that the factory's arguments name, such as a model's folder.

    A folder around the artifacts is left out, because every step changes it; the files that the factory reads from it
    are in the key all the same.
    """
    found = []
    root = project.paths.root.absolute()
    for text in sorted(set(_texts([item.value for item in project.config.model.arguments]))):
        path = Path(text)
        digest = None if root.is_relative_to(path.absolute()) else _digest(project, text)
        if digest:
            found.append([path.name if path.is_absolute() else text, digest])
    return found


def _digest(project: Project, text: str) -> str | None:
    try:
        return file_digest(project, text) or folder_digest(project, text)
    except (OSError, ValueError):  # no path: too long, or with characters that no path has
        return None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))


def with_reads(key: Key, reads: Iterable[ReadFile]) -> Key:
    """Return a key with the digests of the files that the factory read in place of those in it.

    The key names files outside the current folder by their last part, because other machines keep them elsewhere.
    """
    fields = [field for field in key.fields if field.name != _READS]
    digests = [[_name(file), file.sha256] for file in reads]
    if digests:
        fields += [field for field in make_key(**{_READS: digests}).fields if field.name == _READS]
    return Key(fields=tuple(sorted(fields, key=lambda field: field.name)))


def _name(file: ReadFile) -> str:
    path = Path(file.path)
    return path.name if path.is_absolute() else file.path


def _reads_now(project: Project) -> Iterator[ReadFile]:
    """Yield the files that the factory read when the source was made, with their present digests.

    A file elsewhere that is gone counts as unchanged: caches are emptied, and other machines have none.
    """
    try:
        reads = project.source().reads
    except RecordError:
        return
    for file in reads:
        if digest := file_digest(project, file.path):
            yield file.model_copy(update={"sha256": digest})
        elif Path(file.path).is_absolute():
            yield file


def _retried(project: Project, record: SourceRecord) -> Iterator[str]:
    """Yield a reason if `auto` took the sample model and torch's cache has ImageNet's weights by now."""
    if record.origin is not WeightsOrigin.SAMPLE or not record.awaited_file:
        return
    if project.config.model.weights.file != "auto":
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    checkpoints = Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints"
    if (checkpoints / record.awaited_file).is_file():
        yield "the weights that could not be downloaded are there by now"


SPEC = StageSpec(
    name="source",
    sentence="The model's weights and its preprocessing: IMAGENET1K_V1, a checkpoint, or the sample model.",
    subjects=MODEL,
    version=VERSION,
    record=SourceRecord,
    records=lambda paths, _plan, _model: (paths.source,),
    files=lambda paths, plan, _model: (
        paths.source_onnx if plan.config.model.onnx else paths.weights,
        *((paths.source_samples,) if plan.config.data.tensors else ()),
    ),
    key=source_key,
    run="pipeline.stages.source.stage:run",
    seconds=20,
    retried=_retried,
    needs_torch=True,
    maker_fields=frozenset(
        {
            "factory_code",
            _IMPORTED,
            "checkpoint",
            _ARGUMENT_FILES,
            _READS,
            _TENSORS,
            "torch",
            "torchvision",
            "scikit_learn",
        }
        | {"onnx_file", "onnx", "onnxruntime"}
    ),
)
