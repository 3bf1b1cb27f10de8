"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from model_artifacts.records.base import Count, FileRecord, Record, Tool
from model_artifacts.records.hosts import EngineFlavour
from model_artifacts.records.variants import Precision, Variant

if TYPE_CHECKING:
    from collections.abc import Collection

    from model_artifacts.records.hosts import Gpu


_AMPERE = 80
"""The compute capability that `ampere_plus` begins with."""

_MAJORS = {(8, 10), (10, 11)}
"""Across which major versions TensorRT runs version-compatible engines: its support matrix, "Engine Portability"
(docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/support-matrix.html). TensorRT-RTX runs its own version's
alone (docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/engine-compatibility.html).
"""


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's numbers; none of what is no version, such as "absent"."""
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


class BuiltFor(Record):
    """What a serialized engine runs on: the flavour that made it, in this version, on these GPUs."""

    flavour: EngineFlavour
    version: str
    gpu: str | None
    """The name of the GPU that it was tuned on; None for one built ahead of time."""
    compute_capabilities: tuple[int, ...]
    """Of that GPU; or the list that it was built for ahead of time."""
    version_compatible: bool = False
    """Later versions of TensorRT run it, too; no earlier one does."""
    hardware_compatibility: str = "none"
    """Which other GPUs run it: `none`, `same_compute_capability` or `ampere_plus`."""

    def runs_on(self, gpu: Gpu) -> bool:
        """Return whether a GPU is one of those."""
        if self.gpu is None:  # built ahead of time; the library itself says what of a list it takes
            return gpu.compute_capability >= min(self.compute_capabilities)
        if self.hardware_compatibility == "ampere_plus":
            return gpu.compute_capability >= _AMPERE
        if self.hardware_compatibility == "same_compute_capability":
            return gpu.compute_capability in self.compute_capabilities
        return gpu.name == self.gpu

    def runs_with(self, flavour: EngineFlavour, version: str) -> bool:
        """Return whether a TensorRT is one of those: the same version, or a later one where it was built for that."""
        if self.flavour is not flavour or self.version == version:
            return self.flavour is flavour
        if not self.version_compatible or flavour is not EngineFlavour.TENSORRT:
            return False
        made, have = _numbers(self.version), _numbers(version)
        return have >= made and (have[:1] == made[:1] or (made[0], have[0]) in _MAJORS)


class Setting(Record):
    """A build setting: applied, or asked for where the flavour cannot."""

    name: str
    value: str
    applied: bool
    note: str = ""


def is_applied(name: str, settings: Collection[Setting]) -> bool:
    """Return whether a setting was asked for, and the flavour has applied it."""
    return any(setting.name == name and setting.applied for setting in settings)


class EngineMemory(Record):
    """What an engine says it needs."""

    activation_bytes: Count
    """Of each execution context: activations and scratch (`device_memory_size`)."""
    weights_bytes: Count | None
    """None where the builder does not say."""


class LayerShare(Record):
    """How many of an engine's convolutions and matrix products multiply in a type."""

    precision: Precision | None
    """None for one that the inspector does not tell, or that is none of ours."""
    layers: PositiveInt
    examples: tuple[str, ...]
    """Names of a few of them."""


class WeightWarning(Record):
    """What a builder said of weights that it converted."""

    issue: str
    """In its own words, such as `Detected subnormal FP16 values`."""
    weights: PositiveInt
    """How many tensors."""


class OperatorCalls(Record):
    """An operator, and how often a module calls it."""

    name: str
    calls: PositiveInt


class ModuleContents(Record):
    """What Torch-TensorRT made of a module, and what it left."""

    segments: Count
    """TensorRT engines in it."""
    torch_operators: tuple[str, ...]
    """Operators that stayed in PyTorch, each once."""
    calls: tuple[OperatorCalls, ...] = ()
    """The same with how often each is called, the most frequent first; older records have none."""
    layers: tuple[LayerShare, ...] = ()
    """The types of its engines' convolutions and matrix products, from their inspector."""
    libraries: tuple[Tool, ...]
    """What made it, and what it takes to load it: torch and Torch-TensorRT in these versions."""


class Recipe(Record):
    """How to make a module that cannot be saved: `recipe.json`."""

    variant: Variant
    factory: str
    code: str = ""
    """The digest of the factory's file, or the version of the package that it comes from; older recipes have none."""
    replaced_head: str | None
    classes: PositiveInt
    weights: FileRecord
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(channels, height, width)."""
    warm_up: tuple[PositiveInt, ...]
    """The batch sizes that are compiled before the first one counts."""
    settings: tuple[Setting, ...]
    libraries: tuple[Tool, ...]
