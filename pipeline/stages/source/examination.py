"""A network as a reference: in full FP32, the same for the same image, whatever its neighbours and their number.

Every artifact is compared with the network's logits for batches of the validation set. That is the truth for each batch
size only if the network itself gives an image the same logits in every batch.
"""

from __future__ import annotations

import logging
import math
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import torch

from model_artifacts.errors import SourceError, listed, one_line
from model_artifacts.sessions.arithmetic import call, strict_fp32, tensors, torch_batch
from model_artifacts.sessions.feeds.batches import each, size_of
from model_artifacts.sessions.module_kinds import layers_in_training, place_of
from pipeline.stages.common.probe import probe_batch
from pipeline.stages.source.watching import watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from model_artifacts.records import Preprocessing
    from model_artifacts.sessions.arithmetic import Result
    from model_artifacts.sessions.feeds.samples import Samples
    from pipeline.stages.source.watching import Finding, Watched

log = logging.getLogger(__name__)

_IMAGES = 4
_SIZES = (1, 2, 3, 5, 6, 7, 8)
"""Batch sizes to compare with a batch of four. The export refuses a network that branches above a larger one."""
_OF_SPREAD, _OF_SIZE = 1e-3, 1e-4
"""The largest distance of an image's logits between two batches: as a share of the distance between images, or of the
logits, whichever is larger. FP32's rounding makes about 1e-6 of the logits."""
_REPEATED = 1e-5
"""The largest share of the logits that may change from call to call: kernels of torch may add in another order."""
_NAMED = 3


def require_full_precision(model: nn.Module, spec: Preprocessing | Samples) -> Watched:
    """Refuse a network whose forward is lowered, compiled or not its own, and return everything that was seen.

    Args:
        model: the network with its weights, in evaluation mode.
        spec: the preprocessing, or samples of the inputs.

    Raises:
        SourceError: forward enters autocast, uses types smaller than FP32, or changes torch's settings. Or it calls a
            compiled function, or computes with weights that are not among the network's own.
    """
    with strict_fp32():
        watched = watch(model, torch_batch(probe_batch(spec, _IMAGES)))
    if watched.lowered:
        _refuse(
            "the network lowers its own precision, so that there is no FP32 reference to judge artifacts by",
            watched.lowered,
            expected="every operator of forward in FP32",
            fix="take it out of forward: autocast, `.half()` and TF32 belong into the training loop, and `precisions` "
            "in pipeline.yaml chooses the types of the artifacts",
        )
    if watched.compiled:
        _refuse(
            "the network calls a compiled function, so that the network itself is neither measured nor exported",
            watched.compiled,
            expected="plain functions; the pipeline itself compiles the network as a whole",
            fix="take `torch.compile`, `torch.jit.script` or `torch.jit.trace` off that function",
        )
    if watched.foreign:
        _refuse(
            "the network computes with weights that are not among its own, so that no file or cast would hold them",
            watched.foreign,
            expected="weights in `parameters()` and in the state dict of the network that the factory returns",
            fix="assign the layers to attributes of the network, in an `nn.ModuleList` where they are several; a "
            "function that replaces `forward` must not call another network",
        )
    return watched


def require_same_logits(model: nn.Module, spec: Preprocessing | Samples, watched: Watched) -> None:
    """Refuse a network that gives an image other logits in another call, beside other images, or in a smaller batch.

    Args:
        model: a network that takes a batch of two, in evaluation mode.
        spec: the preprocessing, or samples of the inputs.
        watched: the findings of `require_full_precision`.

    Raises:
        SourceError: it does; the message names the cause that was found.
    """
    if watched.failure:
        log.warning("WARNING: the network runs, but its operators cannot be watched: %s", watched.failure)
    images = torch_batch(probe_batch(spec, _IMAGES))
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    with strict_fp32():
        logits, again = _run(model, images), _run(model, images)
        for one, other in zip(logits, again, strict=True):
            if _distance(other, one) > (0 if watched.random else _REPEATED * _size(one)):
                _refuse_random(model, watched, _changed(model, before))
        expected = [_Expected(output, _bound(output)) for output in logits]
        _require_independence(model, images, expected)
        _require_any_size(model, images, expected)


class _Expected(NamedTuple):
    """An output of the images, and the largest distance that another batch may give it."""

    output: torch.Tensor
    bound: float


def _bound(output: torch.Tensor) -> float:
    return max(_OF_SIZE * _size(output), _OF_SPREAD * _size(output - output.mean(dim=0)))


