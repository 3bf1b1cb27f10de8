"""Runs steps on the farm as `doit` runs them here: what they print is shown, what they make lies in artifacts/."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from model_artifacts.errors import FarmError, LostWorkerError, storage_errors
from model_artifacts.host.files import scratch_folder
from pipeline.farm.cluster import Cluster, NodeRequirements
from pipeline.farm.flights import Flights
from pipeline.farm.inspection import able_nodes, look, unfit_nodes
from pipeline.farm.parcels import Began, Completed, PrintedLine, Refused, accept, check_list, pack, read_message
from pipeline.farm.sent import Sent
from pipeline.farm.worker import TERM_SECONDS
from pipeline.planning.keys import key_of
from pipeline.planning.project import read_farm
from pipeline.planning.shared_cache import SharedCache
from pipeline.system.isolation import KILLED, describe_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from model_artifacts.records import FileRecord
    from pipeline.config.settings import FarmConfig, FarmTarget
    from pipeline.farm.cluster import Node, Running
    from pipeline.planning.project import Project
    from pipeline.planning.spec import StageSpec
    from pipeline.planning.steps import Step
    from pipeline.records import FarmHost, FarmRecord

    Say = Callable[[PrintedLine], None]

_SILENCE_SECONDS = 60.0
"""Beyond the time that a step is given: for what it has made to come back."""
_LOOK_SECONDS = 10.0
"""How often it is seen that a step that waits can still run somewhere."""
_STOP_SECONDS = TERM_SECONDS + 5.0
"""How long steps may take to end when asked to, and their commands before them; then their workers are killed."""
_OF_A_SIGNAL = 128
"""What is added to a signal's number where a command's exit status tells of it, as a shell's does."""


class Farm:
    """A driver of the cluster; it joins when the first step is to run."""

    def __init__(self, project: Project) -> None:
        """Nothing is reached yet."""
        self._project = project
        self._joining = threading.Lock()
        self._joined: _Joined | None = None
        self._refused = False
        self._running_lock = threading.Lock()
        self._running: set[Running] = set()
        self._stopped = threading.Event()

    def run(self, step: Step, say: Say) -> int:
        """Run a step on a worker; or take what another machine has made of it.

        Args:
            step: of a target that the farm builds.
            say: is told every line.

        Returns:
            its exit status.

        Raises:
            FarmError: it could not be run, or what came back does not hold.
            ArtifactError: what it is made from is missing, or its results cannot be written.
        """
        project = self._project
        workers = project.schedule.workers(step)
        if workers is None:
            raise FarmError(f"{step.stage} {step.subject} is no step of the farm's")
        cache = SharedCache(project.config.cache) if project.config.cache else None
        if cache and (found := cache.fetch(project, step)):
            say(_told(f"taken from {found}"))
            return 0
        joined = self._join()
        with self._alone(joined, step, say):
            if cache and (found := cache.fetch(project, step)):  # left there since, by whoever was alone before
                say(_told(f"taken from {found}"))
                return 0
            status = self._run_somewhere(joined, step, workers, say)
            if status == 0 and cache:
                cache.offer(project, step)
            return status

    def _alone(self, joined: _Joined, step: Step, say: Say) -> AbstractContextManager[None]:
        """Keep other drivers from building the same meanwhile."""
        if not self._project.schedule.spec(step.stage).tunes:
            return nullcontext()
        told: list[str] = []

        def waiting(holder: str) -> None:
            self._check_stopped()
            if holder not in told:
                say(_told(f"waiting for {holder}, which builds the same"))
            told.append(holder)

        return joined.flights.alone(key_of(self._project, step).digest, waiting)

    def _join(self) -> _Joined:
        """Join the cluster, and see that it still is what the plan was made for."""
        with self._joining:
            self._check_stopped()
            if self._refused:
                raise FarmError("the farm cannot be used; the first step that tried says why")
            if self._joined is None:
                self._refused = True  # unless what follows goes well
                farm = _of(self._project)
                before = read_farm(self._project.config, self._project.paths)
                cluster = Cluster.connect(farm.address, farm.connect_timeout_seconds)
                record = look(cluster, farm, self._project.paths, self._check_stopped)
                if {*record.hosts} - {*before.hosts}:
                    raise FarmError(
                        "the farm's machines are not what they were when this was planned",
                        fix="run `doit` again: it plans for what they are now",
                    )
                flights = Flights(cluster, f"{platform.node()}, process {os.getpid()}")
                self._joined = _Joined(cluster, record, flights, Sent(cluster.put))
                self._refused = False
            return self._joined

    def _run_somewhere(self, joined: _Joined, step: Step, workers: FarmHost, say: Say) -> int:
        """Run a step; where its worker is lost, elsewhere, as often as the configuration lets it."""
        farm = _of(self._project)
        target = next(item for item in farm.targets if item.worker_kind == workers.worker_kind)
        needs = NodeRequirements.of(target, alone=_is_timed(self._project.schedule.spec(step.stage), target))
        packed = pack(self._project, step, workers)
        small = packed.small()
        places = _EligibleNodes(joined.cluster, target, unfit_nodes(target, joined.record))
        with joined.sent.holding(packed.large) as large:
            for tries_left in range(farm.retries, -1, -1):
                avoid = places.avoid()
                trip = _Trip(self._project, step, partial(places.check, avoid), say)
                try:
                    running = joined.cluster.submit(packed.parcel, small, large, needs, avoid)
                    return self._try(trip, running)
                except LostWorkerError as exc:
                    self._check_stopped()  # what was cancelled falls silent, too
                    places.lost(trip.node)
                    again = f"it is run again elsewhere, {tries_left} more times at most" if tries_left else "given up"
                    say(_told(f"{exc.what}: {exc.got}; {again}", error=True))
        raise FarmError(
            f"its worker was lost {farm.retries + 1} times",
            fix="see the cluster's logs for why, such as too little memory; or raise farm.retries",
        )

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise FarmError("stopped before it had ended")

    def _try(self, trip: _Trip, running: Running) -> int:
        """Follow a step to its end, and leave nothing running on the cluster that nobody waits for."""

        def look() -> None:
            self._check_stopped()
            trip.check_time()

        with self._running_lock:
            self._running.add(running)
        try:
            return trip.follow(running.items(look))
        except BaseException:
            running.end()
            raise
        finally:
            with self._running_lock:
                self._running.discard(running)

    def stop(self) -> None:
        """End what runs for this driver, and see that it has ended."""
        self._stopped.set()
        for force in (False, True):
            with self._running_lock:
                running = [*self._running]
            for item in running:
                item.cancel(force=force)
            deadline = time.monotonic() + _STOP_SECONDS
            while self._running and time.monotonic() < deadline:
                time.sleep(0.05)


