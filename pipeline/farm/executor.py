"""The driver's side of steps on the farm.

Their output is shown and their results lie in artifacts/, as after a local run.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from model_artifacts.errors import FarmError, LostWorkerError
from model_artifacts.host.files import scratch_folder
from pipeline.farm.cluster import Cluster, NodeRequirements
from pipeline.farm.flights import Flights
from pipeline.farm.incoming import Incoming
from pipeline.farm.inspection import able_nodes, look, unfit_nodes
from pipeline.farm.parcels import Began, Completed, PrintedLine, Refused, accept, check_list, pack, read_message
from pipeline.farm.sent import Sent
from pipeline.farm.worker import TERM_SECONDS
from pipeline.planning.keys import key_of
from pipeline.planning.project import read_farm
from pipeline.planning.shared_cache import SharedCache
from pipeline.system.processes import KILLED, describe_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pipeline.config.settings import FarmConfig, FarmTarget
    from pipeline.farm.cluster import Node, Running
    from pipeline.planning.project import Project
    from pipeline.planning.spec import StageSpec
    from pipeline.planning.steps import Step
    from pipeline.records import FarmHost, FarmRecord

    Report = Callable[[PrintedLine], None]
    """Receives every line of a step's output."""

_SILENCE_SECONDS = 60.0
"""Time for the results to arrive, in addition to the time limit of a step."""
_LOOK_SECONDS = 10.0
"""Interval of the checks that some machine can still run a waiting step."""
_STOP_SECONDS = TERM_SECONDS + 5.0
"""The time for steps and their commands to end after a request. Then their workers are killed."""
_OF_A_SIGNAL = 128
"""Shells add it to the number of the signal that ended a command, for the exit status."""


