"""From the raw frames of clips to normalized maps: the frames of a clip form one large image.

    frames (B, T, C, H, W), T = rows * columns ─► map (B, C, rows * H, columns * W)

Every pixel of the clip occurs once in the map. There are two layouts:

- ``grid`` places whole frames side by side, row by row, as the text of the UniRepLKNet paper says.
- ``strip`` is what the released code computes, a reshape of the memory. The scan lines of all frames follow each other,
  and each row of the map takes the next ``columns`` of them, side by side. With 16 frames of 224 x 224 pixels, frame t
  fills rows 56 t to 56 t + 55 of the map and looks like four narrow copies of itself.

::

    grid, 4 frames     a a b b      strip, 4 frames     a0 a1
                       a a b b      of 4 x 4 pixels     a2 a3     (ai: scan line i of frame a)
                       c c d d                          b0 b1
                       c c d d                          b2 b3 ...

The authors did not publish which of the two layouts gave their result.
"""

import math
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
    """Normalizes the frames of a clip by the mean and the standard deviation of each channel, and forms one image.

    Args:
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        layout: 'grid' or 'strip'.
        rows: number of rows of the layout; by default the layout is as close to a square as possible.
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
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Turn clips into normalized maps.

        Args:
            frames_BTCHW: clips (B, T, C, H, W), float in [0, 1] or uint8.

        Returns:
            Maps (B, C, rows * H, columns * W) float32.
        """
        mean_C11 = self.mean.view(-1, 1, 1)
        std_C11 = self.std.view(-1, 1, 1)
        normalized_BTCHW = (to_unit_range(frames_BTCHW) - mean_C11) / std_C11
        return clip_to_map(normalized_BTCHW, self.layout, self.rows)


def to_unit_range(frames: Tensor) -> Tensor:
    """Convert pixels to float32 in [0, 1]. Only uint8 is scaled, since floats are expected to be in this range."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()


def rectangle(frames: int, rows: int | None = None) -> tuple[int, int]:
    """Return the number of rows and of columns of a rectangle that the frames of a clip fill.

    Args:
        frames: number of frames T.
        rows: number of rows; by default that of the rectangle closest to a square, with no more rows than columns.

    Raises:
        InputError: if the frames cannot be divided into so many rows. By default, a single row of more than three
            frames is an error too, because it is far from a square; ``rows=1`` asks for it.

    Example:
        >>> rectangle(16), rectangle(8), rectangle(12, rows=1)
        ((4, 4), (2, 4), (1, 12))
    """
    if frames < 1:
        raise InputError(f"num_frames={frames}; a clip has at least one frame")

    if rows is None:
        rows = rows_nearest_square(frames)
        if rows == 1 and frames > 3:  # T is a prime number, so that T - 1 and T + 1 are not
            raise InputError(
                f"{frames} frames fill no rectangle but a single row; give --data.num_frames {frames - 1} or "
                f"{frames + 1}, or --model.rows 1"
            )
    elif rows < 1 or frames % rows:
        fitting = ", ".join(str(number) for number in range(1, frames + 1) if frames % number == 0)
        raise InputError(f"{frames} frames fill no rectangle of {rows} rows; give --model.rows one of {fitting}")

    return rows, frames // rows


def rows_nearest_square(frames: int) -> int:
    """Return the number of rows of the rectangle closest to a square; 1 for a prime number of frames."""
    rows = math.isqrt(frames)
    while frames % rows:
        rows -= 1
    return rows


def clip_to_map(clips: Tensor, layout: Layout = "grid", rows: int | None = None) -> Tensor:
    """Form one image of the frames of each clip.

    Args:
        clips: clips (B, T, C, H, W) of any dtype.
        layout: 'grid' or 'strip'.
        rows: number of rows, see :func:`rectangle`.

    Returns:
        Maps (B, C, rows * H, columns * W). With 'grid', pixel (h, w) of frame t is at row t // columns * H + h and
        column t % columns * W + w. With 'strip', it is pixel number i = (t * H + h) * W + w of the clip, at row
        i // (columns * W) and column i % (columns * W).

    Raises:
        InputError: if the shape is not that of clips, or the frames fill no rectangle.
    """
    if clips.ndim != 5:
        raise InputError(f"clips have the shape {tuple(clips.shape)}; expected (B, T, C, H, W)")
    _check_layout(layout)

    batch, frames, channels, height, width = clips.shape
    rows, columns = rectangle(frames, rows)

    if layout == "strip":
        return clips.transpose(1, 2).reshape(batch, channels, rows * height, columns * width)

    grid = clips.reshape(batch, rows, columns, channels, height, width)
    grid = grid.permute(0, 3, 1, 4, 2, 5)  # to (B, C, rows, H, columns, W)
    return grid.reshape(batch, channels, rows * height, columns * width)


def map_to_clip(maps: Tensor, frames: int, layout: Layout = "grid", rows: int | None = None) -> Tensor:
    """Undo :func:`clip_to_map`, for maps and for anything of their size, such as saliency maps.

    Args:
        maps: maps (B, C, rows * H, columns * W) of any dtype.
        frames: number of frames T.
        layout: 'grid' or 'strip'.
        rows: number of rows, see :func:`rectangle`.

    Returns:
        Clips (B, T, C, H, W).

    Raises:
        InputError: if the sides of the maps are not multiples of the numbers of rows and columns, or the frames fill no
            rectangle.
    """
    _check_layout(layout)
    rows, columns = rectangle(frames, rows)

    batch, channels, map_height, map_width = maps.shape
    height = map_height // rows
    width = map_width // columns
    if (rows * height, columns * width) != (map_height, map_width):
        raise InputError(
            f"a map of {map_height} x {map_width} pixels cannot be divided into {rows} x {columns} frames of one size"
        )

    if layout == "strip":
        return maps.reshape(batch, channels, frames, height, width).transpose(1, 2)

    grid = maps.reshape(batch, channels, rows, height, columns, width)
    grid = grid.permute(0, 2, 4, 1, 3, 5)  # to (B, rows, columns, C, H, W)
    return grid.reshape(batch, frames, channels, height, width)


def _check_layout(layout: str) -> None:
    if layout not in ("grid", "strip"):
        raise InputError(f"layout={layout!r}; expected 'grid' or 'strip'")
