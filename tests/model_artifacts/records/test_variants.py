"""Batch ranges, and the names of graphs and variants."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model_artifacts.records import Backend, BatchRange, Graph, Layout, Precision, Variant, Workspace
from tests.support.records import BATCH_RANGES

# Profiles.


@given(st.integers(-3, 40), st.integers(-3, 40), st.integers(-3, 40))
@settings(deadline=None)
def test_profile_is_accepted_if_and_only_if_it_is_ordered(low: int, opt: int, high: int) -> None:
    """1 ≤ min ≤ opt ≤ max, and nothing else."""
    try:
        BatchRange(min=low, opt=opt, max=high)
    except ValidationError:
        accepted = False
    else:
        accepted = True
    assert accepted == (1 <= low <= opt <= high)


@pytest.mark.parametrize(("bounds", "label"), [((8, 8, 8), "b8"), ((1, 8, 32), "b1-8-32"), ((1, 1, 2), "b1-1-2")])
def test_profile_label_is_short_for_a_fixed_batch(bounds: tuple[int, int, int], label: str) -> None:
    """A fixed batch is named once, a range by its three sizes."""
    low, opt, high = bounds
    assert BatchRange(min=low, opt=opt, max=high).label == label


@given(BATCH_RANGES, BATCH_RANGES)
@settings(deadline=None)
def test_profile_labels_are_equal_for_equal_profiles_only(first: BatchRange, second: BatchRange) -> None:
    """A label stands for one profile."""
    assert (first.label == second.label) == (first == second)


# Variants.


def test_engines_name_has_no_backend() -> None:
    """An engine is named by graph, profile and workspace."""
    variant = Variant(
        model="resnet18",
        target="rtx-sm80+",
        backend=Backend.TENSORRT,
        precision=Precision.FP16,
        graph=Graph.FP16,
        profile=BatchRange(min=1, opt=8, max=32),
        workspace=Workspace(bytes=2**30, label="1GiB"),
    )
    assert variant.id == "resnet18/rtx-sm80+/fp16-b1-8-32-ws1GiB"


def test_other_backends_names_begin_with_the_backend() -> None:
    """A variant of another backend has the backend's name first, and the precision if it has no graph."""
    variant = Variant(model="m", target="cpu-x86_64", backend=Backend.EAGER, precision=Precision.FP32)
    assert variant.id == "m/cpu-x86_64/eager-fp32"


def test_graph_is_named_rather_than_its_precision() -> None:
    """Two graphs of one precision give two names."""
    variant = Variant(
        model="m", target="t", backend=Backend.ONNXRUNTIME, precision=Precision.INT8, graph=Graph.INT8_CPU
    )
    assert variant.name == "onnxruntime-int8-cpu"


def test_precision_is_named_where_the_graph_is_another_precisions() -> None:
    """A TF32 engine is built from FP32's graph, and is not called FP32."""
    variant = Variant(model="m", target="t", backend=Backend.TENSORRT, precision=Precision.TF32, graph=Graph.FP32)
    assert variant.name == "tf32"


@pytest.mark.parametrize("graph", list(Graph))
def test_graphs_precision_begins_its_name(graph: Graph) -> None:
    """A graph's name begins with its precision."""
    assert graph.value.split("-")[0] == graph.precision.value


# Files that a record vouches for.


def test_json_on_disk_names_enumerations_by_their_values() -> None:
    """A reader in another language sees `fp16`, not a class of this one."""
    variant = Variant(model="m", target="t", backend=Backend.TORCH_COMPILE, precision=Precision.FP16)
    assert json.loads(variant.to_json())["backend"] == "torch_compile"


@pytest.mark.parametrize(
    ("target", "graph", "expected"),
    [
        ("cpu-x86_64", Graph.INT8, True),
        ("cpu-x86_64", Graph.INT8_MIXED, True),
        ("cpu-x86_64", Graph.FP8, True),
        ("cpu-x86_64", Graph.FP8_MIXED, True),
        ("cpu-x86_64", Graph.INT8_CPU, False),
        ("cpu-x86_64", Graph.INT8_MIXED_CPU, False),
        ("cpu-x86_64", Graph.FP16, False),
        ("cpu-x86_64", None, False),
        ("rtx-sm80+", Graph.INT8, False),
        ("gpu", Graph.FP8, False),
    ],
)
def test_tensorrts_quantised_graphs_stand_in_on_a_processor(
    target: str, graph: Graph | None, *, expected: bool
) -> None:
    """They are never deployed there; the processor's own graphs are, and engines of the same graphs on a GPU."""
    precision = graph.precision if graph else Precision.FP32
    backend = Backend.ONNXRUNTIME if graph else Backend.EAGER
    variant = Variant(model="m", target=target, backend=backend, precision=precision, graph=graph)
    assert variant.stands_in is expected


def test_what_compiles_for_each_layout_runs_contiguous_images_alone() -> None:
    """Deployments feed no others, and a second layout would take as long again to compile."""
    both = {backend for backend in Backend if Layout.CHANNELS_LAST in backend.layouts}
    assert both == {Backend.EAGER, Backend.DYNAMO, Backend.DYNAMO_AOTI}