class Farm:
    """A driver of the cluster. The first step joins the cluster."""

    def __init__(self, project: Project) -> None:
        """Begin without a connection.

        Args:
            project: the configuration and the artifacts.
        """
        self._project = project
        self._joining = threading.Lock()
        self._joined: _Joined | None = None
        self._refused = False
        self._running_lock = threading.Lock()
        self._running: set[Running] = set()
        self._stopped = threading.Event()

    def run(self, step: Step, report: Report) -> int:
        """Run a step on a worker, or copy its results from the shared cache.

        Args:
            step: a step of one of the farm's targets.
            report: receives every line of the step's output.

        Returns:
            The step's exit status.

        Raises:
            FarmError: no worker could run the step, or its results failed their check.
            ArtifactError: an input of the step is missing, or its results cannot be written.
        """
        project = self._project
        workers = project.schedule.workers(step)
        if workers is None:
            raise FarmError(f"the farm does not run the step {step.stage} {step.subject}")
        cache = SharedCache(project.config.cache) if project.config.cache else None
        if cache and (origin := cache.fetch(project, step)):
            report(_line(f"taken from {origin}"))
            return 0
        joined = self._join()
        with self._alone(joined, step, report):
            if cache and (origin := cache.fetch(project, step)):  # another driver may have built it meanwhile
                report(_line(f"taken from {origin}"))
                return 0
            status = self._run_somewhere(joined, step, workers, report)
            if status == 0 and cache:
                cache.offer(project, step)
            return status

    def _alone(self, joined: _Joined, step: Step, report: Report) -> AbstractContextManager[None]:
        """Return a context in which no other driver builds the same."""
        if not self._project.schedule.spec(step.stage).tunes:
            return nullcontext()
        holders: set[str] = set()

        def waiting(holder: str) -> None:
            self._check_stopped()
            if holder not in holders:
                report(_line(f"waiting for {holder}, which builds the same"))
            holders.add(holder)

        return joined.flights.alone(key_of(self._project, step).digest, waiting)

    def _join(self) -> _Joined:
        """Join the cluster, and check that its machines are those of the plan."""
        with self._joining:
            self._check_stopped()
            if self._refused:
                raise FarmError("the farm cannot be used; see the error of the first step")
            if self._joined is None:
                self._refused = True  # until all of the following has succeeded
                farm = _of(self._project)
                before = read_farm(self._project.config, self._project.paths)
                cluster = Cluster.connect(farm.address, farm.connect_timeout_seconds)
                record = look(cluster, farm, self._project.paths, self._check_stopped)
                if {*record.hosts} - {*before.hosts}:
                    raise FarmError(
                        "the farm's machines have changed since the plan was made",
                        fix=f"run `{self._project.doit}` again; it makes a new plan",
                    )
                flights = Flights(cluster, f"{platform.node()}, process {os.getpid()}")
                self._joined = _Joined(cluster, record, flights, Sent(cluster.put))
                self._refused = False
            return self._joined

    def _run_somewhere(self, joined: _Joined, step: Step, workers: FarmHost, report: Report) -> int:
        """Run a step. After the loss of its worker, run it elsewhere, up to `farm.retries` times.

        Raises:
            FarmError: no machine can run the step, or its workers were lost too often.
        """
        farm = _of(self._project)
        target = next(item for item in farm.targets if item.worker_kind == workers.worker_kind)
        requirements = NodeRequirements.of(target, alone=_is_timed(self._project.schedule.spec(step.stage), target))
        packed = pack(self._project, step, workers)
        small = packed.small()
        places = _EligibleNodes(joined.cluster, target, unfit_nodes(target, joined.record))
        with joined.sent.holding(packed.large) as large:
            for tries_left in range(farm.retries, -1, -1):
                avoid = places.avoid()
                trip = _Trip(self._project, step, partial(places.check, avoid), report)
                try:
                    running = joined.cluster.submit(packed.parcel, small, large, requirements, avoid)
                    return self._try(trip, running)
                except LostWorkerError as exc:
                    self._check_stopped()  # a cancelled step looks like one with a lost worker
                    places.lost(trip.node)
                    again = f"trying again elsewhere, {tries_left} tries left" if tries_left else "no tries left"
                    report(_line(f"{exc.what}: {exc.got}; {again}", error=True))
        raise FarmError(
            f"the step's worker was lost {farm.retries + 1} times",
            fix="look in the cluster's logs for the reason, such as too little memory, or raise farm.retries",
        )

    def _check_stopped(self) -> None:
        """Raise `FarmError` if this driver is stopping."""
        if self._stopped.is_set():
            raise FarmError("the step was stopped before its end")

    def _try(self, trip: _Trip, running: Running) -> int:
        """Follow a step to its end. After an error, end it on the cluster, too."""

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
        """End all steps of this driver, and wait for their end."""
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
    """The description of its machines."""
    flights: Flights
    sent: Sent


class _EligibleNodes:
    """The machines for a step: those that meet its target's requirements, without those that lost it before."""

    def __init__(self, cluster: Cluster, target: FarmTarget, unfit: frozenset[str]) -> None:
        self._cluster, self._target, self._unfit = cluster, target, unfit
        self._lost: frozenset[str] = frozenset()

    def lost(self, node: str) -> None:
        """Note a machine that lost the step. An empty name is a loss before the step had a machine."""
        self._lost |= {node} - {""}

    def avoid(self) -> frozenset[str]:
        """Return the machines that the next try avoids. Without another machine, those that lost the step may run it.

        Raises:
            FarmError: no machine can run the step any more.
        """
        others = {node.id for node in self._able()} - self._lost
        return self._unfit | self._lost if others else self._unfit

    def check(self, avoid: frozenset[str]) -> None:
        """Check that a waiting try can still get a machine.

        Args:
            avoid: the machines that the try avoids.

        Raises:
            LostWorkerError: the machines that the try waits for are gone, and there are others.
            FarmError: no machine can run the step any more.
        """
        if {node.id for node in self._able()} <= avoid:
            raise LostWorkerError(
                "waiting for a machine", got="the machines that could run the step have left the cluster"
            )

    def _able(self) -> list[Node]:
        """Return the machines of the cluster that can run the step now."""
        return able_nodes(self._target, self._cluster.nodes(), self._unfit)


