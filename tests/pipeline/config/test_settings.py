"""Settings of the configuration: defaults, accepted values and refused ones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ConfigError
from model_artifacts.records import EngineFlavour, Interpolation, KernelSpecialization, Precision, Preprocessing
from pipeline.config.loading import load_config
from pipeline.config.settings import Config, Gates
from pipeline.config.tensorrt import HardwareCompatibility, TacticSource, TilingOptimizationLevel
from tests.conftest import REPOSITORY, TINY
from tests.support.configs import FARM, MATRIX, ON_H100, PREPROCESSING, Problems
from tests.support.hosts import H100, L4, host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# What is accepted.


def test_repositorys_own_configuration_spells_out_the_defaults() -> None:
    """The defaults in pipeline.yaml are the defaults of the code, but for what its first lines name."""
    needed: dict[str, object] = {
        "profiles": [1, {"min": 1, "opt": 8, "max": 32}],
        "workspaces": ["1GiB"],
        "torch_tensorrt": {"precisions": ["fp16"], "profiles": [1]},
    }
    shown = load_config(REPOSITORY / "pipeline.yaml")
    assert shown == Config.model_validate(needed | {"benchmark": {"batches": [1, 8]}})
    assert shown.timed_batches == Config.model_validate(needed).timed_batches


def test_profiles_and_workspaces_suffice(load: Callable[[str], Config]) -> None:
    """Everything but the profiles and the workspaces has a default."""
    config = load(MATRIX)
    assert config.model.name == "resnet18"
    assert config.precisions == (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)
    assert config.gates == Gates()


def test_preprocessing_is_read(load: Callable[[str], Config]) -> None:
    """A preprocessing that is written out is taken as written."""
    assert load(TINY).preprocessing == Preprocessing(
        resize=32, crop=32, interpolation=Interpolation.BILINEAR, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )


@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_has_its_own_gate(load: Callable[[str], Config], precision: Precision) -> None:
    """The gate that the file gives a precision is the gate of that precision alone."""
    gate = "{cosine: 0.5, relative_l2: 0.5, top1_agreement: 0.5, top1_drop: 0.5}"
    gates = load(MATRIX + f"gates: {{{precision.value}: {gate}}}\n").gates
    assert [name for name in Precision if gates.of(name).cosine == 0.5] == [precision]


def test_batches_left_out_are_those_that_the_profiles_are_tuned_for(load: Callable[[str], Config]) -> None:
    """The timed batch sizes follow from the batch ranges, each size once, smallest first."""
    config = load("profiles: [{min: 1, opt: 8, max: 32}, 2, {min: 4, opt: 8, max: 8}]\nworkspaces: [1GiB]\n")
    assert config.timed_batches == (2, 8)


def test_batches_that_are_given_are_timed_in_their_order(load: Callable[[str], Config]) -> None:
    """Configured batch sizes are timed in their order."""
    assert load(MATRIX + "benchmark: {batches: [8, 1, 32]}\n").timed_batches == (8, 1, 32)


# Types.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data: {calibration: true}\n", "3:21: data.calibration: expected a whole number, got true"),
        ("data: {calibration: '8'}\n", "3:21: data.calibration: expected a whole number, got '8'"),
        ("data: {calibration: 8.0}\n", "3:21: data.calibration: expected a whole number, got 8.0"),
        ("data: {calibration: 0}\n", "3:21: data.calibration: expected at least 1, got 0"),
        ("data: {images: 3}\n", "3:16: data.images: expected text, got 3"),
        ("model: {name: 7}\n", "3:15: model.name: expected text, got 7"),
        (
            "benchmark: {batches: [1, true]}\n",
            "3:26: benchmark.batches[1]: expected a whole number, got true",
        ),
        (
            "model: {download_timeout_seconds: 0}\n",
            "3:35: model.download_timeout_seconds: expected a number above 0, got 0",
        ),
        ("gates: {require_proof: 3}\n", "3:24: gates.require_proof: expected true or false, got 3"),
    ],
)
def test_wrong_type_is_refused_at_the_value(problems: Problems, text: str, problem: str) -> None:
    """A value of a wrong type is reported at its place, with the written value."""
    (found,) = problems(MATRIX + text)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("model: {download_timeout_seconds: true}\n", "3:35: model.download_timeout_seconds: "),
        ("model: {download_timeout_seconds: '10'}\n", "3:35: model.download_timeout_seconds: "),
        ("gates: {require_proof: 'yes'}\n", "3:24: gates.require_proof: "),
        ("gates: {require_proof: 1}\n", "3:24: gates.require_proof: "),
        (
            "gates: {fp32: {cosine: true, relative_l2: 1, top1_agreement: 1, top1_drop: 0}}\n",
            "3:24: gates.fp32.cosine: ",
        ),
        ("tensorrt: {compute_capabilities: [80.0]}\n", "3:"),
        (PREPROCESSING.format("true", "1", "bilinear", "[0.5]", "[0.5]"), "3:25: preprocessing.resize: "),
        (PREPROCESSING.format("'32'", "32", "bilinear", "[0.5]", "[0.5]"), "3:25: preprocessing.resize: "),
        (PREPROCESSING.format("32", "32", "bilinear", "[true]", "[0.5]"), "3:"),
    ],
)
def test_value_that_only_converts_is_refused(problems: Problems, text: str, position: str) -> None:
    """`true` and `"10"` are no numbers, and `"yes"` and `1` are no truth values."""
    (found,) = problems(MATRIX + text)
    assert found.startswith(position)


# Values.


def test_misspelt_precision_is_told_the_closest(problems: Problems) -> None:
    """An unknown precision is answered with all of them and the closest."""
    assert problems(MATRIX + "precisions: [fp16, fp23]\n") == [
        (
            "3:20: precisions[1]: expected 'fp32', 'tf32', 'fp16', 'bf16', 'int8' or 'fp8', got 'fp23'; "
            "did you mean 'fp32'?"
        )
    ]


def test_precision_like_no_other_is_told_all(problems: Problems) -> None:
    """A precision that resembles none is answered with all of them."""
    assert problems(MATRIX + "precisions: [zz]\n") == [
        "3:14: precisions[0]: expected 'fp32', 'tf32', 'fp16', 'bf16', 'int8' or 'fp8', got 'zz'"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "profiles: [1, 8, 8]\nworkspaces: [1GiB]\n",
            "1:18: `profiles` lists the same entry twice: b8; remove one of them",
        ),
        (
            "profiles: [1, 8, {min: 8, opt: 8, max: 8}]\nworkspaces: [1GiB]\n",
            "1:18: `profiles` lists the same entry twice: b8; remove one of them",
        ),
        (
            MATRIX + "precisions: [int8, fp16, int8]\n",
            "3:26: `precisions` lists the same entry twice: int8; remove one of them",
        ),
        (
            MATRIX + "benchmark: {batches: [1, 8, 1]}\n",
            "3:29: `benchmark.batches` lists the same entry twice: 1; remove one of them",
        ),
    ],
)
def test_entry_listed_twice_is_refused(problems: Problems, text: str, problem: str) -> None:
    """A list names each entry once."""
    assert problems(text) == [problem]


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a b"])
def test_model_name_that_is_no_folders_is_refused(problems: Problems, name: str) -> None:
    """A model's name is a folder's, and can lead out of the artifacts by no trick."""
    (problem,) = problems(MATRIX + f"model: {{name: '{name}'}}\n")
    assert problem.startswith("3:15: model.name: ")
    assert problem.endswith(f"got {name!r}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            PREPROCESSING.format(32, 64, "bilinear", "[0.5]", "[0.5]"),
            (
                "3:16: preprocessing: expected crop ≤ resize, got crop 64, resize 32; "
                "write the `resize` and the `crop` of the training"
            ),
        ),
        (
            PREPROCESSING.format(32, 32, "bilinaer", "[0.5]", "[0.5]"),
            (
                "3:54: preprocessing.interpolation: expected 'nearest', 'box', 'bilinear', 'hamming', 'bicubic' or "
                "'lanczos', got 'bilinaer'; "
                "did you mean 'bilinear'?"
            ),
        ),
        (
            PREPROCESSING.format(32, 32, "bilinear", "[0.5, 0.5]", "[0.5, 0.5]"),
            (
                "3:16: preprocessing: expected one mean and one std (greyscale), three of each (RGB) or four (RGBA), "
                "got 2 and 2; other channels are arrays of `data.tensors`"
            ),
        ),
        (
            PREPROCESSING.format(32, 32, "bilinear", "[0.5]", "[0]"),
            "3:16: preprocessing: expected every std above 0, got [0.0]",
        ),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(problems: Problems, text: str, problem: str) -> None:
    """A preprocessing that contradicts itself is refused with both sides of the contradiction."""
    assert problems(MATRIX + text) == [problem]


@pytest.mark.parametrize("number", [".nan", ".inf"])
def test_number_that_is_none_is_refused(problems: Problems, number: str) -> None:
    """A gate of NaN, which nothing passes, and one of infinity, which everything passes, are refused."""
    text = f"gates: {{fp32: {{cosine: 0.9, relative_l2: {number}, top1_agreement: 0.9, top1_drop: 0}}}}\n"
    got = number.strip(".")
    assert problems(MATRIX + text) == [f"3:42: gates.fp32.relative_l2: expected a finite number, got {got}"]


# The device.


@pytest.mark.parametrize(
    ("text", "names"),
    [("0", ["NVIDIA H100 80GB HBM3"]), ("'1'", ["NVIDIA L4"]), (L4.uuid, ["NVIDIA L4"]), ("all", [H100.name, L4.name])],
)
def test_device_names_gpus_by_number_uuid_or_all(
    write_config: Callable[[str], Path], text: str, names: list[str]
) -> None:
    """A GPU's number and its UUID name that GPU, and `all` every type."""
    there = host(H100, L4)
    assert [gpu.name for gpu in load_config(write_config(MATRIX + f"device: {text}\n"), there).gpus(there)] == names


