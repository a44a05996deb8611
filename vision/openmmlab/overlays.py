"""Pictures of boxes, masks and label maps over images, (3, H, W) uint8."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from core.data.images import read_image

__all__ = ["class_colors", "draw_label_map", "draw_objects", "side_by_side"]

Color = tuple[int, int, int]
"""Red, green and blue, in 0 to 255."""

_FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def class_colors(count: int, palette: Sequence[Color] = ()) -> list[Color]:
    """Return the color of each class: from the palette or, if it has too few colors, evenly spaced hues."""
    if len(palette) >= count:
        return list(palette[:count])

    colors = []
    for i in range(count):
        red, green, blue = colorsys.hsv_to_rgb(i / count, 0.9, 1.0)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def draw_objects(
    path: str | Path,
    boxes_N4: Tensor,
    texts: Sequence[str],
    colors: Sequence[Color],
    masks_NHW: Tensor | None = None,
    *,
    min_side: int = 384,
) -> Tensor:
    """Draw boxes, each with a line of text, and masks over an image.

    Args:
        path: path of the image.
        boxes_N4: x1, y1, x2, y2 in pixels of the image.
        texts: a line of text for each box.
        colors: a color for each box.
        masks_NHW: bool, of the size of the image.
        min_side: enlarge a smaller image until its shorter side has this many pixels, so that the text hides less.

    Returns:
        The picture (3, H, W) uint8.
    """
    image, scale = _enlarged(path, min_side)
    if len(boxes_N4) == 0:
        return image

    if masks_NHW is not None:
        masks = F.interpolate(masks_NHW[None].float().cpu(), size=image.shape[1:])[0] > 0.5
        image = draw_segmentation_masks(image, masks, alpha=0.5, colors=list(colors))

    boxes = boxes_N4.float().cpu() * scale
    top_left = boxes[:, :2]
    bottom_right = torch.maximum(top_left, boxes[:, 2:])  # torchvision refuses boxes of negative width or height
    return draw_bounding_boxes(
        image,
        torch.cat([top_left, bottom_right], dim=1),
        list(texts),
        list(colors),
        width=3,
        font=str(_FONT),
        font_size=max(12, min(image.shape[1:]) // 20),
        fill_labels=True,
    )


def draw_label_map(
    path: str | Path,
    labels_HW: Tensor,
    colors: Sequence[Color],
    names: Sequence[str] = (),
    *,
    min_side: int = 384,
) -> Tensor:
    """Draw a label map over an image. Classes whose color is black, and those without a color, are not drawn.

    Args:
        path: path of the image.
        labels_HW: class numbers, of the size of the image.
        colors: color of each class.
        names: name of each class, which is written onto its area unless that is small.
        min_side: enlarge a smaller image until its shorter side has this many pixels.

    Returns:
        The picture (3, H, W) uint8.
    """
    image, _ = _enlarged(path, min_side)
    labels = F.interpolate(labels_HW[None, None].float().cpu(), size=image.shape[1:])[0, 0].long()

    drawn = [label for label in labels.unique().tolist() if 0 <= label < len(colors) and any(colors[label])]
    if not drawn:
        return image
    masks = torch.stack([labels == label for label in drawn])
    picture = draw_segmentation_masks(image, masks, alpha=0.6, colors=[colors[label] for label in drawn])
    return _write_names(picture, masks, [names[label] for label in drawn]) if names else picture


def _write_names(picture_3HW: Tensor, masks_NHW: Tensor, names: Sequence[str]) -> Tensor:
    """Write a name where each mask is thickest; masks of less than a percent of the picture get none."""
    side = min(picture_3HW.shape[1:])
    window = 2 * (side // 16) + 1
    pixels = Image.fromarray(picture_3HW.permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(pixels)
    font = ImageFont.truetype(str(_FONT), max(10, side // 24))

    for mask_HW, name in zip(masks_NHW, names, strict=True):
        if mask_HW.float().mean() < 0.01:
            continue
        thickness = F.avg_pool2d(mask_HW[None, None].float(), window, stride=1, padding=window // 2)[0, 0]
        y, x = divmod(int(thickness.argmax()), thickness.shape[1])
        half = pen.textlength(name, font) / 2
        x = round(min(max(x, half + 2), picture_3HW.shape[2] - half - 2))  # names stay inside the picture
        pen.rectangle(pen.textbbox((x, y), name, font, anchor="mm"), fill=(255, 255, 255))
        pen.text((x, y), name, (0, 0, 0), font, anchor="mm")
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _enlarged(path: str | Path, min_side: int) -> tuple[Tensor, float]:
    """Return the image (3, H, W) uint8, and the factor by which it was enlarged."""
    image = read_image(Path(path))
    scale = max(1.0, min_side / min(image.size))
    if scale > 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), scale


def side_by_side(left: Tensor, right: Tensor, *, height: int = 300, width: int = 600) -> Tensor:
    """Return two pictures of the same size side by side, scaled to fit into ``height`` x ``width`` pixels on white."""
    gap = torch.full((3, left.shape[1], 6), 255, dtype=torch.uint8)
    pair = torch.cat([left, gap, right], dim=2)

    scale = min(height / pair.shape[1], width / pair.shape[2])
    size = (round(scale * pair.shape[1]), round(scale * pair.shape[2]))
    scaled = F.interpolate(pair[None].float(), size=size, mode="area")[0].round().to(torch.uint8)

    canvas = torch.full((3, height, width), 255, dtype=torch.uint8)
    top = (height - size[0]) // 2
    left_edge = (width - size[1]) // 2
    canvas[:, top : top + size[0], left_edge : left_edge + size[1]] = scaled
    return canvas
