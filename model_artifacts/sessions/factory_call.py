"""Somebody else's code, imported and called on behalf of a model: it neither ends nor configures the process."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import nn

from model_artifacts.errors import SourceError, one_line
from model_artifacts.sessions.arithmetic import kept_arithmetic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model_artifacts.records import Argument

_NETWORKS = frozenset({"huggingface_hub", "requests", "urllib3", "urllib", "httpx", "httpx2", "httpcore", "httpcore2"})
"""Packages whose errors come from a download that did not work."""
_SAYS_OFFLINE = ("couldn't connect to", "offline mode", "internet connection")
"""Texts of transformers' and huggingface_hub's messages where the type of the error says nothing."""


_NO_NETWORKS = frozenset({*sys.stdlib_module_names, "numpy", "torch"})
"""Packages whose functions read files, run programs or make layers. A recipe of an unsigned release must not call one.

A network of `torch.hub` takes a function of the user's own around `torch.hub.load`.
"""
_FACTORY_FIX = "set `model.factory` in pipeline.yaml to `package.module:function`; the current folder is on the path"


class Assembly(NamedTuple):
    """The way from a factory to a network that takes the weights."""

    factory: str
    """`package.module:function`."""
    torchvision_weights: str | None
    """Name of torchvision's weights, with whose settings the factory is called; None for others."""
    replaced_head: str | None
    """Name of the final linear layer that replaced the factory's own; None if none did."""
    classes: int
    """Number of logits."""
    arguments: tuple[Argument, ...] = ()
    """Arguments of the factory."""
    logits: str | None = None
    """Name of the logits in the network's output; None if that is a tensor, or holds several outputs."""
    output_names: tuple[str, ...] = ()
    """Names of the outputs of a network that returns several; () for one."""
    takes_several: bool = False
    """True for a network of several inputs."""


class Assembled(Protocol):
    """A record that holds the way to its network, such as a recipe."""

    @property
    def factory(self) -> str:
        """The factory, `package.module:function`."""

    @property
    def torchvision_weights(self) -> str | None:
        """Name of torchvision's weights."""

    @property
    def replaced_head(self) -> str | None:
        """Name of the replaced linear layer."""

    @property
    def classes(self) -> int:
        """Number of logits."""

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """Arguments of the factory."""

    @property
    def logits(self) -> str | None:
        """Name of the logits in the network's output."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of several outputs."""


def assembly_of(record: Assembled, *, takes_several: bool = False) -> Assembly:
    """Return the way to a record's network; `takes_several` is true for one of several inputs."""
    return Assembly(
        record.factory,
        record.torchvision_weights,
        record.replaced_head,
        record.classes,
        record.arguments,
        record.logits,
        record.output_names,
        takes_several,
    )


class LogitsOf(nn.Module):
    """A network that returns a mapping or a dataclass, with the tensor of logits alone as its output."""

    def __init__(self, body: nn.Module, name: str) -> None:
        """Wrap a network, and put it into evaluation mode; `name` is the key or the attribute of the logits."""
        super().__init__()
        self.body = body
        self.name = name
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, classes)."""
        return entry_of(self.body(image), self.name)


class OutputsOf(nn.Module):
    """A network that returns a mapping, a dataclass or a sequence, with a tuple of its outputs in their order."""

    def __init__(self, body: nn.Module, names: tuple[str, ...]) -> None:
        """Wrap a network, and put it into evaluation mode; `names` are those of `entries_of`."""
        super().__init__()
        self.body = body
        self.names = names
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each output, (batch, …)."""
        found = dict(entries_of(self.body(image)))
        return tuple(found[name] for name in self.names)


class LogitsOfSeveral(LogitsOf):
    """The same for a network of several inputs. torch.fx cannot trace a signature of any number of them."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return (batch, classes)."""
        return entry_of(self.body(*inputs), self.name)


class OutputsOfSeveral(OutputsOf):
    """The same for a network of several inputs."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each output, (batch, …)."""
        found = dict(entries_of(self.body(*inputs)))
        return tuple(found[name] for name in self.names)


NUMBERED = "output_"
"""The beginning of the names of outputs that have none of their own: `output_0`, `output_1`."""


def entry_of(output: Any, name: str) -> torch.Tensor:  # noqa: ANN401 - whatever the network returns
    """Return an output by its name: a key, an attribute, or the place in a sequence, such as `output_0`."""
    if isinstance(output, Mapping):
        found = output[name]
    elif hasattr(output, name):
        found = getattr(output, name)
    else:
        found = output[int(name.removeprefix(NUMBERED))]
    tensor: torch.Tensor = found
    return tensor


def entries_of(output: Any, name: str = "") -> list[tuple[str, Any]]:  # noqa: ANN401 - whatever the network returns
    """Return everything that a network returns, with names: keys, attributes and places, `output_0` and so on.

    What lies deeper has the names of its way, such as `features_0`, or `output_1_boxes`. None is left out.

    Args:
        output: the network's result.
        name: the name of that result in another one; empty for the whole.
    """
    keyed: list[tuple[Any, Any]] | None = None
    if isinstance(output, Mapping):
        keyed = [*output.items()]
    elif is_dataclass(output):
        keyed = [(item.name, getattr(output, item.name)) for item in fields(output)]
    elif isinstance(output, tuple) and hasattr(output, "_fields"):  # a tracer's stand-in has every attribute
        keyed = [*zip(output._fields, output, strict=True)]  # a named tuple
    if keyed is not None:
        inner = [(f"{name}_{key}" if name else str(key), value) for key, value in keyed]
    elif isinstance(output, (tuple, list)):
        inner = [(f"{name}_{place}" if name else f"{NUMBERED}{place}", value) for place, value in enumerate(output)]
    else:
        return [] if output is None else [(name, output)]
    return [entry for label, value in inner for entry in entries_of(value, label)]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the factory's own network of one whose outputs are taken out of a mapping or the like."""
    return model.body if isinstance(model, (LogitsOf, OutputsOf)) else model


