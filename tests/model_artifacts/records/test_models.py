"""The manifests of several models, joined and taken apart again."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from model_artifacts.errors import UsageError
from model_artifacts.records import (
    GitState,
    GpuType,
    Key,
    KeyField,
    Link,
    Manifest,
    ManifestModel,
    Milestone,
    Status,
    WeightsOrigin,
    joined,
    manifests_of,
    model_names,
    of_model,
)
from tests.support.manifests import SHA, entry, manifest

if TYPE_CHECKING:
    from collections.abc import Callable

CLEAN, DIRTY = (GitState(commit=digit * 40, dirty=digit == "b") for digit in "ab")


def _of(model: str, year: int = 2026, git: GitState | None = CLEAN, number: int = 2) -> Manifest:
    """Return the manifest of a model with some artifacts, and a milestone of its last one."""
    entries = tuple(
        entry(name, id=f"{model}/cpu-x86_64/{name}", model=model) for name in (f"v{index}" for index in range(number))
    )
    row = Milestone(
        gpu="a GPU",
        batch=1,
        label="eager FP32",
        id=entries[-1].id,
        status=Status.DEPLOYABLE,
        p50_ms=1.0,
        graph_ms=None,
        speedup=1.0,
        relative_l2=0.0,
    )
    return manifest(*entries, milestones=(row,)).model_copy(
        update={
            "key": Key(fields=(KeyField(name="of", value=model),)),
            "built_at": datetime(year, 1, 1, tzinfo=timezone.utc),
            "git": git,
            "host": f"the host of {model}",
        }
    )


ABOUT = ManifestModel(
    name="a",
    factory="a:b",
    weights_origin=WeightsOrigin.SAMPLE,
    weights_detail="a sample",
    weights_sha256=SHA,
    class_names=None,
    preprocessing=None,
    images="digits",
    labelled=True,
    reference_top1=0.76,
)
A, B, C = _of("a"), _of("b", 2027, DIRTY), _of("c", 2025, None, 1)


def test_a_part_is_the_manifest_that_it_was_made_of() -> None:
    """Nothing is lost, in whatever order the parts come, and through the file as well."""
    whole = Manifest.model_validate_json(joined((C, A, B)).to_json())
    assert whole == joined((A, B, C))
    assert (model_names(whole), manifests_of(whole)) == (("a", "b", "c"), (A, B, C))
    assert [of_model(whole, name) for name in "abc"] == [A, B, C]


def test_the_whole_is_as_new_as_its_newest_part() -> None:
    """It has the time of the last change, and a checkout only if all parts have the same one."""
    whole = joined((A, B, C))
    assert (whole.built_at, whole.git, whole.model) == (B.built_at, None, None)
    assert joined((A, _of("b"))).git == CLEAN
    assert [item.id for item in whole.artifacts] == sorted(item.id for one in (A, B, C) for item in one.artifacts)


def test_one_model_is_as_it_was() -> None:
    """Its manifest does not have the new field, and needs no name."""
    assert joined((A,)) is A
    assert "models" not in json.loads(A.to_json())
    assert of_model(A) is A
    assert of_model(A, "a") is A
    assert manifests_of(A) == (A,)
    assert model_names(manifest()) == ()


@pytest.mark.parametrize(
    ("found", "name", "said"),
    [
        (joined((A, B)), None, "several models.*expected: one of a, b"),
        (joined((A, B)), "c", "no model 'c'.*expected: a, b"),
        (joined((A, _of("detector"))), "detectr", "did you mean 'detector'"),
        (A, "b", "no model 'b'.*expected: a"),
    ],
    ids=["none named", "unknown", "mistyped", "unknown of one"],
)
def test_a_model_must_be_chosen(found: Manifest, name: str | None, said: str) -> None:
    """The message lists the models."""
    with pytest.raises(UsageError, match=f"(?s){said}"):
        of_model(found, name)


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: {"models": whole["models"][:1]},
        lambda whole: {"models": whole["models"][::-1]},
        lambda whole: {"models": [whole["models"][0], *whole["models"]]},
        lambda whole: {"models": [whole["models"][0], {**whole["models"][1], "name": "z"}]},
        lambda whole: {"models": [*whole["models"], {"name": "z"}]},
    ],
    ids=["one", "unsorted", "twice", "strange artifacts", "incomplete"],
)
def test_a_manifest_that_does_not_fit_together_is_none(change: Callable[[dict[str, list[object]]], object]) -> None:
    """No artifact may belong to a model that the manifest does not list."""
    whole = json.loads(joined((A, B)).to_json())
    with pytest.raises(ValidationError):
        Manifest.model_validate({**whole, **change(whole)})  # type: ignore[dict-item]


@pytest.mark.parametrize("renamed", [False, True], ids=["artifacts", "model"])
def test_facts_of_one_model_are_of_no_other(renamed: bool) -> None:  # noqa: FBT001 - a parameter
    """Without `models`, all artifacts are of one model, and it is the one that `model` describes."""
    own = json.loads(A.model_copy(update={"model": ABOUT}).to_json())
    assert Manifest.model_validate(own).model == ABOUT
    others = json.loads(B.to_json())["artifacts"]
    changed = {"model": own["model"] | {"name": "b"}} if renamed else {"artifacts": others}
    with pytest.raises(ValidationError, match="there are 'a' and 'b'"):
        Manifest.model_validate(own | changed)
    mixed = [*own["artifacts"], *others]
    with pytest.raises(ValidationError, match="there are 'a' and 'b'"):
        Manifest.model_validate(own | {"model": None, "artifacts": mixed})


def test_a_part_of_several_describes_its_own_model() -> None:
    """Read whole, or else each of its models would be refused without the manifest's place when it is taken out."""
    whole = json.loads(joined((A.model_copy(update={"model": ABOUT}), B)).to_json())
    assert of_model(Manifest.model_validate(whole), "a").model == ABOUT
    whole["models"][0]["model"]["name"] = "b"
    with pytest.raises(ValidationError, match="the part of 'a' describes another model, 'b'"):
        Manifest.model_validate(whole)


def test_the_rates_of_a_gpu_are_the_fastest_of_all_models() -> None:
    """A part has the rates of the GPUs that its artifacts are for, and of no others."""
    slow, fast = (
        Link(gpu="a GPU", to_gpu_bytes_per_s=rate, to_host_bytes_per_s=rate, copied_bytes=1, copies=1)
        for rate in (1.0, 2.0)
    )
    gpu = GpuType(name="a GPU", compute_capability=90)
    there = tuple(item.model_copy(update={"gpu": gpu}) for item in A.artifacts)
    both = joined(
        [A.model_copy(update={"links": (slow,), "artifacts": there}), B.model_copy(update={"links": (fast,)})]
    )
    assert both.links == (fast,)
    assert [part.links for part in manifests_of(both)] == [(fast,), ()]
