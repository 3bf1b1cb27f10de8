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
from model_artifacts.sessions.feeds.samples import Samples
from model_artifacts.sessions.preprocessing import to_input
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import SourceRecord, tensor_spec
from pipeline.stages.common import images
from pipeline.stages.common.model import put_in_fastest_layout
from pipeline.stages.common.probe import shape_of
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
from pipeline.stages.source.sample.fitting import (
    SAMPLE_NORM_IMAGES,
    SAMPLE_RIDGE,
    batches,
    damp_residuals,
    features,
    ridge,
    set_norm_statistics,
)
from pipeline.stages.source.spec import with_reads
from pipeline.stages.source.tensors.signature import (
    one_shape,
    require_other_names,
    samples_for,
    specs_of,
    store_samples,
    takes_several,
)
from pipeline.stages.source.twins import check_twin, drawn_weights, warn_of_random_weights

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

    from pipeline.config.settings import Config
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console

log = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue in ImageNet, of values from 0 to 1."""

SAMPLE = Preprocessing(resize=224, crop=224, interpolation=Interpolation.BILINEAR, mean=IMAGENET_MEAN, std=IMAGENET_STD)
"""Preprocessing of the sample model, whose digits already have 224×224 pixels."""


class _Weights(NamedTuple):
    origin: WeightsOrigin
    detail: str
    model: nn.Module
    inputs: Preprocessing | Samples
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
        weights = _weights(project)
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
        preprocessing=None if isinstance(weights.inputs, Samples) else weights.inputs,
        task=config.model.task,
        sample_shape=shapes[0] if config.model.task.has_parts and not weights.output_names else None,
        named_outputs=tuple(map(tensor_spec, weights.output_names, shapes)),
        named_inputs=specs_of(weights.inputs),
        samples=store_samples(project, weights.inputs),
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
    model, spec, task, names = weights.model, weights.inputs, config.model.task, weights.output_names
    one = weights.logits if task.keeps_name and weights.logits else task.output
    require_other_names(spec, names or (one,))
    watched = examination.require_full_precision(model, spec)
    shapes = network.output_shapes(model, shape_of(spec), task, names)
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
        takes_several(spec),
    )
    check_twin(model, assembly, shape_of(spec))
    if weights.origin is WeightsOrigin.FACTORY:
        warn_of_random_weights(config.model, drawn_weights(model, assembly))
    return shapes


def _weights(project: Project) -> _Weights:
    """Return the weights of the configured source.

    Raises:
        SourceError: a source that the configuration names is not available, or the weights do not fit.
    """
    config = project.config
    factory, arguments, name = config.model.factory, config.model.arguments, config.model.weights.file
    if name == "sample":
        return _sample(config)
    if name == "factory":
        return _from_factory(project)
    if name == "auto":
        entry = torchvision_weights.usual_entry(factory)
        if entry:
            torchvision_weights.require_arguments(factory, entry, arguments)
        return _download_or_sample(project, entry) if entry else _from_factory(project)
    if config.model.weights.is_file:
        return _checkpoint(project)
    entry = torchvision_models.entry_of(torch_model.import_factory(factory), name)
    torchvision_weights.require_arguments(factory, entry, arguments)
    return _torchvision(project, entry, network.fetch(entry, config.model.download_timeout_seconds))


def _torchvision_preprocessing(config: Config, entry: WeightsEnum) -> Preprocessing:
    """Return the written preprocessing, else that of torchvision's weights.

    Raises:
        SourceError: the written one gives inputs out of the weights' own range.
    """
    own = torchvision_weights.preprocessing_of(entry)
    if config.preprocessing:
        require_range_of(own, config.preprocessing)
    return config.preprocessing or own


def _inputs(project: Project, model: nn.Module) -> Preprocessing | Samples:
    """Return samples of `data.tensors`, else the written preprocessing, else the one that comes with the network.

    Raises:
        SourceError: none is written, and nothing says which one is right.
        ConfigError: the arrays are not the network's inputs.
    """
    if samples := samples_for(project, model):
        return samples
    config = project.config
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


def _download_or_sample(project: Project, entry: WeightsEnum) -> _Weights:
    """Return torchvision's weights, or the sample model, with warnings, if they cannot be downloaded."""
    config = project.config
    try:
        file = network.fetch(entry, config.model.download_timeout_seconds)
    except SourceError as exc:
        if config.model.task is not Task.CLASSIFICATION or config.data.tensors is not None:
            raise  # the sample model is a classifier of images
        for line in str(exc).splitlines():
            log.warning("WARNING: %s", line)
        log.warning("WARNING: falling back to the SAMPLE MODEL: a seeded backbone, its head fitted on digits.")
        log.warning("WARNING: use it to try the pipeline, not for deployment; set `model.weights` for other weights.")
        again = project.command(Step("source", project.plan.model))
        log.warning("WARNING: to try the download again, run `%s`.", again)
        return _sample(config)._replace(awaited_file=network.cached_file(entry).name)
    return _torchvision(project, entry, file)


