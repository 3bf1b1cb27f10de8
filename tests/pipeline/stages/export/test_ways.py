"""A graph is refused whose network goes another way through forward at some size, and only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from model_artifacts.errors import ExportError, SourceError
from model_artifacts.records import Graph
from model_artifacts.sessions.arithmetic import relative_l2
from model_artifacts.sessions.onnx import stand_in
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.common.model import restore_model
from pipeline.stages.export.stage import make_onnx
from pipeline.stages.source.stage import make_source
from tests.support import asking, branching, texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINE = (
    r"(?s)something else than the network.*in a batch of {batch}{sizes}\n.*another way through forward: branching.py:"
)


def sourced(file: Path) -> Project:
    """Return a project that has been through the source stage."""
    project = Project.load(file, STAGES)
    make_source(project)
    return project


@pytest.mark.parametrize(
    ("network", "says"),
    [
        *((name, LINE.format(batch=2, sizes=sizes)) for name, sizes in branching.OTHER_WAYS),
        ("OddWidth", LINE.format(batch=1, sizes=", height 25, width 23")),
        ("Tall", r"every height in its range.*another way through forward outside of 16 to 26"),
        ("OneBatch", LINE.format(batch=9, sizes="")),
        ("LargeBatch", r"may depend on the batch size.*branching.py:.*another one for a batch of 500"),
        ("Square", r"every height in its range.*outside of 16 to 30"),
        ("Upright", LINE.format(batch=1, sizes=", height 32, width 30")),
        ("Pixels", LINE.format(batch="[2-9]", sizes=", height 20, width 30")),
        ("Identical", LINE.format(batch=2, sizes=", height 20")),
        ("Guarded", LINE.format(batch=2, sizes=", height 20")),
        ("Known", LINE.format(batch=2, sizes=", height 20")),
        ("Counted", "every height in its range"),
        ("CountedBatch", "one batch size only"),
        ("Mapped", "too many ways through forward"),
        ("Stops", r"takes no images of height 25, width 23.*an even height, please"),
        ("Crowded", r"too many ways.*branching.py:.*at most 16 ways.*another one for height 32.*counts as one"),
    ],
    ids=lambda value: value if value.isalpha() else "message",
)
def test_another_way_at_some_size_is_refused(write_config: Callable[[str], Path], network: str, says: str) -> None:
    """The message has the size and the line of code, and no file is left."""
    project = sourced(write_config(branching.configuration(network)))
    with pytest.raises(ExportError, match=f"(?s){says.removeprefix('(?s)')}"):
        make_onnx(project, restore_model(project), Graph.FP32)
    assert not project.paths.onnx(Graph.FP32).exists()


@pytest.mark.parametrize("network", ["Branching", "Sound", "Chosen", "Conditional", "Resized"])
def test_a_graph_that_holds_every_way_computes_the_same_at_every_size(
    write_config: Callable[[str], Path], network: str
) -> None:
    """Of the sizes of the ranges none is left out here, and the batches are another one at each."""
    project = sourced(write_config(branching.configuration(network)))
    record = make_onnx(project, restore_model(project), Graph.FP32)
    model, run = restore_model(project), stand_in(project.file(record.file).read_bytes())
    rng = np.random.default_rng(0)
    worst = {}
    for height in range(16, 33):
        for width in range(16, 31):
            images = rng.normal(size=(1 + (height + width) % 5, 3, height, width)).astype(np.float32)
            with torch.inference_mode():
                expected = model(torch.from_numpy(images))
            worst[height, width] = relative_l2(torch.from_numpy(run(images)), expected)
    assert len(worst) == 17 * 15
    assert max(worst.values()) < 1e-5


@pytest.mark.parametrize("network", ["Looked", "Exact", "Untraced"])
def test_another_way_that_a_trace_hides_is_refused(write_config: Callable[[str], Path], network: str) -> None:
    """A trace has other texts and types of sizes than a run, and knows that it is one."""
    project = sourced(write_config(branching.configuration(f"asking:{network}", asking.NARROW)))
    line = LINE.format(batch=2, sizes=", height 20").replace("branching", "asking")
    with pytest.raises(ExportError, match=line):
        make_onnx(project, restore_model(project), Graph.FP32)


@pytest.mark.parametrize("network", ["Telling", "Typing"])
def test_messages_and_types_are_no_other_way(write_config: Callable[[str], Path], network: str) -> None:
    """Sizes in a log, in a label and in the text of an assertion decide nothing."""
    project = sourced(write_config(branching.configuration(f"asking:{network}")))
    assert make_onnx(project, restore_model(project), Graph.FP32).graph is Graph.FP32


def test_a_narrow_graph_is_refused_by_itself(write_config: Callable[[str], Path]) -> None:
    """Without an FP32 graph, which is not current after its refusal, a narrow one is looked at in FP32."""
    project = sourced(write_config(branching.configuration("OneHeight")))
    with pytest.raises(ExportError, match=LINE.format(batch=2, sizes=", height 20")):
        make_onnx(project, restore_model(project), Graph.FP16)


def test_a_narrow_graph_takes_the_word_of_a_current_one(
    write_config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sizes are compared once for all precisions."""
    project = sourced(write_config(branching.configuration("Sound")))
    make_onnx(project, restore_model(project), Graph.FP32)

    def never(*_: object) -> None:
        raise AssertionError("compared again")

    monkeypatch.setattr("pipeline.stages.export.ways.require_agreement", never)
    assert make_onnx(project, restore_model(project), Graph.FP16).graph is Graph.FP16


