"""Depthwise convolution on tensor cores in Triton, as products with Toeplitz matrices; stride 1, zero padding.

The convolution of a row of pixels is a product with a banded Toeplitz matrix, and so is that of several rows. For one
channel:

    out[b, h0 + r, w0 + wn] = sum over s, q, wj of  x[b, h0 + d_s + q, w0 + e_s + wj] T_s[(q, wj), (r, wn)]
    T_s[(q, wj), (r, wn)]   = weight[d_s + q - r + P_h, e_s + wj - wn + P_w], or 0 outside the kernel

    M = (image, block of R rows, block of WN columns)      the rows of the product, for the whole batch
    N = (r, wn): R x WN output pixels of a block           J = (q, wj): Q x WJ input pixels, the summed dimension

A step s is an offset (d, e) from an output block to an input block. T depends on the step alone, so one T is used for
all images and blocks. Therefore maps of 7 x 7 pixels (R = Q = 8, a single step) fill the tensor cores as well as maps
of 56 x 56 pixels (R = 2, Q = 1). According to its data sheet, an H200 computes 15 times as many 16-bit products on
tensor cores as float32 products without them. This has to make up for the zeros of T: a 31 x 31 kernel on 56 x 56 maps
takes about 2 products for each one that has a tap.

Each program gathers T from the kernel. Where many programs use the same T, a separate kernel first writes the matrices
of single rows of taps to a bank. Programs read the bank in vectors and asynchronously, which takes few addresses. The
width of a map is passed as a multiple of up to 8 pixels (UNIT), so that maps are read and written in vectors as well.

The gradient of the input is a convolution with the flipped kernel. For the gradient of the weight, a program computes
G[(q, wj), (r, wn)] = sum over M of x dy for each step, and then sums the diagonals of G, whose pairs of pixels belong
to the same tap.

Tensors are contiguous (NCHW). A program reads one channel, of which a 32-byte sector of a channels_last map would have
one or two pixels. The cost of this is a copy of such a map to NCHW, and one of the result back.
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

BANK_FROM = 256
"""Number of rows of the product from which T is read from a bank, instead of being gathered by each program."""

SPLITS_FROM = 512
"""Number of programs below which a weight gradient is split over the batch; an H200 has 132 multiprocessors."""


# Launch settings and the division of maps into blocks


def launch_configs(*tiles: tuple[int, int, int]) -> list[triton.Config]:
    """Return launch settings (BLOCK_M, warps, stages) to time; Triton's interpreter takes the first one."""
    configs = [triton.Config({"BLOCK_M": m}, num_warps=warps, num_stages=stages) for m, warps, stages in tiles]
    return configs[:1] if triton.knobs.runtime.interpret else configs


def prune_configs(configs: list[triton.Config], sizes: dict[str, Any], **others: Any) -> list[triton.Config]:
    """Return the launch settings that are worth timing.

    Their blocks are not taller than the product, and the values of a thread fit into its registers. Pixels that are
    loaded one or two at a time need one address each, which limits a thread to 32 of them instead of 64.
    """
    sizes = {**sizes, **others}
    pixels_in = sizes["Q"] * sizes["WJ"]
    pixels_out = sizes["R"] * sizes["WN"]
    is_weight_gradient = "M_SPLIT" in sizes
    tallest = max(64, triton.next_power_of_2(sizes["M"])) if sizes["UNIT"] > 1 else 64
    most_loaded = 32 if sizes["UNIT"] <= 2 else 64

    def fits(config: triton.Config) -> bool:
        height = config.kwargs["BLOCK_M"]
        threads = 32 * config.num_warps
        loaded = height * (max(pixels_in, pixels_out) if is_weight_gradient else pixels_in)
        result = pixels_out * (pixels_in if is_weight_gradient else height)
        return height <= tallest and loaded <= most_loaded * threads and result <= 64 * threads

    return [config for config in configs if fits(config)]


