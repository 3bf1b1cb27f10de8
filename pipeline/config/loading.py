"""`pipeline.yaml` → `Config`: the only reader of the configuration, with the checks across several values."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import ValidationError

from model_artifacts.errors import ConfigError, UsageError
from model_artifacts.records import Host, Precision
from pipeline.config.arguments import PLACE, argument_problems
from pipeline.config.axes import axes_problems
from pipeline.config.benchmark import load_problems
from pipeline.config.ends import io_problems
from pipeline.config.files.models import source_of, sources_of
from pipeline.config.files.problems import Together, problems_of, shown_location, together_problems
from pipeline.config.preprocessing import preprocessing_problems
from pipeline.config.quantization import QuantizationConfig
from pipeline.config.settings import Config, Executor, ModelConfig
from pipeline.config.tasks import task_problems
from pipeline.config.tensorrt import portable_target
from pipeline.config.values import QUANTIZED_PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from model_artifacts.records import Gpu
    from pipeline.config.files.yaml_source import Location, YamlSource
    from pipeline.config.settings import FarmTarget


def load_config(file: Path, host: Host | None = None) -> Config:
    """Read and check a configuration of one model.

    Args:
        file: the YAML file.
        host: the machine that `device` and percentages of memory refer to; None is a machine without GPUs.

    Raises:
        UsageError: the file cannot be read, or has several models.
        ConfigError: the file has problems; the error lists all of them, each with its `file:line:column`.
    """
    first, *others = load_configs(file, host)
    if others:
        names = ", ".join(config.model.name for config in (first, *others))
        fix = "write a file with `model` in place of `models`, and name it: `--config FILE`, with doit `config=FILE`"
        raise UsageError(f"{file} has several models", expected="a configuration of one model", got=names, fix=fix)
    return first


def load_configs(file: Path, host: Host | None = None) -> tuple[Config, ...]:
    """Read and check a configuration: one for each of its models.

    Args:
        file: the YAML file.
        host: the machine that `device` and percentages of memory refer to; None is a machine without GPUs.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: the file has problems; the error lists all of them, each with its `file:line:column`.
    """
    try:
        data = file.read_bytes()
    except OSError as exc:
        raise UsageError(
            f"the configuration {file} cannot be read: {exc.strerror}",
            fix="run from the project's folder, or name the file: `--config FILE`, with doit `config=FILE`",
        ) from exc
    return _read(file, data, host or Host())


@lru_cache(maxsize=256)  # of a folder with several models each asks who makes the others
def _read(file: Path, data: bytes, host: Host) -> tuple[Config, ...]:
    """Return the configurations of a file's content.

    Raises:
        ConfigError: it has problems.
    """
    from pipeline.config.files.yaml_source import parse_yaml  # noqa: PLC0415 - a process that loads an engine reads no YAML

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError(
            file, [f"{file}:1:1: not UTF-8 text: {exc.reason} at byte {exc.start}; save it as UTF-8"]
        ) from exc
    source = parse_yaml(file, text)
    if source.data is None and source.problems:
        raise ConfigError(file, source.problems)
    found = sources_of(source)
    problems = [*source.problems, *found.problems]
    configs, together = [], []
    for item in found.each:
        config, wrong = _checked(item)
        problems += wrong
        if config:
            configs.append(config)
            together.append(Together(item, config.model.name, tuple(_cross_checks(config, host))))
    problems += together_problems(together, len(found.each))
    if problems:
        raise ConfigError(file, _sorted(file, problems))
    return tuple(configs)


def _checked(source: YamlSource) -> tuple[Config | None, list[str]]:
    """Return the configuration of one model, None if it is wrong, and its problems, each with its position."""
    problems = _argument_problems(source)
    try:
        return Config.model_validate(source.data), problems
    except ValidationError as exc:
        return None, [*problems, *problems_of(source, exc)]


def argument_error(file: Path, model: str, problems: Iterable[tuple[str, str]]) -> ConfigError:
    """Return the error of a factory's arguments that only its code shows to be wrong.

    Args:
        file: the configuration.
        model: the name of the model.
        problems: names of arguments, with what is wrong; an empty name is the call as a whole.
    """
    source = _source_of(file, model)
    lines = [
        f"{source.key_position((*PLACE, name)) if name else source.position(PLACE)}: {text}" for name, text in problems
    ]
    return ConfigError(file, _sorted(file, lines))


def placed_error(file: Path, model: str, problems: Iterable[tuple[Location, str]]) -> ConfigError:
    """Return the error of settings that only the files which they name show to be wrong.

    Args:
        file: the configuration.
        model: the name of the model.
        problems: the places of settings, with what is wrong.
    """
    source = _source_of(file, model)
    return ConfigError(file, _sorted(file, [f"{source.position(place)}: {text}" for place, text in problems]))


def _source_of(file: Path, model: str) -> YamlSource:
    """Return what a configuration says of one of its models, for positions; nothing if the file is gone."""
    from pipeline.config.files.yaml_source import parse_yaml  # noqa: PLC0415 - as above

    return source_of(parse_yaml(file, file.read_text(encoding="utf-8") if file.is_file() else ""), model)


def _argument_problems(source: YamlSource) -> list[str]:
    """Return the problems of the factory's arguments as they are written, which pydantic does not place exactly."""
    model = source.data.get("model") if isinstance(source.data, dict) else None
    arguments = model.get("arguments") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(arguments, dict):
        return []
    found = argument_problems(str(model.get("factory", ModelConfig().factory)), arguments)
    return [f"{source.position(place)}: {text}" for place, text in found if place not in source.unreadable]


