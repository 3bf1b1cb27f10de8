"""The nearest timing of an artifact, and the choice among artifacts that were not measured as required."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.cli.main import main
from model_artifacts.deployment.evidence import Nearness, nearest, nearness_of
from model_artifacts.deployment.requirements import Requirements
from model_artifacts.deployment.resolution import Resolution, resolve_entry
from model_artifacts.errors import ResolveError
from model_artifacts.host.record_files import write_record
from model_artifacts.records import BatchRange, DeploymentHost, GpuType, ManifestEntry, Precision, Tool
from tests.support.deployables import CPU, engine, machine
from tests.support.hosts import H100, L4
from tests.support.manifests import accuracy, entry, manifest, timing

if TYPE_CHECKING:
    from pathlib import Path

OTHER_CORES = "AMD EPYC, 0.5 cores"
H100_PCIE = H100.model_copy(update={"name": "NVIDIA H100 PCIe"})


def graph(precision: Precision, distance: float, **times: float) -> ManifestEntry:
    """Return an ONNX file with its distance to the reference and its times by batch size, such as `b8=2.0`."""
    timed = [timing(int(batch[1:]), p50) for batch, p50 in times.items()]
    return entry(precision.value, *timed, device=CPU, precision=precision, accuracy=accuracy(distance))


FP32 = graph(Precision.FP32, 1e-6, b1=4.0, b8=30.0)
INT8 = graph(Precision.INT8, 1e-2, b1=1.0, b8=6.0)


def taken(*entries: ManifestEntry, on: DeploymentHost | None = None, **wishes: Any) -> Resolution:
    """Return the choice for a machine without a GPU, or for another one."""
    return resolve_entry(manifest(*entries), on or machine(), Requirements(**wishes))


@pytest.mark.parametrize(
    ("gpu", "processor", "timed", "nearness"),
    [
        (H100, CPU, {"gpu": GpuType(name=H100.name, compute_capability=90)}, Nearness.SAME),
        (H100_PCIE, CPU, {"gpu": GpuType(name=H100.name, compute_capability=90)}, Nearness.ARCHITECTURE),
        (L4, CPU, {"gpu": GpuType(name=H100.name, compute_capability=90)}, Nearness.OTHER),
        (None, CPU, {"gpu": None, "device": CPU}, Nearness.SAME),
        (None, OTHER_CORES, {"gpu": None, "device": CPU}, Nearness.ARCHITECTURE),
        (None, "Intel Xeon, 2 cores", {"gpu": None, "device": CPU}, Nearness.OTHER),
        (None, "", {"gpu": None, "device": CPU}, Nearness.OTHER),
        (None, "x86_64", {"gpu": None, "device": CPU}, Nearness.OTHER),
    ],
)
def test_devices_are_the_same_alike_or_others(
    gpu: Any, processor: str, timed: dict[str, Any], nearness: Nearness
) -> None:
    """The name decides, then the compute capability of a GPU, or the name of a processor without its cores."""
    assert nearness_of(engine("e", 0.1).model_copy(update=timed), gpu, processor) is nearness


@pytest.mark.parametrize(("batch", "timed"), [(1, 1), (2, 1), (3, 8), (4, 8), (8, 8), (64, 8), (None, 8)])
def test_the_nearest_batch_counts(batch: int | None, timed: int) -> None:
    """Nearness of batch sizes is their ratio; without one the batch with the shortest time an image counts."""
    found = nearest(FP32, None, CPU, batch)
    assert found is not None
    assert (found.batch, found.p50_ms, found.nearness) == (timed, {1: 4.0, 8: 30.0}[timed], Nearness.SAME)


def test_without_a_timing_there_is_no_evidence() -> None:
    """An artifact that was timed nowhere has none."""
    assert nearest(graph(Precision.FP16, 1e-3), None, CPU, 1) is None


@pytest.mark.parametrize(
    ("wishes", "processor", "evidence"),
    [
        ({"batch": 4}, CPU, f"6 ms at batch 8 on {CPU}"),
        ({"batch": 64, "throughput": True}, CPU, f"6 ms at batch 8 on {CPU}"),
        ({}, OTHER_CORES, f"1 ms at batch 1 on {CPU}"),
        ({"throughput": True}, "another, 4 cores", f"6 ms at batch 8 on {CPU}"),
    ],
)
def test_what_was_not_timed_so_is_ranked_by_the_nearest_timing(
    wishes: dict[str, Any], processor: str, evidence: str
) -> None:
    """int8 is taken as the faster one at the nearest batch or processor, not fp32 as the most accurate one."""
    found = taken(FP32, INT8, on=machine(processor=processor), **wishes)
    assert found.entry is INT8
    assert found.latency_ms is None
    assert str(found.evidence) == evidence
    (other,) = found.rejected
    assert other.reason.startswith("fits, but is not known to be faster: ")
    assert other.reason.endswith(f", against {evidence}")


def test_a_timing_here_comes_before_all_evidence() -> None:
    """A slow artifact that was timed at the required batch is taken, as before."""
    there = graph(Precision.FP16, 1e-3, b4=20.0)
    found = taken(FP32, INT8, there, batch=4)
    assert (found.entry, found.latency_ms, found.evidence) == (there, 20.0, None)
    assert {item.reason for item in found.rejected} == {"fits, but was not timed here (ms at batch 4)"}


def test_a_like_device_comes_before_another_and_any_before_none() -> None:
    """An engine timed on a GPU of this architecture comes first, however fast the other GPU was."""
    other = GpuType(name=L4.name, compute_capability=89)
    far = engine("far", 0.01, gpu=None).model_copy(update={"gpu": other})
    near, never = engine("near", 0.5, gpu=None), engine("a-never", gpu=None)
    found = taken(never, far, near, on=machine(H100_PCIE))
    assert found.entry is near
    assert {item.id.rpartition("/")[2]: item.reason for item in found.rejected} == {
        "far": f"fits, but is not known to be faster: 0.01 ms at batch 1 on {L4.name}, against {found.evidence}",
        "a-never": f"fits, but is not known to be faster: timed nowhere, against {found.evidence}",
    }
    assert taken(never, far, on=machine(H100_PCIE)).entry is far


def test_evidence_meets_no_bound_on_the_latency() -> None:
    """A latency of other cores or of another batch is no promise for these."""
    for there, batch in ((machine(processor=OTHER_CORES), 1), (machine(), 4)):
        with pytest.raises(ResolveError, match=f"was not timed at batch {batch} on AMD EPYC"):
            taken(FP32, INT8, on=there, batch=batch, max_latency_ms=1000.0)


@pytest.mark.parametrize("gpus", [(), (H100,)])
def test_without_onnxruntime_the_extra_is_named(gpus: Any) -> None:
    """The remedy is the command that installs the runtime, unless something else is missing, too."""
    absent = Tool(name="onnxruntime", version="absent")
    command = "pip install 'model-artifacts[onnxruntime]'"
    with pytest.raises(ResolveError) as caught:
        taken(FP32, INT8, on=machine(*gpus, onnxruntime=absent))
    assert f"  fix:      `{command}`; or build for this host (`doit`), or lower the requirements" in str(caught.value)
    fixed = FP32.model_copy(update={"profile": BatchRange(min=1, opt=1, max=1)})
    arm = machine(*gpus, onnxruntime=absent, machine="aarch64")
    for there, batch in ((arm, 1), (machine(*gpus, onnxruntime=absent), 9)):
        with pytest.raises(ResolveError) as caught:
            taken(fixed, on=there, batch=batch)
        assert command not in str(caught.value)


def test_the_command_says_what_ranked_the_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`resolve` prints the timing, as text and as JSON."""
    write_record(tmp_path / "manifest.json", manifest(FP32, INT8))
    write_record(tmp_path / "host.json", machine(processor=OTHER_CORES))
    command = ["resolve", str(tmp_path), "--host", str(tmp_path / "host.json")]
    assert main(command) == 0
    why = f"an ONNX file; the processor; not timed there; ranked by 1 ms at batch 1 on {CPU}"
    assert capsys.readouterr().out.splitlines()[2] == f"  why   {why}"
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranked_by"] == f"1 ms at batch 1 on {CPU}"
