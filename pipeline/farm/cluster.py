"""A Ray cluster: its nodes and their resources, the probes of its machines, and the steps that run there."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import FarmError
from pipeline.farm.ray_calls import (
    NO_ANSWER,
    TRY_SECONDS,
    check_reachable,
    get_value,
    join,
    keep_signals,
    on_node,
    ray_errors,
    remote_probe,
    remote_work,
    wait_for,
)
from pipeline.farm.worker import TERM_SECONDS, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path
    from typing import Any

    from pipeline.config.settings import FarmTarget
    from pipeline.farm.parcels import Parcel


_LITTLE = 0.001
"""The amount of a resource that a task claims only to choose its node."""

_ANSWER_SECONDS = 2 * TERM_SECONDS
"""The time for a cancelled task and its command to end. Then the task's process is killed."""
_AHEAD = 8
"""The number of pieces that a worker sends ahead of the driver. So many lie in its machine's memory."""

_GPU_PARTS = 10_000
"""Ray's parts of a GPU: it counts GPUs in steps of 1/10,000."""
_ACCELERATOR = "accelerator_type:"
"""Ray's prefix of the resource that names the GPU type of a node."""
_NODE_ID = "ray.io/node-id"
"""Ray's label with the id of a node."""
_HEAD = "node:__internal_head__"
"""Ray's resource of the head node, which lives as long as the cluster."""

_OUR_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else Ray, under `uv run doit`, sends the whole folder to every worker
    "RAY_USAGE_STATS_ENABLED": "0",
}


class NodeRequirements(NamedTuple):
    """The resources that a task needs of its node."""

    accelerator: str | None
    """Ray's name of the GPU type. None needs no GPU."""
    resources: tuple[str, ...]
    """Custom resources that the node must declare."""
    sharing: int = 1
    """The number of such tasks that share a GPU."""

    @classmethod
    def of(cls, target: FarmTarget, *, alone: bool = True) -> NodeRequirements:
        """Return the requirements of a target's steps.

        Args:
            target: the farm's target.
            alone: True for a step that times something and needs a GPU of its own.
        """
        return cls(target.accelerator, target.resources, 1 if alone else target.steps_per_gpu)

    @property
    def gpus(self) -> float:
        """The share of a GPU, rounded down to Ray's parts so that `sharing` tasks fit; 0 without a GPU."""
        return _GPU_PARTS // self.sharing / _GPU_PARTS if self.accelerator else 0

    def met_by(self, node: Node) -> bool:
        """Return True if a node could ever run such a task."""
        amounts = {"CPU": 1.0, "GPU": self.gpus, **dict.fromkeys(self._marks, _LITTLE)}
        return all(node.resources.get(name, 0.0) >= amount for name, amount in amounts.items())

    @property
    def _marks(self) -> tuple[str, ...]:
        """The resources that only choose the node."""
        return (*([_ACCELERATOR + self.accelerator] if self.accelerator else []), *self.resources)

    @property
    def shown(self) -> str:
        """The requirements as a phrase, for messages: `1 CPU, 1 GPU of accelerator type H100`."""
        gpu = [f"1 GPU of accelerator type {self.accelerator}"] if self.accelerator else []
        return ", ".join(("1 CPU", *gpu, *(f"the resource {name!r}" for name in self.resources)))

    def options(self, avoid: Collection[str] = ()) -> dict[str, object]:
        """Return the requirements as Ray's options of a task.

        Args:
            avoid: ids of nodes that must not run the task.
        """
        elsewhere = {"label_selector": {_NODE_ID: f"!in({','.join(sorted(avoid))})"}} if avoid else {}
        marks = dict.fromkeys(self._marks, _LITTLE)
        return {"num_cpus": 1, "num_gpus": self.gpus, "resources": marks, **elsewhere}


