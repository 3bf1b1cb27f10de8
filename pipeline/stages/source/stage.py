"""Configuration → the model's weights and the preprocessing of its images (`<model>/source/`)."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from model_artifacts.errors import SourceError, listed
from model_artifacts.host.environment import now, tools
from model_artifacts.host.files import replacing
from model_artifacts.host.hashes import describe_file
from model_artifacts.host.record_files import refuse_newer
from model_artifacts.records import Interpolation, Preprocessing, Task, WeightsOrigin, call_of
from model_artifacts.sessions import torch_model, torchvision_models
from model_artifacts.sessions.factory_call import Assembly, without_weights
from model_artifacts.sessions.preprocessing import to_input
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import SourceRecord, output_spec
from pipeline.stages.common import images
from pipeline.stages.common.model import put_in_fastest_layout
from pipeline.stages.source import examination, network, torchvision_weights
from pipeline.stages.source.calls import require_call
from pipeline.stages.source.checkpoints import load_checkpoint
from pipeline.stages.source.graph_file.making import make_graph_source
from pipeline.stages.source.outputs import check_outputs
from pipeline.stages.source.presets import (
    hub_classes,
    own_preprocessing,
    refuse_unknown,
    require_problem,
    require_range_of,
    timm_classes,
)
from pipeline.stages.source.reads import noted_reads
from pipeline.stages.source.spec import with_reads
from pipeline.stages.source.twins import check_twin, drawn_weights, warn_of_random_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from torchvision.models import WeightsEnum

    from pipeline.config.settings import Config
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console

log = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue in ImageNet, of values from 0 to 1."""

