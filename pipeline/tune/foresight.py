"""Choices that change nothing, or that the library cannot apply: known before anything is built for them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import ArtifactError, StorageError
from model_artifacts.records import Backend, Graph
from model_artifacts.tensorrt.flavour import load_flavour
from pipeline.adapters.trials.parts import batch_obstacle
from pipeline.adapters.trials.refusals import build_routes, refusals
from pipeline.config.quantization import Placement, QuantizationConfig
from pipeline.config.tensorrt import TensorRTConfig
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.planning.plan import QDQ
from pipeline.planning.steps import Step
from pipeline.system.isolation import run_isolated
from pipeline.tune.space import (
    BUILDER_CHOICES,
    HEAD_CHOICE,
    HEAD_EXCLUDES,
    PAIR_CHOICES,
    PARTS,
    PROPOSED,
    REWRITE_CHOICES,
)
from pipeline.tune.steps.limits import Rest
from pipeline.tune.steps.running import ensure, reason_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnx

    from model_artifacts.records import EngineFlavour, Gpu, Variant
    from pipeline.config.settings import Config
    from pipeline.planning.plan import Plan
    from pipeline.planning.project import Project
    from pipeline.tune.records import Choice


_AUTO = QuantizationConfig()
"""The settings of graphs of which the configuration says nothing."""


class Library(NamedTuple):
    """Answers of a flavour of TensorRT about choices, without a build."""

    refused: dict[Choice, str]
    """Those that it cannot apply, with the reasons."""
    routes: tuple[str, ...] = ()
    """Its build routes; none if it has none."""
    remark: str = ""
    """A line about what is unknown of it, with the reason; empty if nothing is."""


class Foresight(NamedTuple):
    """Knowledge of a search's choices before it begins."""

    plan: Plan
    pairs: Mapping[tuple[Graph, Choice], str] = MappingProxyType({})
    """The choices of Q/DQ pairs that move none in a graph, with the reasons."""
    libraries: Mapping[EngineFlavour, Library] = MappingProxyType({})
    """Answers of each flavour of TensorRT about the builder's settings."""
    rewrites: Mapping[Choice, str] = MappingProxyType({})
    """The choices of rewrites that leave the network's graph as it is, with the reasons."""
    remark: str = ""
    """A line about why nothing is known of the graphs; empty if something is."""

    def refusal(self, variant: Variant, choice: Choice) -> str:
        """Return the reason why a variant cannot be given a choice, or would not change by it; empty if it can."""
        if is_own(self.plan.config, choice):
            return "the configuration has it"
        if variant.graph and (variant.graph, choice) in self.pairs:
            return self.pairs[variant.graph, choice]
        if choice in self.rewrites:
            return self.rewrites[choice]
        if choice in REWRITE_CHOICES and variant.graph and variant.graph.for_tensorrt and self._is_proposed:
            return "the proposal of places is of the graph without it"
        if choice.setting == PARTS and variant.profile and isinstance(choice.value, int):
            return batch_obstacle(variant.profile, choice.value)
        if choice in BUILDER_CHOICES and variant.backend is Backend.TENSORRT:
            library = self.libraries.get(self.plan.engine_target(variant).flavour)
            return library.refused.get(choice, "") if library else ""
        return ""

    @property
    def _is_proposed(self) -> bool:
        return self.plan.config.quantization.placement is not Placement.AUTO

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return a line for each fact of the graphs and the libraries that is unknown."""
        found = (self.remark, *(library.remark for library in self.libraries.values()))
        return tuple(remark for remark in found if remark)

    @property
    def routes(self) -> tuple[str, ...]:
        """The build routes of all flavours."""
        return tuple(route for library in self.libraries.values() for route in library.routes)


def foresight_of(project: Project, unmade: Collection[str] = ()) -> Foresight:
    """Return what is known of the choices of a project's search.

    The FP32 graph is made if it is stale, which a matrix without FP32 and quantised types leaves to it.

    Args:
        project: the project.
        unmade: the variants whose graph cannot be made: no places are proposed for it.
    """
    plan = project.plan
    engines = [item for item in plan.variants if item.backend is Backend.TENSORRT]
    graphs = {item.graph for item in plan.variants if item.graph and item.precision in QUANTIZED_PRECISIONS}
    graphs -= {item.graph for item in plan.variants if item.graph and item.id in unmade}
    pairs: dict[tuple[Graph, Choice], str] = {}
    rewrites: dict[Choice, str] = {}
    remark = ""
    if graphs or engines:
        from pipeline.stages.quantize.stage import fp32_of  # noqa: PLC0415 - onnx is slow

        settings = project.config.quantization
        own = settings.placement is Placement.AUTO
        try:
            ensure(project, plan.graph_step(Graph.FP32), Rest())
            model = fp32_of(project)
            pairs = {**(idle_pairs(model, graphs, settings) if own else {}), **idle_heads(model, graphs, settings)}
            pairs |= _unproposed(project, graphs)
            rewrites = idle_rewrites(model, project.config.rewrites.chosen)
        except StorageError:
            raise
        except ArtifactError as exc:  # what needs the graph fails alone
            remark = f"which choices change no graph is found by trials: {reason_of(exc)}"
    targets = {plan.engine_target(item).flavour: item.target for item in engines}
    libraries = {
        flavour: library_of(flavour, plan.gpu(target), BUILDER_CHOICES, f"{project.doit} tune")
        for flavour, target in targets.items()
    }
    return Foresight(plan, pairs, libraries, rewrites, remark)


def _unproposed(project: Project, graphs: Collection[Graph]) -> dict[tuple[Graph, Choice], str]:
    """Have Model Optimizer propose its places as far as that is stale; return the graphs without, with the reasons."""
    if is_own(project.config, PROPOSED):
        return {}
    reasons = {graph: _proposed(project, graph) for graph in sorted(QDQ & {*graphs}, key=lambda item: item.value)}
    return {(graph, PROPOSED): reason for graph, reason in reasons.items() if reason}


def _proposed(project: Project, graph: Graph) -> str:
    """Return the reason why Model Optimizer proposes nothing for a graph; empty if it has proposed places."""
    try:
        ensure(project, Step("propose", f"{project.plan.model}/{graph.value}"), Rest())
    except ArtifactError as exc:
        there = project.paths.proposal(graph)
        stale = f"{there.name} is stale; " if there.is_file() else ""
        return f"{stale}{reason_of(exc)}"
    return ""


def idle_pairs(
    model: onnx.ModelProto, graphs: Collection[Graph], settings: QuantizationConfig = _AUTO
) -> dict[tuple[Graph, Choice], str]:
    """Return the choices of Q/DQ pairs that move none in a graph, as far as the FP32 graph tells, with the reasons.

    Args:
        model: the FP32 graph.
        graphs: the quantised graphs.
        settings: those of the configuration. Another value of a group that it sets moves pairs, unless a trial finds
            none.
    """
    from pipeline.stages.quantize.groups import members  # noqa: PLC0415 - onnx is slow
    from pipeline.stages.quantize.placement import moves_pairs  # noqa: PLC0415 - the same

    found: dict[tuple[Graph, Choice], str] = {}
    for choice in PAIR_CHOICES:
        group = choice.setting.rpartition(".")[2]
        if settings.of(group) is not None:
            continue
        lacking = not members(model, group)
        for graph in graphs:
            if lacking or not moves_pairs(graph, model, group, placed=choice.value is True):
                found[graph, choice] = "the network has none" if lacking else f"{graph.value} stays the same"
    return found


def idle_heads(
    model: onnx.ModelProto, graphs: Collection[Graph], settings: QuantizationConfig = _AUTO
) -> dict[tuple[Graph, Choice], str]:
    """Return the choices of the head and of its pairs with which a graph could not be made, with the reasons.

    They are so whoever proposes the places of the pairs.

    Args:
        model: the FP32 graph.
        graphs: the quantised graphs.
        settings: those of the configuration.
    """
    from pipeline.stages.quantize.placement import outer_layers  # noqa: PLC0415 - onnx is slow

    found = {
        (graph, HEAD_CHOICE): "the network has no last product that stays in floating point"
        for graph in graphs
        if not outer_layers(model, graph, settings)
    }
    paired = [choice for choice in PAIR_CHOICES if choice.setting in HEAD_EXCLUDES and settings.head]
    return found | {(Graph.INT8, choice): "the head of the configuration is in floating point" for choice in paired}


def idle_rewrites(model: onnx.ModelProto, chosen: Collection[str] = ()) -> dict[Choice, str]:
    """Return the choices of rewrites that leave a network's FP32 graph as it is, with the reasons.

    Args:
        model: the FP32 graph.
        chosen: the rewrites that the configuration has made in it, by their names. Another value of one is made from
            the graph without it, so that this one does not tell.
    """
    from pipeline.stages.export.rewrites import lack, rewrite  # noqa: PLC0415 - onnx is slow

    names = {choice: choice.setting.rpartition(".")[2] for choice in REWRITE_CHOICES}
    values = {choice: choice.value for choice in REWRITE_CHOICES if isinstance(choice.value, int | str)}
    return {
        choice: lack(names[choice], value)
        for choice, value in values.items()
        if names[choice] not in chosen and not rewrite(model, names[choice], value).nodes
    }


def is_own(config: Config, choice: Choice) -> bool:
    """Return True if a choice has the value that the configuration has already. Pure."""
    section, _, name = choice.setting.partition(".")
    own = getattr(config, section)
    written = list(choice.value) if isinstance(choice.value, tuple) else choice.value
    return bool(getattr(type(own).model_validate({name: written}), name) == getattr(own, name))


def library_of(flavour: EngineFlavour, gpu: Gpu | None, choices: Sequence[Choice], rerun: str) -> Library:
    """Ask a flavour's library about choices, in a process of its own.

    Args:
        flavour: the flavour.
        gpu: the GPU that engines are built on; None without one.
        choices: the choices of the builder's settings.
        rerun: the command that repeats the search, for messages.
    """
    try:
        return run_isolated(_told, flavour, gpu, tuple(choices), rerun=rerun)
    except ArtifactError as exc:  # each trial says it again, with its own reason
        return Library({}, remark=f"what the library cannot apply is found by a build: {exc.what}")


def _told(name: EngineFlavour, gpu: Gpu | None, choices: tuple[Choice, ...]) -> Library:
    flavour = load_flavour(name)
    refused = {}
    for choice in choices:
        setting = choice.setting.rpartition(".")[2]
        written = list(choice.value) if isinstance(choice.value, tuple) else choice.value
        if reason := refusals(flavour, TensorRTConfig.model_validate({setting: written})).get(setting):
            refused[choice] = reason
    try:
        if gpu is None:
            return Library(refused)
        from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

        cuda.use(gpu)
        return Library(refused, build_routes(flavour))
    except ArtifactError as exc:
        return Library(refused, remark=f"its build routes are not tried: {exc.what}")


def left_lines(left: Sequence[tuple[str, str]]) -> list[str]:
    """Return a line for each reason, with the choices that are none for it. Pure."""
    by_reason: dict[str, list[str]] = {}
    for choice, reason in left:
        by_reason.setdefault(reason, []).append(choice)
    return [f"no choice: {', '.join(dict.fromkeys(choices))}: {reason}" for reason, choices in by_reason.items()]
