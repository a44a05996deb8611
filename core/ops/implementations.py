"""Ways to compute a depthwise convolution of stride 1, and the gradient of its weight; each equals ``F.conv2d``.

All take maps x (B, C, H, W), a weight (C, 1, Kh, Kw) with odd sides, a bias (C,) or None and a dilation r, pad with
zeros so that the size stays, and return a map in the memory format of x. No kernel reaches further than the map is
wide, see :func:`core.ops.depthwise_conv2d`. Weight gradients take x, the gradient g (B, C, H, W) of the output
and (Kh, Kw). The gradient of x is the same convolution with the kernel turned by half a turn.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import InputError
from core.ops import triton_depthwise
from core.ops.modes import memory_format, onednn

__all__ = ["IMPLEMENTATIONS", "Implementation", "convolved"]

Size = tuple[int, int]


class Implementation(NamedTuple):
    """A way to compute the convolution, ``forward(x, weight, bias, dilation)``, and its weight's gradient.

    ``statistics(x, weight, dilation)``, where there is one, computes mean and variance without making the map.
    """

    forward: Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
    weight_gradient: Callable[[Tensor, Tensor, Size, int], Tensor]
    statistics: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None


def _padding(kernel: Size, dilation: int) -> Size:
    return dilation * (kernel[0] - 1) // 2, dilation * (kernel[1] - 1) // 2


def _kernel(weight: Tensor) -> Size:
    return weight.shape[2], weight.shape[3]


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, stride: int = 1) -> Tensor:
    """PyTorch's own convolution, with its own gradients."""
    padding = _padding(_kernel(weight), dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


def _finished(y: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """With the bias, in the dtype and memory format of x."""
    y = y if bias is None else y + bias.view(-1, 1, 1)
    return y.to(x.dtype).contiguous(memory_format=memory_format(x))


def _derived(x: Tensor, g: Tensor, kernel: Size, dilation: int) -> Tensor:
    channels = x.shape[1]
    weight = x.new_empty(channels, 1, *kernel)  # its values do not matter
    options = ([1, 1], _padding(kernel, dilation), [dilation] * 2, False, [0, 0], channels, (False, True, False))
    gradient: Tensor = torch.ops.aten.convolution_backward(g, x, weight, None, *options)[1]
    return gradient


def _stalls(x: Tensor, width: int) -> bool:
    """Whether oneDNN does not come back: bfloat16, channels_last, up to 16 channels, kernels of 15 columns and more.

    Seen with torch 2.12.1 on maps of 32 columns and more, with AVX-512.
    """
    return onednn(x) and x.dtype == torch.bfloat16 and x.shape[1] <= 16 and width >= 15


def _in_format(asked: torch.memory_format) -> Implementation:
    """PyTorch's own kernel for one memory format, whatever the format of x is; contiguous where it would stall."""

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        wanted = torch.contiguous_format if _stalls(x, weight.shape[3]) else asked
        y = convolved(x.contiguous(memory_format=wanted), weight, bias, dilation)
        return y.contiguous(memory_format=memory_format(x))

    def weight_gradient(x: Tensor, g: Tensor, kernel: Size, dilation: int) -> Tensor:
        wanted = torch.contiguous_format if _stalls(x, kernel[1]) else asked
        return _derived(
            x.contiguous(memory_format=wanted), g.contiguous(memory_format=wanted), kernel, dilation
        ).contiguous()

    return Implementation(forward, weight_gradient)


_WIDE = 15


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """``channels_last`` with zero columns up to a width of 15, for which oneDNN has a kernel that 11 to 13 lack."""
    missing = max(0, _WIDE - weight.shape[3]) // 2
    return _in_format(torch.channels_last).forward(x, F.pad(weight, (missing, missing)), bias, dilation)


def _grouped(x: Tensor, g: Tensor, kernel: Size, dilation: int) -> Tensor:
    """The gradient as a convolution of each padded x with its g: B * C groups, steps of r, an output of Kh x Kw."""
    batch, channels, height, width = x.shape
    down, right = _padding(kernel, dilation)
    padded = x.new_zeros(batch, channels, height + 2 * down, width + 2 * right)
    padded[:, :, down : down + height, right : right + width] = x  # pads and changes the format in one copy
    padded = padded.view(1, batch * channels, height + 2 * down, -1)
    kernels = g.reshape(batch * channels, 1, height, width)
    each = F.conv2d(padded, kernels, stride=dilation, groups=batch * channels)
    wide = torch.promote_types(x.dtype, torch.float32)
    return each.view(batch, channels, *kernel).sum(0, dtype=wide).to(x.dtype).unsqueeze(1)


_LARGEST = 32 * 32


def _taps(height: int, width: int, kernel: Size, dilation: int, device: torch.device) -> Tensor:
    """(H*W, H*W): which tap of the kernel, row by row, output i multiplies input j with; Kh*Kw where none."""
    if height * width > _LARGEST:
        raise InputError(
            f"implementation 'matrix' got a map of {height} x {width}; expected at most {_LARGEST} pixels, since its "
            "matrices have the square of that a channel. Use another for large maps"
        )
    places = torch.cartesian_prod(torch.arange(height, device=device), torch.arange(width, device=device))
    steps = places[None] - places[:, None]
    rows, columns = (steps[..., i] // dilation + kernel[i] // 2 for i in (0, 1))
    meets = (steps % dilation == 0).all(-1) & (rows >= 0) & (rows < kernel[0]) & (columns >= 0) & (columns < kernel[1])
    return torch.where(meets, rows * kernel[1] + columns, kernel[0] * kernel[1])


_kept_taps = lru_cache(maxsize=64)(_taps)


def _taps_of(x: Tensor, kernel: Size, dilation: int) -> Tensor:
    """Those of a map: kept on a CPU, while memory of a GPU may belong to a CUDA graph that is yet to end."""
    taps = _kept_taps if x.device.type == "cpu" else _taps
    return taps(x.shape[2], x.shape[3], kernel, dilation, x.device)


def _matrix(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """One (H*W) x (H*W) matrix a channel: for maps that are not much larger than the kernel."""
    taps = _taps_of(x, _kernel(weight), dilation)
    matrices = F.pad(weight.flatten(1), (0, 1))[:, taps]
    y = torch.bmm(x.flatten(2).transpose(0, 1), matrices.transpose(1, 2)).transpose(0, 1)
    return _finished(y.reshape(x.shape), bias, x)


def _matrix_gradient(x: Tensor, g: Tensor, kernel: Size, dilation: int) -> Tensor:
    """All products of two places, summed by the tap that joins them."""
    channels = x.shape[1]
    taps = _taps_of(x, kernel, dilation).flatten()
    wide = torch.promote_types(x.dtype, torch.float32)
    products = torch.bmm(g.flatten(2).permute(1, 2, 0), x.flatten(2).transpose(0, 1)).flatten(1).to(wide)
    sums = products.new_zeros(channels, kernel[0] * kernel[1] + 1).index_add_(1, taps, products)
    return sums[:, :-1].reshape(channels, 1, *kernel).to(x.dtype)


def _fast_length(least: int) -> int:
    """The next product of 2, 3 and 5, which FFTs are quick for."""
    for length in range(least, 2 * least + 2):
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
    raise AssertionError("there is a power of two between n and 2n")


def _fft(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Products of spectra in float32 at least: for kernels about as large as large maps."""
    height, width = x.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    down, right = _padding(_kernel(weight), dilation)
    size = [_fast_length(height + down), _fast_length(width + right)]
    spread = x.new_zeros(x.shape[1], *size, dtype=wide)
    rows = (dilation * torch.arange(weight.shape[2], device=x.device) - down) % size[0]
    columns = (dilation * torch.arange(weight.shape[3], device=x.device) - right) % size[1]
    spread[:, rows[:, None], columns] = weight[:, 0].to(wide)
    y = torch.fft.irfft2(torch.fft.rfft2(x.to(wide), s=size) * torch.fft.rfft2(spread).conj_physical(), s=size)
    return _finished(y[..., :height, :width], bias, x)


def _fft_gradient(x: Tensor, g: Tensor, kernel: Size, dilation: int) -> Tensor:
    """The correlation of x and g, read at the places of the taps."""
    height, width = x.shape[2:]
    wide = torch.promote_types(x.dtype, torch.float32)
    down, right = _padding(kernel, dilation)
    size = [_fast_length(height + down), _fast_length(width + right)]
    spectra = torch.fft.rfft2(x.to(wide), s=size) * torch.fft.rfft2(g.to(wide), s=size).conj_physical()
    sums = torch.fft.irfft2(spectra.sum(0), s=size)
    rows = (dilation * torch.arange(kernel[0], device=x.device) - down) % size[0]
    columns = (dilation * torch.arange(kernel[1], device=x.device) - right) % size[1]
    return sums[:, rows[:, None], columns].unsqueeze(1).to(x.dtype)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "contiguous": _in_format(torch.contiguous_format),
    "channels_last": _in_format(torch.channels_last),
    "widened": Implementation(_widened, _grouped),
    "matrix": Implementation(_matrix, _matrix_gradient),
    "fft": Implementation(_fft, _fft_gradient),
    "triton": Implementation(triton_depthwise.convolve, triton_depthwise.weight_gradient, triton_depthwise.statistics),
}
"""By name. ``triton`` runs on NVIDIA GPUs alone."""
