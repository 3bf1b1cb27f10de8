"""The one place that knows Ray: nodes, tasks, objects, and what goes wrong with them."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import FarmError
from model_artifacts.records import Record
from pipeline.farm.ray_calls import (
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
"""Of a resource that is not used up, but tells where a task may run."""

_ANSWER_SECONDS = 2 * TERM_SECONDS
"""How long a task that was asked to end may take, and its command before it; then its process is killed."""
_AHEAD = 8
"""How many pieces a worker may be ahead of who takes them: so many lie in its machine's memory."""

_GPU_PARTS = 10_000
"""What Ray divides a GPU into."""
_ACCELERATOR = "accelerator_type:"
"""Ray's prefix of the resource that names a node's type of GPU."""
_NODE_ID = "ray.io/node-id"
"""Ray's own label of a node."""
_HEAD = "node:__internal_head__"
"""Ray's own resource of the node that lives as long as the cluster."""

_OUR_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run doit` would have Ray send the whole folder to every worker
    "RAY_USAGE_STATS_ENABLED": "0",
}


class NodeRequirements(NamedTuple):
    """What a node must have for a task to run there."""

    accelerator: str | None
    resources: tuple[str, ...]
    sharing: int = 1
    """How many such tasks a GPU takes at once."""

    @classmethod
    def of(cls, target: FarmTarget, *, alone: bool = True) -> NodeRequirements:
        """Return what a target's steps need: those that are timed a GPU alone, others what the target says."""
        return cls(target.accelerator, target.resources, 1 if alone else target.steps_per_gpu)

    @property
    def gpus(self) -> float:
        """How much of a GPU it takes; rounded down to what Ray counts, so that as many as are to share one fit."""
        return _GPU_PARTS // self.sharing / _GPU_PARTS if self.accelerator else 0

    def met_by(self, node: Node) -> bool:
        """Return whether a node could ever run it."""
        wanted = {"CPU": 1.0, "GPU": self.gpus, **dict.fromkeys(self._marks, _LITTLE)}
        return all(node.resources.get(name, 0.0) >= amount for name, amount in wanted.items())

    @property
    def _marks(self) -> tuple[str, ...]:
        return (*([_ACCELERATOR + self.accelerator] if self.accelerator else []), *self.resources)

    @property
    def shown(self) -> str:
        """As a phrase, for messages."""
        gpu = [f"1 GPU of accelerator type {self.accelerator}"] if self.accelerator else []
        return ", ".join(("1 CPU", *gpu, *(f"the resource {name!r}" for name in self.resources)))

    def options(self, avoid: Collection[str] = ()) -> dict[str, object]:
        """Return it in Ray's words, with the nodes on which the task is not to run."""
        elsewhere = {"label_selector": {_NODE_ID: f"!in({','.join(sorted(avoid))})"}} if avoid else {}
        marks = dict.fromkeys(self._marks, _LITTLE)
        return {"num_cpus": 1, "num_gpus": self.gpus, "resources": marks, **elsewhere}


class Node(NamedTuple):
    """A machine of the cluster."""

    id: str
    address: str
    resources: dict[str, float]

    @property
    def shown(self) -> str:
        """What it has, for messages."""
        hidden = ("node:", "memory", "object_store_memory", _ACCELERATOR)
        plain = [f"{value:g} {name}" for name, value in sorted(self.resources.items()) if not name.startswith(hidden)]
        types = [name.removeprefix(_ACCELERATOR) for name in self.resources if name.startswith(_ACCELERATOR)]
        return f"{self.address}: {', '.join([*plain, *types]) or 'nothing'}"


class Probe(Record):
    """What a machine says of itself."""

    package: str
    host: str
    """What `model-artifacts host` prints there."""


class Cluster:
    """A Ray cluster that this process is a driver of."""

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
            timeout_seconds: how long that may take.

        Raises:
            FarmError: Ray is not installed, no cluster answers in time, or it has another version of Ray or Python.
        """
        if "://" in address:
            raise FarmError(
                f"farm.address takes host:port or auto, got {address}",
                fix="make this machine a node, which needs no CPUs to give: "
                "`ray start --address=HOST:PORT --num-cpus=0`, then `address: auto`",
            )
        tries = max(1, int(timeout_seconds / TRY_SECONDS))
        for name, value in {**_OUR_ENVIRONMENT, "RAY_NUM_REDIS_GET_RETRIES": str(tries)}.items():
            os.environ.setdefault(name, value)
        try:
            import ray  # noqa: PLC0415 - 2 s, and only where there is something to do elsewhere
        except ImportError as exc:
            raise FarmError(
                "executor: ray takes the package ray, which is not installed here",
                fix="install this project with its extra `farm`",
            ) from exc
        if not ray.is_initialized():  # else this process has looked at the farm before
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
            found = [item for item in self._ray.nodes() if item["Alive"]]
        nodes = [Node(item["NodeID"], item["NodeManagerAddress"], dict(item["Resources"])) for item in found]
        return tuple(sorted(nodes, key=lambda node: (node.address, node.id)))

    def probe(self, node: Node) -> Pending:
        """Ask a machine what it is; it need not be idle."""
        with ray_errors(f"asking {node.address} what it is"):
            return Pending(self._ray, node, self._probe.options(scheduling_strategy=on_node(node)).remote())

    def put(self, content: Path | bytes) -> list[Any]:
        """Return a file's bytes as objects of the cluster, in pieces.

        Raises:
            FarmError: the cluster does not take them.
            StorageError: the file cannot be read.
        """
        with ray_errors("sending a file"):
            return [self._ray.put(piece) for piece in ([content] if isinstance(content, bytes) else pieces(content))]

    def submit(
        self, parcel: Parcel, small: bytes, large: list[list[Any]], needs: NodeRequirements, avoid: Collection[str]
    ) -> Running:
        """Have a worker run a parcel's command.

        Args:
            parcel: what to run.
            small: the bytes of its small files, one after another.
            large: the contents of the others, as `put` gives them.
            needs: what its node must have.
            avoid: nodes on which it is not to run.

        Raises:
            FarmError: the cluster cannot be reached.
        """
        with ray_errors("sending a step"):
            step = self._step.options(**needs.options(avoid))
            return Running(self._ray, step.remote(parcel.to_json(), small, large))

    def actor(self, kind: type, name: str) -> Any:  # noqa: ANN401 - a handle of Ray's
        """Return the one object of a name on the cluster, which outlives the driver that was the first to ask.

        Raises:
            FarmError: the cluster cannot be reached.
        """
        with ray_errors(f"reaching {name}"):
            there = self._ray.remote(num_cpus=0, resources={_HEAD: _LITTLE})(kind)
            return there.options(name=name, get_if_exists=True, lifetime="detached").remote()

    def ask(self, reference: Any, timeout_seconds: float) -> Any:  # noqa: ANN401 - what the actor's method returns
        """Return what an actor's method has returned.

        Raises:
            LostWorkerError: the actor has gone.
            FarmError: it does not answer.
        """
        with ray_errors("asking another driver"):
            return self._ray.get(reference, timeout=timeout_seconds)

    def close(self) -> None:
        """Leave the cluster; what still runs there for this driver ends."""
        self._ray.shutdown()


class Pending:
    """A machine that was asked what it is."""

    def __init__(self, ray: Any, node: Node, reference: Any) -> None:  # noqa: ANN401 - Ray's
        self._ray = ray
        self._doing = f"asking {node.address} what it is"
        self._reference = reference

    def result(self, deadline: float, look: Callable[[], None]) -> Probe:
        """Return what it says.

        Args:
            deadline: until when it may, by `time.monotonic`.
            look: called every few seconds; what it raises ends this.

        Raises:
            FarmError: it does not answer in time, or cannot.
        """

        def look_at_the_time() -> None:
            look()
            if time.monotonic() > deadline:
                raise FarmError(
                    f"{self._doing}: no answer in time", fix="raise farm.connect_timeout_seconds, or see why"
                )

        return Probe.model_validate_json(get_value(self._ray, self._reference, self._doing, look_at_the_time))


class Running:
    """A parcel that a worker has, or will have."""

    def __init__(self, ray: Any, generator: Any) -> None:  # noqa: ANN401 - Ray's
        self._ray = ray
        self._generator = generator
        self._asked: set[bool] = set()
        self._asking = threading.Lock()

    def items(self, look: Callable[[], None]) -> Iterator[str | bytes]:
        """Yield what the worker tells and gives, as it comes.

        Args:
            look: called every few seconds; what it raises ends this.

        Raises:
            LostWorkerError: the worker or its node has gone.
            FarmError: it could not begin.
        """
        while True:
            wait_for(self._ray, self._generator, "running a step", look)
            with ray_errors("running a step"):
                reference = next(self._generator, None)
            if reference is None:
                return
            yield get_value(self._ray, reference, "running a step", look)

    def cancel(self, *, force: bool = False) -> None:
        """Ask it to end, or kill its worker; each once.

        Asked again while the answer to the first comes in, Ray's check that a task is still pending fails at times, and
        ends this process (ray-project/ray#54738).
        """
        with self._asking:
            if force in self._asked:
                return
            self._asked.add(force)
        with suppress(Exception):  # it has ended, or its node has
            self._ray.cancel(self._generator, force=force)

    def end(self) -> None:
        """End it, wherever it is, and see that it has; one that does not listen is killed."""
        for force in (False, True):
            self.cancel(force=force)
            with suppress(Exception):  # the same
                if self._ray.wait([self._generator.completed()], timeout=_ANSWER_SECONDS)[0]:
                    return
