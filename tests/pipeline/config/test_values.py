"""Values of the configuration: sizes, shares, batch ranges, compute capabilities and devices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_artifacts.records import BatchRange
from pipeline.config.loading import load_config
from pipeline.config.values import RESERVED_NAMES, WorkspaceSize, parse_device
from pipeline.planning.paths import Paths
from tests.support.configs import MATRIX, Problems
from tests.support.hosts import H100, L4, host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.config.settings import Config


# What is accepted.


def test_bare_number_is_a_fixed_batch(load: Callable[[str], Config]) -> None:
    """`8` means from 8 to 8."""
    assert load(MATRIX).profiles == (BatchRange(min=1, opt=1, max=1), BatchRange(min=1, opt=8, max=32))


def test_preprocessing_auto_is_none(load: Callable[[str], Config]) -> None:
    """`auto` leaves the preprocessing to the weights."""
    assert load(MATRIX + "preprocessing: auto\n").preprocessing is None


@pytest.mark.parametrize(
    ("text", "file", "key", "is_file"),
    [
        ("auto", "auto", None, False),
        ("IMAGENET1K_V2", "IMAGENET1K_V2", None, False),
        ("best.pth", "best.pth", None, True),
        ("runs/3/best", "runs/3/best", None, True),
        ("pyproject.toml", "pyproject.toml", None, True),
        ("{file: best.pth, key: model_ema}", "best.pth", "model_ema", True),
    ],
)
def test_weights_are_a_name_or_a_file_with_its_key(
    load: Callable[[str], Config], text: str, file: str, key: str | None, *, is_file: bool
) -> None:
    """Text alone is the name or the file; a mapping also names the state dict in the file."""
    weights = load(MATRIX + f"model: {{weights: {text}}}\n").model.weights
    assert (weights.file, weights.key, weights.is_file) == (file, key, is_file)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("3", "3:18: model.weights: expected text, or {file, key}, got 3"),
        ("{path: x.pth}", "3:19: unknown key 'model.weights.path'"),
    ],
)
def test_other_weights_are_refused(problems: Problems, text: str, problem: str) -> None:
    """Weights that are neither text nor {file, key} are refused at their place."""
    assert problem in " ".join(problems(MATRIX + f"model: {{weights: {text}}}\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80+", (80, 86, 89, 120)), ("[89, 75]", (75, 89)), ("[120, 89, 86, 80]", (80, 86, 89, 120))],
)
def test_compute_capabilities_are_sorted(load: Callable[[str], Config], text: str, expected: tuple[int, ...]) -> None:
    """A list is sorted, and `80+` stands for the portable one."""
    config = load(MATRIX + f"tensorrt: {{compute_capabilities: {text}}}\n")
    assert config.tensorrt.compute_capabilities == expected


# Names of models and classes.


@pytest.mark.parametrize("name", [*sorted(RESERVED_NAMES), "Cache", "Manifest.JSON"])
def test_name_of_the_pipelines_own_files_is_refused(problems: Problems, name: str) -> None:
    """A model cannot take the place of the manifest, the release, or another file beside the models' folders."""
    (found,) = problems(MATRIX + f"model: {{name: {name}}}\n")
    assert found.startswith(f"3:15: model.name: '{name}' is a name of the pipeline's own in the artifacts folder; ")


def test_reserved_names_are_those_of_the_layout(tmp_path: Path) -> None:
    """Every file and folder that the layout has beside a model's folder is reserved, or begins with a dot."""
    paths = Paths(tmp_path, "resnet50.a1_in1k")
    values = [getattr(paths, name) for name, item in vars(Paths).items() if isinstance(item, property)]
    tops = {path.relative_to(tmp_path).parts[0] for path in values}
    assert "manifest.json" in tops
    assert {name for name in tops if name[0] != "."} - {"resnet50.a1_in1k"} <= RESERVED_NAMES