def test_device_left_out_is_the_first_gpu(load: Callable[[str], Config]) -> None:
    """Engines are for CUDA's first GPU unless the file says otherwise."""
    assert load(MATRIX).gpus(host(H100, L4)) == (H100,)


def test_all_devices_are_the_first_of_every_type(load: Callable[[str], Config]) -> None:
    """The first GPU of each type is chosen, and the types keep CUDA's order."""
    second = L4.model_copy(update={"index": 2, "uuid": "GPU-2"})
    third = H100.model_copy(update={"index": 3, "uuid": "GPU-3"})
    assert load(MATRIX + "device: all\n").gpus(host(H100, L4, second, third)) == (H100, L4)


def test_gpus_of_one_name_are_one_type(load: Callable[[str], Config]) -> None:
    """Two GPUs whose folders would have one name are one type, even where their memories differ."""
    larger = L4.model_copy(update={"index": 2, "uuid": "GPU-2", "memory_bytes": 2 * L4.memory_bytes})
    assert load(MATRIX + "device: all\n").gpus(host(L4, larger)) == (L4,)


@pytest.mark.parametrize("device", ["0", "all", L4.uuid])
def test_host_without_gpus_has_none_to_name(load: Callable[[str], Config], device: str) -> None:
    """A host without GPUs accepts any `device` and has no GPU."""
    assert load(MATRIX + f"device: {device}\n").gpus(host()) == ()


