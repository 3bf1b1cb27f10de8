"""pipeline.yaml: what is accepted, and what a person is told about what is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_artifacts.errors import ConfigError, UsageError
from model_artifacts.records import (
    BatchRange,
    EngineFlavour,
    Interpolation,
    KernelSpecialization,
    Precision,
    Preprocessing,
)
from pipeline.config.loading import load_config
from pipeline.config.settings import Config, Gates, HardwareCompatibility, TacticSource
from pipeline.config.values import WorkspaceSize
from pipeline.planning.plan import Plan
from tests.conftest import REPOSITORY, TINY
from tests.support.hosts import H100, L4, host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model_artifacts.records import Host

MATRIX = "profiles: [1, {min: 1, opt: 8, max: 32}]\nworkspaces: [1GiB]\n"
"""The keys that must be there; what is appended begins in line 3."""

KEYS = (
    "artifacts, model, preprocessing, data, device, precisions, profiles, workspaces, leave_unquantized, tensorrt, "
    "torch_tensorrt, gates, validation, benchmark, release, cache, executor, farm"
)
PREPROCESSING = "preprocessing: {{resize: {}, crop: {}, interpolation: {}, mean: {}, std: {}}}\n"


class Problems(Protocol):
    """Returns the problems of a configuration, each without the file's name in front."""

    def __call__(self, text: str, host: Host | None = None) -> list[str]:
        """Load it."""


@pytest.fixture
def problems(write_config: Callable[[str], Path]) -> Problems:
    """A function that returns the problems of a configuration, each without the file's name in front."""

    def of(text: str, host: Host | None = None) -> list[str]:
        file = write_config(text)
        with pytest.raises(ConfigError) as caught:
            load_config(file, host)
        assert caught.value.problems
        assert all(problem.startswith(f"{file}:") for problem in caught.value.problems)
        return [problem.removeprefix(f"{file}:") for problem in caught.value.problems]

    return of


@pytest.fixture
def load(write_config: Callable[[str], Path]) -> Callable[[str], Config]:
    """A function that loads a configuration from its text."""

    def of(text: str) -> Config:
        return load_config(write_config(text))

    return of


# What is accepted.


def test_repositorys_own_configuration_spells_out_the_defaults() -> None:
    """What pipeline.yaml shows as defaults are the defaults."""
    needed = {
        "profiles": [1, {"min": 1, "opt": 8, "max": 32}],
        "workspaces": ["256MiB", "1GiB"],
        "benchmark": {"batches": [1, 8]},
    }
    assert load_config(REPOSITORY / "pipeline.yaml") == Config.model_validate(needed)


def test_profiles_and_workspaces_suffice(load: Callable[[str], Config]) -> None:
    """Everything but the profiles and the workspaces has a default."""
    config = load(MATRIX)
    assert config.model.name == "resnet18"
    assert config.precisions == (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)
    assert config.gates == Gates()


def test_bare_number_is_a_fixed_batch(load: Callable[[str], Config]) -> None:
    """`8` means from 8 to 8."""
    assert load(MATRIX).profiles == (BatchRange(min=1, opt=1, max=1), BatchRange(min=1, opt=8, max=32))


def test_preprocessing_auto_is_none(load: Callable[[str], Config]) -> None:
    """`auto` leaves the preprocessing to the weights."""
    assert load(MATRIX + "preprocessing: auto\n").preprocessing is None


def test_preprocessing_is_read(load: Callable[[str], Config]) -> None:
    """A preprocessing that is written out is taken as written."""
    assert load(TINY).preprocessing == Preprocessing(
        resize=32, crop=32, interpolation=Interpolation.BILINEAR, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80+", (80, 86, 89, 120)), ("[89, 75]", (75, 89)), ("[120, 89, 86, 80]", (80, 86, 89, 120))],
)
def test_compute_capabilities_are_sorted(load: Callable[[str], Config], text: str, expected: tuple[int, ...]) -> None:
    """A list is sorted, and `80+` stands for the portable one."""
    config = load(MATRIX + f"tensorrt: {{compute_capabilities: {text}}}\n")
    assert config.tensorrt.compute_capabilities == expected


@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_has_its_own_gate(load: Callable[[str], Config], precision: Precision) -> None:
    """The gate that the file gives a precision is the gate of that precision alone."""
    gate = "{cosine: 0.5, relative_l2: 0.5, top1_agreement: 0.5, top1_drop: 0.5}"
    gates = load(MATRIX + f"gates: {{{precision.value}: {gate}}}\n").gates
    assert [name for name in Precision if gates.of(name).cosine == 0.5] == [precision]


def test_batches_left_out_are_those_that_the_profiles_are_tuned_for(load: Callable[[str], Config]) -> None:
    """What is timed follows from the profiles, each size once, smallest first."""
    config = load("profiles: [{min: 1, opt: 8, max: 32}, 2, {min: 4, opt: 8, max: 8}]\nworkspaces: [1GiB]\n")
    assert config.timed_batches == (2, 8)


def test_batches_that_are_given_are_timed_in_their_order(load: Callable[[str], Config]) -> None:
    """What is timed is what the file says, where it says so."""
    assert load(MATRIX + "benchmark: {batches: [8, 1, 32]}\n").timed_batches == (8, 1, 32)


# Sizes.


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1073741824", 2**30), ("256MiB", 2**28), ("1 GiB", 2**30), ("1.5GiB", 3 * 2**29), ("1GB", 10**9)],
)
def test_size_is_read_as_bytes(text: str, size: int) -> None:
    """Bytes, binary units and decimal units."""
    assert WorkspaceSize(text=text).bytes(None) == size


