"""The depthwise convolution, as one function that all models of the project use.

Its results are those of ``F.conv2d``. How they are computed depends on the kernel and the device:

- **A kernel that is larger than the map** is cropped to the taps that can reach the map, on every device.
- **On CPUs in float32 and bfloat16**, oneDNN computes the convolution. Maps keep their memory format, but kernels of
  more than 13 columns run in channels_last. A kernel of 13 columns on a channels_last map is padded with a column of
  zeros on each side, because oneDNN is faster with 15. The weight gradient of kernels above 3 x 3 is computed as a
  convolution of the map with the output gradient, 2 to 20 times as fast as oneDNN's own.
- **In all other cases**, and in exported files, which must not depend on LarKit, ``F.conv2d`` and PyTorch's gradients
  are used.

``benchmarks/README.md`` has the measurements behind these rules.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["depthwise_conv2d", "is_exporting", "runs_on_onednn"]

USE_TRITON = os.environ.get("LARKIT_TRITON") == "1"
"""Whether to use the kernels of :mod:`core.ops.triton` on NVIDIA GPUs; read once, when this module is imported."""

_HAS_ONEDNN = torch.backends.mkldnn.is_available()


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Convolve every channel with a kernel of its own, zero-padded so that stride 1 keeps the size.

    Args:
        x: (B, C, H, W), any float dtype, any memory format.
        weight: (C, 1, K, K) with K odd, in the layout of ``nn.Conv2d(C, C, K, groups=C)``.
        bias: (C,), or None.
        stride: step of the output grid, in pixels.
        dilation: distance between two taps, in pixels.

    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)) in the dtype and memory format of ``x``; under autocast, in the dtype
        of autocast.

    Raises:
        ValueError: if the weight is not depthwise for ``x``, or the kernel size is even.
    """
    channels, per_group, rows, columns = weight.shape
    if channels != x.shape[1] or per_group != 1 or rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(
            f"a depthwise convolution got a weight of shape {tuple(weight.shape)} for an input with {x.shape[1]} "
            f"channels; expected ({x.shape[1]}, 1, K, K) with K odd"
        )
    if stride > 1 or is_exporting():
        return _conv2d(x, weight, bias, dilation, stride)

    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)

    weight = _taps_that_meet(x, weight, dilation)
    if USE_TRITON:
        from core.ops.triton import triton_available, triton_depthwise_conv2d

        if triton_available(x):
            return triton_depthwise_conv2d(x, weight, bias, dilation)
    if not runs_on_onednn(x) or (max(weight.shape[2:]) <= 3 and dilation == 1):
        return _conv2d(x, weight, bias, dilation)
    function = _DepthwiseConv2d if torch.compiler.is_compiling() else _EagerDepthwiseConv2d
    y: Tensor = function.apply(x, weight, bias, dilation)
    return y