@dataclass(frozen=True)
class Blocks:
    """The division of a map into blocks of output and input pixels, and the steps from one to the other.

    Attributes:
        rows: R, number of rows of an output block.
        columns: WN, number of columns of an output block.
        rows_in: Q, number of rows of an input block.
        columns_in: WJ, number of columns of an input block.
        down: number of output blocks of a map from top to bottom.
        across: number of output blocks of a map from left to right.
        first_row: d of the first step, in pixels.
        first_column: e of the first step, in pixels; a multiple of 8, so that vector loads are aligned.
        steps_down: number of steps with different d.
        steps_across: number of steps with different e.
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
        """Divide a map into blocks of 64 pixels, or 128 on maps wider than 16, as wide as the map if that is possible.

        Larger blocks read each pixel less often, but multiply more zeros, which matters on small maps. Maps of odd
        width have blocks of 64 pixels: pixels are then loaded one by one, and their addresses fill the registers.

        Args:
            height: height of the map, in pixels.
            width: width of the map, in pixels.
            reach_down: distance from the kernel's center to its last row, in pixels.
            reach_across: distance from the kernel's center to its last column, in pixels.
            square: make input blocks at least as large as output blocks, with 64 or more pixels; otherwise, they have
                64 pixels or fewer.
        """
        columns = min(64, max(8, triton.next_power_of_2(width)))
        pixels_of_block = 64 if width <= 16 or width % 2 else 128
        rows = min(pixels_of_block // columns, triton.next_power_of_2(height))
        rows = max(rows, 16 // columns)  # tensor cores need products with at least R x WN = 16 columns

        columns_in = columns if width <= columns else 32  # a narrow block has fewer pixels beyond the kernel's edge
        rows_in = max(rows, 64 // columns_in) if square else min(rows, 64 // columns_in)

        down = triton.cdiv(height, rows)
        across = triton.cdiv(width, columns)
        first_row, last_row = _span(reach_down, rows, down, height)
        first_column, last_column = _span(reach_across, columns, across, width)
        first_column = first_column // 8 * 8
        return cls(
            rows=rows,
            columns=columns,
            rows_in=rows_in,
            columns_in=columns_in,
            down=down,
            across=across,
            first_row=first_row,
            first_column=first_column,
            steps_down=triton.cdiv(last_row - first_row + 1, rows_in),
            steps_across=triton.cdiv(last_column - first_column + 1, columns_in),
        )


def _span(reach: int, block: int, blocks: int, size: int) -> tuple[int, int]:
    """Return the first and last offset from a block's first pixel to a pixel that both kernel and map contain."""
    return max(-reach, -(blocks - 1) * block), min(block - 1 + reach, size - 1)


def geometry(x: Tensor, kernel: tuple[int, int], dilation: int, *, square: bool) -> tuple[Blocks, dict[str, Any]]:
    """Return the blocks of a map for a kernel (KH, KW), and the arguments of the Triton kernels for them."""
    batch, channels, height, width = x.shape
    blocks, arguments = _geometry(batch, channels, height, width, kernel, dilation, square)
    return blocks, dict(arguments)