# How engines are built.


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("flavour: auto", "flavour", None),
        ("flavour: tensorrt", "flavour", EngineFlavour.TENSORRT),
        ("flavour: tensorrt_rtx", "flavour", EngineFlavour.TENSORRT_RTX),
        ("optimization_level: 0", "optimization_level", 0),
        ("optimization_level: 5", "optimization_level", 5),
        ("tactic_sources: [cublas, cudnn]", "tactic_sources", (TacticSource.CUBLAS, TacticSource.CUDNN)),
        ("hardware_compatibility: ampere_plus", "hardware_compatibility", HardwareCompatibility.AMPERE_PLUS),
        (
            "hardware_compatibility: same_compute_capability",
            "hardware_compatibility",
            HardwareCompatibility.SAME_COMPUTE_CAPABILITY,
        ),
        ("version_compatible: true", "version_compatible", True),
        ("refit: true", "refit", True),
        ("strip_plan: true", "strip_plan", True),
        ("timing_cache: false", "timing_cache", False),
        ("max_num_tactics: 8", "max_num_tactics", 8),
        ("avg_timing_iterations: 1", "avg_timing_iterations", 1),
        ("batch_parts: 2", "batch_parts", 2),
        ("attempt: 2", "attempt", 2),
        ("tiling_optimization_level: full", "tiling_optimization_level", TilingOptimizationLevel.FULL),
        ("l2_limit_for_tiling: 4MiB", "l2_limit_for_tiling", 2**22),
        ("l2_limit_for_tiling: 4096", "l2_limit_for_tiling", 4096),
        ("l2_limit_for_tiling: null", "l2_limit_for_tiling", None),
        ("max_aux_streams: 0", "max_aux_streams", 0),
        ("sparse_weights: true", "sparse_weights", True),
        ("strict_nans: true", "strict_nans", True),
        ("weight_streaming: true", "weight_streaming", True),
        ("build_route: ' -a=off  -kgen:b=2 '", "build_route", "-a=off -kgen:b=2"),
        ("kernel_specialization: lazy", "kernel_specialization", KernelSpecialization.LAZY),
        ("build_timeout_seconds: 0.5", "build_timeout_seconds", 0.5),
    ],
)
def test_build_setting_is_read(load: Callable[[str], Config], text: str, field: str, value: object) -> None:
    """Each of a builder's settings is taken as written."""
    assert getattr(load(MATRIX + f"tensorrt: {{{text}}}\n").tensorrt, field) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "flavour: tensort",
            "3:21: tensorrt.flavour: expected 'tensorrt' or 'tensorrt_rtx', got 'tensort'; did you mean 'tensorrt'?",
        ),
        (
            "optimization_level: 6",
            "3:32: tensorrt.optimization_level: expected at most 5, got 6",
        ),
        (
            "optimization_level: -1",
            "3:32: tensorrt.optimization_level: expected at least 0, got -1",
        ),
        ("optimization_level: true", "3:32: tensorrt.optimization_level: expected a whole number, got true"),
        ("tactic_sources: []", "3:28: tensorrt.tactic_sources: expected at least one entry, got []"),
        ("tactic_sources: cublas", "3:28: tensorrt.tactic_sources: expected a list, got 'cublas'"),
        (
            "tactic_sources: [cublas, cudn]",
            (
                "3:37: tensorrt.tactic_sources[1]: expected 'cublas', 'cublas_lt', 'cudnn', 'edge_mask_convolutions' "
                "or 'jit_convolutions', got 'cudn'; did you mean 'cudnn'?"
            ),
        ),
        (
            "hardware_compatibility: ampere",
            (
                "3:36: tensorrt.hardware_compatibility: expected 'none', 'ampere_plus' or 'same_compute_capability', "
                "got 'ampere'; did you mean 'ampere_plus'?"
            ),
        ),
        ("version_compatible: 'yes'", "3:32: tensorrt.version_compatible: expected true or false, got 'yes'"),
        ("build_timeout_seconds: 0", "3:35: tensorrt.build_timeout_seconds: expected a number above 0, got 0"),
        (
            "tiling_optimization_level: fst",
            (
                "3:39: tensorrt.tiling_optimization_level: expected 'none', 'fast', 'moderate' or 'full', "
                "got 'fst'; did you mean 'fast'?"
            ),
        ),
        ("max_num_tactics: 0", "3:29: tensorrt.max_num_tactics: expected at least 1, got 0"),
        ("avg_timing_iterations: 0", "3:35: tensorrt.avg_timing_iterations: expected at least 1, got 0"),
        ("attempt: 0", "3:21: tensorrt.attempt: expected at least 1, got 0"),
        ("attempt: null", "3:21: tensorrt.attempt: expected a whole number, got null"),
        ("max_aux_streams: -1", "3:29: tensorrt.max_aux_streams: expected at least 0, got -1"),
        (
            "l2_limit_for_tiling: 10%",
            "3:33: tensorrt.l2_limit_for_tiling: expected a size such as 256MiB or 1GiB, got '10%'",
        ),
        (
            "l2_limit_for_tiling: true",
            "3:33: tensorrt.l2_limit_for_tiling: expected a size such as 256MiB or 1GiB, got true",
        ),
        ("l2_limit_for_tiling: 0", "3:33: tensorrt.l2_limit_for_tiling: expected at least 1KiB, got '0'"),
        ("build_route: a=1", "3:25: tensorrt.build_route: expected knobs such as '-name=value', got 'a=1'"),
        ("build_route: ''", "3:25: tensorrt.build_route: expected knobs such as '-name=value', got ''"),
        ("refitt: true", "3:12: unknown key 'tensorrt.refitt'; did you mean 'refit'?"),
    ],
)
def test_build_setting_that_cannot_be_is_refused(problems: Problems, text: str, problem: str) -> None:
    """Each wrong setting of a builder is reported at its place, with the accepted values."""
    assert problems(MATRIX + f"tensorrt: {{{text}}}\n") == [problem]