def _torchvision(project: Project, entry: WeightsEnum, file: Path) -> _Weights:
    config = project.config
    usual = entry.name == torchvision_weights.USUAL
    model = torchvision_weights.load(config.model.factory, entry, file, config.model.arguments)
    inputs = samples_for(project, model) or _torchvision_preprocessing(config, entry)
    weights = _Weights(
        origin=WeightsOrigin.IMAGENET1K_V1 if usual else WeightsOrigin.TORCHVISION,
        detail=f"torchvision {entry}",
        model=model,
        inputs=inputs,
        class_names=tuple(entry.meta["categories"]),
        torchvision_weights=entry.name,
    )
    return _with_output(weights, network.take_logits(model, shape_of(inputs), config.model.task))


def _checkpoint(project: Project) -> _Weights:
    config = project.config
    factory, file = config.model.factory, Path(config.model.weights.file)
    if entry := torchvision_weights.entry_of_file(factory, file):
        return _torchvision(project, entry, file)
    arguments = config.model.arguments
    model = torch_model.make_model(factory, arguments=without_weights(factory, arguments))
    inputs = _inputs(project, model)
    fit = load_checkpoint(model, file, config.model.weights.key)
    torchvision_weights.check_settings(factory, model, one_shape(inputs), file, arguments)
    output = network.take_logits(model, shape_of(inputs), config.model.task)
    if fit.beside:
        log.warning("WARNING: %s: left out, for they are not the model's: %s", file.name, listed(fit.beside))
    detail = f"{file.name}, key {fit.key}" if fit.key else file.name
    return _with_output(_Weights(WeightsOrigin.CHECKPOINT, detail, model, inputs, None), output)


def _from_factory(project: Project) -> _Weights:
    config = project.config
    factory, arguments = config.model.factory, config.model.arguments
    own = torch_model.make_model(factory, arguments=arguments)
    require_problem(own, config.model.task)
    inputs = _inputs(project, own)
    names = hub_classes(own) or timm_classes(own)
    output = network.take_logits(own, shape_of(inputs), config.model.task)
    detail = f"as {call_of(factory, arguments)} makes them, seed {torch_model.SEED}"
    return _with_output(_Weights(WeightsOrigin.FACTORY, detail, own, inputs, names), output)


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
    damp_residuals(model)
    network.output_shapes(model, preprocessing.input_shape)
    log.info("fitting the sample model on %d digits", images.DIGITS_TO_FIT)
    digits = images.digits(preprocessing, 0, images.DIGITS_TO_FIT)
    labels = np.array(digits.labels)
    put_in_fastest_layout(model, torch.from_numpy(to_input(digits.pixels[:2], preprocessing)))
    with torch.no_grad():  # not inference_mode: the results become parameters
        set_norm_statistics(model, batches(digits.pixels[:SAMPLE_NORM_IMAGES], preprocessing))
        folded = torch_model.fold_batch_norms(model, preprocessing.input_shape).model
        found = features(folded, head.name, batches(digits.pixels, preprocessing))
        weight, bias = ridge(found, torch.from_numpy(labels), SAMPLE_RIDGE)
    model = torch_model.in_layout(model, torch.contiguous_format)
    fitted = torch_model.replace_head(model, head.name, images.DIGIT_CLASSES)
    fitted.weight = nn.Parameter(weight)
    fitted.bias = nn.Parameter(bias)
    detail = f"sample model: seed {torch_model.SEED}, head fitted on {len(digits)} of scikit-learn's digits"
    names = tuple(str(number) for number in range(images.DIGIT_CLASSES))
    return _Weights(WeightsOrigin.SAMPLE, detail, model.eval(), preprocessing, names, head.name, logits=logits)


def run(project: Project, _model: str, console: Console) -> int:
    """Make the source, and print the origin of the weights and the size of the model."""
    record = make_source(project)
    named = "; ".join(f"{spec.name} ({', '.join(map(str, spec.shape))})" for spec in record.outputs)
    given = f"{record.classes} classes" if record.task is Task.CLASSIFICATION else named
    console.say(f"{record.origin_detail}: {record.parameters / 1e6:.1f} M parameters, {given}")
    return 0