def _require_independence(model: nn.Module, images: Result, expected: Sequence[_Expected]) -> None:
    turned = _run(model, each(images, lambda item: item.flip(0)))
    beside_itself = _run(model, each(images, lambda item: item[:1].expand_as(item)))
    if all(
        max(_distance(other.flip(0), output), _distance(copy[:1], output[:1])) <= bound
        for other, copy, (output, bound) in zip(turned, beside_itself, expected, strict=True)
    ):
        return
    norms = [place_of(name, module) for name, module in model.named_modules() if _uses_the_batch(module)]
    places = norms or layers_in_training(model)
    raise SourceError(
        "an image's logits depend on the other images of its batch",
        where=_listed(places) if places else place_of("", model),
        expected="the same logits for an image, whichever images are beside it",
        got="batch-norms that take their statistics from the batch" if norms else "other logits beside other images",
        fix="use a normalisation that keeps statistics of the training (`track_running_stats=True`), or none over the "
        "batch, and train again",
    )


def _require_any_size(model: nn.Module, images: Result, expected: Sequence[_Expected]) -> None:
    for size in _SIZES:
        rows = torch.arange(size) % size_of(images)
        for found, (logits, bound) in zip(_run(model, each(images, itemgetter(rows))), expected, strict=True):
            if (distance := _distance(found, logits[rows])) <= bound:
                continue
            raise SourceError(
                "what the network computes depends on the batch size",
                where=f"{place_of('', model)}: a branch on `x.size(0)`, `x.shape[0]` or `len(x)`",
                expected=f"the same logits for an image in a batch of {size} as in a batch of {_IMAGES}",
                got=f"logits that differ by {distance / (_size(logits) or 1):.1%} of their size"
                if found.shape == logits[rows].shape
                else f"shape {tuple(found.shape)}",
                fix="take the branch out of forward, so that a batch of any size goes the same way",
            )


def _refuse(what: str, found: Sequence[Finding], *, expected: str, fix: str) -> NoReturn:
    raise SourceError(
        what,
        where=_listed([finding.layer for finding in found]),
        expected=expected,
        got=_listed([finding.what for finding in found]),
        fix=fix,
    )


def _refuse_random(model: nn.Module, watched: Watched, changed: Sequence[str]) -> NoReturn:
    training = layers_in_training(model)
    if watched.random:
        where = _listed([finding.layer for finding in watched.random])
        got = f"random numbers in evaluation mode: {_listed([finding.what for finding in watched.random])}"
        fix = "pass `training=self.training` to functions such as `F.dropout`, or take the randomness out of forward"
    elif changed:
        where, got = _listed(changed), "forward changes these buffers, and computes with them"
        fix = "let forward change nothing in evaluation mode (`if self.training:`)"
    else:
        where, got = place_of("", model), "no random operator of torch, and no changed buffer"
        fix = "look for numpy's or Python's random numbers in forward, and for attributes that it changes"
    if training:
        got += f"; layers in training mode after `eval()`: {_listed(training)}"
    raise SourceError(
        "the network gives other logits for the same batch",
        where=where,
        expected="the same logits in every call, in evaluation mode",
        got=got,
        fix=fix,
    )


def _run(model: nn.Module, images: Result) -> tuple[torch.Tensor, ...]:
    """Return each output of the network."""
    try:
        return tensors(call(model, images))
    except Exception as exc:  # the model's own code raises any type
        raise SourceError(
            "the model does not take a batch of any size",
            where=place_of("", model),
            expected=f"{size_of(images)} {'image' if size_of(images) == 1 else 'images'} as a batch",
            got=one_line(exc),
            fix="let forward work with any size of its first axis, `x.shape[0]`",
        ) from exc


def _size(logits: torch.Tensor) -> float:
    """Return the root mean square of the logits; 0 where one of them is not finite."""
    return float(logits.square().mean().sqrt()) if torch.isfinite(logits).all() else 0.0


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the root mean square of the difference; infinity for another shape, 0 where a logit is not finite."""
    if found.shape != expected.shape:
        return math.inf
    return _size(found - expected)


def _uses_the_batch(module: nn.Module) -> bool:
    """Return true for a batch-norm that normalises by the images of the batch."""
    batch_norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - the base class of all
    return batch_norm and (module.training or module.running_mean is None)


def _changed(model: nn.Module, before: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Return the names of the buffers that have changed."""
    return tuple(
        name for name, tensor in model.named_buffers() if name not in before or not torch.equal(tensor, before[name])
    )


def _listed(names: Sequence[str]) -> str:
    return listed(tuple(dict.fromkeys(names)), most=_NAMED, separator="; ")
