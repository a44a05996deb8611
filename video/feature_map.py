"""Turns a clip into one large image, and back: every pixel of the clip occurs once in the map.

    frames (B, T, C, H, W), T = rows * columns ─► map (B, C, rows * H, columns * W)

``grid`` lays whole frames out row by row, as the text of the UniRepLKNet paper says. ``strip`` is what the released
code computes, a reshape of the memory: the scan lines of frame after frame, of which each row of the map takes
``columns`` side by side. With 16 frames of 224 x 224 pixels, frame t fills the rows 56 t to 56 t + 55 of the map and
looks like four narrow copies of itself.

    grid, 4 frames     a a b b      strip, 4 frames     a0 a1
                       a a b b      of 4 x 4 pixels     a2 a3     (ai: scan line i of frame a)
                       c c d d                          b0 b1
                       c c d d                          b2 b3 ...

The authors did not publish which of the two layouts their result belongs to.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from core.errors import InputError
from core.layers.feature_map import FeatureMap

__all__ = ["ClipMap", "Layout", "clip_to_map", "map_to_clip", "rectangle", "rows_nearest_square", "to_unit_range"]

Layout = Literal["grid", "strip"]


class ClipMap(FeatureMap):
    """Normalizes the frames of clips and lays them out as one image.

    Args:
        mean: of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        layout: 'grid' or 'strip'.
        rows: rows of the rectangle that the frames fill; by default as near to a square as possible.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        *,
        layout: Layout = "grid",
        rows: int | None = None,
    ) -> None:
        super().__init__()
        self.layout: Layout = layout
        self.rows = rows
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, frames: Tensor) -> Tensor:
        """Clips to maps.

        Args:
            frames: (B, T, C, H, W), uint8 or float in [0, 1].

        Returns:
            (B, C, rows * H, columns * W) float32, normalized.
        """
        mean = self.mean.view(-1, 1, 1)
        std = self.std.view(-1, 1, 1)
        normalized = (to_unit_range(frames) - mean) / std
        return clip_to_map(normalized, self.layout, self.rows)


def to_unit_range(frames: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1]; those that are not uint8 are in this range already."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()


def rectangle(frames: int, rows: int | None = None) -> tuple[int, int]:
    """Rows and columns of the rectangle that the frames of a clip fill.

    Args:
        frames: T, the number of frames.
        rows: number of rows; by default that of the rectangle nearest to a square, with no more rows than columns.

    Raises:
        InputError: if T cannot be divided into so many rows. By default a single row of more than three frames is
            refused too, since it is far from a square; ``rows=1`` asks for it.

    Example:
        >>> rectangle(16), rectangle(8), rectangle(12, rows=1)
        ((4, 4), (2, 4), (1, 12))
    """
    if frames < 1:
        raise InputError(f"num_frames={frames}; a clip has at least one frame")

    if rows is None:
        rows = rows_nearest_square(frames)
        if rows == 1 and frames > 3:
            raise InputError(
                f"{frames} frames fill no rectangle but a single row; give --data.num_frames {frames - 1} or "
                f"{frames + 1}, or --model.rows 1"
            )
    elif rows < 1 or frames % rows:
        fitting = ", ".join(str(number) for number in range(1, frames + 1) if frames % number == 0)
        raise InputError(f"{frames} frames fill no rectangle of {rows} rows; give --model.rows one of {fitting}")

    return rows, frames // rows


def rows_nearest_square(frames: int) -> int:
    """Rows of the rectangle of ``frames`` frames that is nearest to a square; 1 for a prime number of frames."""
    return next(rows for rows in range(int(frames**0.5), 0, -1) if frames % rows == 0)


def clip_to_map(clips: Tensor, layout: Layout = "grid", rows: int | None = None) -> Tensor:
    """Lay the frames of clips out as one image.

    Args:
        clips: (B, T, C, H, W), of any dtype.
        layout: 'grid' or 'strip'.
        rows: R, see :func:`rectangle`.

    Returns:
        (B, C, R * H, T / R * W). With 'grid', pixel (t, h, w) is at (t // columns * H + h, t % columns * W + w). With
        'strip', pixel number i = (t * H + h) * W + w is at (i // (columns * W), i % (columns * W)).

    Raises:
        InputError: if the shape is not that of clips, or the frames fill no rectangle.
    """
    if clips.ndim != 5:
        raise InputError(f"a clip has the shape (B, T, C, H, W), got {tuple(clips.shape)}")
    _check_layout(layout)

    batch, frames, channels, height, width = clips.shape
    rows, columns = rectangle(frames, rows)

    if layout == "strip":
        return clips.transpose(1, 2).reshape(batch, channels, rows * height, columns * width)

    grid = clips.reshape(batch, rows, columns, channels, height, width)
    grid = grid.permute(0, 3, 1, 4, 2, 5)  # to (B, C, rows, H, columns, W)
    return grid.reshape(batch, channels, rows * height, columns * width)


def map_to_clip(maps: Tensor, frames: int, layout: Layout = "grid", rows: int | None = None) -> Tensor:
    """Return the inverse of :func:`clip_to_map`, for maps and for what has their shape, such as a saliency.

    Args:
        maps: (B, C, R * H, T / R * W).
        frames: T.
        layout: 'grid' or 'strip'.
        rows: R, see :func:`rectangle`.

    Returns:
        (B, T, C, H, W).

    Raises:
        InputError: if the sides of the map are no multiples of R and T / R, or the frames fill no rectangle.
    """
    _check_layout(layout)
    rows, columns = rectangle(frames, rows)

    batch, channels, map_height, map_width = maps.shape
    height, width = map_height // rows, map_width // columns
    if (rows * height, columns * width) != (map_height, map_width):
        raise InputError(f"a map of {map_height} x {map_width} pixels is not {rows} x {columns} frames of one size")

    if layout == "strip":
        return maps.reshape(batch, channels, frames, height, width).transpose(1, 2)

    grid = maps.reshape(batch, channels, rows, height, columns, width)
    grid = grid.permute(0, 2, 4, 1, 3, 5)  # to (B, rows, columns, C, H, W)
    return grid.reshape(batch, frames, channels, height, width)


def _check_layout(layout: str) -> None:
    if layout not in ("grid", "strip"):
        raise InputError(f"layout={layout!r}; expected 'grid' or 'strip'")
