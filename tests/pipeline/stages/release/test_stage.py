"""A finished build as deployments take it: complete, checked, signed; and refused when anything differs."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import model_artifacts as pipeline
from model_artifacts.errors import ArtifactError, ReleaseError
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import GitState, Manifest, Status
from model_artifacts.releases.archive import unpack
from model_artifacts.releases.signature import Signer, Verifier
from model_artifacts.releases.verification import verify_release
from pipeline.__main__ import main
from pipeline.planning.project import Project
from pipeline.stages.manifest.stage import make_manifest
from pipeline.stages.release.stage import Release, make_release
from tests.conftest import COMMIT, REPOSITORY
from tests.support.keys import pem

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree is that of a commit."""
    monkeypatch.setattr("pipeline.stages.release.stage.git_state", lambda _: COMMIT)


@pytest.fixture
def project(copied: Path) -> Project:
    """A finished project, to do anything with."""
    return Project.load(copied / "pipeline.yaml")


def listing(folder: Path) -> set[str]:
    """Return the files of a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_release_has_what_may_be_deployed_and_its_evidence(released: Release, project: Project) -> None:
    """No more and no less; its manifest tells of nothing else."""
    built = project.manifest()
    entries = [item for item in built.artifacts if item.id in {entry.id for entry in released.manifest.artifacts}]
    assert {item.status for item in entries} == {Status.DEPLOYABLE}
    assert {item.kind.value for item in entries} == {"onnxruntime"}
    files = {item.file.path for item in entries if item.file}
    evidence = {"manifest.json", "report.html", "bom.cdx.json", "provenance.intoto.json", "NOTICES.txt", "SHA256SUMS"}
    assert listing(released.folder) == files | evidence | {"model.sig"}
    assert read_record(released.folder / "manifest.json", Manifest) == released.manifest
    assert released.folder.name == "tiny-cccccccccccc"


def test_a_release_is_loaded_as_it_is(released: Release) -> None:
    """Its folder is an artifacts folder."""
    with pipeline.load(released.folder) as model:
        assert model.entry.id in {entry.id for entry in released.manifest.artifacts}


def test_the_sums_are_those_of_the_usual_tool(released: Release) -> None:
    """`sha256sum -c` reads them."""
    tool = shutil.which("sha256sum")
    assert tool is not None
    subprocess.run([tool, "--quiet", "--strict", "-c", "SHA256SUMS"], check=True, cwd=released.folder)  # noqa: S603


def test_the_same_build_gives_the_same_archive(copied: Path, tmp_path: Path) -> None:
    """Byte for byte, wherever it lies and whoever owns it; a signature would be another each time."""
    shutil.copytree(copied, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/artifacts/manifest.json").chmod(0o600)
    made = [make_release(Project.load(folder / "pipeline.yaml")) for folder in (copied, tmp_path / "elsewhere")]
    assert sha256_of(made[0].archive) == sha256_of(made[1].archive)
    assert not made[0].signed


def test_the_bill_of_materials_is_valid_and_complete(released: Release) -> None:
    """By CycloneDX's own schema; every file with its digest, every tool with its version."""
    text = (released.folder / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = json.loads(text)["components"]
    files = {part["name"]: part["hashes"][0]["content"] for part in parts if part["type"] == "file"}
    assert files == {entry.file.path: entry.file.sha256 for entry in released.manifest.artifacts if entry.file}
    assert {"torch", "onnx", "python"} <= {part["name"] for part in parts if part["type"] == "library"}


def test_the_provenance_names_commit_weights_and_tools(released: Release) -> None:
    """As in-toto and SLSA have it, for every file that was there."""
    statement = json.loads((released.folder / "provenance.intoto.json").read_text())
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    materials = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    digests = [material.get("digest", {}) for material in materials]
    assert {"gitCommit": "c" * 40} in digests
    assert released.manifest.model is not None
    assert {"sha256": released.manifest.model.weights_sha256} in digests
    assert any(material.get("uri", "").startswith("pkg:pypi/torch@") for material in materials)
    named = {item["name"] for item in statement["subject"]}
    assert named == listing(released.folder) - {"SHA256SUMS", "model.sig", "provenance.intoto.json"}


def test_the_provenance_names_what_was_asked_for_and_read(
    project: Project, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration by its own name, the options, and the record of the images by its digest."""
    (copied / "pipeline.yaml").rename(copied / "ci.yaml")
    monkeypatch.setattr("pipeline.stages.release.stage.git_state", lambda _: GitState(commit="c" * 40, dirty=True))
    made = make_release(Project.load(copied / "ci.yaml"), allow_dirty=True)
    build = json.loads((made.folder / "provenance.intoto.json").read_text())["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {"configuration": "ci.yaml", "command": "doit release --allow-dirty"}
    known = {item["name"]: item["digest"] for item in build["resolvedDependencies"] if "name" in item}
    assert known["ci.yaml"] == {"sha256": sha256_of(copied / "ci.yaml")}
    assert known["data.json"] == {"sha256": sha256_of(project.paths.data)}


@pytest.mark.parametrize("in_ci", [True, False])
def test_the_provenance_names_the_workflow_that_built(
    project: Project, monkeypatch: pytest.MonkeyPatch, *, in_ci: bool
) -> None:
    """As GitHub's certificates do, and the run; elsewhere nobody is known."""
    told = {
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "team/models",
        "GITHUB_WORKFLOW_REF": "team/models/.github/workflows/release.yml@refs/tags/v1",
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "2",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value if in_ci else "")
    made = make_release(project)
    run = json.loads((made.folder / "provenance.intoto.json").read_text())["predicate"]["runDetails"]
    workflow = "https://github.com/team/models/.github/workflows/release.yml@refs/tags/v1"
    assert run["builder"]["id"] == (workflow if in_ci else "urn:model-artifact-pipeline:local")
    attempt = "https://github.com/team/models/actions/runs/7/attempts/2"
    assert run["metadata"].get("invocationId") == (attempt if in_ci else None)


def test_licences_are_stated_where_packages_state_them(released: Release) -> None:
    """One line each."""
    text = (released.folder / "NOTICES.txt").read_text()
    assert "onnx 1.23.2: Apache-2.0" in text
    assert "states none" not in text
    assert (REPOSITORY / "LICENSE").read_text() in text


# Verified.


def test_a_release_verifies_as_folder_and_as_archive(released: Release, keys: tuple[Path, Path]) -> None:
    """With the signature that is demanded, and without demanding one."""
    for path in (released.folder, released.archive):
        assert verify_release(path, Verifier(keys[1])) == released.manifest
        assert verify_release(path) == released.manifest


def test_a_release_verifies_by_a_relative_path(
    released: Release, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As people type it."""
    monkeypatch.chdir(released.folder.parent)
    assert verify_release(Path(released.folder.name), Verifier(keys[1])) == released.manifest


def append(path: Path) -> None:
    """Add a byte to a file."""
    path.write_bytes(path.read_bytes() + b" ")


def to_link(path: Path) -> None:
    """Have a link in a file's place, to the same bytes elsewhere."""
    elsewhere = path.parents[4] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: (folder / "tiny/onnx/fp16.onnx").write_bytes(
        bytes([*(folder / "tiny/onnx/fp16.onnx").read_bytes()[:-1], 7])
    ),
    "a missing file": lambda folder: (folder / "tiny/onnx/fp16.onnx").unlink(),
    "an extra file": lambda folder: (folder / "extra.txt").write_text("x"),
    "another manifest": lambda folder: append(folder / "manifest.json"),
    "another report": lambda folder: append(folder / "report.html"),
    "another bill": lambda folder: append(folder / "bom.cdx.json"),
    "another provenance": lambda folder: append(folder / "provenance.intoto.json"),
    "other licences": lambda folder: append(folder / "NOTICES.txt"),
    "sums that are no text": lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff\xfe  x\n"),
    "a link": lambda folder: to_link(folder / "tiny/onnx/fp16.onnx"),
    "no sums": lambda folder: (folder / "SHA256SUMS").unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("demanded", [True, False])
def test_whatever_differs_is_refused(released: Release, keys: tuple[Path, Path], how: str, *, demanded: bool) -> None:
    """With a signature demanded, and without."""
    DAMAGE[how](released.folder)
    with pytest.raises(ArtifactError):
        verify_release(released.folder, Verifier(keys[1]) if demanded else None)


def test_a_forger_who_keeps_the_sums_right_is_caught_by_the_manifest(released: Release) -> None:
    """A changed engine with a changed SHA256SUMS is not what the manifest and the provenance say."""
    file = released.folder / "tiny/onnx/fp16.onnx"
    before = sha256_of(file)
    append(file)
    sums = released.folder / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, sha256_of(file)))
    with pytest.raises(ReleaseError, match=r"fp16\.onnx is not what the manifest says"):
        verify_release(released.folder)


def without_parts(folder: Path) -> None:
    """Have a bill of materials tell of nothing."""
    bill = json.loads((folder / "bom.cdx.json").read_text())
    (folder / "bom.cdx.json").write_text(json.dumps({**bill, "components": []}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "report.html").unlink(), "the release has no report.html"),
        (lambda folder: (folder / "NOTICES.txt").unlink(), "the release has no NOTICES.txt"),
        (lambda folder: (folder / "bom.cdx.json").unlink(), "the release has no bom.cdx.json"),
        (lambda folder: (folder / "bom.cdx.json").write_bytes(b"\xff"), "bom.cdx.json cannot be read"),
        (lambda folder: (folder / "bom.cdx.json").write_text("[]"), "the release's evidence is damaged"),
        (without_parts, r"the bill of materials tells of other files: tiny/onnx/.*\.onnx"),
    ],
)
def test_evidence_is_demanded_in_full(released: Release, change: Callable[[Path], object], message: str) -> None:
    """Even where sums and provenance were made to fit what is left."""
    change(released.folder)
    statement = json.loads((released.folder / "provenance.intoto.json").read_text())
    beyond = {"SHA256SUMS", "model.sig", "provenance.intoto.json"}
    there = {name: sha256_of(released.folder / name) for name in sorted(listing(released.folder) - beyond)}
    statement["subject"] = [{"name": name, "digest": {"sha256": digest}} for name, digest in there.items()]
    (released.folder / "provenance.intoto.json").write_text(json.dumps(statement))
    there["provenance.intoto.json"] = sha256_of(released.folder / "provenance.intoto.json")
    (released.folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in there.items()))
    with pytest.raises(ReleaseError, match=message):
        verify_release(released.folder)


