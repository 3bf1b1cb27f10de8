"""Plan → the points of a search: the variants to begin with, and the choices that each could be given. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import CPU_TARGET, Backend, EngineFlavour, Graph, Precision
from pipeline.tune.records import Choice, Point

if TYPE_CHECKING:
    from collections.abc import Collection

    from model_artifacts.records import Variant
    from pipeline.planning.plan import Plan


class Option(NamedTuple):
    """A choice that a point could be given."""

    choice: Choice
    cost: float = 1.0
    """The duration of a trial with it, as a multiple of one without; a guess, until one was seen."""
    needs: str = ""
    """The setting that must be chosen before; empty if none must."""


@dataclass(frozen=True)
class Contender:
    """A variant as the search sees it."""

    subject: str
    """The variant: `model/target/name`."""
    kind: str
    """The way to build it, whose trials take about as long: `tensorrt`, `dynamo`."""
    batches: tuple[int, ...]
    """The timed batch sizes that it takes."""
    prior: tuple[int, ...]
    """Its place among the others before anything is known: the smaller is tried first."""
    options: tuple[Option, ...] = ()
    """The choices that it could be given."""
    traits: tuple[tuple[str, str], ...] = ()
    """The parts of its name, to compare points that differ in one: `("precision", "int8")`."""

    @property
    def point(self) -> Point:
        """The point with the configuration's own settings."""
        return Point(subject=self.subject)


@dataclass(frozen=True)
class Space:
    """All that a search may try."""

    contenders: tuple[Contender, ...]
    batches: tuple[int, ...]
    """The timed batch sizes, smallest first."""

    def contender(self, point: Point) -> Contender | None:
        """Return the contender of a point; None for a point that another plan has."""
        return next((item for item in self.contenders if item.subject == point.subject), None)


_BY_PRECISION = (
    Precision.INT8,
    Precision.FP8,
    Precision.FP16,
    Precision.BF16,
    Precision.TF32,
    Precision.FP32,
)
"""The prior: fewer bits first."""
_BY_BACKEND = (
    Backend.TENSORRT,
    Backend.ONNXRUNTIME,
    Backend.DYNAMO,
    Backend.TORCH_COMPILE,
    Backend.DYNAMO_AOTI,
    Backend.ONNXRUNTIME_TENSORRT,
    Backend.INDUCTOR,
    Backend.EAGER,
)
"""The prior: engines first; baselines, which are never deployed, are no contenders."""


def option(setting: str, value: bool | int | str, cost: float = 1.0, needs: str = "") -> Option:  # noqa: FBT001 - data
    """Return an option of a setting."""
    return Option(Choice(setting=setting, value=value), cost, needs)


_ENGINE = (
    option("tensorrt.max_aux_streams", 0),
    option("tensorrt.optimization_level", 5, 4.0),
    option("tensorrt.optimization_level", 4, 2.0),
    option("tensorrt.tiling_optimization_level", "fast", 1.5),
    option("tensorrt.tiling_optimization_level", "full", 4.0),
    option("tensorrt.l2_limit_for_tiling", "16MiB", needs="tensorrt.tiling_optimization_level"),
    option("tensorrt.sparse_weights", True),  # noqa: FBT003 - the setting's value
    option("tensorrt.max_aux_streams", 4),
)
"""The settings of TensorRT's builder, by what they have given here so far; docs/tune.md names those left out."""
_RTX = (option("tensorrt.max_aux_streams", 0),)
"""The one of these that TensorRT-RTX applies: the others are tactics, which it does not time."""
_MODULE = (
    option("torch_tensorrt.optimization_level", 5, 3.0),
    option("torch_tensorrt.min_block_size", 1),
)


_PAIRS = (
    option("quantization.last", True),  # noqa: FBT003 - the setting's value
    option("quantization.first", False),  # noqa: FBT003 - the same
    option("quantization.sums", False),  # noqa: FBT003 - the same
    option("quantization.pools", False),  # noqa: FBT003 - the same
    option("quantization.concats", False),  # noqa: FBT003 - the same
)
"""The groups of Q/DQ pairs that int8 could be without, or have more. fp8 has none at its ends by itself."""


def space_of(plan: Plan, groups: Collection[str] = ()) -> Space:
    """Return the space of a plan: the variants for this host's GPU, or for its processor.

    On a host without a GPU engines that are built ahead of time are points, too: they are built, and end as skipped.

    Args:
        plan: the plan.
        groups: the groups of nodes in the network whose Q/DQ pairs are choices.
    """
    found = [variant for variant in plan.variants if _is_point(plan, variant)]
    contenders = (_contender(plan, item, groups) for item in found)
    return Space(tuple(sorted(contenders, key=_prior)), plan.config.timed_batches)


