"""Boxes, masks and label maps over images, as pictures (3, H, W) uint8."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from core.images import read_image

__all__ = ["Sheet", "colours", "draw_label_map", "draw_objects"]

Colour = tuple[int, int, int]
_FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def colours(count: int, palette: Sequence[Sequence[int]] = ()) -> list[Colour]:
    """RGB of each class, in 0 to 255: those of the palette, or hues that differ as much as they can."""
    if len(palette) >= count:
        return [(int(r), int(g), int(b)) for r, g, b in palette[:count]]
    hues = [colorsys.hsv_to_rgb(i / max(count, 1), 0.9, 1.0) for i in range(count)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


def draw_objects(
    path: str | Path,
    boxes_N4: Tensor,
    texts: Sequence[str],
    colours: Sequence[Colour],
    masks_NHW: Tensor | None = None,
    *,
    least: int = 384,
) -> Tensor:
    """Boxes with a line of text each, and masks, over an image.

    Args:
        path: of the image.
        boxes_N4: x1, y1, x2, y2 in pixels.
        texts: N lines.
        colours: N colours.
        masks_NHW: bool.
        least: a smaller image is enlarged to this shorter side, so that the text leaves something to see.
    """
    image, scale = _enlarged(path, least)
    if len(boxes_N4) == 0:
        return image
    if masks_NHW is not None:
        masks = F.interpolate(masks_NHW[None].float().cpu(), size=image.shape[1:])[0] > 0.5
        image = draw_segmentation_masks(image, masks, alpha=0.5, colors=list(colours))
    corners = boxes_N4.float().cpu() * scale
    corners = torch.cat([corners[:, :2], torch.maximum(corners[:, :2], corners[:, 2:])], dim=1)
    font = {"font": str(_FONT), "font_size": max(12, min(image.shape[1:]) // 20)}
    return draw_bounding_boxes(image, corners, list(texts), list(colours), width=3, **font, fill_labels=True)


def draw_label_map(path: str | Path, labels_HW: Tensor, colours: Sequence[Colour], *, least: int = 384) -> Tensor:
    """A label map over an image; pixels of other labels than 0 to ``len(colours)`` - 1, and of black ones, stay."""
    image, _ = _enlarged(path, least)
    labels = F.interpolate(labels_HW[None, None].float().cpu(), size=image.shape[1:])[0, 0].long()
    found = [label for label in labels.unique().tolist() if 0 <= label < len(colours) and any(colours[label])]
    masks = torch.stack([labels == label for label in found]) if found else labels.new_zeros(0, *labels.shape).bool()
    return draw_segmentation_masks(image, masks, alpha=0.6, colors=[colours[label] for label in found])


def _enlarged(path: str | Path, least: int) -> tuple[Tensor, float]:
    image = read_image(Path(path))
    scale = max(1.0, least / min(image.size))
    if scale > 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), scale


class Sheet:
    """Keeps some pictures of an evaluation.

    Args:
        size: pictures on a sheet.
    """

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self.kept: list[Tensor] = []
        self.seen = 0

    def wanted(self, batches: float) -> int:
        """How many pictures to keep of the next of so many batches, for a sheet of the whole split."""
        self.seen += 1
        due = -(-self.size * self.seen // max(1, int(batches)))
        return max(0, min(due, self.size) - len(self.kept))

    def keep(self, truth: Tensor, prediction: Tensor) -> None:
        """Keep two pictures (3, H, W) of one size side by side."""
        gap = torch.full((3, truth.shape[1], 6), 255, dtype=torch.uint8)
        self.kept.append(torch.cat([truth, gap, prediction], dim=2))

    def take(self, height: int = 300) -> Any:
        """What was kept as (N, 3, H, W) in [0, 1], padded to one size, or None; and an empty sheet again."""
        kept, self.kept, self.seen = self.kept, [], 0
        if not kept:
            return None
        sizes = [(height, round(p.shape[2] * height / p.shape[1])) for p in kept]
        scaled = [F.interpolate(p[None] / 255, size=s, mode="area")[0] for p, s in zip(kept, sizes, strict=True)]
        widest = max(width for _, width in sizes)
        return torch.stack([F.pad(p, (0, widest - p.shape[2]), value=1.0) for p in scaled])
