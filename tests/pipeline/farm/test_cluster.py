"""Requirements of nodes, and clusters that cannot be joined."""

from __future__ import annotations

import os
import time

import pytest
from ray._private.label_utils import validate_label_selector

from model_artifacts.errors import FarmError
from pipeline.farm.cluster import Cluster, NodeRequirements, Running
from tests.support.farm_steps import AHEAD, TUNED, Cancelled

# Which machines there are.


def test_whole_gpu_or_none_is_asked_for() -> None:
    """A target with a GPU asks for its type and every named resource; one without asks for no GPU."""
    needs = NodeRequirements.of(TUNED.model_copy(update={"resources": ("pcie",)}))
    marks = {"accelerator_type:H100": 0.001, "pcie": 0.001}
    assert needs.options() == {"num_cpus": 1, "num_gpus": 1, "resources": marks}
    assert NodeRequirements.of(AHEAD).options() == {"num_cpus": 1, "num_gpus": 0, "resources": {}}


@pytest.mark.parametrize("sharing", range(1, 101))
def test_as_many_share_a_gpu_as_are_to(sharing: int) -> None:
    """The configured number of steps fits on a GPU in Ray's ten-thousandths, and one more does not."""
    needs = NodeRequirements.of(TUNED.model_copy(update={"steps_per_gpu": sharing}), alone=False)
    parts = round(1e4 * needs.gpus)
    assert 1e4 * needs.gpus == pytest.approx(parts, abs=1e-9)
    assert sharing * parts <= 10_000 < (sharing + 1) * parts


def test_step_is_kept_off_machines_by_their_names() -> None:
    """A step that runs again avoids the named machines; all others may take it."""
    options = NodeRequirements.of(AHEAD).options({"b1", "a0"})
    selector = {"ray.io/node-id": "!in(a0,b1)"}
    assert options == {"num_cpus": 1, "num_gpus": 0, "resources": {}, "label_selector": selector}
    assert validate_label_selector(selector) is None


# The cluster that is not there.


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ray://head:10001", "takes host:port or auto"),
        ("head", "takes host:port or auto, got head"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_address_without_a_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch, address: str, problem: str) -> None:
    """An address without a cluster is an error within seconds, where Ray alone would try for minutes."""
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    began = time.monotonic()
    with pytest.raises(FarmError, match=problem):
        Cluster.connect(address, 5)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("Version mismatch: The cluster was started with:\n Ray: 2.9.0", "another version of Ray or of Python"),
        ("Can't find a `node_ip_address.json` file", "cannot join the cluster at 10.0.0.1:6379"),
    ],
)
def test_cluster_that_cannot_be_joined_says_why(monkeypatch: pytest.MonkeyPatch, said: str, what: str) -> None:
    """The error for a cluster that refuses the driver has Ray's words and the fix."""

    def refuse(**_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: open(os.devnull))  # noqa: PTH123,SIM115
    with pytest.raises(FarmError, match=what) as caught:
        Cluster.connect("10.0.0.1:6379", 5)
    assert said.split(maxsplit=1)[0] in str(caught.value)


def test_step_is_asked_to_end_once_and_killed_once() -> None:
    """A task is cancelled once and killed once, because Ray sometimes fails at a second request."""
    ray = Cancelled()
    running = Running(ray, None)
    for force in (False, False, True, False, True):
        running.cancel(force=force)
    assert ray.orders == [False, True]