def is_exporting() -> bool:
    """Return whether operators are being recorded for a file, which may be used elsewhere and with maps of any size."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def runs_on_onednn(x: Tensor) -> bool:
    """Return whether oneDNN computes the convolutions of ``x``: on a CPU, in float32 or bfloat16."""
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, stride: int = 1) -> Tensor:
    """Convolve with PyTorch's own operator and gradients."""
    padding = [dilation * (size // 2) for size in weight.shape[2:]]
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


def _taps_that_meet(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Crop a kernel (C, 1, Kh, Kw) to the taps in its middle that can reach a map of the size of ``x``."""
    for dim in (2, 3):
        reach = (x.shape[dim] - 1) // dilation  # the largest distance between two pixels, in taps
        half = weight.shape[dim] // 2
        if reach < half:
            weight = weight.narrow(dim, half - reach, 2 * reach + 1)
    return weight


class _DepthwiseConv2d(torch.autograd.Function):
    """The convolution with stride 1 on oneDNN, with gradients of its own."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        return _convolve(x, weight, bias, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, dilation = inputs
        ctx.dilation = dilation
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Both gradients are computed by differentiable functions, so that second derivatives exist.
        x, weight = ctx.saved_tensors
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = depthwise_conv2d(grad, weight.flip(2, 3), dilation=ctx.dilation)
        if ctx.needs_input_grad[1]:
            to_weight = _weight_gradient(x, grad, (weight.shape[2], weight.shape[3]), ctx.dilation)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_weight, to_bias, None


class _EagerDepthwiseConv2d(_DepthwiseConv2d):
    """The same function with the rules for ``torch.func`` transforms, which ``torch.compile`` does not support."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _DepthwiseConv2d.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, to_x: Tensor | None, to_weight: Tensor | None, to_bias: Tensor | None, _: None) -> Tensor:
        x, weight = ctx.saved_tensors
        tangent = x.new_zeros(())
        if to_x is not None:
            tangent = tangent + _conv2d(to_x, weight, None, ctx.dilation)
        if to_weight is not None:
            tangent = tangent + _conv2d(x, to_weight, None, ctx.dilation)
        if to_bias is not None:
            tangent = tangent + to_bias.view(-1, 1, 1)
        return tangent.expand_as(x)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve in the memory format and with the kernel width that are fastest in oneDNN."""
    columns = weight.shape[3]
    channels_last = _is_channels_last(x)

    # With kernels of 15 or more columns on channels_last bfloat16 maps of up to 16 channels, oneDNN hangs (observed
    # with torch 2.12.1 and AVX-512).
    hangs = x.dtype == torch.bfloat16 and x.shape[1] <= 16
    if dilation > 1 or (hangs and columns < 15):
        return _conv2d(x, weight, bias, dilation)
    if torch.compiler.is_compiling():  # the compiler chooses the memory format itself: channels_last on CPUs
        return _conv2d(x, _widened(weight), bias, dilation)
    if hangs:
        y = _conv2d(x.contiguous(), weight, bias, dilation)
    elif channels_last or columns > 13:
        y = _conv2d(_to_channels_last(x), _widened(weight), bias, dilation)
    else:
        return _conv2d(x, weight, bias, dilation)
    return _to_channels_last(y) if channels_last else y.contiguous()


def _widened(weight: Tensor) -> Tensor:
    """Pad a kernel of 13 columns with a column of zeros on each side; other kernels stay as they are."""
    return F.pad(weight, (1, 1)) if weight.shape[3] == 13 else weight


def _weight_gradient(x: Tensor, grad: Tensor, kernel_size: tuple[int, int], dilation: int) -> Tensor:
    """Compute the weight gradient (C, 1, Kh, Kw) as a convolution of each padded map with its output gradient.

    The maps of all samples and channels are the B * C groups of a single convolution. Its kernels are the output
    gradients, its stride is the dilation, and its output has one pixel for each tap of the weight. oneDNN's own weight
    gradient of kernels above 3 x 3 takes 2 to 20 times as long.
    """
    batch, channels, height, width = x.shape
    down, right = (dilation * (size // 2) for size in kernel_size)
    padded = x.new_zeros(batch, channels, height + 2 * down, width + 2 * right)
    padded[:, :, down : down + height, right : right + width] = x  # one copy both pads and changes the memory format

    groups = batch * channels
    maps = padded.view(1, groups, height + 2 * down, width + 2 * right)
    kernels = grad.reshape(groups, 1, height, width)
    products = F.conv2d(maps, kernels, stride=dilation, groups=groups)
    return products.view(batch, channels, *kernel_size).sum(0, dtype=torch.float32).to(x.dtype).unsqueeze(1)


def _is_channels_last(x: Tensor) -> bool:
    """Return whether a map is in channels_last format; it may be a slice of a larger map."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def _to_channels_last(x: Tensor) -> Tensor:
    """Do ``x.contiguous(memory_format=torch.channels_last)`` in a way that ``torch.func.vmap`` supports."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
