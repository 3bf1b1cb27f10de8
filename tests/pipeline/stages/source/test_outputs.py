"""Outputs of networks: logits are taken, whatever gives them; anything else is refused by its cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from model_artifacts.errors import SourceError
from model_artifacts.records import Interpolation, Preprocessing, Task
from model_artifacts.sessions.factory_call import OutputsOf
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.source.network import output_names
from pipeline.stages.source.outputs import check_outputs, output_name, sample_shape
from pipeline.stages.source.stage import make_source
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEC = Preprocessing(
    resize=8, crop=8, interpolation=Interpolation.BILINEAR, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)


class Then(nn.Module):
    """A small classifier, with a function behind its logits."""

    def __init__(self, then: Callable[[torch.Tensor], torch.Tensor], classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
        self.then = then

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the function of (batch, classes)."""
        return self.then(self.body(image))


def two_logits(logit: torch.Tensor) -> torch.Tensor:
    """Return the two logits that stand for one, as the refusal of one logit says."""
    single = logit[:, 0]
    return torch.stack([torch.zeros_like(single), single], 1)


def in_unit_interval(logits: torch.Tensor) -> torch.Tensor:
    """Return logits that lie between 0 and 1, each around its own place, as an untrained network's may."""
    return logits * 0.01 + torch.tensor([0.1, 0.3, 0.5, 0.7])


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(lambda z: z, id="plain"),
        pytest.param(lambda z: z.log_softmax(1), id="log-softmax"),
        pytest.param(lambda z: z.softmax(1).log(), id="logarithm of a softmax"),
        pytest.param(torch.tanh, id="tanh"),
        pytest.param(torch.relu, id="relu"),
        pytest.param(lambda z: torch.relu(1e-6 * z + torch.arange(4.0)), id="hardly moving"),
        pytest.param(lambda z: z - z.mean(1, keepdim=True) + 99.0, id="of a constant sum"),
        pytest.param(lambda z: torch.relu(0 * z + 3.0), id="dead"),
        pytest.param(in_unit_interval, id="small logits"),
        pytest.param(lambda z: in_unit_interval(z)[:, None].squeeze(1).contiguous() * 0.9, id="moved and scaled"),
        pytest.param(lambda z: z.mul_(3.0), id="in place"),
        pytest.param(lambda z: nn.functional.dropout(in_unit_interval(z), training=False), id="dropout"),
    ],
)
def test_logits_are_taken(then: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Logits pass, also those that lie between 0 and 1 by chance, and logarithms of probabilities."""
    check_outputs(Then(then).eval(), SPEC)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_two_logits_in_place_of_one(scale: float) -> None:
    """The form that the refusal of one logit names is taken, and its answer is the logit's sign."""
    model = Then(lambda z: two_logits(z * scale), classes=1).eval()
    check_outputs(model, SPEC)

    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    single = model.body(images)[:, 0]
    assert model(images).argmax(1).tolist() == (single > 0).long().tolist()
    assert set(model(images).argmax(1).tolist()) == {0, 1}
    torch.testing.assert_close(model(images).softmax(1)[:, 1], (single * scale).sigmoid())


@pytest.mark.parametrize(
    ("then", "cause"),
    [
        pytest.param(lambda z: z.softmax(1), "add.* up to 1; the last operator is softmax", id="softmax"),
        pytest.param(lambda z: z.softmax(1)[:, :, None].flatten(1), "up to 1", id="softmax, then moved"),
        pytest.param(lambda z: (z.softmax(1) + z.mul(2).softmax(1)) / 2, "up to 1", id="ensemble of softmaxes"),
        pytest.param(lambda z: z.exp() / z.exp().sum(1, keepdim=True), "up to 1", id="softmax by hand"),
        pytest.param(lambda z: z.half().softmax(1).float(), "up to 1", id="softmax in fp16"),
        pytest.param(lambda z: 100 * z.softmax(1), "up to 100; the last operator is softmax", id="per cent"),
        pytest.param(lambda z: 100 * z.exp() / z.exp().sum(1, keepdim=True), "up to 100", id="per cent by hand"),
        pytest.param(lambda z: z.softmax(0), "last operator is softmax", id="softmax over the batch"),
        pytest.param(torch.sigmoid, "last operator is sigmoid", id="sigmoid"),
        pytest.param(lambda z: z.sigmoid()[:, None].squeeze(1), "last operator is sigmoid", id="moved sigmoid"),
        pytest.param(lambda z: 1 / (1 + (-z).exp()), "the last operator is", id="sigmoid by hand"),
        pytest.param(nn.functional.hardsigmoid, "last operator is hardsigmoid", id="hard sigmoid"),
        pytest.param(lambda z: torch.cat([z[:, :2].sigmoid(), z[:, 2:].sigmoid()], 1), "sigmoid", id="two heads"),
        pytest.param(lambda z: z.sigmoid() * 0.5, "last operator is sigmoid", id="scaled sigmoid"),
    ],
)
def test_probabilities_are_refused(then: Callable[[torch.Tensor], torch.Tensor], cause: str) -> None:
    """A softmax or a sigmoid inside is refused with the values that were seen, and with the remedy."""
    with pytest.raises(SourceError, match=rf"(?s)instead of logits.*got: .* for 6 images.*{cause}.*torch.nn.Identity"):
        check_outputs(Then(then).eval(), SPEC)


def test_one_logit_is_refused(write_config: Callable[[str], Path]) -> None:
    """A network with one logit is refused before anything is written, with the two logits to return."""
    project = Project.load(write_config(factories.configuration("tests.support.factories:one_logit")), STAGES)

    with pytest.raises(SourceError, match=r"(?s)one logit.*two classes or more.*\(1, 1\).*torch.zeros_like\(z\), z\]"):
        make_source(project)

    assert not project.paths.source.exists()
    assert not project.paths.weights.exists()


@pytest.mark.parametrize(
    ("then", "message"),
    [
        pytest.param(torch.squeeze, r"shape \(4,\) for 1 image\b.*`flatten\(1\)` or `squeeze\(dim\)`", id="squeezed"),
        pytest.param(torch.t, r"shape \(4, 1\) for 1 image\b.*batch first.*`logits.t\(\)`", id="classes first"),
        pytest.param(lambda z: z.view(2, -1), r"shape \(2, 2\) for 1 image.*keep the axis", id="a batch of two"),
        pytest.param(lambda z: z[:, :, None, None], r"shape \(1, 4, 1, 1\).*logits.flatten\(1\)", id="one pixel"),
        pytest.param(lambda z: z[:, :, None, None].expand(-1, -1, 2, 2), "model.task: tensors", id="segmentation"),
        pytest.param(lambda z: z.argmax(1), r"shape \(1,\) for 1 image, of int64.*without an `argmax`", id="argmax"),
        pytest.param(lambda z: (z, z), r"tuple.*self.net\(image\)\[0\]", id="tuple"),
        pytest.param(lambda z: {"logits": z}, r"dict.*self.net\(image\).logits", id="dict"),
        pytest.param(lambda z: z[[0, 1]], "take a batch of 1 image\n.*IndexError.*keep the axis", id="an error"),
    ],
)
def test_other_outputs_are_refused(then: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    """Anything else than a row of logits for each image is refused with its shape and the remedy."""
    with pytest.raises(SourceError, match=rf"(?s){message}"):
        check_outputs(Then(then).eval(), SPEC)


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(lambda z: z, id="plain"),
        pytest.param(nn.functional.normalize, id="of length one"),
        pytest.param(lambda z: z.softmax(1), id="softmax"),
        pytest.param(torch.sigmoid, id="sigmoid"),
    ],
)
def test_an_embedding_may_have_any_values(then: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """No softmax follows an embedding, so that values between 0 and 1 are as good as others."""
    check_outputs(Then(then).eval(), SPEC, Task.EMBEDDING)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        pytest.param(lambda z: z[:, :1], r"vectors of one number.*\(1, 1\) for 1 image", id="one number"),
        pytest.param(lambda z: z[:, 0], r"does not return vectors.*\(batch, length\).*shape \(1,\)", id="a number"),
        pytest.param(lambda z: z[:, :, None, None], r"shape \(1, 4, 1, 1\).*`vectors.flatten\(1\)`", id="one pixel"),
        pytest.param(lambda z: (z, z), r"tuple.*one tensor, of vectors alone", id="tuple"),
        pytest.param(lambda z: z.int(), r"of int32.*return the vectors in floating point", id="integers"),
    ],
)
def test_other_outputs_of_an_embedding_are_refused(then: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    """An embedding is one vector of two numbers or more for each image."""
    with pytest.raises(SourceError, match=rf"(?s){message}"):
        check_outputs(Then(then).eval(), SPEC, Task.EMBEDDING)


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(lambda z: z[:, :, None, None].expand(-1, -1, 2, 2), id="a map"),
        pytest.param(lambda z: z[:, :1], id="a number"),
        pytest.param(lambda z: z.softmax(1), id="probabilities"),
    ],
)
def test_tensors_may_have_any_shape(then: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The user's own code gives a tensor its meaning."""
    check_outputs(Then(then).eval(), SPEC, Task.TENSORS)


@pytest.mark.parametrize(
    ("then", "message"),
    [
        pytest.param(lambda z: z[:, 0], r"shape \(1,\).*unsqueeze\(1\)", id="no axis"),
        pytest.param(lambda z: z[:, :, None].expand(-1, -1, len(z)), "depends on the batch", id="grows"),
        pytest.param(lambda z: {"boxes": z, "scores": z}, r"boxes \(1, 4\), scores \(1, 4\)", id="two outputs"),
        pytest.param(lambda z: (z, z), "does not return one tensor", id="tuple"),
        pytest.param(lambda z: z.argmax(1, keepdim=True), "of int64.*floating point", id="integers"),
        pytest.param(lambda z: z[:, :0], r"shape \(1, 0\)", id="nothing"),
        pytest.param(
            lambda z: z.repeat(3, 1), "detector that returns a list.*before the NMS", id="boxes of all images"
        ),
    ],
)
def test_other_tensors_are_refused(then: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    """One tensor of the same shape for each image, in batches of any size."""
    with pytest.raises(SourceError, match=rf"(?s){message}"):
        check_outputs(Then(then).eval(), SPEC, Task.TENSORS)


@pytest.mark.parametrize(
    ("output", "task", "name"),
    [
        ({"logits": torch.zeros(2, 3)}, Task.CLASSIFICATION, "logits"),
        ({"logits": torch.zeros(2, 3), "loss": None}, Task.CLASSIFICATION, "logits"),
        ({"features": torch.zeros(2, 3)}, Task.CLASSIFICATION, None),
        ({"features": torch.zeros(2, 3)}, Task.EMBEDDING, "features"),
        ({"features": torch.zeros(2, 3), "logits": torch.zeros(2, 3)}, Task.EMBEDDING, None),
        ({0: torch.zeros(2, 3)}, Task.EMBEDDING, None),
        ({"features": torch.zeros(2, 3, 1, 1)}, Task.EMBEDDING, None),
        (torch.zeros(2, 3), Task.EMBEDDING, None),
        ((torch.zeros(2, 3),), Task.EMBEDDING, None),
        ((torch.zeros(2, 3), None), Task.TENSORS, "output_0"),
        ({"out": torch.zeros(2, 3, 4, 4)}, Task.TENSORS, "out"),
        ({"image": torch.zeros(2, 3, 4, 4)}, Task.TENSORS, None),
        ({"a/b": torch.zeros(2, 3, 4, 4)}, Task.TENSORS, None),
        ({"out": torch.zeros(2, 3, 4, 4), "aux": torch.zeros(2, 3, 4, 4)}, Task.TENSORS, None),
    ],
)
def test_one_entry_of_a_mapping_is_the_output(output: object, task: Task, name: str | None) -> None:
    """Of several entries none is chosen silently; a classifier's entry must be called `logits`."""
    assert output_name(output, 2, task) == name


def test_one_value_for_each_image() -> None:
    """A squeezed single logit is named as such, not as a missing axis."""
    with pytest.raises(SourceError, match=r"(?s)shape \(2,\) for 2 images.*return two logits"):
        sample_shape(torch.zeros(2), 2)


def test_a_network_that_changes_its_input() -> None:
    """A network that normalises its input in place is run on a copy, so that its later runs see the same images."""
    seen: list[torch.Tensor] = []

    class InPlace(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image[0].clone())
            return image.mul_(0.5).flatten(1)[:, :4]

    check_outputs(InPlace(), SPEC)

    assert all(torch.equal(image, seen[0]) for image in seen)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        pytest.param(torch.zeros(2, 3), (), id="a tensor"),
        pytest.param({"out": torch.zeros(2, 3)}, (), id="one entry"),
        pytest.param({"b": torch.zeros(2, 3), "a": torch.zeros(2, 1)}, ("b", "a"), id="a mapping"),
        pytest.param([torch.zeros(2, 3), torch.zeros(2, 4, 4)], ("output_0", "output_1"), id="a list"),
        pytest.param((torch.zeros(2, 3), None, torch.zeros(2, 4)), ("output_0", "output_2"), id="a gap"),
        pytest.param(
            (torch.zeros(2, 3), [torch.zeros(2, 4), torch.zeros(2, 5)]),
            ("output_0", "output_1_0", "output_1_1"),
            id="a list in a tuple",
        ),
        pytest.param(
            {"boxes": torch.zeros(2, 3), "maps": {"p3": torch.zeros(2, 4), "p4": None, "p5": (torch.zeros(2, 5),)}},
            ("boxes", "maps_p3", "maps_p5_0"),
            id="a mapping in a mapping",
        ),
    ],
)
def test_several_outputs_have_names(output: object, names: tuple[str, ...]) -> None:
    """The order is the network's, and a place keeps its number where an entry before it is None."""
    assert output_names(output, 2) == names
    if names:
        found = OutputsOf(_Returning(output), names)(torch.zeros(2))
        assert [tuple(tensor.shape) for tensor in found] == [
            tuple(leaf.shape) for leaf in tree_leaves(output) if leaf is not None
        ]


