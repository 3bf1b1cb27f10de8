"""Plan → the points of a search: the variants to begin with, and the choices that each could be given. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import CPU_TARGET, Backend, EngineFlavour, Graph, Precision
from pipeline.planning.plan import QDQ
from pipeline.tune.records import Choice, Point

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from model_artifacts.records import Variant
    from pipeline.config.settings import Config
    from pipeline.planning.plan import Plan

    Refusal = Callable[[Variant, Choice], str]


class Option(NamedTuple):
    """A choice that a point could be given."""

    choice: Choice
    cost: float = 1.0
    """The duration of a trial with it, as a multiple of one without; a guess, until one was seen."""
    needs: str = ""
    """The setting that must be chosen before; empty if none must, or if the configuration has it."""
    excludes: tuple[str, ...] = ()
    """The settings that must not be chosen before."""
    replaces: bool = False
    """True if the choice may take the place of another value of its setting that a point has."""


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
    left: tuple[tuple[str, str], ...] = ()
    """The choices that are none here, each with the reason: known before anything is built.

    Behind one that others are given stand the graphs that are not: `rewrites.product: convolution (int8)`; of a graph
    that is given it with another profile, the profiles that are not: `tensorrt.batch_parts: 2 (b1)`.
    """

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


def option(setting: str, value: bool | int | str | tuple[str, ...], cost: float = 1.0, needs: str = "") -> Option:  # noqa: FBT001 - data
    """Return an option of a setting."""
    return Option(Choice(setting=setting, value=value), cost, needs)


PARTS = "tensorrt.batch_parts"
"""The setting of parts of a batch that run at once, which engines for one batch size alone can have."""
_ENGINE = (
    option("tensorrt.attempt", 2)._replace(replaces=True),
    option(PARTS, 2),
    option("tensorrt.attempt", 3)._replace(replaces=True),
    option("tensorrt.optimization_level", 5, 4.0),
    option("tensorrt.max_aux_streams", 0),
    option("tensorrt.optimization_level", 4, 2.0),
    option("tensorrt.tiling_optimization_level", "fast", 1.5),
    option("tensorrt.tiling_optimization_level", "full", 4.0),
    option("tensorrt.l2_limit_for_tiling", "16MiB", needs="tensorrt.tiling_optimization_level"),
    option("tensorrt.sparse_weights", True),  # noqa: FBT003 - the setting's value
    option("tensorrt.max_aux_streams", 4),
    option("tensorrt.tactic_sources", ("cublas", "cublas_lt", "edge_mask_convolutions", "jit_convolutions"), 1.5),
    option("tensorrt.max_num_tactics", 512, 2.0),
    option("tensorrt.avg_timing_iterations", 8, 4.0),
)
"""The settings of TensorRT's builder. The sources are the library's own and those that TensorRT 10 has left out by
itself, since it calls them deprecated."""
_RTX = (option(PARTS, 2), option("tensorrt.max_aux_streams", 0))
"""Those that TensorRT-RTX applies: the others are tactics, which it does not time."""
BUILDER_CHOICES = tuple({item.choice: None for item in (*_ENGINE, *_RTX)})
"""The choices of the builder's settings, of all flavours."""
_PLACEMENT = "quantization.placement"
_REWRITES = (
    option("rewrites.product", "convolution", 1.5)._replace(excludes=(_PLACEMENT,)),
    option("rewrites.product", "pooled", 1.5)._replace(excludes=(_PLACEMENT,)),
    option("rewrites.channels", 4, 1.5)._replace(excludes=(_PLACEMENT,)),
    option("rewrites.channels", 8, 1.5)._replace(excludes=(_PLACEMENT,)),
)
"""Other forms of the graphs that engines are built from; the export is made again. A proposal of places is of the graph
as it was, and holds for no other."""
REWRITE_CHOICES = tuple(item.choice for item in _REWRITES)
"""The choices of rewrites."""
_MODULE = (
    option("torch_tensorrt.optimization_level", 5, 3.0),
    option("torch_tensorrt.min_block_size", 1),
)