@given(st.integers(1, 2**20), st.sampled_from([("", 1), ("KiB", 2**10), ("MiB", 2**20), ("GB", 10**9)]))
@settings(deadline=None)
def test_size_is_its_number_times_its_unit(number: int, unit: tuple[str, int]) -> None:
    """No size loses a byte."""
    assert WorkspaceSize(text=f"{number}{unit[0]}").bytes(None) == number * unit[1]


@given(st.integers(1, 100), st.integers(100, 2**40))
@settings(deadline=None)
def test_share_is_of_the_gpus_memory(percent: int, memory: int) -> None:
    """A share is never more than the memory it is of, and within a byte of it exactly."""
    size = WorkspaceSize(text=f"{percent}%").bytes(memory)
    assert size is not None
    assert abs(size - memory * percent / 100) < 1
    assert size <= memory


def test_share_has_no_size_without_a_gpu() -> None:
    """Where no GPU's memory is known, a share is no number of bytes."""
    assert WorkspaceSize(text="25%").bytes(None) is None


@pytest.mark.parametrize(
    ("text", "label"), [("1GiB", "1GiB"), ("1 GiB", "1GiB"), ("25%", "25pct"), ("12.5 %", "12.5pct")]
)
def test_label_fits_a_file_name(text: str, label: str) -> None:
    """A label has neither spaces nor per-cent signs."""
    assert WorkspaceSize(text=text).label == label


@given(st.text(max_size=12) | st.from_regex(r"\A[0-9]{1,4}(\.[0-9])? ?([KMG]i?B|%)?.?.?\Z"))
@settings(deadline=None)
@example("1GiB/../../x")
@example("1,5GiB")
@example("9" * 400 + "GiB")
def test_any_text_is_a_positive_size_with_a_safe_label_or_refused(text: str) -> None:
    """Whatever is accepted as a size is above zero, and can be a part of a file's name."""
    try:
        size = WorkspaceSize(text=text)
    except ValueError:
        return
    number = size.bytes(100 * 2**30)
    assert number is not None
    assert re.fullmatch(r"[\w.]+", size.label), size


@pytest.mark.parametrize("text", ["1,5GiB", "1GiB or so", "1/2GiB", "1-2GiB", "1GiB/../../x"])
def test_size_followed_by_something_else_is_refused(problems: Problems, text: str) -> None:
    """A size is read whole: `1,5GiB` is not one byte."""
    (problem,) = problems(f"profiles: [1, 8]\nworkspaces: ['{text}']\n")
    assert problem.startswith("2:14: workspaces[0]: expected a size such as 256MiB or 1GiB")
    assert problem.endswith(f"got {text!r}")


@pytest.mark.parametrize("text", ["-1", "-1GiB", "2 bananas", "nan", "''", "GiB", "-25%", "1e3GiB"])
def test_what_is_no_size_is_refused(problems: Problems, text: str) -> None:
    """The message shows what a size looks like, and what was written."""
    (problem,) = problems(f"profiles: [1, 8]\nworkspaces: [1GiB, {text}]\n")
    assert problem.startswith("2:20: workspaces[1]: expected a size such as 256MiB or 1GiB")
    assert problem.endswith(f"got {text.strip(chr(39))!r}")


@pytest.mark.parametrize(("text", "got"), [("true", "True"), ("0.5", "0.5"), ("null", "None"), ("[1]", "[1]")])
def test_workspace_of_another_type_is_refused(problems: Problems, text: str, got: str) -> None:
    """A workspace is a number of bytes or a text."""
    (problem,) = problems(f"profiles: [1, 8]\nworkspaces: [{text}]\n")
    assert problem.startswith("2:14: workspaces[0]: expected a size such as 256MiB or 1GiB")
    assert problem.endswith(f"got {got}")


@pytest.mark.parametrize("text", ["0", "0MiB", "0.1B"])
def test_workspace_of_nothing_is_refused(problems: Problems, text: str) -> None:
    """A workspace has at least one byte."""
    assert problems(f"profiles: [1, 8]\nworkspaces: [{text}]\n") == [
        f"2:14: workspaces[0]: expected a size above 0, got '{text}'"
    ]


@pytest.mark.parametrize("text", ["0%", "150%", "100.1 %", "0.0%"])
def test_share_out_of_range_is_refused(problems: Problems, text: str) -> None:
    """A share is more than nothing and not more than everything."""
    assert problems(f"profiles: [1, 8]\nworkspaces: [{text}]\n") == [
        f"2:14: workspaces[0]: expected a share above 0 % and up to 100 %, got {text!r}"
    ]


def test_share_is_refused_where_there_is_no_gpu(problems: Problems) -> None:
    """A host without a GPU has no memory that a workspace could be a share of."""
    assert problems("profiles: [1, 8]\nworkspaces: [1GiB, 25%]\n") == [
        "2:20: '25%' is a share of a GPU's memory, and this host has none; expected bytes: 1GiB"
    ]


def test_share_is_accepted_where_there_is_a_gpu(write_config: Callable[[str], Path]) -> None:
    """With a GPU in the host, a share is a size."""
    config = load_config(write_config("profiles: [1, 8]\nworkspaces: [25%]\n"), host(H100))
    assert config.workspaces[0].bytes(H100.memory_bytes) == 20 * 2**30


def test_shares_are_of_the_gpu_that_the_device_names(problems: Problems) -> None:
    """A share that comes out as another entry's size on the chosen GPU is listed twice."""
    text = "device: 1\nprofiles: [1, 8]\nworkspaces: [50%, 12GiB]\n"
    assert problems(text, host(H100, L4)) == [f"3:19: listed twice: {12 * 2**30}"]


