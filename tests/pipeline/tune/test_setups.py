"""Folders of points with choices, and configurations of one variant alone: the same variants with the same keys."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import UsageError
from model_artifacts.records import Backend, EngineFlavour, Graph, Precision
from pipeline.config.loading import load_config
from pipeline.config.quantization import Placement
from pipeline.config.tensorrt import TensorRTConfig
from pipeline.planning.folder.owner import check_owner, claim
from pipeline.planning.freshness import is_current
from pipeline.planning.keys import key_of
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from pipeline.tune.records import STREAM_SETTING, Choice, Point, TuneRecord
from pipeline.tune.setups import Setups, name_of, narrowed, values_of
from pipeline.tune.space import PROPOSED
from tests.conftest import TINY
from tests.support.plans import config_of, engines_of, plan_of
from tests.support.searches import LEVEL, STREAMS

if TYPE_CHECKING:
    from pathlib import Path

ENGINE = "tiny/rtx-sm80+/fp32-b1-ws16MiB"
RANGE = {"min": 1, "opt": 8, "max": 32}
SIDES = {"height": {"min": 32, "opt": 64, "max": 96}, "width": {"min": 64, "opt": 64, "max": 128}}
INT8 = "tiny/cpu-x86_64/onnxruntime-int8-cpu"
LAST = Choice(setting="quantization.last", value=True)
LAYERS = Choice(setting="leave_unquantized.int8", value=("a", "b"))


@pytest.fixture
def setups(searched: Project, tmp_path: Path) -> Setups:
    """The setups of the search, whose new folders lie elsewhere."""
    paths = replace(searched.paths)
    link = tmp_path / "artifacts"
    link.mkdir()
    for path in paths.root.iterdir():
        if path.name != "tiny":
            (link / path.name).symlink_to(path)
    (link / "tiny").mkdir()
    for path in paths.folder.iterdir():
        if path.name != "tune":
            (link / "tiny" / path.name).symlink_to(path)
    return Setups(replace(searched, paths=replace(paths, root=link)))


def test_without_choices_a_point_is_in_the_configurations_own_folder(setups: Setups) -> None:
    """What `doit` has built is taken."""
    assert setups.place(Point(subject=ENGINE)).project is setups.base


def test_a_choice_has_a_folder_whose_model_and_graphs_are_those_of_the_configuration(setups: Setups) -> None:
    """Nothing before the build is stale there, and the choice is in the key of the build alone."""
    project, variant = setups.place(Point(subject=ENGINE, choices=(STREAMS,)))
    assert project.paths.root.parent.name == name_of((STREAMS,))
    assert project.config.tensorrt.max_aux_streams == 0
    for step in (*project.schedule.of("source"), *project.schedule.of("data"), *project.schedule.of("export")):
        assert is_current(project, step)
    step = Step("build", variant.id)
    before, now = ({field.name: field.value for field in key_of(at, step).fields} for at in (setups.base, project))
    assert {name for name in before if before[name] != now[name]} == {"settings"}
    assert not is_current(project, step)


def test_points_of_one_attempt_share_its_timings_with_the_configuration(setups: Setups) -> None:
    """So the winner's own pipeline.yaml, in the configuration's folder, finds the timings that its engine had."""
    attempt = Choice(setting="tensorrt.attempt", value=2)
    caches = []
    for choices in ((attempt,), (attempt, STREAMS), (STREAMS,)):
        project = setups.project(choices)
        settings = project.config.tensorrt
        caches.append(project.paths.timing_cache(EngineFlavour.TENSORRT, "10.6.0", None, settings).resolve())
    at_base = partial(setups.base.paths.timing_cache, EngineFlavour.TENSORRT, "10.6.0", None)
    assert caches == [at_base(TensorRTConfig(attempt=number)).resolve() for number in (2, 2, 1)]
    assert len(set(caches)) == 2


@pytest.mark.parametrize(
    ("choices", "refused"),
    [((LAST,), False), ((LAST, LAYERS), False), ((LAYERS,), True), ((STREAMS,), True)],
    ids=["pairs", "pairs and layers", "layers alone", "builder"],
)
def test_a_point_with_other_pairs_goes_on_by_hand(
    tmp_path: Path, choices: tuple[Choice, ...], *, refused: bool
) -> None:
    """Its quantised graphs are its own; one with links to those of the configuration is refused once they change."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(TINY)
    base = Project.load(file, STAGES)
    claim(base)
    base.paths.onnx_record(Graph.INT8).parent.mkdir(parents=True)
    base.paths.onnx_record(Graph.INT8).touch()
    point = Setups(base).project(choices)
    check_owner(point)
    file.write_text(TINY + "quantization: {calibration: mse}\n")
    if refused:
        with pytest.raises(UsageError, match="other `quantization`"):
            check_owner(point)
    else:
        check_owner(point)


