"""Which taps of a kernel meet a map: a kernel may be larger than the map is."""

import math

from torch import Tensor

__all__ = ["near_kernel", "near_taps", "taps_flops"]


def _reach(size: int, kernel: int, dilation: int) -> int:
    """Steps from the centre of a kernel to the furthest tap that meets a map of this size."""
    return min(kernel // 2, (size - 1) // dilation)


def near_kernel(x: Tensor, kernel: tuple[int, int], dilation: int) -> tuple[int, int]:
    """(Kh, Kw) of the middle that meets a map x (B, C, H, W)."""
    rows, columns = (2 * _reach(x.shape[i + 2], kernel[i], dilation) + 1 for i in (0, 1))
    return rows, columns


def near_taps(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """The middle of the kernel (C, 1, Kh, Kw): the taps that meet a map of the size of x."""
    rows, columns = near_kernel(x, (weight.shape[2], weight.shape[3]), dilation)
    top, left = (weight.shape[2] - rows) // 2, (weight.shape[3] - columns) // 2
    return weight[:, :, top : top + rows, left : left + columns]


def taps_flops(x: list[int], kernel: list[int], dilation: int) -> int:
    """Two for each of the taps that meet the map, for each output."""
    rows, columns = (2 * _reach(size, side, dilation) + 1 for size, side in zip(x[2:], kernel, strict=True))
    return 2 * math.prod(x) * rows * columns