def test_two_shares_that_come_out_equal_are_refused(problems: Problems) -> None:
    """50% and 50.0 % are one size."""
    text = "profiles: [1, 8]\nworkspaces: [50%, 50.0 %]\n"
    assert problems(text, host(H100)) == [f"2:19: listed twice: {40 * 2**30}"]


def test_share_that_is_less_than_a_byte_is_a_byte() -> None:
    """However small a share is, the workspace is a size."""
    assert WorkspaceSize(text="0.000000001%").bytes(2**30) == 1


def test_workspace_listed_twice_in_other_units_is_refused(problems: Problems) -> None:
    """1024MiB is 1GiB."""
    assert problems("profiles: [1, 8]\nworkspaces: [1GiB, 1024MiB]\n") == ["2:20: listed twice: 1073741824"]


# Keys.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("precisoins: [fp32]\n", "3:1: unknown key 'precisoins'; did you mean 'precisions'?"),
        ("model: {nmae: x}\n", "3:9: unknown key 'model.nmae'; did you mean 'name'?"),
        ("gates: {fp23: {}}\n", "3:9: unknown key 'gates.fp23'; did you mean 'fp32'?"),
    ],
)
def test_misspelt_key_is_told_the_closest(problems: Problems, text: str, problem: str) -> None:
    """A misspelt key is reported where it stands, with the key that was probably meant."""
    assert problems(MATRIX + text) == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("zzz: 1\n", f"3:1: unknown key 'zzz'; known keys: {KEYS}"),
        ("data: {zzz: 1}\n", "3:8: unknown key 'data.zzz'; known keys: images, calibration, validation"),
        ("1: 2\n", f"3:1: unknown key '1'; known keys: {KEYS}"),
        ("null: 2\n", f"3:1: unknown key 'null'; known keys: {KEYS}"),
    ],
)
def test_key_like_no_other_is_told_all(problems: Problems, text: str, problem: str) -> None:
    """An unknown key that resembles none is answered with the keys there are."""
    assert problems(MATRIX + text) == [problem]


def test_empty_key_is_named_as_such(problems: Problems) -> None:
    """An empty key is not called "the file"."""
    assert problems(MATRIX + "'': 1\n") == [f"3:1: unknown key ''; known keys: {KEYS}"]


def test_unknown_key_within_a_list_is_told_the_closest(problems: Problems) -> None:
    """A profile's keys are known too, and the missing one is reported beside the misspelt one."""
    assert problems("profiles:\n  - {minn: 1, opt: 8, max: 8}\nworkspaces: [1GiB]\n") == [
        "2:5: missing key 'profiles[0].min'",
        "2:6: unknown key 'profiles[0].minn'; did you mean 'min'?",
    ]


def test_unknown_key_of_the_preprocessing_is_told_the_closest(problems: Problems) -> None:
    """An optional mapping's keys are known too."""
    text = "preprocessing: {resize: 32, crop: 32, interpolation: bilinear, mean: [0.5], std: [0.5], crup: 1}\n"
    assert problems(MATRIX + text) == ["3:89: unknown key 'preprocessing.crup'; did you mean 'crop'?"]


def test_duplicate_keys_are_refused(problems: Problems) -> None:
    """A key that is given twice is refused at its second place."""
    assert problems(MATRIX + "profiles: [1]\n") == ["3:1: duplicate key 'profiles'; remove one of them"]


def test_missing_keys_are_reported_in_the_order_of_the_documentation(problems: Problems) -> None:
    """An empty file lacks exactly the keys without a default, and says so in the same order each time."""
    assert problems("") == ["1:1: missing key 'profiles'", "1:1: missing key 'workspaces'"]


@pytest.mark.parametrize("key", ["? [a]\n: 1\n", "? {a: b}\n: 1\n"])
def test_key_that_is_no_word_is_refused(problems: Problems, key: str) -> None:
    """A list or a mapping cannot be a key."""
    assert problems(MATRIX + key) == ["3:3: a key must be a plain word"]


# Types.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data: {calibration: true}\n", "3:21: data.calibration: input should be a valid integer, got True"),
        ("data: {calibration: '8'}\n", "3:21: data.calibration: input should be a valid integer, got '8'"),
        ("data: {calibration: 8.0}\n", "3:21: data.calibration: input should be a valid integer, got 8.0"),
        ("data: {calibration: 0}\n", "3:21: data.calibration: input should be greater than or equal to 1, got 0"),
        ("data: {images: 3}\n", "3:16: data.images: input should be a valid string, got 3"),
        ("model: {name: 7}\n", "3:15: model.name: input should be a valid string, got 7"),
        (
            "benchmark: {batches: [1, true]}\n",
            "3:26: benchmark.batches[1]: input should be a valid integer, got True",
        ),
        (
            "model: {download_timeout_seconds: 0}\n",
            "3:35: model.download_timeout_seconds: input should be greater than 0, got 0",
        ),
        ("gates: {require_proof: 3}\n", "3:24: gates.require_proof: input should be a valid boolean"),
    ],
)
def test_wrong_type_is_refused_at_the_value(problems: Problems, text: str, problem: str) -> None:
    """A value of a wrong type is reported where it stands, with what was written."""
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
            "gates: {fp32: {cosine: true, relative_l2: 1, top1_agreement: 1, top1_drop: 1}}\n",
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