class Node(NamedTuple):
    """A machine of the cluster."""

    id: str
    """Ray's id, new each time that the machine joins."""
    address: str
    resources: dict[str, float]
    """All resources of the machine, used or free."""

    @property
    def shown(self) -> str:
        """The address with the resources, for messages: `10.0.0.2: 8 CPU, 1 GPU, H100`."""
        hidden = ("node:", "memory", "object_store_memory", _ACCELERATOR)
        plain = [f"{value:g} {name}" for name, value in sorted(self.resources.items()) if not name.startswith(hidden)]
        types = [name.removeprefix(_ACCELERATOR) for name in self.resources if name.startswith(_ACCELERATOR)]
        return f"{self.address}: {', '.join([*plain, *types]) or 'nothing'}"


class Cluster:
    """A Ray cluster with this process as a driver."""

    def __init__(self, ray: Any, address: str) -> None:  # noqa: ANN401 - Ray is imported where it is used
        """Use `Cluster.connect`."""
        self._ray = ray
        self.address = address
        self._step = ray.remote(max_retries=0, num_returns="streaming", _generator_backpressure_num_objects=_AHEAD)(
            remote_work
        )
        self._probe = ray.remote(max_retries=0, num_cpus=0)(remote_probe)

    @classmethod
    def connect(cls, address: str, timeout_seconds: float) -> Cluster:
        """Join a cluster as a driver.

        Args:
            address: the head's `host:port`, or `auto` for the one that this machine is a node of.
            timeout_seconds: time limit of the connection.

        Raises:
            FarmError: Ray is not installed, no cluster answers in time, or it has another version of Ray or Python.
        """
        if "://" in address:
            raise FarmError(
                f"farm.address takes host:port or auto, got {address}",
                fix="make this machine a node that gives no CPUs: "
                "`ray start --address=HOST:PORT --num-cpus=0`, then `address: auto`",
            )
        tries = max(1, int(timeout_seconds / TRY_SECONDS))
        for name, value in {**_OUR_ENVIRONMENT, "RAY_NUM_REDIS_GET_RETRIES": str(tries)}.items():
            os.environ.setdefault(name, value)
        try:
            import ray  # noqa: PLC0415 - takes 2 s, and only steps on workers need it
        except ImportError as exc:
            raise FarmError(
                "`executor: ray` needs the package ray, which is not installed here",
                fix="install this project with its extra `farm`",
            ) from exc
        if not ray.is_initialized():  # else this process has joined the cluster before
            if address != "auto":
                check_reachable(address, timeout_seconds, ray.util.get_node_ip_address())
            with keep_signals():
                join(ray, address)
        return cls(ray, address)

    def nodes(self) -> tuple[Node, ...]:
        """Return the machines that are alive, in the order of their addresses.

        Raises:
            FarmError: the cluster cannot be reached.
        """
        with ray_errors(f"reading the nodes of {self.address}"):
            alive = [item for item in self._ray.nodes() if item["Alive"]]
        nodes = [Node(item["NodeID"], item["NodeManagerAddress"], dict(item["Resources"])) for item in alive]
        return tuple(sorted(nodes, key=lambda node: (node.address, node.id)))

    def probe(self, node: Node) -> Pending:
        """Start the probe of a machine. The machine may be busy.

        Raises:
            FarmError: the cluster cannot be reached.
        """
        with ray_errors(f"probing {node.address}"):
            return Pending(self._ray, node, self._probe.options(scheduling_strategy=on_node(node)).remote())

    def put(self, content: Path | bytes) -> list[Any]:
        """Return a file's bytes as objects of the cluster, in pieces.

        Raises:
            FarmError: the cluster does not accept them.
            StorageError: the file cannot be read.
        """
        with ray_errors("sending a file"):
            return [self._ray.put(piece) for piece in ([content] if isinstance(content, bytes) else pieces(content))]

    def submit(
        self,
        parcel: Parcel,
        small: bytes,
        large: list[list[Any]],
        requirements: NodeRequirements,
        avoid: Collection[str],
    ) -> Running:
        """Start a parcel's command on a worker.

        Args:
            parcel: the command and its files.
            small: the bytes of the small files, one after another.
            large: the contents of the large files, as `put` returns them.
            requirements: those of its node.
            avoid: ids of nodes that must not run it.

        Raises:
            FarmError: the cluster cannot be reached.
        """
        with ray_errors("sending a step"):
            step = self._step.options(**requirements.options(avoid))
            return Running(self._ray, step.remote(parcel.to_json(), small, large))

    def actor(self, actor_class: type, name: str) -> Any:  # noqa: ANN401 - a handle of Ray's
        """Return the cluster's one actor of a name, which outlives the driver that started it.

        Args:
            actor_class: the class of a new actor, if there is none of the name.
            name: unique on the cluster.

        Raises:
            FarmError: the cluster cannot be reached.
        """
        with ray_errors(f"reaching {name}"):
            remote = self._ray.remote(num_cpus=0, resources={_HEAD: _LITTLE})(actor_class)
            return remote.options(name=name, get_if_exists=True, lifetime="detached").remote()

    def ask(self, reference: Any, timeout_seconds: float) -> Any:  # noqa: ANN401 - of any type
        """Return the result of an actor's method.

        Args:
            reference: the call's.
            timeout_seconds: the longest wait.

        Raises:
            LostWorkerError: the actor is gone.
            FarmError: the actor does not answer in time.
        """
        with ray_errors("asking another driver"):
            return self._ray.get(reference, timeout=timeout_seconds)

    def close(self) -> None:
        """Leave the cluster. It ends all tasks of this driver."""
        self._ray.shutdown()


