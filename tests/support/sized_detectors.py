"""The small detector of coloured shapes for images of any size: its cells lie on a grid as large as the image."""

from __future__ import annotations

import torch

from tests.support.detectors import CELL, CELLS, Detector


class Sized(Detector):
    """The detector with a box for each cell of an image of any size."""

    def tensors(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes (batch, cells, 4) in pixels, and logits (batch, cells, 2)."""
        features = self.body(image)
        raw = self.boxes(features).flatten(2).transpose(1, 2).sigmoid()
        corners = CELL * self.places(features.shape[2], features.shape[3]).to(raw)
        boxes = torch.cat([corners + CELL * raw[..., :2], 4 + 32 * raw[..., 2:]], dim=-1)
        return boxes, self.scores(features).flatten(2).transpose(1, 2)

    def places(self, rows: int, columns: int) -> torch.Tensor:
        """Return the column and the row of each cell, (1, cells, 2)."""
        lefts, tops = torch.arange(columns).expand(rows, columns), torch.arange(rows)[:, None].expand(rows, columns)
        return torch.stack([lefts, tops], -1).flatten(0, 1)[None]


class OfOneWidth(Sized):
    """The same with the columns of a 64x64 image, whatever the image's width is."""

    def places(self, rows: int, columns: int) -> torch.Tensor:
        """Return the place that each cell had in a 64x64 image."""
        cells = torch.arange(rows * columns)
        return torch.stack([cells % CELLS, cells // CELLS], -1)[None]