class _Joined(NamedTuple):
    """A cluster that this driver has joined."""

    cluster: Cluster
    record: FarmRecord
    """What its machines are."""
    flights: Flights
    sent: Sent


class _EligibleNodes:
    """Where a step may run: on machines that have what its target needs, other than those that have lost it."""

    def __init__(self, cluster: Cluster, target: FarmTarget, unfit: frozenset[str]) -> None:
        self._cluster, self._target, self._unfit = cluster, target, unfit
        self._lost: frozenset[str] = frozenset()

    def lost(self, node: str) -> None:
        """Take note of a machine that has lost the step; it may have been lost before it was anywhere."""
        self._lost |= {node} - {""}

    def avoid(self) -> frozenset[str]:
        """Return where the next try is not to run; where no other machine is left, one that has lost it may.

        Raises:
            FarmError: no machine can run it any more.
        """
        others = {node.id for node in self._able()} - self._lost
        return self._unfit | self._lost if others else self._unfit

    def check(self, avoid: frozenset[str]) -> None:
        """Check that a try that waits for a machine can still get one.

        Raises:
            LostWorkerError: those that it waits for have gone, and there are others.
            FarmError: no machine can run it any more.
        """
        if {node.id for node in self._able()} <= avoid:
            raise LostWorkerError("waiting for a machine", got="those that could run it have left the cluster")

    def _able(self) -> list[Node]:
        return able_nodes(self._target, self._cluster.nodes(), self._unfit)