_HALF_HEAD = option("quantization.head", "float16")._replace(excludes=("quantization.last",))
"""The choice of TensorRT's plain int8, whose last product is in FP32 by itself; with pairs it has no such product."""
HEAD_CHOICE, HEAD_EXCLUDES = _HALF_HEAD.choice, _HALF_HEAD.excludes
"""The same without its cost, and the settings that it does not stand beside."""
_PAIRS = (
    option("quantization.last", True)._replace(excludes=(HEAD_CHOICE.setting,)),  # noqa: FBT003 - the setting's value
    option("quantization.first", False),  # noqa: FBT003 - the same
    option("quantization.sums", False),  # noqa: FBT003 - the same
    option("quantization.pools", False),  # noqa: FBT003 - the same
    option("quantization.concats", False),  # noqa: FBT003 - the same
)
"""The groups of Q/DQ pairs that int8 could be without, or have more."""
_FP8_FIRST = option("quantization.first", True)  # noqa: FBT003 - the setting's value
"""The choice of fp8, which has none at its ends by itself."""
_PROPOSED = option(_PLACEMENT, "model_optimizer")._replace(
    excludes=tuple({item.setting: None for item in REWRITE_CHOICES})
)
PROPOSED = _PROPOSED.choice
"""The choice of Model Optimizer's places for Q/DQ pairs, of TensorRT's graphs."""
PAIR_CHOICES = tuple(item.choice for item in (*_PAIRS, _FP8_FIRST))
"""The choices of groups, of all graphs."""


_BEST = (
    option("tensorrt.attempt", 2).choice,
    option(PARTS, 2).choice,
    HEAD_CHOICE,
    option("rewrites.product", "convolution").choice,
    option("tensorrt.attempt", 3).choice,
    option("quantization.last", True).choice,  # noqa: FBT003 - the setting's value
)
"""The choices that have made engines faster, the best first (docs/performance.md, Tuning): they are tried first."""
_WORST = {
    PROPOSED,
    option("quantization.pools", False).choice,  # noqa: FBT003 - the setting's value
    *(item.choice for item in _REWRITES if item.choice not in _BEST),
}
"""Those that have made them slower there: they are tried last."""


def any_choice(_variant: Variant, _choice: Choice) -> str:
    """Return no reason against any choice."""
    return ""


def space_of(plan: Plan, refusal: Refusal = any_choice, routes: Collection[str] = ()) -> Space:
    """Return the space of a plan: the variants for this host's GPU, or for its processor.

    On a host without a GPU engines that are built ahead of time are points, too: they are built, and end as skipped.

    Args:
        plan: the plan.
        refusal: returns the reason why a variant cannot be given a choice, or would not change by it; empty if it can.
        routes: the build routes of the library, each a value of `tensorrt.build_route`.
    """
    contenders: list[Contender] = []
    left: dict[tuple[str, str], list[Variant]] = {}
    given: set[tuple[str, str]] = set()
    for variant in plan.variants:
        if _is_point(plan, variant):
            found = _contender(plan, variant, routes)
            reasons = {item: refusal(variant, item.choice) for item in found.options}
            contenders.append(replace(found, options=tuple(item for item in found.options if not reasons[item])))
            for item, reason in reasons.items():
                if reason:
                    left.setdefault((item.choice.text, reason), []).append(variant)
                else:
                    given |= {(item.choice.text, ""), (item.choice.text, _form(variant))}
    told = [(text + _without(text, variants, given), why) for (text, why), variants in left.items()]
    return Space(tuple(sorted(contenders, key=_prior)), plan.config.timed_batches, tuple(told))


def _form(variant: Variant) -> str:
    return variant.graph.value if variant.graph else variant.backend.value


def _without(text: str, variants: Sequence[Variant], given: Collection[tuple[str, str]]) -> str:
    """Return the graphs, or the profiles of a graph, that a choice is none of, in brackets; empty if it is of none."""
    if (text, "") not in given:
        return ""
    names = (item.profile.label if item.profile and (text, _form(item)) in given else _form(item) for item in variants)
    return f" ({', '.join(dict.fromkeys(names))})"


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