@pytest.mark.parametrize("name", ["resnet50.a1_in1k", "cached", "manifest", "source"])
def test_other_names_are_free(load: Callable[[str], Config], name: str) -> None:
    """Only whole names are reserved."""
    assert load(MATRIX + f"model: {{name: {name}}}\n").model.name == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[cat, 'no', 7]", ("cat", "no", "7")), ("names.txt", "names.txt"), ("null", None)],
)
def test_classes_are_a_list_or_a_file(load: Callable[[str], Config], text: str, expected: object) -> None:
    """Names come as a list or from a file; without either, the weights know them."""
    assert load(MATRIX + f"data: {{classes: {text}}}\n").data.classes == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "3:17: data.classes: expected a list of names or the path of a file with them, got []"),
        ("3", "3:17: data.classes: expected a list of names or the path of a file with them, got 3"),
        ("[cat, no]", "3:23: data.classes[1]: expected each name as text; write it in quotes, such as 'no', got false"),
        ("['', cat]", "3:18: data.classes[0]: expected each name as text; write it in quotes, such as 'no', got ''"),
        ("[cat, dog, cat]", "3:28: `data.classes` lists the same entry twice: cat; remove one of them"),
    ],
)
def test_classes_that_are_none_are_refused(problems: Problems, text: str, problem: str) -> None:
    """YAML reads a bare `no` as false, and two classes of one name cannot be told apart."""
    assert problems(MATRIX + f"data: {{classes: {text}}}\n") == [problem]


# Sizes.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1KiB", 2**10),
        ("1073741824", 2**30),
        ("256MiB", 2**28),
        ("1 GiB", 2**30),
        ("1.5GiB", 3 * 2**29),
        ("1GB", 10**9),
    ],
)
def test_size_is_read_as_bytes(text: str, size: int) -> None:
    """Bytes, binary units and decimal units are accepted."""
    assert WorkspaceSize(text=text).bytes(None) == size


@given(st.integers(2**10, 2**14), st.sampled_from([("KiB", 2**10), ("MiB", 2**20), ("GB", 10**9)]))
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
    """A share has no number of bytes if no GPU's memory is known."""
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
    """An accepted size is above zero, and its label is safe in a file name."""
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
    """The message shows the form of a size and the written value."""
    (problem,) = problems(f"profiles: [1, 8]\nworkspaces: [1GiB, {text}]\n")
    assert problem.startswith("2:20: workspaces[1]: expected a size such as 256MiB or 1GiB")
    assert problem.endswith(f"got {text.strip(chr(39))!r}")


@pytest.mark.parametrize(("text", "got"), [("true", "true"), ("0.5", "0.5"), ("null", "null"), ("[1]", "[1]")])
def test_workspace_of_another_type_is_refused(problems: Problems, text: str, got: str) -> None:
    """A workspace is a number of bytes or a text."""
    (problem,) = problems(f"profiles: [1, 8]\nworkspaces: [{text}]\n")
    assert problem.startswith("2:14: workspaces[0]: expected a size such as 256MiB or 1GiB")
    assert problem.endswith(f"got {got}")


@pytest.mark.parametrize("text", ["0", "0MiB", "0.1B"])
def test_workspace_of_nothing_is_refused(problems: Problems, text: str) -> None:
    """A workspace has at least 1 KiB."""
    assert problems(f"profiles: [1, 8]\nworkspaces: [{text}]\n") == [
        f"2:14: workspaces[0]: expected at least 1KiB, got '{text}'"
    ]


@pytest.mark.parametrize("text", ["1", "256", "'256'", "1023"])
def test_size_whose_unit_was_forgotten_is_refused(problems: Problems, text: str) -> None:
    """A small number without a unit is not taken for bytes."""
    number = text.strip("'")
    assert problems(f"profiles: [1]\nworkspaces: [{text}]\n") == [
        (
            f"2:14: workspaces[0]: expected a size with its unit, got {number}, which would be bytes; "
            f"write {number}MiB or {number}GiB"
        )
    ]