def test_build_settings_are_those_that_change_an_engine(load: Callable[[str], Config]) -> None:
    """Settings that do not change an engine are left out of the build settings."""
    text = "flavour: tensorrt, timing_cache: false, kernel_specialization: none, build_timeout_seconds: 9"
    written = load(MATRIX + f"tensorrt: {{{text}, refit: true}}\n").tensorrt.build_settings
    assert written == load(MATRIX + "tensorrt: {refit: true}\n").tensorrt.build_settings
    assert written != load(MATRIX).tensorrt.build_settings


@pytest.mark.parametrize("precision", ["tf32", "fp8"])
def test_precision_of_tensor_cores_is_accepted(load: Callable[[str], Config], precision: str) -> None:
    """TF32 and FP8 are asked for by their names."""
    assert load(MATRIX + f"precisions: [fp32, {precision}]\n").precisions == (Precision.FP32, Precision(precision))


# What a build is held against.


def test_release_has_bounds_with_units(load: Callable[[str], Config]) -> None:
    """A share is written in per cent, a top-1 in points."""
    release = load(MATRIX + "release: {manifest: m.json, max_latency_increase: 5%, max_top1_drop: 0.25pt}\n").release
    assert release is not None
    assert (round(release.max_latency_increase, 9), round(release.max_top1_drop, 9)) == (0.05, 0.0025)