class _Trip:
    """One try at a step: what its worker says and gives, until it has ended."""

    def __init__(self, project: Project, step: Step, check_places: Callable[[], None], say: Say) -> None:
        self.node = ""
        self._project, self._step, self._check_places, self._say = project, step, check_places, say
        self._farm = _of(project)
        self._deadline = time.monotonic() + self._farm.queue_timeout_seconds
        self._next_look = time.monotonic() + _LOOK_SECONDS

    def check_time(self) -> None:
        """Check that it has not taken too long, and while it waits for a worker, that there still can be one.

        Raises:
            FarmError: it has, or there cannot.
        """
        now = time.monotonic()
        if now > self._deadline and not self.node:
            raise FarmError(
                f"no worker was free in {self._farm.queue_timeout_seconds:g} s",
                fix="raise farm.queue_timeout_seconds, add machines, or see what they are busy with: `ray status`",
            )
        if now > self._deadline:
            raise FarmError(
                f"nothing has come back in {self._farm.step_timeout_seconds:g} s, which is all that a step is given",
                fix="raise farm.step_timeout_seconds, or see why it takes so long",
            )
        if not self.node and now > self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._check_places()

    def follow(self, items: Iterator[str | bytes]) -> int:
        """Tell what the worker says, take what it gives, and return the step's exit status.

        Raises:
            LostWorkerError: the worker has gone, or the step's process was killed.
            FarmError: it refuses, or what it gives does not hold.
            StorageError: it cannot be written here.
        """
        for item in items:
            message = read_message(item if isinstance(item, str) else "bytes that nothing announces")
            if isinstance(message, Began):
                self.node = message.node
                self._deadline = time.monotonic() + self._farm.step_timeout_seconds + _SILENCE_SECONDS
            elif isinstance(message, PrintedLine):
                self._say(message)
            elif isinstance(message, Refused):
                raise FarmError(message.reason)
            else:
                return self._take(message, items)
        raise LostWorkerError("running a step: the worker was lost", got="it fell silent")

    def _take(self, made: Completed, items: Iterator[str | bytes]) -> int:
        ended = _OF_A_SIGNAL - made.status if made.status > _OF_A_SIGNAL else made.status
        if ended in KILLED:
            raise LostWorkerError("running a step", got=describe_exit(ended))
        check_list(self._project, self._step, made)
        incoming = _Incoming(items)
        with scratch_folder(self._project.paths.root) as staged:
            for file in made.files:
                incoming.receive(file, staged / file.path)
            incoming.end()
            accept(self._project, self._step, made, staged)
        if made.status < 0:
            self._say(_told(describe_exit(made.status), error=True))
        return made.status


class _Incoming:
    """The bytes of what a worker has made: one file after another, in pieces that know nothing of files."""

    def __init__(self, items: Iterator[str | bytes]) -> None:
        self._items = items
        self._rest = memoryview(b"")

    def receive(self, file: FileRecord, path: Path) -> None:
        """Write the next file.

        Raises:
            FarmError: it is not what was announced.
            StorageError: it cannot be written.
        """
        digest, left = hashlib.sha256(), file.bytes
        with storage_errors(f"writing {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                while left and (piece := self._take(left)):
                    left -= len(piece)
                    digest.update(piece)
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
            path.chmod(0o644)
        if left or digest.hexdigest() != file.sha256:
            raise FarmError(
                f"{file.path} has not come as its worker announced it; nothing of the step was kept",
                expected=f"{file.bytes:,} bytes, SHA-256 {file.sha256}",
                got=f"{file.bytes - left:,} bytes, SHA-256 {digest.hexdigest()}",
                fix="run it again; should it repeat, look at that machine's memory and disk",
            )

    def end(self) -> None:
        """Check that nothing has come beyond what was announced.

        Raises:
            FarmError: there is more.
        """
        if self._rest:
            raise FarmError("more has come than the worker announced; nothing of the step was kept")

    def _take(self, most: int) -> memoryview:
        """Return the next bytes; none at the end."""
        if not self._rest:
            piece = next(self._items, None)
            self._rest = memoryview(piece if isinstance(piece, bytes) else b"")
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken


def _is_timed(spec: StageSpec[Any], target: FarmTarget) -> bool:
    """Return whether a step times something on its GPU: TensorRT's builder does, TensorRT-RTX's does not."""
    return spec.alone or (spec.tunes and target.builds_on_its_gpu)


def _told(line: str, *, error: bool = False) -> PrintedLine:
    return PrintedLine(error=error, line=line)


def _of(project: Project) -> FarmConfig:
    if project.config.farm is None:
        raise FarmError("the configuration has no farm")
    return project.config.farm
