"""Matrices, blocks and their products on tensor cores, in the letters of :mod:`core.ops.triton_kernels`."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["corners", "matrices_of", "pixels", "products"]

BANK_FROM = 256  # rows of the product from which T is made once, not by each of the programs that use it


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
    """As _toeplitz, from the matrices of single rows of taps: neighbours in memory are read together."""
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
