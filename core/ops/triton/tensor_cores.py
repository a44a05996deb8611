"""Depthwise convolution on tensor cores, in Triton: kernels as Toeplitz matrices; stride 1, zero-padded.

One row of a convolution is a product with a banded Toeplitz matrix, and so are several rows at once. For one channel

    out[b, h0 + r, w0 + wn] = sum over s, q, wj of  x[b, h0 + d_s + q, w0 + e_s + wj] T_s[(q, wj), (r, wn)]
    T_s[(q, wj), (r, wn)]   = weight[d_s + q - r + P_h, e_s + wj - wn + P_w], or 0 outside the kernel

    M = (image, block of R rows, block of WN columns)      the rows of the product, from the whole batch
    N = (r, wn): R x WN output pixels of a block           J = (q, wj): Q x WJ input pixels, the summed dimension

A step s is one offset (d, e) from the output block to an input block. T depends on the step alone, so that one T
serves all images and blocks, and 7 x 7 maps (R = Q = 8: a single step) fill a tile as 56 x 56 maps do (R = 2, Q = 1).
By its data sheet an H200 does 15 times as many products a second in 16 bits on tensor cores as in float32 without,
which is to pay for multiplying T's zeros (31 x 31 on 56 x 56 maps: about 2 products for each that counts).

T is gathered from the kernel by each program, or, where many programs need it, read from a bank of T's single rows of
taps, which comes in vectors, asynchronously, with few addresses; a kernel of its own fills the bank for each call.
Widths are known to be multiples of up to 8 pixels (UNIT), so that maps are read and written in vectors too.

The gradient of the input is the forward with the kernel flipped. The gradient of the weight sums, for each step,
G[(q, wj), (r, wn)] = sum over M of x dy, and then G's diagonals: all its pairs with the same tap.

Tensors are contiguous NCHW: a program reads one channel, whose pixels lie 2C bytes apart in channels_last, where each
32-byte sector would bring one or two pixels that are wanted. The copies to and from NCHW move the map twice more.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["convolve", "weight_gradient"]

BANK_FROM = 256  # rows of the product from which T is made once, not by each of the programs that use it
SPLITS_FROM = 512  # weight gradient: fewer programs than this are split over the batch; an H200 has 132 processors


# How maps are cut into blocks


def choices(*tiles: tuple[int, int, int]) -> list[triton.Config]:
    """Launch settings (BLOCK_M, warps, stages) to try; Triton's interpreter cannot time them and takes the first."""
    configs = [triton.Config({"BLOCK_M": m}, num_warps=warps, num_stages=stages) for m, warps, stages in tiles]
    return configs[:1] if triton.knobs.runtime.interpret else configs


def fitting(configs: list[triton.Config], sizes: dict[str, Any], **others: Any) -> list[triton.Config]:
    """The settings worth timing: no taller than the product, and few enough pixels a thread to stay in registers.

    Pixels that are loaded one or two at once each need an address of their own: 64 of them spill.
    """
    sizes = {**sizes, **others}
    pixels_in, pixels_out = sizes["Q"] * sizes["WJ"], sizes["R"] * sizes["WN"]
    tallest = max(64, triton.next_power_of_2(sizes["M"])) if sizes["UNIT"] > 1 else 64

    def fits(config: triton.Config) -> bool:
        height, threads = config.kwargs["BLOCK_M"], 32 * config.num_warps
        sums = pixels_in if "M_SPLIT" in sizes else height  # rows of the result: of G in the gradient of the weight
        loaded = height * max(pixels_in, pixels_out if "M_SPLIT" in sizes else 0)
        most = 32 if sizes["UNIT"] <= 2 else 64
        return height <= tallest and loaded <= most * threads and sums * pixels_out <= 64 * threads

    return [config for config in configs if fits(config)]


