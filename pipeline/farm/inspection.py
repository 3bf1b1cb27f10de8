"""The cluster's machines → `farm.json`: the host of each target of the configuration.

Two problems are errors here, before any step is sent. A target that no machine can run: Ray would wait for one without
a message. Machines for one target that differ.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import ValidationError

from model_artifacts.errors import ArtifactError, FarmError, UsageError, shortened
from model_artifacts.host.environment import read_host
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import DeploymentHost
from pipeline.farm.cluster import Cluster, Node, NodeRequirements
from pipeline.planning.folder.configurations import read_place
from pipeline.planning.paths import Paths
from pipeline.planning.project import traits
from pipeline.records import FarmHost, FarmNode, FarmRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from pipeline.config.settings import FarmConfig, FarmTarget


def look_at_farm(place: Path) -> FarmRecord:
    """Join the cluster, probe its machines, and write their description to `farm.json`.

    Args:
        place: the configuration's file, or a folder of such files.

    Raises:
        ConfigError: the configuration has problems.
        UsageError: the configuration has no `farm`.
        FarmError: the cluster cannot be reached, or cannot run one of the targets.
        StorageError: the record cannot be written.
    """
    first, *_ = read_place(place, read_host())  # all models have one farm
    config = first.config
    if config.farm is None:
        raise UsageError(f"{place} has no `farm`", expected="`executor: ray`, and `farm` with its targets")
    cluster = Cluster.connect(config.farm.address, config.farm.connect_timeout_seconds)
    return look(cluster, config.farm, Paths(first.artifacts, config.model.name))


def look(cluster: Cluster, farm: FarmConfig, paths: Paths, check: Callable[[], None] = lambda: None) -> FarmRecord:
    """Probe the machines of a joined cluster, and write their description to `farm.json`.

    Machines that the record describes already are not probed again.

    Args:
        cluster: the joined cluster.
        farm: the targets and the time limit of the probes.
        paths: the artifacts folder, with the record.
        check: called every few seconds during the probes; an exception ends them.

    Raises:
        FarmError: the cluster cannot be reached, or cannot run one of the targets.
        StorageError: the record cannot be written.
    """
    nodes = cluster.nodes()
    able = {target.worker_kind: able_nodes(target, nodes) for target in farm.targets}
    needed = {node.id: node for able_for_target in able.values() for node in able_for_target}
    known = {item.id: item for item in _known(paths).nodes if item.id in needed}
    pending = {node.id: cluster.probe(node) for node in needed.values() if node.id not in known}
    deadline = time.monotonic() + farm.connect_timeout_seconds
    for name, answer in pending.items():
        known[name] = _described(needed[name], answer.result(deadline, check))
    before = {item.worker_kind: item.host for item in _known(paths).hosts}
    hosts = {}
    for target in farm.targets:
        host = common_host(target, [known[node.id] for node in able[target.worker_kind]])
        former = before.get(target.worker_kind, host)
        same = _traits(former, target) == _traits(host, target)  # an equal host must not change the plan
        hosts[target.worker_kind] = FarmHost(worker_kind=target.worker_kind, host=former if same else host)
    record = FarmRecord(hosts=tuple(hosts.values()), nodes=tuple(known[name] for name in sorted(known)))
    if record != _known(paths):
        write_record(paths.farm, record)
    return record


def able_nodes(target: FarmTarget, nodes: Sequence[Node], unfit: Collection[str] = ()) -> list[Node]:
    """Return the machines that can run a target's steps.

    Args:
        target: the farm's target.
        nodes: all machines of the cluster.
        unfit: ids of machines that lack something which the cluster does not know, such as a flavour.

    Raises:
        FarmError: no machine can run them.
    """
    requirements = NodeRequirements.of(target)
    if able := [node for node in nodes if requirements.met_by(node) and node.id not in unfit]:
        return able
    present = "; ".join(node.shown for node in nodes) or "no machine at all"
    raise FarmError(
        f"no machine of the farm can run steps of the target {target.worker_kind}",
        expected=requirements.shown,
        got=present,
        fix="start such a machine with `ray start --address=HOST:PORT`, or remove the target from farm.targets",
    )


def _known(paths: Paths) -> FarmRecord:
    """Return the record of earlier probes, empty if it is missing or damaged."""
    try:
        return read_record(paths.farm, FarmRecord)
    except ArtifactError:
        return FarmRecord(hosts=())


def _described(node: Node, printed: str) -> FarmNode:
    """Return the description of a machine from the JSON that it printed.

    Raises:
        FarmError: the answer is no description.
    """
    try:
        return FarmNode(id=node.id, host=DeploymentHost.model_validate_json(printed))
    except ValidationError as exc:
        raise FarmError(f"{node.address} did not describe itself", got=shortened(printed)) from exc


def unfit_nodes(target: FarmTarget, record: FarmRecord) -> frozenset[str]:
    """Return the ids of machines without a target's flavour. Ray does not know flavours, and would choose them."""
    return frozenset(node.id for node in record.nodes if not _has_flavour(node, target))


def _has_flavour(node: FarmNode, target: FarmTarget) -> bool:
    """Return True if a machine has the target's flavour of TensorRT."""
    return target.flavour.value in {tool.name for tool in node.host.host.flavours}


def common_host(target: FarmTarget, nodes: Sequence[FarmNode]) -> DeploymentHost:
    """Return the host that all machines of a target have in common.

    The machines are alike in everything that engines depend on. Those without the target's flavour do not count.

    Args:
        target: the farm's target.
        nodes: the machines that can run its steps.

    Raises:
        FarmError: the machines differ, or lack the target's flavour or its GPU.
    """
    flavours = {tool.name for node in nodes for tool in node.host.host.flavours}
    if target.flavour.value not in flavours:
        raise FarmError(
            f"the machines for {target.worker_kind} lack its flavour",
            expected=target.flavour.value,
            got=", ".join(sorted(flavours)) or "no TensorRT",
            fix="install it on the machines that shall build for this target; the others do not need it",
        )
    alike: dict[str, list[FarmNode]] = {}
    for node in nodes:
        if _has_flavour(node, target):
            alike.setdefault("; ".join(_traits(node.host, target).values()), []).append(node)
    if len(alike) > 1:
        raise FarmError(
            f"the machines for {target.worker_kind} are not alike, and a step's result would depend on its machine",
            expected="the same versions and the same GPU; or a custom resource of the machines to use, named in the "
            "target's `resources`",
            got="; and ".join(f"{len(group)} with {shown}" for shown, group in alike.items()),
        )
    ((node, *_),) = alike.values()
    host = node.host
    if not target.accelerator:  # the target builds without a GPU, even on a machine that has one
        plain = host.host.model_copy(update={"gpus": ()})
        return host.model_copy(update={"host": plain, "free_memory_bytes": (), "driver": "absent"})
    if target.builds_on_its_gpu and not host.host.gpus:
        raise FarmError(
            f"the machines for {target.worker_kind} declare a GPU to Ray, but their driver shows none",
            got=f"driver: {host.driver}",
        )
    return host


def _traits(host: DeploymentHost, target: FarmTarget) -> dict[str, str]:
    """Return everything of a host that a target's engines depend on."""
    return traits(target, host.host, host.torch_tensorrt, host.onnxruntime)