@pytest.mark.parametrize("profile", ["{min: true, opt: 8, max: 8}", "{min: '1', opt: 8, max: 8}"])
def test_profile_of_what_only_converts_is_refused(problems: Problems, profile: str) -> None:
    """A profile's bounds are whole numbers, and neither `true` nor `"1"` is one."""
    (found,) = problems(f"profiles: [{profile}, 1, 8]\nworkspaces: [1GiB]\n")
    assert found.startswith("1:18: profiles[0].min: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model: [a]\n", "3:8: model: expected a mapping, got ['a']"),
        ("model:\n", "3:7: model: expected a mapping, got None"),
        ("gates: {fp32: 1}\n", "3:15: gates.fp32: expected a mapping, got 1"),
        ("precisions: fp32\n", "3:13: precisions: expected a list, got 'fp32'"),
        ("precisions: {fp32: 1}\n", "3:13: precisions: expected a list, got {'fp32': 1}"),
        ("benchmark: {batches: 8}\n", "3:22: benchmark.batches: expected a list, got 8"),
    ],
)
def test_wrong_structure_is_told_in_yamls_words(problems: Problems, text: str, problem: str) -> None:
    """Messages speak of mappings and lists, not of this program's classes, dictionaries and tuples."""
    assert problems(MATRIX + text) == [problem]


@pytest.mark.parametrize("name", ["precisions", "profiles", "workspaces"])
def test_empty_list_is_refused_in_yamls_words(problems: Problems, name: str) -> None:
    """A list of the matrix has at least one entry; no message speaks of tuples or of validation."""
    lists = {"precisions": "[fp32]", "profiles": "[8, 1]", "workspaces": "[1GiB]", name: "[]"}
    (problem,) = problems("".join(f"{key}: {value}\n" for key, value in lists.items()))
    line = list(lists).index(name) + 1
    assert problem.startswith(f"{line}:{len(name) + 3}: {name}: ")
    assert problem.endswith("got []")
    assert "tuple" not in problem


@pytest.mark.parametrize("text", ["[1]", "just text", "1", "- a\n- b\n"])
def test_file_that_is_no_mapping_is_refused(problems: Problems, text: str) -> None:
    """A list or a scalar at the top is one problem, told in YAML's words."""
    (problem,) = problems(text)
    assert problem.startswith("1:1: the file: expected a mapping, got ")


@pytest.mark.parametrize("text", ["---\n", "~", "null\n"])
def test_file_of_nothing_but_null_is_refused_with_a_problem(problems: Problems, text: str) -> None:
    """A file that says nothing is told what is missing: never "0 problems"."""
    assert all(re.match(r"\d+:\d+: the file: ", problem) for problem in problems(text))


@pytest.mark.parametrize("text", ["true", "1.5", "'1'", "[1]"])
def test_profile_of_another_type_is_refused(problems: Problems, text: str) -> None:
    """A profile is a number or a mapping, and the message does not name this program's classes."""
    (problem,) = problems(f"profiles: [8, {text}, 1]\nworkspaces: [1GiB]\n")
    assert problem.startswith("1:15: profiles[1]: ")
    assert "instance of" not in problem


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


@pytest.mark.parametrize(("bounds"), [(4, 2, 8), (1, 9, 8), (9, 9, 8)])
def test_profile_out_of_order_is_refused(problems: Problems, bounds: tuple[int, int, int]) -> None:
    """A profile's tuned batch lies between its smallest and its largest."""
    low, opt, high = bounds
    text = f"profiles: [1, 8, {{min: {low}, opt: {opt}, max: {high}}}]\nworkspaces: [1GiB]\n"
    assert problems(text) == [f"1:18: profiles[2]: expected min ≤ opt ≤ max, got min {low}, opt {opt}, max {high}"]


def test_profile_that_lacks_a_bound_is_refused(problems: Problems) -> None:
    """A missing bound is reported at its profile."""
    assert problems("profiles: [1, 8, {min: 1, opt: 8}]\nworkspaces: [1GiB]\n") == [
        "1:18: missing key 'profiles[2].max'"
    ]


def test_profile_of_no_images_is_one_problem(problems: Problems) -> None:
    """A bare 0 is one mistake, which is not reported once for each of min, opt and max."""
    (problem,) = problems("profiles: [1, 8, 0]\nworkspaces: [1GiB]\n")
    assert problem.startswith("1:18: profiles[2]")


def test_batch_outside_every_profile_is_refused(problems: Problems) -> None:
    """A batch that no engine takes is reported where it stands, with the profiles there are."""
    assert problems(MATRIX + "benchmark: {batches: [1, 64]}\n") == ["3:26: batch 64 lies in no profile (b1, b1-8-32)"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("profiles: [1, 8, 8]\nworkspaces: [1GiB]\n", "1:18: listed twice: b8"),
        ("profiles: [1, 8, {min: 8, opt: 8, max: 8}]\nworkspaces: [1GiB]\n", "1:18: listed twice: b8"),
        (MATRIX + "precisions: [int8, fp16, int8]\n", "3:26: listed twice: int8"),
        (MATRIX + "benchmark: {batches: [1, 8, 1]}\n", "3:29: listed twice: 1"),
    ],
)
def test_entry_listed_twice_is_refused(problems: Problems, text: str, problem: str) -> None:
    """A list that says what to do names each thing once."""
    assert problems(text) == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("90", "expected 80+, current or a list out of 75, 80, 86, 89, 120, 121, got 90"),
        ("[]", "expected 80+, current or a list out of 75, 80, 86, 89, 120, 121, got []"),
        ("[75, 90]", "unknown compute capability 90; expected 80+, current or a list out of 75, 80, 86, 89, 120, 121"),
        ("['75']", "unknown compute capability '75'; expected 80+, current or a list out of 75, 80, 86, 89, 120, 121"),
        ("[true]", "unknown compute capability True; expected 80+, current or a list out of 75, 80, 86, 89, 120, 121"),
        ("[[75]]", "unknown compute capability [75]; expected 80+, current or a list out of 75, 80, 86, 89, 120, 121"),
    ],
)
def test_unknown_compute_capability_is_refused(problems: Problems, text: str, problem: str) -> None:
    """An SM that no engine can be built for is told the ones there are."""
    (found,) = problems(MATRIX + f"tensorrt: {{compute_capabilities: {text}}}\n")
    assert re.fullmatch(r"3:\d+: tensorrt\.compute_capabilities(\[\d\])?: " + re.escape(problem), found)


