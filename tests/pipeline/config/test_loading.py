"""Loading a configuration: problems with their positions, unknown keys, and arbitrary documents."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model_artifacts.errors import ConfigError, UsageError
from pipeline.config.loading import load_config
from pipeline.planning.plan import Plan
from tests.support.configs import DATA_KEYS, KEYS, MATRIX, ON_H100, Problems
from tests.support.hosts import H100, L4, host
from tests.support.plans import schedule_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.config.settings import Config
    from tests.support.parts import Part


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
        (
            "data: {zzz: 1}\n",
            f"3:8: unknown key 'data.zzz'; known keys: {DATA_KEYS}",
        ),
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
        ("model: [a]\n", "3:8: model: expected a mapping, got ['a']"),
        ("model:\n", "3:7: model: expected a mapping, got null"),
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
    """An empty file has a problem that names the missing keys, never "0 problems"."""
    assert all(re.match(r"\d+:\d+: the file: ", problem) for problem in problems(text))


# Values.


def test_batch_outside_every_profile_is_refused(problems: Problems) -> None:
    """A batch that no engine takes is reported where it stands, with the profiles there are."""
    assert problems(MATRIX + "benchmark: {batches: [1, 64]}\n") == [
        "3:26: batch 64 lies in none of the profiles b1, b1-8-32; remove it or add a profile that holds it"
    ]


# The device.


@pytest.mark.parametrize("device", ["2", "GPU-none", "MIG-none"])
def test_device_that_the_host_lacks_is_told_those_that_it_has(problems: Problems, device: str) -> None:
    """A GPU that is not there is answered with number, name and UUID of each that is."""
    assert problems(MATRIX + f"device: {device}\n", host(H100, L4)) == [
        (
            f"3:9: `device`: this host has no GPU {device!r}; expected one of 0 (NVIDIA H100 80GB HBM3, {H100.uuid}), "
            f"1 (NVIDIA L4, {L4.uuid}), or all"
        )
    ]


def test_device_that_the_host_lacks_is_one_problem(problems: Problems) -> None:
    """A share of the memory of a GPU that is not there is no mistake of its own."""
    (problem,) = problems("device: 7\nprofiles: [1, 8]\nworkspaces: [25%]\n", host(H100))
    assert problem.startswith("1:9: `device`: this host has no GPU '7'")


# How engines are built.


def test_current_is_the_hosts_own_gpu(write_config: Callable[[str], Path]) -> None:
    """`current` builds for no list of generations, where there is a GPU to build for."""
    file = write_config(MATRIX + "tensorrt: {compute_capabilities: current}\n")
    assert load_config(file, host(H100)).tensorrt.compute_capabilities == ()


def test_current_is_refused_where_there_is_no_gpu(problems: Problems) -> None:
    """Without a GPU there is no generation that `current` could be."""
    assert problems(MATRIX + "tensorrt: {compute_capabilities: current}\n") == [
        (
            "3:34: `tensorrt.compute_capabilities`: `current` is this host's GPU, and it has none; "
            "expected 80+ or a list of compute capabilities"
        )
    ]


# YAML.


def test_impossible_date_is_one_problem(problems: Problems) -> None:
    """A value that cannot be read is reported as that, not a second time as a missing string."""
    (problem,) = problems(MATRIX + "model: {name: 2026-13-45}\n")
    assert problem.startswith("3:15: cannot read '2026-13-45': month must be in 1..12")


def test_date_is_no_name(problems: Problems) -> None:
    """A name that YAML reads as a date is reported as no string."""
    (problem,) = problems(MATRIX + "model: {name: 2026-01-01}\n")
    assert problem.startswith("3:15: model.name: expected text, got 2026-01-01")


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
    """The missing keys of a mapping are listed in the order of its keys."""
    assert problems("precisions: [fp16]\n") == ["1:1: missing key 'profiles'", "1:1: missing key 'workspaces'"]


def test_layers_are_left_of_a_precision_that_is_built(problems: Problems) -> None:
    """Names for int8 where nothing is int8 would change nothing; a name that is there twice is a mistake."""
    text = MATRIX + "precisions: [fp32, fp8]\nleave_unquantized: {int8: [conv], fp8: [a, a]}\n"
    assert problems(text) == [
        "4:27: `leave_unquantized.int8` needs int8 in `precisions`; add it or remove the layers",
        "4:44: `leave_unquantized.fp8` lists the same entry twice: a; remove one of them",
    ]


def test_cross_checks_come_with_the_yamls_own_problems(problems: Problems) -> None:
    """A duplicate key does not hide a batch that lies in no profile."""
    assert problems("profiles: [1]\nworkspaces: [1GiB]\nbenchmark: {batches: [8]}\nworkspaces: [2GiB]\n") == [
        "3:23: batch 8 lies in none of the profiles b1; remove it or add a profile that holds it",
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
    """Bytes that are not UTF-8 are reported with their position."""
    file = tmp_path / "pipeline.yaml"
    file.write_bytes(b"\xff\xfe" + MATRIX.encode("utf-16-le"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert caught.value.problems == (f"{file}:1:1: not UTF-8 text: invalid start byte at byte 0; save it as UTF-8",)


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
    """Any value at any key gives a configuration or problems with a position, never another error."""
    document = dict(_SOUND)
    document[where[0]] = value if len(where) == 1 else {where[1]: value}
    file = tmp_path_factory.getbasetemp() / "any-value.yaml"
    file.write_text(yaml.safe_dump(document))
    assert _unpositioned(file) == []


@given(st.text(max_size=100))
@settings(deadline=None)
def test_any_text_is_accepted_or_refused_with_a_position(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Any text gives a configuration or problems with a position, never another error."""
    file = tmp_path_factory.getbasetemp() / "any-text.yaml"
    file.write_text(MATRIX + text, encoding="utf-8")
    assert _unpositioned(file) == []


