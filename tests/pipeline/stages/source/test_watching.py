"""Lowered precision, random numbers, compiled functions and borrowed weights, seen in a network's forward."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from model_artifacts.sessions.arithmetic import kept_arithmetic
from pipeline.stages.source.watching import watch
from tests.support import borrowing_networks, odd_networks

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kind", "what", "layer"),
    [
        (odd_networks.Autocast, "torch.autocast('cpu', dtype=torch.bfloat16) is entered", "forward of Autocast"),
        (
            odd_networks.AutocastOnGpu,
            "torch.autocast('cuda', dtype=torch.bfloat16) is entered",
            "forward of AutocastOn",
        ),
        (odd_networks.Half, "aten._to_copy.default computes with torch.float16", "forward of Half"),
        (odd_networks.HalfInput, "aten._to_copy.default computes with torch.float16", "forward of HalfInput"),
        (odd_networks.Switches, "torch.set_float32_matmul_precision is set to medium", "layer 'body.0' (Conv2d)"),
        (odd_networks.SwitchesLate, "torch.set_float32_matmul_precision is set to medium", "the network itself"),
        (odd_networks.FakeQuantized, "quantises", "forward of FakeQuantized"),
    ],
)
def test_lowered_precision_is_seen(kind: type[nn.Module], what: str, layer: str) -> None:
    """The first finding names the operation and the layer."""
    with kept_arithmetic("the network"):  # some of them leave other settings behind
        first = watch(kind().eval(), IMAGES).lowered[0]

    assert what in first.what
    assert first.layer.startswith(layer)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (borrowing_networks.CompiledHelper, "'_plus_one' of torch.compile"),
        (borrowing_networks.CompiledMethod, "'Plain.features' of torch.compile"),
        (borrowing_networks.ScriptedHelper, "'_plus_one' of torch.jit"),
        (borrowing_networks.ScriptedLayer, "'forward' of torch.jit"),
    ],
)
def test_compiled_functions_are_seen(kind: type[nn.Module], what: str) -> None:
    """The function is named with the line that calls it, whichever way the network comes by it."""
    torch.compiler.reset()

    (found,) = watch(kind().eval(), IMAGES).compiled

    assert found.what.startswith(f"{what}, called at borrowing_networks.py:")
    outside = "layer 'TopLevelTracedModule' outside of the network"
    assert found.layer == (outside if kind is borrowing_networks.ScriptedLayer else f"forward of {kind.__name__}")


def test_borrowed_weights_are_seen() -> None:
    """A layer that is no part of the network is found by the operators that take its weights."""
    found = watch(borrowing_networks.Borrowing().eval(), IMAGES).foreign

    assert any("takes a weight of shape (10, 10)" in finding.what for finding in found)
    assert {finding.layer for finding in found} == {"layer 'Linear' outside of the network"}


def test_the_profiler_and_torchscript_are_left_as_they_were() -> None:
    """Nothing that was set to watch is left."""
    before = (sys.getprofile(), torch.jit.ScriptFunction.__call__)

    watch(borrowing_networks.ScriptedHelper().eval(), IMAGES)

    assert (sys.getprofile(), torch.jit.ScriptFunction.__call__) == before


@pytest.mark.parametrize(
    "kind",
    [odd_networks.Plain, odd_networks.AutocastOff, odd_networks.EvaluatedDropout, borrowing_networks.DisabledHelper],
)
def test_fp32_is_not_suspected(kind: type[nn.Module]) -> None:
    """A network in FP32 without random numbers has no findings, also with autocast and dropout switched off."""
    assert watch(kind().eval(), IMAGES) == ((), (), "", (), ())


def test_random_numbers_are_seen() -> None:
    """The operator that draws is named, with its layer."""
    assert {finding.layer for finding in watch(odd_networks.AlwaysDropout().eval(), IMAGES).random} == {
        "forward of AlwaysDropout"
    }
    assert {finding.layer for finding in watch(odd_networks.ForgottenTraining().eval(), IMAGES).random} == {
        "layer 'drop' (Dropout)"
    }


def test_an_error_of_the_network_is_kept() -> None:
    """Findings before the error are kept, too."""
    watched = watch(odd_networks.HalfInput().eval(), IMAGES)

    assert watched.failure
    assert watched.lowered


def test_torch_is_as_it_was() -> None:
    """Autocast is not watched any more afterwards."""
    before = torch.autocast.__init__, torch.autocast.__enter__

    watch(odd_networks.Autocast(), IMAGES)

    assert (torch.autocast.__init__, torch.autocast.__enter__) == before
