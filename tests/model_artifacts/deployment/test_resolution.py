"""Resolution: the best artifact for a machine, and the reasons against the others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.cli.main import main
from model_artifacts.deployment.loading import resolve, this_host
from model_artifacts.deployment.requirements import Requirements
from model_artifacts.deployment.resolution import Resolution, Tier, resolve_entry
from model_artifacts.errors import ResolveError, UsageError
from model_artifacts.host.record_files import write_record
from model_artifacts.records import (
    Backend,
    BatchRange,
    DeploymentHost,
    EngineMemory,
    FileRecord,
    Gpu,
    ManifestEntry,
    Precision,
    Setting,
    Status,
    Tool,
)
from tests.support.command_line import status_of
from tests.support.deployables import CPU, MODULE_TARGET, engine, machine, module
from tests.support.hosts import H100, L4
from tests.support.manifests import accuracy, entry, manifest, timing

if TYPE_CHECKING:
    from pathlib import Path


def onnx(name: str, *milliseconds: float) -> ManifestEntry:
    """Return an ONNX file, timed on a processor."""
    times = [timing(batch, p50) for batch, p50 in enumerate(milliseconds, 1)]
    return entry(name, *times, device=CPU)


def taken(*entries: ManifestEntry, on: DeploymentHost | None = None, **wishes: Any) -> Resolution:
    """Return the chosen artifact."""
    return resolve_entry(manifest(*entries), on or machine(H100), Requirements(**wishes))


def name_of(found: Resolution) -> str:
    """Return the last part of the chosen artifact's id."""
    return found.entry.id.rpartition("/")[2]


def reasons(found: Resolution) -> dict[str, str]:
    """Return why the others were not."""
    return {item.id.rpartition("/")[2]: item.reason for item in found.rejected}


# The order of falling back.


EVERYTHING = (onnx("onnx", 0.1), module("module", 0.2), engine("portable", 0.3, gpu=None), engine("tuned", 0.4))


@pytest.mark.parametrize("count", [4, 3, 2, 1])
def test_the_order_of_falling_back_is_stated_and_not_measured(count: int) -> None:
    """Exact engine, compatible engine, Torch-TensorRT, ONNX: however fast the later ones are."""
    found = taken(*EVERYTHING[:count])
    assert name_of(found) == ["onnx", "module", "portable", "tuned"][count - 1]
    assert found.place.tier is [Tier.ONNX, Tier.TORCH_TENSORRT, Tier.COMPATIBLE_ENGINE, Tier.EXACT_ENGINE][count - 1]
    assert all(reason.startswith("fits, but falls back: ") for reason in reasons(found).values())
    assert len(found.rejected) == count - 1


def test_without_a_gpu_only_onnx_is_left() -> None:
    """Every artifact but ONNX says why it cannot run."""
    found = taken(*EVERYTHING, on=machine())
    assert name_of(found) == "onnx"
    assert found.place.gpu is None
    assert reasons(found) == {
        "module": f"is for {MODULE_TARGET}, got no GPU with torch 2.11.0",
        "portable": "needs an NVIDIA GPU with its driver",
        "tuned": "needs an NVIDIA GPU with its driver",
    }


def test_another_gpu_takes_what_was_built_for_many() -> None:
    """An engine of another type is refused by both names."""
    found = taken(*EVERYTHING, on=machine(L4))
    assert name_of(found) == "portable"
    assert reasons(found)["tuned"] == "is for NVIDIA H100 80GB HBM3 (SM 90), got NVIDIA L4 (SM 89)"
    assert found.latency_ms is None  # it was timed on an H100


def test_of_two_gpus_the_one_that_it_was_tuned_on_is_used() -> None:
    """The order of the GPUs does not matter."""
    found = taken(engine("tuned", 0.4), on=machine(L4, H100))
    assert found.place.gpu == H100


@pytest.mark.parametrize("made", [engine("tuned", 0.4), engine("portable", 0.3, gpu=None), module("module", 0.2)])
def test_of_gpus_that_fit_the_one_with_most_free_memory_is_used(made: ManifestEntry) -> None:
    """The first one may be full."""
    second, third = (H100.model_copy(update={"index": index, "uuid": f"GPU-{index}"}) for index in (1, 2))
    there = machine(H100, second, third, free_memory_bytes=(2**20, 60 * 2**30, None))
    needy = made.model_copy(update={"device_memory_bytes": 2**30})
    assert taken(needy, on=there).place.gpu == second


