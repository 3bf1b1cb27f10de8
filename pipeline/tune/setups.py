"""Choices → a folder with its own pipeline.yaml and artifacts, so that a point is a normal variant of a normal plan.

Builder's settings are no part of a variant's name, and a file holds one value for each. So each set of choices has a
folder of its own below `<model>/tune/`; the model, its images and its graphs are links to those of the configuration.
Without choices that is the configuration itself: what `doit` has built is taken, and what is built here serves `doit`.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import storage_errors
from model_artifacts.host.files import write_bytes
from model_artifacts.records import Graph, Precision
from pipeline.config.files.derived import changed, plain_data, yaml_of
from pipeline.config.loading import load_config
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.paths import Paths
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import BatchRange, Variant
    from pipeline.config.settings import Config
    from pipeline.tune.records import Choice, Point

_NAME = 60
"""The most characters of a folder's name that tell its choices."""
_SHARED = ("source", "data")
"""Folders that no choice changes."""
_BY_GRAPH = ("onnx", "rounding")
"""Folders with files of each graph: those of quantised graphs depend on the layers that are left and on the pairs."""
_LEFT, _QUANTIZATION, _REWRITES = "leave_unquantized.", "quantization.", "rewrites."
_ALL = ("",)
"""The first words of all files."""


class Place(NamedTuple):
    """A point with the project that holds it."""

    project: Project
    variant: Variant


@dataclass(frozen=True)
class Setups:
    """The folders of a search."""

    base: Project
    """The configuration that is tuned."""
    _known: dict[tuple[Choice, ...], Project] = field(default_factory=dict, repr=False)

    @cached_property
    def _data(self) -> dict[str, object]:
        return plain_data(self.base.config_file)

    def place(self, point: Point) -> Place:
        """Return the project of a point, whose folder is there afterwards, and its variant.

        Raises:
            ConfigError: the choices do not go with the configuration.
            StorageError: the folder cannot be written.
            UsageError: the plan has no such variant.
        """
        project = self.project(point.built.choices)
        if point.streams:  # no other folder: nothing that is built changes by it
            benchmark = project.config.benchmark.model_copy(update={"streams": point.streams})
            config = project.config.model_copy(update={"benchmark": benchmark})
            project = replace(project, plan=replace(project.plan, config=config))
        return Place(project, project.plan.variant(point.subject))

    def baseline(self, point: Point) -> str | None:
        """Return the subject of eager FP32 on the hardware of a point; None for a model without it."""
        found = self.base.plan.baseline(self.place(point).variant.target)
        return found.id if found else None

    def project(self, choices: tuple[Choice, ...]) -> Project:
        """Return the project of a set of choices.

        Raises:
            ConfigError: the choices do not go with the configuration.
            StorageError: the folder cannot be written.
        """
        if not choices:
            return self.base
        if choices not in self._known:
            self._known[choices] = self._made(choices)
        return self._known[choices]

    def _made(self, choices: tuple[Choice, ...]) -> Project:
        folder = self.base.paths.tune / name_of(choices)
        file = folder / "pipeline.yaml"
        text = self.text(choices)
        with storage_errors(f"writing {file}"):
            if not file.is_file() or file.read_text(encoding="utf-8") != text:
                write_bytes(file, text.encode())
            _link(self.base, folder / "artifacts", choices)
        host = self.base.plan.host
        plan = Plan(load_config(file, host), host)
        return Project(plan, Paths(folder / "artifacts", plan.model), self.base.stages, file)

    def text(self, choices: tuple[Choice, ...]) -> str:
        """Return the pipeline.yaml of a set of choices, with the whole matrix."""
        values = {**values_of(choices), "artifacts": "artifacts"}
        data = changed(self._data, values, ("release", "cache"))
        return yaml_of(data, "Written by `doit tune`: the configuration with the choices of one of its points.")

    def narrowed_text(self, place: Place, choices: tuple[Choice, ...], comment: str) -> str:
        """Return the pipeline.yaml whose matrix is one variant alone.

        Its variant has the same name as that of the whole matrix, and the same staleness key. Where other profiles
        name other ranges of height and width, its key is another: the graph and the images are made for all of them.

        Args:
            place: the variant, with its project.
            choices: its choices.
            comment: the lines above the YAML.
        """
        narrow = narrowed(place.project.config, place.variant)
        data = changed(self._data, {**values_of(choices), **narrow.values}, narrow.dropped)
        return yaml_of(data, comment)


class Narrow(NamedTuple):
    """The changes that leave one variant of a matrix."""

    values: dict[str, object]
    """New values, by keys joined by dots."""
    dropped: tuple[str, ...]
    """Such keys to leave out."""


