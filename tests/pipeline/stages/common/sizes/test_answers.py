"""A trace goes the way of a run where the network's code asks for the text or the type of a size, and notes texts."""

from __future__ import annotations

import builtins
from contextlib import suppress
from typing import Any

import pytest
import sympy
import torch

from pipeline.stages.common.sizes.answers import answering
from pipeline.stages.common.sizes.conditions import Asked, noting_branches, quiet
from tests.support import asking, branching

HEIGHT = sympy.Symbol("height")


def traced(network: str, *, answers: bool = True) -> list[Asked]:
    """Return what a trace of a network notes, at 24 x 24 pixels of any height."""
    model = getattr(branching if hasattr(branching, network) else asking, network)().eval()
    auto: Any = torch.export.Dim.AUTO
    with quiet(), noting_branches(answers=answers) as asked:
        torch.export.export(
            model,
            (torch.zeros(2, 3, 24, 24),),
            dynamic_shapes={"image": {2: auto(min=16, max=32)}},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    return asked


def shown(asked: list[Asked]) -> set[str]:
    """Return the formulas of what was noted on the only size, with its name."""
    return {str(item.formula.xreplace(dict.fromkeys(item.formula.free_symbols, HEIGHT))) for item in asked}


@pytest.mark.parametrize(
    "network", ["Text", "Formatted", "Looked", "Bytes", "Caught", "Shown"], ids=lambda network: network.lower()
)
def test_a_text_is_a_number_that_code_takes(network: str) -> None:
    """The text is that of a run, and the trace holds for its own height alone."""
    assert shown(traced(network)) == {"Eq(height, 24)"}
    assert {item.line.split(":")[0] for item in traced(network)} == {"asking.py"}


def test_the_text_of_a_real_number_is_one_too() -> None:
    """Half of 24 is noted as the number that the text shows."""
    assert shown(traced("Percent")) == {"Eq(IntTrueDiv(height, 2), 12.0)"}


@pytest.mark.parametrize(
    "network",
    ["Whole", "Exact", "Unsymbolic", "Matched", "Dispatched", "Plain", "Untraced"],
    ids=lambda network: network.lower(),
)
def test_what_follows_a_question_for_a_type_is_asked(network: str) -> None:
    """A trace without answers never asks for the height."""
    assert shown(traced(network)) == {"Eq(height, 20)"}
    assert not traced(network, answers=False)


def test_messages_are_not_noted() -> None:
    """The conditions of assertions are."""
    assert shown(traced("Telling")) == {"height > 3", "height < 3"}


def test_type_is_used_as_ever() -> None:
    """This module is the network's own code: its names are exchanged meanwhile."""
    with answering(lambda *_: None):
        assert "type" in globals()
        assert "isinstance" in globals()
        made = type("Made", (), {"one": 1})
        assert (vars(made)["one"], type(made())) == (1, made)
        assert isinstance(made, type)
        assert not isinstance(made(), type)
        assert issubclass(builtins.type, type)
        assert (type[int], type | None) == (builtins.type[int], builtins.type | None)
        assert type(made) is type
        assert (type.__name__, type.mro(made)[0]) == ("type", made)


def test_a_network_makes_classes_of_its_own() -> None:
    """`type.__new__` and `class Kind(type)` are as ever."""
    with answering(lambda *_: None):

        class Kind(type):
            def __new__(cls, name: str, bases: tuple[builtins.type, ...], names: dict[str, Any]) -> Kind:
                return type.__new__(cls, name, bases, names)

            def __call__(cls) -> Any:
                return type.__call__(cls)

        class Made(metaclass=Kind):
            pass

        assert type(Made) is Kind
        assert isinstance(Made(), Made)
        assert isinstance(Made, Kind)
        assert not isinstance(int, Kind)
        assert issubclass(Kind, type)
        assert not issubclass(int, Kind)


def test_names_are_exchanged_for_the_trace_alone() -> None:
    """They are no others after it, also when it fails."""
    with suppress(ValueError), answering(lambda *_: None):
        assert "type" in globals()
        raise ValueError
    assert "type" not in globals()


def test_torch_compiles_a_part_of_a_trace() -> None:
    """`torch.cond` does so within a trace, with answers and after them."""
    for answers in (True, False):
        assert shown(traced("Conditional", answers=answers)) == {"Eq(height, 20)"}


def test_torch_and_the_modules_have_their_own_names_again() -> None:
    """What the network's module sets meanwhile stays, and nothing else."""
    before = dict(vars(asking))
    kinds = {kind: dict(vars(kind)) for kind in (torch.SymInt, torch.SymFloat, torch.SymBool)}
    compiling, code = torch.compiler.is_compiling, torch.compiler.is_compiling.__code__

    class Setting(asking.Whole):
        def other(self, image: torch.Tensor) -> Any:
            asking.counted = 1  # type: ignore[attr-defined]  # as a network that counts its calls
            return super().other(image)

    asking.Setting = Setting  # type: ignore[attr-defined]
    try:
        traced("Setting")
        assert asking.counted == 1  # type: ignore[attr-defined]
    finally:
        for name in ("Setting", "counted"):
            vars(asking).pop(name, None)
    assert vars(asking) == before
    assert {kind: dict(vars(kind)) for kind in kinds} == kinds
    assert torch.compiler.is_compiling is compiling
    assert compiling.__code__ is code
    assert "isinstance" not in globals()
