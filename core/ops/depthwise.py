"""The depthwise convolution: the one function through which every depthwise convolution of the project goes.

Its values are those of ``F.conv2d``. The rule for what computes them:

- **A kernel that is larger than the map** is cut to the taps that can meet the map, on every device.
- **On CPUs, in float32 and bfloat16**, where oneDNN computes, maps keep their memory format, except that kernels of
  more than 13 columns run in channels_last. A kernel of 13 columns on a channels_last map gets a column of zeros on
  each side, because oneDNN is faster with 15. The gradient of the weight of kernels above 3 x 3 is a convolution of the
  map with the output gradient, 2 to 20 times as fast as oneDNN's own.
- **Everything else** is ``F.conv2d`` with PyTorch's gradients. So are exported files, which need nothing of LarKit.

The figures behind this rule are in ``benchmarks/README.md``.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["depthwise_conv2d", "is_exporting", "runs_on_onednn"]

USE_TRITON = os.environ.get("LARKIT_TRITON") == "1"
"""Compute with the kernels of :mod:`core.ops.triton` on NVIDIA GPUs. Read once, when this module is imported."""

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
        (B, C, ceil(H / stride), ceil(W / stride)) in the dtype and memory format of ``x``; under autocast in its dtype.

    Raises:
        ValueError: if the weight is not depthwise for ``x`` or its kernel is even.
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
    """Whether the operators go into a file for another machine or program, for maps of any size."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def runs_on_onednn(x: Tensor) -> bool:
    """Whether oneDNN computes the convolutions of ``x``: on a CPU, in float32 or bfloat16."""
    return _HAS_ONEDNN and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, stride: int = 1) -> Tensor:
    """PyTorch's own convolution, with its own gradients."""
    padding = [dilation * (size // 2) for size in weight.shape[2:]]
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])


def _taps_that_meet(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """The middle of a kernel (C, 1, Kh, Kw): the taps that meet a map of the size of ``x`` at all."""
    for dim in (2, 3):
        reach = (x.shape[dim] - 1) // dilation  # steps from one side of the map to the other
        half = weight.shape[dim] // 2
        if reach < half:
            weight = weight.narrow(dim, half - reach, 2 * reach + 1)
    return weight


class _DepthwiseConv2d(torch.autograd.Function):
    """The convolution of stride 1 where oneDNN computes, with its own gradients."""

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
        # Both gradients are made of differentiable functions, so that there are second derivatives.
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
    """The same for the transforms of ``torch.func`` too, whose rules ``torch.compile`` does not take."""

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
    """``F.conv2d`` in the memory format and with the kernel width that oneDNN is fastest for."""
    columns = weight.shape[3]
    channels_last = _is_channels_last(x)

    # oneDNN does not return from kernels of 15 columns or more on channels_last bfloat16 maps of up to 16 channels,
    # seen with torch 2.12.1 and AVX-512.
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
    """A kernel of 13 columns with a column of zeros on each side; others as they are."""
    return F.pad(weight, (1, 1)) if weight.shape[3] == 13 else weight


def _weight_gradient(x: Tensor, grad: Tensor, kernel_size: tuple[int, int], dilation: int) -> Tensor:
    """The gradient of the weight, (C, 1, Kh, Kw), as a convolution of each padded map with its output gradient.

    The maps of all samples and channels are the B * C groups of one convolution, whose kernels are the gradients, whose
    stride is the dilation, and whose output has a pixel for each tap. oneDNN's own weight gradient of kernels above
    3 x 3 takes 2 to 20 times as long.
    """
    batch, channels, height, width = x.shape
    down, right = (dilation * (size // 2) for size in kernel_size)
    padded = x.new_zeros(batch, channels, height + 2 * down, width + 2 * right)
    padded[:, :, down : down + height, right : right + width] = x  # pads and changes the format in one copy

    groups = batch * channels
    maps = padded.view(1, groups, height + 2 * down, width + 2 * right)
    kernels = grad.reshape(groups, 1, height, width)
    products = F.conv2d(maps, kernels, stride=dilation, groups=groups)
    return products.view(batch, channels, *kernel_size).sum(0, dtype=torch.float32).to(x.dtype).unsqueeze(1)


def _is_channels_last(x: Tensor) -> bool:
    """Whether neighbors in memory are channels, in a slice of a larger map too."""
    return x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def _to_channels_last(x: Tensor) -> Tensor:
    """``x.contiguous(memory_format=torch.channels_last)``, which ``torch.func.vmap`` does not take."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
