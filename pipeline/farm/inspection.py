"""The cluster's machines → `farm.json`: what each of the configuration's targets would run on.

Refused before anything is sent: a target that no machine can run, for which Ray would wait in silence; and machines of
one kind that are not alike.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import ValidationError

from model_artifacts.errors import ArtifactError, FarmError, UsageError
from model_artifacts.host.environment import read_host
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import DeploymentHost
from pipeline.config.loading import load_config
from pipeline.farm.cluster import Cluster, Node, NodeRequirements, Probe
from pipeline.farm.parcels import this_package
from pipeline.planning.paths import Paths
from pipeline.planning.project import traits
from pipeline.records import FarmHost, FarmNode, FarmRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from pipeline.config.settings import FarmConfig, FarmTarget


def look_at_farm(file: Path) -> FarmRecord:
    """Ask the cluster's machines what they are, and keep that as `farm.json`.

    Args:
        file: the configuration.

    Raises:
        ConfigError: it is wrong.
        UsageError: it names no farm.
        FarmError: the cluster cannot be reached, or cannot run one of the targets.
        StorageError: the record cannot be written.
    """
    config = load_config(file, read_host())
    if config.farm is None:
        raise UsageError(f"{file} names no farm", expected="executor: ray, and a key `farm` with its targets")
    cluster = Cluster.connect(config.farm.address, config.farm.connect_timeout_seconds)
    return look(cluster, config.farm, Paths(file.parent / config.artifacts, config.model.name))


def look(cluster: Cluster, farm: FarmConfig, paths: Paths, check: Callable[[], None] = lambda: None) -> FarmRecord:
    """Do so on a cluster that this process has joined; machines that were asked before are not asked again.

    Args:
        cluster: the machines.
        farm: what they are for.
        paths: where the record lies.
        check: called every few seconds while they are waited for; what it raises ends this.
    """
    nodes = cluster.nodes()
    able = {target.worker_kind: able_nodes(target, nodes) for target in farm.targets}
    asked = {node.id: node for found in able.values() for node in found}
    known = {item.id: item for item in _known(paths).nodes if item.id in asked}
    pending = {node.id: cluster.probe(node) for node in asked.values() if node.id not in known}
    deadline = time.monotonic() + farm.connect_timeout_seconds
    for name, answer in pending.items():
        known[name] = _described(asked[name], answer.result(deadline, check))
    before = {item.worker_kind: item.host for item in _known(paths).hosts}
    hosts = {}
    for target in farm.targets:
        host = common_host(target, [known[node.id] for node in able[target.worker_kind]])
        former = before.get(target.worker_kind, host)
        same = _traits(former, target) == _traits(host, target)  # then the plan does not change with who comes first
        hosts[target.worker_kind] = FarmHost(worker_kind=target.worker_kind, host=former if same else host)
    record = FarmRecord(hosts=tuple(hosts.values()), nodes=tuple(known[name] for name in sorted(known)))
    if record != _known(paths):
        write_record(paths.farm, record)
    return record


def able_nodes(target: FarmTarget, nodes: Sequence[Node], unfit: Collection[str] = ()) -> list[Node]:
    """Return the machines that can run a target's steps.

    Args:
        target: what they are to run.
        nodes: all that there are.
        unfit: of which those are known to lack something that the cluster does not know of.

    Raises:
        FarmError: none of them can.
    """
    needs = NodeRequirements.of(target)
    if found := [node for node in nodes if needs.met_by(node) and node.id not in unfit]:
        return found
    there = "; ".join(node.shown for node in nodes) or "no machine at all"
    raise FarmError(
        f"no machine of the farm can run what {target.worker_kind} needs",
        expected=needs.shown,
        got=there,
        fix="start one with `ray start --address=HOST:PORT`, or take the target out of farm.targets",
    )


def _known(paths: Paths) -> FarmRecord:
    try:
        return read_record(paths.farm, FarmRecord)
    except ArtifactError:
        return FarmRecord(hosts=())


def _described(node: Node, probe: Probe) -> FarmNode:
    """Return what a machine says of itself.

    Raises:
        FarmError: it has another version of this package.
    """
    if probe.package != this_package():
        raise FarmError(
            f"{node.address} has another version of this package",
            expected=this_package(),
            got=probe.package,
            fix="install the same version on every machine of the farm",
        )
    try:
        return FarmNode(id=node.id, host=DeploymentHost.model_validate_json(probe.host))
    except ValidationError as exc:
        raise FarmError(f"{node.address} does not say what it is", got=probe.host[:200]) from exc


def unfit_nodes(target: FarmTarget, record: FarmRecord) -> frozenset[str]:
    """Return the machines that lack a target's flavour, and so build nothing for it; Ray does not know of flavours."""
    return frozenset(node.id for node in record.nodes if not _has_flavour(node, target))


def _has_flavour(node: FarmNode, target: FarmTarget) -> bool:
    return target.flavour.value in {tool.name for tool in node.host.host.flavours}


def common_host(target: FarmTarget, nodes: Sequence[FarmNode]) -> DeploymentHost:
    """Return what a target's machines are, which in all that engines depend on are alike.

    Those that lack its flavour are not the target's.

    Raises:
        FarmError: they are not, or lack what the target needs.
    """
    flavours = {tool.name for node in nodes for tool in node.host.host.flavours}
    if target.flavour.value not in flavours:
        raise FarmError(
            f"the machines for {target.worker_kind} lack its flavour",
            expected=target.flavour.value,
            got=", ".join(sorted(flavours)) or "no TensorRT",
            fix="install it on those that are to build for this target; the others may do without",
        )
    kinds: dict[str, list[FarmNode]] = {}
    for node in nodes:
        if _has_flavour(node, target):
            kinds.setdefault("; ".join(_traits(node.host, target).values()), []).append(node)
    if len(kinds) > 1:
        raise FarmError(
            f"the machines for {target.worker_kind} are not alike, so that it would be chance what a step gives",
            expected="the same versions and the same GPU; or a resource that only some declare, named in the target's "
            "`resources`",
            got="; and ".join(f"{len(alike)} with {kind}" for kind, alike in kinds.items()),
        )
    ((node, *_),) = kinds.values()
    host = node.host
    if not target.accelerator:  # whatever GPU one of them has is not what this is built on
        plain = host.host.model_copy(update={"gpus": ()})
        return host.model_copy(update={"host": plain, "free_memory_bytes": (), "driver": "absent"})
    if target.builds_on_its_gpu and not host.host.gpus:
        raise FarmError(
            f"the machines for {target.worker_kind} claim a GPU, and their driver shows none",
            got=f"driver: {host.driver}",
        )
    return host


def _traits(host: DeploymentHost, target: FarmTarget) -> dict[str, str]:
    return traits(target, host.host, host.torch_tensorrt, host.onnxruntime)