@pytest.mark.parametrize("factory", ["torchvision", "torchvision.models", "a:", ":b", "a b:c", "a:b.c", "1a:b"])
def test_bad_factory_is_told_the_form(problems: Problems, factory: str) -> None:
    """A factory that is not `package.module:function` is told that form, not a regular expression."""
    (problem,) = problems(MATRIX + f"model: {{factory: '{factory}'}}\n")
    assert problem.startswith("3:18: model.factory: ")
    assert "package.module:function" in problem
    assert problem.endswith(f"got {factory!r}")


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
            "3:16: preprocessing: expected crop ≤ resize, got crop 64, resize 32",
        ),
        (
            PREPROCESSING.format(32, 32, "bilinaer", "[0.5]", "[0.5]"),
            (
                "3:54: preprocessing.interpolation: expected 'nearest', 'bilinear' or 'bicubic', got 'bilinaer'; "
                "did you mean 'bilinear'?"
            ),
        ),
        (
            PREPROCESSING.format(32, 32, "bilinear", "[0.5, 0.5]", "[0.5, 0.5]"),
            "3:16: preprocessing: expected one mean and one std (greyscale) or three of each (RGB), got 2 and 2",
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
    assert problems(MATRIX + text) == [f"3:42: gates.fp32.relative_l2: input should be a finite number, got {got}"]


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
    """Of two GPUs of one type the one with the smaller number is taken, and types keep CUDA's order."""
    second = L4.model_copy(update={"index": 2, "uuid": "GPU-2"})
    third = H100.model_copy(update={"index": 3, "uuid": "GPU-3"})
    assert load(MATRIX + "device: all\n").gpus(host(H100, L4, second, third)) == (H100, L4)


def test_gpus_of_one_name_are_one_type(load: Callable[[str], Config]) -> None:
    """Two GPUs whose folders would have one name are one type, even where their memories differ."""
    larger = L4.model_copy(update={"index": 2, "uuid": "GPU-2", "memory_bytes": 2 * L4.memory_bytes})
    assert load(MATRIX + "device: all\n").gpus(host(L4, larger)) == (L4,)


@pytest.mark.parametrize("device", ["0", "all", L4.uuid])
def test_host_without_gpus_has_none_to_name(load: Callable[[str], Config], device: str) -> None:
    """Whatever the file names, a host without GPUs has none, which is no mistake in the file."""
    assert load(MATRIX + f"device: {device}\n").gpus(host()) == ()


@pytest.mark.parametrize("device", ["2", "GPU-none", "H100"])
def test_device_that_the_host_lacks_is_told_those_that_it_has(problems: Problems, device: str) -> None:
    """A GPU that is not there is answered with number, name and UUID of each that is."""
    assert problems(MATRIX + f"device: {device}\n", host(H100, L4)) == [
        (
            f"3:9: no GPU {device!r} here; expected one of 0 (NVIDIA H100 80GB HBM3, {H100.uuid}), "
            f"1 (NVIDIA L4, {L4.uuid}), or all"
        )
    ]


def test_device_that_the_host_lacks_is_one_problem(problems: Problems) -> None:
    """A share of the memory of a GPU that is not there is no mistake of its own."""
    (problem,) = problems("device: 7\nprofiles: [1, 8]\nworkspaces: [25%]\n", host(H100))
    assert problem.startswith("1:9: no GPU '7' here")


@pytest.mark.parametrize(
    ("text", "got"), [("-1", "-1"), ("true", "True"), ("1.5", "1.5"), ("[0]", "[0]"), ("~", "None")]
)
def test_device_of_another_type_is_refused(problems: Problems, text: str, got: str) -> None:
    """A device is a number or a text."""
    assert problems(MATRIX + f"device: {text}\n") == [
        f"3:9: device: expected a GPU's number, its UUID, or all, got {got}"
    ]


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
            "3:32: tensorrt.optimization_level: input should be less than or equal to 5, got 6",
        ),
        (
            "optimization_level: -1",
            "3:32: tensorrt.optimization_level: input should be greater than or equal to 0, got -1",
        ),
        (
            "optimization_level: true",
            "3:32: tensorrt.optimization_level: input should be a valid integer, got True",
        ),
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
        (
            "version_compatible: 'yes'",
            "3:32: tensorrt.version_compatible: input should be a valid boolean, got 'yes'",
        ),
        ("build_timeout_seconds: 0", "3:35: tensorrt.build_timeout_seconds: input should be greater than 0, got 0"),
        ("refitt: true", "3:12: unknown key 'tensorrt.refitt'; did you mean 'refit'?"),
    ],
)
def test_build_setting_that_cannot_be_is_refused(problems: Problems, text: str, problem: str) -> None:
    """Each of a builder's settings that is wrong is reported where it stands, with what is right."""
    assert problems(MATRIX + f"tensorrt: {{{text}}}\n") == [problem]


def test_current_is_the_hosts_own_gpu(write_config: Callable[[str], Path]) -> None:
    """`current` builds for no list of generations, where there is a GPU to build for."""
    file = write_config(MATRIX + "tensorrt: {compute_capabilities: current}\n")
    assert load_config(file, host(H100)).tensorrt.compute_capabilities == ()


