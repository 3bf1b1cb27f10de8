"""The worker: commands, kept inputs, and refusals."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement

from model_artifacts import __version__
from model_artifacts.deployment.loading import this_host
from model_artifacts.errors import FarmError
from model_artifacts.host import environment
from model_artifacts.host.hashes import describe_bytes
from model_artifacts.host.record_files import write_record
from model_artifacts.records import DeploymentHost, Tool
from pipeline.cli.main import main
from pipeline.farm import worker
from pipeline.farm.incoming import Incoming
from pipeline.farm.parcels import SMALL_BYTES, Began, Completed, PrintedLine, Refused, read_message, this_package
from pipeline.planning.project import Project
from pipeline.records import FarmHost, FarmRecord
from pipeline.stages import STAGES
from tests.conftest import REPOSITORY
from tests.support.farm_steps import BUILD, ENGINE, FARM, NEEDS, command, followed, messages, packed, sent, working
from tests.support.hosts import H100, TRT10, host, workers

if TYPE_CHECKING:
    from collections.abc import Iterator


# A step travels, and comes back.


ONLY = """\
import re, sys
from importlib.machinery import PathFinder

class Only:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {modules} else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(*context):
        found = PathFinder.find_distributions(*context)
        return (item for item in found if re.sub("[-_.]+", "-", item.name).lower() in {packages})

