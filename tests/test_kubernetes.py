"""The files of docs/kubernetes: valid by the published schemas, linted, and run as far as a machine without one can."""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from model_artifacts.records import EngineFlavour
from model_artifacts.releases.oci.ngc import triton_image
from model_artifacts.releases.store import push
from tests.conftest import REPOSITORY
from tests.support.hosts import TRT10
from tests.support.registries import needs_registry, running

if TYPE_CHECKING:
    from pipeline.stages.release.stage import Release

FOLDER = REPOSITORY / "docs/kubernetes"
CRD = REPOSITORY / "tests/support/schemas/kserve-inferenceservices.yaml.xz"


def documents(name: str) -> list[dict[str, Any]]:
    """Return the objects of a YAML file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def closed(schema: Any) -> Any:
    """Return a schema that also refuses fields which it does not name, as the API server does if asked to be strict."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(item) for name, item in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="module")
def kserve() -> Draft202012Validator:
    """The schema of KServe's InferenceService."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load(lzma.decompress(CRD.read_bytes()), Loader=loader)  # noqa: S506 - a safe one
    (version,) = crd["spec"]["versions"]
    assert version["name"] == "v1beta1"
    return Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


def test_the_inference_services_are_kserves(kserve: Draft202012Validator) -> None:
    """Each is valid, and a mistake in one is found."""
    services = documents("inferenceservice.yaml")
    assert [service["spec"]["predictor"]["model"]["storageUri"].partition(":")[0] for service in services] == [
        "oci",
        "oci+native",
    ]
    for service in services:
        kserve.validate(service)
        wrong = yaml.safe_load(yaml.safe_dump(service).replace("storageUri", "storageURL"))
        assert [error.validator for error in kserve.iter_errors(wrong)] == ["additionalProperties"]


def test_the_deployment_is_kubernetes() -> None:
    """It is valid, strictly, and a mistake in it is found."""
    (deployment,) = documents("triton.yaml")
    kubernetes_validate.validate(deployment, kubernetes_validate.latest_version(), strict=True)
    wrong = yaml.safe_load(yaml.safe_dump(deployment).replace("mountPath", "mountpath"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_servers_have_the_tensorrt_of_the_engines() -> None:
    """The image of Triton is the one for this project's TensorRT."""
    image = triton_image(EngineFlavour.TENSORRT, TRT10.version)
    (deployment,) = documents("triton.yaml")
    (triton,) = deployment["spec"]["template"]["spec"]["containers"]
    assert triton["image"] == image
    assert f"tensorrt=={TRT10.version}" in (REPOSITORY / "pyproject.toml").read_text()
    for service in documents("inferenceservice.yaml"):
        assert service["spec"]["predictor"]["model"]["runtimeVersion"] == image.rpartition(":")[2]
    assert image in (REPOSITORY / "docs/kubernetes.md").read_text()


def test_volumes_are_there() -> None:
    """Each mount names a volume of the pod, and each volume is mounted."""
    (deployment,) = documents("triton.yaml")
    pod = deployment["spec"]["template"]["spec"]
    mounted = [mount["name"] for part in ("initContainers", "containers") for mount in pod[part][0]["volumeMounts"]]
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}


@needs_registry
def test_the_init_container_prepares_a_repository(released: Release, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Its own commands, with a real registry: one kind of host, which Triton's command line then names."""
    (deployment,) = documents("triton.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (script,) = pod["initContainers"][0]["args"]
    (command,) = pod["containers"][0]["args"]
    models = tmp_path / "models"
    models.mkdir()
    program = f"{sys.executable} -m model_artifacts"
    script = script.replace("model-artifacts", program).replace("/keys/release.pub", str(keys[1]))
    with running(tmp_path / "registry") as server:
        push(server.url("team/tiny"), released.folder)
        environment = {**os.environ, "RELEASE": server.url("team/tiny"), "DOCKER_CONFIG": str(tmp_path)}
        subprocess.run(["sh", "-ec", script.replace("/models/", f"{models}/")], check=True, env=environment)  # noqa: S603, S607
    shown = command.replace("exec tritonserver", "echo").replace("/models/", f"{models}/")
    said = subprocess.run(["sh", "-ec", shown], check=True, capture_output=True, text=True)  # noqa: S603, S607 - the same
    repository = Path(said.stdout.strip().removeprefix("--model-repository="))
    assert repository.name == "cpu"
    assert [path.name for path in repository.glob("*/config.pbtxt")] == ["config.pbtxt"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.modelcar"])
def test_dockerfiles_are_clean(name: str) -> None:
    """Nothing to say, by hadolint."""
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed here: it is in the group `dev`")
    done = subprocess.run([linter, FOLDER / name], check=False, capture_output=True, text=True)  # noqa: S603 - fixed
    assert done.returncode == 0, done.stdout


def test_the_runtime_image_is_of_this_package() -> None:
    """What it copies is there, its extras exist, and torch is none of them."""
    text = (FOLDER / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        assert [path for path in line.split() if not (REPOSITORY / path).exists()] == []
    for extras in re.findall(r"(?:EXTRAS=|engines: )(\S+)", text):
        for extra in extras.split(","):
            assert f"\n{extra} = [" in (REPOSITORY / "pyproject.toml").read_text()
    assert "torch" not in text.replace("without torch", "")