def test_current_is_refused_where_there_is_no_gpu(problems: Problems) -> None:
    """Without a GPU there is no generation that `current` could be."""
    assert problems(MATRIX + "tensorrt: {compute_capabilities: current}\n") == [
        "3:34: `current` is this host's GPU, and it has none; expected 80+ or a list of compute capabilities"
    ]


def test_build_settings_are_those_that_change_an_engine(load: Callable[[str], Config]) -> None:
    """What only says how long, how often or by whom an engine is built is left out of its settings."""
    text = "flavour: tensorrt, timing_cache: false, kernel_specialization: none, build_timeout_seconds: 9"
    written = load(MATRIX + f"tensorrt: {{{text}, refit: true}}\n").tensorrt.build_settings
    assert written == load(MATRIX + "tensorrt: {refit: true}\n").tensorrt.build_settings
    assert written != load(MATRIX).tensorrt.build_settings


@pytest.mark.parametrize("precision", ["tf32", "fp8"])
def test_precision_of_tensor_cores_is_accepted(load: Callable[[str], Config], precision: str) -> None:
    """TF32 and FP8 are asked for by their names."""
    assert load(MATRIX + f"precisions: [fp32, {precision}]\n").precisions == (Precision.FP32, Precision(precision))


# YAML.


def test_impossible_date_is_one_problem(problems: Problems) -> None:
    """A value that cannot be read is reported as that, not a second time as a missing string."""
    assert problems(MATRIX + "model: {name: 2026-13-45}\n") == [
        "3:15: cannot read '2026-13-45': month must be in 1..12"
    ]


def test_date_is_no_name(problems: Problems) -> None:
    """A name that YAML reads as a date is reported as no string."""
    (problem,) = problems(MATRIX + "model: {name: 2026-01-01}\n")
    assert problem.startswith("3:15: model.name: input should be a valid string, got ")


def test_alias_is_one_problem(problems: Problems) -> None:
    """An alias is reported as that, not a second time as a missing value."""
    (problem,) = problems(MATRIX + "data: &numbers {calibration: 8}\nvalidation: *numbers\n")
    assert problem.endswith(": anchors and aliases are not supported; write the value twice")


def test_text_that_is_no_yaml_is_refused(problems: Problems) -> None:
    """A bracket that is never closed is one problem, at the place where the parser stopped."""
    (problem,) = problems("profiles: [1\nworkspaces: [1GiB]\n")
    assert re.match(r"2:\d+: not valid YAML: ", problem)


def test_several_problems_are_sorted_by_position(problems: Problems) -> None:
    """All problems are told at once, the YAML's own among them, in the order of the file."""
    text = "zzz: 1\nprecisions: [fp23]\ndata: {calibration: 0, calibration: 1}\nmodel: {name: -}\nworkspaces: [0]\n"
    assert [problem.split(": ")[0] for problem in problems(text)] == [
        "1:1",
        "1:1",
        "2:14",
        "3:21",
        "3:24",
        "4:15",
        "5:14",
    ]


def test_problems_of_one_position_come_in_a_fixed_order(problems: Problems) -> None:
    """What is missing of one mapping is listed in the order of its keys, each time the same."""
    assert problems(MATRIX + "gates: {fp32: {}}\n") == [
        f"3:15: missing key 'gates.fp32.{key}'" for key in ("cosine", "relative_l2", "top1_agreement", "top1_drop")
    ]


def test_layers_are_left_of_a_precision_that_is_built(problems: Problems) -> None:
    """Names for int8 where nothing is int8 would change nothing; a name that is there twice is a mistake."""
    text = MATRIX + "precisions: [fp32, fp8]\nleave_unquantized: {int8: [conv], fp8: [a, a]}\n"
    assert problems(text) == [
        "4:27: layers of int8 are named, and `precisions` does not have it",
        "4:44: listed twice: a",
    ]


def test_cross_checks_come_with_the_yamls_own_problems(problems: Problems) -> None:
    """A duplicate key does not hide a batch that lies in no profile."""
    assert problems("profiles: [1]\nworkspaces: [1GiB]\nbenchmark: {batches: [8]}\nworkspaces: [2GiB]\n") == [
        "3:23: batch 8 lies in no profile (b1)",
        "4:1: duplicate key 'workspaces'; remove one of them",
    ]


# Files.


def test_missing_file_is_told_what_to_do(tmp_path: Path) -> None:
    """A configuration that is not there is a usage error with its name and a fix."""
    file = tmp_path / "absent.yaml"
    with pytest.raises(UsageError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"the configuration {file} cannot be read: No such file or directory\n")
    assert "`--config FILE`" in str(caught.value)