def test_a_forger_who_keeps_everything_right_is_caught_by_the_signature_alone(
    released: Release, keys: tuple[Path, Path], project: Project
) -> None:
    """Who makes a whole other release passes every check but this one, which is what a signature is for."""
    signature = (released.folder / "model.sig").read_bytes()
    write_record(project.paths.manifest, project.manifest().model_copy(update={"host": "forged"}))
    made = released.folder
    manifest = read_record(made / "manifest.json", Manifest).model_copy(update={"host": "forged"})
    other = Release(made, released.archive, manifest, signed=False)
    (made / "NOTICES.txt").write_text("forged\n")
    for name in ("NOTICES.txt",):
        old = json.loads((made / "provenance.intoto.json").read_text())
        for item in old["subject"]:
            if item["name"] == name:
                item["digest"]["sha256"] = sha256_of(made / name)
        (made / "provenance.intoto.json").write_text(json.dumps(old))
    lines = [f"{sha256_of(made / name)}  {name}\n" for name in sorted(listing(made) - {"SHA256SUMS", "model.sig"})]
    (made / "SHA256SUMS").write_text("".join(lines))
    assert verify_release(other.folder)
    (made / "model.sig").write_bytes(signature)
    with pytest.raises(ReleaseError, match="the signature does not hold"):
        verify_release(made, Verifier(keys[1]))