@pytest.mark.parametrize("text", ["1024", "1048575"])
def test_large_number_without_a_unit_may_be_bytes(problems: Problems, text: str) -> None:
    """The remedy for a number that may well be bytes says so."""
    (problem,) = problems(f"profiles: [1]\nworkspaces: [{text}]\n")
    assert problem.endswith(f"got {text}, which would be bytes; write {text}B, or a size in MiB")
    assert WorkspaceSize(text=f"{text}B").bytes(None) == int(text)


@pytest.mark.parametrize("text", ["17TiB", "99999999TiB", "17592186044417", "1" + "0" * 40])
def test_size_beyond_every_gpu_is_refused(problems: Problems, text: str) -> None:
    """The largest workspace has 16 TiB."""
    assert problems(f"profiles: [1]\nworkspaces: [{text}]\n") == [
        f"2:14: workspaces[0]: expected at most 16TiB, got '{text}'"
    ]
    assert WorkspaceSize(text="16TiB").bytes(None) == 2**44


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("'0;'", "; write 0"),
        ("' 1'", "; write 1"),
        ("'00'", "; write 0"),
        ("'cuda:3'", "; write 3"),
        ("ALL", "; write all"),
        ("'0,1'", ""),
        ("'-1'", ""),
        ("''", ""),
        ("H100", ""),
        ("99999", ""),
        ("'GPU-1;x'", ""),
    ],
)
def test_device_that_is_none_is_refused(problems: Problems, text: str, hint: str) -> None:
    """A text is no device because it begins with a number."""
    (problem,) = problems(f"profiles: [1]\nworkspaces: [1GiB]\ndevice: {text}\n")
    got = text if text.startswith("'") or text.isdecimal() else f"'{text}'"
    assert problem == f"3:9: device: expected a GPU's number, its UUID, or all, got {got}{hint}"


@pytest.mark.parametrize("text", ["0", "12", "all", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-GPU-1a/1/0"])
def test_device_is_read(text: str) -> None:
    """CUDA's numbers, nvidia-smi's UUIDs and `all` are devices."""
    assert parse_device(text) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "gates: {margin: 1}",
            "gates.margin: expected at most 0.5, a share of all answers, got 1.0; 1 percentage points",
        ),
        (
            "gates: {fp16: {top1_drop: 2}}",
            "gates.fp16.top1_drop: expected at most 0.5, a share of all answers, got 2.0;",
        ),
        ("gates: {fp16: {class_drop: 1.0e+9}}", "gates.fp16.class_drop: expected at most 0.5, a share of all answers"),
        ("gates: {rounding: 1.0e+300}", "gates.rounding: expected at most 100, got 1e+300"),
        ("gates: {int8: {relative_l2: 2}}", "gates.int8.relative_l2: expected at most 1, got 2"),
        ("release: {manifest: m, max_top1_drop: 101pt}", "release.max_top1_drop: expected at most 100pt, got '101pt'"),
    ],
)
def test_bound_that_nothing_can_break_is_refused(problems: Problems, text: str, problem: str) -> None:
    """A bound that accepts every artifact is a slip."""
    (found,) = problems(f"profiles: [1]\nworkspaces: [1GiB]\n{text}\n")
    assert found.split(": ", 1)[1].startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data: {validation: 2147483648}", "data.validation: expected at most 2147483647, got 2147483648"),
        ("benchmark: {restarts: 1001}", "benchmark.restarts: expected at most 1000, got 1001"),
        ("benchmark: {streams: 129}", "benchmark.streams: expected at most 128, got 129"),
        (
            "validation: {timeout_seconds: 1.0e+300}",
            "validation.timeout_seconds: expected at most 10000000, got 1e+300",
        ),
        ("model: {name: %s}" % ("a" * 101), "model.name: expected at most 100 characters, got 101"),
        (
            "tensorrt: {compute_capabilities: [80, 80]}",
            "tensorrt.compute_capabilities[1]: lists the same entry twice: 80;",
        ),
        (
            "tensorrt: {tactic_sources: [cublas, cublas]}",
            "`tensorrt.tactic_sources` lists the same entry twice: cublas;",
        ),
        (
            "torch_tensorrt: {profiles: [1, {min: 1, opt: 1, max: 1}]}",
            "`torch_tensorrt.profiles` lists the same entry twice: b1;",
        ),
        (
            "precisions: [fp32, int8]\ntorch_tensorrt: {precisions: [int8]}",
            "`torch_tensorrt.precisions`: a module is cast, and int8 is no cast; remove int8",
        ),
        (
            "precisions: [fp32]\ntorch_tensorrt: {precisions: [bf16]}",
            "`torch_tensorrt.precisions` needs bf16 in `precisions`; add it there, or remove it here",
        ),
        (
            "torch_tensorrt: {profiles: [2]}",
            "`torch_tensorrt.profiles`: b2 is none of `profiles`; expected one of b1",
        ),
        ("benchmark: {baselines: [inductor, inductor]}", "`benchmark.baselines` lists the same entry twice: inductor;"),
        ("profiles: [{min: 1, opt: 1, max: 2147483648}]", "profiles[0].max: expected at most 2147483647,"),
        ("profiles: [2147483648]", "profiles[0]: expected a batch of at most 2147483647, got 2147483648"),
    ],
)
def test_number_that_is_too_large_and_entry_that_is_repeated_are_refused(
    problems: Problems, text: str, problem: str
) -> None:
    """A number that a library cannot take ends here, with its place."""
    start = "workspaces: [1GiB]\n" + ("" if text.startswith("profiles") else "profiles: [1]\n")
    (found,) = problems(f"{start}{text}\n")
    assert found.split(": ", 1)[1].startswith(problem)