class _Returning(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, _: torch.Tensor) -> object:
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        pytest.param({"a": torch.zeros(2, 3), "b": [7]}, r"output 'b_0'.*got: +int.*tensors alone", id="nested"),
        pytest.param({"a_0": torch.zeros(2, 3), "a": [torch.zeros(2, 3)]}, r"output 'a_0'.*2 of that name", id="twice"),
        pytest.param({"a": torch.zeros(2, 3), "b": torch.zeros(7, 4)}, r"output 'b'.*shape \(7, 4\)", id="no batch"),
        pytest.param({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4).int()}, r"output 'b'.*of int32", id="integers"),
        pytest.param({"a": torch.zeros(2, 3), "b": torch.zeros(2)}, r"output 'b'.*unsqueeze\(1\)", id="a number"),
        pytest.param({"a": torch.zeros(2, 3), "image": torch.zeros(2, 3)}, r"output 'image'.*input's name", id="image"),
        pytest.param({"a": torch.zeros(2, 3), "b.0": torch.zeros(2, 3)}, r"output 'b\.0'.*letters", id="a dot"),
        pytest.param({"a": torch.zeros(2, 3), 1: torch.zeros(2, 3)}, r"output '1'.*a letter, then letters", id="a key"),
    ],
)
def test_what_is_no_output_is_refused_by_its_name(output: object, message: str) -> None:
    """None of several outputs is dropped or changed without a word."""
    with pytest.raises(SourceError, match=rf"(?s){message}"):
        output_names(output, 2)