def find_factory(spec: str) -> Callable[..., nn.Module]:
    """Return the callable that a factory's name leads to, through classes alone.

    Args:
        spec: `package.module:function` or `package.module:Class.method`.

    Raises:
        SourceError: it cannot be imported, is not callable, leads through another module, or belongs to a package that
            makes no networks: Python's own, torch, numpy.
    """
    module_name, name = spec.split(":")
    _require_maker(spec, module_name)
    with running_factory(spec, f"the model's factory {spec!r} cannot be imported", _FACTORY_FIX):
        way: list[Any] = [importlib.import_module(module_name)]
        for part in name.split("."):
            way.append(getattr(way[-1], part))
    factory: Callable[..., nn.Module] = way[-1]
    if through := [step.__name__ for step in way[1:] if isinstance(step, ModuleType)]:
        raise SourceError(
            f"the model's factory {spec!r} leads through a module",
            expected="package.module:function or package.module:Class.method",
            got=f"the module {through[0]} behind the colon",
            fix=_FACTORY_FIX,
        )
    if not callable(factory):
        raise SourceError(f"the model's factory {spec!r} is not callable", got=type(factory).__name__, fix=_FACTORY_FIX)
    if inspect.isroutine(factory) or inspect.isclass(factory):
        _require_maker(spec, factory.__module__ or "")
    return factory


def _require_maker(spec: str, module: str) -> None:
    """Refuse a module of a package that makes no networks."""
    package = module.partition(".")[0]
    if package in _NO_NETWORKS:
        owner = "Python itself" if package in sys.stdlib_module_names else package
        raise SourceError(
            f"the model's factory {spec!r} belongs to {owner}, which makes no networks",
            fix=f"{_FACTORY_FIX}; put a call of {package} into a function of your own",
        )


@contextmanager
def running_factory(spec: str, failure: str, fix: str = "", call: str = "") -> Iterator[None]:
    """Run the code of a model's factory, and translate what it raises.

    A training script may parse the command line when it is imported. It sees none here, so that it takes its defaults,
    whichever of our commands runs it. What it sets in torch's arithmetic is undone.

    Args:
        spec: the factory, `package.module:function`.
        failure: the fact, as the message says it.
        fix: the remedy.
        call: the call with its arguments, for the message.

    Raises:
        SourceError: the code raised something, or ended the process.
    """
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        with kept_arithmetic(f"the model's factory {spec!r}"):
            yield
    except SystemExit as exc:
        raise SourceError(
            failure,
            where=spec.partition(":")[0],
            expected="a module that can be imported, and a function that returns a network",
            got=f"its code ends the process with exit status {exc.code}, as a script does that parses its command line",
            fix='put the code of the script under `if __name__ == "__main__":`',
        ) from exc
    except Exception as exc:
        where = call if call != spec else ""
        if _is_of_the_network(exc):
            raise SourceError(
                f"{failure}: what it asks for is not in this machine's cache, and cannot be downloaded",
                where=where,
                expected=f"the files in {_hub_cache()} (Hugging Face, timm) or "
                f"{Path(torch.hub.get_dir(), 'checkpoints')} (torch.hub)",
                got=one_line(exc),
                fix="download it once on a machine with a network, such as `hf download ID`, and copy the cache; or "
                "name a folder of this machine; or let the factory load nothing (timm: `pretrained: false`), and set "
                "`model.weights` in pipeline.yaml to a file",
            ) from exc
        raise SourceError(failure, where=where, got=one_line(exc), fix=fix) from exc
    finally:
        sys.argv = arguments


def named(arguments: tuple[Argument, ...]) -> dict[str, object]:
    """Return arguments by their names. Lists and mappings are new ones, which the factory may change."""
    return {item.name: copy.deepcopy(item.value) for item in arguments}


def without_weights(factory: str, arguments: tuple[Argument, ...]) -> tuple[Argument, ...]:
    """Return the arguments that make the same network without its trained weights, for weights that follow.

    timm loads or downloads weights for `pretrained: true`, and the network is the same without. So neither a worker nor
    a deployment needs timm's cache.

    Args:
        factory: `package.module:function`.
        arguments: its arguments.
    """
    if factory.partition(":")[0].partition(".")[0] != "timm":
        return arguments
    return tuple(item.model_copy(update={"value": False}) if item.name == "pretrained" else item for item in arguments)


def _is_of_the_network(error: BaseException) -> bool:
    """Return true if a download failed: by the package of the error, or of one of those that led to it."""
    seen: set[int] = set()
    ahead: BaseException | None = error
    while ahead is not None and id(ahead) not in seen:
        seen.add(id(ahead))
        package = type(ahead).__module__.partition(".")[0]
        text = str(ahead).lower()
        if package in _NETWORKS or isinstance(ahead, ConnectionError) or any(part in text for part in _SAYS_OFFLINE):
            return True
        ahead = ahead.__cause__ or ahead.__context__
    return False


def _hub_cache() -> Path:
    """Return the folder of Hugging Face's cache, by the variables that huggingface_hub reads."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