def test_long_value_is_shortened_in_its_message(problems: Problems) -> None:
    """A value of 5,000 characters does not fill the screen."""
    (problem,) = problems(f"profiles: [1]\nworkspaces: [{'9' * 5000}GiB]\n")
    assert len(problem) < 300


@pytest.mark.parametrize("text", ["0%", "150%", "100.1 %", "0.0%"])
def test_share_out_of_range_is_refused(problems: Problems, text: str) -> None:
    """A share is more than nothing and not more than everything."""
    assert problems(f"profiles: [1, 8]\nworkspaces: [{text}]\n") == [
        f"2:14: workspaces[0]: expected a share above 0 % and up to 100 %, got {text!r}"
    ]


def test_share_is_refused_where_there_is_no_gpu(problems: Problems) -> None:
    """A host without a GPU has no memory that a workspace could be a share of."""
    assert problems("profiles: [1, 8]\nworkspaces: [1GiB, 25%]\n") == [
        "2:20: '25%' is a share of a GPU's memory, and this host has no GPU; expected bytes, such as 1GiB"
    ]


def test_share_is_accepted_where_there_is_a_gpu(write_config: Callable[[str], Path]) -> None:
    """A share of the memory is a size on a host with a GPU."""
    config = load_config(write_config("profiles: [1, 8]\nworkspaces: [25%]\n"), host(H100))
    assert config.workspaces[0].bytes(H100.memory_bytes) == 20 * 2**30


def test_shares_are_of_the_gpu_that_the_device_names(problems: Problems) -> None:
    """A share that comes out as another entry's size on the chosen GPU is listed twice."""
    text = "device: 1\nprofiles: [1, 8]\nworkspaces: [50%, 12GiB]\n"
    assert problems(text, host(H100, L4)) == [
        f"3:19: `workspaces` lists the same entry twice: {12 * 2**30}; remove one of them"
    ]


