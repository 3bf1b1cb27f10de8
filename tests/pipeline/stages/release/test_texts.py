"""A release's texts: the model card and the notes of its changes."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import yaml

from model_artifacts.records import BatchRange, BuiltFor, EngineFlavour, Manifest, Tool
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.release.stage import make_release
from pipeline.stages.release.texts import Earlier, model_card, release_notes
from tests.conftest import COMMIT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def project(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A finished project, built from a commit."""
    monkeypatch.setattr("pipeline.planning.project.git_state", lambda _: COMMIT)
    return Project.load(copied / "pipeline.yaml", STAGES)


@pytest.fixture
def manifest(project: Project) -> Manifest:
    """The manifest of a release."""
    return make_release(project).manifest


def test_the_card_says_the_network_the_data_and_each_artifact(manifest: Manifest) -> None:
    """The card has the weights, the images, every artifact's accuracy and latency, its gate, and the way to load it."""
    card = model_card("tiny-cccccccccccc", manifest, None)
    model = manifest.model
    assert model is not None
    assert model.reference_top1 is not None
    assert f"`{model.factory}`" in card
    assert model.weights_sha256 in card
    assert f"answers {100 * model.reference_top1:.2f} % of them correctly" in card
    for entry in manifest.artifacts:
        assert entry.accuracy is not None
        assert entry.file is not None
        row = next(line for line in card.splitlines() if line.startswith(f"| `{entry.id.split('/', 1)[1]}`"))
        assert f"{100 * (entry.accuracy.top1 or 0):.2f} %" in row
        assert f"{entry.accuracy.relative_l2:.1e}" in row
        assert f"{entry.timings[0].p50_ms:.4g} ms at batch 1, by the host's clock" in row
        assert entry.file.path in row
        assert all(f"| {check.metric} | {check.value} | {check.bound} |" in card for check in entry.checks)
    assert "model_artifacts.load" in card
    assert "fitted on digits" in card


def test_the_card_shows_no_share_of_fewer_images(manifest: Manifest) -> None:
    """An accuracy on 8 images is not beside those on all of them."""
    accuracy = manifest.artifacts[0].accuracy
    assert accuracy is not None
    few = manifest.artifacts[0].model_copy(update={"accuracy": accuracy.model_copy(update={"samples": 8})})
    card = model_card("x", manifest.model_copy(update={"artifacts": (few, *manifest.artifacts[1:])}), None)
    row = next(line for line in card.splitlines() if line.startswith(f"| `{few.id.split('/', 1)[1]}`"))
    assert "| not compared: on 8 images |  |" in row


def test_the_card_says_that_a_batch_runs_in_parts(manifest: Manifest) -> None:
    """The batch is that of the whole, and not that of the file."""
    (plain, *others) = manifest.artifacts
    built_for = BuiltFor(
        flavour=EngineFlavour.TENSORRT, version="10.6", gpu="H200", compute_capabilities=(90,), batch_parts=2
    )
    profile = BatchRange(min=256, opt=256, max=256)
    split = plain.model_copy(update={"built_for": built_for, "profile": profile})
    card = model_card("x", manifest.model_copy(update={"artifacts": (split, *others)}), None)
    assert "| tensorrt 10.6, H200 | b256, in 2 parts at once |" in card


def test_the_cards_metadata_is_yaml_that_hubs_read(manifest: Manifest) -> None:
    """The block in front names the task and the licence's file."""
    _, block, _ = model_card("tiny-cccccccccccc", manifest, None).split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["license_link"] == "NOTICES.txt"


def test_a_name_cannot_break_the_card(manifest: Manifest) -> None:
    """Markdown and HTML in names of classes stay text."""
    assert manifest.model is not None
    model = manifest.model.model_copy(update={"class_names": ("<img src=x>", "a|b", "[x](y)", "l\n# h")})
    card = model_card("tiny", manifest.model_copy(update={"model": model}), None)
    assert "\\<img src=x>, a\\|b, \\[x\\](y), l # h" in card


def test_the_first_release_has_nothing_to_compare_with(manifest: Manifest) -> None:
    """The notes of a first release say so."""
    assert "No earlier release" in release_notes("tiny-1", manifest, None)


def test_the_notes_tell_what_changed(manifest: Manifest) -> None:
    """Weights, accuracy, tools and artifacts that came or went are listed with both values."""
    assert manifest.model is not None
    first, *rest = manifest.artifacts
    assert first.accuracy is not None
    worse = first.model_copy(update={"accuracy": first.accuracy.model_copy(update={"top1": 0.5})})
    torch = tuple(tool for tool in first.toolchain if tool.name != "torch")
    old = worse.model_copy(update={"toolchain": (*torch, Tool(name="torch", version="1.0"))})
    model = manifest.model.model_copy(update={"weights_sha256": "d" * 64})
    before = manifest.model_copy(update={"artifacts": (old, *rest[1:]), "model": model})
    notes = release_notes("tiny-2", manifest, Earlier("tiny-1", before))
    assert "Compared with tiny-1" in notes
    assert "before: scikit-learn's digits" not in notes
    assert "dddddddddddd…" in notes
    assert f"| `{first.id}` | top-1 | 50.00% | {first.accuracy.top1:.2%} | better |" in notes
    assert f"| `{rest[0].id}` | artifact | absent | deployable |" in notes
    assert "torch: 2." in notes
    assert "before: " in notes


def test_the_same_build_again_changed_nothing(manifest: Manifest) -> None:
    """Notes of equal manifests say that nothing changed."""
    notes = release_notes("tiny-2", manifest, Earlier("tiny-1", manifest))
    assert "are the same" in notes
    assert "Nothing changed beyond noise" in notes
    assert "The same versions" in notes


def test_a_release_is_compared_with_the_newest_one_before_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases of the same build, of later ones and damaged ones are left out."""
    built = project.manifest()
    for day, letter in ((1, "a"), (2, "b"), (5, "d"), (3, "c")):
        commit = COMMIT.model_copy(update={"commit": letter * 40})
        earlier = built.model_copy(update={"git": commit, "built_at": built.built_at + timedelta(days=day)})
        monkeypatch.setattr(Project, "manifest", lambda _, earlier=earlier: earlier)
        made = make_release(project)
    (project.paths.releases / "tiny-aaaaaaaaaaaa/manifest.json").write_text("{}")
    assert "Compared with tiny-bbbbbbbbbbbb" in (made.folder / "RELEASE_NOTES.md").read_text()
    assert "the changes since tiny-bbbbbbbbbbbb" in (made.folder / "README.md").read_text()
