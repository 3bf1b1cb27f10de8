"""A farm's machines, and the target of each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import FarmError, UnknownFarmError
from pipeline.cli.main import main
from pipeline.farm.inspection import able_nodes, common_host, look_at_farm, unfit_nodes
from pipeline.planning.project import Project
from pipeline.records import FarmNode, FarmRecord
from pipeline.stages import STAGES
from tests.conftest import TINY
from tests.support.farm_steps import AHEAD, FARM, NODES, TUNED
from tests.support.hosts import H100, L4, RTX, TRT10, TRT86, host, machine

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import DeploymentHost, Gpu, Tool
    from pipeline.config.settings import FarmTarget


# Which machines there are.


@pytest.mark.parametrize(
    ("target", "able"),
    [
        (AHEAD, ["h", "p"]),
        (TUNED, ["h"]),
        (TUNED.model_copy(update={"resources": ("tensorrt",)}), ["h"]),
        (AHEAD.model_copy(update={"resources": ("tensorrt",)}), ["h"]),
    ],
)
def test_target_runs_where_all_that_it_needs_is(target: FarmTarget, able: list[str]) -> None:
    """A target's nodes have a GPU of its type, a core, and every resource that it names."""
    assert [node.id for node in able_nodes(target, NODES)] == able


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"accelerator": "L4"}, "1 CPU, 1 GPU of accelerator type L4"),
        ({"resources": ("pcie",)}, "1 CPU, 1 GPU of accelerator type H100, the resource 'pcie'"),
    ],
)
def test_target_without_a_machine_is_told_what_there_is(change: dict[str, object], expected: str) -> None:
    """The message has the target's requirements and every machine's resources."""
    with pytest.raises(FarmError) as caught:
        able_nodes(TUNED.model_copy(update=change), NODES)
    assert f"expected: {expected}" in str(caught.value)
    assert "10.0.0.1: nothing; 10.0.0.2: 8 CPU, 1 GPU, 1 tensorrt, H100; 10.0.0.3: 4 CPU" in str(caught.value)


def nodes(*hosts: DeploymentHost) -> list[FarmNode]:
    """Return machines of the farm."""
    return [FarmNode(id=str(number), host=found) for number, found in enumerate(hosts)]


def test_machines_that_are_alike_are_one_kind() -> None:
    """Drivers and GPU numbers may differ between machines of one kind."""
    other = H100.model_copy(update={"uuid": L4.uuid, "index": 3})
    alike = [machine(host(gpu, flavours=(TRT10,))) for gpu in (H100, other)]
    assert common_host(TUNED, nodes(*alike)) == alike[0]


@pytest.mark.parametrize(
    ("gpu", "flavours", "torch", "got"),
    [
        (H100, (TRT86,), "2.11.0", "1 with tensorrt 8.6.0;"),
        (H100, (TRT10,), "2.12.0", "torch 2.12.0"),
        (H100.model_copy(update={"name": "NVIDIA H100 PCIe"}), (TRT10,), "2.11.0", "NVIDIA H100 PCIe"),
    ],
)
def test_machines_that_are_not_alike_are_refused(gpu: Gpu, flavours: tuple[Tool, ...], torch: str, got: str) -> None:
    """A target with unlike machines is refused, and the message names the setting that tells them apart."""
    two = nodes(machine(host(H100, flavours=(TRT10,))), machine(host(gpu, flavours=flavours, torch=torch)))
    with pytest.raises(FarmError, match="are not alike") as caught:
        common_host(TUNED, two)
    assert got in str(caught.value)
    assert "`resources`" in str(caught.value)


def test_machines_that_lack_a_flavour_are_not_the_targets() -> None:
    """Each machine of a cluster builds only for the flavours that it has."""
    tuned, ahead = nodes(machine(host(H100, flavours=(TRT10,))), machine(host(flavours=(RTX,))))
    both = (tuned, ahead)
    assert common_host(AHEAD, both) == ahead.host
    assert common_host(TUNED, both) == tuned.host
    record = FarmRecord(hosts=(), nodes=both)
    assert unfit_nodes(AHEAD, record) == {tuned.id}
    assert unfit_nodes(TUNED, record) == {ahead.id}


@pytest.mark.parametrize("first", [0, 1])
def test_target_without_a_gpu_takes_machines_whatever_else_they_have(first: int) -> None:
    """A target without a GPU takes any machine with its flavour, with or without a GPU."""
    two = nodes(machine(host(H100, flavours=(TRT10, RTX), torch="absent")), machine(host(flavours=(RTX,))))
    found = common_host(AHEAD, [two[first], two[1 - first]])
    assert (found.host.gpus, found.driver) == ((), "absent")


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        (host(H100, flavours=(RTX,)), "the machines for H100 with tensorrt lack its flavour"),
        (host(H100, flavours=()), "no TensorRT"),
        (host(flavours=(TRT10,)), "declare a GPU to Ray, but their driver shows none"),
    ],
)
def test_machines_that_lack_what_a_target_takes_are_refused(there: object, problem: str) -> None:
    """Machines without the target's flavour or GPU are refused before any step is sent."""
    with pytest.raises(FarmError, match=problem):
        common_host(TUNED, nodes(machine(there)))  # type: ignore[arg-type]


def test_farm_that_nobody_has_looked_at_is_told_so(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """The error for an unknown farm names the command that looks at it."""
    project.paths.farm.unlink()
    with pytest.raises(UnknownFarmError, match="nobody has looked at the farm yet"):
        Project.load(project.config_file, STAGES)
    assert main(["plan", "--config", str(project.config_file)]) == 1
    assert "python -m pipeline farm" in capsys.readouterr().err


def test_farm_whose_record_is_damaged_is_looked_at_again(project: Project) -> None:
    """A damaged record counts as missing, so that doit inspects the farm again."""
    project.paths.farm.write_text("{")
    with pytest.raises(UnknownFarmError, match="is not a valid FarmRecord"):
        Project.load(project.config_file, STAGES)


def test_new_target_has_to_be_looked_at(project: Project) -> None:
    """A target that is new in the configuration is an unknown farm until it is inspected."""
    project.config_file.write_text(FARM.replace("[{f", "[{accelerator: L4, flavour: tensorrt}, {f"))
    with pytest.raises(UnknownFarmError, match="L4 with tensorrt"):
        Project.load(project.config_file, STAGES)


def test_configuration_without_a_farm_has_none_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspecting a farm that is not configured is an error of usage."""
    (tmp_path / "pipeline.yaml").write_text(TINY)
    assert main(["farm", "--config", str(tmp_path / "pipeline.yaml")]) == 2
    assert "has no `farm`" in capsys.readouterr().err


# The cluster that is not there.


def test_ray_that_is_not_installed_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that installs Ray."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FarmError, match="its extra `farm`"):
        look_at_farm(project.config_file)