def test_a_wrong_key_and_a_missing_signature_are_refused(released: Release, project: Project, tmp_path: Path) -> None:
    """Each by name."""
    with pytest.raises(ReleaseError, match="the signature does not hold"):
        verify_release(released.folder, Verifier(pem(tmp_path, "theirs")[1]))
    plain = make_release(project)
    with pytest.raises(ReleaseError, match="has no signature"):
        verify_release(plain.folder, Verifier(pem(tmp_path, "ours")[1]))


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_none_releases_nothing(project: Project, tmp_path: Path, text: str) -> None:
    """One message; no folder, no archive, nothing half-written."""
    (tmp_path / "key.pem").write_text(text)
    with pytest.raises(ReleaseError, match="the release cannot be signed"):
        make_release(project, Signer(tmp_path / "key.pem"))
    assert list(project.paths.releases.iterdir()) == []


def test_without_an_identity_nothing_is_signed_by_one(project: Project) -> None:
    """Outside CI there is no token."""
    with pytest.raises(ReleaseError, match="expected: an OIDC token"):
        make_release(project, Signer())


# What is not released.


def test_a_dirty_tree_is_refused_unless_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the provenance says so."""
    monkeypatch.setattr("pipeline.stages.release.stage.git_state", lambda _: GitState(commit="c" * 40, dirty=True))
    with pytest.raises(ReleaseError, match=r"(?s)tracked files differ from the commit.*--allow-dirty"):
        make_release(project)
    made = make_release(project, allow_dirty=True)
    assert "with changes that are not committed" in (made.folder / "provenance.intoto.json").read_text()


def test_what_was_built_of_another_commit_is_not_released(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allowed: the provenance would name a commit that the manifest was not made of."""
    monkeypatch.setattr("pipeline.stages.release.stage.git_state", lambda _: GitState(commit="d" * 40, dirty=False))
    for allow_dirty in (False, True):
        with pytest.raises(
            ReleaseError, match=r"(?s)another commit.*ddd.*ccc.*python -m pipeline manifest tiny"
        ) as told:
            make_release(project, allow_dirty=allow_dirty)
        assert "and then `doit`" in str(told.value)


