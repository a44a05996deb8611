"""Depthwise convolution: one function through which every depthwise convolution of the project goes."""

import torch
from torch import Tensor

from core.ops.implementations import convolved
from core.ops.modes import autocast_dtype, eager, observed, transformed, written_down
from core.ops.operators import depthwise, depthwise_at_once
from core.ops.statistics import statistics

__all__ = ["depthwise_conv2d", "depthwise_statistics"]


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    implementation: str = "",
) -> Tensor:
    """Convolve every channel with a kernel of its own, zero-padded so that stride 1 keeps the size.

    With stride 1 this is the operator ``larkit::depthwise_conv2d``: what computes it is chosen for the device, dtype
    and sizes (:func:`core.ops.choose.choose`), and on a map smaller than the kernel only the taps that meet the map are
    computed: the same values, without multiplying the padding. Exporters and tracers see ``conv2d``, so that files need
    nothing of LarKit and the size of the map stays free; so do strides above 1 and the transforms of ``torch.func``.

    Args:
        x: (B, C, H, W), any float dtype, any memory format.
        weight: (C, 1, K, K) with K odd, in the layout of ``nn.Conv2d(C, C, K, groups=C)``.
        bias: (C,), or None.
        stride: step of the output grid, in pixels.
        dilation: distance between two taps, in pixels.
        implementation: one of :data:`core.ops.IMPLEMENTATIONS`, or 'measure' to time them all once; '' chooses.

    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)) in the dtype and memory format of ``x``; under autocast in its dtype.

    Raises:
        ValueError: if the weight is not depthwise for ``x`` or its kernel is even.
        InputError: if there is no such implementation.
    """
    _check(x, weight)
    if stride > 1 or written_down() or transformed():
        return convolved(x, weight, bias, dilation, stride)
    if dtype := autocast_dtype(x):
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if eager() and not observed(x, weight, bias):
        return depthwise_at_once(x, weight, bias, dilation, implementation)
    return depthwise(x, weight, bias, dilation, implementation)


def depthwise_statistics(
    x: Tensor, weight: Tensor, *, dilation: int = 1, implementation: str = ""
) -> tuple[Tensor, Tensor]:
    """Mean and variance over batch and places of each channel of :func:`depthwise_conv2d` with stride 1.

    The operator ``larkit::depthwise_statistics``, differentiable any number of times, keeps x alone for the backward
    pass. Triton computes it without writing the map to memory, from float32 sums; everything else makes the map,
    rounded to the dtype of ``x``, and frees it at once.

    Args:
        x: (B, C, H, W), any float dtype, any memory format.
        weight: (C, 1, K, K) with K odd.
        dilation: distance between two taps, in pixels.
        implementation: one of :data:`core.ops.IMPLEMENTATIONS`; '' chooses.

    Returns:
        The mean and the biased variance (divided by B * H * W), (C,) each, float32, or float64 for float64.

    Raises:
        ValueError: if the weight is not depthwise for ``x`` or its kernel is even.
        InputError: if there is no such implementation.
    """
    _check(x, weight)
    if dtype := autocast_dtype(x):
        x, weight = x.to(dtype), weight.to(dtype)
    if written_down() or transformed():
        z = convolved(x, weight, None, dilation)
        var, mean = torch.var_mean(z.to(torch.promote_types(z.dtype, torch.float32)), (0, 2, 3), correction=0)
        return mean, var
    return statistics(x, weight, dilation, implementation)


def _check(x: Tensor, weight: Tensor) -> None:
    channels, per_group, height, width = weight.shape
    if channels != x.shape[1] or per_group != 1 or height % 2 == 0 or width % 2 == 0:
        raise ValueError(
            f"a depthwise convolution got a weight of shape {tuple(weight.shape)} for an input with {x.shape[1]} "
            f"channels; expected ({x.shape[1]}, 1, K, K) with K odd"
        )