def test_where_the_exact_gpu_is_full_another_one_runs_it() -> None:
    """On the other GPU the engine counts as compatible, not as exact."""
    tuned = engine("tuned", 0.4, device_memory_bytes=2**30)
    assert tuned.built_for is not None
    wide = tuned.built_for.model_copy(update={"hardware_compatibility": "ampere_plus"})
    there = machine(H100, L4, free_memory_bytes=(2**20, 2**34))
    assert taken(tuned.model_copy(update={"built_for": wide}), on=there).place == (Tier.COMPATIBLE_ENGINE, L4)


@pytest.mark.parametrize(
    ("compatibility", "gpu", "fits"),
    [
        ("none", L4, False),
        ("ampere_plus", L4, True),
        ("same_compute_capability", L4, False),
        ("same_compute_capability", H100.model_copy(update={"name": "NVIDIA H100 PCIe"}), True),
    ],
)
def test_hardware_compatibility_counts(compatibility: str, gpu: Gpu, *, fits: bool) -> None:
    """An engine that was built for other GPUs of a kind is a compatible one there."""
    tuned = engine("tuned", 0.4)
    assert tuned.built_for is not None
    wide = tuned.model_copy(
        update={"built_for": tuned.built_for.model_copy(update={"hardware_compatibility": compatibility})}
    )
    if fits:
        assert taken(wide, on=machine(gpu)).place.tier is Tier.COMPATIBLE_ENGINE
    else:
        with pytest.raises(ResolveError, match="is for NVIDIA H100"):
            taken(wide, on=machine(gpu))


@pytest.mark.parametrize(
    ("made", "have", "compatible", "runs"),
    [
        ("10.15.1.29", "10.15.1.29", False, True),
        ("10.15.1.29", "10.16.0", False, False),
        ("10.15.1.29", "10.16.0", True, True),
        ("10.9.0", "10.15.1", True, True),
        ("10.15.1.29", "10.15.1", True, False),
        ("10.15.1.29", "8.6.0", True, False),
        ("8.6.1", "10.15.1.29", True, True),
        ("10.15.1.29", "11.1.0", True, True),
        ("8.6.1", "11.1.0", True, False),
        ("10.15.1.29", "absent", True, False),
    ],
)
def test_the_full_version_counts_unless_the_engine_is_version_compatible(
    made: str, have: str, *, compatible: bool, runs: bool
) -> None:
    """Only a version-compatible engine runs on another version, a later one, as TensorRT documents it."""
    tuned = engine("tuned", 0.4)
    assert tuned.built_for is not None
    built_for = tuned.built_for.model_copy(update={"version": made, "version_compatible": compatible})
    other = tuned.model_copy(update={"built_for": built_for})
    there = machine(H100, flavours=(Tool(name="tensorrt", version=have),))
    if runs:
        assert taken(other, on=there).place.tier is (Tier.EXACT_ENGINE if made == have else Tier.COMPATIBLE_ENGINE)
    else:
        with pytest.raises(ResolveError, match=re.escape(f"needs tensorrt {made}, got {have}")):
            taken(other, on=there)


def test_an_engine_of_tensorrt_rtx_runs_with_its_own_version_alone() -> None:
    """It has no version compatibility, whatever a record says."""
    portable = engine("portable", 0.4, gpu=None)
    assert portable.built_for is not None
    built_for = portable.built_for.model_copy(update={"version_compatible": True})
    with pytest.raises(ResolveError, match=r"needs tensorrt_rtx 1\.4\.0\.76, got 1\.5\.0"):
        taken(
            portable.model_copy(update={"built_for": built_for}),
            on=machine(H100, flavours=(Tool(name="tensorrt_rtx", version="1.5.0"),)),
        )


def test_a_module_needs_the_libraries_that_made_it() -> None:
    """A module loads only with the versions of the libraries that built it."""
    there = machine(H100, torch_tensorrt=Tool(name="torch-tensorrt", version="2.12.0"))
    with pytest.raises(ResolveError, match=r"needs torch-tensorrt 2\.11\.0, got 2\.12\.0"):
        taken(module("module", 0.2), on=there)