def test_a_point_is_refused_once_its_configuration_has_other_images(tmp_path: Path) -> None:
    """Run by hand, it would write its former images through the link into those of the configuration."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(TINY)
    base = Project.load(file, STAGES)
    claim(base)
    for choices in ((STREAMS,), (LAYERS,)):
        file.write_text(TINY)
        point = Setups(base).project(choices)
        check_owner(point)
        file.write_text(TINY.replace("validation: 100", "validation: 90"))
        with pytest.raises(UsageError, match=r"(?s)would overwrite results of .*through the link.*other `data`"):
            check_owner(point)


def test_layers_left_in_fp16_have_graphs_of_their_own(setups: Setups) -> None:
    """The plain ones are links, and no mixed graph of another point is."""
    project = setups.project((LAYERS,))
    links = {path.name for path in (project.paths.folder / "onnx").iterdir()}
    assert {"fp32.onnx", "int8.onnx"} <= links
    assert not any("mixed" in name for name in links)
    assert not (project.paths.folder / "onnx").is_symlink()


def test_pairs_and_ranges_have_graphs_of_their_own(setups: Setups) -> None:
    """All quantised graphs and their rounding are made again there, and nothing before them; the choice is read."""
    project, variant = setups.place(Point(subject=INT8, choices=(LAST,)))
    assert project.config.quantization.last
    for folder in ("onnx", "rounding"):
        files = {path.name for path in (project.paths.folder / folder).iterdir()}
        assert "fp32.json" in files
        assert not any(name.startswith("int8") for name in files)
    assert is_current(project, project.plan.graph_step(Graph.FP32))
    assert not is_current(project, project.plan.graph_step(Graph.INT8_CPU))
    assert key_of(project, Step("export", "tiny/fp32")) == key_of(setups.base, Step("export", "tiny/fp32"))
    assert variant.graph is Graph.INT8_CPU


def test_rewrites_have_all_graphs_for_themselves(setups: Setups) -> None:
    """The export is made again, and what is made of it; the rounding of a cast is the network's own, and a link."""
    project = setups.project((Choice(setting="rewrites.channels", value=4),))
    check_owner(project)
    assert project.config.rewrites.channels == 4
    assert [*(project.paths.folder / "onnx").iterdir()] == []
    files = {path.name for path in (project.paths.folder / "rounding").iterdir()}
    assert "fp32.json" in files
    assert not any(name.startswith("int8") for name in files)
    assert not is_current(project, project.plan.graph_step(Graph.FP32))
    assert (project.paths.folder / "data").is_symlink()


def test_proposals_are_shared_by_all_graphs(copied_search: Project) -> None:
    """They are of the FP32 graph, which no choice changes, although their names begin like those of its results."""
    proposal = copied_search.paths.proposal(Graph.INT8)
    proposal.write_text("{}")
    project = Setups(copied_search).project((PROPOSED,))
    assert project.config.quantization.placement is Placement.MODEL_OPTIMIZER
    assert project.paths.proposal(Graph.INT8).resolve() == proposal.resolve()
    assert not project.paths.onnx_record(Graph.INT8).exists()


def test_a_winner_without_quantised_graphs_has_no_settings_of_them() -> None:
    """They would be refused beside fp16 alone; int8 keeps them."""
    config = config_of(precisions=["fp16", "int8"], quantization={"calibration": "mse"})
    for variant in Plan(config).variants:
        if variant.backend is Backend.TENSORRT:
            dropped = narrowed(config, variant).dropped
            assert ("quantization" in dropped) == (variant.precision is Precision.FP16)


def test_a_winner_in_fp8_has_no_head_of_int8() -> None:
    """`quantization.head` would be refused beside fp8 alone; int8 keeps it."""
    config = config_of(precisions=["int8", "fp8"], quantization={"head": "float16", "calibration": "mse"})
    for variant in engines_of(Plan(config)):
        dropped = narrowed(config, variant).dropped
        assert ("quantization.head" in dropped) == (variant.precision is Precision.FP8)
        assert "quantization" not in dropped


def test_a_second_look_writes_nothing(setups: Setups) -> None:
    """A search that goes on finds its folders as they are."""
    file = setups.project((STREAMS,)).config_file
    before = file.stat().st_mtime_ns
    assert setups.project((STREAMS,)).config_file.stat().st_mtime_ns == before


def test_a_point_of_another_plan_is_refused(setups: Setups) -> None:
    """The configuration has lost that variant since."""
    with pytest.raises(UsageError, match="no variant"):
        setups.place(Point(subject="tiny/cpu-x86_64/onnxruntime-fp8"))