@given(data=st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_accepted_or_refused_with_a_position(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    """Any bytes give a configuration or problems with a position, never another error."""
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
    "quantization": st.fixed_dictionaries({"calibration": st.sampled_from(["auto", "max", "mse", "99.9%", "100%", 5])}),
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
def test_every_document_plans_or_is_refused_with_a_position(tmp_path: Path, part: Part) -> None:
    """Each document has a plan with all required steps, in every spelling, or a problem with a position.

    An accepted configuration is accepted again in its full form. Many documents are accepted, and many are refused.
    """
    file, seen = tmp_path / "document.yaml", {"accepted": 0, "refused": 0}

    @given(document=_documents())
    @settings(deadline=None, max_examples=part.number(2000, 200))
    def check(document: dict[str, Any]) -> None:
        file.write_text(_written(document, flow=False))
        assert _unpositioned(file) == []
        try:
            config = load_config(file)
        except ConfigError:
            seen["refused"] += 1
            return
        seen["accepted"] += 1
        schedule = schedule_of(Plan(config, host(H100)))
        assert all(set(schedule.dependencies(step).requires) <= set(schedule.steps) for step in schedule.steps)
        file.write_text(_written(document, flow=True))
        assert load_config(file) == config
        sizes = [size.text for size in config.workspaces]
        in_full = config.model_dump(mode="json", exclude_none=True) | {"workspaces": sizes}
        file.write_text(_written(in_full, flow=False))
        assert load_config(file) == config

    check()
    assert min(seen.values()) > 0.1 * sum(seen.values())


# What a build is held against.


def test_share_of_memory_takes_a_gpu(problems: Problems, load: Callable[[str], Config]) -> None:
    """A share is of the memory of each target's own GPU; a target without a GPU has none."""
    text = "profiles: [1]\nworkspaces: [25%]\nexecutor: ray\nfarm: {targets: [{flavour: tensorrt_rtx}]}\n"
    assert problems(text) == [
        (
            "4:18: workspace '25%' is a share of a GPU's memory, and this target has no GPU; "
            "set `accelerator`, or give the workspace in bytes"
        )
    ]
    assert load(text.replace("{flavour: tensorrt_rtx}", ON_H100)).farm_targets[0].worker_kind == "H100 with tensorrt"