sys.meta_path = [Only if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Hide from new processes all but `pip install "model-artifacts[tensorrt-rtx,onnxruntime-gpu,farm]"`."""
    there = brought_by("model-artifacts", "tensorrt-rtx", "onnxruntime-gpu", "farm")
    owners = importlib.metadata.packages_distributions().items()
    hidden = {module for module, names in owners if not {normalized(name) for name in names} & there}
    (tmp_path / "only").mkdir()
    (tmp_path / "only/sitecustomize.py").write_text(ONLY.format(modules=hidden, packages=there))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "only"), str(REPOSITORY)]))
    return hidden


def normalized(name: str) -> str:
    """Return a package's name as PyPI compares it."""
    return re.sub("[-_.]+", "-", name).lower()


def brought_by(package: str, *extras: str) -> set[str]:
    """Return the requirements of a package, with itself."""
    found: set[str] = set()
    left = [(normalized(package), extras)]
    while left:
        name, chosen = left.pop()
        found.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # for another Python
            for line in importlib.metadata.requires(name) or ():
                needed = Requirement(line)
                wanted = any(not needed.marker or needed.marker.evaluate({"extra": extra}) for extra in ("", *chosen))
                if wanted and normalized(needed.name) not in found:
                    left.append((normalized(needed.name), tuple(needed.extras)))
    return found


def test_worker_takes_what_its_extras_bring(project: Project, at_home: Path, without_torch: set[str]) -> None:
    """A worker with its extras alone, without torch and doit, describes itself and builds an engine."""
    assert at_home
    assert {"torch", "torchvision", "doit", "fsspec", "sklearn"} <= without_torch
    joins = "import pipeline.farm.cluster, sys; sys.exit('model_artifacts.releases.store' in sys.modules)"
    subprocess.run([sys.executable, "-c", joins], check=True)  # noqa: S603 - this repository's own code
    told = subprocess.run([sys.executable, "-m", "model_artifacts", "host"], check=True, capture_output=True, text=True)
    there = DeploymentHost.model_validate_json(told.stdout)
    assert there.host.torch == "absent"
    write_record(project.paths.farm, FarmRecord(hosts=(FarmHost(worker_kind=NEEDS, host=there),)))
    planned = Project.load(project.config_file, STAGES)
    status, said = followed(planned, sent(packed(planned)))
    assert status == 0, said


# The worker.


def test_command_tells_its_lines_as_they_are(at_home: Path) -> None:
    """The lines of both streams arrive in order, the last one without a newline, and then the exit status."""
    assert at_home
    code = "import sys; print('a'); print(); print('b', end='', file=sys.stderr); sys.exit(3)"
    began, *said, made = messages(working(command(code)))
    assert began == Began(node="node")
    assert [message.line for message in said if isinstance(message, PrintedLine) and not message.error] == ["a", ""]
    assert [message.line for message in said if isinstance(message, PrintedLine) and message.error] == ["b"]
    assert made == Completed(status=3, files=())


def test_line_is_told_before_the_command_ends(at_home: Path) -> None:
    """A line arrives while the command still runs, so that progress is visible."""
    assert at_home
    parcel = command("import sys, time; print('begun', flush=True); time.sleep(60)")
    items = worker.work(parcel, b"", lambda _: (), "node")
    assert messages([str(next(items)), str(next(items))])[1] == PrintedLine(error=False, line="begun")
    items.close()


def test_worker_that_is_stopped_ends_its_command(at_home: Path) -> None:
    """A stopped worker ends its command and removes the command's folder."""
    parcel = command("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    items = worker.work(parcel, b"", lambda _: (), "node")
    next(items)
    (said,) = messages([str(next(items))])
    assert isinstance(said, PrintedLine)
    items.close()
    assert not Path("/proc", said.line).exists()
    assert list((at_home / "work").iterdir()) == []


def test_worker_that_is_stopped_twice_kills_its_command(at_home: Path) -> None:
    """A second stop kills a command that ignores the first, and leaves no process and no folder."""
    ignore = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    items = worker.work(command(f"{ignore}; print(os.getpid(), flush=True); time.sleep(60)"), b"", lambda _: (), "node")
    next(items)
    (said,) = messages([str(next(items))])
    assert isinstance(said, PrintedLine)
    again = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    again.start()
    with pytest.raises(KeyboardInterrupt):
        items.close()
    again.join()
    assert not Path("/proc", said.line).exists()
    assert list((at_home / "work").iterdir()) == []


def test_command_that_takes_too_long_is_ended(at_home: Path) -> None:
    """A command over its time limit ends with the setting to change."""
    *_, last = messages(working(command("import time; time.sleep(60)", seconds=0.3)))
    assert isinstance(last, Refused)
    assert "took longer than 0.3 s" in last.reason
    assert "farm.step_timeout_seconds" in last.reason
    assert list((at_home / "work").iterdir()) == []


def test_only_what_is_new_or_other_comes_back(at_home: Path) -> None:
    """New and changed files come back with path, digest and bytes, in order."""
    assert at_home
    old, changed = (describe_bytes(f"artifacts/{name}", name.encode()) for name in ("old", "changed"))
    code = "open('artifacts/changed', 'w').write('!'); open('artifacts/new', 'w').write('?'); open('elsewhere', 'w')"
    items = working(command(code, old, changed), b"old", b"changed")
    made = messages(items)[-1]
    assert made == Completed(status=0, files=(describe_bytes("changed", b"!"), describe_bytes("new", b"?")))
    assert [item for item in items if isinstance(item, bytes)] == [b"!?"]


def test_what_builders_have_timed_stays_on_the_machine(at_home: Path) -> None:
    """The timing cache of one step stays on the machine, and the next step's command reads it."""
    file = describe_bytes("artifacts/x", b"x")
    working(command("open('artifacts/timing-cache/t', 'w').write('timed')", file), b"x")
    items = working(command("print(open('artifacts/timing-cache/t').read())", file), b"x")
    assert PrintedLine(error=False, line="timed") in messages(items)
    assert (at_home / "timing-cache/t").is_file()


def test_worker_that_imports_other_code_refuses(at_home: Path) -> None:
    """A worker with other code than the driver's runs nothing, and its message names both versions."""
    assert at_home
    parcel = command("open('/nowhere', 'w')").model_copy(update={"package": f"{__version__}, code 0123"})
    *_, last = messages(working(parcel))
    assert isinstance(last, Refused)
    assert "the worker runs other code than this driver has sent" in last.reason
    assert f"expected: {__version__}, code 0123\n  got:      {this_package()} on" in last.reason


LARGE = b"x" * (SMALL_BYTES + 1)
SIZE = "import os; print(os.path.getsize('artifacts/x'))"


def test_large_inputs_are_kept_for_the_next_parcel(at_home: Path) -> None:
    """A large input travels once to each machine, which keeps it for the next parcel."""
    file = describe_bytes("artifacts/x", LARGE)
    working(command("", file), LARGE)
    assert (at_home / "blobs" / file.sha256).read_bytes() == LARGE
    items = [*worker.work(command(SIZE, file), b"", _never, "node")]
    assert PrintedLine(error=False, line=str(len(LARGE))) in messages(items)


def _never(number: int) -> Iterator[bytes]:
    raise AssertionError(number)


def test_damaged_input_is_fetched_again(at_home: Path) -> None:
    """A kept input that is damaged is fetched again."""
    file = describe_bytes("artifacts/x", LARGE)
    working(command("", file), LARGE)
    (at_home / "blobs" / file.sha256).write_bytes(LARGE[1:])
    assert PrintedLine(error=False, line=str(len(LARGE))) in messages(working(command(SIZE, file), LARGE))


@pytest.mark.parametrize("content", [b"x", LARGE], ids=["small", "large"])
def test_input_that_has_changed_on_its_way_is_refused(at_home: Path, content: bytes) -> None:
    """An input with another digest is refused and not kept."""
    *_, last = messages(working(command("", describe_bytes("artifacts/x", content)), content[1:] + b"y"))
    assert isinstance(last, Refused)
    assert "artifacts/x arrived with other bytes than were sent" in last.reason
    assert [*at_home.glob("blobs/*")] == []


@given(
    lengths=st.lists(
        st.sampled_from([0, 1, SMALL_BYTES, SMALL_BYTES + 1]) | st.integers(0, 3 * SMALL_BYTES), max_size=5
    ),
    piece=st.integers(1_000, 4 * SMALL_BYTES),
)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_travels_is_the_same_however_it_is_cut(at_home: Path, lengths: list[int], piece: int) -> None:
    """Files of any length and order travel to the worker and back unchanged, in pieces of any length."""
    assert at_home
    contents = [bytes([65 + number]) * length for number, length in enumerate(lengths)]
    files = [describe_bytes(f"in/{number}", content) for number, content in enumerate(contents)]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(worker, "_INLINE_BYTES", piece)
        code = "import os, shutil; os.makedirs('in', exist_ok=True); shutil.copytree('in', 'artifacts')"
        items = iter(working(command(code, *files), *contents))
        made = next(message for item in items if isinstance(message := read_message(str(item)), Completed))
        assert made == Completed(status=0, files=tuple(describe_bytes(str(i), c) for i, c in enumerate(contents)))
        incoming = Incoming(items)
        for number, file in enumerate(made.files):
            incoming.receive(file, Path(folder) / file.path)
            assert (Path(folder) / file.path).read_bytes() == contents[number]
        incoming.end()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x"])
def test_input_that_would_lie_elsewhere_is_refused(at_home: Path, path: str) -> None:
    """An input whose path leads out of the step's folder is refused, and nothing is written."""
    *_, last = messages(working(command("", describe_bytes(path, b"x")), b"x"))
    assert isinstance(last, Refused)
    assert "leads out of its folder" in last.reason
    assert list((at_home / "work").iterdir()) == []


def test_machine_keeps_what_was_used_last(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs that were unused for the longest time make room for new ones."""
    monkeypatch.setattr(worker, "_KEPT_BYTES", 2 * len(LARGE))
    texts = [letter * len(LARGE) for letter in (b"a", b"b", b"c")]
    for number, text in enumerate(texts):
        file = describe_bytes("artifacts/x", text)
        working(command("", file), text)
        os.utime(at_home / "blobs" / file.sha256, (number, number))
    assert {path.read_bytes() for path in (at_home / "blobs").iterdir()} == {*texts[1:]}


def test_what_a_killed_worker_left_the_next_one_removes(at_home: Path) -> None:
    """A worker removes the folders of killed workers, and keeps those of living ones."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getpid()):
        (at_home / "work" / f"{process}-left").mkdir(parents=True)
    working(command(""))
    assert [path.name for path in (at_home / "work").iterdir()] == [f"{os.getpid()}-left"]


@given(st.lists(st.binary(max_size=20)))
def test_lines_are_the_same_however_they_arrive(pieces: list[bytes]) -> None:
    """Lines do not depend on the sizes of the pipe's reads."""
    lines = worker._Lines(error=False)  # noqa: SLF001 - its one behaviour
    taken = [said.line for piece in (*[piece for piece in pieces if piece], b"") for said in lines.take(piece)]
    whole = b"".join(pieces)
    expected = whole.split(b"\n")[: None if whole and not whole.endswith(b"\n") else -1]
    assert taken == [line.decode(errors="replace") for line in expected]


# Which machines there are.


@pytest.mark.parametrize(
    ("parts", "planned", "what"),
    [
        ({"flavours": (TRT10,)}, {}, "TensorRT"),
        ({"torch": "1.0"}, {}, "torch"),
        ({"gpus": (H100,)}, {"free_memory_bytes": (None,)}, "GPU"),
        ({}, {"torch_tensorrt": Tool(name="torch-tensorrt", version="2.11.0")}, "Torch-TensorRT"),
        ({}, {"onnxruntime": Tool(name="onnxruntime-gpu", version="1.0")}, "ONNX Runtime"),
    ],
)
def test_worker_that_is_not_what_was_planned_with_refuses(
    project: Project, parts: dict[str, object], planned: dict[str, object], what: str
) -> None:
    """A worker refuses if its GPU or a tool's version differs from the plan's."""
    project.config_file.write_text(FARM.replace("{f", "{accelerator: H100, f"))
    needs = "H100 with tensorrt_rtx"
    here = this_host()
    there = here.model_copy(update={"host": here.host.model_copy(update=parts), **planned})
    write_record(project.paths.farm, FarmRecord(hosts=(FarmHost(worker_kind=needs, host=there),), here=needs))
    with pytest.raises(FarmError, match=f"this worker's {what} is not what was planned with"):
        Project.load(project.config_file, STAGES)


def test_worker_without_a_gpu_may_have_more_than_was_planned_with(project: Project) -> None:
    """Another flavour, torch or a GPU does not matter to a target whose engines do not depend on them."""
    planned = host(flavours=(TRT10, *environment.flavours()), torch="1.0")
    write_record(project.paths.farm, FarmRecord(hosts=(workers(NEEDS, planned),), here=NEEDS))
    adopted = Project.load(project.config_file, STAGES).schedule.workers(BUILD)
    assert adopted == workers(NEEDS, planned)


def test_worker_takes_nothing_from_a_cache_and_leaves_nothing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker neither reads nor writes the shared cache; its driver does, which can reach it."""
    project.config_file.write_text(f"{FARM}cache: {tmp_path / 'cache'}\n")
    record = FarmRecord(hosts=(workers(NEEDS, environment.read_host()),), here=NEEDS)
    write_record(project.paths.farm, record)
    monkeypatch.setattr("pipeline.planning.shared_cache.SharedCache", None)
    assert main(["build", ENGINE, "--config", str(project.config_file)]) == 0
    assert not (tmp_path / "cache").exists()