def test_names_tell_the_choices_and_differ() -> None:
    """Two lists of as many layers have two names."""
    assert name_of((STREAMS, LEVEL)).startswith("max_aux_streams-0-optimization_level-5-")
    other = LAYERS.model_copy(update={"value": ("a", "c")})
    assert name_of((LAYERS,)).startswith("int8-2-")
    assert name_of((LAYERS,)) != name_of((other,))
    assert values_of((LAYERS,)) == {"leave_unquantized.int8": ["a", "b"]}


@pytest.mark.parametrize("choices", [(), (STREAMS,)], ids=["plain", "a choice"])
def test_one_variant_alone_has_the_same_key(setups: Setups, tmp_path: Path, choices: tuple[Choice, ...]) -> None:
    """The configuration that `doit tune` writes for a winner plans the variant that has won."""
    place = setups.place(Point(subject=ENGINE, choices=choices))
    file = tmp_path / "winner.yaml"
    file.write_text(setups.narrowed_text(place, choices, "a comment"))
    alone = Plan(load_config(file, setups.base.plan.host), setups.base.plan.host)
    own = replace(place.project, plan=alone)
    assert [item.id for item in alone.variants if item.target == "rtx-sm80+"] == [ENGINE]
    step = Step("build", ENGINE)
    assert key_of(own, step) == key_of(place.project, step)


def test_every_winner_is_rebuilt_by_its_own_file(searched: Project) -> None:
    """Its variant is planned there with the keys of the artifact and of the accuracy that have won."""
    record = searched.read(searched.paths.tune / "tune.json", TuneRecord)
    assert record.answers
    for answer in record.answers:
        winner = answer.standings[0].point
        file = searched.paths.root / answer.snippet
        place = Setups(searched).place(winner)
        found = replace(place.project, plan=Plan(load_config(file, searched.plan.host), searched.plan.host))
        variant = found.plan.variant(winner.subject)
        assert key_of(found, Step("build", variant.id)) == place.project.artifact(variant).key
        assert key_of(found, Step("validate", variant.id)) == place.project.accuracy(variant).key


def test_a_matrix_is_narrowed_to_one_variant() -> None:
    """Of several precisions, ranges, workspaces, inputs and modules; batches that it does not take are left out."""
    config = config_of(
        precisions=["fp16", "int8", "fp8"],
        profiles=[1, {"min": 1, "opt": 8, "max": 32}],
        workspaces=["1GiB", "2GiB"],
        io=[{}, {"input": "uint8", "output": "top5"}],
        benchmark={"batches": [1, 32]},
    )
    variant = Plan(config).variant("m/rtx-sm80+/fp16-b1-ws2GiB-uint8-top5")
    values, dropped = narrowed(config, variant)
    assert values == {
        "precisions": ["fp16"],
        "profiles": [1],
        "workspaces": ["2GiB"],
        "io": [{"input": "uint8", "output": "top5"}],
        "benchmark.batches": [1],
    }
    assert {"leave_unquantized.int8", "leave_unquantized.fp8", "torch_tensorrt.profiles"} <= {*dropped}


@pytest.mark.parametrize(
    "profile",
    [8, RANGE, {"sizes": [1, 8]}, {"batch": 8, **SIDES}, {"batch": RANGE, **SIDES}],
    ids=["fixed", "range", "sizes", "fixed with axes", "range with axes"],
)
def test_a_batch_range_is_written_as_it_was(profile: object) -> None:
    """A fixed one, a range, one with a profile for each size, and those with a height and a width."""
    config = config_of(profiles=[profile])
    engine = engines_of(Plan(config))[0]
    assert narrowed(config, engine).values["profiles"] == [profile]


def test_a_module_keeps_its_precision() -> None:
    """Torch-TensorRT's precisions are those of the matrix that casts."""
    config = config_of(precisions=["fp32", "fp16"])
    variant = next(item for item in plan_of(precisions=["fp32", "fp16"]).variants if item.backend.is_torch_tensorrt)
    values, dropped = narrowed(config, variant)
    assert values["torch_tensorrt.precisions"] == [variant.precision.value]
    assert "torch_tensorrt.precisions" not in dropped


def test_another_number_of_streams_needs_no_folder(setups: Setups) -> None:
    """Nothing that is built changes by it: the artifact is the same, and only its timing has another key."""
    point = Point(subject=ENGINE)
    eight = point.with_choice(Choice(setting=STREAM_SETTING, value=8))
    plain, other = setups.place(point), setups.place(eight)
    assert other.project.config.benchmark.streams == 8 != plain.project.config.benchmark.streams
    assert other.variant == plain.variant
    assert other.project.paths == plain.project.paths
    text = setups.narrowed_text(other, eight.choices, "the winner")
    assert "streams: 8" in text
