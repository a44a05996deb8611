"""From a clip to one large image and back: pure rearrangements, in which every pixel of the clip occurs once.

    frames (B, T, C, H, W), T = rows * columns ─► map (B, C, rows * H, columns * W)

``grid`` lays the frames out row by row, as the text of UniRepLKNet says. ``strip`` is what its released code computes,
a reshape of the memory: frame after frame, scan line after scan line, each row of the map takes ``columns`` scan lines
side by side. With 16 frames of 224 x 224, frame t fills rows 56 t to 56 t + 55 as four interleaved copies of itself:

    grid, 4 frames     a a b b      strip, 4 frames     a0 a1
                       a a b b      of 4 x 4 pixels     a2 a3     (ai: scan line i of frame a)
                       c c d d                          b0 b1
                       c c d d                          b2 b3 ...

Which of the two the paper's figure belongs to was not published.
"""

from typing import Literal

from torch import Tensor

from core.errors import InputError

__all__ = ["Layout", "clip_to_map", "map_to_clip", "rectangle", "squarest"]

Layout = Literal["grid", "strip"]


def rectangle(frames: int, rows: int | None = None) -> tuple[int, int]:
    """Rows and columns that ``frames`` fill.

    Args:
        frames: T.
        rows: number of rows; by default the rectangle that comes nearest to a square, with fewer rows than columns.

    Raises:
        InputError: if no such number of rows divides T, or no rectangle but a single row of more than three frames
            is possible and ``rows`` does not ask for it.

    Example:
        >>> rectangle(16), rectangle(8), rectangle(12, rows=1)
        ((4, 4), (2, 4), (1, 12))
    """
    if frames < 1:
        raise InputError(f"num_frames={frames}; a clip has at least one frame")
    if rows is not None:
        if rows < 1 or frames % rows:
            fitting = ", ".join(str(n) for n in range(1, frames + 1) if frames % n == 0)
            raise InputError(f"{frames} frames fill no rectangle of {rows} rows; give --model.rows one of {fitting}")
        return rows, frames // rows
    rows = squarest(frames)
    if rows == 1 and frames > 3:
        raise InputError(
            f"{frames} frames fill no rectangle but a single row; give --data.num_frames {frames - 1} or {frames + 1}, "
            "or --model.rows 1"
        )
    return rows, frames // rows


def squarest(frames: int) -> int:
    """Rows of the rectangle of ``frames`` that comes nearest to a square; 1 if it is but a single row."""
    return next(rows for rows in range(int(frames**0.5), 0, -1) if frames % rows == 0)


def clip_to_map(x_BTCHW: Tensor, layout: Layout = "grid", rows: int | None = None) -> Tensor:
    """Clips to maps.

    Args:
        x_BTCHW: (B, T, C, H, W), any dtype.
        layout: 'grid' or 'strip'.
        rows: R, see :func:`rectangle`.

    Returns:
        (B, C, R * H, T / R * W). With 'grid', pixel (t, h, w) is at (t // columns * H + h, t % columns * W + w); with
        'strip', pixel number i = (t * H + h) * W + w is at (i // (columns * W), i % (columns * W)).

    Raises:
        InputError: if x is not a clip, T fills no rectangle, or the layout is unknown.
    """
    if x_BTCHW.ndim != 5:
        raise InputError(f"a clip has the shape (B, T, C, H, W), got {tuple(x_BTCHW.shape)}")
    batch, frames, channels, height, width = x_BTCHW.shape
    rows, columns = rectangle(frames, rows)
    if _known(layout) == "strip":
        return x_BTCHW.transpose(1, 2).reshape(batch, channels, rows * height, columns * width)
    x = x_BTCHW.view(batch, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(batch, channels, rows * height, columns * width)


def map_to_clip(x_BCHW: Tensor, frames: int, layout: Layout = "grid", rows: int | None = None) -> Tensor:
    """The inverse of :func:`clip_to_map`: maps, or a saliency of their shape, to clips (B, T, C, H, W).

    Args:
        x_BCHW: (B, C, R * H, T / R * W).
        frames: T.
        layout: 'grid' or 'strip'.
        rows: R, see :func:`rectangle`.

    Raises:
        InputError: if the map's sides are no multiples of R and T / R, T fills no rectangle, or the layout is unknown.
    """
    rows, columns = rectangle(frames, rows)
    batch, channels, tall, wide = x_BCHW.shape
    height, width = tall // rows, wide // columns
    if (rows * height, columns * width) != (tall, wide):
        raise InputError(f"a map of {tall} x {wide} pixels is not {rows} x {columns} frames of one size")
    if _known(layout) == "strip":
        return x_BCHW.reshape(batch, channels, frames, height, width).transpose(1, 2)
    x = x_BCHW.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(batch, frames, channels, height, width)


def _known(layout: str) -> str:
    if layout not in ("grid", "strip"):
        raise InputError(f"layout={layout!r}; expected 'grid' or 'strip'")
    return layout
