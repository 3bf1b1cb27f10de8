"""The call of a factory against its signature, before it is made: a mistake in pipeline.yaml gets its position."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

from model_artifacts.errors import closest, listed
from model_artifacts.records import call_of
from model_artifacts.sessions import torch_model
from pipeline.config.loading import argument_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pipeline.config.settings import ModelConfig

log = logging.getLogger(__name__)

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def require_call(file: Path, model: ModelConfig) -> None:
    """Refuse arguments that the model's factory does not take, and a call that lacks one of those that it needs.

    Args:
        file: the configuration, for positions.
        model: its model.

    Raises:
        SourceError: the factory cannot be imported.
        ConfigError: the arguments do not fit; the message says what the factory takes.
    """
    factory = torch_model.import_factory(model.factory)
    names = tuple(argument.name for argument in model.arguments)
    if problems := tuple(call_problems(model.factory, factory, names)):
        raise argument_error(file, model.name, problems)
    if names:
        log.info("the network is made by %s", call_of(model.factory, model.arguments))


def call_problems(spec: str, factory: Callable[..., object], names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a call, as pairs of an argument's name, empty for the whole call, and text.

    Nothing is known of a factory without a signature, such as a function in C; its own error is reported then.

    Args:
        spec: the factory's name, for messages.
        factory: the factory.
        names: the names of the arguments.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return
    known = [item.name for item in parameters if item.kind in _BY_NAME]
    needed = [item.name for item in parameters if item.kind in _BY_NAME and item.default is item.empty]
    by_place = [item.name for item in parameters if item.kind is item.POSITIONAL_ONLY and item.default is item.empty]
    takes = f"it takes {listed(known, most=20)}" if known else "it takes no arguments"
    if not any(item.kind is item.VAR_KEYWORD for item in parameters):
        for name in [name for name in names if name not in known]:
            close = closest(name, known)
            hint = f"; did you mean {close!r}?" if close else "; remove it" if not known else ""
            yield name, f"`model.arguments`: {spec} has no parameter {name!r}; {takes}{hint}"
    if missing := [name for name in needed if name not in names]:
        close = closest(missing[0], [name for name in names if name not in known])
        hint = f"; is {close!r} meant to be it?" if close else f"; write them, such as {{{missing[0]}: …}}"
        yield close or "", f"`model.arguments`: {spec} needs {listed(missing)}; {takes}{hint}"
    if by_place:
        wrap = "name a function of your own that calls it"
        yield "", f"`model.factory`: {spec} takes {listed(by_place)} by place alone, not by name; {wrap}"