@pytest.mark.parametrize("made", [engine("made", 0.4), module("made", 0.2)], ids=lambda made: made.backend.value)
@pytest.mark.parametrize(("driver_cuda", "runs"), [(12, False), (13, True), (14, True), (None, True)])
def test_the_driver_must_run_the_cuda_of_the_installed_tensorrt(
    made: ManifestEntry, driver_cuda: int | None, *, runs: bool
) -> None:
    """The driver's CUDA has the same major version or a later one; an unknown version refuses nothing."""
    there = machine(H100, driver="535.183.01", driver_cuda=driver_cuda)
    there = there.model_copy(update={"host": there.host.model_copy(update={"cuda_majors": (13, 12)})})
    if runs:
        assert taken(made, on=there).entry is made
    else:
        with pytest.raises(ResolveError, match=re.escape("needs a driver for CUDA 13, got 535.183.01, for CUDA 12")):
            taken(made, on=there)


def test_onnx_needs_its_runtime_and_processor() -> None:
    """The message names the runtime and the processor."""
    absent = Tool(name="onnxruntime", version="absent")
    with pytest.raises(ResolveError, match="needs onnxruntime, which is not installed there"):
        taken(onnx("onnx"), on=machine(onnxruntime=absent))
    with pytest.raises(ResolveError, match="needs an x86-64 processor, got aarch64"):
        taken(onnx("onnx"), on=machine(machine="aarch64"))


# Wishes.


def test_a_precision_is_wished_by_name_too() -> None:
    """An unknown precision is refused with the names of the known ones."""
    found = taken(onnx("a", 0.1).model_copy(update={"precision": Precision.FP32}), onnx("b", 0.2), precision="fp16")
    assert name_of(found) == "b"
    assert reasons(found) == {"a": "fp32, required fp16"}
    with pytest.raises(UsageError, match=r"(?s)expected: fp32, .*fp16.*got:      'fp17'"):
        Requirements(precision="fp17")


def test_the_faster_one_is_taken_and_the_slower_one_says_by_how_much() -> None:
    """Latency at batch 1 counts by default, and artifacts without a timing come last."""
    found = taken(engine("slow", 0.4), engine("fast", 0.2), engine("untimed"))
    assert name_of(found) == "fast"
    assert found.latency_ms == 0.2
    assert reasons(found) == {
        "slow": "fits, but 0.4 ms at batch 1 against 0.2",
        "untimed": "fits, but was not timed here (ms at batch 1)",
    }


def test_of_equally_fast_ones_the_more_accurate_one_is_taken() -> None:
    """Accuracy decides between artifacts of equal speed."""
    found = taken(engine("far", 0.2, accuracy=accuracy(1e-2)), engine("near", 0.2, accuracy=accuracy(1e-3)))
    assert name_of(found) == "near"
    assert reasons(found) == {"far": "fits, but is less accurate"}
    assert reasons(taken(engine("b", 0.2), engine("a", 0.2))) == {"b": "fits equally, but comes later by name"}


def test_throughput_is_of_the_best_batch_size_unless_one_is_wished() -> None:
    """Two images in 0.3 ms are more than one in 0.2; at batch 1 it is the other way round."""
    wide, quick = engine("wide", 0.29, 0.3), engine("quick", 0.2, 0.5)
    assert name_of(taken(wide, quick, throughput=True)) == "wide"
    assert name_of(taken(wide, quick, throughput=True, batch=1)) == "quick"
    assert "images/s against" in reasons(taken(wide, quick, throughput=True))["quick"]


def test_a_batch_size_must_lie_in_the_profile() -> None:
    """Any batch range suits a requirement of throughput without a batch size."""
    fixed = engine("b2", 0.2, 0.3, profile=BatchRange(min=2, opt=2, max=2))
    assert name_of(taken(fixed, batch=2)) == "b2"
    assert name_of(taken(fixed, throughput=True)) == "b2"
    with pytest.raises(ResolveError, match="takes batches of 2 to 2, required 1"):
        taken(fixed)


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"max_latency_ms": 0.1}, r"0\.4 ms at batch 1, required at most 0\.1 ms"),
        ({"max_latency_ms": 9.0, "batch": 2}, "was not timed at batch 2 on NVIDIA H100 80GB HBM3"),
        ({"min_top1": 0.95}, r"top-1 92\.0%, required at least 95\.0%"),
        ({"precision": Precision.INT8}, "fp16, required int8"),
        ({"max_memory_bytes": 2**20}, "takes 3 MiB of the GPU's memory, required at most 1 MiB"),
    ],
    ids=str,
)
def test_a_wish_that_is_not_met_is_the_reason(wishes: dict[str, Any], reason: str) -> None:
    """The reason has the requirement and the artifact's value."""
    memory = EngineMemory(activation_bytes=2 * 2**20, weights_bytes=2**20)
    with pytest.raises(ResolveError, match=reason):
        taken(engine("tuned", 0.4, memory=memory), **wishes)