def narrow(network: str) -> str:
    """Return the configuration of a network with graphs in both narrow types."""
    return branching.configuration(network).replace("[fp32, fp16]", "[fp32, fp16, bf16]")


def test_a_narrow_graph_is_refused_for_a_way_of_its_own(write_config: Callable[[str], Path]) -> None:
    """The FP32 graph is current, and right at each size."""
    project = sourced(write_config(narrow("asking:Narrow")))
    make_onnx(project, restore_model(project), Graph.FP32)
    for graph in (Graph.FP16, Graph.BF16):
        says = rf"(?s)something else.*{graph.value}, in a batch of 2, height 20\n.*in {graph.value.upper()}.*asking.py:"
        with pytest.raises(ExportError, match=says):
            make_onnx(project, restore_model(project), graph)


def test_a_narrow_graph_may_go_ways_of_its_own(write_config: Callable[[str], Path]) -> None:
    """Those that compute the same."""
    project = sourced(write_config(narrow("asking:NarrowSound")))
    assert make_onnx(project, restore_model(project), Graph.BF16).graph is Graph.BF16


def test_a_batch_alone_is_looked_at(write_config: Callable[[str], Path]) -> None:
    """Without other axes a network is refused by its batch, and by no size of its images."""
    project = sourced(write_config(branching.configuration("OneBatch", "")))
    with pytest.raises(ExportError, match=LINE.format(batch=9, sizes="")):
        make_onnx(project, restore_model(project), Graph.FP32)
    other = sourced(write_config(branching.configuration("OneHeight", "")))
    assert make_onnx(other, restore_model(other), Graph.FP32).graph is Graph.FP32


def test_another_way_at_one_length_is_refused(tmp_path: Path) -> None:
    """20 lies between the lengths that are checked, 4, 12, 15 and 24: issue 26's last wrong graph."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(texts.configuration(texts.write_texts(tmp_path), "OneOther"))
    project = sourced(file)
    with pytest.raises(ExportError, match=r"(?s)in a batch of 2, sequence 20\n.*texts.py:\d+: .*length != LONGEST - 4"):
        make_onnx(project, restore_model(project), Graph.FP32)


def test_windows_of_any_length_are_sound(tmp_path: Path) -> None:
    """A network that pads a text to whole windows computes the same at each length."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(texts.configuration(texts.write_texts(tmp_path), "Windows"))
    project = sourced(file)
    for graph in (Graph.FP32, Graph.FP16):
        assert make_onnx(project, restore_model(project), graph).graph is graph


@pytest.mark.parametrize("network", ["Tabled", "Growing"])
def test_a_table_of_the_last_length_is_no_part_of_the_graph(tmp_path: Path, network: str) -> None:
    """The last length at which the network is looked at is its own one here, at which it is traced."""
    file = tmp_path / "pipeline.yaml"
    range_of = "{min: 23, opt: 24, max: 24}"
    file.write_text(texts.configuration(texts.write_texts(tmp_path), network, sequence=range_of))
    project = sourced(file)
    assert project.config.checked_sizes[-1] == (("sequence", texts.LONGEST),)
    assert make_onnx(project, restore_model(project), Graph.FP32).graph is Graph.FP32


def test_a_scripted_part_is_refused_before(write_config: Callable[[str], Path]) -> None:
    """TorchScript's own branches are in no trace: the source stage refuses its functions."""
    with pytest.raises(SourceError, match="calls a compiled function"):
        sourced(write_config(branching.configuration("Scripted")))