@dataclass(frozen=True)
class Blocks:
    """How a map is cut for a kernel: blocks of output and input pixels, and the steps between them.

    Attributes:
        rows: R, output rows of a block.
        columns: WN, output columns of a block.
        rows_in: Q, input rows of a block.
        columns_in: WJ, input columns of a block.
        down: blocks of a map, from top to bottom.
        across: blocks of a map, from left to right.
        first_row: d of the first step, in pixels.
        first_column: e of the first step, in pixels; a multiple of 8, which keeps vector loads aligned.
        steps_down: steps with different d.
        steps_across: steps with different e.
    """

    rows: int
    columns: int
    rows_in: int
    columns_in: int
    down: int
    across: int
    first_row: int
    first_column: int
    steps_down: int
    steps_across: int

    @classmethod
    def of(cls, height: int, width: int, reach_down: int, reach_across: int, *, square: bool) -> "Blocks":
        """Blocks of 64 pixels, of 128 on maps wider than 16, as wide as the map where that is possible.

        Larger blocks read each pixel less often and multiply more zeros, which weighs more on small maps. Odd widths
        keep to 64: their pixels are loaded one by one, and the addresses take up the registers.

        Args:
            height: of the map, in pixels.
            width: of the map, in pixels.
            reach_down: distance from the kernel's center to its last row, in pixels.
            reach_across: distance from the kernel's center to its last column, in pixels.
            square: blocks of input as large as those of output and at least 64 pixels; else at most 64 pixels.
        """
        columns = min(64, max(8, triton.next_power_of_2(width)))
        rows = max(
            16 // columns, min((64 if width <= 16 or width % 2 else 128) // columns, triton.next_power_of_2(height))
        )
        columns_in = columns if width <= columns else 32  # a narrower block overshoots the kernel's edge by less
        rows_in = max(rows, 64 // columns_in) if square else min(rows, 64 // columns_in)
        down, across = triton.cdiv(height, rows), triton.cdiv(width, columns)
        first_row, last_row = _span(reach_down, rows, down, height)
        first_column, last_column = _span(reach_across, columns, across, width)
        first_column = first_column // 8 * 8
        return cls(
            *(rows, columns, rows_in, columns_in, down, across, first_row, first_column),
            steps_down=triton.cdiv(last_row - first_row + 1, rows_in),
            steps_across=triton.cdiv(last_column - first_column + 1, columns_in),
        )


def _span(reach: int, block: int, blocks: int, size: int) -> tuple[int, int]:
    """First and last offset from a block's first pixel to a pixel that the kernel and the map hold."""
    return max(-reach, -(blocks - 1) * block), min(block - 1 + reach, size - 1)


def geometry(x: Tensor, kernel: tuple[int, int], dilation: int, *, square: bool) -> tuple[Blocks, dict[str, Any]]:
    """The blocks of a map for a kernel (KH, KW), and the arguments of the Triton kernels that follow from them."""
    batch, channels, height, width = x.shape
    blocks, arguments = _geometry(batch, channels, height, width, kernel, dilation, square)
    return blocks, dict(arguments)


@lru_cache(maxsize=1024)
def _geometry(
    batch: int, channels: int, height: int, width: int, kernel: tuple[int, int], dilation: int, square: bool
) -> tuple[Blocks, dict[str, Any]]:
    blocks = Blocks.of(height, width, *(dilation * (size // 2) for size in kernel), square=square)
    unit = math.gcd(width, 8)
    arguments = {
        "M": batch * blocks.down * blocks.across,
        "MAGNITUDE": (batch * blocks.down * blocks.across).bit_length(),
        **{"C": channels, "H": height, "W_UNITS": width // unit, "UNIT": unit},
        **{"DOWN": blocks.down, "ACROSS": blocks.across},
        **{"D": blocks.first_row, "E_UNITS": blocks.first_column // 8, "STEPS_ACROSS": blocks.steps_across},
        **{"KH": kernel[0], "KW": kernel[1], "DIL": dilation},
        **{"R": blocks.rows, "WN": blocks.columns, "Q": blocks.rows_in, "WJ": blocks.columns_in},
        "UPCAST": triton.knobs.runtime.interpret,  # whose product of two bfloat16 multiplies their bits as integers
    }
    return blocks, arguments


# Matrices and their products


@triton.jit
def _toeplitz(
    w_ptr, d, e, KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr,
    R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr, WJ: tl.constexpr,
):  # fmt: skip
    """(Q * WJ, R * WN): the kernel of one channel as the matrix of step (d, e)."""
    j = tl.arange(0, Q * WJ)[:, None]
    n = tl.arange(0, R * WN)[None, :]
    dh = d + j // WJ - n // WN + DIL * (KH // 2)
    dw = e + j % WJ - n % WN + DIL * (KW // 2)
    inside = (dh >= 0) & (dh < KH * DIL) & (dw >= 0) & (dw < KW * DIL)
    if DIL > 1:
        inside = inside & (dh % DIL == 0) & (dw % DIL == 0)
    tap = dh // DIL * KW + dw // DIL
    return tl.load(w_ptr + tap, mask=inside, other=0.0)


@triton.jit
def bank_kernel(
    w_ptr, bank_ptr, E_UNITS,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, WN: tl.constexpr, WJ: tl.constexpr,
):  # fmt: skip
    """The matrix (WJ, WN) of one channel, row of taps and e: the bank is (C, steps across, KH, WJ, WN)."""
    place = tl.program_id(0)
    channel = tl.program_id(1)
    d = DIL * (place % KH - KH // 2)
    e = E_UNITS * 8 + place // KH * WJ
    matrix = _toeplitz(w_ptr + channel * (KH * KW), d, e, KH, KW, DIL, 1, WN, 1, WJ)
    bank_ptr += (channel.to(tl.int64) * tl.num_programs(0) + place) * (WJ * WN)
    tl.store(bank_ptr + tl.arange(0, WJ)[:, None] * WN + tl.arange(0, WN)[None, :], matrix)


@triton.jit
def _banked(
    bank_ptr, d, KH: tl.constexpr, DIL: tl.constexpr,
    R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr, WJ: tl.constexpr,
):  # fmt: skip
    """As _toeplitz, from the matrices of single rows of taps: neighbors in memory are read together."""
    j = tl.arange(0, Q * WJ)[:, None]
    n = tl.arange(0, R * WN)[None, :]
    dh = d + j // WJ - n // WN + DIL * (KH // 2)
    inside = (dh >= 0) & (dh < KH * DIL)
    if DIL > 1:
        inside = inside & (dh % DIL == 0)
    return tl.load(bank_ptr + (dh // DIL * (WJ * WN) + j % WJ * WN + n % WN), mask=inside, other=0.0)


@triton.jit
def corners(m, channel, C, H, W, DOWN, ACROSS, R: tl.constexpr, WN: tl.constexpr):
    """Of blocks ``m`` of a channel: where their image starts (64 bit), their first row and their first column."""
    image = m // (DOWN * ACROSS)
    start = (image.to(tl.int64) * C + channel) * (H * W)
    return start, m // ACROSS % DOWN * R, m % ACROSS * WN


@triton.jit
def pixels(ptr, start, h, w, real, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(M, ROWS * COLUMNS) pointers to the pixels of blocks that begin at (h, w), and which of them exist."""
    pixel = tl.arange(0, ROWS * COLUMNS)[None, :]
    rows = h[:, None] + pixel // COLUMNS
    columns = w[:, None] + pixel % COLUMNS
    exist = real[:, None] & (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    return ptr + start[:, None] + (rows * W + columns), exist


@triton.jit
def products(
    x_ptr, w_ptr, channel, start, h, w, real, H, W, D, E_UNITS, STEPS, STEPS_ACROSS,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, BANK: tl.constexpr,
    R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr, WJ: tl.constexpr, UPCAST: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """(BLOCK_M, R * WN) float32: the convolution at the blocks of one channel that begin at (h, w).

    With BANK ``w_ptr`` holds matrices made by bank_kernel; else the kernels, from which they are gathered.
    """
    acc = tl.zeros((BLOCK_M, R * WN), dtype=tl.float32)
    for step in range(STEPS):
        d = D + step // STEPS_ACROSS * Q
        e = E_UNITS * 8 + step % STEPS_ACROSS * WJ
        pointers, exist = pixels(x_ptr, start, h + d, w + e, real, H, W, Q, WJ)
        x = tl.load(pointers, mask=exist, other=0.0)
        if BANK:
            place = (channel.to(tl.int64) * STEPS_ACROSS + step % STEPS_ACROSS) * (KH * WJ * WN)
            matrix = _banked(w_ptr + place, d, KH, DIL, R, WN, Q, WJ)
        else:
            matrix = _toeplitz(w_ptr + channel * (KH * KW), d, e, KH, KW, DIL, R, WN, Q, WJ)
        if UPCAST:
            x, matrix = x.to(tl.float32), matrix.to(tl.float32)
        acc = tl.dot(x, matrix, acc, input_precision="ieee")
    return acc


def matrices_of(weight: Tensor, arguments: dict[str, Any], steps_across: int) -> tuple[bool, Tensor]:
    """Whether the matrices are made beforehand, and they, (C, steps across, KH, WJ, WN), or else the weight itself."""
    if arguments["M"] < BANK_FROM:
        return False, weight
    wanted = {name: arguments[name] for name in ("E_UNITS", "KH", "KW", "DIL", "WN", "WJ")}
    bank = weight.new_empty(len(weight), steps_across, wanted["KH"], wanted["WJ"], wanted["WN"])
    bank_kernel[(steps_across * wanted["KH"], len(weight))](weight, bank, **wanted)
    return True, bank


# The convolution and the gradient of its weight


@triton.autotune(
    configs=choices((128, 8, 3), (64, 4, 3), (64, 8, 3), (128, 8, 4)),
    key=["MAGNITUDE", "KH", "KW", "DIL", "R", "WN", "WJ", "UNIT", "BANK"],
    prune_configs_by={"early_config_prune": fitting},
)
@triton.jit
def forward_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, M, C, H, W_UNITS, DOWN, ACROSS, D, E_UNITS, STEPS, STEPS_ACROSS, MAGNITUDE,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, BIAS: tl.constexpr, BANK: tl.constexpr,
    R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr, WJ: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """BLOCK_M blocks of output pixels of one channel. Widths come in units of UNIT pixels, to prove their alignment."""
    W = W_UNITS * UNIT
    channel = tl.program_id(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    start, h, w = corners(m, channel, C, H, W, DOWN, ACROSS, R, WN)
    acc = products(
        x_ptr, w_ptr, channel, start, h, w, m < M, H, W, D, E_UNITS, STEPS, STEPS_ACROSS,
        KH, KW, DIL, BANK, R, WN, Q, WJ, UPCAST, BLOCK_M,
    )  # fmt: skip
    if BIAS:
        acc += tl.load(bias_ptr + channel).to(tl.float32)
    pointers, exist = pixels(y_ptr, start, h, w, m < M, H, W, R, WN)
    tl.store(pointers, acc.to(y_ptr.dtype.element_ty), mask=exist)


@triton.autotune(
    configs=choices((128, 8, 2), (64, 8, 3), (64, 4, 3)),
    key=["MAGNITUDE", "KH", "KW", "DIL", "R", "WN", "WJ", "UNIT"],
    prune_configs_by={"early_config_prune": fitting},
)
@triton.jit
def weight_gradient_kernel(
    x_ptr, dy_ptr, out_ptr, M, M_SPLIT, C, H, W_UNITS, DOWN, ACROSS, D, E_UNITS, STEPS_ACROSS, MAGNITUDE,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr,
    WJ: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
    TAPS_DOWN: tl.constexpr, TAPS_ACROSS: tl.constexpr, TAPS_AT_ONCE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """G of one channel, step and part of the batch, and the sums of its diagonals into that part's own place."""
    W = W_UNITS * UNIT
    channel = tl.program_id(1)
    step = tl.program_id(0)
    d = D + step // STEPS_ACROSS * Q
    e = E_UNITS * 8 + step % STEPS_ACROSS * WJ
    g = tl.zeros((Q * WJ, R * WN), dtype=tl.float32)
    first = tl.program_id(2) * M_SPLIT
    for tile in range(0, M_SPLIT, BLOCK_M):
        m = first + tile + tl.arange(0, BLOCK_M)
        real = (m < M) & (m < first + M_SPLIT)
        start, h, w = corners(m, channel, C, H, W, DOWN, ACROSS, R, WN)
        pointers, exist = pixels(x_ptr, start, h + d, w + e, real, H, W, Q, WJ)
        x = tl.load(pointers, mask=exist, other=0.0)
        pointers, exist = pixels(dy_ptr, start, h, w, real, H, W, R, WN)
        dy = tl.load(pointers, mask=exist, other=0.0)
        if UPCAST:
            x, dy = x.to(tl.float32), dy.to(tl.float32)
        g = tl.dot(tl.trans(x), dy, g, input_precision="ieee")

    # Taps (kh, kw) of this step; G's entry j belongs to output pixel (r, wn) = j's pixel minus the tap's offset.
    slot = (tl.program_id(2) * STEPS_ACROSS + step % STEPS_ACROSS) * OVERLAP + step // STEPS_ACROSS % OVERLAP
    out_ptr += (slot.to(tl.int64) * C + channel) * (KH * KW)
    lowest = d - R + 1 + DIL * (KH // 2)  # floor division of a positive number: Triton's rounds towards 0
    first_tap = (lowest + DIL - 1 + DIL * R) // DIL - R
    j = tl.arange(0, Q * WJ)[:, None]
    for part in tl.static_range(TAPS_DOWN // TAPS_AT_ONCE):
        tap = tl.arange(0, TAPS_AT_ONCE * TAPS_ACROSS)
        kh = first_tap + part * TAPS_AT_ONCE + tap // TAPS_ACROSS
        kw = tap % TAPS_ACROSS
        r = d + j // WJ + DIL * (KH // 2) - DIL * kh[None, :]
        wn = e + j % WJ + DIL * (KW // 2) - DIL * kw[None, :]
        inside = (r >= 0) & (r < R) & (wn >= 0) & (wn < WN)
        diagonals = tl.gather(g, tl.where(inside, r * WN + wn, 0), axis=1)
        sums = tl.sum(tl.where(inside, diagonals, 0.0), axis=0)
        reached = (kh >= 0) & (kh < KH) & (kw < KW) & (DIL * kh < lowest + R + Q - 1)
        tl.store(out_ptr + kh * KW + kw, sums, mask=reached)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve every channel with a kernel of its own; the gradient of x is that of dy with the kernel flipped.

    Args:
        x: (B, C, H, W) contiguous, not empty.
        weight: (C, 1, KH, KW) contiguous, KH and KW odd, in the dtype of ``x``.
        bias: (C,), or None.
        dilation: distance between two taps, in pixels.
    """
    y = torch.empty_like(x)
    blocks, arguments = geometry(x, (weight.shape[2], weight.shape[3]), dilation, square=False)
    steps = blocks.steps_down * blocks.steps_across
    banked, matrices = matrices_of(weight, arguments, blocks.steps_across)
    forward_kernel[lambda meta: (triton.cdiv(meta["M"], meta["BLOCK_M"]), meta["C"])](
        *(x, matrices, weight if bias is None else bias, y),
        STEPS=steps,
        BIAS=bias is not None,
        BANK=banked,
        **arguments,
    )
    return y


def weight_gradient(x: Tensor, dy: Tensor, kernel: tuple[int, int], dilation: int) -> Tensor:
    """Gradient of the weight, (C, 1, KH, KW) float32, added in an order that only the launch settings change.

    Args:
        x: (B, C, H, W) contiguous, not empty.
        dy: gradient of the output, like ``x``.
        kernel: (KH, KW), odd.
        dilation: distance between two taps, in pixels.
    """
    blocks, arguments = geometry(x, kernel, dilation, square=True)
    steps, total = blocks.steps_down * blocks.steps_across, arguments["M"]
    splits = min(triton.cdiv(SPLITS_FROM, steps * x.shape[1]), triton.cdiv(total, 128))
    per_split = triton.cdiv(triton.cdiv(total, splits), 64) * 64
    splits = triton.cdiv(total, per_split)
    # Two steps whose rows are further apart than this share no tap, and may write to the same place.
    overlap = min(blocks.steps_down, triton.cdiv(blocks.rows + blocks.rows_in - 1, blocks.rows_in))
    down = triton.next_power_of_2((blocks.rows + blocks.rows_in - 2) // dilation + 1)
    across = triton.next_power_of_2(kernel[1])
    slots = splits * blocks.steps_across * overlap
    partial = torch.zeros(slots, x.shape[1], 1, *kernel, dtype=torch.float32, device=x.device)
    weight_gradient_kernel[(steps, x.shape[1], splits)](
        *(x, dy, partial),
        M_SPLIT=per_split,
        OVERLAP=overlap,
        TAPS_DOWN=down,
        TAPS_ACROSS=across,
        TAPS_AT_ONCE=min(down, max(1, 128 // across)),
        **arguments,
    )
    return partial.sum(0)
