"""Depthwise convolution tap by tap in Triton, with stride 1 and zero padding, for tensors with any strides.

Products and sums are computed in float32, never in TensorFloat-32. A program computes BLOCK_P pixels of BLOCK_C
channels; pixels are numbered through all images. BLOCK_C is 1 where neighboring pixels are neighbors in memory (NCHW),
and up to 32 where neighboring channels are (channels_last). So neighboring threads read neighboring addresses in both
formats, without a copy. The map is read from memory about once, because the pixels that several taps need are in the
cache.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["convolve", "weight_gradient"]

PROGRAMS = 2048
"""Approximate number of programs that share the work of a weight gradient; an H200 has 132 multiprocessors."""


@triton.jit
def _pixels(p, H, W, x_sb, x_sh, x_sw):
    """Return row, column and memory offset (64 bit) of pixels, which are numbered through all images."""
    h = p // W % H
    w = p % W
    return h, w, (p // (W * H)).to(tl.int64) * x_sb + h * x_sh + w * x_sw


@triton.jit
def tap_by_tap(
    x_ptr, w_ptr, p, c, real, C, H, W, x_sb, x_sc, x_sh, x_sw,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the convolution at pixels ``p`` and channels ``c`` where ``real`` is true, (BLOCK_P, BLOCK_C) float32."""
    h, w, offset = _pixels(p, H, W, x_sb, x_sh, x_sw)
    x_ptr += offset + c * x_sc
    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for kh in range(KH):
        dh = (kh - KH // 2) * DIL
        row = real & (h + dh >= 0) & (h + dh < H)
        for kw in tl.static_range(KW):
            dw = (kw - KW // 2) * DIL
            x = tl.load(x_ptr + (dh * x_sh + dw * x_sw), mask=row & (w + dw >= 0) & (w + dw < W), other=0.0)
            tap = kh * KW + kw
            weight = tl.load(w_ptr + c * (KH * KW) + tap, mask=c < C, other=0.0)
            acc += x.to(tl.float32) * weight.to(tl.float32)
    return acc


@triton.jit
def forward_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, P, C, H, W, x_sb, x_sc, x_sh, x_sw, y_sb, y_sc, y_sh, y_sw,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute BLOCK_P output pixels of BLOCK_C channels."""
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    real = (p < P) & (c < C)
    acc = tap_by_tap(x_ptr, w_ptr, p, c, real, C, H, W, x_sb, x_sc, x_sh, x_sw, KH, KW, DIL, BLOCK_P, BLOCK_C)
    if BIAS:
        acc += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    _, _, offset = _pixels(p, H, W, y_sb, y_sh, y_sw)
    tl.store(y_ptr + offset + c * y_sc, acc.to(y_ptr.dtype.element_ty), mask=real)


@triton.jit
def weight_gradient_kernel(
    x_ptr, dy_ptr, out_ptr, P, P_SPLIT, C, H, W, x_sb, x_sc, x_sh, x_sw, dy_sb, dy_sc, dy_sh, dy_sw,
    KH: tl.constexpr, KW: tl.constexpr, DIL: tl.constexpr,
    TAPS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a row of taps of BLOCK_C channels, summed over a part of the pixels.

    Tensors are (pixels, taps, channels).
    """
    kh = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, None, :]
    kw = tl.arange(0, TAPS)[None, :, None]
    dh = (kh - KH // 2) * DIL
    dw = (kw - KW // 2) * DIL
    first = tl.program_id(2) * P_SPLIT
    acc = tl.zeros((BLOCK_P, TAPS, BLOCK_C), dtype=tl.float32)
    for tile in range(0, P_SPLIT, BLOCK_P):
        p = first + tile + tl.arange(0, BLOCK_P)[:, None, None]
        real = (p < P) & (c < C)
        h, w, offset = _pixels(p, H, W, dy_sb, dy_sh, dy_sw)
        dy = tl.load(dy_ptr + offset + c * dy_sc, mask=real, other=0.0)
        inside = real & (kw < KW) & (h + dh >= 0) & (h + dh < H) & (w + dw >= 0) & (w + dw < W)
        _, _, offset = _pixels(p, H, W, x_sb, x_sh, x_sw)
        x = tl.load(x_ptr + offset + c * x_sc + dh * x_sh + dw * x_sw, mask=inside, other=0.0)
        acc += x.to(tl.float32) * dy.to(tl.float32)
    sums = tl.sum(acc, axis=0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    kw = tl.arange(0, TAPS)[:, None]
    offset = (tl.program_id(2).to(tl.int64) * C + c) * (KH * KW) + kh * KW + kw
    tl.store(out_ptr + offset, sums, mask=(kw < KW) & (c < C))


def arguments_of(x: Tensor, kernel: tuple[int, int], dilation: int) -> dict[str, Any]:
    """Return the arguments that both kernels take: sizes, and the number of channels of a program."""
    batch, channels, height, width = x.shape
    channels_are_neighbors = x.stride(1) == 1 and channels > 1
    return {
        "P": batch * height * width,
        "C": channels,
        "H": height,
        "W": width,
        "BLOCK_C": min(32, triton.next_power_of_2(channels)) if channels_are_neighbors else 1,
        "KH": kernel[0],
        "KW": kernel[1],
        "DIL": dilation,
    }


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, dilation: int) -> None:
    """Convolve every channel with a kernel of its own, and write the result to ``y``.

    The gradient of ``x`` is the convolution of the output gradient with the flipped kernel.

    Args:
        x: (B, C, H, W) with any strides, not empty.
        weight: (C, 1, KH, KW) contiguous, KH and KW odd.
        bias: (C,) contiguous, or None.
        y: the result, in the shape of ``x``, with any strides.
        dilation: distance between two taps, in pixels.
    """
    arguments = arguments_of(x, (weight.shape[2], weight.shape[3]), dilation)
    block = 512 // arguments["BLOCK_C"]
    grid = (triton.cdiv(arguments["P"], block), triton.cdiv(arguments["C"], arguments["BLOCK_C"]))
    forward_kernel[grid](
        x,
        weight,
        weight if bias is None else bias,  # without a bias, the kernel does not read this pointer
        y,
        **strides("x", x),
        **strides("y", y),
        BIAS=bias is not None,
        BLOCK_P=block,
        **arguments,
        num_warps=4,
    )


def weight_gradient(x: Tensor, dy: Tensor, kernel: tuple[int, int], dilation: int) -> Tensor:
    """Compute the gradient of the weight, (C, 1, KH, KW) float32, by sums in an order that is always the same.

    Args:
        x: (B, C, H, W) with any strides, not empty.
        dy: output gradient, in the shape of ``x``, with any strides.
        kernel: (KH, KW), odd.
        dilation: distance between two taps, in pixels.
    """
    arguments = arguments_of(x, kernel, dilation)
    taps = triton.next_power_of_2(kernel[1])
    block = max(1, 2048 // (taps * arguments["BLOCK_C"]))

    # The pixels are split over programs, each of which sums into a place of its own.
    groups = triton.cdiv(arguments["C"], arguments["BLOCK_C"])
    splits = min(triton.cdiv(PROGRAMS, kernel[0] * groups), triton.cdiv(arguments["P"], 4 * block))
    per_split = triton.cdiv(triton.cdiv(arguments["P"], splits), block) * block
    splits = triton.cdiv(arguments["P"], per_split)
    partial = torch.empty(splits, x.shape[1], 1, *kernel, dtype=torch.float32, device=x.device)

    weight_gradient_kernel[(kernel[0], groups, splits)](
        x,
        dy,
        partial,
        **strides("x", x),
        **strides("dy", dy),
        P_SPLIT=per_split,
        TAPS=taps,
        BLOCK_P=block,
        **arguments,
        num_warps=4,
    )
    return partial.sum(0)


def strides(name: str, x: Tensor) -> dict[str, int]:
    """Return the strides of ``x`` by the kernels' argument names: ``x_sb``, ``x_sc``, ``x_sh``, ``x_sw`` for 'x'."""
    return {f"{name}_s{axis}": x.stride(i) for i, axis in enumerate("bchw")}