class _Trip:
    """One try of a step: its worker's messages and results, until the end."""

    def __init__(self, project: Project, step: Step, check_places: Callable[[], None], report: Report) -> None:
        self.node = ""
        self._project, self._step, self._check_places, self._report = project, step, check_places, report
        self._farm = _of(project)
        self._deadline = time.monotonic() + self._farm.queue_timeout_seconds
        self._next_look = time.monotonic() + _LOOK_SECONDS

    def check_time(self) -> None:
        """Check the time limits, and during the wait for a worker that a machine can still run the step.

        Raises:
            LostWorkerError: the machines that the try waits for are gone.
            FarmError: a limit is over, or no machine can run the step any more.
        """
        now = time.monotonic()
        if now > self._deadline and not self.node:
            raise FarmError(
                f"no worker was free in {self._farm.queue_timeout_seconds:g} s",
                fix="raise farm.queue_timeout_seconds, add machines, or look at their load with `ray status`",
            )
        if now > self._deadline:
            raise FarmError(
                f"the step has not come back in {self._farm.step_timeout_seconds:g} s, the time limit of a step",
                fix="raise farm.step_timeout_seconds, or look in the step's output for the reason",
            )
        if not self.node and now > self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._check_places()

    def follow(self, items: Iterator[str | bytes]) -> int:
        """Report the worker's output, take its results, and return the step's exit status.

        Args:
            items: the worker's messages, and the bytes of its results.

        Raises:
            LostWorkerError: the worker is gone, or the step's process was killed.
            FarmError: the worker refused the step, or its results failed their check.
            StorageError: the results cannot be written here.
        """
        for item in items:
            message = read_message(item if isinstance(item, str) else "bytes without a message before them")
            if isinstance(message, Began):
                self.node = message.node
                self._deadline = time.monotonic() + self._farm.step_timeout_seconds + _SILENCE_SECONDS
            elif isinstance(message, PrintedLine):
                self._report(message)
            elif isinstance(message, Refused):
                raise FarmError(message.reason)
            else:
                return self._take(message, items)
        raise LostWorkerError("running a step: the worker was lost", got="its messages ended before the step")

    def _take(self, completed: Completed, items: Iterator[str | bytes]) -> int:
        """Receive a step's results, check them and put them in their places. Return the exit status.

        Raises:
            LostWorkerError: the step's process was killed.
            FarmError: the results failed their check.
            StorageError: the results cannot be written here.
        """
        status = completed.status
        ended = _OF_A_SIGNAL - status if status > _OF_A_SIGNAL else status
        if ended in KILLED:
            raise LostWorkerError("running a step", got=describe_exit(ended))
        check_list(self._project, self._step, completed)
        incoming = Incoming(items)
        with scratch_folder(self._project.paths.root) as staged:
            for file in completed.files:
                incoming.receive(file, staged / file.path)
            incoming.end()
            accept(self._project, self._step, completed, staged)
        if status < 0:
            self._report(_line(describe_exit(status), error=True))
        return status


def _is_timed(spec: StageSpec[Any], target: FarmTarget) -> bool:
    """Return True if a step times something. TensorRT's builder times kernels, that of TensorRT-RTX does not."""
    return spec.alone or (spec.tunes and target.builds_on_its_gpu)


def _line(line: str, *, error: bool = False) -> PrintedLine:
    """Return a line of the driver's own, in a step's output."""
    return PrintedLine(error=error, line=line)


def _of(project: Project) -> FarmConfig:
    """Return the configuration of the farm.

    Raises:
        FarmError: the configuration has none.
    """
    if project.config.farm is None:
        raise FarmError("the configuration has no `farm`", fix="add `executor: ray` and `farm` to pipeline.yaml")
    return project.config.farm