def mixed_of(plan: Plan, space: Space) -> dict[str, Mixed]:
    """Return each quantised point with layers left in FP16, by the subject of the plain one, whose choices it has.

    Those of Q/DQ pairs are none of it. Only the plan of a point's own folder has that variant: `leave_unquantized` is a
    choice of it.
    """
    found = {}
    for variant in plan.variants:
        if variant.graph in _MIXED and _is_point(plan, variant):
            mixed = variant.model_copy(update={"graph": _MIXED[variant.graph]})
            plain = space.contender(Point(subject=variant.id))
            options = tuple(item for item in plain.options if not is_of_pairs(item.choice)) if plain else ()
            contender = replace(_contender(plan, mixed), options=options)
            found[variant.id] = Mixed(variant.graph.value, variant.precision.value, contender)
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


def _contender(plan: Plan, variant: Variant, routes: Collection[str] = ()) -> Contender:
    batches = tuple(
        batch for batch in plan.config.timed_batches if variant.profile is None or variant.profile.takes(batch)
    )
    return Contender(
        subject=variant.id,
        kind=variant.backend.value,
        batches=batches,
        prior=_place(plan, variant),
        options=tuple(
            item._replace(needs="") if item.needs and is_set(plan.config, item.needs) else item
            for item in sorted((*_options(plan, variant, routes), *_proposed(variant), *_pairs(variant)), key=_rank)
        ),
        traits=_traits(variant),
    )


def _rank(item: Option) -> int:
    """Return the place of a choice among the others before anything is known of it here."""
    if item.choice in _BEST:
        return _BEST.index(item.choice)
    return len(_BEST) + (item.choice in _WORST)


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


def _options(plan: Plan, variant: Variant, routes: Collection[str]) -> tuple[Option, ...]:
    if variant.backend.is_torch_tensorrt:
        return _MODULE
    if variant.backend is not Backend.TENSORRT:
        return ()
    if plan.engine_target(variant).flavour is not EngineFlavour.TENSORRT:
        return (*_RTX, *_REWRITES)
    return (*_ENGINE, *(option("tensorrt.build_route", route) for route in routes), *_REWRITES)


def _proposed(variant: Variant) -> tuple[Option, ...]:
    """Return the choice of another proposer of Q/DQ pairs, which TensorRT's quantised graphs have."""
    return (_PROPOSED,) if variant.graph in QDQ else ()


def _pairs(variant: Variant) -> tuple[Option, ...]:
    """Return the choices of groups of Q/DQ pairs: those that the graph could be without, or have more."""
    if variant.graph not in _MIXED:
        return ()
    fp8, ends = variant.graph is Graph.FP8, _FP8_FIRST.choice.setting
    head = (_HALF_HEAD,) if variant.graph is Graph.INT8 and variant.backend is Backend.TENSORRT else ()
    return (*(_FP8_FIRST if fp8 and item.choice.setting == ends else item for item in _PAIRS), *head)


def is_set(config: Config, setting: str) -> bool:
    """Return True if a configuration has a setting at another value than its default. Pure."""
    section, _, name = setting.partition(".")
    own = getattr(config, section)
    return bool(getattr(own, name) != getattr(type(own)(), name))


def is_of_pairs(choice: Choice) -> bool:
    """Return True for a choice that may change the Q/DQ pairs of a quantised graph, and nothing else."""
    return choice.setting.startswith(("quantization.", "leave_unquantized."))


def is_of_graph(choice: Choice) -> bool:
    """Return True for a choice that may change a graph, and nothing else."""
    return is_of_pairs(choice) or choice in REWRITE_CHOICES


def _traits(variant: Variant) -> tuple[tuple[str, str], ...]:
    graph = variant.graph.value if variant.graph and variant.graph.is_mixed else variant.precision.value
    return (
        ("backend", variant.backend.value),
        ("precision", graph),
        ("profile", variant.profile.label if variant.profile else "any"),
        ("workspace", variant.workspace.label if variant.workspace else "none"),
        ("io", " ".join(variant.io.words) or "plain"),
    )