def test_a_latency_of_another_gpu_promises_nothing() -> None:
    """Only a timing on the same type of GPU meets a requirement of speed."""
    with pytest.raises(ResolveError, match="was not timed at batch 1 on NVIDIA L4"):
        taken(engine("portable", 0.3, gpu=None), on=machine(L4), max_latency_ms=100.0)


def test_a_latency_of_another_processor_promises_nothing() -> None:
    """A requirement of speed is not met by a latency that was measured on another processor."""
    with pytest.raises(ResolveError, match="was not timed at batch 1 on another"):
        taken(onnx("onnx", 0.3), on=machine(processor="another"), max_latency_ms=100.0)


def test_memory_that_was_seen_counts_more_than_what_was_said() -> None:
    """The measured memory must fit into the limit and into the free memory."""
    seen = engine("seen", 0.4, device_memory_bytes=2**30)
    assert name_of(taken(seen, max_memory_bytes=2**30)) == "seen"
    with pytest.raises(ResolveError, match="takes 1024 MiB of the GPU's memory, free are 512 MiB"):
        taken(seen, on=machine(H100, free_memory_bytes=(2**29,)))
    assert name_of(taken(seen, on=machine(H100, free_memory_bytes=(None,)))) == "seen"
    with pytest.raises(ResolveError, match="does not record how much"):
        taken(engine("silent", 0.4), max_memory_bytes=2**30)


def test_labels_are_needed_for_a_wished_top1() -> None:
    """Agreement with the reference is not accuracy."""
    with pytest.raises(ResolveError, match=r"was validated without labels, required at least 50\.0%"):
        taken(engine("tuned", 0.4, accuracy=accuracy(top1=None)), min_top1=0.5)


# What may not be deployed.


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.DEPLOYABLE])
def test_only_what_is_deployable_is_taken(status: Status) -> None:
    """An artifact that is not deployable is never chosen."""
    with pytest.raises(ResolveError, match=f"{status.value}: for a reason"):
        taken(engine("tuned", 0.1, status=status, reason="for a reason"))


def test_baselines_are_not_deployed() -> None:
    """Eager torch is in the manifest to compare with."""
    with pytest.raises(ResolveError, match="eager is a baseline to compare with"):
        taken(engine("eager", 0.1, backend=Backend.EAGER))


def test_an_engine_without_its_weights_is_not_taken() -> None:
    """A stripped engine whose entry names no weights is passed over with the reason, however fast it is."""
    stripped = engine("stripped", 0.1, settings=(Setting(name="strip_plan", value="on", applied=True),))
    unsupported = engine("whole", 0.2, settings=(Setting(name="strip_plan", value="on", applied=False),))

    assert name_of(taken(stripped, onnx("graph", 5.0), on=machine(H100))) == "graph"
    assert reasons(taken(stripped, onnx("graph"), on=machine(H100)))["stripped"].startswith(
        "was built without its weights"
    )
    assert name_of(taken(stripped, unsupported, on=machine(H100))) == "whole"
    fed = stripped.model_copy(update={"weights": FileRecord(path="m/onnx/fp16.onnx", bytes=1, sha256="0" * 64)})
    assert name_of(taken(fed, unsupported, on=machine(H100))) == "stripped"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"batch": 0}, "`batch` of 1 or more.*got: +0"),
        ({"batch": -2}, "`batch` of 1 or more.*got: +-2"),
        ({"min_top1": 75}, "0.75 is 75 %.*got: +75"),
        ({"min_top1": -0.1}, "`min_top1` from 0 to 1"),
        ({"min_top1": float("nan")}, "`min_top1` from 0 to 1"),
        ({"max_latency_ms": 0.0}, "`max_latency_ms` above 0"),
        ({"max_latency_ms": float("nan")}, "`max_latency_ms` above 0"),
        ({"max_memory_bytes": -1}, "`max_memory_bytes` above 0"),
    ],
)
def test_requirements_that_nothing_can_mean(wish: dict[str, Any], message: str) -> None:
    """A number out of its range is refused where it is written."""
    with pytest.raises(UsageError, match=rf"(?s){message}"):
        Requirements(**wish)