def narrowed(config: Config, variant: Variant) -> Narrow:
    """Return the changes that leave of a matrix one variant alone, beside the baselines and the processor's. Pure.

    Args:
        config: the configuration that has the variant.
        variant: the variant.
    """
    values: dict[str, object] = {
        "precisions": [variant.precision.value],
        "io": [{"input": item.input.value, "output": item.output} for item in config.io if item.io == variant.io],
    }
    dropped = [f"leave_unquantized.{name}" for name in ("int8", "fp8") if name != variant.precision.value]
    if variant.precision not in QUANTIZED_PRECISIONS:
        dropped.append("quantization")
    elif variant.precision is not Precision.INT8:
        dropped.append("quantization.head")
    if variant.profile:
        profile = variant.profile
        values["profiles"] = [_written(profile)]
        taken = [batch for batch in config.benchmark.batches or () if profile.takes(batch)]
        if taken:
            values["benchmark.batches"] = taken
        else:
            dropped.append("benchmark.batches")
        dropped.append("torch_tensorrt.profiles")
    if variant.workspace:
        values["workspaces"] = [variant.workspace.label]
    if variant.backend.is_torch_tensorrt:
        values["torch_tensorrt.precisions"] = [variant.precision.value]
    else:
        dropped.append("torch_tensorrt.precisions")
    return Narrow(values, tuple(dropped))


def _written(profile: BatchRange) -> object:
    """Return a batch range as pipeline.yaml writes it."""
    if profile.tuned:
        return {"sizes": list(profile.tuned)}
    batch = profile.min if profile.is_fixed else {"min": profile.min, "opt": profile.opt, "max": profile.max}
    if not profile.axes:
        return batch
    return {"batch": batch} | {axis.name: {"min": axis.min, "opt": axis.opt, "max": axis.max} for axis in profile.axes}


def values_of(choices: tuple[Choice, ...]) -> dict[str, object]:
    """Return choices as values of a configuration, by their keys joined by dots. Pure."""
    return {item.setting: list(item.value) if isinstance(item.value, tuple) else item.value for item in choices}


def name_of(choices: tuple[Choice, ...]) -> str:
    """Return the name of a folder: the choices in short, and a digest of them. Pure."""
    words = [
        f"{item.setting.rpartition('.')[2]}-{len(item.value) if isinstance(item.value, tuple) else item.value}"
        for item in choices
    ]
    text = "\n".join(item.to_json() for item in choices)
    return f"{'-'.join(words)[:_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _link(base: Project, root: Path, choices: tuple[Choice, ...]) -> None:
    """Make the links to what the choices leave as it is."""
    folder = root / base.plan.model
    folder.mkdir(parents=True, exist_ok=True)
    cache = base.paths.root / "timing-cache"
    cache.mkdir(parents=True, exist_ok=True)
    links = {root / cache.name: cache} | {folder / name: base.paths.folder / name for name in _SHARED}
    for name in _BY_GRAPH:
        there = base.paths.folder / name
        own = _own_graphs(choices, name, of_file=base.config.model.onnx is not None)
        if not own:
            links[folder / name] = there
            continue
        (folder / name).mkdir(exist_ok=True)
        # Proposals are of the FP32 graph, which rewrites alone change.
        shared = () if own == _ALL else tuple(base.paths.proposal(graph) for graph in Graph)
        found = sorted(there.iterdir()) if there.is_dir() else []
        files = [file for file in found if file in shared or not file.name.startswith(own)]
        links |= {folder / name / file.name: file for file in files}
    for link, target in links.items():
        if not link.is_symlink() and not link.exists():
            link.symlink_to(os.path.relpath(target, link.parent))


def _own_graphs(choices: tuple[Choice, ...], folder: str, *, of_file: bool) -> tuple[str, ...]:
    """Return the first words of the files in a folder of graphs that choices change; an empty word for all files.

    Args:
        choices: the choices.
        folder: `onnx` or `rounding`. The rounding of a precision that is a cast is that of the network, not of a graph.
        of_file: whether the model is an ONNX file, whose rounding is that of its graph.
    """
    rewrites = any(item.setting.startswith(_REWRITES) for item in choices)
    if rewrites and (of_file or folder == "onnx"):
        return _ALL
    if rewrites or any(item.setting.startswith(_QUANTIZATION) for item in choices):
        return tuple(graph.value for graph in Graph if graph.precision in QUANTIZED_PRECISIONS)
    leaves = any(item.setting.startswith(_LEFT) for item in choices)
    return tuple(graph.value for graph in Graph if leaves and graph.is_mixed)
