"""Steps that travel to a worker in the process of the test, without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import EngineFlavour, FileRecord
from pipeline.config.settings import FarmTarget
from pipeline.farm import executor, worker
from pipeline.farm.cluster import Node
from pipeline.farm.parcels import Message, Packed, Parcel, PrintedLine, is_small, pack, read_message
from pipeline.planning.steps import Step
from tests.conftest import TINY

if TYPE_CHECKING:
    from pipeline.planning.project import Project


ENGINE = "tiny/rtx-sm80+/fp16-b1-ws16MiB"
TWIN = "tiny/rtx-sm80+/fp16-b1-ws32MiB"
BUILD = Step("build", ENGINE)
NEEDS = "a processor with tensorrt_rtx"
FARM = TINY + "executor: ray\nfarm: {targets: [{flavour: tensorrt_rtx}]}\n"
AHEAD = FarmTarget(flavour=EngineFlavour.TENSORRT_RTX)
TUNED = FarmTarget(flavour=EngineFlavour.TENSORRT, accelerator="H100")


def packed(project: Project, step: Step = BUILD) -> Packed:
    """Return the packed inputs of a step."""
    found = project.schedule.workers(step)
    assert found is not None
    return pack(project, step, found)


def working(parcel: Parcel, *contents: bytes) -> list[str | bytes]:
    """Return the messages and files of a worker for a parcel."""
    small = [content for file, content in zip(parcel.files, contents, strict=True) if is_small(file)]
    large = [content for file, content in zip(parcel.files, contents, strict=True) if not is_small(file)]
    return [*worker.work(parcel, b"".join(small), lambda number: iter([large[number]]), "node")]


def sent(found: Packed) -> list[str | bytes]:
    """Return the messages and files of a worker for a packed step."""
    return working(found.parcel, *(item.read() for item in found.inputs))


def command(code: str, *files: FileRecord, seconds: float = 60) -> Parcel:
    """Return a parcel that runs some Python."""
    return Parcel(command=("-c", code), files=files, timeout_seconds=seconds)


def messages(items: list[str | bytes]) -> list[Message]:
    """Return the messages of a worker."""
    return [read_message(item) for item in items if isinstance(item, str)]


def followed(project: Project, items: list[str | bytes], step: Step = BUILD) -> tuple[int, list[PrintedLine]]:
    """Return the driver's result: the exit status and the reported lines."""
    told: list[PrintedLine] = []
    trip = executor._Trip(project, step, lambda: None, told.append)  # noqa: SLF001 - without a cluster
    return trip.follow(iter(items)), told


HEAD = Node("head", "10.0.0.1", {"node:10.0.0.1": 1.0, "memory": 9e9})
NODE_H100 = Node("h", "10.0.0.2", {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0, "tensorrt": 1.0})
NODE_PROCESSOR = Node("p", "10.0.0.3", {"CPU": 4.0})
OTHER = Node("o", "10.0.0.4", {"CPU": 4.0})
NODES = (HEAD, NODE_H100, NODE_PROCESSOR)


class Machines:
    """A cluster of which only the machines matter."""

    def __init__(self, *there: Node) -> None:
        self.there = there

    def nodes(self) -> tuple[Node, ...]:
        """Return those that are alive."""
        return self.there


class Cancelled:
    """Ray, of which only the order to cancel matters."""

    def __init__(self) -> None:
        self.orders: list[bool] = []

    def cancel(self, _: object, *, force: bool) -> None:
        """Take note of it."""
        self.orders.append(force)
