"""A small detector of coloured shapes: its training, its images with labels in COCO's format, and its configuration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional

from model_artifacts.records import Task
from tests.support.tasks import configuration_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

CLASSES = ("square", "circle")
SIZE, CELL = 64, 8
"""The side of the input, and of a cell that one box belongs to."""
CELLS = SIZE // CELL
BOXES = CELLS * CELLS
_STEPS, _BATCH = 250, 16


class Detector(nn.Module):
    """A network of one box for each cell: its centre, width and height in pixels, and a logit of each class."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 24), (24, 32)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(32, 4, 1), nn.Conv2d(32, len(CLASSES), 1)
        rows, columns = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        self.register_buffer("corners", CELL * torch.stack([columns, rows], -1).view(1, BOXES, 2).float())

    def tensors(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes (batch, 64, 4) and logits (batch, 64, 2)."""
        features = self.body(image)
        raw = self.boxes(features).flatten(2).transpose(1, 2).sigmoid()
        boxes = torch.cat([self.corners + CELL * raw[..., :2], 4 + 32 * raw[..., 2:]], dim=-1)
        return boxes, self.scores(features).flatten(2).transpose(1, 2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return both by their names."""
        return dict(zip(("boxes", "scores"), self.tensors(image), strict=True))


class OneMap(Detector):
    """The same network with one output (batch, 4 + 2, 64), as YOLO's: boxes, and scores from 0 to 1."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # what differs
        """Return the map."""
        boxes, scores = self.tensors(image)
        return torch.cat([boxes, scores.sigmoid()], dim=-1).transpose(1, 2)


class Silent(Detector):
    """The same network that is sure of nothing."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the boxes with low scores."""
        boxes, scores = self.tensors(image)
        return {"boxes": boxes, "scores": scores * 0.01 - 2}


class Scene(NamedTuple):
    """An image with its shapes."""

    pixels: npt.NDArray[np.uint8]
    boxes: list[tuple[int, int, int, int]]
    """Left, top, right, bottom, the last two outside."""
    classes: list[int]


def scene(random: np.random.Generator, width: int = SIZE, height: int = SIZE, least: int = 1) -> Scene:
    """Return an image of noise with up to three shapes, each in a cell of its own."""
    picture = Image.new("RGB", (width, height), (60, 60, 60))
    draw, boxes, classes = ImageDraw.Draw(picture), [], []
    taken: set[tuple[int, int]] = set()
    for _ in range(int(random.integers(least, 4))):
        wide, high = map(int, random.integers(10, 25, 2))
        left, top = int(random.integers(0, width - wide)), int(random.integers(0, height - high))
        cell = (left + wide // 2) // 16, (top + high // 2) // 16
        if cell in taken:
            continue
        taken.add(cell)
        kind = int(random.integers(0, 2))
        corners = (left, top, left + wide - 1, top + high - 1)
        (draw.rectangle if kind == 0 else draw.ellipse)(corners, fill=((200, 60, 60), (60, 180, 60))[kind])
        boxes.append((left, top, left + wide, top + high))
        classes.append(kind)
    noise = random.integers(-30, 31, (height, width, 3))
    return Scene((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8), boxes, classes)


def as_input(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return pixels (images, height, width, 3) as the configuration's preprocessing does it."""
    return torch.from_numpy((pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.25)


def trained(seed: int = 0) -> Detector:
    """Return the network, trained on scenes of its own for some seconds."""
    random = np.random.default_rng((seed, 1))
    torch.manual_seed(seed)
    network = Detector().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    for _ in range(_STEPS):
        scenes = [scene(random) for _ in range(_BATCH)]
        boxes, logits = network.tensors(as_input(np.stack([item.pixels for item in scenes])))
        target, wanted = torch.zeros_like(logits), []
        places = []
        for number, item in enumerate(scenes):
            for (left, top, right, bottom), kind in zip(item.boxes, item.classes, strict=True):
                centre = (left + right) / 2, (top + bottom) / 2
                cell = int(centre[1] // CELL) * CELLS + int(centre[0] // CELL)
                target[number, cell, kind] = 1
                places.append((number, cell))
                wanted.append([*centre, right - left, bottom - top])
        numbers, cells = map(list, zip(*places, strict=True))
        loss = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(4.0))
        loss = loss + 0.05 * functional.l1_loss(boxes[numbers, cells], torch.tensor(wanted))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
    return network.eval()


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    """Write images of 80×64 pixels, some without shapes, and COCO's labels beside them."""
    random = np.random.default_rng(seed)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    (folder / "images" / "part").mkdir(parents=True)
    for number in range(count):
        made = scene(random, 80, SIZE, least=0)
        name = f"part/{number}.png"
        Image.fromarray(made.pixels).save(folder / "images" / name)
        images.append({"id": number + 10, "file_name": name, "width": 80, "height": SIZE})
        for (left, top, right, bottom), kind in zip(made.boxes, made.classes, strict=True):
            box = [left, top, right - left, bottom - top]
            annotation = {"image_id": number + 10, "category_id": kind + 3, "bbox": box, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "area": box[2] * box[3], **annotation})
    categories = [{"id": number + 3, "name": name} for number, name in enumerate(CLASSES)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "annotations.json").write_text(text)


TWO = "{boxes: boxes, scores: scores, format: cxcywh, activation: sigmoid}"
"""The decoding of two outputs."""


def configuration(
    folder: Path, factory: str = "Detector", decoding: str = f"decoding: {TWO}", *, labels: bool = True
) -> str:
    """Return the configuration of the detector with the images and weights of a folder."""
    beside = f", labels: {folder / 'annotations.json'}" if labels else ""
    data = f"{{images: {folder / 'images'}{beside}, calibration: 8, validation: 60}}"
    text = configuration_of(f"tests.support.detectors:{factory}", Task.DETECTION, data)
    text = text.replace("resize: 32, crop: 32", f"resize: {SIZE}, crop: {SIZE}")
    return text.replace(
        "weights: factory, task: detection", f"weights: {folder / 'w.pth'}, task: detection, {decoding}"
    )


def postprocess(outputs: dict[str, npt.NDArray[np.float32]]) -> list[tuple[object, object, object]]:
    """Return the boxes of each image whose score lies above 0.3: a function of the user's own."""
    found: list[tuple[object, object, object]] = []
    for boxes, logits in zip(outputs["boxes"], outputs["scores"], strict=True):
        scores = 1 / (1 + np.exp(-logits))
        kept = scores.max(axis=1) > 0.3
        half = boxes[kept, 2:] / 2
        corners = np.concatenate([boxes[kept, :2] - half, boxes[kept, :2] + half], axis=1)
        found.append((corners, scores[kept].max(axis=1), scores[kept].argmax(axis=1)))
    return found