def test_folder_is_no_configuration(tmp_path: Path) -> None:
    """A folder in the configuration's place is a usage error."""
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are reported with their place."""
    file = tmp_path / "pipeline.yaml"
    file.write_bytes(b"\xff\xfe" + MATRIX.encode("utf-16-le"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert caught.value.problems == (f"{file}:1:1: not UTF-8 text: invalid start byte at byte 0",)


def test_folder_name_with_a_colon_is_no_obstacle(tmp_path: Path) -> None:
    """Positions are told apart from a path that contains colons itself."""
    folder = tmp_path / "my: project"
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(MATRIX + "zzz: 1\n")
    with pytest.raises(ConfigError, match=r"pipeline\.yaml:3:1: unknown key 'zzz'"):
        load_config(folder / "pipeline.yaml")


# Anything.


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 200)
    | st.floats()
    | st.sampled_from(["auto", "80+", "current", "all", "fp32", "int8", "1GiB", "25%", "bilinear", "a:b", "2026-13-45"])
    | st.text(max_size=6)
    | st.dates()
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["min", "opt", "max", "name", "fp32", "cosine", "batches"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
_SOUND: dict[str, Any] = yaml.safe_load(MATRIX)
_PATHS: list[tuple[str, ...]] = [
    *((key,) for key in KEYS.split(", ")),
    ("model", "name"),
    ("model", "factory"),
    ("data", "calibration"),
    ("tensorrt", "compute_capabilities"),
    ("tensorrt", "flavour"),
    ("tensorrt", "tactic_sources"),
    ("tensorrt", "build_timeout_seconds"),
    ("gates", "fp32"),
    ("gates", "require_proof"),
    ("benchmark", "batches"),
    ("preprocessing", "mean"),
]


def _unpositioned(file: Path) -> list[str]:
    """Load `file`, and return those of its problems that do not begin with file:line:column; all where it has none."""
    try:
        load_config(file)
    except ConfigError as exc:
        start = re.escape(str(file)) + r":[1-9]\d*:[1-9]\d*: \S"
        return [problem for problem in exc.problems if not re.match(start, problem)] if exc.problems else [str(exc)]
    return []


@given(where=st.sampled_from(_PATHS), value=_VALUES)
@settings(deadline=None)
def test_any_value_anywhere_is_accepted_or_refused_with_a_position(
    tmp_path_factory: pytest.TempPathFactory, where: tuple[str, ...], value: object
) -> None:
    """Whatever stands at a key, the answer is a configuration or positioned problems, never another error."""
    document = dict(_SOUND)
    document[where[0]] = value if len(where) == 1 else {where[1]: value}
    file = tmp_path_factory.getbasetemp() / "any-value.yaml"
    file.write_text(yaml.safe_dump(document))
    assert _unpositioned(file) == []


@given(st.text(max_size=100))
@settings(deadline=None)
def test_any_text_is_accepted_or_refused_with_a_position(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever a file says, the answer is a configuration or positioned problems, never another error."""
    file = tmp_path_factory.getbasetemp() / "any-text.yaml"
    file.write_text(MATRIX + text, encoding="utf-8")
    assert _unpositioned(file) == []


@given(data=st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_accepted_or_refused_with_a_position(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """Whatever bytes a file holds, it is refused with problems that have a position."""
    file = tmp_path_factory.getbasetemp() / "any-bytes.yaml"
    file.write_bytes(data)
    assert _unpositioned(file) == []


_SIZES = st.sampled_from(["16MiB", "32 MiB", "256MiB", "1GiB"])
_FRACTION = st.sampled_from([0.5, 0.9, 0.99])
_GATE = st.fixed_dictionaries(
    {"cosine": _FRACTION, "relative_l2": _FRACTION, "top1_agreement": _FRACTION, "top1_drop": _FRACTION}
)
_BATCHES = st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True)
_PROFILE = st.integers(1, 64) | _BATCHES.map(sorted).filter(lambda sizes: len(sizes) == 3).map(
    lambda sizes: dict(zip(("min", "opt", "max"), sizes, strict=True))
)
_SOUND_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from([{"name": "resnet18"}, {"name": "resnet18", "weights": "sample"}]),
    "data": st.fixed_dictionaries({"calibration": st.integers(1, 500), "validation": st.integers(10, 500)}),
    "precisions": st.lists(st.sampled_from(["fp32", "fp16", "bf16", "int8", "fp8"]), min_size=1, unique=True),
    "profiles": st.lists(_PROFILE, min_size=1, max_size=3, unique_by=str),
    "workspaces": st.lists(_SIZES, min_size=1, max_size=3, unique=True),
    "gates": st.dictionaries(st.sampled_from(["fp32", "fp16", "int8"]), _GATE, max_size=2),
    "benchmark": st.fixed_dictionaries({"restarts": st.integers(1, 5), "rounds": st.integers(1, 4)}),
    "tensorrt": st.fixed_dictionaries({"refit": st.booleans(), "timing_cache": st.booleans()}),
    "torch_tensorrt": st.fixed_dictionaries({"min_block_size": st.integers(1, 9)}),
    "validation": st.fixed_dictionaries({"timeout_seconds": st.integers(1, 5000)}),
    "leave_unquantized": st.fixed_dictionaries({"int8": st.lists(st.sampled_from(["conv1", "fc"]), unique=True)}),
    "artifacts": st.sampled_from(["artifacts", "build/out"]),
}


@st.composite
def _documents(draw: st.DrawFn) -> dict[str, Any]:
    """A configuration with some of its keys, all of them sound, or with something broken somewhere."""
    keys = draw(st.lists(st.sampled_from(sorted(_SOUND_VALUES)), unique=True))
    needed = {"model", "profiles", "workspaces"}
    document = {key: draw(_SOUND_VALUES[key]) for key in sorted(needed | set(keys))}
    if draw(st.booleans()):
        where = draw(st.sampled_from(sorted(document)))
        inner = document[where]
        if isinstance(inner, dict) and inner and draw(st.booleans()):
            document[where] = {**inner, draw(st.sampled_from(sorted(inner)) | st.text(max_size=5)): draw(_VALUES)}
        else:
            document[draw(st.just(where) | st.text(max_size=5))] = draw(_VALUES)
    return document


def _written(document: dict[str, Any], *, flow: bool) -> str:
    """Return it as YAML, by the C library: in blocks with sorted keys, or all in one flow in its own order."""
    return yaml.dump(document, Dumper=yaml.CSafeDumper, default_flow_style=flow, sort_keys=not flow)