def test_two_shares_that_come_out_equal_are_refused(problems: Problems) -> None:
    """50% and 50.0 % are one size."""
    text = "profiles: [1, 8]\nworkspaces: [50%, 50.0 %]\n"
    assert problems(text, host(H100)) == [
        f"2:19: `workspaces` lists the same entry twice: {40 * 2**30}; remove one of them"
    ]


def test_share_that_is_less_than_a_byte_is_a_byte() -> None:
    """The smallest share is one byte."""
    assert WorkspaceSize(text="0.000000001%").bytes(2**30) == 1


def test_workspace_listed_twice_in_other_units_is_refused(problems: Problems) -> None:
    """1024MiB and 1GiB are the same workspace."""
    assert problems("profiles: [1, 8]\nworkspaces: [1GiB, 1024MiB]\n") == [
        "2:20: `workspaces` lists the same entry twice: 1073741824; remove one of them"
    ]


# Types.


@pytest.mark.parametrize("profile", ["{min: true, opt: 8, max: 8}", "{min: '1', opt: 8, max: 8}"])
def test_profile_of_what_only_converts_is_refused(problems: Problems, profile: str) -> None:
    """A profile's bounds are whole numbers, and neither `true` nor `"1"` is one."""
    (found,) = problems(f"profiles: [{profile}, 1, 8]\nworkspaces: [1GiB]\n")
    assert found.startswith("1:18: profiles[0].min: ")


@pytest.mark.parametrize("text", ["true", "1.5", "'1'", "[1]"])
def test_profile_of_another_type_is_refused(problems: Problems, text: str) -> None:
    """A profile is a number or a mapping, and the message does not name this program's classes."""
    (problem,) = problems(f"profiles: [8, {text}, 1]\nworkspaces: [1GiB]\n")
    assert problem.startswith("1:15: profiles[1]: ")
    assert "instance of" not in problem


# Values.


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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("90", "expected 80+, current or a list of 75, 80, 86, 89, 120, 121, got 90"),
        ("[]", "expected 80+, current or a list of 75, 80, 86, 89, 120, 121, got []"),
        ("[75, 90]", "unknown compute capability 90; expected 80+, current or a list of 75, 80, 86, 89, 120, 121"),
        ("['75']", "unknown compute capability '75'; expected 80+, current or a list of 75, 80, 86, 89, 120, 121"),
        ("[true]", "unknown compute capability true; expected 80+, current or a list of 75, 80, 86, 89, 120, 121"),
        ("[[75]]", "unknown compute capability [75]; expected 80+, current or a list of 75, 80, 86, 89, 120, 121"),
    ],
)
def test_unknown_compute_capability_is_refused(problems: Problems, text: str, problem: str) -> None:
    """An SM that no engine can be built for is told the ones there are."""
    (found,) = problems(MATRIX + f"tensorrt: {{compute_capabilities: {text}}}\n")
    assert re.fullmatch(r"3:\d+: tensorrt\.compute_capabilities(\[\d\])?: " + re.escape(problem), found)


@pytest.mark.parametrize("factory", ["torchvision", "torchvision.models", "a:", ":b", "a b:c", "a:b.", "1a:b"])
def test_bad_factory_is_told_the_form(problems: Problems, factory: str) -> None:
    """A factory that is not `package.module:function` is told that form, not a regular expression."""
    (problem,) = problems(MATRIX + f"model: {{factory: '{factory}'}}\n")
    assert problem.startswith("3:18: model.factory: ")
    assert "package.module:function" in problem
    assert problem.endswith(f"got {factory!r}")


# The device.


@pytest.mark.parametrize(
    ("text", "got"), [("-1", "-1"), ("true", "true"), ("1.5", "1.5"), ("[0]", "[0]"), ("~", "null")]
)
def test_device_of_another_type_is_refused(problems: Problems, text: str, got: str) -> None:
    """A device is a number or a text."""
    assert problems(MATRIX + f"device: {text}\n") == [
        f"3:9: device: expected a GPU's number, its UUID, or all, got {got}"
    ]
