"""The files that a factory reads: noted while it runs, and part of the source's key."""

from __future__ import annotations

import importlib
import py_compile
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pipeline
from model_artifacts.errors import SourceError
from pipeline.planning.freshness import freshness_of
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from pipeline.stages.source.reads import noted_reads
from pipeline.stages.source.stage import make_source
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import Callable

STATE = {"weight": torch.ones(2, 3)}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def program() -> None:
    """Save a TorchScript program."""
    trace: Any = torch.jit.trace  # untyped
    trace(nn.Linear(3, 2), torch.zeros(1, 3)).save("weights.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda: torch.save(STATE, "weights.pth"), lambda: torch.load("weights.pth")),
        (lambda: torch.save(STATE, "weights.pth"), lambda: torch.load(Path.cwd() / "weights.pth", mmap=True)),
        (lambda: save_file(STATE, "weights.safetensors"), lambda: load_file("weights.safetensors")),
        (lambda: save_file(STATE, "weights.safetensors"), lambda: load_file(filename=Path("weights.safetensors"))),
        (program, lambda: vars(torch.jit)["load"]("weights.pt")),  # untyped
        (lambda: np.save("weights.npy", [1.0]), lambda: np.load("weights.npy")),
        (lambda: np.save("weights.npy", [1.0]), lambda: np.load("weights.npy", mmap_mode="r+")),
        (lambda: Path("names.txt").write_text("cat"), lambda: Path("names.txt").read_text()),
    ],
)
def test_a_file_that_is_read_is_noted(write: Callable[[], object], read: Callable[[], object]) -> None:
    """Whatever library reads a file, from whichever thread, it is noted by its path from here."""
    write()
    (file,) = Path().iterdir()

    with noted_reads() as noted, ThreadPoolExecutor(1) as pool:
        pool.submit(read).result()

    assert [item.path for item in noted.records("model:make", ())] == [file.name]


def test_what_is_no_input_is_left_out(tmp_path: Path) -> None:
    """Known code, installed packages, files of the pipeline's own, what is written, and what is gone are no inputs."""
    Path("model.py").write_text("from code_of_model import x")
    Path("code_of_model.py").write_text("x = 1")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/own").touch()
    Path("gone").touch()
    Path("cache").touch()

    with noted_reads() as noted:
        for file in (
            Path("model.py"),
            Path("code_of_model.py"),
            Path(pipeline.__file__),
            Path(np.__file__),
            tmp_path / "artifacts/own",
            Path("gone"),
            Path("cache"),
        ):
            file.read_bytes()
        Path("gone").unlink()
        Path("cache").write_text("new")
        Path("log").write_text("new")

    assert noted.records("model:make", (tmp_path / "artifacts",)) == ()


COMPUTED = [
    "__import__('importlib').import_module('_'.join(['plugin', 'of', 'model'])).make()",
    "__import__('runpy').run_path('plugin_of_model.py')['make']()",
    "exec(__import__('pathlib').Path('plugin_of_model.py').read_text(), globals()) or make()",
]


@pytest.mark.parametrize("call", COMPUTED)
@pytest.mark.parametrize("compiled", [False, True])
def test_code_that_is_imported_by_a_computed_name_is_noted(
    here: Path,
    call: str,
    compiled: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A module that no import names is noted by its source, also where Python reads its compiled form."""
    (here / "plugin_of_model.py").write_text("def make(): return 1\n")
    if compiled:
        py_compile.compile("plugin_of_model.py", doraise=True)
    sys.modules.pop("plugin_of_model", None)
    importlib.invalidate_caches()

    with noted_reads() as noted:
        eval(call, {})  # noqa: S307 - the test's own text

    assert [item.path for item in noted.records("model:make", ())] == ["plugin_of_model.py"]


def test_nothing_is_noted_outside_the_block() -> None:
    """Files that are read before or after are not noted."""
    Path("before").touch()
    Path("before").read_bytes()
    with noted_reads() as noted:
        pass
    Path("before").read_bytes()

    assert noted.records("model:make", ()) == ()


def test_a_file_that_changes_while_it_is_read() -> None:
    """A file that training writes at the same moment is refused: nobody knows which of its bytes were read."""
    Path("best.pth").write_bytes(b"one")
    with noted_reads() as noted:
        Path("best.pth").read_bytes()
    Path("best.pth").write_bytes(b"other")

    with pytest.raises(SourceError, match=r"(?s)changed while.*best\.pth"):
        noted.records("model:make", ())


FACTORY = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))
    net.load_state_dict(torch.load({path!r}))
    return net
"""


def train(file: Path, value: float) -> None:
    """Save weights."""
    torch.save({"2.weight": torch.full((3, 48), value), "2.bias": torch.zeros(3)}, file)


@pytest.mark.parametrize("inside", [True, False])
def test_retraining_makes_the_source_stale(
    here: Path, tmp_path: Path, write_config: Callable[[str], Path], *, inside: bool
) -> None:
    """A factory that loads its weights is called again once their file has changed, wherever it lies."""
    file = Path("best.pth") if inside else tmp_path / "best.pth"
    name = f"{'inside' if inside else 'outside'}_reading_factory"
    (here / f"{name}.py").write_text(FACTORY.format(path=str(file)))
    train(file, 1.0)
    project = Project.load(write_config(factories.configuration(f"{name}:make")), STAGES)
    step = Step("source", "tiny")
    before = make_source(project)
    assert freshness_of(project, step).is_current

    train(file, 2.0)
    assert freshness_of(project, step).reasons == ("reads.best.pth changed",)
    after = make_source(project)

    assert after.key.digest != before.key.digest
    assert after.weights.sha256 != before.weights.sha256
    assert freshness_of(project, step).is_current
    file.unlink()
    assert freshness_of(project, step).is_current is not inside