@pytest.mark.no_cover
def test_every_document_plans_or_is_refused_with_a_position(tmp_path: Path) -> None:
    """What is accepted has a plan in which every step's needs are planned, and means the same however it is spelt.

    So does what is read, written out in full.
    Many are accepted and many are refused: neither half is tested in vain.
    """
    file, seen = tmp_path / "document.yaml", {"accepted": 0, "refused": 0}

    @given(document=_documents())
    @settings(deadline=None, max_examples=2000)
    def check(document: dict[str, Any]) -> None:
        file.write_text(_written(document, flow=False))
        assert _unpositioned(file) == []
        try:
            config = load_config(file)
        except ConfigError:
            seen["refused"] += 1
            return
        seen["accepted"] += 1
        plan = Plan(config, host(H100))
        assert all(set(plan.dependencies(step).requires) <= set(plan.steps) for step in plan.steps)
        file.write_text(_written(document, flow=True))
        assert load_config(file) == config
        sizes = [size.text for size in config.workspaces]
        in_full = config.model_dump(mode="json", exclude_none=True) | {"workspaces": sizes}
        file.write_text(_written(in_full, flow=False))
        assert load_config(file) == config

    check()
    assert min(seen.values()) > 0.1 * sum(seen.values())


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
    """3 may be per cent or a factor; nothing is guessed."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(MATRIX + text + "\n")


FARM = "executor: ray\nfarm: {{targets: [{}]}}\n"
ON_H100 = "{accelerator: H100, flavour: tensorrt}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("executor: ray\n", "3:11: ray takes a key `farm`: {targets: [{accelerator: H100, flavour: tensorrt}]}"),
        (
            f"farm: {{targets: [{ON_H100}]}}\n",
            "3:7: is of `executor: ray`, and the executor is local; add that, or take this out",
        ),
        (FARM.format(""), "4:17: farm.targets: expected at least one entry, got []"),
        *(
            (
                FARM.format(f"{{flavour: tensorrt_rtx, resources: [a100, '{name}']}}"),
                f"4:60: farm.targets[0].resources[1]: {name} is a resource of Ray's own; expected",
            )
            for name in ("CPU", "GPU", "memory", "object_store_memory", "node:10.0.0.1", "accelerator_type:H100")
        ),
        (FARM.format("{accelerator: H100}"), "4:18: missing key 'farm.targets[0].flavour'"),
        (
            FARM.format("{flavour: tensorrt}"),
            "4:18: TensorRT builds on the GPU that it is for; expected `accelerator`, such as H100",
        ),
        (
            FARM.format("{flavour: tensorrt_rtx, compute_capabilities: current}"),
            "4:18: `compute_capabilities: current` builds on the GPU that it is for; expected `accelerator`",
        ),
        (
            FARM.format("{accelerator: H100, flavour: tensorrt, compute_capabilities: [80]}"),
            "4:79: TensorRT builds for the GPU that it runs on; leave it out",
        ),
        (
            FARM.format("{flavour: tensorrt_rtx}, {accelerator: L4, flavour: tensorrt_rtx}"),
            "4:43: makes the same engines as farm.targets[0], rtx-sm80+; give it other",
        ),
        (FARM.format(f"{ON_H100}, {ON_H100}"), "4:58: listed twice: "),
        (FARM.format(f"{ON_H100}, {ON_H100[:-1]}, steps_per_gpu: 2}}"), "4:58: listed twice: "),
        (
            FARM.format("{flavour: tensorrt_rtx, steps_per_gpu: 2}"),
            "4:57: is of a target with a GPU; expected `accelerator`, or leave it out",
        ),
        (
            FARM.format(f"{ON_H100[:-1]}, steps_per_gpu: 0}}"),
            "4:72: farm.targets[0].steps_per_gpu: input should be greater than or equal to 1, got 0",
        ),
        (
            FARM.format(ON_H100) + "device: 1\n",
            "5:9: is a GPU of this machine, and `farm.targets` says what is built for; leave it out",
        ),
        (
            FARM.format(ON_H100) + "tensorrt: {flavour: tensorrt}\n",
            "5:21: every one of `farm.targets` names its own; leave it out",
        ),
        (
            FARM.format(ON_H100) + "torch_tensorrt: {engine_cache: true}\n",
            "5:32: is kept on one machine, and workers keep none; leave it out",
        ),
        (
            FARM.format(ON_H100)[:-2] + ", retries: -1}\n",
            "4:68: farm.retries: input should be greater than or equal to 0, got -1",
        ),
        ("executor: slurm\n", "3:11: executor: expected 'local' or 'ray', got 'slurm'"),
    ],
)
def test_farm_that_cannot_be_is_refused_where_it_stands(problems: Problems, text: str, problem: str) -> None:
    """With what to do instead."""
    (found,) = problems(MATRIX + text)
    assert found.startswith(problem)


def test_share_of_memory_takes_a_gpu(problems: Problems, load: Callable[[str], Config]) -> None:
    """Of each of the farm's targets its own; a target without one has none to share."""
    text = "profiles: [1]\nworkspaces: [25%]\nexecutor: ray\nfarm: {targets: [{flavour: tensorrt_rtx}]}\n"
    assert problems(text) == ["4:18: workspace '25%' is a share of a GPU's memory; expected `accelerator`, or bytes"]
    assert load(text.replace("{flavour: tensorrt_rtx}", ON_H100)).farm_targets[0].worker_kind == "H100 with tensorrt"


def test_farm_has_defaults(load: Callable[[str], Config]) -> None:
    """Whoever runs `doit` on a machine of the cluster names the targets alone."""
    farm = load(MATRIX + FARM.format(ON_H100)).farm
    assert farm is not None
    assert (farm.address, farm.retries, farm.step_timeout_seconds) == ("auto", 2, 7200.0)
