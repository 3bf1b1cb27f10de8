"""A module of several sizes is refused whose network goes another way through forward at some size, and only then."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import BuildError
from model_artifacts.records import Backend, Precision
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.build.module import request_of
from pipeline.stages.build.sizes import outputs_with_axes, require_every_way
from pipeline.stages.build.spec import has_ways
from pipeline.stages.source.stage import make_source
from tests.support import asking, branching, texts
from tests.support.hosts import H100, host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.adapters.torch_tensorrt_builder import ModuleRequest

LINE = r"the module's trace computes something else.*in a batch of {batch}{sizes}\n.*forward: branching.py:"


def requested(file: Path, precision: Precision = Precision.FP16) -> tuple[Project, ModuleRequest]:
    """Return a project with its source on a host with an H100, and the request of its module with ranges."""
    found = Project.load(file, STAGES)
    make_source(found)
    project = Project(Plan(found.config, host(H100)), found.paths, STAGES)
    wanted = (Backend.DYNAMO, precision)
    variant = next(
        item for item in project.plan.variants if (item.backend, item.precision) == wanted and has_ways(item)
    )
    return project, request_of(project, variant, H100)


PART = r"the model does not take every size in its ranges\n.*height 16 to 32, width 16 to 30.*{says}"


@pytest.mark.parametrize(
    ("network", "says"),
    [
        *((name, LINE.format(batch=2, sizes=sizes)) for name, sizes in branching.OTHER_WAYS),
        ("OddWidth", LINE.format(batch=2, sizes=", height 25, width 23")),
        ("Tall", PART.format(says="<= 26")),
        ("Square", PART.format(says="must always be equal")),
        ("Upright", LINE.format(batch=2, sizes=", height 32, width 30")),
        ("Pixels", LINE.format(batch="[2-4]", sizes=", height 20, width 30")),
        ("Counted", PART.format(says="24 <= ")),
        ("CountedBatch", PART.format(says="[Bb]atch")),
        ("Mapped", "too many ways through forward"),
        ("Stops", r"takes no images of height 17\n.*an even height, please"),
        ("Crowded", r"too many ways.*branching.py:.*at most 16 ways.*another one for height 32"),
    ],
    ids=lambda value: value if value.isalpha() else "message",
)
def test_another_way_at_some_size_is_refused(write_config: Callable[[str], Path], network: str, says: str) -> None:
    """The message has the size and the line of code, as for an ONNX file."""
    project, request = requested(write_config(branching.configuration(network)))
    with pytest.raises(BuildError, match=f"(?s){says}"):
        require_every_way(project, request)


@pytest.mark.parametrize(("network", "place"), asking.OTHER_WAYS, ids=lambda value: value if value.isalpha() else "")
def test_another_way_that_a_trace_hides_is_refused(
    write_config: Callable[[str], Path], network: str, place: str
) -> None:
    """A trace has other texts and types of sizes than a run, and knows that it is one."""
    project, request = requested(write_config(branching.configuration(f"asking:{network}", asking.NARROW)))
    with pytest.raises(BuildError, match=f"(?s)something else.*in a batch of 2{place}\n.*forward: asking.py:"):
        require_every_way(project, request)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("Text", r"too many ways.*asking.py:\d+: .*str\(image.shape\[2\]\).*another one for height 32"),
        ("Telling", ""),
        ("Typing", ""),
    ],
    ids=["text", "messages", "types"],
)
def test_a_text_alone_counts_as_a_way_of_each_size(
    write_config: Callable[[str], Path], network: str, says: str
) -> None:
    """Of the 17 heights one is too many. A message is no way, and neither is a question for a type."""
    project, request = requested(write_config(branching.configuration(f"asking:{network}")))
    with pytest.raises(BuildError, match=f"(?s){says}") if says else nullcontext():
        require_every_way(project, request)


@pytest.mark.parametrize(("network", "refused"), [("Narrow", True), ("NarrowValue", True), ("NarrowSound", False)])
def test_a_way_of_a_narrow_type_alone_is_compared_in_it(
    write_config: Callable[[str], Path],
    network: str,
    refused: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    """In FP32 the network computes the same at each size."""
    project, request = requested(write_config(branching.configuration(f"asking:{network}")))
    says = r"(?s)the network's trace computes.*fp16, in a batch of 2, height 20\n.*in FP16.*forward: asking.py:"
    with pytest.raises(BuildError, match=says) if refused else nullcontext():
        require_every_way(project, request)


@pytest.mark.parametrize(
    "network", ["Branching", "Sound", "Tabled", "Chosen", "Conditional", "Resized", "OneBatch", "LargeBatch"]
)
def test_a_network_that_computes_the_same_at_each_size_is_taken(
    write_config: Callable[[str], Path], network: str
) -> None:
    """Other ways in batches of 9 and 500 count for no module that takes 4 at most; an ONNX file takes any."""
    project, request = requested(write_config(branching.configuration(network)))
    require_every_way(project, request)


def test_a_batch_of_the_profile_counts(write_config: Callable[[str], Path]) -> None:
    """A module that takes batches of 9 is refused for another way there."""
    text = branching.configuration("OneBatch").replace(f"max: {branching.BATCH}}}", "max: 12}")
    project, request = requested(write_config(text))
    with pytest.raises(BuildError, match=f"(?s){LINE.format(batch=9, sizes='')}"):
        require_every_way(project, request)


@pytest.mark.parametrize(
    ("network", "says"), [("Sound", ""), ("IdenticalBatch", "computes something else.* batch of 9")]
)
def test_a_range_of_batches_alone_is_compared(write_config: Callable[[str], Path], network: str, says: str) -> None:
    """A batch between the ends may go another way, too, which no gate would run."""
    text = branching.configuration(network, axes="").replace(f"max: {branching.BATCH}}}", "max: 12}")
    project, request = requested(write_config(text))
    with pytest.raises(BuildError, match=f"(?s){says}") if says else nullcontext():
        require_every_way(project, request)


@pytest.mark.parametrize(
    "batch",
    ["1", "8", "{min: 3, opt: 4, max: 5}", "80", "{min: 80, opt: 80, max: 96}"],
    ids=["one", "fixed", "range", "large", "large range"],
)
@pytest.mark.parametrize(("network", "refused"), [("Resized", False), ("OneHeight", True)])
def test_the_batches_are_those_of_the_profile(
    write_config: Callable[[str], Path],
    batch: str,
    network: str,
    refused: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    """A trace of one batch runs no other one, and is compared in it, though it is larger than those of a graph."""
    text = re.sub(r"batch: \{.*?\}", f"batch: {batch}", branching.configuration(network))
    project, request = requested(write_config(text))
    with pytest.raises(BuildError, match="height 20") if refused else nullcontext():
        require_every_way(project, request)


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("Texts", ""),
        ("Windows", ""),
        ("OneOther", r"computes something else.*in a batch of 2, sequence 20\n.*texts.py:\d+: .*length != LONGEST - 4"),
        ("Counted", "does not take every size.*sequence 4 to 24"),
    ],
    ids=["sound", "windows", "one length", "a number"],
)
def test_texts_are_looked_at_by_their_length(tmp_path: Path, network: str, says: str) -> None:
    """Both inputs share it. torch takes the windows in FP32 alone: in FP16 its trace holds from length 9 on."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(texts.configuration(texts.write_texts(tmp_path), network))
    project, request = requested(file, Precision.FP32)
    with pytest.raises(BuildError, match=f"(?s){says}") if says else nullcontext():
        require_every_way(project, request)


def test_outputs_that_follow_as_no_task_allows_are_refused(tmp_path: Path) -> None:
    """Vectors of two lengths have no common space."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(texts.configuration(texts.write_texts(tmp_path), "Wide"))
    project, request = requested(file)
    with pytest.raises(BuildError, match="gives other outputs for samples of sequence 4"):
        outputs_with_axes(project, request)