def _cross_checks(config: Config, host: Host) -> list[tuple[Location, str]]:
    """Return the problems that several values have together, as pairs of location and text."""
    on_farm = config.executor is Executor.RAY
    gpus = () if on_farm else config.gpus(host)
    problems = [*(_farm_checks(config) if on_farm else _device_checks(config, host, gpus))]
    if config.preprocessing is not None:
        problems += preprocessing_problems(config.preprocessing)
    if config.farm and not on_farm:
        problems.append((("farm",), "`farm` needs `executor: ray`; set it or remove `farm`"))
    memory = gpus[0].memory_bytes if gpus else None
    for index, batch in enumerate(config.timed_batches):
        if not any(profile.takes(batch) for profile in config.profiles):
            labels = ", ".join(profile.label for profile in config.profiles)
            outside = f"batch {batch} lies in none of the profiles {labels}; remove it or add a profile that holds it"
            problems.append((("benchmark", "batches", index), outside))
    if config.quantization != QuantizationConfig() and not {*config.precisions} & QUANTIZED_PRECISIONS:
        problems.append((("quantization",), "`quantization` needs int8 or fp8 in `precisions`; add one or remove it"))
    if config.quantization.head and Precision.INT8 not in config.precisions:
        refusal = "`quantization.head` needs int8 in `precisions`; add it or remove `head`"
        problems.append((("quantization", "head"), refusal))
    left = config.leave_unquantized
    for precision, names in ((Precision.INT8, left.int8), (Precision.FP8, left.fp8)):
        if names and precision not in config.precisions:
            name = precision.value
            refusal = f"`leave_unquantized.{name}` needs {name} in `precisions`; add it or remove the layers"
            problems.append((("leave_unquantized", name), refusal))
    problems += _module_checks(config)
    problems += _onnx_checks(config)
    problems += task_problems(config)
    problems += io_problems(config)
    problems += load_problems(config.load)
    problems += axes_problems(config)
    lists: dict[Location, list[str]] = {
        ("data", "classes"): list(config.data.classes) if isinstance(config.data.classes, tuple) else [],
        ("precisions",): [precision.value for precision in config.precisions],
        ("profiles",): [profile.label for profile in config.profiles],
        ("io",): [" ".join(item.io.words) or "the network's own" for item in config.io],
        ("workspaces",): [str(item.bytes(memory) or item.text) for item in config.workspaces],
        ("leave_unquantized", "int8"): list(config.leave_unquantized.int8),
        ("leave_unquantized", "fp8"): list(config.leave_unquantized.fp8),
        ("tensorrt", "tactic_sources"): [source.value for source in config.tensorrt.tactic_sources or ()],
        ("benchmark", "baselines"): [baseline.value for baseline in config.benchmark.baselines],
        ("torch_tensorrt", "precisions"): [item.value for item in config.torch_tensorrt.precisions or ()],
        ("torch_tensorrt", "profiles"): [profile.label for profile in config.torch_tensorrt.profiles or ()],
        ("torch_tensorrt", "formats"): [form.value for form in config.torch_tensorrt.formats],
        ("benchmark", "batches"): [str(batch) for batch in config.timed_batches],
        ("load", "scenarios"): [scenario.value for scenario in config.load.scenarios],
        ("load", "p99_ms"): [f"{bound:g}" for bound in config.load.p99_ms],
        ("load", "contexts"): [str(contexts) for contexts in config.load.contexts],
        ("load", "batches"): [str(batch) for batch in config.load.batches or ()],
        ("load", "max_delay_ms"): [f"{delay:g}" for delay in config.load.max_delay_ms],
        ("farm", "targets"): [target.model_dump_json(exclude={"steps_per_gpu"}) for target in config.farm_targets],
    }
    for place, entries in lists.items():
        repeats = [(index, entry) for index, entry in enumerate(entries) if entry in entries[:index]]
        twice = f"`{shown_location(place)}` lists the same entry twice"
        problems += [((*place, index), f"{twice}: {entry}; remove one of them") for index, entry in repeats]
    return problems