class Pending:
    """The probe of a machine, whose answer is pending."""

    def __init__(self, ray: Any, node: Node, reference: Any) -> None:  # noqa: ANN401 - Ray's
        self._ray = ray
        self._doing = f"probing {node.address}"
        self._reference = reference

    def result(self, deadline: float, look: Callable[[], None]) -> str:
        """Return the JSON that `model-artifacts host` prints there.

        Args:
            deadline: the end of the wait, by `time.monotonic`.
            look: called every few seconds; an exception ends the wait.

        Raises:
            FarmError: the machine does not answer in time, or its probe failed.
        """

        def look_at_the_time() -> None:
            look()
            if time.monotonic() > deadline:
                raise FarmError(f"{self._doing}: no answer in time", fix=NO_ANSWER)

        return str(get_value(self._ray, self._reference, self._doing, look_at_the_time))


class Running:
    """A parcel on its way to a worker, or at work there."""

    def __init__(self, ray: Any, generator: Any) -> None:  # noqa: ANN401 - Ray's
        self._ray = ray
        self._generator = generator
        self._asked: set[bool] = set()
        self._asking = threading.Lock()

    def items(self, look: Callable[[], None]) -> Iterator[str | bytes]:
        """Yield the worker's messages and the bytes of its results, as they arrive.

        Args:
            look: called every few seconds; an exception ends the wait.

        Raises:
            LostWorkerError: the worker or its node is gone.
            FarmError: the step could not begin.
        """
        while True:
            wait_for(self._ray, self._generator, "running a step", look)
            with ray_errors("running a step"):
                reference = next(self._generator, None)
            if reference is None:
                return
            yield get_value(self._ray, reference, "running a step", look)

    def cancel(self, *, force: bool = False) -> None:
        """Ask the step to end, or kill its worker; each only once.

        A second request can end this process: while the answer to the first arrives, Ray's check that a task is pending
        sometimes fails (ray-project/ray#54738).

        Args:
            force: True kills the worker.
        """
        with self._asking:
            if force in self._asked:
                return
            self._asked.add(force)
        with suppress(Exception):  # the step or its node has ended already
            self._ray.cancel(self._generator, force=force)

    def end(self) -> None:
        """End the step and wait for its end. After `_ANSWER_SECONDS` its worker is killed."""
        for force in (False, True):
            self.cancel(force=force)
            with suppress(Exception):  # as above
                if self._ray.wait([self._generator.completed()], timeout=_ANSWER_SECONDS)[0]:
                    return