SAMPLE = Preprocessing(resize=224, crop=224, interpolation=Interpolation.BILINEAR, mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""Preprocessing of the sample model, whose digits already have 224×224 pixels."""

SAMPLE_RIDGE = 60.0
"""Penalty λ of the ridge regression that fits the sample model's head.

A smaller λ fits better but magnifies rounding errors, until correct engines miss their gates. With TF32's rounding
simulated on held-out digits, the relative L2 is 1.7e-3 at 30, 1.5e-3 at 60 and 1.4e-3 at 100. Top-1 on all 997
held-out digits is 92.5 % at 60, 91.8 % at 80 and 91.0 % at 100.
"""
SAMPLE_RESIDUAL_SCALE = 0.5
"""Weight of the last batch-norm of each residual branch of the sample model.

The branches of a random network add noise that a trained network's do not. At a weight of 1 on an H100, relative L2 to
FP32 was 2.4e-3 for TF32 and 7.0e-3 for FP16, outside their gates of 2e-3 and 5e-3.
"""
SAMPLE_NORM_IMAGES = 400
"""Number of digits that give the sample model's batch-norm statistics."""

_BATCH = 50


class _Weights(NamedTuple):
    origin: WeightsOrigin
    detail: str
    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    replaced_head: str | None = None
    torchvision_weights: str | None = None
    awaited_file: str | None = None
    logits: str | None = None
    output_names: tuple[str, ...] = ()


def make_source(project: Project) -> SourceRecord:
    """Store the model's weights and preprocessing from the configured source, or its ONNX file.

    Raises:
        SourceError: the factory or the named weights are not available or do not fit, the model returns no logits, or
            it cannot be the FP32 reference.
        StorageError: the results cannot be written.
        NewerRecordError: a newer version of this project wrote the present record.
    """
    config = project.config
    refuse_newer(project.paths.source)
    if config.model.onnx is not None:
        return make_graph_source(project, config.model.onnx)
    key = key_of(project, Step("source", project.plan.model))  # before the inputs can change
    with noted_reads() as noted:
        require_call(project.config_file, config.model)
        weights = _weights(config)
    ignored = (project.paths.root, Path(config.model.weights.file))
    reads = () if weights.torchvision_weights else noted.records(config.model.factory, ignored)
    with replacing(project.paths.weights) as temporary:
        torch_model.save_weights(weights.model, temporary)  # before anything runs the network and changes its buffers
        shapes = _examine(config, weights)
    record = SourceRecord(
        key=with_reads(key, reads),
        built_at=now(),
        toolchain=tools("torch", "torchvision", "scikit-learn"),
        model=config.model.name,
        factory=config.model.factory,
        arguments=config.model.arguments,
        origin=weights.origin,
        origin_detail=weights.detail,
        weights=describe_file(project.paths.weights, project.paths.root),
        parameters=sum(parameter.numel() for parameter in weights.model.parameters()),
        classes=sum(map(math.prod, shapes)),
        class_names=_class_names(config, weights, shapes[0][0]),
        replaced_head=weights.replaced_head,
        torchvision_weights=weights.torchvision_weights,
        logits=weights.logits,
        awaited_file=weights.awaited_file,
        reads=reads,
        preprocessing=weights.preprocessing,
        task=config.model.task,
        sample_shape=shapes[0] if config.model.task.has_parts and not weights.output_names else None,
        named_outputs=tuple(map(output_spec, weights.output_names, shapes)),
    )
    return project.write(project.paths.source, record)


def _class_names(config: Config, weights: _Weights, classes: int) -> tuple[str, ...] | None:
    """Return the names of the weights' classes; None for another number of outputs, and without classes."""
    names = weights.class_names
    task = config.model.task
    known = task.has_classes and not task.takes_several  # a detector's decoding alone knows how many classes it has
    return names if names and len(names) == classes and known else None


def _examine(config: Config, weights: _Weights) -> tuple[tuple[int, ...], ...]:
    """Refuse a network that cannot be the FP32 reference, and return the shape of each output for one image."""
    model, spec, task, names = weights.model, weights.preprocessing, config.model.task, weights.output_names
    watched = examination.require_full_precision(model, spec)
    shapes = network.output_shapes(model, spec.input_shape, task, names)
    check_outputs(model, spec, task, names)
    examination.require_same_logits(model, spec, watched)
    assembly = Assembly(
        config.model.factory,
        weights.torchvision_weights,
        weights.replaced_head,
        sum(map(math.prod, shapes)),
        config.model.arguments,
        weights.logits,
        names,
    )
    check_twin(model, assembly, spec.input_shape)
    if weights.origin is WeightsOrigin.FACTORY:
        warn_of_random_weights(config.model, drawn_weights(model, assembly))
    return shapes


def _weights(config: Config) -> _Weights:
    """Return the weights of the configured source.

    Raises:
        SourceError: a source that the configuration names is not available, or the weights do not fit.
    """
    factory, arguments, name = config.model.factory, config.model.arguments, config.model.weights.file
    if name == "sample":
        return _sample(config)
    if name == "factory":
        return _from_factory(config)
    if name == "auto":
        entry = torchvision_weights.usual_entry(factory)
        if entry:
            torchvision_weights.require_arguments(factory, entry, arguments)
        return _download_or_sample(config, entry) if entry else _from_factory(config)
    if config.model.weights.is_file:
        return _checkpoint(config)
    entry = torchvision_models.entry_of(torch_model.import_factory(factory), name)
    torchvision_weights.require_arguments(factory, entry, arguments)
    return _torchvision(config, entry, network.fetch(entry, config.model.download_timeout_seconds))


def _torchvision_preprocessing(config: Config, entry: WeightsEnum) -> Preprocessing:
    """Return the written preprocessing, else that of torchvision's weights.

    Raises:
        SourceError: the written one gives inputs out of the weights' own range.
    """
    own = torchvision_weights.preprocessing_of(entry)
    if config.preprocessing:
        require_range_of(own, config.preprocessing)
    return config.preprocessing or own


def _preprocessing(config: Config, model: nn.Module) -> Preprocessing:
    """Return the written preprocessing, else the one that comes with the network. Nothing else replaces it silently.

    Raises:
        SourceError: none is written, and nothing says which one is right.
    """
    factory = config.model.factory
    if config.preprocessing:
        return config.preprocessing
    if own := own_preprocessing(model, config.model.arguments):
        return own
    call = call_of(factory, config.model.arguments)
    usual = torchvision_weights.usual_preprocessing(factory)
    if usual is None:
        refuse_unknown(call, model)
    log.warning("WARNING: nothing says how the images for these weights were prepared in their training.")
    log.warning("WARNING: taking that of torchvision's %s for %s: %s", torchvision_weights.USUAL, factory, usual)
    log.warning("WARNING: write `preprocessing` in pipeline.yaml if the training had another one.")
    return usual


def _download_or_sample(config: Config, entry: WeightsEnum) -> _Weights:
    """Return torchvision's weights, or the sample model, with warnings, if they cannot be downloaded."""
    try:
        file = network.fetch(entry, config.model.download_timeout_seconds)
    except SourceError as exc:
        if config.model.task is not Task.CLASSIFICATION:
            raise  # the sample model is a classifier
        for line in str(exc).splitlines():
            log.warning("WARNING: %s", line)
        log.warning("WARNING: falling back to the SAMPLE MODEL: a seeded backbone, its head fitted on digits.")
        log.warning("WARNING: use it to try the pipeline, not for deployment; set `model.weights` for other weights.")
        log.warning("WARNING: to try the download again, run `python -m pipeline source %s`.", config.model.name)
        return _sample(config)._replace(awaited_file=network.cached_file(entry).name)
    return _torchvision(config, entry, file)


def _torchvision(config: Config, entry: WeightsEnum, file: Path) -> _Weights:
    preprocessing = _torchvision_preprocessing(config, entry)
    usual = entry.name == torchvision_weights.USUAL
    model = torchvision_weights.load(config.model.factory, entry, file, config.model.arguments)
    weights = _Weights(
        origin=WeightsOrigin.IMAGENET1K_V1 if usual else WeightsOrigin.TORCHVISION,
        detail=f"torchvision {entry}",
        model=model,
        preprocessing=preprocessing,
        class_names=tuple(entry.meta["categories"]),
        torchvision_weights=entry.name,
    )
    return _with_output(weights, network.take_logits(model, preprocessing.input_shape, config.model.task))


def _checkpoint(config: Config) -> _Weights:
    factory, file = config.model.factory, Path(config.model.weights.file)
    if entry := torchvision_weights.entry_of_file(factory, file):
        return _torchvision(config, entry, file)
    arguments = config.model.arguments
    model = torch_model.make_model(factory, arguments=without_weights(factory, arguments))
    preprocessing = _preprocessing(config, model)
    fit = load_checkpoint(model, file, config.model.weights.key)
    torchvision_weights.check_settings(factory, model, preprocessing.input_shape, file, arguments)
    output = network.take_logits(model, preprocessing.input_shape, config.model.task)
    if fit.beside:
        log.warning("WARNING: %s: left out, for they are not the model's: %s", file.name, listed(fit.beside))
    detail = f"{file.name}, key {fit.key}" if fit.key else file.name
    return _with_output(_Weights(WeightsOrigin.CHECKPOINT, detail, model, preprocessing, None), output)


def _from_factory(config: Config) -> _Weights:
    factory, arguments = config.model.factory, config.model.arguments
    own = torch_model.make_model(factory, arguments=arguments)
    require_problem(own, config.model.task)
    preprocessing = _preprocessing(config, own)
    names = hub_classes(own) or timm_classes(own)
    output = network.take_logits(own, preprocessing.input_shape, config.model.task)
    detail = f"as {call_of(factory, arguments)} makes them, seed {torch_model.SEED}"
    return _with_output(_Weights(WeightsOrigin.FACTORY, detail, own, preprocessing, names), output)


def _with_output(weights: _Weights, output: network.Output) -> _Weights:
    return weights._replace(model=output.model, logits=output.logits, output_names=output.names)


def _sample(config: Config) -> _Weights:
    """Fit the sample model: a seeded backbone, batch-norm statistics by one pass, and a head in closed form.

    The weights are the same bit for bit with the same number of threads. With others, torch sums in another order.
    """
    preprocessing = config.preprocessing or SAMPLE
    factory, arguments = config.model.factory, config.model.arguments
    own = torch_model.make_model(factory, arguments=without_weights(factory, arguments))
    model, logits, _ = network.take_logits(own, preprocessing.input_shape)
    head = network.find_head(model)
    _damp_residuals(model)
    network.output_shapes(model, preprocessing.input_shape)
    log.info("fitting the sample model on %d digits", images.DIGITS_TO_FIT)
    digits = images.digits(preprocessing, 0, images.DIGITS_TO_FIT)
    labels = np.array(digits.labels)
    put_in_fastest_layout(model, torch.from_numpy(to_input(digits.pixels[:2], preprocessing)))
    with torch.no_grad():  # not inference_mode: the results become parameters
        _set_norm_statistics(model, _batches(digits.pixels[:SAMPLE_NORM_IMAGES], preprocessing))
        folded = torch_model.fold_batch_norms(model, preprocessing.input_shape).model
        features = _features(folded, head.name, _batches(digits.pixels, preprocessing))
        weight, bias = _ridge(features, torch.from_numpy(labels), SAMPLE_RIDGE)
    model = torch_model.in_layout(model, torch.contiguous_format)
    fitted = torch_model.replace_head(model, head.name, images.DIGIT_CLASSES)
    fitted.weight = nn.Parameter(weight)
    fitted.bias = nn.Parameter(bias)
    detail = f"sample model: seed {torch_model.SEED}, head fitted on {len(digits)} of scikit-learn's digits"
    names = tuple(str(number) for number in range(images.DIGIT_CLASSES))
    return _Weights(WeightsOrigin.SAMPLE, detail, model.eval(), preprocessing, names, head.name, logits=logits)


def _damp_residuals(model: nn.Module) -> None:
    """Weaken the branches of torchvision's residual blocks; other networks stay unchanged."""
    for block in model.modules():
        norms = [getattr(block, name, None) for name in ("bn3", "bn2")]
        last = next((norm for norm in norms if isinstance(norm, nn.BatchNorm2d)), None)
        if hasattr(block, "downsample") and last is not None:
            nn.init.constant_(last.weight, SAMPLE_RESIDUAL_SCALE)


def _batches(pixels: npt.NDArray[np.uint8], spec: Preprocessing) -> Iterator[torch.Tensor]:
    # Contiguous, whatever the weights' layout: the first convolution, which changes the layout, is twice as fast then.
    for start in range(0, len(pixels), _BATCH):
        yield torch.from_numpy(to_input(pixels[start : start + _BATCH], spec))


def _set_norm_statistics(model: nn.Module, batches: Iterator[torch.Tensor]) -> None:
    """Set every batch-norm's statistics by one pass over images; only batch-norms are in training mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    for batch in batches:
        model(batch)
    model.eval()


def _features(model: nn.Module, head: str, batches: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return the inputs of the head: float64 (samples, features)."""
    caught: list[torch.Tensor] = []
    hook = (
        dict(model.named_modules())
        .get(head, nn.Identity())
        .register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    )
    try:
        for batch in batches:
            model(batch)
    finally:
        hook.remove()
    if not caught:
        raise SourceError(
            f"the model does not call the sample model's head {head!r}",
            expected="a network whose last torch.nn.Linear gives the logits",
            fix="set `model.weights` in pipeline.yaml to a .pth or .safetensors file, or to `factory`",
        )
    return torch.cat(caught).double()


def _ridge(features: torch.Tensor, labels: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve (AᵀA + λI) W = AᵀY; A is the features with a column of ones, Y the one-hot labels.

    Args:
        features: float64 (samples, features).
        labels: int64 (samples,).
        penalty: λ.

    Returns:
        float32 weight (classes, features) and bias (classes,).
    """
    columns = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    targets = nn.functional.one_hot(labels, images.DIGIT_CLASSES).to(features.dtype)
    gram = columns.T @ columns + penalty * torch.eye(columns.shape[1], dtype=features.dtype)
    solution = torch.linalg.solve(gram, columns.T @ targets).float()
    return solution[:-1].T.contiguous(), solution[-1].contiguous()


def run(project: Project, _model: str, console: Console) -> int:
    """Make the source, and print the origin of the weights and the size of the model."""
    record = make_source(project)
    named = "; ".join(f"{spec.name} ({', '.join(map(str, spec.shape))})" for spec in record.outputs)
    given = f"{record.classes} classes" if record.task is Task.CLASSIFICATION else named
    console.say(f"{record.origin_detail}: {record.parameters / 1e6:.1f} M parameters, {given}")
    return 0