def _onnx_checks(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the settings of networks of torch that an ONNX file has not, as pairs of location and text."""
    model = config.model
    if model.onnx is None:
        return
    for name in ("factory", "arguments", "weights", "download_timeout_seconds"):
        if name in model.model_fields_set:
            yield ("model", name), f"`model.{name}`: the network and its weights are `model.onnx`; remove one of them"
    if config.preprocessing is None and config.data.tensors is None:
        text = "`model.onnx`: nothing in an ONNX file says how images were prepared; write `preprocessing`, such as"
        example = "{resize: 256, crop: 224, interpolation: bilinear, mean: [0, 0, 0], std: [1, 1, 1]}"
        yield ("model", "onnx"), f"{text} {example} with the training's own values"


def _module_checks(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the modules that are asked for outside the matrix, as pairs of location and text."""
    for index, precision in enumerate(config.torch_tensorrt.precisions or ()):
        name, place = precision.value, ("torch_tensorrt", "precisions", index)
        if precision in QUANTIZED_PRECISIONS:
            yield place, f"`torch_tensorrt.precisions`: a module is cast, and {name} is no cast; remove {name}"
        elif precision not in config.precisions:
            yield place, f"`torch_tensorrt.precisions` needs {name} in `precisions`; add it there, or remove it here"
    for index, profile in enumerate(config.torch_tensorrt.profiles or ()):
        if profile not in config.profiles:
            labels, place = ", ".join(item.label for item in config.profiles), ("torch_tensorrt", "profiles", index)
            yield place, f"`torch_tensorrt.profiles`: {profile.label} is none of `profiles`; expected one of {labels}"


def _device_checks(config: Config, host: Host, gpus: tuple[Gpu, ...]) -> Iterator[tuple[Location, str]]:
    """Yield the problems with the GPUs of this host, as pairs of location and text."""
    if host.gpus and not gpus:
        there = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in host.gpus)
        yield ("device",), f"`device`: this host has no GPU {config.device!r}; expected one of {there}, or all"
    if not config.tensorrt.compute_capabilities and not host.gpus:
        refusal = "`current` is this host's GPU, and it has none; expected 80+ or a list of compute capabilities"
        refusal = f"`tensorrt.compute_capabilities`: {refusal}"
        yield ("tensorrt", "compute_capabilities"), refusal
    for index, workspace in enumerate(config.workspaces):
        if workspace.percent is not None and not host.gpus:
            share = f"{workspace.text!r} is a share of a GPU's memory, and this host has no GPU"
            yield ("workspaces", index), f"{share}; expected bytes, such as 1GiB"


def _farm_checks(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the settings that are wrong or without effect if workers build, as pairs of location and text."""
    if config.farm is None:
        yield (
            ("executor",),
            "`executor: ray` needs `farm`, such as farm: {targets: [{accelerator: H100, flavour: tensorrt}]}",
        )
    if config.device != "0":
        yield (
            ("device",),
            "`device` is a GPU of this machine, but `farm.targets` names the GPUs to build for; remove it",
        )
    if config.tensorrt.flavour:
        yield ("tensorrt", "flavour"), "every one of `farm.targets` names its own flavour; remove `tensorrt.flavour`"
    if config.torch_tensorrt.engine_cache:
        refusal = "`torch_tensorrt.engine_cache` needs `executor: local`, because workers keep no engines; remove it"
        yield ("torch_tensorrt", "engine_cache"), refusal
    names: dict[str, int] = {}
    for index, target in enumerate(config.farm_targets):
        yield from _target_checks(config, target, ("farm", "targets", index))
        if ahead := config.compute_capabilities_of(target):
            name = portable_target(ahead)
            if (first := names.setdefault(name, index)) != index:
                same = f"`farm.targets[{index}]` builds the same engines ({name}) as `farm.targets[{first}]`"
                yield ("farm", "targets", index), f"{same}; set other `compute_capabilities`, or `current`"


def _target_checks(config: Config, target: FarmTarget, place: Location) -> Iterator[tuple[Location, str]]:
    """Yield the problems of one of the farm's targets, as pairs of location and text."""
    if target.builds_on_its_gpu and target.compute_capabilities is not None:
        refusal = "TensorRT builds only for the GPU that it runs on; remove `compute_capabilities`"
        yield (*place, "compute_capabilities"), refusal
    if target.accelerator is not None:
        return
    if target.steps_per_gpu > 1:
        yield (
            (*place, "steps_per_gpu"),
            "`steps_per_gpu` needs a target with a GPU; set `accelerator` or remove `steps_per_gpu`",
        )
    if not config.compute_capabilities_of(target):
        setting = "flavour: tensorrt" if target.builds_on_its_gpu else "compute_capabilities: current"
        yield place, f"`{setting}` builds on the GPU that the engine is for; set `accelerator`, such as H100"
    for workspace in config.workspaces:
        if workspace.percent is not None:
            share = f"workspace {workspace.text!r} is a share of a GPU's memory, and this target has no GPU"
            yield place, f"{share}; set `accelerator`, or give the workspace in bytes"


def _sorted(file: Path, problems: Iterable[str]) -> list[str]:
    """Return each problem once, in the order of the file. Problems of one position keep their order."""

    def order(problem: str) -> tuple[int, int]:
        line, column, _ = problem.removeprefix(f"{file}:").split(":", 2)
        return int(line), int(column)

    return sorted(dict.fromkeys(problems), key=order)
