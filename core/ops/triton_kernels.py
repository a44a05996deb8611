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

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.ops.triton_blocks import choices, fitting, geometry
from core.ops.triton_toeplitz import corners, matrices_of, pixels, products

__all__ = ["convolve", "weight_gradient"]

SPLITS_FROM = 512  # weight gradient: fewer programs than this are split over the batch; an H200 has 132 processors


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
