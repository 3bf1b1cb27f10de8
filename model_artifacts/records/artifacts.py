"""Records of an artifact: its hosts, build settings, memory, layers and contents."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import PositiveInt, SerializerFunctionWrapHandler, model_serializer

from model_artifacts.records.base import Argument, Count, FileRecord, Record, Tool, Whole, without_defaults
from model_artifacts.records.hosts import EngineFlavour
from model_artifacts.records.variants import Precision, Variant

if TYPE_CHECKING:
    from collections.abc import Collection

    from model_artifacts.records.hosts import Gpu


_AMPERE = 80
"""First compute capability of `ampere_plus`: SM 8.0."""

_MAJORS = {(8, 10), (10, 11)}
"""Pairs of major versions (build, runtime) across which TensorRT runs version-compatible engines.

Source: its support matrix, "Engine Portability"
(docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/support-matrix.html). TensorRT-RTX runs only engines of
its own version (docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/engine-compatibility.html).
"""


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version; () for other text, such as "absent"."""
    known = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})*", version)
    return tuple(map(int, version.split("."))) if known else ()


class BuiltFor(Record):
    """The TensorRT and the GPUs that run a serialized engine."""

    flavour: EngineFlavour
    """The flavour that built the engine."""
    version: str
    """Full version of that flavour."""
    gpu: str | None
    """Name of the GPU that the engine was tuned on; None for an engine built ahead of time."""
    compute_capabilities: tuple[int, ...]
    """Compute capability of that GPU, or the list for which the engine was built ahead of time; 80 is SM 8.0."""
    version_compatible: bool = False
    """True if later versions of TensorRT run the engine, too; earlier versions never do."""
    hardware_compatibility: str = "none"
    """Other GPUs that run the engine: `none`, `same_compute_capability` or `ampere_plus`."""
    batch_parts: Whole = 1
    """Equal parts of a batch that run at once, each by an execution context of its own. The batch of the engine itself
    is one part; all other records are of the whole batch. The JSON leaves 1 out."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"batch_parts"})

    @property
    def parts_phrase(self) -> str:
        """The parts as a phrase: `in 2 parts at once`; empty for a batch that runs as a whole."""
        return f"in {self.batch_parts} parts at once" if self.batch_parts > 1 else ""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the version; () if it has anything else, such as `10.15.1.post1`."""
        return _numbers(self.version)

    def runs_on(self, gpu: Gpu) -> bool:
        """Return True if the engine runs on a GPU."""
        if self.gpu is None:  # built ahead of time: the library itself chooses from the list
            return gpu.compute_capability >= min(self.compute_capabilities)
        if self.hardware_compatibility == "ampere_plus":
            return gpu.compute_capability >= _AMPERE
        if self.hardware_compatibility == "same_compute_capability":
            return gpu.compute_capability in self.compute_capabilities
        return gpu.name == self.gpu

    def runs_with(self, flavour: EngineFlavour, version: str) -> bool:
        """Return True if a TensorRT runs the engine.

        The flavour must be the engine's. The version must be the same, or a later one for a version-compatible engine.

        Args:
            flavour: the installed flavour.
            version: its full version.
        """
        if self.flavour is not flavour or self.version == version:
            return self.flavour is flavour
        if not self.version_compatible or flavour is not EngineFlavour.TENSORRT:
            return False
        made, have = self.numbers, _numbers(version)
        return () < made <= have and (have[:1] == made[:1] or (made[0], have[0]) in _MAJORS)


class Setting(Record):
    """A requested build setting, which the flavour applied or did not support."""

    name: str
    """Name of the setting, such as `workspace_bytes`."""
    value: str
    """The requested value as text."""
    applied: bool
    """True if the flavour applied the setting."""
    note: str = ""
    """Reason why the setting was not applied; empty if it was."""


def is_applied(name: str, settings: Collection[Setting]) -> bool:
    """Return True if a setting was requested and the flavour applied it."""
    return any(setting.name == name and setting.applied for setting in settings)


class EngineMemory(Record):
    """GPU memory that an engine needs, as its library reports it."""

    activation_bytes: Count
    """Bytes for each caller at once: activations and scratch memory (`device_memory_size`), of all profiles and
    parts."""
    weights_bytes: Count | None
    """Bytes for the weights; None if the builder does not report them."""


class LayerShare(Record):
    """Number of an engine's convolutions and matrix products that multiply in one type."""

    precision: Precision | None
    """The type; None if the inspector does not report it, or if it is no `Precision`."""
    layers: PositiveInt
    """Number of these layers."""
    examples: tuple[str, ...]
    """Names of a few of these layers."""


class WeightWarning(Record):
    """A builder's warning about weights that it converted."""

    issue: str
    """The builder's own words, such as `Detected subnormal FP16 values`."""
    weights: PositiveInt
    """Number of weight tensors with this issue."""


class OperatorCalls(Record):
    """An operator and the number of its calls in a module."""

    name: str
    """PyTorch's name of the operator."""
    calls: PositiveInt
    """Number of calls."""


class ModuleContents(Record):
    """Contents of a Torch-TensorRT module: its engines, and the operators left to PyTorch."""

    segments: Count
    """Number of TensorRT engines."""
    torch_operators: tuple[str, ...]
    """Operators left to PyTorch, each once."""
    calls: tuple[OperatorCalls, ...] = ()
    """The same operators with their numbers of calls, the most frequent first; empty in older records."""
    layers: tuple[LayerShare, ...] = ()
    """Types of the engines' convolutions and matrix products, from the engines' inspector."""
    libraries: tuple[Tool, ...]
    """Versions of torch and Torch-TensorRT that made the module and that load it."""


class Recipe(Record):
    """Recipe of a module that cannot be saved: `recipe.json`."""

    variant: Variant
    """The variant that the recipe makes."""
    factory: str
    """The model's factory, `module:function`."""
    arguments: tuple[Argument, ...] = ()
    """Arguments that the factory is called with."""
    code: str = ""
    """SHA-256 of the factory's file, or the version of the factory's package; empty in older recipes."""
    replaced_head: str | None
    """Name of the final linear layer, if the sample model has its own; else None."""
    torchvision_weights: str | None = None
    """Name of torchvision's weights, with whose settings the factory is called; None for others."""
    logits: str | None = None
    """Name of the logits in the network's output, if that is a mapping or a dataclass; None for a tensor."""
    output_names: tuple[str, ...] = ()
    """Names of the outputs of a network that returns several. The JSON of one output leaves it out."""
    classes: PositiveInt
    """Number of classes."""
    weights: FileRecord
    """File of the model's weights."""
    input_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(channels, height, width) of one sample."""
    warm_up: tuple[PositiveInt, ...]
    """Batch sizes to compile for before the first real batch."""
    constant_weights: bool = False
    """True if the engine holds the weights. Engines of older recipes take them as inputs, with each batch."""
    settings: tuple[Setting, ...]
    """Settings for Torch-TensorRT."""
    libraries: tuple[Tool, ...]
    """Versions of torch and Torch-TensorRT that the recipe was written with."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        return without_defaults(self, serialize(self), {"output_names"})