def test_what_was_built_of_a_dirty_tree_is_refused_once_it_is_clean(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Putting changes away does not make what was built of them the commit's."""
    built = project.manifest().model_copy(update={"git": GitState(commit="c" * 40, dirty=True)})
    monkeypatch.setattr(Project, "manifest", lambda _: built)
    with pytest.raises(ReleaseError, match="or did when it was built"):
        make_release(project)


def test_the_commit_is_that_of_the_configurations_folder(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is typed; the manifest says the same."""
    asked: list[Path] = []

    def state(folder: Path) -> GitState:
        asked.append(folder)
        return COMMIT

    for room in ("release", "manifest"):
        monkeypatch.setattr(f"pipeline.stages.{room}.stage.git_state", state)
    make_release(project)
    make_manifest(project)
    assert asked == [project.config_file.parent] * 2


def test_what_is_no_checkout_is_refused_unless_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the build's key stands for the commit."""
    monkeypatch.setattr("pipeline.stages.release.stage.git_state", lambda _: None)
    with pytest.raises(ReleaseError, match="this is no git checkout"):
        make_release(project)
    assert make_release(project, allow_dirty=True).folder.name == f"tiny-{project.manifest().key.digest[:12]}"


def test_what_is_stale_is_not_released(project: Project, copied: Path) -> None:
    """The reason is in the message."""
    project.paths.manifest.unlink()
    with pytest.raises(ReleaseError, match="the manifest is not up to date: not made yet"):
        make_release(Project.load(copied / "pipeline.yaml"))


def test_nothing_deployable_is_no_release(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty release helps nobody."""
    monkeypatch.setattr("pipeline.stages.release.stage._deployable", lambda _: ())
    with pytest.raises(ReleaseError, match="nothing may be deployed"):
        make_release(project)


def test_a_release_that_fails_leaves_the_old_one(
    released: Release, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be full when the archive is written."""
    before = {path: path.read_bytes() for path in project.paths.releases.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.stages.release.stage.pack", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        make_release(project)
    assert released.folder.is_dir()
    assert {path: path.read_bytes() for path in project.paths.releases.rglob("*") if path.is_file()} == before


# Archives of strangers.


def archive(folder: Path, *members: tarfile.TarInfo) -> Path:
    """Write an archive of members that hold as many zeros as they say."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() else None)
    path = folder / "stranger.tar.zst"
    path.write_bytes(zstandard.compress(buffer.getvalue()))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 1, target: str = "") -> tarfile.TarInfo:
    """Return a member."""
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size if kind == tarfile.REGTYPE else 0, target
    return made


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("a/../../outside"),
        member("/tmp/absolute-outside"),  # noqa: S108 - it must not get there
        member("link", tarfile.SYMTYPE, target="/etc/passwd"),
        member("link", tarfile.LNKTYPE, target="manifest.json"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda bad: f"{bad.name} {bad.type.decode()}",
)
def test_what_leads_out_of_the_folder_is_not_unpacked(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    """Neither paths nor links, nor anything that is no file."""
    (tmp_path / "in").mkdir()
    with pytest.raises(ReleaseError):
        unpack(archive(tmp_path, member("manifest.json"), bad), tmp_path / "in")
    assert not (tmp_path / "outside").exists()
    assert not Path("/tmp/absolute-outside").exists()  # noqa: S108 - that is the test
    assert listing(tmp_path / "in") <= {"manifest.json"}


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 2), ("MAX_BYTES", 2)])
def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """Neither too many files nor too large ones."""
    monkeypatch.setattr(f"model_artifacts.releases.archive.{limit}", value)
    with pytest.raises(ReleaseError, match="holds more than a release has"):
        unpack(archive(tmp_path, *(member(str(number)) for number in range(3))), tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """What says how a file is called may not fill the memory."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, 3 * 2**20
    parts = [header.tobuf(tarfile.USTAR_FORMAT), bytes(header.size), member("x").tobuf(), bytes(2048)]
    path = tmp_path / "stranger.tar.zst"
    path.write_bytes(zstandard.compress(b"".join(parts)))
    with pytest.raises(ReleaseError, match="holds more than a release has"):
        unpack(path, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.95])
def test_a_damaged_archive_is_one_message(released: Release, tmp_path: Path, share: float) -> None:
    """However short it is."""
    path = tmp_path / "short.tar.zst"
    data = released.archive.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ReleaseError):
        verify_release(path)


def test_a_path_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(ReleaseError, match=r"nothing\.tar\.zst cannot be unpacked"):
        verify_release(tmp_path / "nothing.tar.zst")


# Typed.


def test_commands_release_and_verify(
    project: Project, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """They say where it lies, whether it is signed, and what was checked."""
    assert main(["release", "--config", str(project.config_file), "--key", str(keys[0])]) == 0
    said = capsys.readouterr().out
    assert f"4 artifacts, signed: {project.paths.releases}/tiny-cccccccccccc\n" in said
    folder = str(next(project.paths.releases.glob("*/")))
    assert main(["verify", folder, "--key", str(keys[1])]) == 0
    assert capsys.readouterr().out == "4 artifacts are what the release says; the signature holds\n"
    assert main(["verify", f"{folder}.tar.zst"]) == 0
    assert "so nobody vouches for it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["release", "--key", "a", "--keyless"], ["verify", "x", "--identity", "me"], ["verify"]]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    """Both ways to sign at once, half an identity, nothing to verify."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