@lru_cache(maxsize=1024)
def _geometry(
    batch: int, channels: int, height: int, width: int, kernel: tuple[int, int], dilation: int, square: bool
) -> tuple[Blocks, dict[str, Any]]:
    reach_down = dilation * (kernel[0] // 2)
    reach_across = dilation * (kernel[1] // 2)
    blocks = Blocks.of(height, width, reach_down, reach_across, square=square)
    rows_of_product = batch * blocks.down * blocks.across
    unit = math.gcd(width, 8)
    arguments = {
        "M": rows_of_product,
        "MAGNITUDE": rows_of_product.bit_length(),
        "C": channels,
        "H": height,
        "W_UNITS": width // unit,
        "UNIT": unit,
        "DOWN": blocks.down,
        "ACROSS": blocks.across,
        "D": blocks.first_row,
        "E_UNITS": blocks.first_column // 8,
        "STEPS_ACROSS": blocks.steps_across,
        "KH": kernel[0],
        "KW": kernel[1],
        "DIL": dilation,
        "R": blocks.rows,
        "WN": blocks.columns,
        "Q": blocks.rows_in,
        "WJ": blocks.columns_in,
        # Triton's interpreter computes a product of two bfloat16 values from their bits, as if they were integers.
        "UPCAST": triton.knobs.runtime.interpret,
    }
    return blocks, arguments


# Toeplitz matrices and products with them


@triton.jit
def _toeplitz(
    w_ptr, d, e, KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr,
    R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr, WJ: tl.constexpr,
):  # fmt: skip
    """Gather the Toeplitz matrix of step (d, e) from the kernel of one channel, (Q * WJ, R * WN)."""
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
    """Write a matrix (WJ, WN) of the bank (C, steps across, KH, WJ, WN): that of a channel, an e and a row of taps."""
    matrix_index = tl.program_id(0)
    channel = tl.program_id(1)
    d = DIL * (matrix_index % KH - KH // 2)
    e = E_UNITS * 8 + matrix_index // KH * WJ
    matrix = _toeplitz(w_ptr + channel * (KH * KW), d, e, KH, KW, DIL, 1, WN, 1, WJ)
    bank_ptr += (channel.to(tl.int64) * tl.num_programs(0) + matrix_index) * (WJ * WN)
    tl.store(bank_ptr + tl.arange(0, WJ)[:, None] * WN + tl.arange(0, WN)[None, :], matrix)


@triton.jit
def _banked(
    bank_ptr, d, KH: tl.constexpr, DIL: tl.constexpr,
    R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr, WJ: tl.constexpr,
):  # fmt: skip
    """Read the matrix of :func:`_toeplitz` from the bank, where values to be read together are neighbors in memory."""
    j = tl.arange(0, Q * WJ)[:, None]
    n = tl.arange(0, R * WN)[None, :]
    dh = d + j // WJ - n // WN + DIL * (KH // 2)
    inside = (dh >= 0) & (dh < KH * DIL)
    if DIL > 1:
        inside = inside & (dh % DIL == 0)
    return tl.load(bank_ptr + (dh // DIL * (WJ * WN) + j % WJ * WN + n % WN), mask=inside, other=0.0)


@triton.jit
def block_corners(m, channel, C, H, W, DOWN, ACROSS, R: tl.constexpr, WN: tl.constexpr):
    """Return the memory offset of the image (64 bit), the first row and the first column of blocks ``m``."""
    image = m // (DOWN * ACROSS)
    start = (image.to(tl.int64) * C + channel) * (H * W)
    return start, m // ACROSS % DOWN * R, m % ACROSS * WN


@triton.jit
def pixel_pointers(ptr, start, h, w, real, H, W, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return pointers to the pixels of blocks with corner (h, w), and which pixels exist, (M, ROWS * COLUMNS) each."""
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
    """Compute the convolution at the blocks of one channel with corner (h, w), (BLOCK_M, R * WN) float32.

    With BANK, ``w_ptr`` points to the matrices of :func:`bank_kernel`; otherwise, to the weight.
    """
    acc = tl.zeros((BLOCK_M, R * WN), dtype=tl.float32)
    for step in range(STEPS):
        d = D + step // STEPS_ACROSS * Q
        e = E_UNITS * 8 + step % STEPS_ACROSS * WJ
        pointers, exist = pixel_pointers(x_ptr, start, h + d, w + e, real, H, W, Q, WJ)
        x = tl.load(pointers, mask=exist, other=0.0)
        if BANK:
            offset = (channel.to(tl.int64) * STEPS_ACROSS + step % STEPS_ACROSS) * (KH * WJ * WN)
            matrix = _banked(w_ptr + offset, d, KH, DIL, R, WN, Q, WJ)
        else:
            matrix = _toeplitz(w_ptr + channel * (KH * KW), d, e, KH, KW, DIL, R, WN, Q, WJ)
        if UPCAST:
            x, matrix = x.to(tl.float32), matrix.to(tl.float32)
        acc = tl.dot(x, matrix, acc, input_precision="ieee")
    return acc


def make_bank(weight: Tensor, arguments: dict[str, Any], steps_across: int) -> tuple[bool, Tensor]:
    """Return whether a bank is worth its time, and the bank (C, steps across, KH, WJ, WN), or else the weight."""
    if arguments["M"] < BANK_FROM:
        return False, weight
    wanted = {name: arguments[name] for name in ("E_UNITS", "KH", "KW", "DIL", "WN", "WJ")}
    bank = weight.new_empty(len(weight), steps_across, wanted["KH"], wanted["WJ"], wanted["WN"])
    bank_kernel[(steps_across * wanted["KH"], len(weight))](weight, bank, **wanted)
    return True, bank


# The convolution and the gradient of its weight


@triton.autotune(
    configs=launch_configs((128, 8, 3), (64, 4, 3), (64, 8, 3), (128, 8, 4)),
    key=["MAGNITUDE", "KH", "KW", "DIL", "R", "WN", "WJ", "UNIT", "BANK"],
    prune_configs_by={"early_config_prune": prune_configs},
)
@triton.jit
def forward_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, M, C, H, W_UNITS, DOWN, ACROSS, D, E_UNITS, STEPS, STEPS_ACROSS, MAGNITUDE,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, BIAS: tl.constexpr, BANK: tl.constexpr,
    R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr, WJ: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_M output blocks of one channel."""
    W = W_UNITS * UNIT  # the compiler sees from UNIT how rows of pixels are aligned
    channel = tl.program_id(1)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    start, h, w = block_corners(m, channel, C, H, W, DOWN, ACROSS, R, WN)
    acc = products(
        x_ptr, w_ptr, channel, start, h, w, m < M, H, W, D, E_UNITS, STEPS, STEPS_ACROSS,
        KH, KW, DIL, BANK, R, WN, Q, WJ, UPCAST, BLOCK_M,
    )  # fmt: skip
    if BIAS:
        acc += tl.load(bias_ptr + channel).to(tl.float32)
    pointers, exist = pixel_pointers(y_ptr, start, h, w, m < M, H, W, R, WN)
    tl.store(pointers, acc.to(y_ptr.dtype.element_ty), mask=exist)


@triton.autotune(
    configs=launch_configs((128, 8, 2), (64, 8, 3), (64, 4, 3)),
    key=["MAGNITUDE", "KH", "KW", "DIL", "R", "WN", "WJ", "UNIT"],
    prune_configs_by={"early_config_prune": prune_configs},
)
@triton.jit
def weight_gradient_kernel(
    x_ptr, dy_ptr, out_ptr, M, M_SPLIT, C, H, W_UNITS, DOWN, ACROSS, D, E_UNITS, STEPS_ACROSS, MAGNITUDE,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, R: tl.constexpr, WN: tl.constexpr, Q: tl.constexpr,
    WJ: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
    TAPS_DOWN: tl.constexpr, TAPS_ACROSS: tl.constexpr, TAPS_AT_ONCE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Compute G of one channel, step and part of the batch, and store the sums of its diagonals.

    Each part of the batch stores them in a place of its own.
    """
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
        start, h, w = block_corners(m, channel, C, H, W, DOWN, ACROSS, R, WN)
        pointers, exist = pixel_pointers(x_ptr, start, h + d, w + e, real, H, W, Q, WJ)
        x = tl.load(pointers, mask=exist, other=0.0)
        pointers, exist = pixel_pointers(dy_ptr, start, h, w, real, H, W, R, WN)
        dy = tl.load(pointers, mask=exist, other=0.0)
        if UPCAST:
            x, dy = x.to(tl.float32), dy.to(tl.float32)
        g = tl.dot(tl.trans(x), dy, g, input_precision="ieee")

    # Row j of G adds to tap (kh, kw) its entry in column (r, wn), which is pixel j minus the offset of the tap.
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
    """Convolve every channel with a kernel of its own.

    The gradient of ``x`` is the convolution of the output gradient with the flipped kernel.

    Args:
        x: (B, C, H, W) contiguous, not empty.
        weight: (C, 1, KH, KW) contiguous, KH and KW odd, in the dtype of ``x``.
        bias: (C,), or None.
        dilation: distance between two taps, in pixels.

    Returns:
        (B, C, H, W) contiguous, in the dtype of ``x``.
    """
    y = torch.empty_like(x)
    blocks, arguments = geometry(x, (weight.shape[2], weight.shape[3]), dilation, square=False)
    steps = blocks.steps_down * blocks.steps_across
    banked, matrices = make_bank(weight, arguments, blocks.steps_across)
    forward_kernel[lambda meta: (triton.cdiv(meta["M"], meta["BLOCK_M"]), meta["C"])](
        x,
        matrices,
        weight if bias is None else bias,  # without a bias, the kernel does not read this pointer
        y,
        STEPS=steps,
        BIAS=bias is not None,
        BANK=banked,
        **arguments,
    )
    return y


def weight_gradient(x: Tensor, dy: Tensor, kernel: tuple[int, int], dilation: int) -> Tensor:
    """Compute the gradient of the weight, (C, 1, KH, KW) float32, by sums whose order depends on the launch settings.

    Args:
        x: (B, C, H, W) contiguous, not empty.
        dy: output gradient, in the shape and dtype of ``x``, contiguous.
        kernel: (KH, KW), odd.
        dilation: distance between two taps, in pixels.
    """
    blocks, arguments = geometry(x, kernel, dilation, square=True)
    steps = blocks.steps_down * blocks.steps_across
    total = arguments["M"]
    splits = min(triton.cdiv(SPLITS_FROM, steps * x.shape[1]), triton.cdiv(total, 128))
    per_split = triton.cdiv(triton.cdiv(total, splits), 64) * 64
    splits = triton.cdiv(total, per_split)

    # Steps down that are at least this far apart have no tap in common, so they store their sums in the same place.
    overlap = min(blocks.steps_down, triton.cdiv(blocks.rows + blocks.rows_in - 1, blocks.rows_in))
    down = triton.next_power_of_2((blocks.rows + blocks.rows_in - 2) // dilation + 1)
    across = triton.next_power_of_2(kernel[1])
    slots = splits * blocks.steps_across * overlap

    partial = torch.zeros(slots, x.shape[1], 1, *kernel, dtype=torch.float32, device=x.device)
    weight_gradient_kernel[(steps, x.shape[1], splits)](
        x,
        dy,
        partial,
        M_SPLIT=per_split,
        OVERLAP=overlap,
        TAPS_DOWN=down,
        TAPS_ACROSS=across,
        TAPS_AT_ONCE=min(down, max(1, 128 // across)),
        **arguments,
    )
    return partial.sum(0)