def test_release_has_default_bounds(load: Callable[[str], Config]) -> None:
    """The manifest alone suffices: 3 % and 0.1 points."""
    release = load(MATRIX + "release: {manifest: m.json}\n").release
    assert release is not None
    assert (release.max_latency_increase, release.max_top1_drop) == (0.03, 0.001)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("release: {manifest: m.json, max_latency_increase: 3}", "expected a number with its unit, such as 3%, got 3"),
        ("release: {manifest: m.json, max_latency_increase: 3pt}", "such as 3%, got '3pt'"),
        ("release: {manifest: m.json, max_latency_increase: -3%}", "such as 3%, got '-3%'"),
        ("release: {manifest: m.json, max_top1_drop: 0.1%}", "such as 0.1pt, got '0.1%'"),
        ("release: {manifest: m.json, max_top1_drop: 0.5}", "such as 0.1pt, got 0.5"),
        ("release: {max_top1_drop: 1pt}", "release.manifest"),
    ],
)
def test_bounds_without_their_unit_are_refused(load: Callable[[str], Config], text: str, said: str) -> None:
    """A bound without a unit is refused, because 3 may be per cent or a factor."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(MATRIX + text + "\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "executor: ray\n",
            "3:11: `executor: ray` needs `farm`, such as farm: {targets: [{accelerator: H100, flavour: tensorrt}]}",
        ),
        (
            f"farm: {{targets: [{ON_H100}]}}\n",
            "3:7: `farm` needs `executor: ray`; set it or remove `farm`",
        ),
        (FARM.format(""), "4:17: farm.targets: expected at least one entry, got []"),
        *(
            (
                FARM.format(f"{{flavour: tensorrt_rtx, resources: [a100, '{name}']}}"),
                f"4:60: farm.targets[0].resources[1]: Ray itself defines the resource {name}; expected",
            )
            for name in ("CPU", "GPU", "memory", "object_store_memory", "node:10.0.0.1", "accelerator_type:H100")
        ),
        (FARM.format("{accelerator: H100}"), "4:18: missing key 'farm.targets[0].flavour'"),
        (
            FARM.format("{flavour: tensorrt}"),
            "4:18: `flavour: tensorrt` builds on the GPU that the engine is for; set `accelerator`, such as H100",
        ),
        (
            FARM.format("{flavour: tensorrt_rtx, compute_capabilities: current}"),
            "4:18: `compute_capabilities: current` builds on the GPU that the engine is for; set `accelerator`",
        ),
        (
            FARM.format("{accelerator: H100, flavour: tensorrt, compute_capabilities: [80]}"),
            "4:79: TensorRT builds only for the GPU that it runs on; remove `compute_capabilities`",
        ),
        (
            FARM.format("{flavour: tensorrt_rtx}, {accelerator: L4, flavour: tensorrt_rtx}"),
            "4:43: `farm.targets[1]` builds the same engines (rtx-sm80+) as `farm.targets[0]`; set other",
        ),
        (FARM.format(f"{ON_H100}, {ON_H100}"), "4:58: `farm.targets` lists the same entry twice: "),
        (
            FARM.format(f"{ON_H100}, {ON_H100[:-1]}, steps_per_gpu: 2}}"),
            "4:58: `farm.targets` lists the same entry twice: ",
        ),
        (
            FARM.format("{flavour: tensorrt_rtx, steps_per_gpu: 2}"),
            "4:57: `steps_per_gpu` needs a target with a GPU; set `accelerator` or remove `steps_per_gpu`",
        ),
        (
            FARM.format(f"{ON_H100[:-1]}, steps_per_gpu: 0}}"),
            "4:72: farm.targets[0].steps_per_gpu: expected at least 1, got 0",
        ),
        (
            FARM.format(ON_H100) + "device: 1\n",
            "5:9: `device` is a GPU of this machine, but `farm.targets` names the GPUs to build for; remove it",
        ),
        (
            FARM.format(ON_H100) + "tensorrt: {flavour: tensorrt}\n",
            "5:21: every one of `farm.targets` names its own flavour; remove `tensorrt.flavour`",
        ),
        (
            FARM.format(ON_H100) + "torch_tensorrt: {engine_cache: true}\n",
            "5:32: `torch_tensorrt.engine_cache` needs `executor: local`, because workers keep no engines; remove it",
        ),
        (
            FARM.format(ON_H100)[:-2] + ", retries: -1}\n",
            "4:68: farm.retries: expected at least 0, got -1",
        ),
        ("executor: slurm\n", "3:11: executor: expected 'local' or 'ray', got 'slurm'"),
    ],
)
def test_farm_that_cannot_be_is_refused_where_it_stands(problems: Problems, text: str, problem: str) -> None:
    """A wrong farm is reported at its place, with the fix."""
    (found,) = problems(MATRIX + text)
    assert found.startswith(problem)


def test_farm_has_defaults(load: Callable[[str], Config]) -> None:
    """A farm's configuration needs only its targets."""
    farm = load(MATRIX + FARM.format(ON_H100)).farm
    assert farm is not None
    assert (farm.address, farm.retries, farm.step_timeout_seconds) == ("auto", 2, 7200.0)