_MIXED = {Graph.INT8: Graph.INT8_MIXED, Graph.INT8_CPU: Graph.INT8_MIXED_CPU, Graph.FP8: Graph.FP8_MIXED}
"""Graphs whose every layer is quantised → the same with layers left in FP16."""


class Mixed(NamedTuple):
    """A quantised variant, and the same with layers left in FP16."""

    graph: str
    """Its graph: `int8`, `int8-cpu`, `fp8`."""
    ranked: str
    """The graph whose layers `doit sensitivity` ranks: `int8`, `fp8`."""
    contender: Contender
    """The variant with layers left in FP16."""


def mixed_of(plan: Plan) -> dict[str, Mixed]:
    """Return each quantised point with layers left in FP16, by the subject of the plain one.

    Only the plan of a point's own folder has that variant: `leave_unquantized` is a choice of it.
    """
    found = {}
    for variant in plan.variants:
        if variant.graph in _MIXED and _is_point(plan, variant):
            mixed = variant.model_copy(update={"graph": _MIXED[variant.graph]})
            found[variant.id] = Mixed(variant.graph.value, variant.precision.value, _contender(plan, mixed, ()))
    return found


def _prior(contender: Contender) -> tuple[tuple[int, ...], str]:
    return contender.prior, contender.subject


def _is_point(plan: Plan, variant: Variant) -> bool:
    if variant.backend.is_baseline or variant.stands_in:
        return False
    has_gpu = any(plan.gpu(target) for target in plan.targets)
    if has_gpu:
        return plan.gpu(variant.target) is not None
    return variant.target == CPU_TARGET or variant.backend is Backend.TENSORRT


def _contender(plan: Plan, variant: Variant, groups: Collection[str]) -> Contender:
    batches = tuple(
        batch for batch in plan.config.timed_batches if variant.profile is None or variant.profile.takes(batch)
    )
    return Contender(
        subject=variant.id,
        kind=variant.backend.value,
        batches=batches,
        prior=_place(plan, variant),
        options=(*_options(plan, variant), *_pairs(variant, groups)),
        traits=_traits(variant),
    )


def _place(plan: Plan, variant: Variant) -> tuple[int, ...]:
    """Return the place of a variant: those that run here first, then by backend, precision, profile and workspace."""
    runs_here = variant.target == CPU_TARGET or plan.gpu(variant.target) is not None
    ranged = variant.profile is not None and not variant.profile.is_fixed
    return (
        0 if runs_here else 1,
        _BY_BACKEND.index(variant.backend),
        _BY_PRECISION.index(variant.precision),
        1 if variant.graph and variant.graph.is_mixed else 0,
        1 if ranged else 0,
        0 if variant.io.is_plain else 1,
        -variant.workspace.bytes if variant.workspace else 0,
        variant.profile.opt if variant.profile else 0,
    )


def _options(plan: Plan, variant: Variant) -> tuple[Option, ...]:
    if variant.backend.is_torch_tensorrt:
        return _MODULE
    if variant.backend is not Backend.TENSORRT:
        return ()
    return _ENGINE if plan.engine_target(variant).flavour is EngineFlavour.TENSORRT else _RTX


def _pairs(variant: Variant, groups: Collection[str]) -> tuple[Option, ...]:
    """Return the choices of groups of Q/DQ pairs: those of the network that the graph has by itself, or has not."""
    graph = variant.graph
    if graph not in _MIXED:
        return ()
    found = [item for item in _PAIRS if item.choice.setting.rpartition(".")[2] in groups]
    if graph.for_x86:
        return tuple(found)
    found = [item for item in found if item.choice.setting != "quantization.concats"]
    if graph is Graph.FP8:
        first = option("quantization.first", True)  # noqa: FBT003 - the setting's value
        return tuple(first if item.choice.setting == first.choice.setting else item for item in found)
    return tuple(found)


def _traits(variant: Variant) -> tuple[tuple[str, str], ...]:
    graph = variant.graph.value if variant.graph and variant.graph.is_mixed else variant.precision.value
    return (
        ("backend", variant.backend.value),
        ("precision", graph),
        ("profile", variant.profile.label if variant.profile else "any"),
        ("workspace", variant.workspace.label if variant.workspace else "none"),
        ("io", " ".join(variant.io.words) or "plain"),
    )
