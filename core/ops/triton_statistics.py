"""Mean and variance of a depthwise convolution of which no map is written, in Triton.

The convolutions are those of :mod:`core.ops.triton_direct` and :mod:`core.ops.triton_kernels`, in float32 up to the
end: the map that those write is rounded to its dtype first. Each tile leaves its number of values, their mean and the
sum of squared deviations from it; tiles are put together by the formula of Chan, Golub and LeVeque (Updating Formulae
and a Pairwise Algorithm for Computing Sample Variances, 1979), which subtracts no large squares. Every run with the
same launch settings adds in the same order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.triton_blocks import choices, fitting, geometry
from core.ops.triton_direct import arguments_of, strides, tap_by_tap
from core.ops.triton_toeplitz import corners, matrices_of, pixels, products

__all__ = ["direct", "on_tensor_cores"]

VALUES = 512  # of a tile of the direct kernel: more would not fit into the registers
PIXELS = 256  # of a program of the direct kernel at least, so that few results are written
ROWS = 64  # of the smallest tile on tensor cores


@triton.jit
def direct_kernel(
    x_ptr, w_ptr, out_ptr, P, C, H, W, x_sb, x_sc, x_sh, x_sw,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, TILES: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Number, mean and squared deviations of TILES times BLOCK_P pixels of BLOCK_C channels, to (3, programs, C)."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    number = 0.0
    mean = tl.zeros((BLOCK_C,), dtype=tl.float32)
    squares = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for tile in range(TILES):
        first = (tl.program_id(0) * TILES + tile) * BLOCK_P
        p = first + tl.arange(0, BLOCK_P)[:, None]
        real = (p < P) & (c < C)
        acc = tap_by_tap(x_ptr, w_ptr, p, c, real, C, H, W, x_sb, x_sc, x_sh, x_sw, KH, KW, DIL, BLOCK_P, BLOCK_C)
        more = tl.maximum(tl.minimum(P - first, BLOCK_P), 0).to(tl.float32)
        share = more / tl.maximum(number + more, 1.0)
        of_tile = tl.sum(acc, axis=0) / tl.maximum(more, 1.0)  # what is not real has no products
        deviations = tl.where(real, acc - of_tile[None, :], 0.0)
        apart = of_tile - mean
        squares += tl.sum(deviations * deviations, axis=0) + apart * apart * (number * share)
        mean += apart * share
        number += more
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    out_ptr += tl.program_id(0).to(tl.int64) * C + c
    part = tl.num_programs(0) * C
    tl.store(out_ptr, tl.zeros_like(mean) + number, mask=c < C)
    tl.store(out_ptr + part, mean, mask=c < C)
    tl.store(out_ptr + 2 * part, squares, mask=c < C)


@triton.autotune(
    configs=choices((128, 8, 3), (64, 4, 3), (64, 8, 3), (128, 8, 4)),
    key=["MAGNITUDE", "KH", "KW", "DIL", "R", "WN", "WJ", "UNIT", "BANK"],
    prune_configs_by={"early_config_prune": fitting},
)
@triton.jit
def tensor_core_kernel(
    x_ptr, w_ptr, out_ptr, SLOTS, M, C, H, W_UNITS, DOWN, ACROSS, D, E_UNITS, STEPS, STEPS_ACROSS, MAGNITUDE,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, BANK: tl.constexpr,
    R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr, WJ: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr,
    LEAST: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The same of BLOCK_M blocks of one channel, into the first of their slots, one for each LEAST blocks."""
    W = W_UNITS * UNIT
    channel = tl.program_id(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    start, h, w = corners(m, channel, C, H, W, DOWN, ACROSS, R, WN)
    acc = products(
        x_ptr, w_ptr, channel, start, h, w, m < M, H, W, D, E_UNITS, STEPS, STEPS_ACROSS,
        KH, KW, DIL, BANK, R, WN, Q, WJ, UPCAST, BLOCK_M,
    )  # fmt: skip
    _, exist = pixels(x_ptr, start, h, w, m < M, H, W, R, WN)
    number = tl.sum(tl.sum(exist.to(tl.float32), axis=1), axis=0)
    mean = tl.sum(tl.sum(tl.where(exist, acc, 0.0), axis=1), axis=0) / number
    deviations = tl.where(exist, acc - mean, 0.0)
    squares = tl.sum(tl.sum(deviations * deviations, axis=1), axis=0)
    slot = tl.arange(0, BLOCK_M // LEAST)  # those after the first stay empty, also if other settings had filled them
    place = tl.program_id(0) * (BLOCK_M // LEAST) + slot
    out_ptr += place.to(tl.int64) * C + channel
    tl.store(out_ptr, tl.where(slot == 0, number, 0.0), mask=place < SLOTS)
    tl.store(out_ptr + SLOTS * C, tl.where(slot == 0, mean, 0.0), mask=place < SLOTS)
    tl.store(out_ptr + 2 * SLOTS * C, tl.where(slot == 0, squares, 0.0), mask=place < SLOTS)


def direct(x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of the convolution, (C,) float32 each.

    Args:
        x: (B, C, H, W) of any strides, not empty.
        weight: (C, 1, KH, KW) contiguous, KH and KW odd.
        dilation: distance between two taps, in pixels.
    """
    arguments = arguments_of(x, (weight.shape[2], weight.shape[3]), dilation)
    tile = VALUES // arguments["BLOCK_C"]
    several = triton.cdiv(PIXELS, tile)
    grid = (triton.cdiv(arguments["P"], several * tile), triton.cdiv(arguments["C"], arguments["BLOCK_C"]))
    tiles = torch.empty(3, grid[0], x.shape[1], dtype=torch.float32, device=x.device)
    launch = {**strides("x", x), **arguments, "TILES": several, "BLOCK_P": tile}
    direct_kernel[grid](x, weight, tiles, **launch, num_warps=4)
    return _together(tiles, arguments["P"])


def on_tensor_cores(x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of the convolution, (C,) float32 each.

    Args:
        x: (B, C, H, W) contiguous, not empty.
        weight: (C, 1, KH, KW) contiguous, KH and KW odd, in the dtype of ``x``.
        dilation: distance between two taps, in pixels.
    """
    blocks, arguments = geometry(x, (weight.shape[2], weight.shape[3]), dilation, square=False)
    banked, matrices = matrices_of(weight, arguments, blocks.steps_across)
    slots = triton.cdiv(arguments["M"], ROWS)
    tiles = torch.zeros(3, slots, x.shape[1], dtype=torch.float32, device=x.device)
    tensor_core_kernel[lambda meta: (triton.cdiv(meta["M"], meta["BLOCK_M"]), meta["C"])](
        *(x, matrices, tiles, slots),
        STEPS=blocks.steps_down * blocks.steps_across,
        BANK=banked,
        LEAST=ROWS,
        **arguments,
    )
    return _together(tiles, x.numel() // x.shape[1])


def _together(tiles: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Of (3, tiles, C) to mean and variance of all ``total`` values; empty tiles have no weight."""
    numbers, means, squares = tiles
    mean = (numbers * means).sum(0) / total
    deviations = means - mean
    return mean, (squares + numbers * deviations * deviations).sum(0) / total