def test_an_empty_manifest_says_so() -> None:
    """There is nothing to name."""
    with pytest.raises(ResolveError, match="an empty manifest"):
        taken()


@given(
    st.lists(st.sampled_from([*EVERYTHING, engine("b2", 0.1, profile=BatchRange(min=2, opt=2, max=2))]), max_size=5),
    st.sampled_from([machine(), machine(H100), machine(L4), machine(L4, H100)]),
    st.builds(
        Requirements, batch=st.none() | st.integers(1, 3), throughput=st.booleans(), min_top1=st.none() | st.just(0.99)
    ),
)
def test_every_artifact_is_taken_or_rejected_for_a_reason(
    entries: list[ManifestEntry], there: DeploymentHost, requirements: Requirements
) -> None:
    """Each artifact is chosen or rejected with a reason, and the order of the entries changes nothing."""
    unique = list({item.id: item for item in entries}.values())
    try:
        found = resolve_entry(manifest(*unique), there, requirements)
    except ResolveError as exc:
        assert all(f"{item.id}: " in str(exc) for item in unique)  # noqa: PT017 - either answer is right
        return
    assert {found.entry.id, *(item.id for item in found.rejected)} == {item.id for item in unique}
    assert all(item.reason for item in found.rejected)
    assert resolve_entry(manifest(*reversed(unique)), there, requirements).entry == found.entry


# Typed.


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """A folder with a manifest of everything."""
    write_record(tmp_path / "manifest.json", manifest(*EVERYTHING))
    return tmp_path


def test_a_host_is_printed_and_read_back(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine resolves for the host that another machine printed."""
    assert main(["host"]) == 0
    printed = capsys.readouterr().out
    assert DeploymentHost.model_validate_json(printed) == this_host()
    file = artifacts / "host.json"
    write_record(file, machine(H100))
    assert main(["resolve", str(artifacts), "--host", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "m/cpu-x86_64/tuned",
        f"  file  {artifacts}/m/file",
        "  why   an engine tuned on this GPU; NVIDIA H100 80GB HBM3; 0.4 ms at batch 1",
    ]
    assert len(lines) == 3 + 3


def test_programs_are_answered_in_json(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON answer has the digest for the check before loading."""
    write_record(artifacts / "host.json", machine(H100))
    assert main(["resolve", str(artifacts), "--host", str(artifacts / "host.json"), "--json"]) == 0
    said = capsys.readouterr().out
    assert re.search(r'"sha256": "0{64}"', said)
    assert '"tier": "exact_engine"' in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "expected a whole number above 0, got '0'"),
        (["--batch", "one"], "expected a whole number above 0, got 'one'"),
        (["--max-latency-ms", "nan"], "expected milliseconds above 0, got 'nan'"),
        (["--min-top1", "75"], "expected a share such as 0.75 or 75%, got '75'"),
        (["--precision", "fp12"], "expected one of fp32, tf32, fp16, bf16, int8, fp8, got 'fp12'"),
        (["--max-memory", "50%"], "expected a size such as 512MiB or 2GiB, got '50%'"),
        (["--max-memory", "much"], "expected a size such as 512MiB or 2GiB, got 'much'"),
    ],
)
def test_wrong_requirements_are_wrong_usage(
    artifacts: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong requirement ends with status 2 and one line: the expected values, and the one that was typed."""
    assert status_of(["resolve", str(artifacts), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_nothing_suits_is_one_message(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with status 1 and every reason."""
    assert main(["resolve", str(artifacts), "--min-top1", "99%"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no artifact of the manifest suits this host")
    assert all(item.id in said for item in EVERYTHING)


def test_a_folder_without_a_manifest_says_what_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a manifest and a file that describes no host are refused with a fix."""
    assert main(["resolve", str(tmp_path)]) == 1
    assert "manifest.json is missing" in capsys.readouterr().err
    write_record(tmp_path / "manifest.json", manifest(*EVERYTHING))
    (tmp_path / "host.json").write_text("{}")
    assert main(["resolve", str(tmp_path), "--host", str(tmp_path / "host.json")]) == 1
    assert "`model-artifacts host` prints one there" in capsys.readouterr().err


def test_the_built_project_resolves_here(built_folder: Path) -> None:
    """On this machine, which has no GPU, ONNX is taken, by its own latency."""
    found = resolve(built_folder / "artifacts")
    assert found.entry.backend is Backend.ONNXRUNTIME
    assert found.latency_ms is not None
